"""What the notebooks teach besides running: the exercises, the lessons under the hood, and the glossary."""

from __future__ import annotations

import re

import nbformat
import pytest
from conftest import ALL, COMPARISON, NOTEBOOKS, ROOT

from execute import NotebookFailed, execute
from helpers.record import LESSONS, made_from

SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```", re.S)


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [i for i, cell in enumerate(notebook.cells) if tag in cell.metadata.get("tags", [])]


def exercises(notebook):
    """Of each exercise the places of its cell for the answer and of its check, and the folded solution's code."""
    found = []
    for place in tagged(notebook, "exercise"):
        solution = SOLUTION.search(notebook.cells[place - 1].source)
        assert solution, f"no folded solution above cell {place}"
        assert tagged(notebook, "check").count(place + 1) == 1, f"no check below cell {place}"
        found.append((place, place + 1, solution[1]))
    return found


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture
def series(executed, request):
    """``series(path)``: an executed notebook; the comparison comes after the six, whose records it needs."""

    def run(path):
        if path == COMPARISON:
            request.getfixturevalue("six")
        return executed(path)[0]

    return run


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_exercises_are_two_or_three_and_whole(path):
    notebook = read(path)
    assert 2 <= len(exercises(notebook)) <= 3
    assert len(tagged(notebook, "check")) == len(tagged(notebook, "exercise"))
    assert any(cell.source.startswith("## Exercises") for cell in notebook.cells)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_an_unsolved_exercise_says_not_yet(series, path):
    notebook = series(path)
    for _, check, _ in exercises(notebook):
        assert printed(notebook.cells[check]).startswith("not yet"), printed(notebook.cells[check])


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_the_solutions_are_right(series, path, tmp_path):
    """The notebook once more, with the folded solutions in the cells for the answers."""
    series(path)  # so that all it makes is there
    notebook = read(path)
    for answer, _, solution in exercises(notebook):
        notebook.cells[answer].source = solution
    done = execute_copy(notebook, tmp_path)
    assert [printed(done.cells[check]) for _, check, _ in exercises(notebook)] == ["right\n"] * len(exercises(notebook))


def execute_copy(notebook, folder):
    """Execute a changed notebook; nothing is written beside the others."""
    return execute(notebook, folder / "part.ipynb", timeout=1800)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lessons_come_after_the_record_and_do_not_age_it(path):
    """07 leaves them out when it makes a record, so no later cell may need them, and editing one changes none."""
    notebook = read(path)
    lessons = sorted(place for tag in LESSONS for place in tagged(notebook, tag))
    assert lessons
    if path == COMPARISON:
        return
    sources = [cell.source for cell in notebook.cells]
    record = next(i for i, text in enumerate(sources) if "write_record(\n" in text)
    hood = next(i for i, text in enumerate(sources) if text.startswith("## Under the hood"))
    exercise = next(i for i, text in enumerate(sources) if text.startswith("## Exercises"))
    assert record < hood < exercise
    for place in tagged(notebook, "under-the-hood"):
        after_the_answer = path.stem == "01_baseline" and "do_sample=True" in sources[place]
        assert hood < place < exercise or after_the_answer
    inside = [i for i in range(hood, exercise) if notebook.cells[i].cell_type == "code"]
    assert all("under-the-hood" in notebook.cells[i].metadata.tags for i in inside)


def test_a_record_is_made_from_the_measuring_cells_alone(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "helpers").mkdir()
    monkeypatch.setattr("helpers.record.ROOT", tmp_path)
    measuring, lesson = nbformat.v4.new_code_cell("x = 1"), nbformat.v4.new_code_cell("y = 2")
    lesson.metadata["tags"] = ["under-the-hood"]

    def digest():
        nbformat.write(nbformat.v4.new_notebook(cells=[measuring, lesson]), tmp_path / "notebooks" / "n.ipynb")
        return made_from("n", "tiny")

    first = digest()
    lesson.source = "y = 3"
    assert digest() == first
    measuring.source = "x = 2"
    assert digest() != first


# --- the glossary ------------------------------------------------------------------------

TERMS = {  # the heading in the glossary: how the notebooks write it
    "absmax": "absmax", "activation": "activations?", "bandwidth": "bandwidth", "bits a weight": "bits a weight",
    "calibration": "calibration", "channel": "channels?", "chat template": "chat template",
    "checkpoint": "checkpoints?", "damping": "damping", "decoding": "decod(?:es?|ing)",
    "dequantizing": "dequantiz(?:e|es|ing)", "double quantization": "double quantization",
    "greedy decoding": "greed(?:y|ily)", "group": "groups?", "Hessian": "Hessian", "hook": "hooks?",
    "kernel": "kernels?", "key-value cache": "cache", "KL divergence": "KL divergence", "K-quant": "K-quants?",
    "level": "levels?", "logits": "logits", "perplexity": "perplexity", "prefill": "prefill",
    "quantile": "quantiles?", "quantizing": "quantiz(?:es?|ing)",
    "round to nearest": "round(?:ing|s)?[ -]to[ -]nearest", "salient": "salient", "scale": "scales?",
    "shard": "shards?", "super-block": "super-blocks?",
    "tensor parallelism": "[Tt]ensor parallelism", "token": "tokens?", "weight": "weights?",
    "zero point": "zero points?",
}  # fmt: skip
CODE_AND_FORMULAS = r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]*\$"
OTHER = r"<[^>]+>|^#[^\n]*$|^\|[^\n]*$|\[!?\[[^\n]*\)|\]\([^)]*\)"  # HTML, headings, tables, badges, where links lead
NOT_PROSE = re.compile(f"{CODE_AND_FORMULAS}|{OTHER}", re.S | re.M)


def prose(text: str) -> str:
    """A Markdown cell with all that is no running text blanked out, each character in its place."""
    return NOT_PROSE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def first_use(pattern: str):
    """The first cell in reading order that uses a term in its prose, and where in it."""
    for path in NOTEBOOKS:
        for number, cell in enumerate(read(path).cells):
            if cell.cell_type == "markdown" and number > 0:  # the first cell says what is to come
                if found := re.search(rf"(?<![\w-]){pattern}(?![\w-])", prose(cell.source), re.I):
                    return path, number, found
    raise AssertionError(f"no notebook uses {pattern!r}")


def test_the_glossary_defines_what_the_notebooks_use():
    headings = re.findall(r"^## (.+)$", (ROOT / "GLOSSARY.md").read_text(encoding="utf-8"), re.M)
    assert set(headings) == set(TERMS)
    assert headings == sorted(headings, key=str.lower)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_linked_where_it_is_first_used(term):
    path, number, found = first_use(TERMS[term])
    anchor = term.lower().replace(" ", "-")
    source = read(path).cells[number].source
    link = f"[{source[found.start() : found.end()]}](../GLOSSARY.md#{anchor})"
    assert source[found.start() - 1 :].startswith(link), f"{path.stem}, cell {number}: {found[0]!r} has no link"


def test_every_glossary_link_leads_to_a_term():
    anchors = {term.lower().replace(" ", "-") for term in TERMS}
    for path in ALL:
        for cell in read(path).cells:
            assert set(re.findall(r"GLOSSARY\.md#([\w-]+)", cell.source)) <= anchors


# --- a wrong constant ----------------------------------------------------------------------

WRONG = [  # notebook, what stands there, what a slip of the pen would make of it
    ("01_baseline", "2.0 ** (exponent.clamp(min=1) - 127)", "2.0 ** (exponent.clamp(min=1) - 128)"),
    ("02_sharding", "return table, 8 + length", "return table, 4 + length"),
    ("03_nf4", "linspace(0.9677083", "linspace(0.9677033"),
    ("04_gptq", "stream.reshape(-1, bits, packed.shape[1])", "stream.reshape(-1, bits, packed.shape[1]).flip(1)"),
    ("05_gguf", "(first >> 6) << 4", "(first >> 6) << 2"),
    ("06_awq", "[0, 4, 1, 5, 2, 6, 3, 7]", "[0, 4, 1, 5, 2, 6, 7, 3]"),
]


@pytest.mark.parametrize(("stem", "right", "wrong"), WRONG, ids=[stem for stem, *_ in WRONG])
def test_a_wrong_constant_stops_the_lesson(series, stem, right, wrong, tmp_path):
    path = next(p for p in NOTEBOOKS if p.stem == stem)
    series(path)
    notebook = read(path)
    places = [i for i, cell in enumerate(notebook.cells) if right in cell.source and cell.cell_type == "code"]
    assert len(places) == 1
    notebook.cells[places[0]].source = notebook.cells[places[0]].source.replace(right, wrong)
    with pytest.raises(NotebookFailed, match="Error"):
        execute_copy(notebook, tmp_path)
