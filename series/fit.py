"""Will it fit? A model's bytes held against what a machine has free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from helpers.architecture import model_weights
from helpers.cards import USABLE
from helpers.sizes import IN_SAFETENSORS, cache_bytes, weight_bytes
from series.machine import OVERHEAD, OVERHEAD_VLLM_CPU, Machine, gb
from series.models import Checkpoint

GROUP_SIZES = (128, 64, 32)
MADE_HERE: dict[str, int] = {}  # no checkpoint is ready-made


def fitting_group(config: Any, wanted: int) -> int:
    """The largest group size, at most ``wanted``, that divides the inputs of every linear layer.

    Raises:
        ValueError: none of ``GROUP_SIZES`` divides.
    """
    widths = sorted({w.inputs for w in model_weights(config) if w.linear})
    for size in GROUP_SIZES:
        if size <= wanted and not any(width % size for width in widths):
            return size
    raise ValueError(
        f"Groups of 32 weights do not divide this model's widths {widths}, and its kernels take no smaller ones. "
        "05_gguf.ipynb has no such limit."
    )


def users_that_fit(config: Any, kind: str, total: int, context: int) -> int:
    """How many conversations of ``context`` tokens a card of ``total`` bytes holds beside the weights, or 0."""
    room = USABLE * total - weight_bytes(config, kind) - OVERHEAD
    return max(0, int(room // cache_bytes(config, context, runtime="llama.cpp")))  # which forgets least


@dataclass(frozen=True)
class Fit:
    """The bytes that a model needs, and those that are free; ``place`` says where."""

    kind: str
    weights: int
    cache: int
    overhead: int
    free: int
    place: str
    whole: int = 2  # bytes of a weight that is not quantized
    gpus: int = 1

    @property
    def name(self) -> str:
        """What the reader calls it."""
        return "32-bit" if self.kind == "16-bit" and self.whole == 4 else self.kind

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return self.weights + self.cache + self.overhead

    @property
    def fits(self) -> bool:
        """Whether as much is free."""
        return self.needed <= self.free

    def is_as(self, other: Fit) -> bool:
        """Whether this is the same format in the same place, but for what others have taken of it."""
        return self.kind == other.kind and self.gpus == other.gpus

    def __str__(self) -> str:
        parts = f"{gb(self.weights)} of weights, {gb(self.cache)} of cache, {gb(self.overhead)} for the libraries"
        answer = "it fits" if self.fits else "it does NOT fit"
        return f"{self.name}: {parts}, of the {gb(self.free)} free {self.place}: {answer}"


def fit_on(
    machine: Machine,
    config: Any,
    kind: str,
    context: int = 512,
    bits: int = 4,
    group_size: int = 128,
    overhead: int = OVERHEAD,
    where: str = "gpu",
    gpus: int = 1,
    imatrix: bool = False,
    whole: int = 2,
    size: int | None = None,
) -> Fit:
    """Whether a model fits on ``machine`` in the format ``kind``, from its configuration alone.

    Args:
        context: tokens that the cache has room for.
        overhead: bytes for the libraries and activations, on each device.
        where: 'gpu' (one, where there is one; else the memory), 'memory' (a runtime that stays on the processor), or
            'spread' (the GPUs first, then the memory, as ``device_map="auto"`` does).
        gpus: how many share every matrix, as in tensor parallelism; the bytes are then those of one.
        imatrix: of a GGUF file, whether it is made with an importance matrix.
        whole: bytes of a weight that is not quantized, and of a number in the cache: 4 in float32.
        size: bytes of the weights, where they are known: of a ready-made checkpoint.
    """
    runtime = "transformers" if kind in IN_SAFETENSORS else "llama.cpp"
    cache = cache_bytes(config, context, runtime=runtime, kind="F32" if whole == 4 else "F16")
    gpu, weights = machine.gpu, size or weight_bytes(config, kind, bits, group_size, imatrix=imatrix, whole=whole)
    if where == "memory" or gpu is None:
        free, place = machine.free, "in this machine's memory"
    elif where == "spread":
        overhead *= len(machine.gpus)
        free = sum(each.free for each in machine.gpus)
        place = f"on {gpu.name if len(machine.gpus) == 1 else f'{len(machine.gpus)} GPUs'}"
        if weights + cache + overhead > free:  # transformers keeps the rest in memory, and fetches it at each step
            free, place = free + machine.free, f"{place} and in memory, where the layers beyond the GPU wait: slow"
    else:
        free, place = gpu.free, f"on {gpu.name}"
        if gpus > 1:
            weights, cache = ceil(weights / gpus), ceil(cache / gpus)
            free, place = min(each.free for each in machine.gpus[:gpus]), f"on the fullest of {gpus} GPUs"
    return Fit(kind, weights, cache, overhead, free, place, whole, gpus)


def preflight(
    machine: Machine,
    config: Any,
    kind: str,
    *fetched: Checkpoint,
    make: str = "",
    offers: Callable[[Machine, Any], list[tuple[str, Fit]]] = lambda machine, config: [],
    **settings: Any,
) -> Fit:
    """Print what a run will download, whether the model fits and which kernel computes, before anything is fetched.

    Args:
        kind: the format to load, one of ``helpers.sizes.FORMATS``.
        fetched: the checkpoints that the run needs.
        make: the format is made here, so the 16-bit model must fit as well; what to say where it does not.
        offers: what other techniques would need, and what to say of them.
        settings: those of ``fit_on``.

    Raises:
        OSError: the download is larger than the free disk.
        MemoryError: the model does not fit; the message names the formats that would, and their notebooks.
    """
    found = fit_on(machine, config, kind, **settings)
    download = sum(checkpoint.download for checkpoint in fetched)
    for checkpoint in fetched:
        if checkpoint.revision is not None:
            size = f"{gb(checkpoint.download)} to fetch" if checkpoint.download else "already here"
            print(f"{checkpoint.source} at {checkpoint.revision[:12]}: {size}")
    print(f"{found}\nkernel: {machine.kernel(kind)}")
    if download > machine.disk:
        raise OSError(
            f"This is a download of {gb(download)}, and {gb(machine.disk)} of disk are free. "
            "Free some space, or set HF_HOME and QUANT_ARTIFACTS to folders on a larger disk."
        )
    if not found.fits:
        raise MemoryError(_advice(found, offers(machine, config)))
    if make:
        made_of = fit_on(machine, config, "16-bit", whole=settings.get("whole", 2))
        print(f"to make it, the {made_of.name} model must fit as well: {gb(made_of.needed)} of {gb(made_of.free)}")
        if not made_of.fits:
            raise MemoryError(f"{_advice(made_of, offers(machine, config))} {make}")
    return found


def require_room_to_serve(
    machine: Machine, config: Any, context: int, share: float, sizes: dict[str, int] = MADE_HERE, whole: bool = True
) -> None:
    """09's servers at once: vLLM's with AWQ and with 16 bits, each in its ``share`` of a GPU, and llama.cpp's.

    Args:
        sizes: 'awq' or 'gguf' -> bytes of the weights, where they are ready-made.
        whole: there is a server in 16 bits.

    Raises:
        MemoryError: they do not fit.
    """
    overhead = OVERHEAD if machine.gpu else OVERHEAD_VLLM_CPU
    awq = fit_on(machine, config, "AWQ", context, overhead=overhead, size=sizes.get("awq")).needed
    full = fit_on(machine, config, "16-bit", context, overhead=overhead).needed if whole else 0
    if machine.gpu:
        needed, room, place = max(awq, full), int(share * machine.gpu.total), f"in GPU_MEMORY = {share} of "
        place += machine.gpu.name
    else:
        needed = awq + full + (sizes.get("gguf") or weight_bytes(config, "Q4_K_M"))
        room, place = machine.free, "free in this machine's memory"
    if needed > room:
        also = " the model in 16 bits as well, beside" if whole else ""
        without = "READY takes one of each, and then nothing is served in 16 bits. " if whole else ""
        raise MemoryError(
            f"09_serving serves{also} AWQ and GGUF. That needs {gb(needed)}, and {gb(room)} are {place}. {without}"
            "06_awq.ipynb runs AWQ alone, and 05_gguf.ipynb GGUF; or take MODEL = 'small'."
        )


def _advice(missed: Fit, offers: list[tuple[str, Fit]]) -> str:
    would = [said for said, fit in offers if fit.fits and (missed.whole == 4 or not fit.is_as(missed))]
    advice = f"These would fit: {', '.join(would)}." if would else "No format of this series would fit."
    return (
        f"In {missed.name} this model needs {gb(missed.needed)}, and {gb(missed.free)} are free {missed.place}. "
        f"{advice} Part of a model can also wait in memory or on the disk: 02_sharding.ipynb shows how."
    )
