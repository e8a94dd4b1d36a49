"""The notebooks' parameters: what each may be, and the sentence for a value that it may not be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers.fit import GGUF_TYPES, GROUP_SIZES
from helpers.models import CALIBRATION_COUNT, CALIBRATION_KINDS

SCORED = 256  # tokens of a window that is scored: the context must hold one


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high:,}"


def _one_of(*values: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda given: any(type(given) is type(v) and given == v for v in values), f"one of {str(values)[1:-1]}"


# name -> (whether a value is right, what is right)
PARAMETERS = {
    "MAX_NEW_TOKENS": _whole(1, 4096),
    "CHAT": _one_of(True, False),
    "SHARDS": _whole(1, 64),
    "BITS": _one_of(2, 3, 4, 8),
    "GROUP_SIZE": _one_of(*sorted(GROUP_SIZES)),
    "CALIBRATION_TEXTS": _whole(1, CALIBRATION_COUNT),
    "CALIBRATION": _one_of(*CALIBRATION_KINDS),
    "QUANT_TYPE": _one_of(*GGUF_TYPES),
    "CONTEXT": _whole(SCORED + 64, 1_000_000),
    "GPUS": _whole(1, 64),
    "LADDERS": _one_of(True, False),
}


def check_parameters(namespace: dict[str, Any]) -> None:
    """Raise ValueError for the first parameter in ``namespace`` that is wrong: before anything is downloaded or made.

    Args:
        namespace: the notebook's names, ``globals()``; those that are no parameters are passed over. ``MODEL`` is
            checked by ``resolve_model``.
    """
    for name, (is_right, wanted) in PARAMETERS.items():
        if name in namespace and not is_right(namespace[name]):
            raise ValueError(f"{name} must be {wanted}; it is {namespace[name]!r}.")
    context, answer = namespace.get("CONTEXT"), namespace.get("MAX_NEW_TOKENS")
    if context and answer and answer > context - 64:
        raise ValueError(
            f"An answer of MAX_NEW_TOKENS = {answer} leaves no room for the question in CONTEXT = {context}. "
            f"Set MAX_NEW_TOKENS to at most {context - 64}, or CONTEXT higher."
        )
