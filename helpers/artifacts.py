"""Files that a notebook makes: kept by what made them, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

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
    facts: dict[str, object] = {"kind": kind, "source": str(source), **made_with}
    local = pathlib.Path(source)
    if local.is_dir():
        facts["files"] = files_of(local)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:10]
    name = str(source).replace("/", "--") if not local.is_dir() else local.resolve().name
    return artifacts_folder() / f"{name}-{kind}-{digest}"


def files_of(folder: pathlib.Path) -> list[tuple[str, int, int]]:
    """Name, size and time of each file of a folder but its prose: what tells two states of a local model apart."""
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix != ".md"]
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


@contextlib.contextmanager
def building(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes ``target`` when the block ends well, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        if not any(scratch.iterdir()):
            raise RuntimeError(f"Nothing was written for {target.name}.")
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o777 & ~umask)  # mkdtemp made it for this user alone
        try:
            scratch.rename(target)
        except OSError:
            if not target.exists():  # otherwise somebody else has just made the same artifact
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
