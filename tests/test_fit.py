"""recipes/fit.py: a table of what fits, from a configuration alone, with no library."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys

import pytest

import hub
from execution import ROOT
from helpers import bytes_read, cache_bytes, weight_bytes

CONFIGS = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))["configs"]


def fit(*words: str, **env: str) -> subprocess.CompletedProcess:
    """In a Python that sees no installed package: -S leaves out site-packages."""
    command = [sys.executable, "-S", str(ROOT / "recipes" / "fit.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


@pytest.fixture
def file(tmp_path):
    def write(name: str) -> str:
        target = tmp_path / "config.json"
        target.write_text(json.dumps(CONFIGS[name]))
        return str(target)

    return write


def rows_of(said: str) -> dict[str, tuple[float, float, str]]:
    found = re.findall(r"^(\S+) +([\d.]+) +([\d.]+)  (yes|no) ", said, re.M)
    return {kind: (float(size), float(needs), fits) for kind, size, needs, fits in found}


def test_the_learners_case(file):
    """Qwen3-8B: what a T4 holds, and what a laptop with 6 GB free."""
    path, config = file("Qwen3-8B"), CONFIGS["Qwen3-8B"]
    card, laptop = (rows_of(fit(path, "--memory", size, "--context", "8192").stdout) for size in ("15", "6"))
    assert {kind for kind, row in card.items() if row[2] == "no"} == {"16-bit"}
    assert {kind for kind, row in laptop.items() if row[2] == "yes"} == {"Q2_K"}
    for kind, (size, needs, _) in card.items():
        kept = cache_bytes(config, 8192, runtime="llama.cpp" if "_K" in kind else "transformers") + 1e9
        assert size == pytest.approx(weight_bytes(config, kind) / 1e9, abs=0.051), kind
        assert needs == pytest.approx((weight_bytes(config, kind) + kept) / 1e9, abs=0.051), kind


def test_a_card_has_its_memory_and_its_bandwidth(file):
    """Qwen3-8B in Q4_K_M on a T4: 320 GB/s over 4.4 GB of blocks and head, and 0.6 GB of cache."""
    done = fit(file("Qwen3-8B"), "--card", "T4", "--context", "4096")
    assert {kind for kind, row in rows_of(done.stdout).items() if row[2] == "no"} == {"16-bit"}
    (limit,) = re.findall(r"^Q4_K_M .* yes +(\d+) ", done.stdout, re.M)
    config = CONFIGS["Qwen3-8B"]
    read = bytes_read(config, "Q4_K_M") + cache_bytes(config, 4096, runtime="llama.cpp")
    assert int(limit) == round(320e9 / read)


def test_a_mixture_says_what_stays_and_what_a_token_reads(file):
    done = fit(file("Qwen3-30B-A3B"), "--memory", "32", "--bandwidth", "100", "--context", "512")
    assert "qwen3_moe, 128 experts" in done.stdout
    assert re.search(r"^NF4 +59\.7 .* no .*leaves the experts in 16 bits$", done.stdout, re.M)
    (limit,) = re.findall(r"^Q4_K_M +18\.6 +\S+ +yes +(\d+) ", done.stdout, re.M)
    assert 48 <= int(limit) <= 56, "100 GB/s over 1.9 GB"
    q8 = rows_of(fit(file("Qwen3-30B-A3B"), "--memory", "32", "--cache", "Q8_0", "--users", "4").stdout)["Q4_K_M"]
    kept = 4 * cache_bytes(CONFIGS["Qwen3-30B-A3B"], 8192, runtime="llama.cpp") * 8.5 / 16
    assert q8[1] == pytest.approx(18.55 + kept / 1e9 + 1, abs=0.06)


def test_a_model_on_the_hub_and_none(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS["Qwen3-8B"]))
    with hub.serve(folder) as (address, sent):
        done = fit("some/model", "--memory", "16", HF_ENDPOINT=address)
        assert rows_of(done.stdout)["Q4_K_M"][0] == 5.0 and [name for name, _ in sent] == ["config.json"]
        missing = fit("some/other", "--memory", "16", HF_ENDPOINT=address)
    assert missing.returncode and "(404): there is no such repository or revision" in missing.stderr
    with hub.serve(folder, gated=True) as (address, _):
        assert "asks for a login" in fit("some/model", "--memory", "16", HF_ENDPOINT=address).stderr
    away = fit("some/model", "--memory", "16", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.returncode and "the hub cannot be reached" in away.stderr and "Traceback" not in away.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", "--memory", "16"], "no file or folder here, and no hub id"),
        (["{}", "--memory", "0"], "0 is no positive number"),
        (["{}"], "--memory or --card is needed"),
        (["{}", "--memory", "x"], "invalid positive value"),
        (["{}", "--memory", "8", "--cache", "Q9"], "invalid choice"),
    ],
)
def test_what_is_wrong_gets_a_sentence(file, words, sentence):
    done = fit(*[word.replace("{}", file("Qwen3-8B")) for word in words])
    assert done.returncode and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("{", "holds no config.json that can be read"),
        ('{"model_type": "nonesuch"}', "'nonesuch' are not known to this series"),
        ('{"peft_type": "LORA"}', "has no model_type: peft_type"),
        ('{"model_type": "qwen3", "hidden_size": "wide"}', "are not known"),
    ],
)
def test_a_damaged_configuration_gets_a_sentence(tmp_path, config, sentence):
    file = pathlib.Path(tmp_path / "config.json")
    file.write_text(config)
    done = fit(str(tmp_path), "--memory", "16")
    assert done.returncode and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr
