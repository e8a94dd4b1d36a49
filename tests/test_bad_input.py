"""Wrong input, in one table: what is given, and the sentence that the reader gets, soon and with nothing lost."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import nbformat
import numpy as np
import pytest
from conftest import NOTEBOOKS, ROOT

import helpers
from helpers import artifacts as artifacts_module
from helpers.models import TINY, Checkpoint
from helpers.record import read_record, record_path

LOOP = 3 * "{% for _ in range(99999) %}" + 3 * "{% endfor %}"


@dataclass(frozen=True)
class Case:
    """``give`` gets a folder of its own and does the wrong thing; ``sentence`` is a pattern for the answer."""

    kind: str
    given: str
    give: Callable[[pathlib.Path], object]
    sentence: str
    error: type[BaseException] = ValueError
    seconds: float = 2  # in which the answer must come

    def __str__(self) -> str:
        return f"{self.kind}: {self.given}"


# --- parameters, in the notebooks that have them ---------------------------------------------


def parameter(notebook: str, seconds: float = 2, **values: object) -> Callable[[pathlib.Path], None]:
    """Run the notebook's first cells, as they are, with these parameters; they must not come to the heavy imports."""

    def give(folder: pathlib.Path) -> None:
        path = next(p for p in NOTEBOOKS if p.stem.startswith(notebook))
        namespace: dict = {}
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code":
                continue
            tree = ast.parse(cell.source)
            heavy = [i for i, node in enumerate(tree.body) if isinstance(node, ast.With)]
            tree.body = tree.body[: heavy[0]] if heavy else tree.body
            here = pathlib.Path.cwd()
            os.chdir(path.parent)
            try:
                exec(compile(tree, path.stem, "exec"), namespace)
            finally:
                os.chdir(here)
            if "parameters" in cell.metadata.get("tags", []):
                assert values.keys() <= namespace.keys()
                namespace |= values
            if heavy:
                return

    return give


def parameter_case(notebook: str, sentence: str, **values: object) -> Case:
    given = ", ".join(f"{name} = {value!r}" for name, value in values.items())
    return Case("parameter", f"{notebook}: {given}", parameter(notebook, **values), sentence)


# --- messages and templates --------------------------------------------------------------------


def tokenizer(template: str | None = None):
    """Ours, with another template."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(TINY)
    if template is not None:
        found.chat_template = template
        found.name_or_path = "some/model"
    return found


def ask(messages: object, template: str | None = None) -> Callable[[pathlib.Path], None]:
    return lambda folder: helpers.render_prompt(tokenizer(template), messages)


# --- models ------------------------------------------------------------------------------------


def changed_model(change: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], None]:
    """A copy of tiny-zephyr, in shards, that is changed before it is asked for."""

    def give(folder: pathlib.Path) -> None:
        model = folder / "model"
        model.mkdir()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(TINY / name, model)
        from safetensors.numpy import save_file

        names = {"first": "model-1.safetensors", "second": "model-2.safetensors"}
        for tensor, file in names.items():
            save_file({tensor: np.zeros(1000, dtype=np.float32)}, model / file)
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        helpers.resolve_model(str(model))  # sound so far
        change(model)
        helpers.resolve_model(str(model))

    return give


def set_json(name: str, **values: object) -> Callable[[pathlib.Path], None]:
    def change(model: pathlib.Path) -> None:
        file = model / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def cut(name: str, keep: int) -> Callable[[pathlib.Path], None]:
    return lambda folder: os.truncate(folder / name, keep)


def pickled_only(model: pathlib.Path) -> None:
    for file in model.glob("*.safetensors*"):
        file.unlink()
    (model / "pytorch_model.bin").write_bytes(b"a pickle")


def in_a_process(code: str, **variables: str) -> Callable[[pathlib.Path], None]:
    """In a process without HF_HUB_OFFLINE, whose hub is an address where nobody answers; its error is raised here."""

    def give(folder: pathlib.Path) -> None:
        env = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
        env |= {"HF_ENDPOINT": "http://127.0.0.1:9", **variables}
        program = f"from helpers import *\ntry:\n    {code}\nexcept Exception as e:\n    print(type(e).__name__, e)"
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
        name, _, said = done.stdout.strip().partition(" ")
        raise {"ValueError": ValueError, "ConnectionError": ConnectionError, "OSError": OSError}[name](said)

    return give


# --- artifacts and records ---------------------------------------------------------------------


def spoilt(change: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], None]:
    """A whole artifact that is changed; what is said of it is a warning, which is raised here."""

    def give(folder: pathlib.Path) -> None:
        target = folder / "made"
        with helpers.building(target) as scratch:
            (scratch / "model-1.safetensors").write_bytes(bytes(1000))
            (scratch / "model.gguf").write_bytes(bytes(range(250)))
        assert helpers.is_made(target)
        change(target)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            helpers.is_made(target)

    return give


def flip(name: str, place: int) -> Callable[[pathlib.Path], None]:
    def change(folder: pathlib.Path) -> None:
        with (folder / name).open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))

    return change


def full_disk(folder: pathlib.Path) -> None:
    """The system's own answer of a full disk, from a device that is always full."""
    with helpers.building(folder / "made") as scratch:
        (scratch / "model.safetensors").symlink_to("/dev/full")
        (scratch / "model.safetensors").write_bytes(bytes(1000))


