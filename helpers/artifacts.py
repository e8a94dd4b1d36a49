"""Files that a notebook makes: kept by what made them, whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONTENTS = "contents.json"  # in each artifact: its files, with the size and the SHA-256 of each
ROOT = pathlib.Path(__file__).resolve().parents[1]


def artifacts_folder() -> pathlib.Path:
    """The folder for everything that is made: $QUANT_ARTIFACTS, or ``artifacts`` in the repository."""
    folder = pathlib.Path(os.environ.get("QUANT_ARTIFACTS") or ROOT / "artifacts").expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "Set QUANT_ARTIFACTS to a folder that you own."
        raise OSError(f"Cannot write to {folder} ({error.strerror}). {advice}") from None
    if not os.access(folder, os.W_OK):
        raise OSError(f"Cannot write to {folder}. Set QUANT_ARTIFACTS to a folder that you own.")
    return folder


def artifact(kind: str, source: str | os.PathLike[str], **made_with: object) -> pathlib.Path:
    """Where the artifact ``kind`` of the model ``source`` belongs.

    The name ends in a digest of what decides the content: the settings in ``made_with`` (give the versions
    of the libraries too) and, for a local model, the size and time of each of its files.
    """
    local = pathlib.Path(source)
    name = local.resolve().name if local.is_dir() else str(source).replace("/", "--")
    facts: dict[str, object] = {"kind": kind, "source": name, **made_with}
    if local.is_dir():
        facts["files"] = files_of(local)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return artifacts_folder() / f"{name}-{kind}-{digest}"


def files_of(folder: pathlib.Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a folder but its prose: what tells two states of a local model apart."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix != ".md"]
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


@contextlib.contextmanager
def building(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes ``target`` when the block ends well, and vanishes otherwise.

    Python's temporary files go beside it while the block runs: libraries keep whole models in them.

    Raises:
        OSError: the disk is full; what was at ``target`` before is still there.
        RuntimeError: the block wrote nothing.
    """
    with scratch_folder(target.parent, target.name) as scratch:
        content, temporary = scratch / "content", scratch / "temporary"
        content.mkdir()
        temporary.mkdir()
        with _temporary_files_in(temporary):
            yield content
        if not any(content.iterdir()):
            raise RuntimeError(f"Nothing was written for {target.name}.")
        (content / CONTENTS).write_text(json.dumps(_contents(content), indent=1), encoding="utf-8")
        with _only_one(target.parent):
            if target.exists() and damage(target):
                target.rename(scratch / "damaged")
            if not target.exists():  # otherwise somebody else has just made the same artifact
                content.rename(target)


@contextlib.contextmanager
def scratch_folder(parent: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """A hidden folder in ``parent`` that goes with the block; one whose process was killed goes when somebody looks.

    Raises:
        OSError: the disk ran full in the block.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _only_one(parent):
        _sweep(parent)
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=parent))
        lock = _locked(scratch)
    try:
        yield scratch
    except Exception as error:
        full = getattr(error, "errno", 0) == errno.ENOSPC or "No space left on device" in str(error)
        if not full and shutil.disk_usage(parent).free >= 1_000_000:  # some libraries only say that they failed
            raise
        advice = "Free some space, or set QUANT_ARTIFACTS to a folder on a larger disk."
        raise OSError(
            f"The disk is full: {name} could not be written to {parent}. Nothing of it was kept, and what was there "
            f"before is as it was. {advice}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _sweep(parent: pathlib.Path) -> None:
    """Remove the scratch folders in ``parent`` that nobody holds any more. To be called under ``_only_one``."""
    for left in parent.glob(".*.part"):
        if (lock := _locked(left)) is not None:
            _end_orphans_of(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _end_orphans_of(scratch: pathlib.Path) -> None:
    """End what a killed maker had started, such as llama.cpp's converter: it would go on writing into ``scratch``."""
    import psutil

    orphans = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("TMPDIR", "").startswith(str(scratch)):
                process.kill()
                orphans.append(process)
    psutil.wait_procs(orphans, timeout=10)


def _locked(folder: pathlib.Path, wait: bool = False) -> int | None:
    """A descriptor that locks ``folder`` until it is closed, or its process ends; None when another has the lock."""
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # also where a file system knows no locks: then nothing is swept
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _only_one(folder: pathlib.Path) -> Iterator[None]:
    """Other processes wait until the block ends."""
    lock = _locked(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def temporary_files() -> contextlib.ExitStack:
    """A folder for all temporary files, also those of child processes, until ``.close()`` or the end of the process.

    What a library forgets there goes with the folder.
    """
    stack = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="series-", ignore_cleanup_errors=True))
    stack.enter_context(_temporary_files_in(pathlib.Path(folder)))
    return stack


@contextlib.contextmanager
def _temporary_files_in(folder: pathlib.Path) -> Iterator[None]:
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        if variable is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = variable


def is_made(folder: pathlib.Path) -> bool:
    """Whether the artifact is there and whole. One that is damaged is named in a warning, and is to be made again."""
    if not folder.exists():
        return False
    if any(folder.parent.glob(".*.part")) and os.access(folder.parent, os.W_OK):
        with _only_one(folder.parent):  # one that was killed after its work was done leaves nothing either
            _sweep(folder.parent)
    found = damage(folder)
    if found:
        warnings.warn(f"{folder.name} is damaged: {found}. It is made again.", stacklevel=2)
    return found is None


def damage(folder: pathlib.Path) -> str | None:
    """What is wrong with an artifact, by the sizes and digests written when it was made; None when it is whole."""
    try:
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
    except OSError:
        return f"{CONTENTS} is missing"
    except ValueError:
        return f"{CONTENTS} cannot be read"
    for name, (size, digest) in contents.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if sha256(path) != digest:
            return f"the content of {name} has changed"
    return None


def _contents(folder: pathlib.Path) -> dict[str, tuple[int, str]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, sha256(path)) for path in files}


def sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_bytes(path: str | os.PathLike[str], pattern: str = "*") -> int:
    """Bytes of a file, or of the files below a folder whose names match ``pattern``."""
    path = pathlib.Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob(pattern) if p.is_file())


def require_disk(needed: int) -> None:
    """Raise OSError, in one sentence, when fewer than ``needed`` bytes are free for artifacts."""
    folder = artifacts_folder()
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"This needs {needed / 1e9:.2f} GB on disk, and {folder} has {free / 1e9:.2f} GB free. "
            "Free some space, or set QUANT_ARTIFACTS to a folder on a larger disk."
        )
