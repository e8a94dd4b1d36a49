"""Speed at a size where it means something, in every format that this machine can run.

    python scripts/speed.py [--formats bf16 nf4 ...] [--layers N] [--out FILE [--add]]

Makes a model of a real shape with random weights (speed does not depend on their values), in each format,
runs each one in a process of its own, and writes speed-<device>.json into the folder of artifacts, where
07_comparison finds it. Without a GPU the shape is TinyLlama's (1.1 billion parameters), with one it is Zephyr's own
(7.2 billion). What we commit is made with --out benchmarks/speed-<device>.json; --add keeps the formats that the file
has and that are not measured now.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "2"}

SHAPES = {  # MistralConfig's fields
    "cpu": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048, sliding_window=None),
    "cuda": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                 num_key_value_heads=8, vocab_size=32000, max_position_embeddings=2048, sliding_window=None),
}  # fmt: skip
FORMATS = {  # name -> (runtime, the package that it needs)
    "bf16": ("transformers", "transformers"),
    "nf4": ("bitsandbytes", "bitsandbytes"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "F16": ("llama.cpp", "llama-cpp-python"),
    "Q8_0": ("llama.cpp", "llama-cpp-python"),
    "Q4_K_M": ("llama.cpp", "llama-cpp-python"),
    "Q2_K": ("llama.cpp", "llama-cpp-python"),
    "bf16-vllm": ("vLLM", "vllm"),
    "awq": ("vLLM", "vllm"),
}
SIZES = {"cpu": (256, 4), "cuda": (512, 16)}  # tokens of the prompt, and the batch beside batch 1
NEW, KEPT_BEFORE = 64, 128  # tokens out, and tokens in the cache when decoding starts


# --- the machine -------------------------------------------------------------------------


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory: the best of three readers that use every core."""
    import torch

    where = device()
    rows = 16384 if where == "cpu" else 65536
    matrix = torch.ones(rows, 16384, device=where)  # 1 GiB, or 4 GiB: far beyond any cache
    vector = torch.ones(16384, device=where)
    half = matrix.view(torch.bfloat16)
    half_vector = torch.ones(half.shape[1], device=where, dtype=torch.bfloat16)
    best = 0.0
    for read in (lambda: matrix.sum(), lambda: matrix @ vector, lambda: half @ half_vector):
        read()
        for _ in range(5):
            seconds = timed(read)
            best = max(best, matrix.nbytes / seconds)
    return best


def timed(work) -> float:
    """Seconds that ``work()`` takes, the GPU's part included."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def machine() -> dict:
    import psutil
    import torch

    from helpers.console import processor_name

    facts = {"cores": psutil.cpu_count(logical=False), "memory_bytes": psutil.virtual_memory().total}
    facts["processor"] = f"{processor_name()}, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_memory_bytes"] = torch.cuda.get_device_properties(0).total_memory
    return facts


def free_on_gpu() -> int:
    """Bytes free on the GPU, for the runtimes that torch's allocator knows nothing of; 0 without one."""
    import torch

    return torch.cuda.mem_get_info()[0] if device() == "cuda" else 0


def sizes() -> tuple[int, int]:
    return SIZES[device()]


# --- the model in each format ------------------------------------------------------------


