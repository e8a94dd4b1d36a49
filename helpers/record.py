"""A run's record: one JSON file for each technique and model, from which runs are compared."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from helpers.artifacts import ROOT, artifacts_folder, files_of, scratch_folder, sha256
from helpers.console import device_name
from helpers.models import MODELS
from helpers.quality import exam_questions, perplexity, right_answers

FIELDS = {
    "name": str,  # what the tables call it, such as 'GPTQ 4-bit'
    "technique": str,  # baseline, sharding, nf4, gptq, gguf or awq
    "library": str,  # the library that runs the model
    "model": str,  # the value of MODEL
    "revision": str,  # the hub's commit, or 'local'
    "notebook": str,  # the notebook that wrote this, such as '04_gptq'
    "settings": dict,  # the parameters that decide the result, such as {'BITS': 4}
    "versions": dict,  # package -> version, and the device
    "layer": str,  # the class of a linear layer, or the format's name for its type
    "layers": dict,  # how many linear layers in the blocks are quantized, and how many are not
    "disk_bytes": int,
    "predicted_bytes": int,  # the weights, predicted from the configuration alone
    "memory_bytes": int,  # the weights as loaded, counted over every tensor or reported by the runtime
    "running_bytes": int,  # the same after the first answers: some kernels lay the weights out anew
    "peak_bytes": int,  # the highest memory while loading, above the start
    "seconds": dict,  # import, make, load, answer, score
    "tokens_per_second": float,  # greedy decoding at batch 1, prompt included, after a warm-up
    "prompt_ids": list,
    "answer_ids": list,
    "answer": str,
    "exam_answers": list,  # the answers to the held-out questions; empty for models that they are not for
}
LESSONS = {"under-the-hood", "exercise", "check"}  # tags of the cells that come after the record, and leave it alone
UNMEASURED = ("colab", "exercise", "guide")  # helpers that decide nothing of what a record holds
DERIVED = ("made_from", "tokens_scored", "perplexity", "right_answers", "scores_digest", "digest")  # by write_record


class Timings(dict):
    """Seconds by name: ``with timings("load"): ...`` adds up what the block took."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[name] = self.get(name, 0.0) + time.perf_counter() - start


def records_folder() -> pathlib.Path:
    return artifacts_folder() / "records"


