"""Kill the process that makes an artifact, twenty times for each kind, at random moments; then run it again.

    python proofs/kill.py [--kills 20] [--kinds shards nf4 ...] [--out proofs/kill.md]

The notebooks' own cells make the artifacts, with a model of two blocks, so that making is short and most of the time
lies in it. A maker says when it starts to make; between 0 and the time that making takes it gets SIGKILL. The next
run, of the same cells and the ones that load the artifact, must succeed with no cleaning up in between, must leave
the same files as a run that nobody disturbed, and no temporary folder. Afterwards two makers run at once, and the
disk is full.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import report

from helpers.artifacts import damage

ROOT = report.ROOT
# kind -> (notebook, text in the cell that makes it, text in the cell that loads it)
MAKERS = {
    "shards": ("02_sharding", "accelerator.save_model(", "model = load(shards)"),
    "nf4": ("03_nf4", "model.save_pretrained(scratch)", "source=str(saved)"),
    "gptq": ("04_gptq", "make(scratch)", "from_pretrained(source, dtype"),
    "gguf": ("05_gguf", "convert(local, scratch", "llm = llama_cpp.Llama("),
    "awq": ("06_awq", "make(scratch)", "plain = [n for n in linears"),
}
KINDS = (*MAKERS, "record", "converter")


# --- in the maker's process ----------------------------------------------------------------


def maker(kind: str, model: str) -> None:
    """Make the artifact, with MAKING and MADE on standard output, and load it."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2"}
    if kind in MAKERS:
        run_cells(*MAKERS[kind], model)
    elif kind == "record":
        make_record()
    else:
        import importlib

        converter = importlib.import_module("helpers.converter")
        sys.prefix = os.path.join(os.environ["QUANT_ARTIFACTS"], "environment")
        os.makedirs(sys.prefix, exist_ok=True)
        say("MAKING")
        path = converter.llama_cpp_converter()
        say("MADE")
        subprocess.run([sys.executable, path, "--help"], check=True, capture_output=True)


def say(word: str) -> None:
    os.write(3, f"{word}\n".encode())


def run_cells(notebook: str, makes: str, loads: str, model: str) -> None:
    import nbformat

    os.chdir(ROOT / "notebooks")
    cells = nbformat.read(f"{notebook}.ipynb", as_version=4).cells
    namespace: dict = {"__name__": "__main__"}
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or "under-the-hood" in tags or cell.source.startswith("%%"):
            continue
        making = makes in cell.source and "def make(" not in cell.source and "def convert(" not in cell.source
        if making:
            say("MAKING")
        exec(compile(cell.source, notebook, "exec"), namespace)
        if "parameters" in tags:
            namespace["MODEL"] = model
            namespace["CALIBRATION_TEXTS"] = 8
        if making:
            say("MADE")
        if loads in cell.source and "def load(" not in cell.source.split(loads)[0].rsplit("\n", 1)[-1]:
            return
    raise RuntimeError(f"{notebook} has no cell with {loads!r}")


def make_record() -> None:
    import numpy as np

    import helpers
    from helpers.record import read_record, read_scores

    dice = np.random.default_rng(0)
    windows = dice.integers(0, 2048, (16, 256)).tolist()
    scores = [np.float16(dice.normal(size=(255, 2048))) for _ in windows]
    fields = dict(
        name="NF4", technique="nf4", library="bitsandbytes", model="tiny", revision="local", notebook="03_nf4",
        settings={}, versions={}, layer="Linear4bit", layers={}, disk_bytes=1, predicted_bytes=1, memory_bytes=1,
        running_bytes=1, peak_bytes=1, seconds={}, tokens_per_second=1.0, prompt_ids=[1], answer_ids=[2], answer="Ha.",
        exam_answers=["?"] * 200,
    )  # fmt: skip
    with contextlib.suppress(FileNotFoundError, ValueError):  # what the killed one left is whole, or refused
        assert read_scores(read_record("NF4"))[0].tolist() == windows
    say("MAKING")
    helpers.write_record(windows, scores, **fields)
    say("MADE")
    assert read_scores(read_record("NF4"))[0].tolist() == windows


# --- outside -------------------------------------------------------------------------------


def start(kind: str, model: pathlib.Path, artifacts: pathlib.Path, temporary: pathlib.Path):
    """A maker; its words arrive on the pipe that is returned with it."""
    read, write = os.pipe()
    env = os.environ | {"QUANT_ARTIFACTS": str(artifacts), "TMPDIR": str(temporary), "OMP_WAIT_POLICY": "PASSIVE"}
    log = (temporary.parent / "log").open("w")
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" "$@" 3>&{write}', sys.executable, __file__, "--maker", kind, str(model)],
        env=env, stdout=log, stderr=log, pass_fds=[write], start_new_session=True,
    )  # fmt: skip
    os.close(write)
    return process, os.fdopen(read), temporary.parent / "log"


def finish(process, words, log: pathlib.Path) -> float:
    """Seconds between MAKING and MADE."""
    assert words.readline() == "MAKING\n", log.read_text()[-3000:]
    begin = time.perf_counter()
    assert words.readline() == "MADE\n", log.read_text()[-3000:]
    seconds = time.perf_counter() - begin
    assert process.wait(300) == 0, log.read_text()[-3000:]
    return seconds


def files(artifacts: pathlib.Path) -> dict[str, int]:
    """The files of the artifacts with their sizes; those that may differ, by name alone."""
    found = {}
    for path in sorted(artifacts.rglob("*")):
        name = path.relative_to(artifacts).as_posix()
        if path.is_file() and "__pycache__" not in name:
            exact = path.suffix in (".safetensors", ".gguf", ".py")
            found[name] = path.stat().st_size if exact else 0
    return found


