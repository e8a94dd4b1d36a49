"""What a notebook has made of a model: the folder that it is in, and whether that and its record are of today."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from series import installed
from series.artifacts import ROOT, artifacts_folder, key_of
from series.kernel import MAKER
from series.machine import device_name
from series.models import Checkpoint
from series.notebooks import default_parameters, made_by_steps, made_from, steps
from series.ready import require_same
from series.record import DERIVED, FIELDS, read_record
from series.techniques import TECHNIQUES, Technique

if TYPE_CHECKING:
    from series.lesson import Lesson


def made_today(technique: Technique, base: Checkpoint, model: str) -> tuple[pathlib.Path, dict[str, Any]]:
    """What a technique's notebook made of a model with its own parameters, and its record; run where it is missing.

    The notebook runs in today's environment, whichever this is: of 08's, ``SERIES_PYTHON`` says where that is.
    """
    given = default_parameters(technique.notebook)
    settings = {name: given[name] for name in technique.settings}
    for attempt in range(2):
        if attempt:
            python = os.environ.get("SERIES_PYTHON", sys.executable)
            command = [python, "-m", "series.run", technique.notebook[:2], "--model", model]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        with contextlib.suppress(FileNotFoundError, ValueError):
            record = read_record(technique.record_name(settings), model)
            if record["made_from"] != made_from(steps(technique.notebook), model):
                continue
            name = folder_name(technique, base, record["versions"], settings, given.get("DTYPE"))
            for folder in sorted(artifacts_folder().glob(f"{name}*")):
                made = folder / (base.label + technique.makes.format(**settings))
                if made.exists() and record["identity"] == base.identity and is_of(technique.notebook, folder):
                    return made, record
    raise RuntimeError(f"{technique.notebook} ran, and what it should have made is not there.")


def served(lesson: Lesson) -> tuple[tuple[str, ...], dict[str, str]]:
    """An AWQ checkpoint and a GGUF file of the lesson's model, ready-made ones first, and what 06 and 05 answered."""
    theirs, answers, files = {each.server: each for each in lesson.beside}, {}, []
    for each in lesson.beside:
        require_same(each, lesson.config, lesson.model)
    for name in ("awq", "gguf"):
        if name in theirs:
            files.append(str(theirs[name].fetch()))
        else:
            file, record = lesson.made_today(name)
            files.append(str(file))
            answers[name] = record["answer"]
    return (*files,), answers


def folder_name(
    technique: Technique, base: Checkpoint, versions: dict[str, str], settings: dict[str, Any], dtype: str | None
) -> str:
    """The folder of artifacts for a model and a technique: by all that decides their content, and by no file's time."""
    facts = {name: version for name, version in versions.items() if name not in ("python", "device")}
    names = {*technique.settings, "READY"} - {"QUANT_TYPE"}  # what others have made takes no place of what is made here
    decides = {name: value for name, value in settings.items() if name in names}
    return f"{technique.name}-{base.label}-{key_of([base.identity, facts, decides, dtype])}"


def is_of(notebook: str, folder: pathlib.Path) -> bool:
    """Whether what lies in a folder was made by the notebook as it is, from the first of its cells to the last."""
    wanted = made_by_steps(notebook)
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / MAKER).read_text(encoding="utf-8")) == wanted
    return not wanted


def why_stale(record: dict[str, Any], parameters: dict[str, Any] | None = None, identity: str = "") -> str | None:
    """Why a record is not one of these ``parameters`` (else the notebook's own) on today's state, or None.

    A record is stale when the recipe as it ran is not the notebook's of today, when the series' own code has changed
    since (but for comments and what only draws), the model's files, the texts or a library's version, or when it was
    made on another device.
    """
    if record.keys() != FIELDS.keys() | set(DERIVED):
        return "it was written by another version of this series"
    notebook = TECHNIQUES[record["technique"]].notebook
    if record["made_from"] != made_from(steps(notebook), record["model"]):
        return "it was made by another recipe, or by another version of this series' code"
    if identity and record["identity"] != identity:
        return "the model's files have changed since"
    wanted = default_parameters(notebook) | (parameters or {})
    for name, value in record["asked"].items():
        if wanted[name] != value:
            return f"it was made with {name} = {value!r}"
    for package, version in record["versions"].items():
        if package == "device" and version != device_name():
            return f"it was made on {version}"
        if package not in ("python", "device") and installed.version(package) != version:
            return f"it was made with {package} {version}"
    return None
