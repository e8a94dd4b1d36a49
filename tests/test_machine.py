"""What the hardware decides, on recorded machines: types, kernels, layers to offload, and the text of the preflight.

``python tests/test_machine.py`` writes tests/preflight.txt, which the test holds against.
"""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers import colab, fit  # noqa: E402
from helpers.machine import Gpu, Machine, this_machine  # noqa: E402
from helpers.models import Checkpoint  # noqa: E402

FACTS = json.loads((ROOT / "tests" / "machines.json").read_text(encoding="utf-8"))
T4 = "a T4, such as Colab's, with a driver for CUDA 13"
GOLDEN = ROOT / "tests" / "preflight.txt"
ZEPHYR = {  # what a run of each notebook would fetch: bytes of the weights as the hub reports them
    "16-bit": ("01_baseline", Checkpoint("HuggingFaceH4/zephyr-7b-beta", "892b3d7a7b1cf10c", download=14_483_498_000)),
    "NF4": ("03_nf4", Checkpoint("HuggingFaceH4/zephyr-7b-beta", "892b3d7a7b1cf10c", download=14_483_498_000)),
    "GPTQ": ("04_gptq", Checkpoint("TheBloke/zephyr-7B-beta-GPTQ", "0123456789abcdef", download=4_160_000_000)),
    "Q4_K_M": ("05_gguf", Checkpoint("TheBloke/zephyr-7B-beta-GGUF", "e4714d14e9652aa9", download=4_368_000_000)),
    "AWQ": ("06_awq", Checkpoint("TheBloke/zephyr-7B-beta-AWQ", "0123456789abcdef", download=4_150_000_000)),
}  # fmt: skip


def machine(name: str) -> Machine:
    facts = FACTS[name]
    gpus = tuple(Gpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in facts["gpus"])
    return Machine(**facts | {"gpus": gpus})


def zephyr():
    from transformers import MistralConfig

    return MistralConfig()  # whose defaults are Zephyr's shape


def preflight_text() -> str:
    """What a reader with MODEL = "zephyr" sees on each machine, notebook by notebook."""
    out = io.StringIO()
    config = zephyr()
    with contextlib.redirect_stdout(out):
        for name in list(FACTS)[1:]:
            this = machine(name)
            print(f"=== {name}\n{this}")
            for kind, (notebook, checkpoint) in ZEPHYR.items():
                print(f"\n--- {notebook}")
                where = {"16-bit": "spread", "Q4_K_M": "memory"}.get(kind, "gpu")
                overhead = fit.OVERHEAD_VLLM_CPU if kind == "AWQ" and not this.gpu else fit.OVERHEAD
                try:
                    fit.preflight(this, config, kind, checkpoint, where=where, overhead=overhead)
                except MemoryError as error:
                    print(f"MemoryError: {error}")
            print()
    return out.getvalue()


def test_the_preflight_of_each_machine_reads_as_committed():
    assert preflight_text() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "dtype", "int4"),
    [(T4, "float16", True), ("a machine with an L4", "bfloat16", True),
     ("a machine with an A100", "bfloat16", True), ("a laptop without a GPU", "bfloat16", False)],
)  # fmt: skip
def test_hardware_decides_the_type_and_the_kernel(name, dtype, int4):
    this = machine(name)
    assert this.dtype == dtype and this.why_dtype.startswith(dtype) and this.has_int4_kernel is int4
    assert ("Marlin" in this.kernel("AWQ")) == bool(this.gpus)
    assert ("not 3" in this.kernel("GPTQ", bits=3)) == bool(this.gpus)


