"""Wrong input, in one table: what is given, and the sentence that the reader gets, soon and with nothing lost."""

import atexit
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import helpers  # noqa: E402
import hub  # noqa: E402
from architectures import make_model  # noqa: E402
from series import artifacts, gate, start  # noqa: E402
from series.models import TINY, find  # noqa: E402
from series.notebooks import default_parameters, made_from, steps  # noqa: E402
from series.parameters import check_parameters  # noqa: E402
from series.prepared import prepare  # noqa: E402
from series.quality import log_probabilities  # noqa: E402
from series.record import read_record, record_path, write_record  # noqa: E402
from series.techniques import LOADS, PARAMETERS, TECHNIQUES  # noqa: E402
from series.texts import exam_questions  # noqa: E402

Give = Callable[[pathlib.Path], object]


@dataclass(frozen=True)
class Case:
    """``give`` gets a folder of its own and does the wrong thing; ``sentence`` is a pattern for the answer."""

    kind: str
    given: str
    give: Give
    sentence: str
    error: type[BaseException] = ValueError

    def __str__(self) -> str:
        return f"{self.kind}: {self.given}"


def parameter(number: str, sentence: str, **values: object) -> Case:
    """The notebook's own parameters, but for ``values``, as its first cells hand them to ``start``."""
    row = next(row for row in TECHNIQUES.values() if row.notebook.startswith(number))
    given = f"{number}: " + ", ".join(f"{name} = {value!r}" for name, value in values.items())
    return Case("parameter", given, lambda folder: start(row.name, default_parameters(row.notebook) | values), sentence)


def tokenizer(template: str | None = None):
    """Ours, with another template."""
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(TINY)
    if template is not None:
        found.chat_template, found.name_or_path = template, "some/model"
    return found


def prompt(given: str, sentence: str, messages: object, template: str | None = None) -> Case:
    kind = "messages" if template is None else "template"
    return Case(kind, given, lambda folder: helpers.render_prompt(tokenizer(template), messages), sentence)


def change(name: str, how: Callable[[bytes], bytes]) -> Give:
    return lambda folder: (folder / name).write_bytes(how((folder / name).read_bytes()))


def entries(**values: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | values).encode()


def flip(content: bytes) -> bytes:
    place = len(content) // 2  # one bit in the middle
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def model(given: str, sentence: str, spoil: Give) -> Case:
    """A copy of tiny-zephyr, in shards, that is spoilt before it is asked for."""

    def give(folder: pathlib.Path) -> None:
        from safetensors.numpy import save_file

        for name in (CONFIG, TOKENIZER, "tokenizer.json"):
            shutil.copy(TINY / name, folder)
        names = {"first": "model-1.safetensors", "second": "model-2.safetensors"}
        for tensor, file in names.items():
            save_file({tensor: np.zeros(1000, dtype=np.float32)}, folder / file)
        (folder / INDEX).write_text(json.dumps({"weight_map": names}))
        find(str(folder))  # sound so far
        spoil(folder)
        find(str(folder))
        prepare(folder, folder.parent / "prepared")

    return Case("template" if "template" in given else "model", given, give, sentence)


@functools.cache
def small_model(kind: str) -> pathlib.Path:
    """A whole model of two blocks with random weights, made once."""
    folder = tempfile.mkdtemp(prefix="models-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make_model(kind, pathlib.Path(folder) / "model")


def whole(given: str, sentence: str, spoil: Give, kind: str = "llama") -> Case:
    """A model as people bring it, odd in one way: no file is damaged, and it is not what it should be."""

    def give(folder: pathlib.Path) -> None:
        shutil.copytree(small_model(kind), folder, dirs_exist_ok=True)
        gate.require(find(str(folder)), loads=LOADS)  # sound so far
        spoil(folder)
        gate.require(find(str(folder)), loads=LOADS)

    return Case("gate", given, give, sentence)


def weights(how: Callable[[dict], dict]) -> Give:
    def give(folder: pathlib.Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(how(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})

    return give


def renamed(prefix: str) -> Give:
    return weights(lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()})


def without(part: str) -> Give:
    return weights(lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name})


def packed(tensors: dict) -> dict:
    import torch

    return {name: tensor.view(torch.uint8) for name, tensor in tensors.items()}


def config(**values: object) -> Give:
    return change(CONFIG, entries(**values))


def quantized(method: str) -> Give:
    return config(quantization_config={"quant_method": method})