def write_nothing(folder: pathlib.Path) -> None:
    with helpers.building(folder / "made"):
        pass


def fields() -> dict:
    return dict(
        name="NF4", technique="nf4", library="bitsandbytes", model="tiny", revision="local", notebook="03_nf4",
        settings={}, versions={}, layer="Linear4bit", layers={}, disk_bytes=1, predicted_bytes=1, memory_bytes=1,
        running_bytes=1, peak_bytes=1, seconds={}, tokens_per_second=1.0, prompt_ids=[1], answer_ids=[2], answer="Ha.",
        exam_answers=["?"] * 200,
    )  # fmt: skip


def write(**changes: object) -> None:
    scores = [helpers.log_probabilities(np.eye(3, 8)) for _ in range(2)]
    helpers.write_record([[1, 2, 3], [1, 3, 2]], scores, **(fields() | changes))


def spoilt_record(change: Callable[[pathlib.Path], object]) -> Callable[[pathlib.Path], None]:
    def give(folder: pathlib.Path) -> None:
        write()
        read_record("NF4")
        change(record_path("NF4").parent)
        read_record("NF4")

    return give


def command(*arguments: str) -> Callable[[pathlib.Path], None]:
    """A command of the series; its last line, if it fails, is raised as SystemExit."""

    def give(folder: pathlib.Path) -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            assert "Traceback" not in done.stderr, done.stderr
            raise SystemExit(done.stderr.strip().splitlines()[-1])

    return give


