"""03: four bits while the model is loaded, by bitsandbytes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from series import gate
from series.techniques.base import Technique

if TYPE_CHECKING:
    from series.lesson import Lesson


def _dequantized(names: dict[str, Any]) -> Any:
    codes = names["codes"].int()
    return (names["levels"][codes].reshape(-1, 64) * names["absmax"][:, None]).flatten()


class Nf4(Technique):
    name, notebook, record, kind = "nf4", "03_nf4", "NF4", "NF4"
    library, packages = "bitsandbytes", ("bitsandbytes", "torch", "transformers", "accelerate")
    loads = ("bitsandbytes",)
    imports = ("transformers", "bitsandbytes")
    article, offered = True, ("NF4",)
    color, marker = "#0072b2", "^"
    answers = {
        1: (lambda names: [4.5, 4 + 8 / 64 + 32 / 64 / 256], "A block shares 8 bits; 256 blocks share 32."),
        2: (_dequantized, "packed >> 4 is the first code of each byte, packed & 15 the second."),
        3: (lambda names: [7], "A billion weights at 4.13 bits are 0.52 GB."),
    }

    def require(self, lesson: Lesson) -> None:
        if not lesson.ready:
            gate.tell_what_stays(lesson.config, self.kind)
        odd = sorted(size for size in gate.outputs_of(lesson.config) if size % 32)
        if odd and not lesson.machine.gpus:
            if importlib.import_module("bitsandbytes").functional.has_avx512bf16():  # where it lays weights out anew
                other = "01_baseline" if gate.keeps_a_state(lesson.config) else "05_gguf.ipynb"
                raise ValueError(
                    "On this processor bitsandbytes wants layers with a multiple of 32 outputs, and some "
                    f"have {odd}. {other} has no such limit."
                )


TECHNIQUE = Nf4()
