"""Where things are made: one folder for a model and a technique, held by one kernel at a time, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from filelock import FileLock, Timeout

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = ROOT / "models" / "tiny-zephyr"
SYSTEMS_TEMPORARY = tempfile.gettempdir()  # folders in folders make paths too long for vLLM's sockets
SEAL, LOCK = "made.json", ".lock"  # in each folder: the sizes and digests of what was made and used; its holder

HELD: dict[pathlib.Path, FileLock] = {}  # the folders that this process holds


def artifacts_folder() -> pathlib.Path:
    """The folder for everything that is made: $QUANT_ARTIFACTS, or ``artifacts`` in the repository."""
    folder = pathlib.Path(os.environ.get("QUANT_ARTIFACTS") or ROOT / "artifacts").expanduser().resolve()
    if not str(folder).isascii() and sys.getfilesystemencoding() != "utf-8":  # libraries look for it in UTF-8
        raise ValueError(
            f"The libraries do not find {str(folder)!a} in this locale, whose file names are not in UTF-8. Set "
            "PYTHONUTF8=1 before Jupyter starts, or QUANT_ARTIFACTS to a folder whose path is ASCII."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "Set QUANT_ARTIFACTS to a folder that you own."
        raise OSError(f"Cannot write to {folder} ({error.strerror}). {advice}") from None
    if not os.access(folder, os.W_OK):
        raise OSError(f"Cannot write to {folder}. Set QUANT_ARTIFACTS to a folder that you own.")
    return folder


def writable(folder: pathlib.Path) -> bool:
    """Whether files can be written into ``folder``, which is made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def replace_file(target: pathlib.Path, content: bytes) -> None:
    """Write a file whole or not at all; what was there before stays when the disk is full."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(name, target)
    except OSError as error:
        pathlib.Path(name).unlink(missing_ok=True)
        raise OSError(f"{target.name} could not be written to {target.parent}: {error.strerror}.") from None


def digest_of(path: pathlib.Path) -> str:
    """SHA-256 of a file, remembered by its size and time: a file is read once, and a copy has the same digest."""
    path = path.resolve()
    stat, known_file = path.stat(), artifacts_folder() / "digests.json"
    try:
        known = json.loads(known_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    key = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        if stat.st_size > 100_000:  # a small file is read as quickly again
            replace_file(known_file, json.dumps(known, indent=0).encode())
    return known[key]


def remembered(what: str, look: Callable[[], None]) -> None:
    """Call ``look``, which raises where something is wrong, unless it has found ``what`` right before."""
    file = artifacts_folder() / "checked.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = []
    if what not in known:
        look()
        replace_file(file, json.dumps([*known, what]).encode())


def key_of(facts: Any) -> str:
    """Ten letters that stand for ``facts``."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]


def content_of(folder: pathlib.Path) -> dict[str, str]:
    """The digest of each file of a local model but its prose: what tells two states of it apart."""
    kinds = (".json", ".safetensors", ".model", ".jinja")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in kinds]
    return {path.name: digest_of(path) for path in files}


def hold(name: str) -> tuple[pathlib.Path, FileLock]:
    """The folder ``name`` for this process alone; another one beside it while another kernel holds that.

    What a killed kernel left half-written is removed, and what was damaged since it was used is named and removed.
    The lock lasts until it is released or the process ends.
    """
    for known in [folder for folder in HELD if name in (folder.name, folder.name.rpartition("-")[0])]:
        HELD.pop(known).release()  # by this very kernel, in an earlier run of the cell
    for number in range(1, 100):
        folder = artifacts_folder() / (name if number == 1 else f"{name}-{number}")
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        if number > 1:
            print(f"another notebook is using {name}; this one works in {folder.name}")
        sweep(folder)
        HELD[folder] = lock
        return folder, lock
    raise RuntimeError(f"All folders for {name} are in use. Shut down some kernels.")


def made_once(name: str, make: Callable[[pathlib.Path], None], beside: pathlib.Path) -> pathlib.Path:
    """The folder ``name`` of a model that ``make`` writes into; made under another name until it is complete.

    Args:
        beside: a model's folder, of which all files but the weights are copied: what is saved through a link would
            change what it leads to.
    """
    target = artifacts_folder() / name
    if target.is_dir():
        return target
    part = target.with_name(f"{name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for file in beside.iterdir():
        if file.is_file() and file.suffix in (".json", ".model", ".jinja") and "safetensors" not in file.name:
            shutil.copyfile(file, part / file.name)
    make(part)
    try:
        os.rename(part, target)
    except OSError:  # another kernel was faster
        shutil.rmtree(part)
    return target


def sweep(folder: pathlib.Path) -> None:
    """Remove what is half-written or damaged, and say so of the damaged."""
    for left in folder.glob("*.part"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sealed = {}
    for top in {name.partition("/")[0] for name in sealed}:
        found = next(
            (
                why
                for name, facts in sealed.items()
                if name.split("/")[0] == top and (why := damage(folder / name, *facts))
            ),
            None,
        )
        if found:
            warnings.warn(f"{found}. {top} is made again.", stacklevel=3)
            shutil.rmtree(folder / top) if (folder / top).is_dir() else (folder / top).unlink(missing_ok=True)
            (folder / SEAL).unlink(missing_ok=True)


def damage(path: pathlib.Path, size: int, digest: str) -> str | None:
    """What is wrong with a file, by its size and digest when it was used; None when it is as it was."""
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None if digest_of(path) == digest else f"the content of {path.name} has changed"


def seal(folder: pathlib.Path) -> None:
    """Take down the sizes and digests of all that was made in ``folder``, once a model out of it has answered."""
    made = [p for p in sorted(folder.rglob("*")) if p.suffix in (".safetensors", ".gguf") and not p.is_symlink()]
    facts = {p.relative_to(folder).as_posix(): (p.stat().st_size, digest_of(p)) for p in made}
    replace_file(folder / SEAL, json.dumps(facts, indent=1).encode())


def disk_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of the weights in a folder."""
    path = pathlib.Path(path)
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.glob("*.safetensors"))


def require_disk(needed: int) -> None:
    """Raise OSError, in one sentence, when fewer than ``needed`` bytes are free for artifacts."""
    folder = artifacts_folder()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"This needs {needed / 1e9:.2f} GB on disk, and {folder} has {free / 1e9:.2f} GB free. "
            "Free some space, or set QUANT_ARTIFACTS to a folder on a larger disk."
        )
