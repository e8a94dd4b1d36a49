"""Which method of today makes, saves, loads back and runs `tiny` on this device, and how well: for 11_newer_formats.

    python scripts/formats.py [METHOD ...] [--out benchmarks/formats-cpu.json] [--add]

Each method is a process of its own, with a time limit. What refuses is kept with the sentence that its library gives.
``EXTRAS`` are no requirements of the series: 'make formats' puts them into a folder apart.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from helpers.memory import tensor_bytes  # noqa: E402
from helpers.sizes import block_linears  # noqa: E402
from series.artifacts import disk_bytes  # noqa: E402
from series.machine import device_name  # noqa: E402
from series.models import TINY  # noqa: E402
from series.quality import distance, examine, right_answers  # noqa: E402
from series.quirks.gptqmodel import ENVIRONMENT as MAKING  # noqa: E402
from series.quirks.torch import multiply_in_32_bits  # noqa: E402
from series.runtimes import Transformers, runtime_of  # noqa: E402
from series.texts import calibration_texts, exam_prompts, exam_questions, held_out_windows  # noqa: E402

EXTRAS = ("hqq==0.2.8.post1", "auto-round==0.16.1", "termcolor==3.2.0", "py-cpuinfo==9.0.0")
LIMIT = 300  # seconds for a method
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16


def load(folder: str | pathlib.Path, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPE, device_map="auto" if DEVICE == "cuda" else "cpu", **settings
    )


# Each of these takes an empty folder, and returns the model as it was made, and a function that loads it back from what
# it has saved there, or None where the method has no file.
Made = tuple[Any, Callable[[], Any] | None]


def by_config(make: Callable[[], Any]) -> Callable[[pathlib.Path], Made]:
    """A method that is a configuration for ``from_pretrained``."""

    def method(folder: pathlib.Path) -> Made:
        model = load(TINY, quantization_config=make())

        def reload() -> Any:
            model.save_pretrained(folder)
            return load(folder)

        return model, reload

    return method


def torchao(name: str, module: str = "torchao.quantization", **settings: Any) -> Callable[[pathlib.Path], Made]:
    def method(folder: pathlib.Path) -> Made:
        from torchao.quantization import quantize_
        from transformers import TorchAoConfig

        config = getattr(importlib.import_module(module), name)(**settings)
        try:
            return by_config(lambda: TorchAoConfig(config))(folder)
        except RuntimeError:  # transformers hides torchao's own sentence
            quantize_(load(TINY).model.layers, config)
            raise

    return method


def transformers_config(name: str, **settings: Any) -> Callable[[pathlib.Path], Made]:
    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**settings)

    return by_config(make)


def mxfp4(folder: pathlib.Path) -> Made:
    """Weights and activations in MXFP4, computed in 16 bits: what the format loses, not how fast it is."""
    from torchao.prototype.mx_formats import MXDynamicActivationMXWeightConfig
    from torchao.quantization.quantize_.common import KernelPreference
    from transformers import TorchAoConfig

    four = torch.float4_e2m1fn_x2
    config = MXDynamicActivationMXWeightConfig(
        activation_dtype=four, weight_dtype=four, kernel_preference=KernelPreference.EMULATED
    )
    return by_config(lambda: TorchAoConfig(config))(folder)


def mxfp4_weights(folder: pathlib.Path) -> Made:
    """The weights alone in MXFP4, rounded by torchao's own tensor; the activations keep 16 bits. It has no file."""
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    model = load(TINY)
    with torch.no_grad():
        for name in block_linears(model.config):
            weight = model.get_submodule(name).weight
            weight.copy_(MXTensor.to_mx(weight.detach(), torch.float4_e2m1fn_x2, 32).dequantize(weight.dtype))
    return model, None


def hqq(folder: pathlib.Path) -> Made:
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    model = load(TINY)
    AutoHQQHFModel.quantize_model(model, BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=DTYPE, device=DEVICE)

    def reload() -> Any:
        AutoHQQHFModel.save_quantized(model, str(folder))
        return AutoHQQHFModel.from_quantized(str(folder), compute_dtype=DTYPE, device=DEVICE)

    return model, reload


