"""What surrounds a notebook's kernel: variables of the environment, proxies, and a folder that is gone with it."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable

from series.artifacts import SYSTEMS_TEMPORARY


def variables(wanted: dict[str, tuple[str, str]], bars: bool) -> None:
    """Set the variables that libraries read at their import, and say why where a reason is given.

    Args:
        wanted: name -> value and reason.
        bars: whether libraries may show progress bars.
    """
    for name, (value, why) in wanted.items():
        if os.environ.get(name) != value and why:
            print(f"{name} = {value}: {why}")
        os.environ[name] = value
    for name in ("no_proxy", "NO_PROXY"):  # a proxy has no way to the servers of this machine
        own = os.environ.get(name) or os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        os.environ[name] = ",".join(dict.fromkeys([*(own.split(",") if own else ()), "127.0.0.1", "localhost"]))
    if not bars:
        os.environ["TQDM_DISABLE"] = "1"


def temporary_folder() -> tuple[pathlib.Path, Callable[[], None]]:
    """A folder for what libraries forget among the temporary files, and what removes it: with the kernel, or before."""
    folder = tempfile.TemporaryDirectory(prefix="series-", dir=SYSTEMS_TEMPORARY, ignore_cleanup_errors=True)

    def forget() -> None:
        tempfile.tempdir = os.environ["TMPDIR"] = SYSTEMS_TEMPORARY
        folder.cleanup()

    tempfile.tempdir = os.environ["TMPDIR"] = folder.name
    return pathlib.Path(folder.name), forget
