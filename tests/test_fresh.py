"""The committed outputs are those of today's cells: executed again, they say the same in everything but times.

A number may differ where it is a time, a speed, or what the machine has free; all others must be equal on the device
that the committed outputs come from, and close to them on another.
"""

from __future__ import annotations

import difflib
import itertools
import re

import nbformat
import pytest

from execution import ALL, EXTRA, printed, tags

NUMBER = r"[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
# What depends on the clock, on what else runs, or on where the files lie.
VOLATILE = [
    re.compile(pattern)
    for pattern in (
        rf"{NUMBER} (?=GB of |GB free)|(?<=of the ){NUMBER}(?= GB free)|(?<= of ){NUMBER}(?= GB of memory free)",
        rf"memory: {NUMBER} MB before, {NUMBER} MB after",
        rf"{NUMBER}(?= processes hold)|(?<=hold ){NUMBER}(?= MB)",
        rf"{NUMBER} (?:tokens/s|ms\b|GB/s|s\b)",
        rf"{NUMBER}(?= MB above the start)|{NUMBER}(?= MB when all is read)|(?<=16-bit model must fit as well: ).*",
        r"(?<=^python )[\d.]+|\btorch [\d.]+(?:\+\w+)?",  # any of three Pythons, and torch's build
    )
]
DEVICE = re.compile(r"^(NVIDIA .+|cpu \(.+?\))(?=: .*of memory free)", re.M)


def read(path):
    return nbformat.read(path, as_version=4)


def without_times(text: str) -> list[str]:
    """The lines of ``text`` with every volatile number put out."""
    lines, last = [], False
    for line in text.splitlines():
        line = re.sub(r"^\.+(?=\D|$)", "", line)  # dots say that something goes on
        last = line.rstrip().endswith("tokens/s") or last and bool(line.strip())
        if last:  # the last column of a table
            line = re.sub(rf"{NUMBER}\s*$", "?", line)
        for pattern in VOLATILE:
            line = pattern.sub("?", line)
        if re.match(r"PORT = \d+: |this torch was built for CUDA", line):
            continue  # another program holds the first port; another build of torch
        lines.append(re.sub(r"\s+", " ", line).strip())
    return [line for line in lines if line]


def masked(line: str) -> str:
    return re.sub(NUMBER, "#", line)


def differences(committed, executed, same=lambda a, b: a == b, order=True) -> list[tuple[str, str | None, str | None]]:
    """The lines that are not the same: the cell's id, the committed line, today's. Lines that only moved are none."""
    found = []
    pairs = zip(committed.cells, [c for c in executed.cells if EXTRA not in tags(c)], strict=True)
    for old, new in pairs:
        if old.cell_type != "code" or "parameters" in old.metadata.get("tags", []):
            continue
        before, after = without_times(printed(old)), without_times(printed(new))
        if "timing" in old.metadata.get("tags", []):  # the numbers of this cell are times and speeds
            before, after = [*map(masked, before)], [*map(masked, after)]
        if not order:  # a table is sorted by what was measured
            before, after = sorted(before, key=masked), sorted(after, key=masked)
        alike = difflib.SequenceMatcher(None, [*map(masked, before)], [*map(masked, after)], autojunk=False)
        for _, first, last, start, end in alike.get_opcodes():
            lines = itertools.zip_longest(before[first:last], after[start:end])
            found += [(old.id, a, b) for a, b in lines if None in (a, b) or not same(a, b)]
    return found


def close(a: str, b: str) -> bool:
    """The same words, and numbers as far apart as two processors round: 10%, in rows with a standard error 50%."""
    share = 0.5 if "±" in a else 0.1
    if masked(a) != masked(b):
        return False
    for (x, percent), (y, _) in zip(*(re.findall(rf"({NUMBER})(%?)", line) for line in (a, b)), strict=True):
        x, y = (float(number.replace(",", "")) for number in (x, y))
        if abs(x - y) > max(share * max(abs(x), abs(y)), 2 if percent else 0):
            return False
    return True


def device(notebook) -> str:
    found = (DEVICE.search(printed(cell)) for cell in notebook.cells)
    return next((match[1] for match in found if match), "")


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_committed_outputs_are_fresh(executed, path):
    committed, done = read(path), executed(path.stem)
    if device(committed) != device(done):  # other kernels round otherwise, and start says what this machine is
        found = [line for line in differences(committed, done, close, order=False) if line[0] != "start"]
        assert not found, found
        return
    found = differences(committed, done)
    assert not found, "\n".join(f"cell {where}: {a!r}, now {b!r}" for where, a, b in found)


def test_a_changed_number_and_a_changed_word_are_seen():
    """What the comparison must see, and what it must overlook."""

    def notebook(text):
        cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=text)])
        return nbformat.v4.new_notebook(cells=[cell])

    old = "perplexity 1.6081 on 16 windows\nmemory: 612 MB before, 611 MB after\n20.1 tokens/s\n"
    assert not differences(notebook(old), notebook(old.replace("612", "98").replace("20.1", "3.5")))
    assert differences(notebook(old), notebook(old.replace("memory: 612 MB before, 611 MB after\n", "")))
    for a, b in (("1.6081", "1.6082"), ("16", "15"), ("windows", "texts"), ("perplexity", "")):
        assert differences(notebook(old), notebook(old.replace(a, b, 1)))
    table = "            perplexity tokens/s\nNF4              1.608     20.1\n\nmore 7"
    assert not differences(notebook(table), notebook(table.replace("20.1", "999.9")))
    assert differences(notebook(table), notebook(table.replace("1.608", "1.609")))
    assert differences(notebook(table), notebook(table.replace("more 7", "more 8")))
    moved = notebook("first\n" + old)
    assert len(differences(notebook(old), moved)) == 1, "one line is new, and the others have only moved"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("perplexity 1.592", "perplexity 1.6", True),
        ("perplexity 1.592", "perplexity 0.465", False),
        ("KL 0.0309 ± 0.0050", "KL 0.0250 ± 0.0041", True),
        ("KL 0.0309 ± 0.0050", "KL 0.0100 ± 0.0041", False),
        ("+1.03%", "+0.00%", True),
        ("+1.03%", "+9.00%", False),
        ("7 layers", "7 rows", False),
    ],
)
def test_what_two_processors_may_differ_in(a, b, same):
    assert close(a, b) == same