def make_base(folder: pathlib.Path, layers: int | None = None) -> None:
    """A Mistral of random bfloat16 weights, with tiny-zephyr's tokenizer, in ``folder``."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    shape = SHAPES[device()] | ({"num_hidden_layers": layers} if layers else {})
    config = MistralConfig(**shape, dtype="bfloat16", bos_token_id=1, eos_token_id=2, pad_token_id=2)
    torch.manual_seed(0)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device()):
        model = MistralForCausalLM(config)
    torch.set_default_dtype(previous)
    model.save_pretrained(folder, max_shard_size="2GB")
    for file in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(ROOT / "models" / "tiny-zephyr" / file, folder)


def make_quantized(kind: str, scratch: pathlib.Path, layers: int, folder: pathlib.Path) -> None:
    """A GPTQ or AWQ checkpoint: gptqmodel quantizes one block, which is then repeated ``layers`` times."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD
    from safetensors.torch import load_file, save_file

    from helpers import calibration_texts

    one = scratch / "one-block"
    if not one.exists():
        make_base(one, layers=1)
    if kind == "gptq":
        config, backend = QuantizeConfig(bits=4, group_size=128), BACKEND.AUTO
    else:
        config = QuantizeConfig(bits=4, group_size=128, sym=False, method=METHOD.AWQ, format=FORMAT.GEMM)
        backend = BACKEND.AWQ_TORCH  # the others compile first, and pack the same
    os.chdir(scratch)  # gptqmodel writes its log into the working directory
    model = GPTQModel.load(str(one), config, device=device())
    model.quantize(calibration_texts(16), batch_size=1, backend=backend)
    model.save(str(folder))

    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    prefix = "model.layers.0."
    for name in [name for name in tensors if name.startswith(prefix)]:
        for layer in range(1, layers):
            tensors[f"model.layers.{layer}.{name.removeprefix(prefix)}"] = tensors[name].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config_file = folder / "config.json"
    settings = json.loads(config_file.read_text()) | {"num_hidden_layers": layers}
    config_file.write_text(json.dumps(settings, indent=2))


def make_gguf(kind: str, base: pathlib.Path, scratch: pathlib.Path, target: pathlib.Path) -> None:
    """A GGUF file of the type ``kind``, by llama.cpp's converter and quantizer."""
    import ctypes

    import llama_cpp

    from helpers import llama_cpp_converter

    full = scratch / "model-BF16.gguf"
    if not full.exists():
        command = [sys.executable, str(llama_cpp_converter()), str(base), "--outfile", str(full), "--outtype", "bf16"]
        subprocess.run(command, check=True, capture_output=True)
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if llama_cpp.llama_model_quantize(bytes(full), bytes(target), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp could not write {kind}.")


# --- what is measured, for each runtime --------------------------------------------------
# Each function returns (seconds to load, bytes of weights read for a token, prefill, decode, facts, close).
# prefill(batch) and decode(batch) do the work and return tokens a second. The facts, and those that close() finds
# when it frees the model, go into the row as they are.


def run_transformers(source: pathlib.Path, kind: str):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from helpers import clear_cache, quiet, tensor_bytes

    cuda, settings = device() == "cuda", {}
    if kind == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    held_before = torch.cuda.memory_allocated() if cuda else 0
    start = time.perf_counter()
    where = "auto" if cuda else "cpu"
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, device_map=where, **settings)
    seconds = time.perf_counter() - start
    read = tensor_bytes(model) - tensor_bytes(model.get_input_embeddings())
    held = torch.cuda.memory_allocated() - held_before if cuda else tensor_bytes(model)
    linear = [module for module in model.modules() if "Linear" in type(module).__name__]
    facts = {"allocated_bytes": held, "kernel": sorted({type(module).__name__ for module in linear})}
    if kind == "nf4":
        packed = torch.nn.ModuleList(module for module in linear if type(module).__name__ == "Linear4bit")
        facts["layer_bits"] = 8 * tensor_bytes(packed) / sum(m.in_features * m.out_features for m in packed)
        del packed
    del linear  # or close() could not free them

    def ids(batch: int, length: int):
        return torch.randint(3, 2000, (batch, length), device=model.device)

    prompt, _ = sizes()

    def prefill(batch: int) -> float:
        inputs = ids(batch, prompt)
        with torch.no_grad():
            model(inputs[:, :64] if device() == "cpu" else inputs, logits_to_keep=1)  # to warm up
            return batch * prompt / timed(lambda: model(inputs, logits_to_keep=1))

    def decode(batch: int) -> float:
        inputs = ids(batch, KEPT_BEFORE)
        mask = torch.ones_like(inputs)

        def generate(count: int):
            model.generate(
                inputs, attention_mask=mask, do_sample=False, min_new_tokens=count, max_new_tokens=count
            )  # fmt: skip

        generate(2)
        return batch * NEW / (timed(lambda: generate(NEW + 1)) - timed(lambda: generate(1)))

    def close() -> dict:
        nonlocal model
        del model  # for the functions above too
        if not cuda:
            return {}
        peak = torch.cuda.max_memory_allocated()
        with quiet():
            clear_cache()
        return {"peak_bytes": peak, "left_share": (torch.cuda.memory_allocated() - held_before) / held}

    return seconds, read, prefill, decode, facts, close


