"""The committed outputs are those of today's cells: executed again, they say the same in everything but times.

A number may differ where it is a time, a speed, or what the machine has free; all others must be equal on the device
that the committed outputs come from, and close to them on another.
"""

from __future__ import annotations

import itertools
import re

import nbformat
import pytest

from execution import ALL, EXTRA, printed, tags

NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
# What depends on the clock, on what else runs, or on where the files lie.
VOLATILE = [re.compile(pattern) for pattern in (
    rf"{NUMBER} (?=GB of |GB free)|(?<=of the ){NUMBER}(?= GB free)|(?<= of ){NUMBER}(?= GB of memory free)",
    rf"memory: {NUMBER} MB before, {NUMBER} MB after",
    rf"{NUMBER}(?= processes hold)|(?<=hold ){NUMBER}(?= MB)",
    rf"{NUMBER} (?:tokens/s|ms\b|GB/s|s\b)",
    rf"{NUMBER}(?= MB above the start)|(?<=16-bit model must fit as well: ).*",
)]  # fmt: skip
DEVICE = re.compile(r"^(NVIDIA .+|cpu \(.+?\))(?=: .*of memory free)", re.M)


def read(path):
    return nbformat.read(path, as_version=4)


def without_times(text: str) -> list[str]:
    """The lines of ``text`` with every volatile number put out."""
    lines, last = [], False
    for line in text.splitlines():
        last = line.rstrip().endswith("tokens/s") or last and bool(line.strip())
        if last:  # the last column of a table
            line = re.sub(rf"{NUMBER}\s*$", "?", line)
        for pattern in VOLATILE:
            line = pattern.sub("?", line)
        lines.append(re.sub(r"\s+", " ", line).strip())
    return [line for line in lines if line]


def differences(committed, executed) -> list[tuple[int, str | None, str | None]]:
    """The lines that are not the same: the cell's number, the committed line, and today's."""
    found = []
    pairs = zip(committed.cells, [c for c in executed.cells if EXTRA not in tags(c)], strict=True)
    for number, (old, new) in enumerate(pairs):
        if old.cell_type != "code" or "parameters" in old.metadata.get("tags", []):
            continue
        before, after = without_times(printed(old)), without_times(printed(new))
        found += [(number, a, b) for a, b in itertools.zip_longest(before, after) if a != b]
    return found


def device(notebook) -> str:
    found = (DEVICE.search(printed(cell)) for cell in notebook.cells)
    return next((match[1] for match in found if match), "")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_committed_outputs_are_fresh(executed, path):
    committed, done = read(path), executed(path.stem)
    found = differences(committed, done)
    if device(committed) != device(done):  # other kernels round otherwise: other numbers, and a few other lines
        found = [(n, a, b) for n, a, b in found if re.sub(NUMBER, "#", a or "") != re.sub(NUMBER, "#", b or "")]
        assert len(found) <= 0.1 * sum(len(without_times(printed(cell))) for cell in done.cells), found
        return
    assert not found, "\n".join(f"cell {committed.cells[n].id}: {a!r}, now {b!r}" for n, a, b in found)


def test_a_changed_number_and_a_changed_word_are_seen():
    """What the comparison must see, and what it must overlook."""

    def notebook(text):
        cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=text)])
        return nbformat.v4.new_notebook(cells=[cell])

    old = "perplexity 1.6081 on 16 windows\nmemory: 612 MB before, 611 MB after\n20.1 tokens/s\n"
    assert not differences(notebook(old), notebook(old.replace("612", "98").replace("20.1", "3.5")))
    assert differences(notebook(old), notebook(old.replace("memory: 612 MB before, 611 MB after\n", "")))
    for a, b in (("1.6081", "1.6082"), ("16", "15"), ("windows", "texts"), ("perplexity", "")):  # fmt: skip
        assert differences(notebook(old), notebook(old.replace(a, b, 1)))
    table = "            perplexity tokens/s\nNF4              1.608     20.1\n\nmore 7"
    assert not differences(notebook(table), notebook(table.replace("20.1", "999.9")))
    assert differences(notebook(table), notebook(table.replace("1.608", "1.609")))
    assert differences(notebook(table), notebook(table.replace("more 7", "more 8")))