def rename(name: str) -> Give:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def more_tokens(folder: pathlib.Path) -> None:
    from transformers import AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder)
    found.add_tokens(["<|new|>"])
    found.save_pretrained(folder)


def gated(folder: pathlib.Path) -> None:
    shutil.copy(TINY / CONFIG, folder)
    with hub.serve(folder, gated=True) as (address, _):
        code = f"from series.models import find; find('some/{folder.name}')"
        (said,) = hub.ask(address, folder / "cache", code)
    raise ConnectionError(said.removeprefix("ConnectionError: "))


@mock.patch.dict(os.environ, HF_HUB_OFFLINE="0")
@mock.patch.multiple("huggingface_hub.constants", HF_HUB_OFFLINE=False, ENDPOINT="http://127.0.0.1:9")
def no_network(folder: pathlib.Path) -> None:
    """The hub's address is one where nobody listens."""
    find("some/model")


def artifacts_in(place: str) -> Give:
    return mock.patch.dict(os.environ, QUANT_ARTIFACTS=place)(lambda folder: artifacts.artifacts_folder())


def artifact(given: str, sentence: str, spoil: Give) -> Case:
    """A sealed artifact that is spoilt, beside a sound one; what is said of it is a warning, which is raised here."""

    def give(folder: pathlib.Path) -> None:
        made, lock = artifacts.hold("made")
        for name in ("model.gguf", "sound.gguf"):
            (made / name).write_bytes(bytes(250))
        artifacts.seal(made)
        artifacts.sweep(made)  # of what is sound nothing is said
        spoil(made)
        with warnings.catch_warnings(record=True) as said:
            artifacts.sweep(made)
        assert {path.name for path in made.iterdir()} == {".lock", "sound.gguf"} and len(said) == 1
        raise said[0].message

    return Case("artifact", given, give, sentence, UserWarning)


def full_disk(folder: pathlib.Path) -> None:
    """The system's own answer of a full disk, from a device that is always full."""
    device = lambda number, mode: (os.close(number), open("/dev/full", mode))[1]  # noqa: E731
    with mock.patch.object(artifacts.os, "fdopen", device):
        artifacts.replace_file(folder / "record.json", bytes(1000))


def write(logits: object = None, windows: object = ((1, 2, 3), (1, 3, 2)), **changes: object) -> dict:
    """A record of NF4, but for ``changes``; its scores come from ``logits``."""
    fields = dict(
        name="NF4",
        technique="nf4",
        library="bitsandbytes",
        model="tiny",
        identity="abc",
        revision="local",
        made_from=made_from(steps("03_nf4"), changes.get("model", "tiny")),
        asked={"MAX_NEW_TOKENS": 64},
        settings={},
        series="1.0",
        versions={},
        layer="Linear4bit",
        layers={},
        disk_bytes=1,
        predicted_bytes=1,
        memory_bytes=1,
        tokens_per_second=1.0,
        prompt_ids=[1],
        answer_ids=[2],
        answer="Ha.",
        exam_answers=["?"] * 200,
        wikitext=None,
    )
    scores = [log_probabilities(np.eye(3, 8) if logits is None else logits) for _ in windows]
    questions = exam_questions(str(changes.get("model", "tiny")))
    return write_record([list(ids) for ids in windows], scores, questions, **fields | changes)


def record(given: str, sentence: str, spoil: Give | None = None, **fields: object) -> Case:
    def give(folder: pathlib.Path) -> None:
        write(**fields)
        read_record("NF4")
        spoil(record_path("NF4").parent)
        read_record("NF4")

    return Case("record", given, give, sentence)


def command(given: str, sentence: str, *arguments: str) -> Case:
    """A command of the series; its last line of errors is raised as SystemExit."""

    def give(folder: pathlib.Path) -> None:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert "Traceback" not in done.stderr, done.stderr
        raise SystemExit(done.stderr.strip().splitlines()[-1])

    return Case("command", given, give, sentence, SystemExit)


