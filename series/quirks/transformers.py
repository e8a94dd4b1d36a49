"""transformers and Accelerate: their remarks and progress bars, which are no part of a lesson."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any


def imported() -> None:
    """Errors alone, and no progress bar for a small model."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if "TQDM_DISABLE" in os.environ:  # which Accelerate's own bar does not ask
        bars: Any = importlib.import_module("accelerate.utils.modeling")
        bars.tqdm = functools.partial(importlib.import_module("accelerate.utils.tqdm").tqdm, disable=True)
