"""vLLM: processes of its own, with their sockets, logs and caches, and the 4-bit kernel that some processors lack."""

from __future__ import annotations

import os
import pathlib
import re
import sys
import weakref
from collections.abc import Callable
from typing import Any

from helpers.sizes import weight_bytes
from series.artifacts import ROOT, SYSTEMS_TEMPORARY, artifacts_folder, writable
from series.kernel import chain

PLUGIN = ROOT / "series" / "plugin"  # a 4-bit kernel for processors without AVX-512; vLLM finds its entry point
LOG = "vllm.log"
# Where the reason is empty, nothing is printed. VLLM_CPU_KVCACHE_SPACE: the room for the cache in GiB on a processor,
# where vLLM would take a large share of the memory.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": ("ERROR", ""),
    "VLLM_NO_USAGE_STATS": ("1", ""),
    "VLLM_WORKER_MULTIPROC_METHOD": ("spawn", ""),
    "VLLM_CPU_KVCACHE_SPACE": ("1", ""),
    "VLLM_CPU_INT4_W4A8": ("0", "4-bit weights and 16-bit inputs, also on processors with AMX"),
}


def settle() -> None:
    """Before vLLM is imported: short paths for its sockets, a cache that can be written, and the series' kernel."""
    if len(SYSTEMS_TEMPORARY) > 50 and os.access("/tmp", os.W_OK):  # a socket's path has at most 107 characters
        os.environ["VLLM_RPC_BASE_PATH"] = "/tmp"
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vllm"
    if not writable(cache):  # vLLM would show a traceback, and go on
        os.environ.setdefault("VLLM_CACHE_ROOT", str(artifacts_folder() / "vllm"))
    sys.path.insert(0, str(PLUGIN))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))


def keep_remarks(folder: pathlib.Path) -> None:
    """Let the processes write into a file what they would write between a reader's outputs (the plugin does it)."""
    (folder / LOG).unlink(missing_ok=True)
    os.environ["SERIES_VLLM_LOG"] = str(folder / LOG)


def require_kernel(machine: Any, config: Any) -> None:
    """Raise RuntimeError for a model that is too large for the kernel of the series, where vLLM has none."""
    if not machine.has_int4_kernel and weight_bytes(config) > 1e9:
        raise RuntimeError(
            "This processor has no AVX-512, so vLLM has no 4-bit kernel for it, and the series' own serves models "
            "of at most half a billion parameters: use MODEL = 'tiny' or 'small', a GPU whose driver runs vLLM's "
            "build (CUDA 13.0), or 05_gguf.ipynb, which runs anywhere."
        )


def require_path(path: str) -> None:
    """Raise ValueError for a path in which vLLM would find no weights."""
    if re.search(r"[][*?]", path):
        raise ValueError(
            f"vLLM takes brackets, * and ? in a path for a pattern, and finds nothing in {path}. "
            "Set QUANT_ARTIFACTS to a folder whose path has none of them."
        )


def at_the_end_of(model: Any, forget: Callable[[], None]) -> None:
    """Call ``forget`` when the engine goes: its processes leave sockets, and the kernel may not live to its exit."""
    weakref.finalize(model, forget)


def explain(error: BaseException, folder: pathlib.Path) -> str | None:
    """One sentence where the engine has ended: it is a process of its own, and its reasons stand in its log."""
    log = folder / LOG
    names = {type(e).__name__ for e in chain(error)}
    if "EngineDeadError" in names:
        return "vLLM's engine has ended, for instance because a cell was interrupted. Run the cell 'load' again."
    if not any("Engine core initialization failed" in str(e) for e in chain(error)):
        return None
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    causes = re.findall(r"^.*?\b((?:\w+\.)*\w*(?:Error|Exception): .+)$", text, re.M)
    causes = [c for c in causes if "Engine core" not in c and "WorkerProc" not in c]
    return f"vLLM's engine did not start. {causes[-1][:500] if causes else 'It gave no reason'}. All of it is in {log}."


def end(llm: Any) -> None:
    """End the engine's process: Python would wait for it at its exit."""
    llm.llm_engine.engine_core.shutdown()
