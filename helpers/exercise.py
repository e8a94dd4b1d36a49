"""The exercises' checks: they say 'right', 'not yet' or what is wrong, and never stop a notebook."""

from __future__ import annotations

import math
from typing import Any


def check(answer: Any, expected: Any, hint: str = "") -> None:
    """Print whether ``answer`` is ``expected``.

    Args:
        answer: a value, or a function without arguments that computes it, so that an error in the reader's
            code is told in one line. None means that the exercise has not been done.
        expected: the right value: numbers agree within 0.1 %, tensors and arrays in shape and every element,
            lists and tuples item by item.
        hint: what to think of when it is wrong.
    """
    try:
        given = answer() if callable(answer) else answer
    except Exception as error:
        print(f"not yet: your code stopped with {type(error).__name__}: {error}")
        return
    if _undone(given):
        print("not yet: replace None in the cell above with your answer")
    elif _same(given, expected):
        print("right")
    else:
        print(f"wrong: your answer is {_short(given)}.{' ' + hint if hint else ''}")


def _undone(given: Any) -> bool:
    return given is None or given is ... or (isinstance(given, (list, tuple)) and any(map(_undone, given)))


def _same(given: Any, expected: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        alike = isinstance(given, (list, tuple)) and len(given) == len(expected)
        return alike and all(map(_same, given, expected))
    if hasattr(expected, "shape"):
        if getattr(given, "shape", None) != expected.shape:
            return False
        return bool((given == expected).all())
    if isinstance(expected, (int, float)) and not isinstance(expected, bool):
        try:
            return math.isclose(float(given), expected, rel_tol=1e-3, abs_tol=1e-9)
        except (TypeError, ValueError):
            return False
    return type(given) is type(expected) and given == expected


def _short(given: Any) -> str:
    if hasattr(given, "shape"):
        return f"of shape {tuple(given.shape)}, and differs"
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "..."
