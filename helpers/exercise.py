"""The exercises' checks: they say 'right', 'not yet' or what is wrong, and never stop a notebook."""

from __future__ import annotations

import decimal
from collections.abc import Mapping
from typing import Any

CLOSE = {"rtol": 1e-3, "atol": 1e-9}  # tensors and arrays agree within 0.1 %
EXACT = {"rtol": 0, "atol": 0}
CLOSER = {"rtol": 1e-4, "atol": 1e-9}  # a number that was computed; one that was typed is rounded


def check(answer: Any, expected: Any, hint: str = "") -> None:
    """Print whether ``answer`` is ``expected``.

    Args:
        answer: a value, or a function without arguments that computes it, so that an error in the reader's
            code is told in one line. None means that the exercise has not been done.
        expected: the right value, or a function that computes it. Tensors and arrays agree within 0.1 %. A float may
            be rounded to three digits or more. Lists and tuples are compared item by item.
        hint: what to think of when it is wrong.
    """
    try:
        given = answer() if callable(answer) else answer
    except Exception as error:
        print(f"not yet: your code stopped with {type(error).__name__}: {error}")
        return
    if _undone(given):
        print("not yet: replace None in the cell above with your answer")
        return
    try:
        expected = expected() if callable(expected) else expected
    except Exception as error:
        print(f"not yet: a cell above has not run ({type(error).__name__}: {error})")
        return
    if _same(given, expected):
        print("right")
    elif remark := _almost(given, expected):
        print(f"right values, {remark}")
    elif remark := _other_form(given, expected):
        print(f"the right idea, {remark}")
    else:
        print(f"wrong: your answer is {_short(given)}.{' ' + hint if hint else ''}")


def _undone(given: Any) -> bool:
    return given is None or given is ... or (isinstance(given, (list, tuple)) and any(map(_undone, given)))


def _same(given: Any, expected: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        alike = isinstance(given, (list, tuple)) and len(given) == len(expected)
        return alike and all(map(_same, given, expected))
    if hasattr(expected, "shape"):
        return getattr(given, "dtype", None) == getattr(expected, "dtype", None) and _close(given, expected)
    if isinstance(expected, float):
        return _close(given, expected, CLOSER) or _rounded(given, expected)
    if isinstance(expected, int) and not isinstance(expected, bool):
        return _close(given, expected, EXACT)
    return type(given) is type(expected) and given == expected


def _rounded(given: Any, expected: float) -> bool:
    """Whether ``given`` is ``expected``, rounded to the digits that it has, three at least."""
    digits = len(decimal.Decimal(repr(given)).as_tuple().digits) if type(given) in (int, float) else 0
    return digits >= 3 and float(f"{expected:.{digits}g}") == given


def _close(given: Any, expected: Any, within: Mapping[str, float] = CLOSE) -> bool:
    import torch  # its comparison of numbers, arrays and tensors, with shapes

    try:
        given, expected = (torch.as_tensor(value).double() for value in (given, expected))
        torch.testing.assert_close(given, expected, **within)
    except (AssertionError, TypeError, ValueError, RuntimeError):
        return False
    return True


def _almost(given: Any, expected: Any) -> str:
    """What else is different where the values are right."""
    if not (hasattr(given, "shape") and hasattr(expected, "shape")):
        return ""
    if given.shape != expected.shape:
        import torch

        flat = [torch.as_tensor(value).flatten() for value in (given, expected)]
        return f"other shape: {tuple(given.shape)} instead of {tuple(expected.shape)}" if _close(*flat) else ""
    return f"other dtype: {given.dtype} instead of {expected.dtype}" if _close(given, expected) else ""


UNITS = {
    2**30 / 1e9: "in GiB: the question asks for GB, 10^9 bytes",
    1e-9: "in bytes: the question asks for GB",
    1e-3: "in MB: the question asks for GB",
    0.01: "in percent: the question asks for a share",
}


def _other_form(given: Any, expected: Any) -> str:
    """What to change where an answer says the right thing in another form or unit."""
    if isinstance(expected, (list, tuple)) and len(expected) == 1 and _same(given, expected[0]):
        return "in another form: write a list, in square brackets"
    if isinstance(given, (list, tuple)) and len(given) == 1 and _same(given[0], expected):
        return "in another form: write it without the brackets"
    if isinstance(expected, str) and isinstance(given, str):
        plain = given.strip().lower()
        if plain and plain in (expected.lower(), expected.lower().partition(" ")[0]):
            return f"in another form: write {expected!r}"
    if isinstance(expected, str) or type(given) not in (int, float, str):
        return ""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            return ""
        return "in another form: write a number, without quotes" if _same(given, expected) else ""
    if isinstance(expected, float) and given:
        return next((said for factor, said in UNITS.items() if abs(given * factor / expected - 1) < 2e-3), "")
    return ""


def _short(given: Any) -> str:
    if hasattr(given, "shape"):
        return f"of shape {tuple(given.shape)}, and differs"
    text = repr(given)
    return text if len(text) <= 80 else text[:77] + "..."
