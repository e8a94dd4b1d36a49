"""The kernel that a notebook runs in: the cells that it has run, and one sentence where a library stops with a page."""

from __future__ import annotations

import errno
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from series import notebooks
from series.artifacts import LOCK, ROOT, SEAL, replace_file

MAKER = "recipe.json"  # in a folder of artifacts: of each cell that made something, what it was made by
OURS = (ValueError, RuntimeError, OSError, MemoryError, ModuleNotFoundError)  # what the series raises, in a sentence


class Kernel:
    """What ``start`` sees of the notebook's kernel from now on; outside of IPython it sees nothing.

    Args:
        notebook: the stem of the notebook.
        explain: error -> the sentence that is shown instead of a library's traceback, or None to leave that.
    """

    _latest: Kernel | None = None

    def __init__(self, notebook: str, explain: Callable[[BaseException], str | None]) -> None:
        ipython = sys.modules.get("IPython")
        self.notebook, self.explain, self.shell = notebook, explain, ipython and ipython.get_ipython()
        self._keep: Callable[[int, str], None] | None = None
        self._told: BaseException | None = None
        if Kernel._latest:
            Kernel._latest.forget()
        Kernel._latest = self
        if self.shell:
            self._begin = len(self.shell.history_manager.input_hist_parsed)
            self.shell.events.register("pre_run_cell", self._before)
            self.shell.events.register("post_run_cell", self._after)
            self.shell.set_custom_exc((Exception,), self._failed)

    def forget(self) -> None:
        """See nothing of the kernel any more."""
        if self.shell:
            for event, hook in (("pre_run_cell", self._before), ("post_run_cell", self._after)):
                if hook in self.shell.events.callbacks[event]:
                    self.shell.events.unregister(event, hook)
            self.shell.set_custom_exc((), None)

    def recipe(self) -> list[str]:
        """The recipe as it ran here since ``start``: that of the notebook, if nobody has changed a cell."""
        if not self.shell:
            return notebooks.steps(self.notebook)
        return notebooks.as_it_ran(self.notebook, self.shell.history_manager.input_hist_parsed[self._begin :])

    def hold_to_the_recipe(self, folder: pathlib.Path, made: pathlib.Path, model: pathlib.Path) -> None:
        """From now on what another recipe has made in ``folder`` is removed before a cell finds it there.

        Args:
            made: what the last of the recipe's cells makes.
            model: the folder of links to the model, which stays.
        """

        def keep(number: int, digest: str) -> None:
            try:
                known = json.loads((folder / MAKER).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                known = []
            whole = len(known) == len(notebooks.made_by_steps(self.notebook)) or number  # by one run of the recipe
            if whole and known[number : number + 1] == [digest]:
                return
            others = (model.name, LOCK, SEAL, MAKER, "vllm.log")
            old = [made] if number else folder.iterdir()
            old = [path for path in old if path.exists() and path.name not in others]
            for path in old:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if old:
                print(
                    f"{', '.join(sorted(p.name for p in old))}: made by another recipe, or by an earlier version of "
                    "this series; made again"
                )
            (folder / SEAL).unlink(missing_ok=True)
            replace_file(folder / MAKER, json.dumps([*known[:number], digest]).encode())

        self._keep = keep

    def _before(self, info: Any) -> None:
        self._told, source = None, info.raw_cell
        if self._keep and notebooks.makes(source):
            recipe = [step for step in self.recipe() if step.strip() != source.strip()]
            self._keep(sum(map(notebooks.makes, recipe)), notebooks.made_by([*recipe, source]))

    def _failed(self, shell: Any, kind: type, error: BaseException, trace: Any, tb_offset: int | None = None) -> None:
        try:
            sentence = self.explain(error)
        except Exception:  # whoever explains an error must not hide it behind one of his own
            sentence = None
        if sentence is None and not (isinstance(error, OURS) and _raised_here(trace)):
            return shell.showtraceback((kind, error, trace), tb_offset=tb_offset)
        if sentence is not None:
            self._told = error = RuntimeError(sentence)
        shell._showtraceback(type(error), error, [f"{type(error).__name__}: {error}"])

    def _after(self, result: Any) -> None:
        if self._told and result.error_in_exec is not None:
            result.error_in_exec, self._told = self._told, None  # what papermill is told, and the traceback's frames go


def _raised_here(trace: Any) -> bool:
    """Whether a traceback ends in the series' own code, where an error is a sentence for the reader."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = pathlib.Path(trace.tb_frame.f_code.co_filename) if trace else pathlib.Path()
    return any(file.is_relative_to(ROOT / top) for top in ("helpers", "series"))


# --- causes ------------------------------------------------------------------------------------


def chain(error: BaseException) -> list[BaseException]:
    """The error and those that it came of."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return found


def last_words(text: str | bytes | None) -> str:
    """The last line of what a program has printed, without the name of the exception's class."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(?:[A-Z]+:[\w.-]+: *|(?:\w+\.)*\w*(?:Error|Exception): *)", "", lines[-1])[:400] if lines else ""


def no_room(error: BaseException, folder: pathlib.Path, needed: int) -> str | None:
    """Whether a disk is full: what it would have taken to make something in ``folder``, and what is there."""
    said = [getattr(e, "errno", None) == errno.ENOSPC or "No space left" in str(e) for e in chain(error)]
    free = shutil.disk_usage(folder).free
    # llama.cpp gives no reason, and NumPy says how many numbers it could write
    if not any(said) and not (isinstance(error, (RuntimeError, subprocess.CalledProcessError)) and free < needed):
        return None
    return (
        f"The disk is full. This takes about {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free in {folder}. "
        "Free some space, or set QUANT_ARTIFACTS to a folder on a larger disk; then run this cell again."
    )


def of_a_program(error: BaseException) -> str | None:
    """What a program that a cell has started said last, such as llama.cpp's converter."""
    if not isinstance(error, subprocess.CalledProcessError) or not (said := last_words(error.stderr or error.stdout)):
        return None
    words = error.cmd if isinstance(error.cmd, (list, tuple)) else [error.cmd]
    name = next((pathlib.Path(str(w)).name for w in words if str(w).endswith(".py")), pathlib.Path(str(words[0])).name)
    return f"{name} stopped: {said}"


def of_the_gpu(error: BaseException) -> str | None:
    """A GPU that is full."""
    if not any(type(e).__name__ == "OutOfMemoryError" for e in chain(error)):
        return None
    import torch

    free, total = torch.cuda.mem_get_info()
    return (
        f"The GPU's memory is full: {free / 1e9:.1f} of {total / 1e9:.1f} GB are free, "
        f"{torch.cuda.memory_allocated() / 1e9:.1f} GB are this notebook's. Shut down other notebooks, or run this one "
        "again from the top with a smaller model."
    )


def known(error: BaseException, folder: pathlib.Path, needed: int) -> str | None:
    """One sentence for a cause that any technique can have: a full disk, a program that stopped, a full GPU.

    Args:
        folder, needed: where bytes are written, and how many.
    """
    return no_room(error, folder, needed) or of_a_program(error) or of_the_gpu(error)


def no_numbers(dtype: str | None, where: str = "") -> str:
    """What to do where a model's scores are no numbers."""
    at = f" (first in {where})" if where else ""
    if dtype == "float16":
        return (
            f"The activations of this model leave float16's range, which ends at 65,504{at}, so its scores are no "
            "numbers. Set DTYPE = 'bfloat16', or 'float32' on a card without it (a T4), where the model then takes "
            "twice the memory; 05_gguf.ipynb computes in 32 bits on any card."
        )
    return f"The scores of this model are no numbers{at}: NaN, or beyond the range of {dtype or 'its type'}."
