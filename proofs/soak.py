"""Does memory come back? All six techniques in one kernel, one after the other, for ten rounds.

    python proofs/soak.py [--rounds 10] [--layers N] [--techniques baseline NF4 ...] [--out proofs/soak.md]

The model has a real shape and random weights (scripts/speed.py makes it), so that 2 % of it is more than an
allocator's noise. In each round every technique is loaded, asked, and treated as a reader would: with an exception
in a cell, a cell that ends in the model's name, a second name that is left alive, a vLLM engine that is interrupted
while it starts. Then it is deleted and clear_cache is called. The first round is not counted: libraries load then.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

import report
from jupyter_client.manager import start_new_kernel

import speed

LIMIT = 0.02  # of the 16-bit model's bytes

START = """
import json, os, sys, tempfile, weakref
sys.path.insert(0, {root!r})
os.environ |= {{"GPTQMODEL_CPU_WORKERS": "2", "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}}
os.environ |= {{"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}}
from helpers import clear_cache, quiet, temporary_files
forgotten = temporary_files()  # of vLLM's, as in 06_awq
import torch, psutil
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GPTQConfig, pipeline
{imports}
from helpers.memory import child_processes, resident_bytes
FOLDER, cuda = {folder!r}, torch.cuda.is_available()
device_map = "auto" if cuda else "cpu"
tokenizer = AutoTokenizer.from_pretrained(FOLDER + "/base")
inputs = tokenizer("Why did the model cross the road?", return_tensors="pt")


def ask(model):
    with torch.no_grad():
        model.generate(**inputs.to(model.device), max_new_tokens=8, do_sample=False, pad_token_id=2)


def state():
    this = psutil.Process()
    family = [this, *this.children(recursive=True)]
    ports = {{c.laddr.port for p in family for c in p.net_connections("inet") if c.status == "LISTEN"}}
    found = {{"resident": resident_bytes(), "children": len(engines()), "ports": sorted(ports),
              "temporary": sorted(os.listdir({temporary!r})), "open files": this.num_fds()}}
    if cuda:
        free, total = torch.cuda.mem_get_info()
        found |= {{"allocated": torch.cuda.memory_allocated(), "reserved": torch.cuda.memory_reserved(),
                   "used on the GPU": total - free}}
    return found


def engines():
    tracker = "resource_tracker"  # Python's own, one for each process, small, and there to stay
    return [pid for pid in child_processes() if tracker not in str(psutil.Process(pid).cmdline())]
"""

IMPORTS = {"GGUF": "import llama_cpp", "AWQ": "from vllm import LLM, SamplingParams"}
NEEDS = {"GPTQ": "gptq", "AWQ": "awq", "GGUF": "Q4_K_M"}  # what is made of the base model
LOAD = {
    "baseline": """
with quiet():
    pipe = pipeline("text-generation", model=FOLDER + "/base", dtype=torch.bfloat16, device_map="auto")
    model = pipe.model
ask(model)
del pipe""",
    "sharding": """
with quiet():
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER + "/base"), dtype=torch.bfloat16)
    model = load_checkpoint_and_dispatch(model, FOLDER + "/base", device_map="auto")
ask(model)""",
    "NF4": """
with quiet():
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER + "/base", dtype=torch.bfloat16, device_map="auto", quantization_config=config)
ask(model)""",
    "GPTQ": """
with quiet():
    # gptqmodel's own choice on a GPU fetches sources, or compiles for minutes
    chosen = {"quantization_config": GPTQConfig(bits=4, backend="gptq_torch")} if cuda else {}
    model = AutoModelForCausalLM.from_pretrained(
        FOLDER + "/gptq", dtype=torch.bfloat16, device_map=device_map, **chosen)
    ask(model)""",
    "GGUF": """
with quiet():
    model = llama_cpp.Llama(FOLDER + "/Q4_K_M.gguf", n_ctx=512, n_gpu_layers=-1 if cuda else 0, verbose=False)
for number, _ in enumerate(model.generate(inputs["input_ids"][0].tolist(), temp=0.0)):
    if number == 8:
        break""",
    "AWQ": """
share = {"gpu_memory_utilization": 0.5} if cuda else {}
with quiet():
    model = LLM(FOLDER + "/awq", dtype="bfloat16", max_model_len=512, enforce_eager=True, seed=0, **share)
model.generate("Why did", SamplingParams(temperature=0.0, max_tokens=8), use_tqdm=False)
children = engines()""",
}
RELEASE = "alive = weakref.ref(model)\ndel model\nreport = clear_cache()\nassert not report.held_by and alive() is None"
RELEASE_AWQ = """
alive = weakref.ref(model)
with quiet():
    model.llm_engine.engine_core.shutdown()
del model
report = clear_cache()
psutil.wait_procs([psutil.Process(pid) for pid in children if psutil.pid_exists(pid)], timeout=20)
assert not report.held_by and alive() is None and not engines(), engines()"""
HABITS = {  # what a reader does between the answer and 'del': the cell, and whether it raises
    "nothing": None,
    "an exception": ("def fail(held):\n    raise ValueError('on purpose')\nfail(model)", True),
    "a cell ending in its name": ("model", False),
    "a second name": (
        "kept = model\nwatch = weakref.ref(model)\ndel model\nreport = clear_cache()\n"
        "assert report.held_by == ['kept'] and watch() is not None, report\nmodel = kept\ndel kept",
        False,
    ),
}


class Kernel:
    """A Jupyter kernel, as a notebook has it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        env = os.environ | {"TMPDIR": str(self.temporary)}
        quietly = ["--IPKernelApp.log_level=50"]  # the kernel's remarks on its own transport
        self.manager, self.client = start_new_kernel(kernel_name="python3", env=env, extra_arguments=quietly)

    def run(self, code: str, may_fail: bool = False, interrupt_after: float | None = None) -> str:
        """Execute a cell; what it printed. An error that was not expected ends the soak."""
        printed, errors = [], []

        def hook(message):
            kind, content = message["header"]["msg_type"], message["content"]
            if kind == "stream":
                printed.append(content["text"])
            elif kind == "error":
                errors.append("\n".join(content["traceback"]))

        done, self.interrupts = threading.Event(), 0

        def interrupt():
            wait = interrupt_after
            while not done.wait(wait):  # a reader presses the button again when nothing happens
                self.interrupts, wait = self.interrupts + 1, 10
                os.killpg(os.getpgid(self.manager.provisioner.pid), signal.SIGINT)  # as Jupyter's button does

        if interrupt_after:
            threading.Thread(target=interrupt, daemon=True).start()
        self.client.execute_interactive(code, output_hook=hook, timeout=900)
        done.set()
        if errors and not may_fail:
            raise SystemExit("".join(printed) + "\n".join(errors))
        self.failed = bool(errors)
        return "".join(printed)

    def state(self) -> dict:
        return json.loads(self.run("print(json.dumps(state()))").splitlines()[-1])


def make(folder: pathlib.Path, layers: int, techniques: list[str]) -> int:
    """The model in every format that the techniques need; returns the bytes of the 16-bit one."""
    from helpers import disk_bytes, quiet

    for kind in ("base", *(NEEDS[t] for t in techniques if t in NEEDS)):
        if (folder / "made" / kind).exists():
            continue
        print(f"making {kind} ...", end="", flush=True)
        start = time.perf_counter()
        with quiet():
            if kind == "base":
                speed.make_base(folder / "base", layers)
            elif kind == "Q4_K_M":
                speed.make_gguf(kind, folder / "base", folder, folder / "Q4_K_M.gguf")
            else:
                speed.make_quantized(kind, folder, layers, folder / kind)
        (folder / "made").mkdir(exist_ok=True)
        (folder / "made" / kind).touch()
        print(f" {time.perf_counter() - start:.0f} s", flush=True)
    return disk_bytes(folder / "base", "*.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, help="of the model; as many as the real shape has when it is not given")
    parser.add_argument("--techniques", nargs="+", choices=list(LOAD), default=list(LOAD))
    parser.add_argument("--models", help="a folder that keeps the models for the next time")
    parser.add_argument("--out", help="the report's file")
    given = parser.parse_args()
    layers = given.layers or speed.SHAPES[speed.device()]["num_hidden_layers"]
    dice, techniques, habits = random.Random(0), [t for t in LOAD if t in given.techniques], list(HABITS)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(given.models or name).resolve()
        folder.mkdir(exist_ok=True)
        size = make(folder, layers, techniques)
        os.chdir(folder)  # gptqmodel's log
        kernel = Kernel(pathlib.Path(name).resolve())
        imports = "\n".join(IMPORTS[t] for t in techniques if t in IMPORTS)
        places = {"root": str(report.ROOT), "folder": str(folder), "temporary": str(kernel.temporary)}
        kernel.run(START.format(imports=imports, **places))
        rows, began = [], None
        for number in range(given.rounds + 1):
            for place, technique in enumerate(techniques):
                habit = habits[(number + place) % len(habits)]
                if technique == "AWQ" and (number % 2 or not number):  # also before what is counted
                    habit = "interrupted while it starts"
                    patience = dice.uniform(0.5, 8)
                    kernel.run(LOAD[technique], may_fail=True, interrupt_after=patience)
                    habit += f", after {patience:.1f} s" + (
                        f", {kernel.interrupts} times" if kernel.failed else " (it had started)"
                    )
                    if kernel.failed:
                        kernel.run("report = clear_cache()\nassert not report.held_by, report")
                    else:
                        kernel.run(RELEASE_AWQ)
                if not habit.startswith("interrupted") or not number:
                    kernel.run(LOAD[technique])
                    if HABITS.get(habit):
                        code, raises = HABITS[habit]
                        kernel.run(code, may_fail=raises)
                        assert kernel.failed == raises, habit
                    kernel.run(RELEASE_AWQ if technique == "AWQ" else RELEASE)
                time.sleep(1)
                found = kernel.state()
                if number:
                    rows.append({"round": number, "technique": technique, "habit": habit, **found})
                print(f"round {number:2}  {technique:9} {habit:45} {found}", flush=True)
            if not number:
                began = kernel.state()
        kernel.run("forgotten.close()")
        kernel.manager.shutdown_kernel(now=False)
        left = sorted(p.name for p in kernel.temporary.iterdir())
    write(given, rows, began, size, left)


def write(given, rows: list[dict], began: dict, size: int, left: list[str]) -> None:
    techniques = list(dict.fromkeys(row["technique"] for row in rows))
    kinds = [k for k in ("resident", "allocated", "reserved", "used on the GPU") if k in began]
    rounds, limit = given.rounds, LIMIT * size
    text = f"The 16-bit model has {size / 1e6:,.0f} MB; {LIMIT:.0%} of it are {limit / 1e6:,.1f} MB.\n\n"
    failures = []
    for kind in kinds:
        text += f"Memory {kind}, MB above where it began ({began[kind] / 1e6:,.0f} MB), after each release:\n\n"
        lines = []
        for number in range(1, rounds + 1):
            here = [row for row in rows if row["round"] == number]
            lines.append([number, *(round((row[kind] - began[kind]) / 1e6, 1) for row in here)])
        text += report.table(["round", *techniques], lines) + "\n\n"
        worst = max(row[kind] - began[kind] for row in rows)
        mean = {n: sum(row[kind] for row in rows if row["round"] == n) / len(techniques) for n in (rounds // 2, rounds)}
        growth = (mean[rounds] - mean[rounds // 2]) / max(1, rounds - rounds // 2)
        text += (
            f"At most {worst / 1e6:,.1f} MB, {worst / size:.2%} of the model; from round {rounds // 2} to {rounds} "
            f"{growth / 1e6:+.2f} MB a round, {growth / size:+.3%} of the model.\n\n"
        )
        if worst > limit or growth > limit / 20:
            failures.append(kind)
    for kind in ("children", "ports", "temporary"):
        more = [row for row in rows if row[kind] != began[kind]]
        count = len(began[kind]) if isinstance(began[kind], list) else began[kind]
        text += f"- {kind}: {count} at the beginning, changed after {len(more)} of {len(rows)} releases\n"
        failures += [kind] if more else []
    files = [row["open files"] - began["open files"] for row in rows]
    text += f"- open files: {began['open files']} at the beginning, {max(files):+d} at most\n"
    text += f"- in the folder for temporary files after the kernel's end: {', '.join(left) or 'nothing'}\n\n"
    text += "What was done before each release:\n\n"
    text += report.table(
        ["round", *techniques],
        [[n, *(row["habit"] for row in rows if row["round"] == n)] for n in range(1, rounds + 1)],
    )
    verdict = f"**Failed: {', '.join(failures)}.**" if failures else "**Everything came back.**"
    command = "python proofs/soak.py" + (f" --layers {given.layers}" if given.layers else "")
    command += f" --techniques {' '.join(techniques)}" if len(techniques) < len(LOAD) else ""
    report.write("Soak: does memory come back?", command, f"{verdict} {text}", given.out)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
