"""11: the formats that newer cards multiply in, by torchao."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from series import gate
from series.parameters import one_of
from series.techniques.base import Technique

if TYPE_CHECKING:
    from series.lesson import Lesson

SHOWN = ("INT8", "FP8", "NVFP4")


class Formats(Technique):
    name, notebook, record, kind = "formats", "11_newer_formats", "{FORMAT}", "FP8"
    library, packages = "torchao", ("torchao", "torch", "transformers")
    settings, makes = ("FORMAT",), "-{FORMAT}"
    parameters = {"FORMAT": one_of(*SHOWN)}
    loads = ("torchao",)
    imports = ("transformers", "bitsandbytes", "torchao.quantization", "torchao.prototype.mx_formats")
    color, marker = "#8c564b", "P"
    answers = {
        1: (lambda names: [4.25, 4.5], "The scale's 8 bits are shared by the weights of a block."),
        2: (
            lambda names: names["block"].dequantize(names["torch"].float32),
            "codes & 7 is the place in FP4; torch.exp2 makes the scale.",
        ),
        3: (
            lambda names: ["W4A16", "FP8", "NVFP4"],
            "FP8 begins at 8.9, NVFP4 at 10.0; what is only unpacked should have few bytes.",
        ),
    }

    def require(self, lesson: Lesson) -> None:
        if not lesson.ready:
            gate.tell_what_stays(lesson.config, self.format_of(lesson.settings))

    def ladder(self, model: str) -> list[dict[str, Any]]:
        return [{"FORMAT": kind} for kind in SHOWN]


TECHNIQUE = Formats()