def run_llama_cpp(source: pathlib.Path, kind: str):
    import llama_cpp
    import psutil
    from gguf import GGUFReader

    def silent(*_) -> None:
        return None

    run_llama_cpp.log = llama_cpp.llama_log_callback(silent)  # kept alive
    llama_cpp.llama_log_set(run_llama_cpp.log, None)
    llama_cpp.llama_backend_init()
    free_before = free_on_gpu()
    start = time.perf_counter()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 999 if llama_cpp.llama_supports_gpu_offload() else 0
    model = llama_cpp.llama_model_load_from_file(bytes(source), settings)
    threads = psutil.cpu_count(logical=False) or 1
    options = llama_cpp.llama_context_default_params()
    prompt, most = sizes()
    options.n_ctx, options.n_batch, options.n_seq_max = most * (prompt + NEW), 2048, most
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    seconds = time.perf_counter() - start
    embedding = next(int(t.n_bytes) for t in GGUFReader(source).tensors if t.name == "token_embd.weight")
    read = llama_cpp.llama_model_size(model) - embedding
    memory = llama_cpp.llama_get_memory(context)
    batch_memory = llama_cpp.llama_batch_init(2048, 0, 1)

    def feed(batch: int, start: int, length: int) -> None:
        """``length`` tokens for each of ``batch`` sequences, from position ``start``; logits for the last."""
        items = [(s, start + i, i == length - 1) for s in range(batch) for i in range(length)]
        for first in range(0, len(items), 2048):
            part = items[first : first + 2048]
            batch_memory.n_tokens = len(part)
            for slot, (sequence, position, wanted) in enumerate(part):
                batch_memory.token[slot] = 3 + (7 * position + sequence) % 1999
                batch_memory.pos[slot] = position
                batch_memory.n_seq_id[slot] = 1
                batch_memory.seq_id[slot][0] = sequence
                batch_memory.logits[slot] = wanted
            if llama_cpp.llama_decode(context, batch_memory):
                raise RuntimeError("llama.cpp could not decode the batch.")
        llama_cpp.llama_synchronize(context)

    def prefill(batch: int) -> float:
        for _ in range(2):
            llama_cpp.llama_memory_clear(memory, True)
            seconds = timed(lambda: feed(batch, 0, prompt))
        return batch * prompt / seconds

    def decode(batch: int) -> float:
        llama_cpp.llama_memory_clear(memory, True)
        feed(batch, 0, KEPT_BEFORE)
        feed(batch, KEPT_BEFORE, 1)

        def steps():
            for step in range(NEW):
                feed(batch, KEPT_BEFORE + 1 + step, 1)

        return batch * NEW / timed(steps)

    def close() -> dict:
        return {"peak_bytes": free_before - free_on_gpu()} if device() == "cuda" else {}  # it frees nothing before

    facts = {"allocated_bytes": llama_cpp.llama_model_size(model)}  # the weights; its buffers count in the peak
    return seconds, read, prefill, decode, facts, close


class Worker:
    """What we ask of vLLM's worker process."""

    def weights_and_kernels(self) -> tuple[int, list[str]]:
        model = self.model_runner.get_model()
        size = sum({t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())
        layers = [m for m in model.modules() if hasattr(m, "quant_method") and "Linear" in type(m).__name__]
        kernels = {type(getattr(m.quant_method, "kernel", m.quant_method)).__name__ for m in layers}
        return size, sorted(kernels)


def run_vllm(source: pathlib.Path, kind: str):
    import torch
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from helpers import disk_bytes

    settings = {"enforce_eager": device() == "cpu", "worker_extension_cls": "speed.Worker"}
    if device() == "cuda":
        settings["gpu_memory_utilization"] = 0.85 * free_on_gpu() / torch.cuda.mem_get_info()[1]
    start = time.perf_counter()
    llm = LLM(str(source), dtype="bfloat16", max_model_len=1024, enable_prefix_caching=False, **settings)
    seconds = time.perf_counter() - start
    config = json.loads((source / "config.json").read_text())
    read = disk_bytes(source, "*.safetensors") - 2 * config["vocab_size"] * config["hidden_size"]
    held, kernels = llm.collective_rpc("weights_and_kernels")[0]

    def generate(batch: int, length: int, count: int) -> float:
        prompts = [TokensPrompt(prompt_token_ids=[3 + (7 * i + s) % 1999 for i in range(length)]) for s in range(batch)]
        sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=count, detokenize=False)
        return timed(lambda: llm.generate(prompts, sampling, use_tqdm=False))

    prompt, _ = sizes()

    def prefill(batch: int) -> float:
        generate(1, prompt, 1)  # to warm up
        return batch * prompt / generate(batch, prompt, 1)

    def decode(batch: int) -> float:
        generate(batch, KEPT_BEFORE, 2)
        return batch * NEW / (generate(batch, KEPT_BEFORE, NEW + 1) - generate(batch, KEPT_BEFORE, 1))

    def close() -> dict:
        llm.llm_engine.engine_core.shutdown()
        return {}  # no peak: vLLM takes the share of the memory that it is given, and fills it with its cache

    facts = {"kernel": kernels}
    if device() == "cuda":  # on a processor, oneDNN keeps weights where no module shows them
        facts["allocated_bytes"] = held
    return seconds, read, prefill, decode, facts, close


