"""What takes long runs once, two at a time, and every test reads it: the notebooks, with solutions as extra cells.

The programs of the copy test run beside them; with ``make test-all`` the real model, other architectures, the ladders
and Colab's stand-in as well. After each exercise's check come its folded solution and the check once
more. At the end come the planted faults: a lesson with a wrong constant, in a copy of the notebook's names, so that
what stops it can be seen.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "training")]

import small  # noqa: E402
from series import comparison, notebooks, serving  # noqa: E402
from series.artifacts import artifacts_folder  # noqa: E402
from series.converter import llama_cpp_converter  # noqa: E402
from series.models import TINY  # noqa: E402
from series.run import execute  # noqa: E402
from series.techniques import ARTICLE, BY_NOTEBOOK, MEASURED, TECHNIQUES  # noqa: E402

ALL = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BY_STEM = {path.stem: path for path in ALL}
NEEDS = {
    "00_start_here": (),
    "01_baseline": (),
    "07_comparison": tuple(one.notebook for one in MEASURED),
    "08_original_stack": ("04_gptq", "05_gguf"),
    "09_serving": ("05_gguf", "06_awq"),
    "13_context": ("05_gguf",),
}
# The longest first, and what others wait for.
FIRST = ("01", "00", "06", "05", "14", "04", "09", "12", "10", "08", "13", "11", "03", "02", "07")
WORKERS = 2
GGUF_OF_SMALL = "05_gguf@small"  # a notebook, and the model that it takes instead of its own
# All other notebooks with it: GPTQ and AWQ look at a few documents only, and the exam has a quarter of its questions.
REAL = {
    "01_baseline": {},
    "06_awq": {"CALIBRATION_TEXTS": 2},
    "10_which_file": {"CALIBRATION_TEXTS": 4},
    "04_gptq": {"CALIBRATION_TEXTS": 4},
    "11_newer_formats": {},
    "12_experts": {},
    "13_context": {},
    "14_finetune": {},
    "03_nf4": {},
    "02_sharding": {},
    "07_comparison": {},
}
QUESTIONS = 50
# Steps of the ladders that 'make test-all' measures again; 'make ladders' measures all.
GGUF = TECHNIQUES["gguf"]
AGAIN = [*map(GGUF.record_name, GGUF.ladder("tiny")), "GPTQ 3-bit", "GPTQ 2-bit", "AWQ 4-bit, unrelated text"]
EXTRA = "extra"
ENDS = {"awq": "awq", "gguf": "Q4_K_M.gguf"}
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```", re.S)

# notebook, the cell with the constant, what stands there, what a slip of the pen would make of it, the cell that checks
FAULTS = [
    ("01_baseline", "apart", "(exponent.clamp(min=1) - 127)", "(exponent.clamp(min=1) - 128)", "apart"),
    ("02_sharding", "by-hand", "return table, 8 + length", "return table, 4 + length", "by-library"),
    ("03_nf4", "quantiles", "linspace(0.9677083", "linspace(0.9677033", "quantiles"),
    ("03_nf4", "layer-codes", "(codes[0::2] << 4) | codes[1::2]", "(codes[1::2] << 4) | codes[0::2]", "layer-codes"),
    (
        "04_gptq",
        "unpack",
        "stream.reshape(-1, bits, packed.shape[1])",
        "stream.reshape(-1, bits, packed.shape[1]).flip(1)",
        "compare",
    ),
    ("05_gguf", "decode", "(first >> 6) << 4", "(first >> 6) << 2", "decode-same"),
    ("05_gguf", "read-file", '{"shape": shape, ', '{"shape": shape[::-1], ', "read-same"),
    ("06_awq", "unpack", "[0, 4, 1, 5, 2, 6, 3, 7]", "[0, 4, 1, 5, 2, 6, 7, 3]", "unpack"),
    ("06_awq", "fold", "(one + original) / s - one", "(one + original) * s - one", "fold"),
    ("10_which_file", "pack", "s[4:] >> 4 << 6", "s[4:] >> 4 << 5", "same"),
    ("10_which_file", "pack", "(importance * np.sqrt(", "(np.sqrt(", "same"),
    ("14_finetune", "by-hand", "scale * (x", "2 * scale * (x", "by-hand"),
    ("13_context", "hadamard", "[found, -found]", "[found, found]", "hadamard"),
    ("12_experts", "by-hand", "scores.topk(chosen)", "(-scores).topk(chosen)", "by-hand"),
    ("12_experts", "by-hand", "weights / weights.sum(-1, keepdim=True)", "weights", "by-hand"),
    ("11_newer_formats", "rebuild", "- 1.0 - 2)", "- 1.0 - 1)", "same"),
    ("11_newer_formats", "rebuild", "/ (448 * 6)", "/ 448", "same"),
    ("08_original_stack", "word", 'part["scales"][groups].half()', 'part["scales"][groups - 1].half()', "word"),
]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def exercises(notebook) -> list[tuple[int, int, str]]:
    """Of each exercise the places of its cell for the answer and of its check, and the folded solution's code."""
    found = []
    for place, cell in enumerate(notebook.cells):
        if "exercise" in tags(cell):
            solution = SOLUTION.search(notebook.cells[place - 1].source)
            assert solution, f"no folded solution above {cell.id}"
            assert "check" in tags(notebook.cells[place + 1]), f"no check below {cell.id}"
            found.append((place, place + 1, solution[1]))
    return found


