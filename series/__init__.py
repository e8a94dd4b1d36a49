"""The series' machinery: what a learner never meets. A notebook takes ``start`` from here.

To import it takes nothing but Python, so that what installs the libraries can use its parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from series.lesson import Lesson

__all__ = ["start"]


def start(technique: str, namespace: dict[str, Any]) -> Lesson:
    """Check the parameters, find the model, say what this machine is and whether the model fits.

    Args:
        technique: a name in ``series.techniques.TECHNIQUES``, such as 'nf4'.
        namespace: the notebook's names, ``globals()``. A parameter that this machine or model forces is changed in it.

    Raises:
        ValueError: a parameter or the model is wrong. MemoryError, OSError: it does not fit.
    """
    from series.lesson import start as begin

    return begin(technique, namespace)
