"""The notebooks as files: a cell by its id, the program that the cells tagged 'copy' are, and what decides a record."""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import pathlib
from typing import Any

from series.artifacts import ROOT, TINY, key_of

FOLDER = ROOT / "notebooks"
# Of helpers/ and series/ all decides what is made and what a record says, but for these, and why not.
DECIDES_NOTHING = {
    "helpers/exercise.py": "says whether a reader's answer is right",
    "helpers/files.py": "ranks the names on a model's page",
    "series/colab.py": "installs; the versions stand in the record",
    "series/comparison.py": "asks for records; its controls are figures of 'make ladders', and no records",
    "series/guide.py": "draws what is committed",
    "series/run.py": "runs the notebooks, and reads nothing",
    "series/serving.py": "09's servers, of which there is no record",
    "series/commands/llama_server.py": "the same",
    "series/commands/vllm_cpu.py": "the same",
}


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
                    body[:] = body[1:] or [ast.Pass()]
        trees.append(ast.dump(tree))
    return hashlib.sha256("\n".join(trees).encode()).hexdigest()[:16]


@functools.cache
def _machinery(root: pathlib.Path) -> str:
    """What the code of the series does, all but ``DECIDES_NOTHING``."""
    files = sorted(
        file for top in ("helpers", "series") for file in (root / top).rglob("*") if file.suffix in (".py", ".json")
    )
    wanted = [file for file in files if file.relative_to(root).as_posix() not in DECIDES_NOTHING]
    return code_digest(*(file.read_text(encoding="utf-8") for file in wanted))


def steps(notebook: str) -> list[str]:
    """The cells of the recipe up to the measure: those tagged ``copy``."""
    found = cells(notebook)
    end = next((place for place, c in enumerate(found) if c["id"] == "measure"), len(found))
    return [c["source"] for c in found[:end] if "copy" in c["tags"]]


def as_it_ran(notebook: str, ran: list[str]) -> list[str]:
    """Of the cells that a kernel has run, those that decide what comes out: ``steps``, if nobody changed a cell.

    The recipe's own cells count, and each cell that is not in the notebook and touches what the recipe has set. One
    that only prints or imports touches nothing; of one that ran twice the last time counts.
    """
    own = {code_digest(c["source"]): "copy" in c["tags"] for c in cells(notebook) if c["cell_type"] == "code"}
    touched = {name for source in steps(notebook) for name in _names(source, ast.Store)}
    found: dict[str, str] = {}
    for source in ran:
        try:
            digest = code_digest(source)
        except SyntaxError:  # it did not run
            continue
        if own.get(digest, bool(touched & _names(source, ast.expr_context))):
            found.pop(digest, None)
            found[digest] = source
    return list(found.values())


def _names(source: str, how: type) -> set[str]:
    """The names that a cell uses so, but in statements that only import, print, or call the lesson."""
    found: set[str] = set()
    for statement in ast.parse(source).body:
        called = getattr(getattr(statement, "value", None), "func", None)
        by = getattr(called, "id", "") or getattr(getattr(called, "value", None), "id", "")
        if not isinstance(statement, (ast.Import, ast.ImportFrom)) and by not in ("print", "lesson"):
            found |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, how)}
    return found


def makes(source: str) -> bool:
    """Whether a cell makes something to keep: it moves it to its place when it is complete."""
    return "os.rename(" in source


def made_by(sources: list[str]) -> str:
    """A digest of what makes a file: the recipe up to there, and the series' own code."""
    return key_of([code_digest(*sources), _machinery(ROOT)])


def made_by_steps(notebook: str) -> list[str]:
    """That of each cell that makes something, where nobody has changed the notebook."""
    found = steps(notebook)
    return [made_by(found[: place + 1]) for place, source in enumerate(found) if makes(source)]


def made_from(sources: list[str], model: str = "tiny") -> str:
    """A digest of what decides a record: the recipe, the series' own code, and the texts that are read."""
    folder, kinds = (TINY, ("exam.jsonl", "calibration.json")) if model == "tiny" else (ROOT / "texts", ("*.txt",))
    texts = [file.read_text(encoding="utf-8") for kind in kinds for file in sorted(folder.glob(kind))]
    return key_of([made_by(sources), texts])
