"""Memory: counted over tensors, and given back."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import functools
import gc
import inspect
import re
import sys
import traceback
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
RESULTS = re.compile(r"_+|_i?\d*|_i+|_oh|_dh|_ih|_exit_code|In|Out")  # IPython's own names
SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR  # may go on: are left alone
DEPTH, VISITS = 8, 100_000  # attributes, items and cells of closures that are followed from a variable, and how many


def tensor_bytes(model: Any) -> int:
    """Bytes of every tensor of a torch module, each storage counted once.

    Counts parameters, buffers, tensors that a kernel keeps as plain attributes, what bitsandbytes keeps beside a
    4-bit weight (``quant_state``: the block constants), which ``get_memory_footprint()`` leaves out, the parts of
    torchao's tensors, and the layers that Accelerate keeps in memory for a GPU; those on the disk are not counted.
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
    storages = [part.untyped_storage() for t in tensors if t.device.type != "meta" for part in _parts(t)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _parts(tensor: Any) -> list[Any]:
    """The plain tensors that hold the numbers: of torchao's integers and their scales, of any other tensor itself."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


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

    ``del model`` removes one name. A notebook keeps others: the last results (``_``, ``Out``) and the last
    exception's frames. They are dropped here, garbage is collected, and the allocators hand their empty
    blocks back. A model that is alive after that is named by the variable that leads to it, at most ``DEPTH`` steps
    away; one that is held elsewhere is named by its class.

    Args:
        namespace: names to look for a model in; the notebook's own by default.
    """
    before, shell = resident_bytes(), _shell()
    if shell is not None:
        _forget_results(shell)
    for name in ("last_traceback", "last_value", "last_exc", "last_type"):
        if hasattr(sys, name):
            delattr(sys, name)
    # vLLM's record of which tokenizer's method takes what keeps three tokenizers of every engine alive.
    record: Any = getattr(sys.modules.get("vllm.utils.func_utils"), "_supports_kw", None)
    if hasattr(record, "cache_clear"):
        record.cache_clear()
    # A thread of gptqmodel's keeps its last task, and with it the model, until it gets the next one.
    pool = getattr(sys.modules.get("gptqmodel"), "_DEVICE_THREAD_POOL", None)
    for group in getattr(pool, "_worker_groups", {}).values():
        for worker in group:
            worker.submit(int).result(timeout=60)
    _clear_frames()
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.ipc_collect()
    if sys.platform.startswith("linux"):  # glibc keeps what was freed until it is asked
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    own = shell.user_ns if shell is not None else vars(sys.modules["__main__"])
    held = _held_by(own if namespace is None else namespace, all_of_them=namespace is None)
    report = Cleared(before, resident_bytes(), held)
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


def _clear_frames() -> None:
    """Empty the finished frames that an exception leads to, kept by a library: their variables hold models."""
    for error in [o for o in gc.get_objects() if issubclass(type(o), BaseException)]:
        for first, _ in traceback.walk_tb(error.__traceback__):
            frame: types.FrameType | None = first
            while frame is not None:
                if not frame.f_code.co_flags & SUSPENDS:
                    with contextlib.suppress(RuntimeError):  # it is running
                        frame.clear()
                frame = frame.f_back


def _held_by(namespace: dict[str, Any], all_of_them: bool) -> list[str]:
    """The names that lead to a model, and, with ``all_of_them``, the class of each that no name leads to."""
    kinds = tuple(
        getattr(sys.modules[module], name)
        for module, name in HOLDERS
        if module in sys.modules and hasattr(sys.modules[module], name)
    )
    if not kinds:
        return []
    # A skeleton on the meta device has shapes and no memory.
    alive = [o for o in gc.get_objects() if issubclass(type(o), kinds) and str(getattr(o, "device", "")) != "meta"]
    found: dict[int, str] = {}
    waiting = collections.deque((n, value, 0) for n, value in namespace.items() if not RESULTS.fullmatch(n))
    seen: set[int] = set()
    while waiting and alive and len(seen) < VISITS:
        name, value, depth = waiting.popleft()
        if issubclass(type(value), kinds):
            found.setdefault(id(value), name)
            continue
        if depth < DEPTH and id(value) not in seen and not isinstance(value, (type, types.ModuleType, str, bytes)):
            seen.add(id(value))
            waiting += [(f"{name}{step}", inner, depth + 1) for step, inner in _inside(value)]
    parts = {id(part) for model in alive if hasattr(model, "modules") for part in model.modules() if part is not model}
    whole = {id(model): type(model).__name__ for model in alive if id(model) not in parts}
    named = sorted(name for number, name in found.items() if number in whole)
    unnamed = sorted({kind for number, kind in whole.items() if number not in found})
    return named + ([f"a {kind} that no variable leads to" for kind in unnamed] if all_of_them else [])


def _inside(value: Any) -> list[tuple[str, Any]]:
    """What a value holds, each with the way to it."""
    if isinstance(value, dict):
        return [(f"[{key!r}]", inner) for key, inner in list(value.items())]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"[{number}]", inner) for number, inner in enumerate(value)]
    inside = []
    if isinstance(value, functools.partial):
        inside += [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, types.GeneratorType) and value.gi_frame is not None:
        inside += [(f" (its variable {name})", inner) for name, inner in value.gi_frame.f_locals.items()]
    slots = [getattr(kind, "__slots__", ()) for kind in type(value).__mro__]
    for name in [name for names in slots for name in ([names] if isinstance(names, str) else names)]:
        with contextlib.suppress(AttributeError):  # a slot that was never filled
            inside.append((f".{name}", getattr(value, name)))
    if isinstance(value, types.MethodType):
        inside.append((".__self__", value.__self__))
    if isinstance(value, types.FunctionType) and value.__closure__:
        for name, cell in zip(value.__code__.co_freevars, value.__closure__, strict=True):
            with contextlib.suppress(ValueError):
                inside.append((f" (closure over {name})", cell.cell_contents))
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        inside += [(f".{name}", inner) for name, inner in list(attributes.items())]
        modules = attributes.get("_modules")  # of a wrapper that is itself a torch module
        inside += [(f".{name}", inner) for name, inner in modules.items()] if isinstance(modules, dict) else []
    return inside