def autoround(scheme: str, form: str, iters: int) -> Callable[[pathlib.Path], Made]:
    def method(folder: pathlib.Path) -> Made:
        from auto_round import AutoRound
        from transformers import AutoTokenizer

        tokenizer, texts = AutoTokenizer.from_pretrained(TINY), calibration_texts(64)
        maker = AutoRound(
            load(TINY), tokenizer, scheme=scheme, iters=iters, nsamples=64, seqlen=128, dataset=texts, device_map=DEVICE
        )
        maker.quantize_and_save(str(folder), format=form)
        files = list(folder.rglob("*.gguf"))
        if files:
            import llama_cpp

            opened = functools.partial(llama_cpp.Llama, str(files[0]), n_ctx=512, verbose=False)
            return opened(), opened
        config = next(folder.rglob("config.json")).parent
        return load(config), lambda: load(config)

    return method


def gptqmodel_gguf(folder: pathlib.Path) -> Made:
    from gptqmodel import GPTQModel
    from gptqmodel.quantization.config import GGUFConfig

    model = GPTQModel.load(str(TINY), GGUFConfig(format="q4_k_m"), device=DEVICE)
    model.quantize(calibration_texts(8), batch_size=1)
    model.save(str(folder))
    return load(folder), lambda: load(folder)


def compressed(scheme: str) -> Callable[[pathlib.Path], Made]:
    """compressed-tensors' own preset, each weight rounded to nearest."""

    def method(folder: pathlib.Path) -> Made:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
        from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        model = load(TINY).to("cpu")
        found = QuantizationConfig(
            config_groups={"group_0": preset_name_to_scheme(scheme, ["Linear"])},
            ignore=["lm_head"],
            quantization_status=QuantizationStatus.INITIALIZED,
        )
        apply_quantization_config(model, found)
        for module in model.modules():
            if (rule := getattr(module, "quantization_scheme", None)) is None:
                continue
            weight, args = module.weight.detach().float(), rule.weights
            parts = weight.reshape(len(weight), -1, args.group_size) if args.group_size else weight[:, None]
            low, high, whole = parts.amin(-1), parts.amax(-1), None
            if hasattr(module, "weight_global_scale"):
                whole = generate_gparam(weight.min(), weight.max())
                module.weight_global_scale.data.copy_(whole)
            scale, zero = calculate_qparams(low, high, args, whole)
            module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
            module.quantization_status = QuantizationStatus.FROZEN
        packer = ModelCompressor.from_pretrained_model(model)
        packer.compress_model(model)
        model.save_pretrained(folder)
        packer.update_config(str(folder))
        return load(folder), lambda: load(folder)

    return method


MX = "torchao.prototype.mx_formats"
METHODS: dict[str, tuple[str, Callable[[pathlib.Path], Made]]] = {
    "16 bits": ("transformers", lambda folder: (load(TINY), None)),
    "LLM.int8()": ("bitsandbytes", transformers_config("BitsAndBytesConfig", load_in_8bit=True)),
    "INT8 weights": ("torchao", torchao("Int8WeightOnlyConfig")),
    "INT8 weights and activations": ("torchao", torchao("Int8DynamicActivationInt8WeightConfig")),
    "FP8 weights": ("torchao", torchao("Float8WeightOnlyConfig")),
    "FP8 weights and activations": ("torchao", torchao("Float8DynamicActivationFloat8WeightConfig")),
    "FP8 in blocks of 128 x 128": ("transformers", transformers_config("FineGrainedFP8Config")),
    "INT4 weights": ("torchao", torchao("Int4WeightOnlyConfig", group_size=128)),
    "INT4 weights, kept as INT8": ("torchao", torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4)),
    "NVFP4 weights": ("torchao", torchao("NVFP4WeightOnlyConfig", MX)),
    "NVFP4 weights and activations": ("torchao", torchao("NVFP4DynamicActivationNVFP4WeightConfig", MX)),
    "MXFP4 weights, emulated": ("torchao", mxfp4_weights),
    "MXFP4 weights and activations, emulated": ("torchao", mxfp4),
    "MXFP4 (gpt-oss)": ("transformers", transformers_config("Mxfp4Config")),
    "HQQ, 4 bits, groups of 64": ("hqq", hqq),
    "HQQ by transformers": ("transformers", transformers_config("HqqConfig", nbits=4, group_size=64)),
    "AutoRound W4A16": ("auto-round", autoround("W4A16", "auto_round", 50)),
    "AutoRound, GGUF Q4_K_M": ("auto-round", autoround("gguf:q4_k_m", "gguf:q4_k_m", 0)),
    "GGUF by gptqmodel": ("gptqmodel", gptqmodel_gguf),
    "W4A16, compressed-tensors": ("compressed-tensors", compressed("W4A16")),
    "FP8 dynamic, compressed-tensors": ("compressed-tensors", compressed("FP8_DYNAMIC")),
    "NVFP4 weights, compressed-tensors": ("compressed-tensors", compressed("NVFP4A16")),
}


