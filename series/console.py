"""Library chatter kept out of sight; versions and the device, because they explain the numbers."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

HARMLESS = (DeprecationWarning, FutureWarning, SyntaxWarning)


def errors_alone() -> None:
    """Of what libraries log, show errors alone; of this series' own remarks all.

    Their warnings are remarks on their own working: a kernel that is not there on this processor, an older format.
    What they raise, and what they warn of by Python's ``warnings``, is shown as before.
    """
    for name in [*logging.root.manager.loggerDict, "optimum", "gptqmodel", "accelerate", "torchao", "bitsandbytes"]:
        if not name.startswith("series"):
            logging.getLogger(name).setLevel(max(logging.ERROR, logging.getLogger(name).level))
    logging.root.setLevel(logging.ERROR)  # for those that come later
    ours = logging.getLogger("series")
    ours.setLevel(logging.WARNING)


@contextlib.contextmanager
def quiet(tell: bool = True) -> Iterator[None]:
    """Hold back what libraries print, in Python and in C; on an error all of it is shown, unless ``tell`` is False.

    Python warnings stay visible, but for deprecations, remarks on a library's syntax, and tqdm's wish for widgets.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    buffer, saved = io.StringIO(), [os.dup(1), os.dup(2)]

    def restore() -> None:
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)

    with tempfile.TemporaryFile() as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            with contextlib.redirect_stdout(buffer), contextlib.redirect_stderr(buffer):
                with warnings.catch_warnings(record=True) as caught:
                    yield
        except BaseException:
            restore()
            if not tell:
                raise
            file.seek(0)
            text = buffer.getvalue() + file.read().decode(errors="replace")
            print(text[-4000:], file=sys.stderr, flush=True)
            raise
        finally:
            restore()
            for copy in saved:
                os.close(copy)
            for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
                for handler in getattr(logger, "handlers", ()):
                    if getattr(handler, "stream", None) is buffer:  # made in here: what it says later must be heard
                        handler.setStream(sys.stderr)
    for warning in caught:
        if not issubclass(warning.category, HARMLESS) and warning.category.__name__ != "TqdmWarning":
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
