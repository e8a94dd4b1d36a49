"""llama.cpp's own converter, taken out of llama-cpp-python's source distribution."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile

from helpers.artifacts import artifacts_folder, building, is_made

# The last is Qwen's vocabulary, for the tests: of byte-level tokenizers the converter takes only those it knows.
WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE", "models/ggml-vocab-qwen2.gguf")


def llama_cpp_converter() -> pathlib.Path:
    """Path of ``convert_hf_to_gguf.py`` of the installed llama-cpp-python's version.

    llama-cpp-python carries llama.cpp's sources and installs only the library. The converter is fetched
    once, with pip, and kept in the environment (or with the artifacts, where that is read-only).

    Raises:
        RuntimeError: llama-cpp-python is not installed, or the package index cannot be reached.
    """
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError("llama-cpp-python is not installed. Run 'pip install -r requirements.txt'.") from None
    name = f"llama.cpp-{version}"
    in_environment = pathlib.Path(sys.prefix) / "share" / name
    folder = in_environment if in_environment.is_dir() or os.access(sys.prefix, os.W_OK) else artifacts_folder() / name
    if not is_made(folder):
        with building(folder) as scratch, tempfile.TemporaryDirectory() as downloads:
            _unpack(_download(version, pathlib.Path(downloads)), scratch)
    return folder / "convert_hf_to_gguf.py"


def _download(version: str, folder: pathlib.Path) -> pathlib.Path:
    package = "llama-cpp-python"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package]
    done = subprocess.run([*command, "-d", str(folder), f"{package}=={version}"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"The sources of {package} {version}, which hold llama.cpp's converter, could not be fetched. "
            f"Connect to the package index once and run this again. pip said: {done.stderr.strip()[-300:]}"
        )
    return next(folder.glob("*.tar.gz"))


def _unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition("/vendor/llama.cpp/")
            if path.startswith(WANTED) and member.isfile():
                member.name = path
                tar.extract(member, folder, filter="data")
    if not (folder / "convert_hf_to_gguf.py").is_file():
        raise RuntimeError(f"{archive.name} holds no convert_hf_to_gguf.py under vendor/llama.cpp.")
