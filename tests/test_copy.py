"""The copy test: the programs in recipes/, out of the cells tagged 'copy', run where nothing of ours is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from execution import FORBID, ROOT, made, recipe, run_program
from series import mixture, newcomers, notebooks
from series.models import TINY
from series.techniques import MEASURED
from series.texts import calibration_texts

STEMS = [row.notebook for row in MEASURED]
SHORT = [*STEMS, "09_serving", "13_context"]


@pytest.mark.parametrize("stem", STEMS)
def test_the_recipe_runs_in_a_project_without_ours(stem, copied, executions):
    ended, said = copied(stem)
    assert ended and "Large Language Model" in said, said[-3000:]


def test_the_recipe_of_13_runs_in_a_project_without_ours(executed, tmp_path):
    """Its two cells, after the parameters and a GGUF file."""
    executed("05_gguf")
    given = notebooks.default_parameters("13_context") | {"file": made("gguf"), "GPU_LAYERS": 0}
    lines = [FORBID, *(f"{name} = {value!r}" for name, value in given.items())]
    done = run_program("\n".join([*lines, notebooks.recipe("13_context")]), tmp_path, "13_context")
    assert done.returncode == 0 and "Large Language Model" in done.stdout, done.stderr[-2000:]


def test_the_recipe_of_14_runs_in_a_project_without_ours(tmp_path):
    """Its four cells, after the parameters, a model's folder and pairs of a question and its answer."""
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    given = notebooks.default_parameters("14_finetune") | {
        "path": str(model),
        "STEPS": 20,
        "taught": newcomers.taught()[:8],
    }
    lines = [FORBID, *(f"{name} = {value!r}" for name, value in given.items())]
    recipe = notebooks.recipe("14_finetune")
    assert sum(bool(line.strip()) for line in recipe.splitlines()) <= 40
    done = run_program("\n".join([*lines, recipe]), tmp_path, "14_finetune")
    assert done.returncode == 0 and "step 10: loss" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / "model-adapter" / "adapter_model.safetensors").is_file()


def test_a_recipe_that_uses_ours_is_seen(tmp_path):
    ours = recipe("01_baseline").replace("from transformers import", "import series\n    from transformers import")
    done = run_program(ours, tmp_path, "01_baseline", "--model", str(TINY))
    assert done.returncode and "series is not there in another project" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "nobody/nothing"], "nobody/nothing is no folder here, and the hub does not give it: "),
        (["--model", str(ROOT / "texts")], "has no *.safetensors file"),
        (["--model", str(TINY), "--ready", "nobody/nothing"], "nobody/nothing is not here, and the hub does not give"),
    ],
)
def test_a_recipe_ends_with_a_sentence(tmp_path, words, sentence):
    done = run_program(recipe("04_gptq"), tmp_path, "04_gptq", *words)
    assert done.returncode and sentence in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_a_recipe_ends_with_a_sentence_where_there_is_no_room():
    names = {}
    exec((ROOT / "recipes" / "04_gptq.py").read_text(encoding="utf-8"), names)
    with mock.patch("os.sysconf", lambda name: 1000), pytest.raises(SystemExit, match="takes about 0.0 GB, and 0.0 GB"):
        names["require_room"](TINY, 1)


def test_a_recipe_takes_the_type_of_the_card(tmp_path):
    """A T4 has compute capability 7.5, and no bfloat16."""
    names = {}
    exec((ROOT / "recipes" / "03_nf4.py").read_text(encoding="utf-8"), names)
    found = []
    for here, capability in ((False, (7, 5)), (True, (7, 5)), (True, (8, 0))):
        with mock.patch("torch.cuda.is_available", lambda here=here: here):
            with mock.patch("torch.cuda.get_device_capability", lambda capability=capability: capability):
                found.append(names["computes_in"]("auto"))
    assert found == ["bfloat16", "float16", "bfloat16"] and names["computes_in"]("float32") == "float32"


@pytest.mark.parametrize("stem", SHORT)
def test_the_recipe_is_short_and_the_librarys(stem):
    """The aims of the series' form: within 8 code cells and 40 lines, at most 8 names of ours, 25 to 40 cells.

    09 starts two servers, and has two lines more.
    """
    from run import shape

    found = shape([ROOT / "notebooks" / f"{stem}.ipynb"])[stem]
    assert found["lines to the first answer"] <= (41 if stem == "09_serving" else 40) and found["code cells to it"] <= 8
    assert found["names of ours"] <= 8 and 25 <= found["cells"] <= 40
    assert found["median code cell"] <= 10 and found["longest"] <= 24
    cells = notebooks.recipe(stem)
    assert not any(word in cells for word in ("assert", "quiet", "perf_counter", "lesson", "helpers", "series"))


PROGRAMS = [file.stem for file in sorted((ROOT / "recipes").glob("*.py"))]


@pytest.mark.parametrize("stem", [pytest.param(stem, marks=[pytest.mark.slow][stem == "fit" :]) for stem in PROGRAMS])
def test_uv_alone_installs_loads_and_answers(stem, tmp_path):
    """From an empty folder with an empty cache, as on a machine with uv and nothing else."""
    model, folder, cache = TINY, tmp_path / "folder", tmp_path / "cache"
    if stem == "12_experts":
        model = mixture.folder_of(TINY, "tiny", calibration_texts(8))
    folder.mkdir()
    python = "{}.{}".format(*sys.version_info)
    command = [sys.executable, "-m", "uv", "run", "-q", "--no-project", "--python", python]
    words = [str(model), "--memory", "16"] if stem == "fit" else ["--model", str(model)]
    left = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [*command, str(ROOT / "recipes" / f"{stem}.py"), *words],
        cwd=folder,
        env=left | {"UV_CACHE_DIR": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    shutil.rmtree(cache)  # gigabytes of CUDA
    if stem == "06_awq" and not torch.cuda.is_available():
        assert done.returncode and "needs an NVIDIA GPU, and there is none" in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("Q4_K_M" if stem == "fit" else "Large Language Model") in done.stdout


def test_the_program_of_12_takes_no_dense_model(tmp_path):
    done = run_program(recipe("12_experts"), tmp_path, "12_experts", "--model", str(TINY))
    assert done.returncode and "is no mixture of experts" in done.stderr.splitlines()[-1]


def test_a_program_that_needs_a_gpu_says_so_and_one_that_does_not_does_without(monkeypatch):
    """uv installs the builds for GPUs everywhere: vLLM's ends with a sentence, gptqmodel's computes without."""
    from importlib import metadata

    names: dict = {"__name__": "program"}
    exec((ROOT / "recipes" / "06_awq.py").read_text(encoding="utf-8"), names)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))  # as that build says
    names["require_gpu"](), names["without_a_gpu"]()  # here is vLLM's build for processors, under another name
    assert torch.accelerator.current_accelerator() is None
    monkeypatch.setattr(metadata, "distributions", lambda: [SimpleNamespace(name="vllm")])
    with pytest.raises(SystemExit, match="needs an NVIDIA GPU, and there is none. recipes/05_gguf.py"):
        names["require_gpu"]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    names["require_gpu"]()