HI = {"role": "user", "content": "Hi"}
CONFIG, TOKENIZER, INDEX = "config.json", "tokenizer_config.json", "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
CODE = {"AutoModel": "a.B"}
CLASSES = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
CASES = [
    parameter("01", "MAX_NEW_TOKENS must be a whole number from 1 to 4,096; it is 0", MAX_NEW_TOKENS=0),
    parameter("01", "MAX_NEW_TOKENS must be a whole number .* it is True", MAX_NEW_TOKENS=True),
    parameter("01", "MODEL = 'tinny' is not known. Did you mean 'tiny'", MODEL="tinny"),
    parameter("02", "SHARDS must be a whole number from 1 to 64; it is 2.5", SHARDS=2.5),
    parameter("03", "MODEL must be a name, a folder or a hub id, but is 7", MODEL=7),
    parameter("03", "MODEL must be a name, a folder or a hub id, but is \\['tiny'\\]", MODEL=["tiny"]),
    parameter("05", "MODEL = '~nobody-of-that-name/x' is no folder here", MODEL="~nobody-of-that-name/x"),
    parameter("05", "MODEL = 'xxxx.* is no folder here", MODEL="x" * 300),
    parameter("03", "TEXT must be one of 'own', 'wikitext'; it is 'books'", TEXT="books"),
    parameter("03", "DTYPE must be one of 'bfloat16', 'float16', 'float32'; it is 'int8'", DTYPE="int8"),
    parameter("04", "BITS must be one of 2, 3, 4, 8; it is 5", BITS=5),
    parameter("04", "GROUP_SIZE must be one of 32, 64, 128; it is 48", GROUP_SIZE=48),
    parameter("04", "CALIBRATION_TEXTS must be a whole number from 1 to 128; it is 129", CALIBRATION_TEXTS=129),
    parameter("04", "CALIBRATION must be one of 'own', 'unrelated', 'random'; it is 'poems'", CALIBRATION="poems"),
    parameter(
        "04", "READY must be a text: a hub id, its address, a folder or a file, or empty; it is None", READY=None
    ),
    parameter("04", "There is no file or folder '/no/such'. Check the path in READY", READY="/no/such"),
    parameter("05", "QUANT_TYPE must be one of 'F16', .*'IQ1_S'; it is 'Q9'", QUANT_TYPE="Q9"),
    parameter("05", "CONTEXT must be a whole number from 320 to 1,000,000; it is 100", CONTEXT=100),
    parameter("05", "leaves no room for the question in CONTEXT = 512", MAX_NEW_TOKENS=500, CONTEXT=512),
    parameter("05", "GPU_LAYERS must be a whole number from -1 to 1,000; it is -2", GPU_LAYERS=-2),
    parameter("06", "GPUS must be a whole number from 1 to 64; it is 0", GPUS=0),
    parameter("09", "PORT must be a whole number from 1024 to 65,000; it is 80", PORT=80),
    parameter("06", "GPU_MEMORY must be a share of the GPU's memory, up to 1.0; it is 1.5", GPU_MEMORY=1.5),
    parameter("10", "MEMORY_GB must be gigabytes, a number above 0; it is -1", MEMORY_GB=-1),
    parameter("13", "CACHE_TYPE must be one of 'F16', 'Q8_0'", CACHE_TYPE="Q2_K"),
    parameter("14", "STEPS must be a whole number from 20 to 100,000; it is 10", STEPS=10),
    parameter("14", "RANK must be a whole number from 1 to 1,024; it is 0", RANK=0),
    parameter("14", "LEARNING_RATE must be a number above 0, such as 1e-3; it is 0", LEARNING_RATE=0),
    parameter(
        "14", "ADAPTER must be a text: a folder with an adapter, or a hub id, or empty; it is None", ADAPTER=None
    ),
    parameter("11", "FORMAT must be one of 'INT8', 'FP8', 'NVFP4'; it is 'FP4'", FORMAT="FP4"),
    parameter("07", "LADDERS must be one of True, False; it is 1", LADDERS=1),
    prompt("an empty list", "There are no messages", []),
    prompt("a string", "must be a list of dictionaries", "Hi"),
    prompt("an unknown role", "unknown role 'robot'. Use one of", [HI | {"role": "robot"}]),
    prompt("no content", "Message 1 needs the keys 'role' and 'content'", [HI, {"role": "user"}]),
    prompt("a number as content", "must be text, but is 7", [HI | {"content": 7}]),
    prompt("none: a base model", "some/model has no chat template: this looks like a base model", [HI], ""),
    prompt("reaching for Python's classes", "reaches for what no template needs: .*__class__", [HI], CLASSES),
    prompt("a syntax error", "some/model does not take this conversation", [HI], "{% for %}"),
    prompt("a number added to a text", "does not take this conversation", [HI], "{{ messages[0]['content'] + 1 }}"),
    model("a model's template", "for what no template", change(TOKENIZER, entries(chat_template=CLASSES))),
    Case("model", "a folder that is missing", lambda folder: find("./nowhere"), r"no folder .*\(looked for in"),
    Case(
        "model",
        "a hub id, and no network",
        no_network,
        "neither a folder in .*hub cannot be reached .*Use MODEL",
        ConnectionError,
    ),
    Case("hub", "a login is needed", gated, "some/mine asks for a login: accept its terms", ConnectionError),
    Case("model", "a file", lambda folder: find(str(TINY / "model.safetensors")), "is a file. MODEL takes the folder"),
    Case("model", "an empty folder", lambda folder: find(str(folder)), "config.json is missing"),
    model("a cut config.json", "config.json is damaged", change(CONFIG, lambda content: content[:40])),
    model("pickled weights", "pickled weights can run code", lambda f: [p.unlink() for p in f.glob("*.safetensors*")]),
    whole("code of its own", r"brings code of its own \(a.B\)", config(model_type="own", auto_map=CODE)),
    whole("an unknown type", "'own' in config.json, which transformers .* does not", config(model_type="own")),
    whole("an encoder and decoder", "type 't5', which is no causal", config(model_type="t5")),
    whole("one that reads pictures", r"more than text \(vision_config\)", config(vision_config={"a": 1})),
    whole("NF4 already", "already quantized \\(bitsandbytes\\).*In 03_nf4 it goes to READY", quantized("bitsandbytes")),
    whole("GPTQ already", "is already quantized \\(gptq\\).*In 04_gptq it goes to READY", quantized("gptq")),
    whole("AWQ already", "is already quantized \\(awq\\).*In 06_awq it goes to READY", quantized("awq")),
    whole("FP8 already", "is already quantized \\(fp8\\). MODEL takes", quantized("fp8")),
    whole("packed weights, and no word of it", "stored as U8", weights(packed)),
    whole("other blocks than Llama's", "those of 'gpt2' are not", config(model_type="gpt2")),
    whole("heads that do not divide", "cannot build .* from its config.json", config(num_attention_heads=7)),
    whole("no head", "lack 1 of the tensors of a LlamaForCausalLM, such as 'lm_head.weight'", without("lm_head")),
    whole("a tensor missing", "lack 1 of the tensors .*layers.1.mlp.up_proj", without("layers.1.mlp.up_proj")),
    whole("a compiled model's names", "begin with '_orig_mod.'.*the model that was compiled", renamed("_orig_mod.")),
    whole("an adapter's names", "begin with 'base_model.model.'.*merge_and_unload", renamed("base_model.model.")),
    whole("names of its own", "lack 21 of .*There are others instead, such as 'x", renamed("x")),
    whole("a block too many", "hold 9 tensors that .* has no place for", config(num_hidden_layers=1)),
    whole("another width", "have other shapes than config.json says", config(intermediate_size=384)),
    whole("no tokenizer", "has no tokenizer", lambda f: [p.unlink() for p in f.glob("tokenizer*")]),
    whole("a tokenizer that is cut", "cannot load the tokenizer", change("tokenizer.json", lambda c: c[:900])),
    whole("a token without a row", "has 2,049 tokens, and the embedding 2,048 rows", more_tokens),
    whole("a variant", "has model.fp16.safetensors, and transformers reads model", rename("model.fp16.safetensors")),
    whole("an adapter", "holds an adapter and no whole model", rename("adapter_model.safetensors")),
    whole("shards without an index", "has shards, and no model.safetensors.index", rename("model-1-of-2.safetensors")),
    whole("a GGUF file", "holds a GGUF file, which is quantized", rename("model.gguf")),
    model("a climbing index", "out of its folder", change(INDEX, entries(weight_map={"a": "../b.safetensors"}))),
    model("a missing shard", "names model-2.safetensors, and", lambda f: (f / "model-2.safetensors").unlink()),
    model("a shard cut off", "-1.safetensors is damaged: .*Fetch", change("model-1.safetensors", lambda c: c[:3000])),
    Case("environment", "HF_HUB_OFFLINE", lambda folder: find("zephyr"), "HF_HUB_OFFLINE is set. Use", ConnectionError),
    Case("environment", "QUANT_ARTIFACTS is a file", artifacts_in(f"{ROOT}/LICENSE"), "Cannot write to", OSError),
    Case("environment", "QUANT_ARTIFACTS has no place", artifacts_in("/proc/mine"), "Set QUANT_ARTIFACTS", OSError),
    artifact("a file cut off", "has 200 bytes instead of 250. model.gguf is", change("model.gguf", lambda c: c[:200])),
    artifact("a flipped bit", "the content of model.gguf has changed. model.gguf is made", change("model.gguf", flip)),
    artifact("a missing file", "model.gguf is missing. model.gguf is made", lambda f: (f / "model.gguf").unlink()),
    Case("artifact", "a full disk", full_disk, "record.json could not be written to .*No space left", OSError),
    Case("artifact", "too large", lambda folder: artifacts.require_disk(10**15), "needs 1000000.00 GB", OSError),
    Case("record", "one that was never made", lambda folder: read_record("NF4"), "no record of NF4", FileNotFoundError),
    record("a cut file", "nf4-tiny.json is damaged", change("nf4-tiny.json", lambda content: content[:100])),
    record("a changed figure", "nf4-tiny.json is damaged", change("nf4-tiny.json", entries(memory_bytes=2))),
    record("scores of another run", "is damaged, or of another run", change("nf4-tiny.safetensors", flip)),
    record("an answer of white space", "the model said nothing", answer="  "),
    record("one answer to 200 questions", "200 questions and 1 answers", exam_answers=["?"]),
    command("a notebook that is not there", "no notebook 99. There are: .*01_baseline", "scripts/run.py", "run", "99"),
    command("a format that is not there", "invalid choice: 'Q9'", "scripts/speed.py", "--formats", "Q9"),
    command("an address without an owner", "OWNER/NAME", "scripts/stamp.py", "elsewhere", "--tag", "v1"),
    command("a stage that is not there", "Say one of these, not 'everything'", "scripts/setup.py", "everything"),
]


