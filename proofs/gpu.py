"""The notebooks with real kernels on a GPU, and the programs of recipes/ at Zephyr's shape: as on this card, as a T4.

    python proofs/gpu.py [--models tiny FOLDER] [--rows FOLDER] [--out proofs/gpu.md]

A notebook runs whole, by the series' own way. 'As a T4' lacks what a T4 lacks: torch says compute capability 7.5 and
no bfloat16, a number in bfloat16 on the card is an error, and there is no flash attention. The weights of Zephyr's
shape are random: the answer means nothing, the bytes are real. What torch allocates on the card is held against what
``helpers`` computes from the configuration. What cannot be imported here is left out, by name. With --rows a second
call adds to the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.sharedctypes import Synchronized

import nbformat
import report

from helpers.sizes import weight_bytes
from helpers.training import training_bytes
from series import newcomers, notebooks, run
from series.installed import as_installed, version
from series.techniques import BY_NOTEBOOK

AS_A_T4 = """
import torch, triton
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

class NoBfloat16(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.is_cuda and t.dtype == torch.bfloat16 for t in tree_leaves(out)):
            raise TypeError(f"{func} makes a number in bfloat16, which this card does not have")
        return out

triton.runtime.driver.active.get_device_capability  # Triton compiles for the card that is there
torch.cuda.get_device_capability = lambda *device: (7, 5)
torch.cuda.is_bf16_supported = lambda *given, **more: False
torch.backends.cuda.enable_flash_sdp(False)
NoBfloat16().__enter__()
"""
COUNT = """
import json, torch
loaded = globals().get("at_the_answer", [0])[0]
print("MEASURED", json.dumps({"loaded": loaded, "peak": torch.cuda.max_memory_allocated()}))
"""
PROGRAM = """
import runpy, sys, torch
from transformers import GenerationMixin
at_the_answer, plain = [], GenerationMixin.generate
def generate(self, *given, **more):
    at_the_answer.append(torch.cuda.memory_allocated())
    return plain(self, *given, **more)
GenerationMixin.generate, sys.argv = generate, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
KINDS = {"01_baseline": "16-bit", "03_nf4": "NF4", "11_newer_formats": "FP8", "14_finetune": ""}
CARDS = ("this card", "a T4")
NOTEBOOKS = [stem for stem in BY_NOTEBOOK if stem != "08_original_stack"]  # an environment of 2023
HEADER = "notebook,model,card,ended,first answer in s,all in s,peak in MB,predicted,kernel,commit".split(",")
OF_PROGRAMS = "program,card,ended,seconds,loaded in MB,peak in MB,computed in MB,commit".split(",")
ABOUT = """Several ran at once, so the seconds are long. *Peak*: the most that torch has allocated on the card at once,
which llama.cpp's and vLLM's own memory is no part of. *Predicted*: what `start` printed of weights and cache; a
lesson may hold more than its recipe."""
PROGRAMS = """## Programs of recipes/, random weights of Zephyr's shape

*Loaded*: allocated when the answer begins. *Computed*: `weight_bytes`; for 14, whose four cells run, the sum of
`training_bytes`, against its peak. 11 makes its file of the model in 16 bits, so its peak holds that."""


def zephyr(folder: pathlib.Path) -> pathlib.Path:
    """Random weights of Zephyr's shape, with tiny's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(MistralConfig(eos_token_id=2, bos_token_id=1), dtype=torch.float16)
    model.save_pretrained(folder / "zephyr-random")
    AutoTokenizer.from_pretrained(notebooks.TINY).save_pretrained(folder / "zephyr-random")
    del model
    torch.cuda.empty_cache()
    return folder / "zephyr-random"


def finetune(model: pathlib.Path, folder: pathlib.Path, dtype: str) -> pathlib.Path:
    """14's four cells as a program."""
    given = notebooks.default_parameters("14_finetune")
    given |= {"path": str(folder / model.name), "DTYPE": dtype, "STEPS": 20, "taught": newcomers.taught()}
    (folder / model.name).symlink_to(model)
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    (folder / "finetune.py").write_text("\n".join([*lines, notebooks.recipe("14_finetune")]), encoding="utf-8")
    return folder / "finetune.py"


def take_cores(turn: Synchronized, workers: int) -> None:
    """A share of the cores for this worker and what it starts: threads that wait for one another must not share."""
    with turn.get_lock():
        number, turn.value = turn.value, turn.value + 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[number % workers :: workers])


def write(rows: pathlib.Path, out: str) -> None:
    """The report of all rows that lie in the folder."""
    whole, programs = (
        report.table(
            header, [json.loads(file.read_text(encoding="utf-8")) for file in sorted(rows.glob(f"{kind}-*.json"))]
        )
        for kind, header in (("notebook", HEADER), ("program", OF_PROGRAMS))
    )
    report.write("On a GPU", "python proofs/gpu.py", "\n\n".join([ABOUT, whole, PROGRAMS, programs]), out, quiet=True)


