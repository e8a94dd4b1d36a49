"""What this machine has, and what follows from it: one place for every choice that the hardware makes."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import re
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from helpers.architecture import kept_by_layers
from helpers.files import OVERHEAD
from helpers.sizes import cache_bytes, weight_bytes
from series import installed
from series.artifacts import artifacts_folder

BFLOAT16 = (8, 0)  # the compute capability from which a GPU computes in bfloat16
MARLIN = (7, 5)  # and from which gptqmodel and vLLM have their fused 4-bit kernel (their own source says so)
HOPPER = (9, 0)  # where vLLM takes Machete before Marlin (seen on an H100)
# vLLM on a processor runs three processes, each with the libraries.
OVERHEAD_VLLM_CPU = 3_000_000_000
VLLM_SHARE = 0.85  # of a GPU's free memory: the rest is for what vLLM's estimate leaves out


@dataclass(frozen=True)
class Gpu:
    """A GPU: its compute capability, and its memory in bytes."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """The facts that decide how a model is loaded here.

    Attributes:
        cores: physical cores of the processor.
        width: its vector instructions, as torch names them: 'AVX2', 'AVX512', ...
        total, free: bytes of memory.
        disk: bytes free where downloads and artifacts go; the smaller of the two.
    """

    cores: int
    width: str
    total: int
    free: int
    disk: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def gpu(self) -> Gpu | None:
        """The first one, or None."""
        return self.gpus[0] if self.gpus else None

    @property
    def dtype(self) -> str:
        """The 16-bit type to compute in: 'float16' on a GPU that has no bfloat16, else 'bfloat16'."""
        return "float16" if self.gpu and self.gpu.capability < BFLOAT16 else "bfloat16"

    @property
    def why_dtype(self) -> str:
        """The type, and the reason, in a sentence."""
        if not self.gpu:
            return "bfloat16: the type that models are trained in; a processor without it converts on the fly"
        if self.gpu.capability < BFLOAT16:
            return "float16: a GPU below compute capability 8.0 has no bfloat16 arithmetic"
        return "bfloat16: the type that models are trained in; this GPU computes in it"

    @property
    def has_int4_kernel(self) -> bool:
        """Whether vLLM has a kernel for 4-bit weights here: on a GPU, or on a processor with AVX-512."""
        return bool(self.gpu) or self.width == "AVX512"

    def kernel(self, kind: str) -> str:
        """Which code will multiply weights of the format ``kind`` here, and why."""
        if kind == "GPTQ":
            fused = "what is fused is compiled when it is loaded" if self.gpu else "the fused ones are for GPUs"
            return f"gptqmodel's in PyTorch, which unpacks the integers first: {fused}"
        if kind == "AWQ":
            if self.gpu and self.gpu.capability >= MARLIN:
                name = "Machete or Marlin" if self.gpu.capability == HOPPER else "Marlin"
                return f"{name}, which multiplies straight from the packed integers (from compute capability 7.5)"
            if self.gpu:
                return "one that unpacks the integers first: Marlin needs compute capability 7.5"
            return "vLLM's for AVX-512" if self.has_int4_kernel else "none in vLLM: this processor has no AVX-512"
        if kind in ("INT8", "FP8", "NVFP4", "MXFP4"):
            return "torchao's, which unpacks the weights to 16 bits first"
        if kind == "NF4":
            return "bitsandbytes' own, for the " + ("GPU" if self.gpu else "processor")
        return "torch's matrix product" if kind == "16-bit" else "llama.cpp's own"

    def vllm_share(self, gpus: int = 1) -> float:
        """``gpu_memory_utilization``: vLLM's share of *all* of a GPU's memory, from what is free on the fullest."""
        return round(VLLM_SHARE * min(gpu.free / gpu.total for gpu in self.gpus[:gpus]), 3)

    def gpu_layers(self, config: Any, kind: str, context: int, supported: bool) -> tuple[int, str]:
        """How many blocks llama.cpp is to put on the GPU (-1: the whole model), and why.

        Args:
            kind: the GGUF type, such as 'Q4_K_M'.
            supported: whether this build of llama.cpp knows GPUs.
        """
        if not self.gpu:
            return 0, "no GPU is here"
        if not supported:
            return 0, "this build of llama.cpp knows no GPU; CMAKE_ARGS=-DGGML_CUDA=on compiles one that does"
        needed = weight_bytes(config, kind) + cache_bytes(config, context, runtime="llama.cpp")
        room = self.gpu.free - OVERHEAD
        if needed <= room:
            return -1, f"the whole model fits on {self.gpu.name}"
        layers = len(kept_by_layers(config))
        count = max(0, int(room / needed * layers))
        return count, f"{count} of {layers} blocks fit on {self.gpu.name}"

    def __str__(self) -> str:
        free = [f"{gb(self.free)} of {gb(self.total)} of memory free", f"{gb(self.disk)} of disk"]
        for gpu in self.gpus:
            major, minor = gpu.capability
            free.insert(0, f"{gb(gpu.free)} of {gb(gpu.total)} free on {gpu.name} (compute capability {major}.{minor})")
        return ", ".join(free)


PROC, CGROUPS = pathlib.Path("/proc/self"), pathlib.Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # control groups of version 1 say 'no limit' with a number of that kind


def memory() -> tuple[int, int]:
    """Bytes of memory in all, and those that are free for this process.

    The smallest of what the machine, the control groups that the process is in (as in a container) and its own limits
    allow: the kernel ends a process that takes more, whatever the machine has.
    """
    import psutil

    machine, this = psutil.virtual_memory(), psutil.Process().memory_info()
    total, free = [machine.total], [machine.available]
    for limit, used in _group_limits():
        total.append(limit)
        free.append(limit - used)
    for kind, used in ((resource.RLIMIT_AS, this.vms), (resource.RLIMIT_DATA, getattr(this, "data", this.rss))):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            total.append(limit)
            free.append(limit - used)
    return min(total), max(0, min(free))


def _group_limits() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group that this process is in, of version 1 and of version 2."""
    try:
        lines = (PROC / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, limit, used = CGROUPS, "memory.max", "memory.current"
        if controllers:  # version 1
            root, limit, used = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        own = root / path.strip("/")
        # In a container the path may be that of the host, which is not there: its own group is then the root.
        for group in [own, *own.parents] if own.is_dir() else [root]:
            if not group.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):  # no such file in the root; 'max'
                most = int((group / limit).read_text())
                if most < UNLIMITED:
                    yield most, int((group / used).read_text()) - _reclaimable(group)


