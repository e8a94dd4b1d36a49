"""What the hardware decides, on recorded machines: types, kernels, layers to offload, and the text of the preflight.

``python tests/test_machine.py`` writes tests/preflight.txt, which the test holds against.
"""

import contextlib
import functools
import io
import json
import pathlib
import resource
import sys

import psutil
import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.cards import CARDS  # noqa: E402
from helpers.sizes import cache_bytes, weight_bytes  # noqa: E402
from series import colab, fit  # noqa: E402
from series.machine import OVERHEAD, OVERHEAD_VLLM_CPU, Gpu, Machine, memory, this_machine  # noqa: E402
from series.models import Checkpoint  # noqa: E402
from series.quirks.torch import no_gpu_is_none  # noqa: E402
from series.techniques import offers  # noqa: E402

FACTS = json.loads((ROOT / "tests" / "machines.json").read_text(encoding="utf-8"))
T4, LAPTOP = "a T4, such as Colab's, with a driver for CUDA 13", "a laptop without a GPU"
preflight = functools.partial(fit.preflight, offers=offers)
GOLDEN = ROOT / "tests" / "preflight.txt"
ZEPHYR = {  # what a run of each notebook would fetch: bytes of the weights as the hub reports them
    "16-bit": ("01_baseline", Checkpoint("HuggingFaceH4/zephyr-7b-beta", "892b3d7a7b1cf10c", download=14_483_498_000)),
    "NF4": ("03_nf4", Checkpoint("HuggingFaceH4/zephyr-7b-beta", "892b3d7a7b1cf10c", download=14_483_498_000)),
    "GPTQ": ("04_gptq", Checkpoint("TheBloke/zephyr-7B-beta-GPTQ", "0123456789abcdef", download=4_160_000_000)),
    "Q4_K_M": ("05_gguf", Checkpoint("TheBloke/zephyr-7B-beta-GGUF", "e4714d14e9652aa9", download=4_368_000_000)),
    "AWQ": ("06_awq", Checkpoint("TheBloke/zephyr-7B-beta-AWQ", "0123456789abcdef", download=4_150_000_000)),
}


def machine(name: str, **changed: int) -> Machine:
    gpus = tuple(Gpu(**gpu | {"capability": tuple(gpu["capability"])}) for gpu in FACTS[name]["gpus"])
    return Machine(**FACTS[name] | {"gpus": gpus} | changed)


def with_cards(*cards: Gpu, free: int = 9 * 10**9) -> Machine:
    return Machine(4, "AVX2", 16 * 10**9, free, 10**11, cards)


def mistral(**settings):
    from transformers import MistralConfig

    return MistralConfig(**settings)  # whose defaults are Zephyr's shape


