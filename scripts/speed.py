"""Speed at a size where it means something, in every format that this machine can run.

    python scripts/speed.py [--formats bf16 nf4 ...] [--layers N] [--out FILE [--add]]

Makes a model of a real shape with random weights (speed does not depend on their values), in each format, runs each one
in a process of its own, and writes speed-<device>.json into the folder of artifacts, where 07_comparison finds it.
Without a GPU the shape is TinyLlama's (1.1 billion parameters), with one it is Zephyr's own (7.2 billion).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
from torch.utils.benchmark import timer  # waits for the GPU, then reads the clock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from helpers.memory import clear_cache, tensor_bytes
from series.artifacts import artifacts_folder
from series.converter import llama_cpp_converter
from series.machine import processor_name, this_machine
from series.models import TINY
from series.texts import calibration_texts

os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2"}
os.environ["VLLM_CPU_INT4_W4A8"] = "0"  # on Intel's AMX, AWQ would round its inputs to 8 bits

SHARED = dict(num_attention_heads=32, vocab_size=32000, max_position_embeddings=2048, sliding_window=None)
SHAPES = {  # MistralConfig's fields
    "cpu": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_key_value_heads=4) | SHARED,
    "cuda": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8) | SHARED,
}
SIZES = {"cpu": (256, 4), "cuda": (512, 16)}  # tokens of the prompt, and the batch beside batch 1
NEW, KEPT_BEFORE = 64, 128  # tokens out, and tokens in the cache when decoding starts
FORMATS = {  # name -> (runtime, the package that it needs, what it loads)
    "bf16": ("transformers", "transformers", "base"),
    "nf4": ("bitsandbytes", "bitsandbytes", "base"),
    "gptq": ("gptqmodel", "gptqmodel", "gptq"),
    **{kind: ("llama.cpp", "llama-cpp-python", f"model-{kind}.gguf") for kind in ("F16", "Q8_0", "Q4_K_M", "Q2_K")},
    "bf16-vllm": ("vLLM", "vllm", "base"),
    "awq": ("vLLM", "vllm", "awq"),
}


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def timed(work: Callable, *given: object, **named: object) -> float:
    """Seconds that ``work`` takes, the GPU's part included."""
    start = timer()
    work(*given, **named)
    return timer() - start


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory: the best of three readers that use every core."""
    rows = 16384 if device() == "cpu" else 65536  # 1 GiB, or 4 GiB: far beyond any cache
    matrix, vector = torch.ones(rows, 16384, device=device()), torch.ones(16384, device=device())
    half, half_vector = matrix.view(torch.bfloat16), vector.repeat(2).bfloat16()
    readers = (matrix.sum, lambda: matrix @ vector, lambda: half @ half_vector)
    return matrix.nbytes / min(timed(read) for read in readers for _ in range(6))


def make_base(folder: pathlib.Path, layers: int) -> None:
    """A Mistral of random bfloat16 weights, with tiny-zephyr's tokenizer, in ``folder``."""
    from transformers import AutoModelForCausalLM, MistralConfig

    settings = SHAPES[device()] | {"num_hidden_layers": layers, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    torch.manual_seed(0)
    with torch.device(device()):
        model = AutoModelForCausalLM.from_config(MistralConfig(**settings), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")
    for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        (folder / file).write_bytes((TINY / file).read_bytes())


def make_quantized(kind: str, scratch: pathlib.Path, layers: int, folder: pathlib.Path) -> None:
    """A GPTQ or AWQ checkpoint: gptqmodel quantizes one block, which is then repeated ``layers`` times."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from safetensors.torch import load_file, save_file

    one, weights, config = scratch / "one-block", folder / "model.safetensors", folder / "config.json"
    if not one.exists():
        make_base(one, 1)
    awq = {"sym": False, "method": "awq", "format": "gemm"} if kind == "awq" else {}
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.AUTO  # AWQ's others compile first, and pack the same
    os.chdir(scratch)  # gptqmodel writes its log into the working directory
    model = GPTQModel.load(str(one), QuantizeConfig(bits=4, group_size=128, **awq), device=device())
    model.quantize(calibration_texts(16), batch_size=1, backend=backend)
    model.save(str(folder))
    tensors = load_file(weights)
    weights.unlink()  # not overwritten: the tensors are mapped from it
    for name in [name for name in tensors if ".layers.0." in name]:
        tensors |= {name.replace(".0.", f".{layer}.", 1): tensors[name].clone() for layer in range(1, layers)}
    save_file(tensors, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": layers}, indent=2))


def make_gguf(kind: str, base: pathlib.Path, scratch: pathlib.Path, target: pathlib.Path) -> None:
    """A GGUF file of the type ``kind``, by llama.cpp's converter and quantizer."""
    import llama_cpp

    full = scratch / "model-BF16.gguf"
    if not full.exists():
        command = [sys.executable, str(llama_cpp_converter()), str(base), "--outfile", str(full), "--outtype", "bf16"]
        subprocess.run(command, check=True, capture_output=True)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(bytes(full), bytes(target), settings):
        raise RuntimeError(f"llama.cpp could not write {kind}.")


# Each of these loads a model, writes what it finds into the row, yields run, and frees the model when it goes on.
# run(batch, length, new) returns seconds: those of reading prompts of ``length`` tokens, or, if ``new`` is not 0, those
# of writing ``new`` tokens after them, with or without the reading.
def run_transformers(source: pathlib.Path, row: dict) -> Iterator[Callable[[int, int, int], float]]:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    settings = {"quantization_config": nf4} if row["format"] == "nf4" else {}
    settings |= {"device_map": "auto" if device() == "cuda" else "cpu", "dtype": torch.bfloat16}
    before, start = torch.cuda.memory_allocated(), timer()  # 0 without a GPU
    model = AutoModelForCausalLM.from_pretrained(source, **settings)
    row["load_seconds"] = timer() - start
    row["bytes_per_token"] = tensor_bytes(model) - tensor_bytes(model.get_input_embeddings())
    row["allocated_bytes"] = torch.cuda.memory_allocated() - before or tensor_bytes(model)
    row["kernel"] = sorted({type(m).__name__ for m in model.modules() if "Linear" in type(m).__name__})
    if row["format"] == "nf4":
        packed = torch.nn.ModuleList(m for m in model.modules() if type(m).__name__ == "Linear4bit")
        row["layer_bits"] = 8 * tensor_bytes(packed) / sum(m.in_features * m.out_features for m in packed)
        del packed  # or the model could not be freed

    @torch.no_grad()
    def run(batch: int, length: int, new: int) -> float:
        ids = torch.randint(3, 2000, (batch, length), device=model.device)
        if not new:
            return timed(model, ids, logits_to_keep=1)
        mask = torch.ones_like(ids)
        return timed(model.generate, ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new)

    yield run
    model = None  # for run() too
    if device() == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        clear_cache()
        row["left_share"] = (torch.cuda.memory_allocated() - before) / row["allocated_bytes"]


def run_llama_cpp(source: pathlib.Path, row: dict) -> Iterator[Callable[[int, int, int], float]]:
    import llama_cpp
    from gguf import GGUFReader

    llama_cpp.llama_backend_init()
    (prompt, most), here, start = SIZES[device()], this_machine(), timer()
    settings, options = llama_cpp.llama_model_default_params(), llama_cpp.llama_context_default_params()
    settings.n_gpu_layers = 999  # all of them, where there is a GPU
    options.n_ctx, options.n_batch, options.n_seq_max = most * (prompt + NEW), 2048, most
    options.n_threads = options.n_threads_batch = here.cores
    model = llama_cpp.llama_model_load_from_file(bytes(source), settings)
    context = llama_cpp.llama_init_from_model(model, options)
    row["load_seconds"] = timer() - start
    row["allocated_bytes"] = llama_cpp.llama_model_size(model)  # the weights; its buffers count in the peak
    row["bytes_per_token"] = sum(int(t.n_bytes) for t in GGUFReader(source).tensors if t.name != "token_embd.weight")
    memory, tokens = llama_cpp.llama_get_memory(context), llama_cpp.llama_batch_init(2048, 0, 1)

    def feed(batch: int, start: int, length: int) -> None:
        """``length`` tokens for each of ``batch`` sequences, from position ``start``; logits for the last."""
        items = [(s, start + i, i == length - 1) for s in range(batch) for i in range(length)]
        for first in range(0, len(items), 2048):
            tokens.n_tokens = len(items[first : first + 2048])
            for slot, (sequence, position, wanted) in enumerate(items[first : first + 2048]):
                tokens.token[slot], tokens.pos[slot] = 3 + (7 * position + sequence) % 1999, position
                tokens.n_seq_id[slot], tokens.seq_id[slot][0], tokens.logits[slot] = 1, sequence, wanted
            if llama_cpp.llama_decode(context, tokens):
                raise RuntimeError("llama.cpp could not decode the batch.")
        llama_cpp.llama_synchronize(context)

    def run(batch: int, length: int, new: int) -> float:
        llama_cpp.llama_memory_clear(memory, True)
        reading = timed(feed, batch, 0, length)
        return sum(timed(feed, batch, length + i, 1) for i in range(new)) if new else reading

    yield run
    if here.gpu:
        row["peak_bytes"] = here.gpu.free - this_machine().gpu.free  # it frees nothing before


class Worker:
    """What we ask of vLLM's worker process."""

    def weights_and_kernels(self) -> tuple[int, list[str]]:
        model = self.model_runner.get_model()
        size = sum({t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())
        layers = [m for m in model.modules() if hasattr(m, "quant_method") and "Linear" in type(m).__name__]
        return size, sorted({type(getattr(m.quant_method, "kernel", m.quant_method)).__name__ for m in layers})


def run_vllm(source: pathlib.Path, row: dict) -> Iterator[Callable[[int, int, int], float]]:
    from vllm import LLM, SamplingParams

    settings = {"enforce_eager": True} if device() == "cpu" else {"gpu_memory_utilization": this_machine().vllm_share()}
    settings |= {"max_model_len": 1024, "enable_prefix_caching": False, "worker_extension_cls": "speed.Worker"}
    start, llm = timer(), LLM(str(source), dtype="bfloat16", **settings)
    row["load_seconds"] = timer() - start
    row["bytes_per_token"] = row["disk_bytes"] - 2 * SHAPES[device()]["vocab_size"] * SHAPES[device()]["hidden_size"]
    held, row["kernel"] = llm.collective_rpc("weights_and_kernels")[0]
    if device() == "cuda":  # on a processor, oneDNN keeps weights where no module shows them
        row["allocated_bytes"] = held

    def run(batch: int, length: int, new: int) -> float:
        prompts = [{"prompt_token_ids": [3 + (7 * i + s) % 1999 for i in range(length)]} for s in range(batch)]
        sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=new or 1, detokenize=False)
        return timed(llm.generate, prompts, sampling, use_tqdm=False)

    yield run
    llm.llm_engine.engine_core.shutdown()  # no peak: vLLM fills whatever share of the memory it is given


def measure(kind: str, scratch: pathlib.Path) -> dict:
    """Load a format and measure it; the bandwidth is measured before and after, in the same process."""
    (runtime, _, file), (prompt, many), before = FORMATS[kind], SIZES[device()], bandwidth()
    if device() == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    source, load = scratch / file, {"llama.cpp": run_llama_cpp, "vLLM": run_vllm}.get(runtime, run_transformers)
    size = sum(part.stat().st_size for part in [*source.glob("*.safetensors")] or [source])
    row = {"format": kind, "runtime": runtime, "disk_bytes": size}
    run = next(loaded := load(source, row))
    for batch, name, tries in ((1, "1", 2), (many, "batch", 1)):
        run(batch, 64 if device() == "cpu" else prompt, 0)  # to warm up
        row[f"prefill_{name}"] = batch * prompt / run(batch, prompt, 0)
        run(batch, KEPT_BEFORE, 2)
        took = (run(batch, KEPT_BEFORE, NEW + 1) - run(batch, KEPT_BEFORE, 1) for _ in range(tries))
        row[f"decode_{name}"] = batch * NEW / min(took)
    next(loaded, None)  # frees the model
    return row | {"bandwidth": max(before, bandwidth())}  # other programs take their share: the best reading counts


def child(step: str, kind: str, scratch: pathlib.Path, layers: int) -> str:
    """What a process prints that makes or measures a format; it is one of its own, so that no memory stays taken."""
    command = [sys.executable, __file__, "--layers", str(layers), "--child", step, kind, str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip()[-1500:] or "it said nothing"
        raise RuntimeError(f"{kind}, {step}, exit status {done.returncode}: {said}")
    return done.stdout.strip()


def installed(package: str) -> str | None:
    found = (name for name in (package, f"{package}-cpu") if [*importlib.metadata.distributions(name=name)])
    return next((f"{name} {importlib.metadata.version(name)}" for name in found), None)


def result_of(given: argparse.Namespace, rows: list[dict], left_out: dict[str, str], old: dict) -> dict:
    """What is written: ``rows``, and the formats that only ``old`` has, from the same machine with the same shape."""
    by_format = {row["format"]: row for row in [*old.get("rows", []), *rows]}
    there = [kind for kind in FORMATS if kind in by_format]
    left_out = {kind: why for kind, why in (old.get("left_out", {}) | left_out).items() if kind not in there}
    packages = ["torch", "transformers", *sorted({FORMATS[row["format"]][1] for row in rows})]
    here, (prompt, many) = this_machine(), SIZES[device()]
    machine = {"cores": here.cores, "memory_bytes": here.total, "processor": f"{processor_name()}, {here.width}"}
    machine |= {"gpu": here.gpu.name, "gpu_memory_bytes": here.gpu.total} if here.gpu else {}
    fixed = {
        "shape": SHAPES[device()] | {"num_hidden_layers": given.layers},
        "prompt_tokens": prompt,
        "new_tokens": NEW,
        "batch": many,
        "cached_before_decoding": KEPT_BEFORE,
    }
    moved = old and any(old["machine"].get(key) != machine.get(key) for key in ("processor", "gpu"))
    if moved or (old and not fixed.items() <= old.items()):
        raise SystemExit("The file is of another machine, shape or batch: without --add it is written anew.")
    return {
        "made_by": "scripts/speed.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        **fixed,
        "random_weights": True,
        "repeated_block": [kind for kind in there if kind in ("gptq", "awq")],
        "bandwidth": max([old.get("bandwidth", 0), *(row["bandwidth"] for row in rows)]),
        "left_out": left_out,
        "not_asked_for": [kind for kind in FORMATS if kind not in {*given.formats, *there, *left_out}],
        "versions": list(dict.fromkeys([*old.get("versions", []), *map(installed, packages)])),
        "rows": [by_format[kind] for kind in there],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--layers", type=int, help="fewer layers of the same width, for a quick look")
    parser.add_argument("--out", type=pathlib.Path, help="the file to write")
    parser.add_argument("--add", action="store_true", help="keep the file's formats that are not measured now")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.layers = given.layers or SHAPES[device()]["num_hidden_layers"]
    if given.child:
        step, kind, scratch = *given.child[:2], pathlib.Path(given.child[2])
        if step == "measure":
            return print(json.dumps(measure(kind, scratch)))
        if kind == "base":
            return make_base(scratch / kind, given.layers)
        if FORMATS[kind][0] == "llama.cpp":
            return make_gguf(kind, scratch / "base", scratch, scratch / FORMATS[kind][2])
        return make_quantized(kind, scratch, given.layers, scratch / kind)
    name = getattr(this_machine().gpu, "name", "cpu").lower().replace("nvidia", "").strip().replace(" ", "-")
    out = given.out.resolve() if given.out else artifacts_folder() / f"speed-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)  # fails now, not at the end
    old = json.loads(out.read_text(encoding="utf-8")) if given.add and out.is_file() else {}
    rows, left_out = [], {}
    result_of(given, rows, left_out, old)  # what does not go together fails now, too
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        print(f"making the base model: {given.layers} layers of width {SHAPES[device()]['hidden_size']}", flush=True)
        child("make", "base", scratch, given.layers)
        for number, kind in enumerate(given.formats, 1):
            runtime, package, file = FORMATS[kind]
            print(f"[{number}/{len(given.formats)}] {kind}, {runtime}", flush=True)
            try:
                if not installed(package):
                    raise RuntimeError(f"{package} is not installed")
                if file != "base":
                    child("make", kind, scratch, given.layers)
                rows.append(json.loads(child("measure", kind, scratch, given.layers).splitlines()[-1]))
                limit = max(row["bandwidth"] for row in rows) / rows[-1]["bytes_per_token"]
                print(f"      decode {rows[-1]['decode_1']:.1f} tokens/s of at most {limit:.1f}", flush=True)
            except RuntimeError as error:
                left_out[kind] = str(error).splitlines()[-1][:300]
                print(f"      left out: {left_out[kind]}", flush=True)
            if rows:  # after each format, so that a run that is cut short keeps what it has
                out.write_text(json.dumps(result_of(given, rows, left_out, old), indent=1) + "\n", encoding="utf-8")
    if not rows:
        raise SystemExit("No format could be run.")
    print(f"\nwritten: {out}")


if __name__ == "__main__":
    main()