Told = namedtuple("Told", "case kind sentence seconds lines lost")  # lines: of a plain traceback; seconds: reported


def tell(case: Case, folder: pathlib.Path) -> Told:
    """Give the wrong input, and take down the answer."""
    os.environ |= {"QUANT_ARTIFACTS": str(folder / "artifacts"), "HF_HUB_OFFLINE": "1"}
    earlier = folder / "artifacts" / "earlier" / "model.gguf"
    artifacts.replace_file(earlier, b"made earlier")
    (folder / "mine").mkdir()
    begin, kind, sentence, lines = time.perf_counter(), "nothing", "", 0
    try:
        case.give(folder / "mine")
    except BaseException as error:
        kind, sentence = type(error).__name__, str(error)
        lines = sum(text.count("\n") for text in traceback.format_exception(error))
        if not isinstance(error, case.error) or not re.search(case.sentence, sentence, re.S):
            raise
    seconds = time.perf_counter() - begin
    lost = not earlier.is_file() or earlier.read_bytes() != b"made earlier" or any(folder.rglob("*.part"))
    return Told(case, kind, sentence, seconds, lines, lost)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_wrong_input_gets_a_sentence(case, tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("QUANT_ARTIFACTS", "")
    told = tell(case, tmp_path)
    assert told.kind != "nothing", "it was taken"
    assert told.lines < 40 and not told.lost and len(told.sentence) < 500


def test_a_wrong_parameter_or_model_is_told_before_torch_is_imported():
    program = """import pathlib, sys, tempfile; sys.path.insert(0, "tests"); import test_bad_input as table
for case in table.CASES:
    if case.kind in ("parameter", "model"):
        with tempfile.TemporaryDirectory() as folder:
            told = table.tell(case, pathlib.Path(folder))
        assert "torch" not in sys.modules, str(case)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_type_that_needs_an_importance_matrix_is_sent_to_where_one_is_made():
    with pytest.raises(ValueError, match="IQ3_XXS with an importance matrix only: 10_which_file.ipynb"):
        start("gguf", default_parameters("05_gguf") | {"QUANT_TYPE": "IQ3_XXS"})


def test_every_parameter_has_its_wrong_values_and_a_right_default():
    """A parameter that nobody checks must not slip into a notebook."""
    defaults = [default_parameters(row.notebook) for row in TECHNIQUES.values()]
    tried = {name for case in CASES if case.kind == "parameter" for name in re.findall(r"\b([A-Z_]+) =", case.given)}
    assert {name for values in defaults for name in values} == {"MODEL", *PARAMETERS} == tried
    for values in defaults:
        check_parameters(values, PARAMETERS)
    assert len(CASES) >= 50 and len({str(case) for case in CASES}) == len(CASES)
