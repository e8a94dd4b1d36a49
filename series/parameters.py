"""The parameters that a notebook may have: what each must be, and what two of them must be together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = tuple[Callable[[Any], bool], str]  # whether a value is right, and what is right, in words


def whole(low: int, high: int) -> Rule:
    """A whole number, both ends included."""
    return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high:,}"


def one_of(*values: Any) -> Rule:
    """One of these values, and of their type."""
    return lambda given: any(type(given) is type(v) and given == v for v in values), f"one of {str(values)[1:-1]}"


def number(above: float, most: float, words: str, *types: type) -> Rule:
    """A number of these types above ``above`` and up to ``most``; ``words`` say so."""
    return lambda given: type(given) in types and above < given <= most, words


# Those that several notebooks have; a technique names its own.
COMMON: dict[str, Rule] = {
    "MAX_NEW_TOKENS": whole(1, 4096),
    "DTYPE": one_of("bfloat16", "float16", "float32"),
    "GROUP_SIZE": one_of(32, 64, 128),
    "CONTEXT": whole(320, 1_000_000),
    "TEXT": one_of("own", "wikitext"),
    "READY": (lambda given: type(given) is str, "a text: a hub id, its address, a folder or a file, or empty"),
}


def check_parameters(namespace: dict[str, Any], rules: dict[str, Rule]) -> None:
    """Raise ValueError for the first parameter in ``namespace`` that is wrong: before anything is downloaded or made.

    Args:
        namespace: the notebook's names, ``globals()``; those that are no parameters are passed over. ``MODEL`` is
            checked by ``series.models.find``.
        rules: parameter -> what it must be.
    """
    for name, (is_right, wanted) in rules.items():
        if name in namespace and not is_right(namespace[name]):
            raise ValueError(f"{name} must be {wanted}; it is {namespace[name]!r}.")
    context, answer = namespace.get("CONTEXT"), namespace.get("MAX_NEW_TOKENS")
    if context and answer and answer > context - 64:
        raise ValueError(
            f"An answer of MAX_NEW_TOKENS = {answer} leaves no room for the question in CONTEXT = {context}. "
            f"Set MAX_NEW_TOKENS to at most {context - 64}, or CONTEXT higher."
        )