def _reclaimable(group: pathlib.Path) -> int:
    """Bytes of files that the kernel keeps in memory for this group, and gives up when memory is needed."""
    with contextlib.suppress(OSError, ValueError):
        lines = (group / "memory.stat").read_text().splitlines()
        found = dict(line.split() for line in lines)
        return int(found.get("total_inactive_file", found.get("inactive_file", 0)))
    return 0


def this_machine() -> Machine:
    """The facts of the machine that this runs on."""
    import psutil
    import torch
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = pathlib.Path(HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    gpus = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        capability = torch.cuda.get_device_capability(index)
        gpus.append(Gpu(torch.cuda.get_device_name(index), capability, total, free))
    total, free = memory()
    return Machine(
        cores=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
        width=torch.backends.cpu.get_cpu_capability(),
        total=total,
        free=free,
        disk=min(shutil.disk_usage(place).free for place in (artifacts_folder(), cache)),
        gpus=tuple(gpus),
    )


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of Python and ``packages``, and the device they will run on."""
    versions = {"python": platform.python_version()}
    for package in map(installed.as_installed, packages):
        if not (version := installed.version(package)):
            raise ModuleNotFoundError(f"{package} is not installed. Run 'pip install -r requirements.txt'.")
        versions[package] = version
    return {**versions, "device": device_name()}


def device_name() -> str:
    """The GPU's name, or the processor's, as ``NVIDIA T4`` or ``cpu (2 cores, AVX-512, AMD EPYC 9654)``.

    Two processors of one width can round differently: the name belongs to what explains the numbers.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    width = torch.backends.cpu.get_cpu_capability()
    return f"cpu ({os.cpu_count()} cores, {width.replace('AVX512', 'AVX-512')}, {processor_name()})"


def processor_name() -> str:
    """Such as ``AMD EPYC 9654``; the architecture where the system does not say."""
    with contextlib.suppress(OSError):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            if found := re.search(r"^model name\s*:\s*(.+)$", file.read(), re.M):
                return re.sub(r"\((R|TM)\)", "", found[1]).strip()
    return platform.processor() or platform.machine()


def gb(size: float) -> str:
    """Bytes in GB (10^9), or in MB below a tenth of that."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
