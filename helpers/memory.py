"""Memory: counted over tensors, watched while a block runs, and given back."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import sys
import threading
import types
from dataclasses import dataclass, field
from typing import Any

# Objects that hold a whole model, by module and class; looked up only where already imported.
HOLDERS = (
    ("transformers.modeling_utils", "PreTrainedModel"),
    ("llama_cpp.llama", "Llama"),
    ("ctransformers.llm", "LLM"),
    ("vllm.entrypoints.llm", "LLM"),
)

RESULTS = re.compile(r"_+|_i?\d*|_i+|_oh|_dh|_ih|_exit_code")  # IPython's own names


def tensor_bytes(model: Any) -> int:
    """Bytes of every tensor of a torch module, each storage counted once.

    Counts parameters, buffers, tensors that a kernel keeps as plain attributes, what bitsandbytes keeps beside a
    4-bit weight (``quant_state``: the block constants), which ``get_memory_footprint()`` leaves out, and the layers
    that Accelerate keeps in memory for a GPU; those on the disk are not counted.
    """
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    tensors += [t for module in model.modules() for t in vars(module).values() if isinstance(t, torch.Tensor)]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        while state is not None:
            tensors += [t for t in (state.absmax, state.code, state.offset) if t is not None]
            state = getattr(state, "state2", None)  # bitsandbytes deletes it on some processors
    for module in model.modules():
        tensors += _offloaded(getattr(module, "_hf_hook", None))
    storages = [t.untyped_storage() for t in tensors if t.device.type != "meta"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _offloaded(hook: Any) -> list[Any]:
    """The tensors that one of Accelerate's hooks keeps in memory and moves to the GPU when they are needed."""
    import torch

    if hook is None:
        return []
    tensors = [t for inner in getattr(hook, "hooks", ()) for t in _offloaded(inner)]
    kept = getattr(getattr(hook, "weights_map", None), "dataset", None)
    kept = getattr(kept, "state_dict", kept)  # a loader that also knows files, or a plain dictionary
    return tensors + [t for t in (kept.values() if isinstance(kept, dict) else ()) if isinstance(t, torch.Tensor)]


def resident_bytes() -> int:
    """Bytes of memory that this process and its children hold now (their resident sets)."""
    import psutil

    this = psutil.Process()
    total = this.memory_info().rss
    for child in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += child.memory_info().rss
    return total


class PeakMemory:
    """Watch the memory while a block runs: ``with PeakMemory() as peak: ...``, then ``peak.bytes``.

    ``bytes`` is the highest memory seen above the start of the block: the resident memory of this process and
    its children, sampled every few milliseconds; on a GPU, what torch's allocator held at most.
    """

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _trim()
        torch = sys.modules.get("torch")
        self._cuda = torch.cuda if torch is not None and torch.cuda.is_available() else None
        if self._cuda:
            self._cuda.reset_peak_memory_stats()
            self._allocated = self._cuda.memory_allocated()
        self.start = self.highest = resident_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.highest = max(self.highest, resident_bytes())

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.highest = max(self.highest, resident_bytes())
        self.bytes = self.highest - self.start
        if self._cuda:
            # nothing: another process or library than torch holds the model
            self.bytes = self._cuda.max_memory_allocated() - self._allocated or self.bytes


@dataclass
class Cleared:
    """What ``clear_cache`` did: bytes of resident memory before and after, and who still holds a model."""

    before: int
    after: int
    held_by: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"memory: {self.before / 1e6:,.0f} MB before, {self.after / 1e6:,.0f} MB after"
        if self.held_by:
            text += f"\nstill holding a model: {', '.join(self.held_by)} (delete with 'del', then clear again)"
        return text


def clear_cache(namespace: dict[str, Any] | None = None) -> Cleared:
    """Free what a deleted model leaves behind, print memory before and after, and return the report.

    ``del model`` removes one name. A notebook keeps others: the last results (``_``, ``Out``), the last
    exception's frames. They are dropped here, garbage is collected, and the allocators hand their empty
    blocks back. A model that is alive after that is named by the variable that holds it.

    Args:
        namespace: where variables are looked for; the notebook's own, or the caller's module by default.
    """
    before = resident_bytes()
    shell = _shell()
    if namespace is None:
        namespace = shell.user_ns if shell else sys._getframe(1).f_globals
    if shell:
        _forget_results(shell)
    for name in ("last_traceback", "last_value", "last_exc", "last_type"):
        if hasattr(sys, name):
            delattr(sys, name)
    _forget_tokenizers()
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    _trim()
    report = Cleared(before, resident_bytes(), _held_by(namespace))
    print(report)
    return report


def _shell() -> Any:
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _forget_results(shell: Any) -> None:
    """Empty the notebook's history of results, which keeps every displayed model alive."""
    results = {"_", "__", "___", *(f"_{number}" for number in shell.user_ns.get("Out", {}))}
    for name in results:
        shell.user_ns.pop(name, None)
        shell.user_ns_hidden.pop(name, None)  # IPython's own list of hidden names holds the values too
    for name in ("_", "__", "___"):
        shell.user_ns[name] = shell.user_ns_hidden[name] = ""
        setattr(shell.displayhook, name, "")
    shell.user_ns.get("Out", {}).clear()
    shell.last_execution_result = None
    if getattr(shell, "InteractiveTB", None) is not None:
        shell.InteractiveTB.tb = None  # the frames of the last exception that was shown


def _forget_tokenizers() -> None:
    """Empty vLLM's record of which tokenizer's method takes what: it keeps three tokenizers of every engine alive."""
    record = getattr(sys.modules.get("vllm.utils.func_utils"), "_supports_kw", None)
    if hasattr(record, "cache_clear"):
        record.cache_clear()


def _trim() -> None:
    """Ask glibc to return freed memory to the system; elsewhere nothing is needed."""
    if sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library, such as musl
            pass


def _held_by(namespace: dict[str, Any]) -> list[str]:
    kinds = tuple(
        getattr(sys.modules[module], name)
        for module, name in HOLDERS
        if module in sys.modules and hasattr(sys.modules[module], name)
    )
    if not kinds:
        return []

    def holds(value: Any) -> bool:
        # A skeleton on the meta device has shapes and no memory.
        return isinstance(value, kinds) and getattr(getattr(value, "device", None), "type", "") != "meta"

    names = []
    for name, value in list(namespace.items()):
        if RESULTS.fullmatch(name) or isinstance(value, (type, types.ModuleType)):  # also lazy modules
            continue
        if holds(value):
            names.append(name)
        elif isinstance(value, (list, tuple, set)) and any(map(holds, value)):
            names.append(f"{name}[...]")
        elif isinstance(value, dict) and name not in ("In", "Out") and any(map(holds, value.values())):
            names.append(f"{name}[...]")
        else:
            inside = getattr(value, "__dict__", None)
            if isinstance(inside, dict):
                inside = {**inside, **(inside.get("_modules") or {})}  # a wrapper that is itself a torch module
                names += [f"{name}.{key}" for key, held in list(inside.items()) if holds(held)]
    return sorted(names)


def child_processes() -> list[int]:
    """Process ids of this process's living children, at any depth."""
    import psutil

    return [child.pid for child in psutil.Process(os.getpid()).children(recursive=True)]
