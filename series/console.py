"""Library chatter kept out of sight; versions and the device, because they explain the numbers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator

from series import installed

HARMLESS = (DeprecationWarning, FutureWarning, SyntaxWarning)


def errors_alone() -> None:
    """Of what libraries log, show errors alone; of this series' own remarks all.

    Their warnings are remarks on their own working: a kernel that is not there on this processor, an older format.
    What they raise, and what they warn of by Python's ``warnings``, is shown as before.
    """
    for name in [*logging.root.manager.loggerDict, "optimum", "gptqmodel", "accelerate", "torchao", "bitsandbytes"]:
        if not name.startswith("series"):
            logging.getLogger(name).setLevel(max(logging.ERROR, logging.getLogger(name).level))
    logging.root.setLevel(logging.ERROR)  # for those that come later
    ours = logging.getLogger("series")
    ours.setLevel(logging.WARNING)


@contextlib.contextmanager
def quiet(tell: bool = True) -> Iterator[None]:
    """Hold back what libraries print, in Python and in C; on an error all of it is shown, unless ``tell`` is False.

    Python warnings stay visible, but for deprecations, remarks on a library's syntax, and tqdm's wish for widgets.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    buffer, saved = io.StringIO(), [os.dup(1), os.dup(2)]

    def restore() -> None:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)

    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer):
                with warnings.catch_warnings(record=True) as caught:
                    yield
        except BaseException:
            restore()
            if not tell:
                raise
            file.seek(0)
            text = buffer.getvalue() + file.read().decode(errors="replace")
            print(text[-4000:], file=sys.stderr, flush=True)
            raise
        finally:
            restore()
            for copy in saved:
                os.close(copy)
            for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
                for handler in getattr(logger, "handlers", ()):
                    if getattr(handler, "stream", None) is buffer:  # made in here: what it says later must be heard
                        handler.setStream(sys.stderr)
    for warning in caught:
        if not issubclass(warning.category, HARMLESS) and warning.category.__name__ != "TqdmWarning":
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


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
