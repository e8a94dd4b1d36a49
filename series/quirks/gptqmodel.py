"""gptqmodel, which makes the checkpoints of 04 and 06: its workers, its files, its remarks, its kernels."""

from __future__ import annotations

import importlib
import pathlib
from typing import Any

from series.quirks.torch import no_gpu_is_none

# Where the reason is empty, nothing is printed: OMP_WAIT_POLICY, since its threads and libgomp's wait for each other on
# few cores; THP_MEM_ALLOC_ENABLE, large pages of memory, with which AWQ's search takes half the time on a processor.
ENVIRONMENT = {
    "GPTQMODEL_CPU_WORKERS": ("2", "gptqmodel asks for two workers, also on two cores"),
    "OMP_WAIT_POLICY": ("PASSIVE", ""),
    "THP_MEM_ALLOC_ENABLE": ("1", ""),
}
PARTS = ("looper.loop_processor", "looper.module_looper", "models.writer")


def imported(folder: pathlib.Path) -> None:
    """Once it is imported: its logs go into ``folder``, and it says nothing."""
    if no_gpu_is_none():
        print("this torch was built for CUDA, and there is no GPU: gptqmodel is told so")
    parts: dict[str, Any] = {n: importlib.import_module(f"gptqmodel.{n}") for n in PARTS}
    processor, looper, writer = parts.values()
    processor._PROJECT_LOG_DIR = folder / "logs"  # it would be in the working directory
    # no trial of the disk's speed: on a slow or a small one its remark is logged as an error
    looper._IO_WRITE_SPEED_MB = float("inf")
    writer.print = lambda *words: None  # all it has written
    importlib.import_module("logbar").LogBar.shared().setLevel("ERROR")


def nothing_to_compile() -> None:
    """On a GPU, take the kernel in PyTorch where optimum would let gptqmodel choose.

    Its choice, Marlin, is compiled when a model is first loaded: minutes, with CUDA's compiler. For a T4 the code of
    7.6.0 does not compile: ``marlin_template.h`` calls what ``dequant.h`` holds from compute capability 8.0 alone.
    """
    import torch
    from optimum.gptq import quantizer

    plain = quantizer.hf_select_quant_linear_v2

    def select(backend: Any, pack: bool = False, **more: Any) -> Any:
        ours = torch.cuda.is_available() and backend == "auto" and not pack
        return plain(backend="gptq_torch" if ours else backend, pack=pack, **more)

    quantizer.hf_select_quant_linear_v2 = select
