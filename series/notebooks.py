"""The notebooks as files: a cell by its id, the program that the cells tagged 'copy' are, and what decides a record."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import pathlib
from typing import Any

from series.artifacts import ROOT

FOLDER = ROOT / "notebooks"
MEASURES = {  # where a record's figures come from: whole modules, or some of their functions
    "series/quality.py": (), "series/texts.py": (), "series/runtimes.py": (), "helpers/prompt.py": (),
    "helpers/memory.py": (), "series/lesson.py": ("measure", "measure_speed"),
}  # fmt: skip


def cells(notebook: str | pathlib.Path) -> list[dict[str, Any]]:
    """The cells of a notebook, given by its stem or its file, each with ``id``, ``tags`` and ``source`` as a text."""
    path = notebook if isinstance(notebook, pathlib.Path) else FOLDER / f"{notebook}.ipynb"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"]), "tags": c["metadata"].get("tags", [])} for c in found]


def cell(notebook: str | pathlib.Path, identity: str) -> dict[str, Any]:
    """The cell with this id."""
    return next(c for c in cells(notebook) if c["id"] == identity)


def default_parameters(notebook: str | pathlib.Path) -> dict[str, Any]:
    """The names and values in the cell that is tagged ``parameters``."""
    source = next(c["source"] for c in cells(notebook) if "parameters" in c["tags"])
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


def recipe(notebook: str | pathlib.Path) -> str:
    """The program that a reader can carry away: the cells tagged ``copy``, in order."""
    return "\n\n".join(c["source"] for c in cells(notebook) if "copy" in c["tags"])


def code_digest(*sources: str) -> str:
    """What a program does, whatever its comments, docstrings and line breaks."""
    trees = []
    for source in sources:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                    node.body = body[1:] or [ast.Pass()]
        trees.append(ast.dump(tree))
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]


@functools.cache
def _measuring(root: pathlib.Path) -> tuple[str, ...]:
    found = []
    for file, functions in MEASURES.items():
        source = (root / file).read_text(encoding="utf-8")
        nodes = [n for n in ast.walk(ast.parse(source)) if getattr(n, "name", None) in functions]
        found += [ast.unparse(node) for node in nodes] if functions else [source]
    return tuple(found)


def made_from(notebook: str, model: str = "tiny") -> str:
    """A digest of what decides a record: the notebook's recipe, what measures it, and for all but `tiny` the texts."""
    found = code_digest(recipe(notebook), *_measuring(ROOT))
    if model == "tiny":
        return found
    texts = b"".join(file.read_bytes() for file in sorted((ROOT / "texts").glob("*.txt")))
    return hashlib.sha256(found.encode() + texts).hexdigest()[:16]
