"""Write recipes/: each notebook's cells tagged 'copy' as a program that needs uv and nothing else.

    python scripts/recipes.py            write them; 'make recipes'

A program names what it installs (PEP 723), has an argument for each parameter of its notebook, and imports nothing of
this series. tests/test_copy.py holds the files equal to what this writes, and runs them.
"""

from __future__ import annotations

import pathlib
import sys
import textwrap
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from lock import pins_of  # noqa: E402
from series import colab, notebooks  # noqa: E402
from series.techniques import MEASURED, Technique  # noqa: E402
from series.texts import documents, turns  # noqa: E402

FOLDER, PROMPT = ROOT / "recipes", "Tell me a funny joke about Large Language Models."
NEEDED = ("torch", "transformers", "accelerate")  # of what every notebook needs
LEFT_OUT = ("MODEL", "READY", "MAX_NEW_TOKENS", "DTYPE", "TEXT", "CALIBRATION", "CALIBRATION_TEXTS", "MEMORY_GB")
TEXTS = 16

HEAD = '''# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
{pins}
# ]
# ///
"""{title} Written by 'make recipes' out of notebooks/{stem}.ipynb, which explains it.

    uv run recipes/{stem}.py --model Qwen/Qwen3-0.6B --prompt "Tell me a joke"

uv installs what is named above: torch in its default build, with CUDA. What is made lies in --out, and is made once.
"""

import argparse
import os
import pathlib
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a hub id, 'owner/name', or a folder; in 16 bits")
    parser.add_argument("--prompt", default="{prompt}")
    parser.add_argument("--max-new-tokens", type=int, default={tokens}, help="the longest answer")
    parser.add_argument("--out", default="made", help="the folder for what is made")
{options}
    return parser.parse_args()


def links(model, out, weights=True):
    """The path of a folder in ``out`` that leads to the model's files; what the recipe makes lies beside it."""
    from huggingface_hub import snapshot_download

    folder = pathlib.Path(model).expanduser()
    if not folder.is_dir():
        wanted = ["*.json", "*.jinja", "tokenizer.model", *(["model*.safetensors"] if weights else [])]
        try:
            folder = pathlib.Path(snapshot_download(model, allow_patterns=wanted))
        except Exception as error:
            sys.exit(f"{{model}} is no folder here, and the hub does not give it: {{type(error).__name__}}.")
    if weights and not any(folder.glob("*.safetensors")):
        sys.exit(f"{{model}} has no *.safetensors file.")
    target = pathlib.Path(out).resolve() / model.rstrip("/").rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(folder.resolve())
    return str(target)
'''
DTYPE = '''

def computes_in(wanted):
    """The type to compute in: on a card before compute capability 8.0, such as a T4, 'float16'."""
    import torch

    if wanted == "auto":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return "float16" if old else "bfloat16"
    return wanted
'''
ROOM = '''

def require_room(path, share):
    """End with a sentence where the 16-bit model is larger than all memory that is free."""
    import torch

    needed = share * sum(file.stat().st_size for file in pathlib.Path(path).glob("*.safetensors"))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free += sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if needed > free:
        sys.exit(f"This takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free.")
'''
GPTQMODEL = '''

def without_a_gpu():
    """torch's build for CUDA names CUDA as the accelerator also where there is none, and gptqmodel believes it."""
    import torch

    if not torch.cuda.is_available():
        torch.accelerator.current_accelerator = lambda *given, **more: None
'''
GPTQ = '''

def nothing_to_compile():
    """On a GPU the kernel in PyTorch: gptqmodel's choice is compiled at the first load, for minutes; a T4 has none."""
    import torch
    from optimum.gptq import quantizer

    plain = quantizer.hf_select_quant_linear_v2

    def select(backend, pack=False, **more):
        ours = torch.cuda.is_available() and not pack
        return plain(backend="gptq_torch" if ours else backend, pack=pack, **more)

    quantizer.hf_select_quant_linear_v2 = select
'''
EXPERTS = '''

def require_experts(path):
    """End with a sentence for a dense model."""
    if "experts" not in (pathlib.Path(path) / "config.json").read_text(encoding="utf-8"):
        sys.exit(f"{path} is no mixture of experts: its config.json names none. recipes/05_gguf.py takes any model.")
'''
VLLM = '''

def require_gpu():
    """End with a sentence where vLLM's build for GPUs, which uv installs, finds none."""
    from importlib import metadata

    import torch

    if not torch.cuda.is_available() and any(found.name == "vllm" for found in metadata.distributions()):
        sys.exit("vLLM as installed here needs an NVIDIA GPU, and there is none. recipes/05_gguf.py needs none.")
'''
READY = '''

def ready(checkpoint, made):
    """Let ``made`` be a checkpoint that somebody has made: a folder or a file, or one of the hub."""
    from huggingface_hub import snapshot_download

    place, made = pathlib.Path(checkpoint).expanduser(), pathlib.Path(made)
    if not place.exists():
        name, _, kind = checkpoint.partition(":")
        try:
            place = pathlib.Path(snapshot_download(name, allow_patterns=[f"*{kind}*.gguf"] if kind else None))
        except Exception as error:
            sys.exit(f"{checkpoint} is not here, and the hub does not give it: {type(error).__name__}.")
        if kind:
            found = sorted(place.glob(f"*{kind}*.gguf"))
            if len(found) != 1:
                sys.exit(f"{checkpoint} has {len(found)} such files: {[file.name for file in found]}. Name one.")
            place = found[0]
    made.parent.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    made.symlink_to(place.resolve())
'''
CONVERTER = '''

def llama_cpp_converter(out):
    """llama.cpp's own script, out of the sources of the llama-cpp-python that is installed."""
    import importlib.metadata
    import subprocess
    import tarfile

    version, name = importlib.metadata.version("llama-cpp-python"), "convert_hf_to_gguf.py"
    folder = pathlib.Path(out).resolve() / f"llama.cpp-{version}"
    if not (folder / name).exists():
        get = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        if subprocess.run([*get, f"llama-cpp-python=={version}"]).returncode:
            sys.exit("The sources of llama-cpp-python, which hold llama.cpp's converter, could not be fetched.")
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            for member in archive:
                member.name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and member.name.startswith((name, "conversion/", "gguf-py/gguf/")):
                    archive.extract(member, folder, filter="data")
    return str(folder / name)
'''


