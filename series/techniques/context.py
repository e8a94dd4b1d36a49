"""13: the key-value cache, in fewer bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from helpers.sizes import cache_bytes
from series import gate
from series.parameters import one_of
from series.quirks import llama_cpp
from series.techniques.gguf import LlamaCpp

if TYPE_CHECKING:
    from series.lesson import Lesson

CACHES = ("F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
LLAMA = {"model_type": "llama", "num_key_value_heads": 8}  # Llama-3.1-8B's cache


class Context(LlamaCpp):
    name, notebook, library = "context", "13_context", ""
    packages = (*LlamaCpp.packages, "bitsandbytes", "hqq", "torch")
    parameters = LlamaCpp.parameters | {"CACHE_TYPE": one_of(*CACHES)}
    refuses = (gate.no_states,)
    imports = ("transformers", "bitsandbytes", "hqq.core.quantize", "llama_cpp")
    answers = {
        1: (lambda names: round(cache_bytes(LLAMA, 32_768) / 1e9, 2), "2 x layers x heads x width x 2 bytes x tokens."),
        2: (lambda names: "keys", "The table of the measure has both."),
    }

    def decide(self, lesson: Lesson) -> None:
        given = lesson.given
        given["QUANT_TYPE"] = self.kind  # of the file that 05 makes
        super().decide(lesson)
        del given["QUANT_TYPE"]

    def ready(self, lesson: Lesson) -> None:
        """Nothing is converted here but by 05."""
        llama_cpp.require_tokenizer(lesson.path)


TECHNIQUE = Context()
