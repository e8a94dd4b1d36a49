"""10: a GGUF file made with an importance matrix, and which file to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import helpers
from series.machine import OVERHEAD, gb
from series.parameters import number, one_of, whole
from series.techniques.base import CALIBRATIONS
from series.techniques.gguf import LlamaCpp

if TYPE_CHECKING:
    from series.lesson import Lesson


def _finest(names: dict[str, Any]) -> str:
    files = [f"Llama-3.1-8B-{name}" for name in names["page"] if name.endswith(".gguf")]
    return helpers.which_file(files, names["llama"], 6.6e9, context=8_192)[0]["format"]


class Imatrix(LlamaCpp):
    name, notebook, record = "imatrix", "10_which_file", "GGUF {QUANT_TYPE}, importance matrix"
    settings, makes = ("QUANT_TYPE", "CALIBRATION_TEXTS", "CALIBRATION"), "-{QUANT_TYPE}-imatrix.gguf"
    parameters = LlamaCpp.parameters | {
        "CALIBRATION_TEXTS": whole(1, 128),
        "CALIBRATION": one_of(*CALIBRATIONS),
        "MEMORY_GB": number(0, 1e5, "gigabytes, a number above 0", int, float),
    }
    calibrates = weighs = True
    loads, beside, spares = ("gguf",), True, 0
    instead = "To make it takes the 16-bit model. A file that somebody has made goes to READY, with MODEL = 'tiny'."
    imports = (*LlamaCpp.imports, "huggingface_hub")
    color = "#56b4e9"
    answers = {
        1: (lambda names: "larger", "The quantizer makes the weighted error small."),
        2: (_finest, "Keep the names in page that end with .gguf, and take the first row."),
    }

    def ladder(self, model: str) -> list[dict[str, Any]]:
        return [{"QUANT_TYPE": kind} for kind in ("Q4_K_M", "Q3_K_M", "Q2_K", "IQ3_XXS")]

    def require_room(self, lesson: Lesson) -> None:
        """What READY names is fetched at the end: it must fit now."""
        gpu = lesson.machine.gpu if lesson.given["GPU_LAYERS"] else None
        free, place = (gpu.free, f"on {gpu.name}") if gpu else (lesson.machine.free, "in this machine's memory")
        for each in lesson.beside:
            said = f"READY: {gb(each.size)}, {gb(OVERHEAD)} for the libraries, of the {gb(free)} free {place}"
            if each.size + OVERHEAD > free:
                raise MemoryError(f"{said}: it does NOT fit. Take a smaller file: this notebook has a table.")
            print(f"{said}: it fits")

    def room(self, lesson: Any) -> dict[str, Any]:
        return super().room(lesson) | {"imatrix": True}


TECHNIQUE = Imatrix()
