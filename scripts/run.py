"""Run the series, refresh the committed outputs, measure all widths, or print the notebooks' shape.

python scripts/run.py run [01 02 ...]       execute into executed/ and print the table
python scripts/run.py refresh [01 02 ...]   execute and keep the outputs in notebooks/
python scripts/run.py ladders [--add]       measure all widths and calibration texts, for 07_comparison; or only
                                            what the committed figures lack
python scripts/run.py guide                 put what 07_comparison measured into benchmarks/ and the README
python scripts/run.py shape                 lines before the first answer, names of ours, cells
"""

from __future__ import annotations

import argparse
import ast
import base64
import io
import os
import pathlib
import statistics
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import nbformat  # noqa: E402

from series import notebooks  # noqa: E402
from series.artifacts import artifacts_folder  # noqa: E402
from series.guide import BENCHMARKS, SOURCES, decision_table  # noqa: E402
from series.quirks.torch import multiply_in_32_bits  # noqa: E402
from series.record import figures, read_records, table  # noqa: E402
from series.run import NotebookFailed, chosen, execute, outputs_folder, run  # noqa: E402

BEGIN, END = "<!-- measured: make guide -->", "<!-- end -->"


def refresh(paths: list[pathlib.Path]) -> None:
    """Execute ``paths`` and write their outputs back, without papermill's and widgets' metadata.

    With the number of threads that the tests have, two notebooks at a time: GPTQ's sums depend on it.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // 2))
    if multiply_in_32_bits():
        print(
            "This processor has no bfloat16 arithmetic. The times in 01 and 03 will be those of an exception, as "
            "their text says: refresh on one that has it, where one is at hand.",
            flush=True,
        )
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            print(path.stem, flush=True)
            try:
                done = execute(path, pathlib.Path(folder) / path.name, timeout=7200)
            except NotebookFailed as error:
                raise SystemExit(f"{error}\n\n{path.stem} failed; the committed notebook is as it was.") from None
        for cell in done.cells:
            if cell.cell_type == "code":
                cell.outputs = merged(cell.outputs)
            for output in cell.get("outputs", []):
                if png := output.get("data", {}).get("image/png"):
                    output["data"]["image/png"] = smaller(png)
            cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags" and value}
        done.metadata = {"kernelspec": done.metadata["kernelspec"], "language_info": {"name": "python"}}
        scratch = path.with_suffix(".ipynb.part")
        nbformat.write(done, scratch)
        os.replace(scratch, path)


def merged(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """What a cell printed in pieces as one text, as a reader's Jupyter shows it."""
    found: list[nbformat.NotebookNode] = []
    for output in outputs:
        if found and output.output_type == "stream" == found[-1].output_type and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def smaller(png: str) -> str:
    """A figure, as base64, in 64 colours: a third of the bytes."""
    from PIL import Image

    out = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode() + "\n"


def with_guide(readme: str) -> str:
    """The README's text with the guide between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has lost its marks, {BEGIN} and {END}.")
    return f"{before}{begin}\n{decision_table()}\n\n{SOURCES}\n{end}{after}"


def draw(target: pathlib.Path) -> None:
    """The README's figure: what a format takes of memory for Zephyr-7B, and what it costs a model of that size."""
    import matplotlib.pyplot as plt

    from helpers import weight_bytes
    from series.guide import LLAMA_3_8B, label_points, zephyr

    plt.rcParams["svg.hashsalt"] = "series"  # the same file each time
    names = [kind for kind in LLAMA_3_8B if kind != "16-bit"]
    sizes = [weight_bytes(zephyr(), kind) / 1e9 for kind in names]
    figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
    axes.semilogy(sizes, [LLAMA_3_8B[kind][1] for kind in names], "D-", color="#009e73")
    axes.set_ylim(4e-4, 2)
    axes.axvline(weight_bytes(zephyr()) / 1e9, color="0.6", linestyle="--")
    axes.text(weight_bytes(zephyr()) / 1e9 - 0.1, 0.1, "16 bits, 14.5 GB", ha="right", color="0.4")
    points = {f"{kind}, {size:.1f} GB": (size, LLAMA_3_8B[kind][1]) for kind, size in zip(names, sizes, strict=True)}
    axes.set(
        xlabel="Zephyr-7B in memory, GB",
        ylabel="KL divergence, nats",
        xlim=(2, 15),
        title="Bytes, and the distance from the 16-bit model (Llama-3-8B, by llama.cpp)",
    )
    label_points(axes, points, fontsize=10)
    figure.savefig(target, metadata={"Date": None})


def guide() -> None:
    readme, written = ROOT / "README.md", ["README.md"]
    text = with_guide(readme.read_text(encoding="utf-8"))  # fails before anything is written
    for model in ("tiny", "small"):
        if (source := artifacts_folder() / f"comparison-{model}.json").is_file():
            (BENCHMARKS / f"quality-{model}.json").write_bytes(source.read_bytes())
            written.append(f"benchmarks/quality-{model}.json")
    readme.write_text(text, encoding="utf-8")
    draw(BENCHMARKS / "guide.svg")
    print("written:", ", ".join(written))


def code_lines(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip() and not line.strip().startswith("#")]


def shape(paths: list[pathlib.Path]) -> dict[str, dict[str, float]]:
    """For each notebook: code lines and cells before the first answer (00: number, 07: table), names of ours, cells."""
    found = {}
    for path in paths:
        cells = notebooks.cells(path)
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        first = next((i for i, cell in enumerate(code) if cell["id"] in ("ask", "table", "symmetric")), 0)
        imports = [n for c in code for n in ast.walk(ast.parse(c["source"])) if isinstance(n, ast.ImportFrom)]
        ours = {a.name for n in imports if (n.module or "").split(".")[0] in ("helpers", "series") for a in n.names}
        sizes = [len(code_lines(cell["source"])) for cell in code]
        found[path.stem] = {
            "lines to the first answer": sum(sizes[: first + 1]),
            "code cells to it": first + 1,
            "names of ours": len(ours),
            "cells": len(cells),
            "median code cell": statistics.median(sizes),
            "longest": max(sizes),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "refresh", "ladders", "guide", "shape"])
    parser.add_argument("notebooks", nargs="*", help="numbers, such as 01 05; all when none is given")
    parser.add_argument("--model", default="tiny", help="the parameter MODEL, with run and ladders")
    parser.add_argument("--add", action="store_true", help="with ladders")
    given = parser.parse_args()
    paths = chosen(given.notebooks)
    if given.model != "tiny" and given.command not in ("run", "ladders"):
        parser.error("--model goes with run and ladders")
    if pathlib.Path(given.model).is_dir():
        given.model = str(pathlib.Path(given.model).resolve())  # the kernels run in notebooks/
    if given.command != "shape":
        os.environ["QUANT_ARTIFACTS"] = str(artifacts_folder())  # likewise, if it was relative
    if given.command == "guide":
        guide()
    elif given.command == "refresh":
        refresh(paths)
    elif given.command == "ladders":
        from series import comparison

        longest = notebooks.default_parameters("07_comparison")["MAX_NEW_TOKENS"]
        comparison.add(given.model, longest) if given.add else comparison.collect(given.model, True, longest)
    elif given.command == "shape":
        import pandas as pd

        print(pd.DataFrame(shape(paths)).T.to_string(float_format="{:g}".format))
    else:
        run(paths, given.model)
        records = {record["name"]: record for record in read_records(given.model)}
        print(f"\nThe executed notebooks are in {outputs_folder()}\n")
        print(table({n: figures(r, records.get("16-bit")) for n, r in records.items()}).to_string())


if __name__ == "__main__":
    main()
