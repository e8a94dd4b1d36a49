"""A run's record: one JSON file for each technique and model, from which runs are compared."""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
import warnings
from typing import Any

from series.artifacts import artifacts_folder, digest_of, replace_file
from series.quality import distance, perplexity, right_answers

FIELDS: dict[str, Any] = {
    "name": str,  # what the tables call it, such as 'GPTQ 4-bit'
    "technique": str,  # a name in series.techniques
    "library": str,  # the library that runs the model
    "model": str,  # the value of MODEL
    "identity": str,  # of the model's files, or its repository and commit
    "revision": str,  # the hub's commit, or 'local'
    "made_from": str,  # a digest of the recipe as it ran, the series' own code and the texts
    "asked": dict,  # the parameters that decide the result, such as {'BITS': 4}, as the notebook had them
    "settings": dict,  # and as they were after 'start', which may have to change them for a model
    "series": str,  # the version of this series
    "versions": dict,  # package -> version, and the device
    "layer": str,  # the class of a linear layer, or the format's name for its type
    "layers": dict,  # how many linear layers in the blocks are quantized, and how many are not
    "disk_bytes": int,
    "predicted_bytes": int,  # the weights, predicted from the configuration alone
    "memory_bytes": int,  # the weights while the model runs: counted over every tensor, or reported by the runtime
    "tokens_per_second": float,  # greedy decoding at batch 1, prompt included, after a warm-up
    "prompt_ids": list,
    "answer_ids": list,
    "answer": str,
    "exam_answers": list,  # the answers to the questions of the model's exam
    "wikitext": (float, type(None)),  # perplexity on WikiText-2, where it was asked for
}
DERIVED = ("tokens_scored", "perplexity", "right_answers", "scores_digest", "digest")  # by write_record


REAL = 10**9  # bytes: the speed of a smaller model is that of Python and of chance, and is not shown