def attempts(kind: str, model: pathlib.Path, scratch: pathlib.Path, kills: int) -> dict:
    """Kill and run again, ``kills`` times; what happened."""
    dice = random.Random(kind)

    def place(name: str) -> tuple[pathlib.Path, pathlib.Path]:
        folder = scratch / kind / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "temporary").mkdir(parents=True)
        return folder / "artifacts", folder / "temporary"

    artifacts, temporary = place("undisturbed")
    seconds = finish(*start(kind, model, artifacts, temporary))
    reference, usual = files(artifacts), set(os.listdir(temporary))
    result = {"kind": kind, "seconds": seconds, "kills": 0, "recovered": 0, "begun": 0, "too late": 0, "left": 0}
    while result["kills"] < kills:
        artifacts, temporary = place("killed")
        process, words, log = start(kind, model, artifacts, temporary)
        assert words.readline() == "MAKING\n", log.read_text()[-3000:]
        time.sleep(dice.uniform(0, seconds))
        made = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if made:
            result["too late"] += 1
            continue
        result["kills"] += 1
        result["begun"] += any(artifacts.rglob(".*.part"))
        try:
            finish(*start(kind, model, artifacts, temporary))
        except (AssertionError, subprocess.TimeoutExpired) as error:
            print(f"{kind}: not recovered: {error}", flush=True)
            continue
        found = files(artifacts)
        left = [p for p in artifacts.rglob(".*") if p.name.endswith(".part")]
        left += [p for p in temporary.iterdir() if p.name not in usual and not p.name.startswith("torchinductor")]
        if left:
            print(f"{kind}: left behind: {left}", flush=True)
        if found != reference:
            print(f"{kind}: other files: {sorted(set(found.items()) ^ set(reference.items()))}", flush=True)
        result["left"] += bool(left)
        result["recovered"] += found == reference
    print(result, flush=True)
    return result


def together(kind: str, model: pathlib.Path, scratch: pathlib.Path) -> str:
    """Two makers of the same artifact at the same time."""
    folder = scratch / kind / "together"
    shutil.rmtree(folder, ignore_errors=True)
    makers = []
    for number in (1, 2):
        (folder / str(number) / "temporary").mkdir(parents=True)
        makers.append(start(kind, model, folder / "artifacts", folder / str(number) / "temporary"))
    try:
        for one in makers:
            finish(*one)
    except AssertionError as error:
        return f"failed: {error}"
    return "left a scratch folder" if any(folder.rglob(".*.part")) else "both succeeded"


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int):
    """A file system of ``size`` bytes at ``folder``; needs the right to mount."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(kind: str, model: pathlib.Path, scratch: pathlib.Path) -> str:
    """The sentence that a maker ends with on a disk that is too small, with an old file in place."""
    folder = scratch / kind / "full"
    (folder / "temporary").mkdir(parents=True)
    whole = sum(files(scratch / kind / "undisturbed" / "artifacts").values())
    with small_disk(folder / "artifacts", int(0.6 * whole) or 4096):
        old = folder / "artifacts" / "old"
        old.write_text("as it was")
        process, words, log = start(kind, model, folder / "artifacts", folder / "temporary")
        code = process.wait(300)
        said = [line.removeprefix("OSError: ") for line in log.read_text().splitlines() if line.startswith("OSError")]
        left = [p.name for p in (folder / "artifacts").rglob(".*.part")]
        left += [p.name for p in (folder / "artifacts").glob("model-*") if damage(p)]
        if code == 0 or not said or left or old.read_text() != "as it was":
            return f"wrong: exit {code}, {left}, {log.read_text()[-600:]}"
        return said[-1].replace(str(folder / "artifacts"), "artifacts")


def small_model(folder: pathlib.Path) -> pathlib.Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny = ROOT / "models" / "tiny-zephyr"
    config = AutoConfig.from_pretrained(tiny)
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--workers", type=int, default=2, help="kinds at the same time")
    parser.add_argument("--out", help="the report's file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name).resolve()
        model = small_model(scratch / "model")
        with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
            results = list(pool.map(lambda kind: attempts(kind, model, scratch, given.kills), given.kinds))
        both = {kind: together(kind, model, scratch) for kind in given.kinds}
        print(both, flush=True)
        can_mount = os.geteuid() == 0 and shutil.which("mount")
        full = {kind: full_disk(kind, model, scratch) for kind in given.kinds} if can_mount else {}
    kills, recovered = (sum(r[key] for r in results) for key in ("kills", "recovered"))
    left = sum(r["left"] for r in results)
    good = kills == recovered and not left and set(both.values()) == {"both succeeded"}
    good = good and not any(said.startswith("wrong") for said in full.values())
    text = f"**{kills} kills, {recovered} recoveries, {left} with something left behind.**\n\n"
    text += "'begun' counts the kills that hit a half-written artifact; the others fell before its first file.\n\n"
    header = ["artifact", "seconds to make", "kills", "begun", "recovered", "two at once"]
    rows = [
        [r["kind"], round(r["seconds"], 2), r["kills"], r["begun"], r["recovered"], both[r["kind"]]] for r in results
    ]
    text += report.table(header, rows) + "\n\n"
    if full:
        text += "On a disk of 60 % of what is needed, with an old file on it that stayed as it was:\n\n"
        text += report.table(["artifact", "what the reader is told"], [[kind, said] for kind, said in full.items()])
    else:
        text += "The full disk was not tried: it needs the right to mount a file system."
    report.write("Interruptions: is a run after a kill whole?", "python proofs/kill.py", text, given.out)
    sys.exit(not good)


if __name__ == "__main__":
    if "--maker" in sys.argv:
        maker(*sys.argv[sys.argv.index("--maker") + 1 :])
    else:
        main()
