"""A run's record: one JSON file for each technique and model, from which runs are compared."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from helpers.artifacts import artifacts_folder

FIELDS = {
    "technique": str,  # the notebook's technique, such as 'nf4'
    "library": str,  # the library that runs the model
    "model": str,  # the value of MODEL
    "revision": str,  # the hub's commit, or 'local'
    "versions": dict,  # package -> version, and the device
    "layer": str,  # the class of a linear layer, or the format's name for its type
    "disk_bytes": int,
    "memory_bytes": int,  # the weights as they lie in memory
    "seconds": dict,  # import, make, load, answer
    "tokens_per_second": float,  # greedy decoding at batch 1, prompt included, after a warm-up
    "prompt_ids": list,
    "answer_ids": list,
    "answer": str,
}


class Timings(dict):
    """Seconds by name: ``with timings("load"): ...`` adds up what the block took."""

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[name] = self.get(name, 0.0) + time.perf_counter() - start


def records_folder() -> pathlib.Path:
    return artifacts_folder() / "records"


def write_record(**fields: Any) -> pathlib.Path:
    """Check ``fields`` against ``FIELDS``, write them as one JSON file and return its path.

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
    label = fields["model"].strip("/.").replace("/", "--")
    target = records_folder() / f"{fields['technique']}-{label}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(fields, indent=2, ensure_ascii=False)
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, target)
    return target


def read_records(model: str = "tiny") -> list[dict[str, Any]]:
    """All records of ``model``, oldest first; an empty list when nothing has run."""
    found = sorted(records_folder().glob("*.json"), key=lambda path: path.stat().st_mtime)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in found]
    return [record for record in records if record["model"] == model]


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

    pd.set_option("display.max_colwidth", None)  # answers are shown whole
    rows = [
        {
            "technique": r["technique"],
            "library": r["library"],
            "linear layer": r["layer"],
            "disk, MB": round(r["disk_bytes"] / 1e6, 1),
            "memory, MB": round(r["memory_bytes"] / 1e6, 1),
            "tokens/s": round(r["tokens_per_second"], 1),
            "answer": r["answer"],
        }
        for r in records
    ]
    return pd.DataFrame(rows).set_index("technique") if rows else pd.DataFrame()