def program(stem: str, model: pathlib.Path, card: str, _: str) -> list[str]:
    """Run one program in a process of its own; a row of the second table."""
    with tempfile.TemporaryDirectory() as name:
        folder, begun = pathlib.Path(name), time.perf_counter()
        words = [str(report.ROOT / "recipes" / f"{stem}.py"), "--model", str(model), "--max-new-tokens", "40"]
        if stem == "14_finetune":
            words = [str(finetune(model, folder, "float16" if card == "a T4" else "bfloat16"))]
        code = (AS_A_T4 if card == "a T4" else "") + PROGRAM + COUNT
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True)
    _, _, found = done.stdout.rpartition("MEASURED ")
    kind = KINDS[stem]
    computed = weight_bytes(model, kind) if kind else sum(training_bytes(model, 8 * 62, 8, "NF4").values())
    said = "yes" if found else "no: " + (done.stderr.strip().splitlines() or [""])[-1][:120]
    sizes = json.loads(found) if found else {"loaded": 0, "peak": 0}
    row = [f"{size / 1e6:,.1f}" for size in (sizes["loaded"], sizes["peak"], computed)]
    return [stem, card, said, f"{time.perf_counter() - begun:.0f}", *row]


def notebook(stem: str, model: pathlib.Path, card: str, folder: str) -> list[str]:
    """Run one notebook, with a folder of artifacts for each card; a row of the first table."""
    given = set(BY_NOTEBOOK[stem].packages) - {"python"}
    lacking = sorted(name for name in given if not version(as_installed(name)))
    if lacking or ("vllm" in given and card == "a T4"):
        why = f"no {', '.join(lacking)} here" if lacking else "vLLM's engine is a process of its own"
        return [stem, model.name, card, f"not tried: {why}", "", "", "", "", ""]
    os.environ["QUANT_ARTIFACTS"] = f"{folder}/{card[-2:]}"
    source = nbformat.read(notebooks.FOLDER / f"{stem}.ipynb", as_version=4)
    source.cells.append(nbformat.v4.new_code_cell(COUNT))
    if card == "a T4":
        place = next(number for number, cell in enumerate(source.cells) if cell.id == "start")
        source.cells.insert(place, nbformat.v4.new_code_cell(AS_A_T4))
    out, begun, ended = pathlib.Path(folder) / f"{stem}-{model.name}-{card[-2:]}.ipynb", time.perf_counter(), "yes"
    named = {"MODEL": str(model.resolve() if model.is_dir() else model)}
    try:
        run.execute(source, out, named if "MODEL" in notebooks.default_parameters(stem) else {}, timeout=1200)
    except run.NotebookFailed as error:
        ended = "no: " + str(error).strip().splitlines()[-1][:160].replace("|", "/")
    done = nbformat.read(out, as_version=4)
    text = "".join(o.get("text", "") for c in done.cells if c.cell_type == "code" for o in c.outputs)
    peak, answer = re.search(r'"peak": (\d+)', text), run.to_the_answer(done)
    predicted = re.search(r": (\S+ \wB) of weights, (\S+ \wB) of cache", text)
    kernel = re.search(r"^kernel: ([^,\n]+)", text, re.M)
    seconds = [f"{answer:.0f}" if answer else "", f"{time.perf_counter() - begun:.0f}"]
    sizes = [f"{int(peak[1]) / 1e6:,.1f}" if peak else "", " + ".join(predicted.groups()) if predicted else ""]
    return [stem, model.name, card, ended, *seconds, *sizes, kernel[1] if kernel else ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="*", type=pathlib.Path, default=[pathlib.Path("tiny")], help="for the notebooks"
    )
    parser.add_argument("--notebooks", nargs="*", default=NOTEBOOKS, choices=NOTEBOOKS)
    parser.add_argument("--cards", nargs="*", default=CARDS, choices=CARDS)
    parser.add_argument("--programs", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--at-once", type=int, default=4, help="processes at once")
    parser.add_argument("--rows", help="a folder for the rows and the executed notebooks")
    parser.add_argument("--out", default=str(report.ROOT / "proofs" / "gpu.md"))
    given = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    given.at_once = min(given.at_once, len(os.sched_getaffinity(0)))  # a core for each
    shares = (spawn.Value("i", 0), given.at_once)
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(given.at_once, spawn, take_cores, shares) as pool:
        rows = pathlib.Path(given.rows or name).resolve()
        rows.mkdir(parents=True, exist_ok=True)
        model = zephyr(pathlib.Path(name)) if given.programs else None
        wanted = [(notebook, *what) for what in itertools.product(given.notebooks, given.models, given.cards)]
        wanted += [(program, *what) for what in itertools.product(given.programs, [model], given.cards)]
        jobs = {pool.submit(*what, str(rows)): what for what in wanted}
        for job in as_completed(jobs):
            work, stem, which, card = jobs[job]
            file = rows / f"{work.__name__}-{stem}-{which.name}-{card[-2:]}.json"
            file.write_text(json.dumps([*job.result(), report.COMMIT]), encoding="utf-8")
            print(*job.result(), sep=" | ", flush=True)
            write(rows, given.out)


if __name__ == "__main__":
    main()