SYSTEM, HI = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}
CASES = [
    parameter_case("01", "MAX_NEW_TOKENS must be a whole number from 1 to 4,096; it is 0", MAX_NEW_TOKENS=0),
    parameter_case("01", "MAX_NEW_TOKENS must be a whole number .* it is '64'", MAX_NEW_TOKENS="64"),
    parameter_case("01", "MAX_NEW_TOKENS must be a whole number .* it is True", MAX_NEW_TOKENS=True),
    parameter_case("01", "CHAT must be one of True, False; it is 'no'", CHAT="no"),
    parameter_case("01", "MODEL = 'tinny' is not known. Did you mean 'tiny'", MODEL="tinny"),
    parameter_case("02", "SHARDS must be a whole number from 1 to 64; it is 0", SHARDS=0),
    parameter_case("02", "SHARDS must be a whole number from 1 to 64; it is 2.5", SHARDS=2.5),
    parameter_case("03", "MODEL must be a name, a folder or a hub id, but is 7", MODEL=7),
    parameter_case("03", "MAX_NEW_TOKENS must be a whole number .* it is -5", MAX_NEW_TOKENS=-5),
    parameter_case("04", "BITS must be one of 2, 3, 4, 8; it is 5", BITS=5),
    parameter_case("04", "BITS must be one of 2, 3, 4, 8; it is '4'", BITS="4"),
    parameter_case("04", "GROUP_SIZE must be one of 32, 64, 128; it is 48", GROUP_SIZE=48),
    parameter_case("04", "CALIBRATION_TEXTS must be a whole number from 1 to 128; it is 129", CALIBRATION_TEXTS=129),
    parameter_case("04", "CALIBRATION must be one of 'own', 'unrelated', 'random'; it is 'poems'", CALIBRATION="poems"),
    parameter_case("05", "QUANT_TYPE must be one of 'F16', .*'Q2_K'; it is 'Q9'", QUANT_TYPE="Q9"),
    parameter_case("05", "CONTEXT must be a whole number from 320 to 1,000,000; it is 100", CONTEXT=100),
    parameter_case("05", "leaves no room for the question in CONTEXT = 512", MAX_NEW_TOKENS=500),
    parameter_case("06", "GPUS must be a whole number from 1 to 64; it is 0", GPUS=0),
    parameter_case("06", "CALIBRATION_TEXTS must be a whole number from 1 to 128; it is 0", CALIBRATION_TEXTS=0),
    parameter_case("07", "LADDERS must be one of True, False; it is 1", LADDERS=1),
    Case("messages", "an empty list", ask([]), "There are no messages"),
    Case("messages", "a string", ask("Hi"), "must be a list of dictionaries"),
    Case("messages", "a list of strings", ask(["Hi"]), "Message 0 needs the keys 'role' and 'content'"),
    Case("messages", "no content", ask([SYSTEM, {"role": "user"}]), "Message 1 needs the keys"),
    Case("messages", "an unknown role", ask([{"role": "robot", "content": "Hi"}]), "unknown role 'robot'. Use one of"),
    Case("messages", "a number as content", ask([{"role": "user", "content": 7}]), "must be text, but is 7"),
    Case("template", "none: a base model", ask([HI], ""), "no chat template: this looks like a base model"),
    Case("template", "a loop without an end", ask([HI], LOOP), "did not end within 5 seconds", seconds=30),
    Case(
        "template", "a loop behind a refused system role",
        ask([SYSTEM, HI], "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LOOP),
        "did not end within 5 seconds", seconds=30,
    ),
    Case(
        "template", "a power that takes an hour", ask([HI], "{{ (10 ** 10) ** (10 ** 9) }}"),
        "did not end within 5 seconds", seconds=30,
    ),
    Case(
        "template", "a text that fills the memory", ask([HI], "{{ ('a' * 10 ** 11) | length }}"),
        "did not end within 5 seconds and 4 GB", seconds=30,
    ),
    Case(
        "template", "reaching for Python's classes", ask([HI], "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        "reaches for what no template needs: .*__class__", seconds=30,
    ),
    Case("template", "a syntax error", ask([HI], "{% for %}"), "does not take this conversation", seconds=30),
    Case("model", "an empty name", lambda folder: helpers.resolve_model(" "), "MODEL must be a name"),
    Case("model", "a folder that is missing", lambda folder: helpers.resolve_model("./nowhere"), "There is no folder"),
    Case(
        "model", "a folder that is missing, with a network that does not answer",
        in_a_process("resolve_model('/no/such/folder')"), "There is no folder '/no/such/folder'",
    ),
    Case(
        "model", "a hub id, with a network that does not answer", in_a_process("resolve_model('some/model')"),
        "the hub cannot be reached .*Use MODEL = 'tiny'", ConnectionError, seconds=20,
    ),
    Case(
        "model", "a file", lambda folder: helpers.resolve_model(str(TINY / "model.safetensors")),
        "is a file. MODEL takes the folder",
    ),
    Case("model", "an empty folder", lambda folder: helpers.resolve_model(str(folder)), "config.json is missing"),
    Case("model", "a cut config.json", changed_model(cut("config.json", 40)), r"config.json is damaged"),
    Case(
        "model", "a list in config.json", changed_model(lambda m: (m / "config.json").write_text("[]")), "holds a list"
    ),
    Case("model", "pickled weights", changed_model(pickled_only), "pickled weights can run code"),
    Case(
        "model", "code of its own", changed_model(set_json("config.json", auto_map={"AutoModel": "evil.Model"})),
        r"brings code of its own \(evil.Model\)",
    ),
    Case(
        "model", "a tokenizer with code",
        changed_model(set_json("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})),
        "brings code of its own .*evil.Tokenizer",
    ),
    Case(
        "model", "an index that climbs out",
        changed_model(set_json("model.safetensors.index.json", weight_map={"first": "../../other.safetensors"})),
        "'../../other.safetensors', which leads out of its folder",
    ),
    Case(
        "model", "an index that names a missing shard", changed_model(lambda m: (m / "model-2.safetensors").unlink()),
        "names model-2.safetensors, and there is no such file",
    ),
    Case(
        "model", "a shard cut off", changed_model(cut("model-1.safetensors", 3000)),
        r"model-1.safetensors is damaged: it has 3,000 bytes instead of 4,\d\d\d",
    ),
    Case(
        "model", "a shard without a header",
        changed_model(lambda m: (m / "model-1.safetensors").write_bytes(struct.pack("<Q", 8) + b"not json")),
        "its header cannot be read",
    ),
    Case(
        "model", "a model_file that climbs out", lambda folder: Checkpoint("some/model", "main", "../secret.gguf"),
        "'../secret.gguf' leads out of its model's folder",
    ),
    Case(
        "model", "an absolute model_file", lambda folder: Checkpoint("some/model", "main", "/etc/passwd"),
        "leads out of its model's folder",
    ),
    Case(
        "environment", "HF_HUB_OFFLINE, and a model of the hub", lambda folder: helpers.resolve_model("some/model"),
        "HF_HUB_OFFLINE is set", ConnectionError,
    ),
    Case(
        "environment", "QUANT_ARTIFACTS is a file",
        in_a_process("artifacts_folder()", QUANT_ARTIFACTS=str(ROOT / "LICENSE")),
        "Cannot write to .*LICENSE.* Set QUANT_ARTIFACTS to a folder that you own", OSError,
    ),
    Case(
        "environment", "QUANT_ARTIFACTS cannot be made",
        in_a_process("artifacts_folder()", QUANT_ARTIFACTS="/proc/mine"),
        "Set QUANT_ARTIFACTS to a folder that you own", OSError,
    ),
    Case("artifact", "a safetensors file cut off", spoilt(cut("model-1.safetensors", 900)),
         "model-1.safetensors has 900 bytes instead of 1,000. It is made again", UserWarning),
    Case("artifact", "a flipped bit in a GGUF file", spoilt(flip("model.gguf", 99)),
         "the content of model.gguf has changed. It is made again", UserWarning),
    Case("artifact", "a missing shard", spoilt(lambda f: (f / "model-1.safetensors").unlink()),
         "model-1.safetensors is missing. It is made again", UserWarning),
    Case("artifact", "no list of its files", spoilt(lambda f: (f / "contents.json").unlink()),
         "contents.json is missing", UserWarning),
    Case("artifact", "a cut list of its files", spoilt(cut("contents.json", 20)),
         "contents.json cannot be read", UserWarning),
    Case("artifact", "a maker that writes nothing", write_nothing, "Nothing was written for made", RuntimeError),
    Case("artifact", "a full disk", full_disk, "The disk is full: made could not be written", OSError),
    Case("artifact", "more than the disk has", lambda folder: helpers.require_disk(10**15),
         "needs 1000000.00 GB on disk", OSError),
    Case("record", "one that was never made", lambda folder: read_record("NF4"), "no record of NF4", FileNotFoundError),
    Case("record", "a cut file", spoilt_record(cut("nf4-tiny.json", 100)), "nf4-tiny.json is damaged"),
    Case("record", "a changed figure",
         spoilt_record(lambda f: (f / "nf4-tiny.json").write_text((f / "nf4-tiny.json").read_text().replace(
             '"memory_bytes": 1', '"memory_bytes": 2'))), "nf4-tiny.json is damaged"),
    Case("record", "scores of another run", spoilt_record(flip("nf4-tiny.safetensors", 200)),
         "nf4-tiny.safetensors is damaged, or of another run"),
    Case("record", "an answer of white space", lambda folder: write(answer="  "), "the model said nothing"),
    Case("record", "a misspelt field", lambda folder: write(memory_byte=1), r"unknown: \['memory_byte'\]"),
    Case("command", "a notebook that is not there", command("scripts/series.py", "run", "09"),
         "There is no notebook 09. There are: 01_baseline", SystemExit, seconds=20),
    Case("command", "a format that is not there", command("scripts/speed.py", "--formats", "Q9"),
         "invalid choice: 'Q9'", SystemExit, seconds=20),
    Case("command", "an address without an owner", command("scripts/stamp.py", "elsewhere", "--tag", "v1"),
         "OWNER/NAME", SystemExit, seconds=20),
    Case("command", "a stage of the set-up that is not there", command("scripts/setup.py", "everything"),
         "Say 'core', 'all' or 'original', not 'everything'", SystemExit, seconds=20),
]  # fmt: skip


@dataclass
class Told:
    """What the reader was told."""

    case: Case
    kind: str
    sentence: str
    seconds: float
    lines: int  # of a plain traceback, from the call to the sentence
    lost: bool


def tell(case: Case, folder: pathlib.Path) -> Told:
    """Give the wrong input, and take down the answer."""
    os.environ["QUANT_ARTIFACTS"] = str(folder / "artifacts")
    with helpers.building(helpers.artifacts_folder() / "earlier") as scratch:
        (scratch / "file").write_text("made earlier")
    os.environ["HF_HUB_OFFLINE"] = "1"
    mine = folder / "mine"
    mine.mkdir()
    start = time.perf_counter()
    try:
        case.give(mine)
        kind, sentence, lines = "nothing", "", 0
    except BaseException as error:
        kind, sentence = type(error).__name__, str(error)
        shown = traceback.format_exception(error)
        lines = sum(text.count("\n") for text in shown)
        right = isinstance(error, case.error) and bool(re.search(case.sentence, sentence, re.S))
        if not right:
            raise
    seconds = time.perf_counter() - start
    left = [p for p in folder.rglob(".*") if p.name.endswith(".part")]
    lost = artifacts_module.damage(folder / "artifacts" / "earlier") is not None or bool(left)
    return Told(case, kind, sentence, seconds, lines, lost)


def test_the_table_is_long_enough():
    assert len(CASES) >= 40 and len({str(case) for case in CASES}) == len(CASES)
    kinds = {"parameter", "messages", "template", "model", "environment", "artifact", "record", "command"}
    assert {case.kind for case in CASES} == kinds


@pytest.fixture(scope="session")
def imported():
    """The heavy imports are no part of an answer's time."""
    tokenizer()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrong_input_gets_a_sentence(case, tmp_path, monkeypatch, imported):
    monkeypatch.setenv("QUANT_ARTIFACTS", "")
    told = tell(replace(case), tmp_path)
    assert told.kind != "nothing", "it was taken"
    assert told.seconds < case.seconds
    assert told.lines < 40 and not told.lost
    assert len(told.sentence) < 500


def test_every_parameter_has_its_wrong_values():
    """A parameter that nobody checks must not slip into a notebook."""
    from helpers.parameters import PARAMETERS

    names = set()
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
        names |= {node.targets[0].id for node in ast.parse(source).body}
        assert any("check_parameters(globals())" in c.source for c in cells), path.stem
    assert names == {"MODEL", *PARAMETERS}
    tried = {name for case in CASES if case.kind == "parameter" for name in re.findall(r"\b([A-Z_]+) =", case.given)}
    assert tried == names
