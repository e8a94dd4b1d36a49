"""Library chatter, as a kind: whoever talks, by whichever way, at import or at first use, on whichever processor."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from execution import ALL, ROOT
from series import notebooks
from series.techniques import TECHNIQUES

# A library that talks in every way that libraries have.
TALKER = """
import logging, os, sys, warnings

own = logging.getLogger("talker.own")
own.addHandler(logging.StreamHandler())


def talk():
    print("chatter by print")
    sys.stderr.write("chatter to the error stream\\n")
    os.write(1, b"chatter to descriptor 1\\n")
    os.write(2, b"chatter to descriptor 2\\n")
    warnings.warn("chatter of deprecation", DeprecationWarning)
    warnings.warn("chatter of the future", FutureWarning)
    remark()


def remark():
    logging.getLogger("talker").warning("chatter by a logger")
    logging.getLogger("talker.later").warning("chatter by a logger that nobody knew")
    own.warning("chatter by a logger with a handler")
    logging.warning("chatter by the root logger")


talk()
"""
USE = """
import logging, warnings
from series.console import errors_alone, quiet

with quiet():
    import talker
errors_alone()
with quiet():  # as the series calls a library
    talker.talk()
talker.remark()  # as a reader's cell does
logging.getLogger("series").warning("ours")
logging.getLogger("talker").error("an error")
with quiet():
    warnings.warn("a real warning", UserWarning)
"""


def test_a_library_that_talks_is_not_heard_and_its_errors_and_warnings_are(tmp_path):
    (tmp_path / "talker.py").write_text(TALKER)
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", USE], env=env, capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    assert "chatter" not in said, said
    assert all(word in said for word in ("ours", "an error", "a real warning")), said


SILENT = {"numpy", "pandas", "matplotlib", "IPython", "psutil", "safetensors", "gguf", "accelerate", "openai", "torch"}
# Of the libraries that start imports, one whose remarks depend on the processor is asked on each sort.
PATCH = """
import importlib.machinery, sys

class Finder:  # bitsandbytes asks its own library what the processor has
    def find_spec(self, name, path=None, target=None):
        if name != "bitsandbytes.functional":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (plain(module), setattr(module, "has_avx512bf16", lambda: True))
        return spec

sys.meta_path.insert(0, Finder())
"""
START = """
from series import start
from series.notebooks import default_parameters

start("formats", default_parameters("11_newer_formats"))
import bitsandbytes.functional
print("avx512bf16", bitsandbytes.functional.has_avx512bf16())
"""
PROCESSORS = {  # the one at hand, as it is, is asked by test_fresh.py
    "without vectors": ({"ATEN_CPU_CAPABILITY": "default"}, ""),
    "AVX2, SSE4 in oneDNN, bfloat16 in bitsandbytes": (
        {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "SSE41"},
        PATCH,
    ),
}


@pytest.mark.parametrize("sort", PROCESSORS)
def test_no_processor_makes_a_library_talk(sort, tmp_path):
    variables, patch = PROCESSORS[sort]
    env = os.environ | variables | {"QUANT_ARTIFACTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", patch + START], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    known = ("this processor has no bfloat16", "python ", "cpu (", "NVIDIA ", "FP8: ", "kernel: ", "avx512bf16 ")
    assert all(line.startswith(known) for line in done.stdout.splitlines()), done.stdout
    assert "avx512bf16 True" in done.stdout or not patch


@pytest.mark.parametrize("row", TECHNIQUES.values(), ids=lambda row: row.notebook)
def test_what_a_notebook_imports_was_imported_by_start(row):
    """So that what a library says at its import is said out of sight."""
    trees = [ast.parse(c["source"]) for c in notebooks.cells(row.notebook) if c["cell_type"] == "code"]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names - SILENT - {"helpers", "series"}
    begun = {"transformers", *(name.split(".")[0] for name in row.imports)}
    if not row.reads_weights:  # whose libraries are shown as they are, chatter included
        begun |= {"auto_gptq", "ctransformers"}
    assert tops <= begun and len(ALL) > 1