def preflight_text() -> str:
    """What a reader with MODEL = "zephyr" sees on each machine, notebook by notebook."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        for name in list(FACTS)[1:]:
            this = machine(name)
            print(f"=== {name}\n{this}")
            for kind, (notebook, checkpoint) in ZEPHYR.items():
                print(f"\n--- {notebook}")
                where = {"16-bit": "spread", "Q4_K_M": "memory"}.get(kind, "gpu")
                overhead = OVERHEAD_VLLM_CPU if kind == "AWQ" and not this.gpu else OVERHEAD
                try:
                    preflight(this, mistral(), kind, checkpoint, where=where, overhead=overhead)
                except MemoryError as error:
                    print(f"MemoryError: {error}")
            print()
    return out.getvalue()


def test_the_preflight_of_each_machine_reads_as_committed():
    assert preflight_text() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "dtype", "int4"),
    [(T4, "float16", True), ("a machine with an L4", "bfloat16", True), (LAPTOP, "bfloat16", False)],
)
def test_hardware_decides_the_type_and_the_kernel(name, dtype, int4):
    this = machine(name)
    assert this.dtype == dtype and this.why_dtype.startswith(dtype) and this.has_int4_kernel is int4
    assert ("Marlin" in this.kernel("AWQ")) == ("is compiled" in this.kernel("GPTQ")) == bool(this.gpus)


def test_vllms_share_is_of_what_is_free_on_the_fullest_card():
    one, other = Gpu("one", (8, 0), 16 * 10**9, 16 * 10**9), Gpu("other", (8, 0), 16 * 10**9, 2 * 10**9)
    pair, t4 = with_cards(one, other), machine(T4)
    assert pair.vllm_share() == 0.85 and pair.vllm_share(gpus=2) * other.total < other.free
    assert fit.fit_on(pair, mistral(), "AWQ", gpus=2).free == other.free
    assert t4.vllm_share() == pytest.approx(0.85 * t4.gpu.free / t4.gpu.total, abs=1e-3)  # rounded to three places


def test_layers_that_do_not_fit_stay_off_the_gpu():
    config, small = mistral(), with_cards(Gpu("a small card", (7, 5), 4 * 10**9, int(3.6e9)))
    for this, supported, layers in [(T4, True, -1), (T4, False, 0), (LAPTOP, True, 0)]:
        assert machine(this).gpu_layers(config, "Q4_K_M", 512, supported)[0] == layers
    count, reason = small.gpu_layers(config, "Q4_K_M", 512, supported=True)
    block = (weight_bytes(config, "Q4_K_M") + cache_bytes(config, 512)) / 32
    assert count * block <= small.gpu.free - OVERHEAD < (count + 1) * block and str(count) in reason


def test_a_model_is_spread_over_the_gpus_and_then_the_memory():
    config, cards, t4 = mistral(), machine("two RTX 3060"), machine(T4)
    both, beyond = (fit.fit_on(this, config, "16-bit", where="spread") for this in (cards, t4))
    assert both.fits and "in memory" not in both.place and both.overhead == 2 * OVERHEAD
    assert beyond.fits and "in memory" in beyond.place and beyond.free == t4.gpu.free + t4.free
    one, cut = (fit.fit_on(cards, config, "16-bit", gpus=count) for count in (1, 2))
    assert cut.fits and not one.fits and cut.weights == pytest.approx(one.weights / 2, abs=1)  # bytes are whole


def test_what_does_not_fit_is_told_and_what_would(capsys):
    card = Gpu("NVIDIA GeForce RTX 3060", (8, 6), CARDS["RTX 3060"].memory, CARDS["RTX 3060"].memory)
    this = with_cards(card, free=3 * 10**9)
    with pytest.raises(MemoryError, match="In 16-bit this model needs 15.6 GB, and 12.9 GB are free.*03_nf4") as caught:
        preflight(this, mistral(), "16-bit")
    assert "Q2_K" not in str(caught.value), "llama.cpp would run in 3 GB of memory"
    assert preflight(this, mistral(), "NF4").fits and "does NOT fit" in capsys.readouterr().out
    with pytest.raises(MemoryError, match="No format of this series would fit"):
        preflight(with_cards(free=2 * 10**9), mistral(), "Q4_K_M")
    with pytest.raises(MemoryError, match="In 16-bit this model needs 15.6 GB"):
        preflight(machine(LAPTOP), mistral(), "GPTQ", make="READY has one")
    with pytest.raises(OSError, match="download of 14.5 GB, and 1.0 GB of disk are free"):
        preflight(machine("an H100", disk=10**9), mistral(), "NF4", ZEPHYR["NF4"][1])
    preflight(machine("an H100"), mistral(), "GPTQ", make="READY has one")
    assert "to make it, the 16-bit model must fit as well" in capsys.readouterr().out


def test_the_servers_of_09_must_fit_at_once():
    """Zephyr in 16 bits takes 15.6 GB of the two fifths of a card, or of 29 GB of memory in all."""
    fit.require_room_to_serve(machine("an H100"), mistral(), 512, 0.4)
    with pytest.raises(MemoryError, match="are in GPU_MEMORY = 0.9 of"):
        fit.require_room_to_serve(machine(T4), mistral(), 512, 0.9)
    with pytest.raises(MemoryError, match="serves the model in 16 bits as well.*06_awq.ipynb runs AWQ alone"):
        fit.require_room_to_serve(with_cards(free=28 * 10**9), mistral(), 512, 0.4)
    fit.require_room_to_serve(with_cards(free=31 * 10**9), mistral(), 512, 0.4)
    sizes = {"awq": 4 * 10**9, "gguf": 4 * 10**9}
    fit.require_room_to_serve(machine(T4), mistral(), 512, 0.4, sizes, whole=False)
    with pytest.raises(MemoryError, match="serves AWQ and GGUF. That needs"):
        fit.require_room_to_serve(with_cards(free=9 * 10**9), mistral(), 512, 0.4, sizes, whole=False)


def test_the_group_size_divides_every_width():
    def group(width, inner, wanted):
        shape = dict(num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, vocab_size=64)
        return fit.fitting_group(mistral(hidden_size=width, intermediate_size=inner, **shape), wanted)

    assert [group(256, 512, 128), group(192, 512, 128), group(256, 480, 64), group(256, 512, 32)] == [128, 64, 32, 32]
    with pytest.raises(ValueError, match=r"Groups of 32 weights do not divide .*\[104, 200\]"):
        group(104, 200, 128)


def test_this_machine_is_read():
    import torch

    here = this_machine()
    assert 0 < here.free <= here.total and here.cores >= 1 and here.disk > 0
    assert bool(here.gpus) == torch.cuda.is_available() and here.width == torch.backends.cpu.get_cpu_capability()


GB = 10**9
ANY = 2**63 - 4096  # how version 1 says that there is no limit
GROUPS = {  # the process' own file; of each group its limit, its use, and what of that are files; gigabytes free
    "version 1, in a container": (
        "4:memory:/docker/abc\n0::/\n",
        {"memory/": ("limit_in_bytes", 3 * GB, 2 * GB, GB)},
        2,
    ),
    "version 1, nested": (
        "4:cpu,memory:/a/b\n",
        {"memory/a/b/": ("limit_in_bytes", ANY, GB, 0), "memory/a/": ("limit_in_bytes", 3 * GB, 2 * GB, 0)},
        1,
    ),
    "version 2": ("0::/user/one\n", {"user/one/": ("max", 4 * GB, 2 * GB, GB)}, 3),
    "version 2, above": ("0::/user/one\n", {"user/one/": ("max", "max", GB, 0), "user/": ("max", 2 * GB, GB, 0)}, 1),
    "no limit": ("0::/\n", {"": ("max", "max", GB, 0)}, None),
    "no groups": ("", {}, None),
}


@pytest.mark.parametrize("name", GROUPS)
def test_memory_is_what_the_control_groups_allow(name, tmp_path, monkeypatch):
    own, groups, gigabytes = GROUPS[name]
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cgroup").write_text(own)
    for place, (kind, limit, used, files) in groups.items():
        group = tmp_path / "groups" / place
        group.mkdir(parents=True, exist_ok=True)
        (group / f"memory.{kind}").write_text(f"{limit}\n")
        (group / ("memory.current" if kind == "max" else "memory.usage_in_bytes")).write_text(f"{used}\n")
        stat = "inactive_file" if kind == "max" else "total_inactive_file"
        (group / "memory.stat").write_text(f"anon 5\n{stat} {files}\n")
    monkeypatch.setattr("series.machine.PROC", tmp_path / "proc")
    monkeypatch.setattr("series.machine.CGROUPS", tmp_path / "groups")
    total, free = memory()
    if gigabytes is None:
        assert free == pytest.approx(psutil.virtual_memory().available, rel=0.5) and free < total
    else:
        assert free == gigabytes * GB < total


def test_memory_is_what_a_limit_of_the_process_allows(monkeypatch):
    """As 'ulimit -v' sets it."""
    limits = {resource.RLIMIT_AS: (psutil.Process().memory_info().vms + 7 * 10**8, -1)}
    monkeypatch.setattr("resource.getrlimit", lambda kind: limits.get(kind, (resource.RLIM_INFINITY, -1)))
    assert 5e8 < memory()[1] <= 7 * 10**8


def test_32_bits_are_counted_as_32():
    machine = with_cards(free=20 * 10**9)
    half, whole = (fit.fit_on(machine, mistral(), "16-bit", whole=size) for size in (2, 4))
    assert whole.weights == 2 * half.weights and whole.cache == 2 * half.cache and half.fits and not whole.fits
    assert str(whole).startswith("32-bit: 29.0 GB of weights")


# What the drivers of Colab's and other cards report, and which builds follow; what ran of them, the README says.
DRIVERS = [
    (None, "cpu", "no NVIDIA GPU", "cpu"),
    ((11, 8), "cpu", "need 12 or 13", "cu118"),  # an old card
    ((12, 0), "cuda12", "own build for CUDA 12", "cu121"),
    ((12, 4), "cuda12", "supports CUDA 12.4", "cu124"),  # an A100 at a cloud provider
    ((12, 8), "cuda12", "supports CUDA 12.8", "cu125"),  # Colab: T4, L4, A100
    ((13, 0), "cuda", "CUDA 13.0", "cu130"),  # an H100
    ((13, 1), "cuda", "CUDA 13.1", "cu130"),
]


@pytest.mark.parametrize(("driver", "vllm", "why", "llama"), DRIVERS)
def test_what_is_installed_follows_the_driver(driver, vllm, why, llama):
    assert (found := colab.vllm_build(driver))[0] == vllm and why in found[1]
    assert colab.llama_build(driver) == llama


@pytest.mark.parametrize("known", [True, False])
def test_a_processor_without_bfloat16_multiplies_in_32_bits(monkeypatch, known):
    """The products are exact and added up in 32 bits, and rounded once; with the instructions nothing is touched."""
    import types

    import torch

    from series.quirks.torch import multiply_in_32_bits

    kept = {"linear": torch.nn.functional, "matmul": torch}
    plain = {name: getattr(getattr(module, name), "plain", getattr(module, name)) for name, module in kept.items()}
    for name, module in kept.items():
        monkeypatch.setattr(module, name, plain[name])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: known))
    assert multiply_in_32_bits() is not known and multiply_in_32_bits() is not known, "also a second time"
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(64, 32, dtype=torch.bfloat16), torch.randn(5, 64, dtype=torch.bfloat16)
    wanted = (x.double() @ layer.weight.double().T + layer.bias.double()).bfloat16()
    assert (torch.nn.functional.linear is plain["linear"]) == (torch.matmul is plain["matmul"]) == known
    if not known:  # of 160 numbers a few lie so close to a midpoint that the last bit of 32 decides
        assert (layer(x) == wanted).double().mean() > 0.98
        product = (x.double() @ layer.weight.double().T).bfloat16()
        assert (torch.matmul(x, layer.weight.T) == product).double().mean() > 0.98
    whole = x.float(), layer.weight.float()
    assert torch.equal(torch.nn.functional.linear(*whole), plain["linear"](*whole))


def test_a_torch_for_cuda_without_a_gpu_has_no_accelerator(monkeypatch):
    """gptqmodel asks torch, which answers by its build unless it is told to look."""

    def by_build(check_available=False):  # torch's own looks by asking itself: a wrapper would never end
        return torch.accelerator.current_accelerator() if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", by_build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert no_gpu_is_none() and torch.accelerator.current_accelerator() is None
    assert not no_gpu_is_none(), "the second time there is nothing to tell"
    monkeypatch.setattr(torch.accelerator, "current_accelerator", by_build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not no_gpu_is_none() and torch.accelerator.current_accelerator() == torch.device("cuda")


if __name__ == "__main__":
    GOLDEN.write_text(preflight_text(), encoding="utf-8")
