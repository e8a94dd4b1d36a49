"""Sentinels: each fails when a library has lost the quirk that ``series/quirks`` goes around. Then delete both."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pathlib
import subprocess
import sys
import tempfile

import gguf
import pytest
import torch

from architectures import make_model
from series.converter import llama_cpp_converter
from series.quirks import gptqmodel, vllm

GONE = "the quirk is gone: delete what goes around it in series/quirks, and this test"


def source(package: str, file: str) -> str:
    """A file of an installed package, which is not imported for it."""
    place = importlib.util.find_spec(package).submodule_search_locations[0]
    return (pathlib.Path(place) / file).read_text(encoding="utf-8")


FRESH = """
import torch
from accelerate.utils.tqdm import tqdm

for kind in (torch.float32, torch.bfloat16):
    a = torch.ones(64, 64, dtype=kind)
    print("kind", kind, flush=True)
    torch.nn.functional.linear(a, a)
print("the bar is off:", tqdm(range(2)).disable)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> str:
    """What a program prints that knows nothing of this series, with the reports of torch's two libraries."""
    env = os.environ | {"MKL_VERBOSE": "1", "ONEDNN_VERBOSE": "1", "TQDM_DISABLE": "1"}
    folder = tmp_path_factory.mktemp("fresh")
    done = subprocess.run([sys.executable, "-c", FRESH], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_multiplies_bfloat16_with_neither_of_its_two_libraries_here(fresh):
    """On a processor without the instructions; both libraries report each product."""
    _, plain, other = fresh.partition("the bar")[0].upper().split("KIND ")
    assert "GEMM" in plain or ",MATMUL," in plain, "the reports are seen"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert "GEMM" not in other and ",MATMUL," not in other, GONE


def test_accelerates_bar_does_not_ask_for_tqdms_variable(fresh):
    assert "the bar is off: False" in fresh, GONE


def test_a_model_whose_experts_bitsandbytes_has_rounded_cannot_be_saved(tmp_path):
    """12 says so, with the library's words."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    folder = make_model("mixtral", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits)
    for part in list(model.modules()):
        for name in [name for name, weight in part.named_parameters(recurse=False) if weight.dim() == 3]:
            replace_parameter_4bit(part, name)
    with pytest.raises(ValueError, match="Undefined Operation encountered"):
        model.save_pretrained(tmp_path / "saved")


def test_torch_names_an_accelerator_unless_it_is_told_to_look():
    asked = inspect.signature(torch.accelerator.current_accelerator).parameters["check_available"]
    assert asked.default is False and "= current_accelerator()" in source("gptqmodel", "utils/importer.py"), GONE


def test_gptqmodel_writes_where_it_is_started_times_the_disk_and_prints():
    processor, looper, writer = (source("gptqmodel", f"{name.replace('.', '/')}.py") for name in gptqmodel.PARTS)
    assert '_PROJECT_LOG_DIR = Path("logs")' in processor and "if _IO_WRITE_SPEED_MB is not None" in looper, GONE
    assert "    print(" in writer and "GPTQMODEL_CPU_WORKERS" in source("gptqmodel", "__init__.py"), GONE


def test_gptqmodel_takes_marlin_for_a_t4_whose_code_is_not_for_it():
    folder = pathlib.Path(importlib.util.find_spec("gptqmodel").origin).parents[1] / "gptqmodel_ext" / "marlin"
    body = (folder / "dequant.h").read_text(encoding="utf-8").partition("__CUDA_ARCH__ >= 800")[2]
    assert "void dequant(" in body and body.rstrip().partition("#endif")[2].count("void dequant(") == 0, GONE
    assert "_MARLIN_MIN_CAPABILITY = _MARLIN_SM75_CAPABILITY" in source("gptqmodel", "nn_modules/qlinear/marlin.py"), (
        GONE
    )


@pytest.mark.parametrize("gpu, pack, ours", [(True, False, True), (False, False, False), (True, True, False)])
def test_on_a_gpu_gptqmodels_kernel_needs_no_compiler(gpu, pack, ours, monkeypatch):
    """Where a GPU is, the choice that gptqmodel would have is made for it; elsewhere it is its own."""
    from optimum.gptq import quantizer

    asked = []
    monkeypatch.setattr(quantizer, "hf_select_quant_linear_v2", lambda **given: asked.append(given))
    gptqmodel.nothing_to_compile()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for backend in ("auto", "gptq_marlin"):
        quantizer.hf_select_quant_linear_v2(bits=4, backend=backend, pack=pack)
    assert [given["backend"] for given in asked] == ["gptq_torch" if ours else "auto", "gptq_marlin"]


def test_vllm_does_by_default_what_the_series_does_not_want(monkeypatch):
    from vllm import envs

    for name in vllm.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert envs.VLLM_CPU_INT4_W4A8 and not envs.VLLM_NO_USAGE_STATS and not envs.VLLM_CPU_KVCACHE_SPACE, GONE
    assert envs.VLLM_LOGGING_LEVEL == "INFO" and envs.VLLM_WORKER_MULTIPROC_METHOD == "fork", GONE
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)
    assert tempfile.gettempdir() == envs.VLLM_RPC_BASE_PATH, "its sockets lie among the temporary files"


def test_vllm_takes_brackets_in_a_path_for_a_pattern():
    assert "glob.glob(os.path.join(hf_folder" in source("vllm", "model_executor/model_loader/default_loader.py"), GONE


def test_llama_cpps_converter_does_not_write_the_window_of_a_mistral(tmp_path):
    folder, file = make_model("mistral", tmp_path / "model", sliding_window=64), tmp_path / "model.gguf"
    command = [sys.executable, str(llama_cpp_converter()), str(folder), "--outfile", str(file)]
    subprocess.run(command, check=True, capture_output=True)
    fields = gguf.GGUFReader(file).fields
    assert "llama.context_length" in fields and not [name for name in fields if "sliding_window" in name], GONE