def stands_for_it(technique: Technique) -> bool:
    """Whether READY is loaded in the place of what the recipe makes."""
    return bool(technique.loads) and not technique.beside


def options(technique: Technique, given: dict[str, Any]) -> list[str]:
    """The arguments that one technique has beyond those of all."""
    found = []
    if "DTYPE" in given:
        kinds = '["auto", "bfloat16", "float16", "float32"]'
        found.append(f'"--dtype", default="auto", choices={kinds}, help="the type to compute in"')
    for name, value in given.items():
        if name not in LEFT_OUT:
            flag, kind = name.lower().replace("_", "-"), type(value).__name__
            found.append(f'"--{flag}", type={kind}, default={value!r}'.replace("'", '"'))
    if technique.calibrates:
        found.append(f'"--texts", type=int, default={TEXTS}, help="how many texts it looks at"')
    if stands_for_it(technique):
        found.append('"--ready", help="what somebody has made of it: a hub id, a folder or a file"')
    if technique.library == "llama.cpp":
        found.append('"--converter", help="llama.cpp\'s convert_hf_to_gguf.py; else it is fetched"')
    return [f"    parser.add_argument({each})" for each in found]


def body(technique: Technique, given: dict[str, Any]) -> list[str]:
    """The lines of main() before the recipe."""
    names = [name for name in given if name not in LEFT_OUT]
    lines = ["given = arguments()"]
    lines += ["require_gpu()"] if "vllm" in technique.packages else []
    lines += ["without_a_gpu()"] if "gptqmodel" in technique.packages else []
    if stands_for_it(technique) and not technique.makes:
        lines.append("path = links(given.ready or given.model, given.out)")
    elif stands_for_it(technique):
        lines.append("path = links(given.model, given.out, weights=not given.ready)")
    else:
        lines.append("path = links(given.model, given.out)")
    lines += ["require_experts(path)"] if technique.name == "experts" else []
    lines += [f"{name} = given.{name.lower()}" for name in ("MAX_NEW_TOKENS", *names)]
    if "DTYPE" in given:
        lines.append("DTYPE = computes_in(given.dtype)")
    lines += ["nothing_to_compile()"] if technique.library == "gptqmodel" else []
    share = 0.3 if stands_for_it(technique) and not technique.makes else 1
    if stands_for_it(technique) and technique.makes:
        end = technique.makes.replace("{", "{given.").lower()
        lines += ["if given.ready:", f'    ready(given.ready, f"{{path}}{end}")', "else:"]
        lines += [f"    require_room(path, {share})"]
    else:
        lines += [f"require_room(path, {share})"]
    if technique.library == "llama.cpp":
        needed = "given.converter or given.ready" if stands_for_it(technique) else "given.converter"
        lines.append(f"converter = {needed} or llama_cpp_converter(given.out)")
    if technique.calibrates:
        lines.append("texts = TEXTS[: given.texts]")
    return lines