def record_path(name: str, model: str = "tiny") -> pathlib.Path:
    """Where the record ``name`` of ``model`` belongs; its scores lie beside it, as ``.safetensors``."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name} {model}".lower()).strip("-")
    return artifacts_folder() / "records" / f"{slug}.json"


def write_record(
    windows: list[list[int]], scores: list[Any], questions: list[dict[str, Any]], **fields: Any
) -> dict[str, Any]:
    """Check ``fields`` against ``FIELDS``, write them as one JSON file, and return the record.

    Args:
        windows: the token ids that were scored, from ``held_out_windows``.
        scores: for each window its log-probabilities as float16, [positions, vocabulary]; kept beside the
            record, so that runs can be compared position by position.
        questions: of the exam, whose answers are among the fields.

    Raises:
        ValueError: a field is missing, unknown or of another type, or the answer is empty.
    """
    import numpy as np
    from safetensors.numpy import save

    missing, unknown = FIELDS.keys() - fields.keys(), fields.keys() - FIELDS.keys()
    if missing or unknown:
        raise ValueError(f"A record needs exactly its fields. Missing: {sorted(missing)}; unknown: {sorted(unknown)}.")
    for name, kind in FIELDS.items():
        if not isinstance(fields[name], kind):
            wanted = getattr(kind, "__name__", "a float or None")
            raise ValueError(f"The record's {name} must be {wanted}, but is {fields[name]!r}.")
    if not fields["answer"].strip() or not fields["answer_ids"]:
        raise ValueError("The record's answer is empty: the model said nothing.")
    record = {
        **fields,
        "tokens_scored": sum(len(ids) - 1 for ids in windows),
        "perplexity": perplexity(windows, scores),
        "right_answers": right_answers(questions, fields["exam_answers"]),
    }
    rows = [np.asarray(part[: len(ids) - 1], dtype=np.float16) for ids, part in zip(windows, scores, strict=True)]
    tensors = {"ids": np.asarray(windows, dtype=np.int32), "log_probabilities": np.stack(rows)}
    target = record_path(fields["name"], fields["model"])
    replace_file(target.with_suffix(".safetensors"), save(tensors))
    record["scores_digest"] = digest_of(target.with_suffix(".safetensors"))  # of another run, they do not agree
    record["digest"] = _digest(record)
    replace_file(target, json.dumps(record, indent=2, ensure_ascii=False).encode())
    return record


def _digest(record: dict[str, Any]) -> str:
    facts = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_record(name: str, model: str = "tiny") -> dict[str, Any]:
    """One record.

    Raises:
        FileNotFoundError: it was never made.
        ValueError: one of its two files is damaged, or they are of two runs.
    """
    path = record_path(name, model)
    scores = path.with_suffix(".safetensors")
    if not path.is_file() or not scores.is_file():
        raise FileNotFoundError(f"There is no record of {name} for {model}: run its notebook, or 07_comparison.")
    record = _read(path)
    if "scores_digest" in record and digest_of(scores) != record["scores_digest"]:
        raise ValueError(f"{scores.name} is damaged, or of another run than {path.name}; its notebook makes both again")
    if record["model"] != model:  # another model whose name makes the same file name
        raise FileNotFoundError(f"The record of {name} is that of {record['model']}, and not of {model}.")
    return record


def read_records(model: str = "tiny") -> list[dict[str, Any]]:
    """All records of ``model``, oldest first; those of another version of this series are passed over."""
    found = sorted((artifacts_folder() / "records").glob("*.json"), key=lambda path: path.stat().st_mtime)
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


def read_scores(record: dict[str, Any]) -> tuple[Any, Any]:
    """The scored ids, [windows, length], and log-probabilities, [windows, length - 1, vocabulary], of a record."""
    from safetensors.numpy import load_file

    tensors = load_file(record_path(record["name"], record["model"]).with_suffix(".safetensors"))
    return tensors["ids"], tensors["log_probabilities"]


def figures(record: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, Any]:
    """What the tables and the guide say of a run: bytes, quality with its standard error, speed.

    The distance from the 16-bit model needs its record, ``reference``; without one these figures are None.
    """
    found = {
        "technique": record["technique"],
        "library": record["library"],
        "settings": record["settings"],
        "disk_bytes": record["disk_bytes"],
        "predicted_bytes": record["predicted_bytes"],
        "memory_bytes": record["memory_bytes"],
        "perplexity": record["perplexity"],
        "right_answers": record["right_answers"],
        "tokens_per_second": record["tokens_per_second"],
        "wikitext": record["wikitext"],
        "kl_divergence": None,
        "standard_error": None,
        "same_top_token": None,
    }
    if reference is not None:
        (ids, q), (wanted, p) = read_scores(record), read_scores(reference)
        if ids.tolist() != wanted.tolist():
            raise ValueError(f"{record['name']} was scored on other tokens than the 16-bit model; run both again.")
        found |= distance(q, p)
    return found


def table(rows: dict[str, dict[str, Any]], digits: int = 3) -> Any:
    """The series' table, a pandas DataFrame: one row for each name and its ``figures``."""
    import pandas as pd

    def share(value: float, count: int = 200) -> str:
        return f"{value:.1%} ± {100 * (value * (1 - value) / count) ** 0.5:.1f}"

    wikitext = any(row.get("wikitext") for row in rows.values())
    large = any(r["predicted_bytes"] >= REAL for r in rows.values())
    shown = {
        name: {
            "run by": r["library"],
            "disk, MB": f"{r['disk_bytes'] / 1e6:,.1f}",
            "memory, MB": f"{r['memory_bytes'] / 1e6:,.1f}",
            "perplexity": f"{r['perplexity']:.{digits}f}",
            "KL divergence": "-"
            if r["kl_divergence"] is None
            else f"{r['kl_divergence']:.4f} ± {r['standard_error']:.4f}",
            **({"WikiText-2": f"{r['wikitext']:.2f}" if r.get("wikitext") else "-"} if wikitext else {}),
            "right answers": share(r["right_answers"]),
            **({"tokens/s": f"{r['tokens_per_second']:,.1f}"} if large else {}),
        }
        for name, r in rows.items()
    }
    return pd.DataFrame(shown).T.rename_axis("technique")
