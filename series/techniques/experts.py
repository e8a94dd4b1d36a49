"""12: a mixture of experts, and what of it must fit where."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

from helpers.sizes import block_linears, bytes_read, experts_of, weight_bytes
from series import gate, mixture
from series.machine import OVERHEAD, gb
from series.parameters import one_of
from series.techniques.gguf import LlamaCpp
from series.texts import calibration_texts

if TYPE_CHECKING:
    from series.lesson import Lesson


class Experts(LlamaCpp):
    name, notebook, record = "experts", "12_experts", "GGUF {QUANT_TYPE}, experts"
    packages = (*LlamaCpp.packages, "bitsandbytes", "torch")
    settings, makes = ("QUANT_TYPE",), "-{QUANT_TYPE}.gguf"
    parameters = LlamaCpp.parameters | {"DTYPE": one_of("bfloat16", "float16", "float32")}
    imports = ("transformers", "bitsandbytes", "llama_cpp")
    color, marker = "#e69f00", "X"
    answers = {
        1: (
            lambda names: round(bytes_read(names["qwen"], "Q4_K_M") / 1e9, 1),
            "bytes_read(qwen, 'Q4_K_M') / 1e9, rounded to one digit.",
        ),
        2: (
            lambda names: [128 * (1 - (1 - 8 / 128) ** tokens) for tokens in (1, 8, 32)],
            "A token passes an expert over with the share 1 - k / E, and n tokens with the n-th power of that.",
        ),
        3: (lambda names: "mixture", "Both fit; ask which of them reads fewer bytes for each token."),
    }

    def decide(self, lesson: Lesson) -> None:
        if not experts_of(lesson.config):
            if not mixture.can_become(lesson.config):
                raise ValueError(
                    f"12_experts takes a mixture of experts, or a dense model of Llama's or Mistral's kind, of which "
                    f"it makes one; {lesson.config.model_type!r} is neither. MODEL = 'tiny' serves."
                )
            lesson.config = mixture.config_of(lesson.config)
            print(f"the model is dense: a mixture of {mixture.EXPERTS} experts is made of it, the same function")
        lesson.linears = block_linears(lesson.config)
        super().decide(lesson)

    def require(self, lesson: Lesson) -> None:
        gate.tell_what_stays(lesson.config, "NF4")
        super().require(lesson)

    def require_room(self, lesson: Lesson) -> None:
        """Experts are loaded in 16 bits first, and a mixture that is made here lies beside its dense model."""
        both = (weight_bytes(lesson.config, kind) for kind in ("NF4", lesson.settings["QUANT_TYPE"]))
        needed = sum(both) + OVERHEAD
        if mixture.is_made(lesson.config):
            needed = max(needed, round(1.5 * weight_bytes(lesson.config)))
        free = lesson.machine.free + sum(gpu.free for gpu in lesson.machine.gpus)
        if needed > free:
            raise MemoryError(
                f"This notebook loads the mixture with its experts in 16 bits, beside its file: {gb(needed)}, and "
                f"{gb(free)} are free. 05_gguf.ipynb makes and runs the file alone, or takes one with READY."
            )

    def source(self, lesson: Lesson) -> pathlib.Path:
        from transformers import AutoTokenizer

        folder = super().source(lesson)
        if experts_of(folder):
            return folder
        texts = calibration_texts(16, "own", AutoTokenizer.from_pretrained(folder), lesson.model)
        return mixture.folder_of(folder, lesson.base.identity, texts)

    def disk(self, lesson: Lesson) -> int:
        return super().disk(lesson) + weight_bytes(lesson.config)


TECHNIQUE = Experts()