def program(technique: Technique) -> str:
    """The whole text of a technique's program."""
    stem, given = technique.notebook, notebooks.default_parameters(technique.notebook)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = [pin for pin in project["dependencies"] if pin.partition("==")[0] in NEEDED]
    pins += pins_of(project, technique.name) + (["pip"] if technique.library == "llama.cpp" else [])
    pins += [colab.VLLM] if "vllm" in technique.packages else []
    title = next(c["source"] for c in notebooks.cells(stem) if c["cell_type"] == "markdown").splitlines()[0]
    head = HEAD.format(
        pins="\n".join(f'#     "{pin}",' for pin in dict.fromkeys(pins)),
        title=title.lstrip("# ").rstrip(".") + ".",
        stem=stem,
        prompt=PROMPT,
        tokens=given["MAX_NEW_TOKENS"],
        options="\n".join(options(technique, given)),
    )
    parts = [
        head,
        DTYPE if "DTYPE" in given else "",
        ROOM,
        VLLM if "vllm" in technique.packages else "",
        GPTQMODEL if "gptqmodel" in technique.packages else "",
        GPTQ if technique.library == "gptqmodel" else "",
        EXPERTS if technique.name == "experts" else "",
        READY if stands_for_it(technique) and technique.makes else "",
    ]
    parts.append(CONVERTER if technique.library == "llama.cpp" else "")
    if technique.calibrates:
        texts = [text for text in documents("calibrate.txt") if not turns(text)][:TEXTS]
        lines = "\n".join(textwrap.indent(repr(text), "    ") + "," for text in texts)
        said = "# Plain English to calibrate with, of this series (texts/calibrate.txt)."
        parts.append(f"\n\n{said}\nTEXTS = [\n{lines}\n]\n")
    recipe = notebooks.recipe(stem).replace(repr(PROMPT).replace("'", '"'), "given.prompt")
    if "vllm" in technique.packages:
        recipe += "\nllm.llm_engine.engine_core.shutdown()  # Python would wait for it"
    inner = textwrap.indent("\n".join(body(technique, given)) + "\n\n" + recipe, "    ")
    return "".join(parts) + f'\n\ndef main():\n{inner}\n\n\nif __name__ == "__main__":\n    main()\n'


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for technique in MEASURED:
        (FOLDER / f"{technique.notebook}.py").write_text(program(technique), encoding="utf-8")
    print(f"recipes/: {len(MEASURED)} programs")


if __name__ == "__main__":
    main()