def one_sentence(error: BaseException) -> str:
    """The library's own words: the last line that says something, without this machine's paths."""
    lines = [line.strip() for line in str(error).splitlines() if re.search(r"[a-z]{3}", line)] or [""]
    text = re.sub(r"/\S*/", "", lines[0] if len(lines[0]) > 20 else " ".join(lines[:2]))
    return f"{type(error).__name__}: {text}"[:200]


def measure(name: str, scratch: pathlib.Path) -> None:
    """Make, save, load back and score one method; prints what is known after each step as a line of JSON."""
    from transformers import AutoConfig, AutoTokenizer

    library, method = METHODS[name]
    if not _has(library):
        return print(json.dumps({"name": name, "library": library, "said": f"not tried: {library} is not there"}))
    row: dict[str, Any] = {"name": name, "library": f"{library} {importlib.metadata.version(library)}"}
    if _has("torchao"):
        importlib.import_module("torchao.quantization")  # first: it keeps torch's functions by what they are
    multiply_in_32_bits()
    tokenizer, linears = AutoTokenizer.from_pretrained(TINY), block_linears(AutoConfig.from_pretrained(TINY))
    folder, begun = scratch / re.sub(r"\W+", "-", name), time.perf_counter()
    folder.mkdir()
    try:
        model, reload = method(folder)
        row["reload"] = "-"
        if reload:
            try:
                model, row["reload"] = reload(), "yes"
            except Exception as error:
                row["reload"] = f"no: {one_sentence(error)}"
        row["seconds"] = round(time.perf_counter() - begun, 1)
        files = [*folder.rglob("*.safetensors"), *folder.rglob("*.gguf"), *folder.rglob("*.pt")]
        row["disk_bytes"] = disk_bytes(TINY) if name == "16 bits" else sum(map(disk_bytes, files))
        runtime = runtime_of(model, tokenizer, linears)
        row["memory_bytes"] = tensor_bytes(model) if isinstance(runtime, Transformers) else runtime.memory_bytes()
        windows, questions = held_out_windows(tokenizer), exam_questions()
        scores = [rows[:255] for rows in runtime.scores(windows)]
        if name == "16 bits":
            np.save(scratch / "reference.npy", np.array(scores))
        row |= distance(scores, np.load(scratch / "reference.npy"))
        said = examine(runtime, tokenizer, questions, exam_prompts(tokenizer, questions))
        row["right_answers"] = right_answers(questions, said)
        row["said"] = f"yes, {row['right_answers']:.1%} right"
    except Exception as error:
        row["said"] = ("made, and did not run: " if "disk_bytes" in row else "no: ") + one_sentence(error)
    print(json.dumps(row), flush=True)


def _has(package: str) -> bool:
    return bool([*importlib.metadata.distributions(name=package)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help="all, when none is given")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "benchmarks" / f"formats-{DEVICE}.json")
    parser.add_argument("--add", action="store_true", help="keep the file's other methods")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return measure(given.child[0], pathlib.Path(given.child[1]))
    if wrong := set(given.methods) - set(METHODS):
        parser.error(f"there is no method {', '.join(wrong)}; there are: {', '.join(METHODS)}")
    rows = {row["name"]: row for row in json.loads(given.out.read_text())["rows"]} if given.add else {}
    with tempfile.TemporaryDirectory() as scratch:
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        env |= {variable: value for variable, (value, _) in MAKING.items()}
        for name in dict.fromkeys(["16 bits", *(given.methods or METHODS)]):
            command = [sys.executable, __file__, "--child", name, scratch]
            try:
                done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=LIMIT)
                found = [line for line in done.stdout.splitlines() if line.startswith('{"name"')]
                if found:
                    rows[name] = json.loads(found[-1])
                else:
                    last = re.sub(r"/[^ ]*/", "", (done.stderr.strip().splitlines() or [""])[-1])[:150]
                    said = f"no: the process ended with {done.returncode}: {last}"
                    rows[name] = {"name": name, "library": METHODS[name][0], "said": said}
            except subprocess.TimeoutExpired:
                rows[name] = {"name": name, "library": METHODS[name][0], "said": f"not within {LIMIT} s"}
            print(f"{name}: {rows[name]['said']}", flush=True)
            result = {
                "made_by": "scripts/formats.py",
                "date": time.strftime("%Y-%m-%d"),
                "device": device_name(),
                "torch": torch.__version__,
                "transformers": importlib.metadata.version("transformers"),
                "rows": [rows[each] for each in METHODS if each in rows],
            }
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
