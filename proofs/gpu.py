"""The programs of recipes/, and the training of 14, on a GPU: as on the card that is here, and as on a T4.

    python proofs/gpu.py [--out proofs/gpu.md]

With ``tiny``, and with random weights of Zephyr's shape where the answer means nothing and the bytes are real. 'As a
T4' lacks what a T4 lacks: torch says compute capability 7.5 and no bfloat16, a number in bfloat16 on the card is an
error, and there is no flash attention. Each program is a process of its own; what it allocates on the card is held
against what ``helpers`` computes from the configuration. What cannot be imported here is left out, by name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import report

ROOT = report.ROOT

from helpers.sizes import weight_bytes  # noqa: E402
from helpers.training import training_bytes  # noqa: E402
from series import newcomers, notebooks  # noqa: E402

RUNNER = """
import contextlib, json, runpy, sys, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

class NoBfloat16(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.is_cuda and t.dtype == torch.bfloat16 for t in tree_leaves(out)):
            raise TypeError(f"{func} makes a number in bfloat16, which this card does not have")
        return out

T4, sys.argv = sys.argv[1] == "a T4", sys.argv[2:]
if T4:
    torch.cuda.get_device_capability = lambda *device: (7, 5)
    torch.cuda.is_bf16_supported = lambda *given, **more: False
    torch.backends.cuda.enable_flash_sdp(False)
from transformers import GenerationMixin

loaded, plain = [], GenerationMixin.generate

def generate(self, *given, **more):
    loaded.append(torch.cuda.memory_allocated())
    return plain(self, *given, **more)

GenerationMixin.generate = generate
with NoBfloat16() if T4 else contextlib.nullcontext():
    names = runpy.run_path(sys.argv[0], run_name="__main__")
print("MEASURED", json.dumps({"loaded": loaded[0], "peak": torch.cuda.max_memory_allocated()}))
"""
ALONE = (
    "import runpy, sys; sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__'); print('MEASURED {}')"
)
NEEDS = {"03_nf4": "bitsandbytes", "05_gguf": "llama_cpp", "11_newer_formats": "torchao", "14_finetune": "peft"}
KINDS = {"01_baseline": "16-bit", "02_sharding": "16-bit", "03_nf4": "NF4", "11_newer_formats": "FP8"}
ABOUT = """Each row is a program of `recipes/` (of 14 its four cells), to the end. *Loaded*: what
torch has allocated on the card when the answer begins; *peak*: the most at once; *computed*: the bytes of the weights
by `weight_bytes`, for 14 the sum of `training_bytes`, against its peak. 11 makes its file of the model in 16 bits, so
its peak holds that. 05 runs without torch, with a file that was made before; llama.cpp allocates by itself."""
HEADER = ("program", "model", "card", "ended", "seconds", "loaded, MB", "peak, MB", "computed, MB", "its last line")


def zephyr(folder: pathlib.Path) -> pathlib.Path:
    """Random weights of Zephyr's shape, with tiny's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    torch.manual_seed(0)
    config = MistralConfig(eos_token_id=2, bos_token_id=1)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder / "zephyr-random")
    AutoTokenizer.from_pretrained(notebooks.TINY).save_pretrained(folder / "zephyr-random")
    del model
    torch.cuda.empty_cache()
    return folder / "zephyr-random"


def finetune(model: pathlib.Path, folder: pathlib.Path, dtype: str, steps: int) -> pathlib.Path:
    """14's four cells as a program."""
    given = notebooks.default_parameters("14_finetune")
    given |= {"path": str(folder / model.name), "DTYPE": dtype, "STEPS": steps, "taught": newcomers.taught()}
    (folder / model.name).symlink_to(model)
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    file = folder / "finetune.py"
    file.write_text("\n".join([*lines, notebooks.recipe("14_finetune")]), encoding="utf-8")
    return file


def row(stem: str, model: pathlib.Path, card: str, gguf: str) -> tuple:
    """Run one program; a row of the table."""
    if not importlib.util.find_spec(NEEDS.get(stem, "torch")):
        return stem, model.name, card, f"not tried: no {NEEDS[stem]} here", "", "", "", "", ""
    small = model == notebooks.TINY
    with tempfile.TemporaryDirectory() as name:
        folder, begun = pathlib.Path(name), time.perf_counter()
        if stem == "14_finetune":
            dtype = "float16" if card == "a T4" else "bfloat16"
            words = [str(finetune(model, folder, dtype, 60 if small else 20))]
        else:
            words = [str(ROOT / "recipes" / f"{stem}.py"), "--model", str(model), "--max-new-tokens", "40"]
            words += ["--ready", str(pathlib.Path(gguf).resolve())] if stem == "05_gguf" else []
        env = os.environ | {"HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-c", ALONE if stem == "05_gguf" else RUNNER, card, *words]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    seconds = time.perf_counter() - begun
    said, _, found = done.stdout.strip().rpartition("MEASURED ")
    last = (said if found else done.stderr or done.stdout).strip().splitlines()[-1:]
    computed = ""
    if stem in KINDS:
        computed = f"{weight_bytes(model, KINDS[stem]) / 1e6:,.1f}"
    elif stem == "14_finetune":
        computed = f"{sum(training_bytes(model, 8 * 62, 8, 'NF4').values()) / 1e6:,.1f}"
    counted = json.loads(found) if found else {}
    sizes = [f"{counted[name] / 1e6:,.1f}" if name in counted else "" for name in ("loaded", "peak")]
    shown = "".join(last)[:90].replace("|", "/") if small or not found else "random weights"
    return stem, model.name, card, "yes" if found else "no", f"{seconds:.0f}", *sizes, computed, shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", default="", help="a GGUF file of tiny, made by 05; without it 05 is left out")
    parser.add_argument("--out", default=str(ROOT / "proofs" / "gpu.md"))
    given = parser.parse_args()
    rows, stems = [], [*KINDS, "05_gguf", "14_finetune"]
    with tempfile.TemporaryDirectory() as folder:
        for model in (zephyr(pathlib.Path(folder)), notebooks.TINY):
            for card in ("this card", "a T4"):
                for stem in stems:
                    if stem == "05_gguf" and not (given.gguf and model == notebooks.TINY and card == "this card"):
                        continue  # llama.cpp asks torch nothing; random numbers take minutes to convert
                    if stem == "02_sharding" and model != notebooks.TINY:
                        continue  # 01 in parts
                    rows.append(row(stem, model, card, given.gguf))
                    print(*rows[-1], sep=" | ", flush=True)
                    text = [ABOUT, report.table(HEADER, rows)]
                    report.write("Programs on a GPU", "python proofs/gpu.py", "\n\n".join(text), given.out, quiet=True)


if __name__ == "__main__":
    main()
