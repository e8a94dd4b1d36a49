"""04: four bits by GPTQ, made once by gptqmodel and kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helpers.architecture import settings_of
from series import gate
from series.parameters import one_of, whole
from series.quirks import gptqmodel
from series.techniques.base import CALIBRATIONS, Technique

if TYPE_CHECKING:
    from series.lesson import Lesson

WIDTHS = (8, 4, 3, 2)  # of `tiny`'s ladder; larger models have the middle ones


class Gptq(Technique):
    name, notebook, record, kind = "gptq", "04_gptq", "GPTQ {BITS}-bit", "GPTQ"
    library, packages = "gptqmodel", ("gptqmodel", "torch", "transformers", "optimum")
    settings, makes = ("BITS", "GROUP_SIZE", "CALIBRATION_TEXTS", "CALIBRATION"), "-gptq"
    parameters = {
        "BITS": one_of(2, 3, 4, 8),
        "CALIBRATION_TEXTS": whole(1, 128),
        "CALIBRATION": one_of(*CALIBRATIONS),
    }
    calibrates = article = True
    offered = ("GPTQ",)
    refuses, loads = (gate.no_experts, gate.no_states), ("gptq",)
    published = {"zephyr": "TheBloke/zephyr-7B-beta-GPTQ"}
    environment = gptqmodel.ENVIRONMENT | {"TORCHDYNAMO_DISABLE": ("1", "")}  # to compile takes longer than we compute
    imports = ("transformers", "optimum.gptq", "gptqmodel")
    color, marker = "#d55e00", "s"
    answers = {
        1: (
            lambda names: names["BITS"] + (16 + names["BITS"]) / names["GROUP_SIZE"],
            "A group shares 16 bits of scale and BITS of zero point.",
        ),
        2: (lambda names: names["words"], "Integer i of a word is shifted by 4 * i bits."),
        3: (lambda names: "NF4", "One of the two never looks at text."),
    }

    def ladder(self, model: str) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = [{"BITS": bits} for bits in (WIDTHS if model == "tiny" else WIDTHS[1:3])]
        texts = [{"CALIBRATION": kind} for kind in CALIBRATIONS] if model == "tiny" else []
        return [*runs, {"GROUP_SIZE": 32}, *texts]

    def imported(self, lesson: Lesson) -> None:
        gptqmodel.imported(lesson.temporary)
        gptqmodel.nothing_to_compile()

    def require(self, lesson: Lesson) -> None:
        if not lesson.ready and settings_of(lesson.config).get("hidden_size_per_layer_input"):
            raise ValueError(
                f"gptqmodel does not hand the layers of {lesson.config.model_type!r} the embedding that each of them "
                "has of its own, and ends half-way. 03_nf4 and 05_gguf take this model."
            )


TECHNIQUE = Gptq()
