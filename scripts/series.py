"""Run the series, refresh the committed outputs, or time it.

    python scripts/series.py run [01 02 ...]       execute into executed/ and print the table
    python scripts/series.py refresh [01 02 ...]   execute and keep the outputs in notebooks/
    python scripts/series.py benchmark [01 ...]    seconds for each notebook, split, from fresh artifacts
    python scripts/series.py guide                 put what 07_comparison measured into benchmarks/ and the README
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import nbformat  # noqa: E402

from execute import NotebookFailed, execute  # noqa: E402
from helpers.artifacts import artifacts_folder  # noqa: E402
from helpers.guide import BENCHMARKS, decision_table  # noqa: E402
from helpers.record import comparison_path, read_records, records_table  # noqa: E402

PARTS = ("import", "make", "load", "answer", "score")
BEGIN, END = "<!-- measured: scripts/series.py guide -->", "<!-- end -->"


def chosen(numbers: list[str]) -> list[pathlib.Path]:
    """The notebooks whose names start with one of ``numbers``; all of them when none is given."""
    found = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    wrong = [n for n in numbers if not any(p.name.startswith(n) for p in found)]
    if wrong:
        raise SystemExit(f"There is no notebook {', '.join(wrong)}. There are: {', '.join(p.stem for p in found)}.")
    return [p for p in found if not numbers or any(p.name.startswith(n) for n in numbers)]


def outputs_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("QUANT_EXECUTED") or ROOT / "executed").expanduser().resolve()


def run(notebooks: list[pathlib.Path], model: str) -> dict[str, float]:
    """Execute ``notebooks`` into the folder of executed ones; return the seconds that each took."""
    seconds = {}
    for number, path in enumerate(notebooks, 1):
        print(f"[{number}/{len(notebooks)}] {path.stem}", flush=True)
        start = time.perf_counter()
        parameters = {} if model == "tiny" else {"MODEL": model}
        try:
            # 07_comparison runs other notebooks in one of its cells
            execute(path, outputs_folder() / path.name, parameters, timeout=7200, progress=sys.stderr.isatty())
        except NotebookFailed as error:
            printed = outputs_folder() / path.name
            where = f" What it printed is in {printed}" if printed.exists() else ""
            raise SystemExit(f"{error}\n\n{path.stem} failed.{where}") from None
        seconds[path.stem] = time.perf_counter() - start
        print(f"      done in {seconds[path.stem]:.0f} s", flush=True)
    return seconds


def refresh(notebooks: list[pathlib.Path]) -> None:
    """Execute ``notebooks`` and write their outputs back, without papermill's and widgets' metadata."""
    for path in notebooks:
        with tempfile.TemporaryDirectory() as folder:
            print(path.stem, flush=True)
            try:
                done = execute(path, pathlib.Path(folder) / path.name, timeout=7200)
            except NotebookFailed as error:
                raise SystemExit(f"{error}\n\n{path.stem} failed; the committed notebook is as it was.") from None
        for key in ("papermill", "widgets"):
            done.metadata.pop(key, None)
        for cell in done.cells:
            for output in cell.get("outputs", []):
                if png := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = smaller(png)
            cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags" and value}
        done.metadata = {
            "kernelspec": done.metadata["kernelspec"],
            "language_info": {"name": "python"},
        }
        scratch = path.with_suffix(".ipynb.part")
        nbformat.write(done, scratch)
        os.replace(scratch, path)


def smaller(png: str) -> str:
    """A figure, as base64, in 32 colours: ours are grey, and take a third of the bytes then."""
    import base64
    import io

    from PIL import Image

    out = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(32, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode() + "\n"


def benchmark(notebooks: list[pathlib.Path]) -> None:
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        os.environ["QUANT_ARTIFACTS"] = folder
        start = time.perf_counter()
        whole = run(notebooks, "tiny")
        total = time.perf_counter() - start
        records = read_records()
    rows = []
    for stem, seconds in whole.items():
        parts = next((r["seconds"] for r in records if r["notebook"] == stem), {})
        rows.append({"notebook": stem, **{part: parts.get(part, 0.0) for part in PARTS}, "whole": seconds})
    print(pd.DataFrame(rows).set_index("notebook").round(1).to_string())
    print(f"the whole series: {total:.0f} s on {records[0]['versions']['device']}")


def with_guide(readme: str, table: str) -> str:
    """The README's text with ``table`` between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has lost its marks, {BEGIN} and {END}.")
    return f"{before}{begin}\n{table}\n{end}{after}"


def guide() -> None:
    source = comparison_path()
    if not source.is_file():
        raise SystemExit("Nothing has been compared yet: run 07_comparison first ('python scripts/series.py run 07').")
    found = source.read_text(encoding="utf-8")
    readme = ROOT / "README.md"
    table = decision_table(json.loads(found))  # fails before anything is written
    (BENCHMARKS / "quality-tiny.json").write_text(found, encoding="utf-8")
    readme.write_text(with_guide(readme.read_text(encoding="utf-8"), table), encoding="utf-8")
    print("written: benchmarks/quality-tiny.json and README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "refresh", "benchmark", "guide"])
    parser.add_argument("notebooks", nargs="*", help="numbers, such as 01 05; all when none is given")
    parser.add_argument("--model", default="tiny", help="the parameter MODEL, with run")
    given = parser.parse_args()
    notebooks = chosen(given.notebooks)
    if given.model != "tiny" and given.command != "run":
        parser.error("--model goes with run")
    if pathlib.Path(given.model).is_dir():
        given.model = str(pathlib.Path(given.model).resolve())  # the kernels run in notebooks/
    os.environ["QUANT_ARTIFACTS"] = str(artifacts_folder())  # likewise, if it was relative
    if given.command == "guide":
        guide()
    elif given.command == "refresh":
        refresh(notebooks)
    elif given.command == "benchmark":
        benchmark(notebooks if given.notebooks else notebooks[:6])  # the techniques
    else:
        run(notebooks, given.model)
        print(f"\nThe executed notebooks are in {outputs_folder()}\n")
        print(records_table(read_records(given.model)).to_string())


if __name__ == "__main__":
    main()
