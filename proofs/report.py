"""What every report of this folder says first: when, on which machine, with which versions, by which command."""

from __future__ import annotations

import datetime
import pathlib
import platform
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
HERE = pathlib.Path.cwd()  # a proof may go elsewhere
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "optimum", "gptqmodel", "llama-cpp-python", "vllm")


def machine() -> str:
    """The processor, the memory and the GPU, in a line."""
    import psutil
    import torch

    from series.machine import processor_name

    text = f"{processor_name()}, {psutil.cpu_count()} cores, "
    text += f"{torch.backends.cpu.get_cpu_capability()}, {psutil.virtual_memory().total / 1e9:.0f} GB of memory"
    return text + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU")


def versions() -> str:
    from series import installed

    found = {name: installed.version(name) for name in map(installed.as_installed, PACKAGES)}
    return ", ".join([f"Python {platform.python_version()}", *(f"{n} {v}" for n, v in found.items() if v)])


def commit() -> str:
    """The commit, and whether the working tree differs from it."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "unknown"
    said = subprocess.run([git, "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return said.stdout.strip() or "unknown"


COMMIT = commit()  # when the proof began: the files may change while it runs


def table(header: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(header))]
    lines = [header, ["--:" if n else "--" for n in numeric], *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(title: str, command: str, text: str, out: str | None = None, quiet: bool = False) -> None:
    """Print the report, and write it to ``out`` (else nowhere: the committed one is made with --out)."""
    head = f"# {title}\n\nMade by `{command}` on {datetime.date.today()}, at commit {COMMIT}.  \n"
    whole = f"{head}{machine()}.  \n{versions()}.\n\n{text.strip()}\n"
    if not quiet:
        print(whole)
    if out:
        target = HERE / out
        scratch = target.with_suffix(".part")
        scratch.write_text(whole, encoding="utf-8")
        scratch.replace(target)