def extra(identity: str, source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, id=identity, metadata={"tags": [EXTRA]})


def with_extras(notebook) -> nbformat.NotebookNode:
    """A copy with the solutions and the planted faults in it."""
    notebook, stem = nbformat.from_dict(notebook), notebook.stem
    last = len(notebook.cells)
    by_id = {cell.id: cell for cell in notebook.cells}
    free = next((i for i, cell in enumerate(notebook.cells) if cell.id == "free"), last)
    faults = []
    for number, (its, place, right, wrong, check) in enumerate(FAULTS):
        if its != stem or place not in by_id:
            continue
        assert by_id[place].source.count(right) >= 1, (stem, place, right)
        sources = [by_id[place].source.replace(right, wrong)] + ([by_id[check].source] if check != place else [])
        body = "".join(f"    exec({source!r}, names)\n" for source in sources)
        caught = "except Exception as error:\n    print('seen:', type(error).__name__)\ndel names"
        source = f"names = dict(globals())\ntry:\n{body}    print('not seen')\n{caught}"
        faults.append(extra(f"fault-{number}", source))
    if stem == "01_baseline":
        faults.append(extra("types", "print({str(p.dtype) for p in model.parameters()})"))
    where = last if stem == "06_awq" else free  # 06 frees its engine before the lessons
    for cell in reversed(faults):
        notebook.cells.insert(where, cell)
    for answer, check, solution in reversed(exercises(notebook)):
        again = extra(f"again-{answer}", notebook.cells[check].source)
        notebook.cells[check + 1 : check + 1] = [extra(f"solved-{answer}", solution), again]
    del notebook["stem"]
    return notebook


def shorter(questions: int, windows: int) -> str:
    """For after ``start``: the measure takes the first of each, and what is timed is timed once."""
    once = "timeit.repeat = lambda work, all_of_them=timeit.repeat, **given: all_of_them(work, number=1, repeat=1)"
    return f"import timeit\n{once}\nlesson.shorten({questions}, {windows})"