def measure(kind: str, source: pathlib.Path) -> dict:
    """Load ``source`` and measure it; the bandwidth is measured before and after, in the same process."""
    import torch

    from helpers import disk_bytes

    before = bandwidth()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    runtime = FORMATS[kind][0]
    run = {"llama.cpp": run_llama_cpp, "vLLM": run_vllm}.get(runtime, run_transformers)
    seconds, read, prefill, decode, facts, close = run(source, kind)
    row = {
        "format": kind, "runtime": runtime, "disk_bytes": disk_bytes(source, "*.safetensors"),
        "bytes_per_token": read, "load_seconds": seconds,
        "prefill_1": prefill(1), "prefill_batch": prefill(sizes()[1]),
        "decode_1": max(decode(1), decode(1)), "decode_batch": decode(sizes()[1]),
    } | facts  # fmt: skip
    row |= close()
    row["bandwidth"] = max(before, bandwidth())  # other programs take their share: the best reading counts
    return row


# --- all of it ---------------------------------------------------------------------------


def installed(package: str) -> str | None:
    for name in (package, f"{package}-cpu"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def step(scratch: pathlib.Path, kind: str, layers: int) -> dict:
    """Make the format if need be and measure it, each in a process of its own."""
    base = scratch / "base"
    source = {"bf16": base, "nf4": base, "bf16-vllm": base}.get(kind)
    command = [sys.executable, __file__, "--scratch", str(scratch), "--layers", str(layers), "--one", kind]

    def child(what: str) -> str:
        done = subprocess.run([*command, "--step", what], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip()[-1500:] or "it said nothing"
            raise RuntimeError(f"{kind}, {what}, exit status {done.returncode}: {said}")
        return done.stdout

    if kind == "base":
        child("make")
        return {}
    if source is None:
        start = time.perf_counter()
        child("make")
        print(f"      made in {time.perf_counter() - start:.0f} s", flush=True)
    return json.loads(child("measure").strip().splitlines()[-1])


def place(scratch: pathlib.Path, kind: str) -> pathlib.Path:
    if FORMATS.get(kind, ("",))[0] == "llama.cpp":
        return scratch / f"model-{kind}.gguf"
    return scratch / (kind if kind in ("gptq", "awq") else "base")


def result_of(rows: list[dict], left_out: dict[str, str], asked: list[str], layers: int) -> dict:
    packages = ["torch", "transformers", *sorted({FORMATS[row["format"]][1] for row in rows})]
    rows = sorted(rows, key=lambda row: list(FORMATS).index(row["format"]))
    return {
        "made_by": "scripts/speed.py", "date": datetime.date.today().isoformat(), "machine": machine(),
        "shape": SHAPES[device()] | {"num_hidden_layers": layers}, "random_weights": True,
        "repeated_block": [row["format"] for row in rows if row["format"] in ("gptq", "awq")],
        "prompt_tokens": sizes()[0], "new_tokens": NEW, "batch": sizes()[1],
        "cached_before_decoding": KEPT_BEFORE,
        "bandwidth": max((row["bandwidth"] for row in rows), default=0), "left_out": left_out,
        "not_asked_for": [kind for kind in FORMATS if kind not in asked],
        "versions": [installed(package) for package in dict.fromkeys(packages)], "rows": rows,
    }  # fmt: skip


def added_to(old: dict, new: dict) -> dict:
    """``new``, and the formats that only ``old`` has; both must be of one machine, one shape and one batch."""

    def measured_with(result: dict) -> list:
        by = result["machine"]
        sizes = [result[key] for key in ("shape", "prompt_tokens", "new_tokens", "batch", "cached_before_decoding")]
        return [by["processor"], by.get("gpu"), *sizes]

    if measured_with(old) != measured_with(new):
        raise SystemExit("The file is of another machine, shape or batch: without --add it is written anew.")
    measured = {row["format"] for row in new["rows"]}
    rows = [*new["rows"], *(row for row in old["rows"] if row["format"] not in measured)]
    rows.sort(key=lambda row: list(FORMATS).index(row["format"]))
    there = [row["format"] for row in rows]
    left_out = {kind: why for kind, why in (old["left_out"] | new["left_out"]).items() if kind not in there}
    return new | {
        "repeated_block": [kind for kind in there if kind in ("gptq", "awq")],
        "bandwidth": max(old["bandwidth"], new["bandwidth"]), "left_out": left_out,
        "not_asked_for": [kind for kind in FORMATS if kind not in there and kind not in left_out],
        "versions": list(dict.fromkeys(old["versions"] + new["versions"])), "rows": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--layers", type=int, help="fewer layers of the same width, for a quick look")
    parser.add_argument("--out", type=pathlib.Path, help="the file to write")
    parser.add_argument("--add", action="store_true", help="keep the other formats that the file has")
    for hidden in ("--scratch", "--one", "--step"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:  # the child processes of step()
        scratch, target = pathlib.Path(given.scratch), place(pathlib.Path(given.scratch), given.one)
        if given.step == "measure":
            print(json.dumps(measure(given.one, target)))
        elif given.one == "base":
            make_base(target, given.layers)
        elif given.one in ("gptq", "awq"):
            make_quantized(given.one, scratch, given.layers, target)
        else:
            make_gguf(given.one, scratch / "base", scratch, target)
        return

    from helpers.artifacts import artifacts_folder

    facts = machine()
    name = facts.get("gpu", "cpu").lower().replace("nvidia", "").strip().replace(" ", "-")
    out = given.out.resolve() if given.out else artifacts_folder() / f"speed-{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)  # fails now, not at the end
    layers = given.layers or SHAPES[device()]["num_hidden_layers"]
    rows, left_out = [], {}
    old = json.loads(out.read_text(encoding="utf-8")) if given.add and out.is_file() else None

    def result() -> dict:
        new = result_of(rows, left_out, given.formats, layers)
        return added_to(old, new) if old else new

    result()  # what does not go together fails now, too
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        print(f"making the base model: {layers} layers of width {SHAPES[device()]['hidden_size']}", flush=True)
        step(scratch, "base", layers)  # in a process of its own too, so that no memory stays taken
        for number, kind in enumerate(given.formats, 1):
            runtime, package = FORMATS[kind]
            print(f"[{number}/{len(given.formats)}] {kind}, {runtime}", flush=True)
            if not installed(package):
                left_out[kind] = f"{package} is not installed"
            else:
                try:
                    rows.append(step(scratch, kind, layers))
                    limit = max(row["bandwidth"] for row in rows) / rows[-1]["bytes_per_token"]
                    print(f"      decode {rows[-1]['decode_1']:.1f} tokens/s of at most {limit:.1f}", flush=True)
                    # after each format, so that a run that is cut short keeps what it has
                    out.write_text(json.dumps(result(), indent=1) + "\n", encoding="utf-8")
                except RuntimeError as error:
                    left_out[kind] = str(error).splitlines()[-1][:300]
            if kind in left_out:
                print(f"      left out: {left_out[kind]}", flush=True)
    if not rows:
        raise SystemExit("No format could be run.")
    out.write_text(json.dumps(result(), indent=1) + "\n", encoding="utf-8")
    print(f"\nwritten: {out}")


if __name__ == "__main__":
    main()