def record_path(name: str, model: str = "tiny") -> pathlib.Path:
    """Where the record ``name`` of ``model`` belongs; its scores lie beside it, as ``.safetensors``."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {model}".lower()).strip("-")
    return records_folder() / f"{slug}.json"


def write_record(windows: list[list[int]], scores: list[Any], **fields: Any) -> dict[str, Any]:
    """Check ``fields`` against ``FIELDS``, write them as one JSON file, and return the record.

    Args:
        windows: the token ids that were scored, from ``held_out_windows``.
        scores: for each window its log-probabilities as float16, [positions, vocabulary]; kept beside the
            record, so that runs can be compared position by position.

    Raises:
        ValueError: a field is missing, unknown or of another type, or the answer is empty.
    """
    missing, unknown = FIELDS.keys() - fields.keys(), fields.keys() - FIELDS.keys()
    if missing or unknown:
        raise ValueError(f"A record needs exactly its fields. Missing: {sorted(missing)}; unknown: {sorted(unknown)}.")
    for name, kind in FIELDS.items():
        if not isinstance(fields[name], kind):
            raise ValueError(f"The record's {name} must be {kind.__name__}, but is {fields[name]!r}.")
    if not fields["answer"].strip() or not fields["answer_ids"]:
        raise ValueError("The record's answer is empty: the model said nothing.")
    questions = exam_questions(fields["model"])
    if len(questions) != len(fields["exam_answers"]):
        raise ValueError(f"The exam has {len(questions)} questions; there are {len(fields['exam_answers'])} answers.")
    record = {
        **fields,
        "made_from": made_from(fields["notebook"], fields["model"]),
        "tokens_scored": sum(len(ids) - 1 for ids in windows),
        "perplexity": perplexity(windows, scores),
        "right_answers": right_answers(questions, fields["exam_answers"]) if questions else None,
    }
    target = record_path(fields["name"], fields["model"])
    scores_file = target.with_suffix(".safetensors")
    _save_scores(scores_file, windows, scores)
    record["scores_digest"] = sha256(scores_file)  # after a stop between the two files, they do not agree
    record["digest"] = _digest(record)
    _replace(target, json.dumps(record, indent=2, ensure_ascii=False).encode())
    return record


def _digest(record: dict[str, Any]) -> str:
    facts = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _save_scores(target: pathlib.Path, windows: list[list[int]], scores: list[Any]) -> None:
    import numpy as np
    from safetensors.numpy import save

    rows = [np.asarray(part[: len(ids) - 1], dtype=np.float16) for ids, part in zip(windows, scores, strict=True)]
    _replace(target, save({"ids": np.asarray(windows, dtype=np.int32), "log_probabilities": np.stack(rows)}))


def _replace(target: pathlib.Path, content: bytes) -> None:
    """Write the file whole or not at all."""
    with scratch_folder(target.parent, target.name) as scratch:
        (scratch / target.name).write_bytes(content)
        os.replace(scratch / target.name, target)


def read_scores(record: dict[str, Any]) -> tuple[Any, Any]:
    """The scored ids, [windows, length], and log-probabilities, [windows, length - 1, vocabulary], of a record."""
    from safetensors.numpy import load_file

    tensors = load_file(record_path(record["name"], record["model"]).with_suffix(".safetensors"))
    return tensors["ids"], tensors["log_probabilities"]


def read_record(name: str, model: str = "tiny") -> dict[str, Any]:
    """One record.

    Raises:
        FileNotFoundError: it was never made.
        ValueError: one of its two files is damaged, or they are of two runs.
    """
    path = record_path(name, model)
    if not path.is_file() or not path.with_suffix(".safetensors").is_file():
        raise FileNotFoundError(f"There is no record of {name} for {model}: run its notebook, or 07_comparison.")
    record = _read(path)
    if "scores_digest" in record and sha256(path.with_suffix(".safetensors")) != record["scores_digest"]:
        scores = path.with_suffix(".safetensors").name
        raise ValueError(f"{scores} is damaged, or of another run than {path.name}; its notebook makes both again")
    if record["model"] != model:  # another model whose name makes the same file name
        raise FileNotFoundError(f"The record of {name} is that of {record['model']}, and not of {model}.")
    return record


def read_records(model: str = "tiny") -> list[dict[str, Any]]:
    """All records of ``model``, oldest first; those of another version of this series are passed over."""
    found = sorted(records_folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    records = []
    for path in found:
        try:
            records.append(_read(path))
        except ValueError as error:
            warnings.warn(f"{error}; it is passed over. Run its notebook again.", stacklevel=2)
    whole = FIELDS.keys() | set(DERIVED)
    return [record for record in records if record.keys() == whole and record["model"] == model]


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A record's JSON file; ValueError when it is not as it was written."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        sound = isinstance(record, dict) and record.get("digest", _digest(record)) == _digest(record)
    except ValueError:  # no JSON, or no text
        sound = False
    if not sound:
        raise ValueError(f"{path.name} is damaged; its notebook makes it again")
    return record


def made_from(notebook: str, model: str) -> str:
    """A digest of what decides a record: the notebook's code, the helpers, a local model.

    Its lessons and its set-up, which holds the address of the repository, are left out.
    """
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    measuring = [c for c in cells if c["cell_type"] == "code" and not LESSONS & set(c["metadata"].get("tags", []))]
    sources = ["".join(cell["source"]) for cell in measuring]
    code = [source for source in sources if "from helpers.colab import install" not in source]
    modules = [file for file in sorted((ROOT / "helpers").glob("*.py")) if file.stem not in UNMEASURED]
    helpers = [file.read_text(encoding="utf-8") for file in modules]
    known = MODELS.get(model, {}).get("base")
    folder = pathlib.Path(known.source if known else model).expanduser()
    facts = [code, helpers, files_of(folder) if folder.is_dir() else None]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def comparison_path(model: str = "tiny") -> pathlib.Path:
    """Where 07_comparison keeps what it found."""
    return artifacts_folder() / f"comparison-{record_path('', model).stem}.json"


def write_comparison(figures: dict[str, dict[str, Any]], model: str = "tiny") -> pathlib.Path:
    """Write what 07_comparison found, a row for each run, and return the file."""
    target = comparison_path(model)
    _replace(target, (json.dumps(figures, indent=1) + "\n").encode())
    return target


def default_parameters(notebook: str) -> dict[str, Any]:
    """The names and values in the notebook's cell that is tagged ``parameters``."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", []))
    return {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(source).body}


def why_stale(record: dict[str, Any], parameters: dict[str, Any] | None = None) -> str | None:
    """Why a record is not one of these ``parameters`` (else the notebook's own) on today's state, or None.

    A record is stale when its notebook, the helpers, a local model's files or a library's version have changed
    since, or when it was made on another device.
    """
    if record.keys() != FIELDS.keys() | set(DERIVED):
        return "it was written by another version of this series"
    if record["made_from"] != made_from(record["notebook"], record["model"]):
        return "its notebook, the helpers or the model have changed since"
    wanted = default_parameters(record["notebook"]) | (parameters or {})
    for name, value in record["settings"].items():
        if wanted[name] != value:
            return f"it was made with {name} = {value!r}"
    for package, version in record["versions"].items():
        if package == "device" and version != device_name():
            return f"it was made on {version}"
        if package not in ("python", "device") and _installed(package) != version:
            return f"it was made with {package} {version}"
    return None


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def measure_speed(generate: Callable[[], list[int]]) -> tuple[list[int], float]:
    """Run ``generate`` twice, a warm-up and a timed run; return the new token ids and tokens per second.

    Raises:
        ValueError: nothing was generated.
        RuntimeError: the two runs differ, so decoding is not greedy.
    """
    first = generate()
    start = time.perf_counter()
    second = generate()
    seconds = time.perf_counter() - start
    if not second:
        raise ValueError("The model generated no token.")
    if first != second:
        raise RuntimeError("Two runs gave different tokens: decode greedily, so that answers compare.")
    return second, len(second) / seconds


def records_table(records: list[dict[str, Any]]) -> Any:
    """The series' table, one row for each record: a pandas DataFrame."""
    import pandas as pd

    rows = [
        {
            "technique": r["name"],
            "library": r["library"],
            "disk, MB": round(r["disk_bytes"] / 1e6, 1),
            "memory, MB": round(r["memory_bytes"] / 1e6, 1),
            "perplexity": round(r["perplexity"], 3),
            **({} if r["right_answers"] is None else {"right answers": f"{r['right_answers']:.1%}"}),
            "tokens/s": round(r["tokens_per_second"], 1),
        }
        for r in records
    ]
    return pd.DataFrame(rows).set_index("technique") if rows else pd.DataFrame()