def run(name: str, folder: str) -> None:
    """Execute a notebook, as in '06_awq', or one with another model, as in '06_awq@small'."""
    target, (stem, _, model) = pathlib.Path(folder) / f"{name}.ipynb", name.partition("@")
    notebook, given = nbformat.read(BY_STEM[stem], as_version=4), {}
    if model:
        small.put_into_cache(pathlib.Path(os.environ["HF_HOME"]) / "hub")
        given = {"MODEL": model, "MAX_NEW_TOKENS": 16} | REAL.get(stem, {})
        place = next(i for i, cell in enumerate(notebook.cells) if cell.id == "start")
        notebook.cells.insert(place + 1, extra("shorter", shorter(QUESTIONS, windows=4)))
    else:
        notebook["stem"] = stem
        notebook = with_extras(notebook)
    execute(notebook, target, given, timeout=1800)


def climb(notebook: str) -> None:
    """The steps of ``AGAIN`` that this notebook makes, of `tiny`, in one kernel."""
    steps = {name: step for name, step in comparison.ladders("tiny").items() if name in AGAIN and step[0] == notebook}
    comparison.make(steps, "tiny", 64)


def measure_controls() -> tuple[dict, dict]:
    return comparison.controls("tiny"), comparison.noise("tiny")


def right_by_harness(folder: pathlib.Path) -> float:
    """The share of ``QUESTIONS`` that `small` in GPTQ gets right, by 04's command in an environment of its own."""
    (made,) = artifacts_folder().glob("gptq-SmolLM2*/*-gptq")
    environment, kept = folder / "environment", folder / "constraints.txt"
    folder.mkdir()
    ours = [p for p in sys.path if p.endswith("site-packages")]  # setuptools has copies of some packages beside them
    kept.write_text("\n".join(f"{d.name}=={d.version}" for d in importlib.metadata.distributions(path=ours)))
    uv, python = [sys.executable, "-m", "uv"], str(environment / "bin" / "python")
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(environment)], check=True)
    subprocess.run([*uv, "pip", "install", "-q", "--python", python, "-c", str(kept), "lm_eval==0.4.13"], check=True)
    command = [str(environment / "bin" / "lm_eval"), "run", "--model", "hf", "--model_args", f"pretrained={made}"]
    command += ["--tasks", "shrink_exam", "--limit", str(QUESTIONS), "--include_path", "texts"]
    env = os.environ | {"PYTHONPATH": ours[0]}  # torch and the like
    done = subprocess.run(
        [*command, "--output_path", str(folder / "found"), "--device", "cpu"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    (file,) = (folder / "found").rglob("results_*.json")
    return json.loads(file.read_text(encoding="utf-8"))["results"]["shrink_exam"]["acc_norm,none"]


FORBID = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("helpers", "series"):
            raise ImportError(f"{name} is not there in another project")

sys.meta_path.insert(0, Forbidden())
"""


def serving_program(path: str, port: int) -> str:
    """09's cells tagged 'copy', with nothing before them but parameters, ``path``, and what 05 and 06 have made."""
    given = notebooks.default_parameters("09_serving") | {"PORT": port, "path": path}
    given |= {"awq": made("awq"), "gguf": made("gguf")}
    lines = [FORBID, *(f"{name} = {value!r}" for name, value in given.items() if name != "MODEL")]
    recipe = textwrap.indent(notebooks.recipe("09_serving"), "    ")
    recipe += "\n    llama.terminate(), vllm.terminate(), vllm.wait()"  # a server goes on until somebody ends it
    return "\n".join(lines) + f"\nif __name__ == '__main__':\n{recipe}\n"  # vLLM starts its engine by a new import


def made(technique: str) -> str:
    """What the executed notebook of a technique has made of `tiny`."""
    return str(next(artifacts_folder().glob(f"{technique}-tiny-zephyr-*/tiny-zephyr-{ENDS[technique]}")))


def run_program(code: str, folder: pathlib.Path, stem: str, *words: str) -> subprocess.CompletedProcess:
    row = BY_NOTEBOOK[stem]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    env |= {name: value for name, (value, _) in row.environment.items()}  # what start says for this machine
    if row.name == "serving":
        serving.commands(folder / "bin")
        env["PATH"] = serving.search_path(folder / "bin")
    if row.name in ("awq", "serving"):  # the kernel for processors without AVX-512
        env["PYTHONPATH"] = str(ROOT / "series" / "plugin")
    file = folder / "program.py"
    file.write_text(code, encoding="utf-8")
    command = [sys.executable, str(file), *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def recipe(stem: str) -> str:
    """A program of recipes/, where nothing of ours can be imported."""
    return FORBID + (ROOT / "recipes" / f"{stem}.py").read_text(encoding="utf-8")


ALONE = ("06_awq",)  # vLLM's engine imports the program anew
TOGETHER = """
import runpy, sys, traceback

for line in sys.stdin.read().splitlines():
    sys.argv = line.split("\\t")
    print("PROGRAM", sys.argv[0], flush=True)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        print("ENDED", flush=True)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
"""


def words_of(stem: str) -> list[str]:
    """The arguments of a program of recipes/, for `tiny`."""
    row, model = BY_NOTEBOOK[stem], TINY
    if row.name == "experts":  # the mixture that its notebook has made of it
        model = next(artifacts_folder().glob("mixture-tiny-zephyr-*"))
    words = ["--model", str(model)]
    words += ["--texts", "2"] if row.calibrates else []
    return words + (["--converter", str(llama_cpp_converter())] if row.library == "llama.cpp" else [])


def copied(stems: list[str]) -> dict[str, tuple[bool, str]]:
    """Run programs of recipes/ in an empty folder, one after the other: whether each came to its end, what it said.

    In one process, which imports the libraries once. What the program of 06 would make, its notebook has made.
    """
    if stems == [*ALONE]:
        with tempfile.TemporaryDirectory() as name:
            words = [*words_of(stems[0]), "--ready", made("awq")]
            done = run_program(recipe(stems[0]), pathlib.Path(name), stems[0], *words)
        return {stems[0]: (done.returncode == 0, done.stdout + done.stderr)}
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    env |= {name: value for stem in stems for name, (value, _) in BY_NOTEBOOK[stem].environment.items()}
    lines = ["\t".join([str(ROOT / "recipes" / f"{stem}.py"), *words_of(stem)]) for stem in stems]
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-c", FORBID + TOGETHER]
        given = dict(input="\n".join(lines), cwd=name, env=env, capture_output=True, text=True, timeout=1800)
        done = subprocess.run(command, **given)
    parts = done.stdout.split("PROGRAM ")[1:]
    return {stem: ("ENDED" in part, part + done.stderr[-2000:]) for stem, part in zip(stems, parts, strict=False)}


def served() -> tuple[int, str, str]:
    """Run the recipe of 09_serving as a program, with what 05_gguf and 06_awq have made; as ``copied``."""
    model, port = made("gguf").removesuffix("-Q4_K_M.gguf"), serving.free_port(18000, 2)
    with tempfile.TemporaryDirectory() as folder:
        done = run_program(serving_program(model, port), pathlib.Path(folder), "09_serving")
    return done.returncode, done.stdout, done.stderr


@dataclasses.dataclass(frozen=True)
class Task:
    """What runs in a process beside another one, when the tasks that it comes after have ended."""

    work: Callable
    given: tuple = ()
    after: tuple[str, ...] = ()


def in_order(stems: list[str]) -> list[str]:
    return sorted(stems, key=lambda stem: FIRST.index(stem[:2]))


def notebook_tasks(stems: list[str], folder: pathlib.Path) -> dict[str, Task]:
    return {stem: Task(run, (stem, str(folder)), NEEDS.get(stem, ("01_baseline",))) for stem in in_order(stems)}


def program_tasks(stems: list[str]) -> dict[str, Task]:
    others = [stem for stem in stems if stem not in ALONE]
    return {
        "programs": Task(copied, (others,), ("12_experts",)),
        "06_awq, as a program": Task(copied, ([*ALONE],), ("06_awq",)),
    }


def serving_task() -> dict[str, Task]:
    return {"09_serving, as a program": Task(served, after=("05_gguf", "06_awq"))}


def real_model_tasks(folder: pathlib.Path, every: bool) -> dict[str, Task]:
    """05_gguf with `small`, or all notebooks."""
    tasks = {GGUF_OF_SMALL: Task(run, (GGUF_OF_SMALL, str(folder)))}
    for stem in REAL if every else ():
        needs = [f"{need}@small" for need in NEEDS.get(stem, ("01_baseline",))]
        tasks[f"{stem}@small"] = Task(run, (f"{stem}@small", str(folder)), (GGUF_OF_SMALL, *needs))
    harness = {"lm-evaluation-harness": Task(right_by_harness, (folder / "harness",), ("04_gptq@small",))}
    return tasks | (harness if every else {})


def ladder_tasks() -> dict[str, Task]:
    notebooks = {"06_awq": "AWQ", "05_gguf": "GGUF", "04_gptq": "GPTQ"}
    tasks = {
        f"more of {name}": Task(climb, (stem,), tuple(one.notebook for one in ARTICLE))
        for stem, name in notebooks.items()
    }
    return tasks | {"controls": Task(measure_controls, after=tuple(tasks))}


def workers(count: int = WORKERS) -> concurrent.futures.ProcessPoolExecutor:
    """Processes with the environment of now, whatever tests make of it later; none for a ``count`` of 0."""
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(WORKERS, mp_context=context, initializer=share_the_cores)
    for _ in range(min(WORKERS, count)):
        pool.submit(os.getpid)  # each starts a process
    return pool


def run_all(
    tasks: dict[str, Task],
    pool: concurrent.futures.Executor,
    say: Callable[[str], None] = print,
    stop: threading.Event | None = None,
) -> dict[str, tuple[str, Any]]:
    """Run all tasks, two at a time; of those that can begin, the one that is named first. None begins after ``stop``.

    Returns:
        The error of each, or '', and what it returned.
    """
    found: dict[str, tuple[str, Any]] = {}
    waiting, running = dict(tasks), {}
    while waiting or running:
        if stop and stop.is_set():
            waiting.clear()
        for name, task in list(waiting.items()):
            if len(running) < WORKERS and all(need in found for need in task.after if need in tasks):
                running[pool.submit(task.work, *task.given)] = name, time.time()
                del waiting[name]
        done, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            name, begun = running.pop(future)
            error = future.exception()
            found[name] = (f"{type(error).__name__}: {error}", None) if error else ("", future.result())
            last = found[name][0].strip().splitlines()[-1][:150] if error else ""
            say(f"{name}: {f'failed ({last})' if error else 'done'} after {time.time() - begun:.0f} s")
    return found


def shown(notebook, *, extras: bool = False) -> str:
    """All that the notebook's cells printed and displayed as text."""
    return "\n".join(printed(cell) for cell in notebook.cells if extras or EXTRA not in tags(cell))


def printed(cell) -> str:
    """What a cell printed and displayed; of a figure, that there is one."""
    text = ""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text += output.get("text", "")  # what is printed comes in pieces, cut where the kernel paused
        text += "".join(f"\n[{kind}]" for kind in sorted(data) if kind.startswith("image/"))
        text += "\n" + str(data["text/plain"]) + "\n" if "text/plain" in data else ""
    return text


def cell(notebook, identity: str):
    return next(c for c in notebook.cells if c.id == identity)


def share_the_cores() -> None:
    """Two kernels with as many threads as there are cores, each, wait for one another; and tests go first."""
    os.nice(5)
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))


def prepare_environment(artifacts: pathlib.Path) -> None:
    """No test may reach a model hub, nor find what this machine has cached or made."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "QUANT_ARTIFACTS": str(artifacts)}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads sleep while they wait for those of another kernel
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: a fifth of 01 (pytorch #115990)
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):  # kernels keep what they free: a tenth of AWQ
        os.environ.setdefault(name, str(2**32))