def test_vllms_share_is_of_what_is_free():
    t4 = machine(T4)
    assert t4.vllm_share() == pytest.approx(0.85 * t4.gpu.free / t4.gpu.total, abs=1e-3)
    other = Gpu("another", (8, 0), 16 * 10**9, 2 * 10**9)
    pair = Machine(2, "AVX2", 10**10, 10**10, 10**10, (Gpu("one", (8, 0), 16 * 10**9, 16 * 10**9), other))
    assert pair.vllm_share(gpus=2) * other.total < other.free, "the fuller of two cards decides"
    assert fit.fit_on(pair, zephyr(), "AWQ", gpus=2).free == other.free
    busy = Machine(2, "AVX2", 10**10, 10**10, 10**10, (Gpu("a card", (8, 0), 16 * 10**9, 4 * 10**9),))
    assert busy.vllm_share() * busy.gpu.total < busy.gpu.free


def test_layers_that_do_not_fit_stay_off_the_gpu():
    config = zephyr()
    t4 = machine(T4)
    assert t4.gpu_layers(config, "Q4_K_M", 512, supported=True)[0] == -1
    assert t4.gpu_layers(config, "Q4_K_M", 512, supported=False)[0] == 0
    small = Machine(4, "AVX2", 16 * 10**9, 9 * 10**9, 10**11, (Gpu("a small card", (7, 5), 4 * 10**9, 3.6e9),))
    count, reason = small.gpu_layers(config, "Q4_K_M", 512, supported=True)
    whole = fit.weight_bytes(config, "Q4_K_M") + fit.cache_bytes(config, 512)
    assert 0 < count < 32 and count / 32 * whole <= 2.6e9 and str(count) in reason
    assert machine("a laptop without a GPU").gpu_layers(config, "Q4_K_M", 512, supported=True)[0] == 0


def test_a_model_is_spread_over_the_gpus_and_then_the_memory():
    config = zephyr()
    assert not fit.fit_on(machine("two RTX 3060"), config, "16-bit").fits
    both = fit.fit_on(machine("two RTX 3060"), config, "16-bit", where="spread")
    assert both.fits and "in memory" not in both.place and both.overhead == 2 * fit.OVERHEAD
    t4 = fit.fit_on(machine(T4), config, "16-bit", where="spread")
    assert t4.fits  # with a little of it in memory, or none
    cut = fit.fit_on(machine("two RTX 3060"), config, "16-bit", gpus=2)
    assert cut.fits and cut.weights == pytest.approx(fit.weight_bytes(config) / 2, abs=1)


def test_a_download_larger_than_the_disk_is_refused():
    config = zephyr()
    this = machine("a machine with an L4")
    full = Machine(this.cores, this.width, this.total, this.free, 10**9, this.gpus)
    with pytest.raises(OSError, match="download of 14.5 GB, and 1.0 GB of disk are free"):
        fit.preflight(full, config, "NF4", ZEPHYR["NF4"][1])


def test_the_sixteen_bit_model_must_fit_to_make_another(capsys):
    with pytest.raises(MemoryError, match="In 16-bit this model needs 15.6 GB"):
        fit.preflight(machine("a laptop without a GPU"), zephyr(), "GPTQ", make=True)
    fit.preflight(machine("a machine with an L4"), zephyr(), "GPTQ", make=True)
    assert "to make it" in capsys.readouterr().out


def test_this_machine_is_read():
    import torch

    here = this_machine()
    assert 0 < here.free <= here.total and here.cores >= 1 and here.disk > 0
    assert bool(here.gpus) == torch.cuda.is_available()
    assert here.width == torch.backends.cpu.get_cpu_capability()


@pytest.mark.parametrize(
    ("driver", "build", "why"),
    [(None, "cpu", "no NVIDIA GPU"), ((12, 4), "cpu", "supports CUDA 12.4"), ((13, 0), "cuda", "CUDA 13.0"),
     ((13, 1), "cuda", "CUDA 13.1")],
)  # fmt: skip
def test_vllms_build_follows_the_driver(driver, build, why):
    found, reason = colab.vllm_build(driver)
    assert found == build and why in reason


if __name__ == "__main__":
    GOLDEN.write_text(preflight_text(), encoding="utf-8")
    print(f"written: {GOLDEN.relative_to(ROOT)}")
