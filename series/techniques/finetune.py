"""14: an adapter, trained on a model in four bits, and the ways to ship it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from helpers.sizes import experts_of, weight_bytes
from helpers.training import FULL, adapter_weights
from series import gate
from series.converter import llama_cpp_converter
from series.machine import OVERHEAD, gb
from series.parameters import number, one_of, whole
from series.quirks import llama_cpp
from series.techniques.base import Technique

if TYPE_CHECKING:
    from series.lesson import Lesson


def no_experts(config: Any) -> None:
    """Raise ValueError for a mixture, whose experts 'all-linear' passes over."""
    if experts_of(config):
        raise ValueError(
            f"{config.model_type!r} is a mixture of experts, which are stacked: bitsandbytes leaves them in 16 bits, "
            "and an adapter on all linear layers does not reach them. 14_finetune says what its makers advise; "
            "MODEL = 'tiny' runs it."
        )


class Finetune(Technique):
    name, notebook, kind = "finetune", "14_finetune", "NF4"
    packages = ("peft", "bitsandbytes", "torch", "transformers", "llama-cpp-python")
    parameters = {
        "DTYPE": one_of("bfloat16", "float16", "float32"),
        "RANK": whole(1, 1024),
        "STEPS": whole(20, 100_000),  # the schedule rises for a tenth of them, and one step is no rise
        "LEARNING_RATE": number(0, 1, "a number above 0, such as 1e-3", float),
        "ADAPTER": (lambda given: type(given) is str, "a text: a folder with an adapter, or a hub id, or empty"),
    }
    refuses = (no_experts, gate.no_states)
    imports = ("transformers", "bitsandbytes", "peft", "llama_cpp")
    environment = {"OMP_WAIT_POLICY": ("PASSIVE", "")}  # threads that spin between two small steps hold up the others
    color, marker = "#999999", "*"
    answers = {
        1: (
            lambda names: FULL * adapter_weights(names["lesson"].config, 16),
            "A layer gets 16 x inputs and outputs x 16 weights, of 4 bytes; adapter_weights(config, 16) counts them.",
        ),
        2: (
            lambda names: ["adapter", "16 bits", "dequantized"],
            "The table has a row for each; the last reader wants what was trained, and nothing else.",
        ),
    }

    def require_room(self, lesson: Lesson) -> None:
        """What is shipped is merged in 16 bits, beside the model in four."""
        four, whole = weight_bytes(lesson.config, self.kind), weight_bytes(lesson.config)
        needed = whole + four + OVERHEAD
        free = lesson.machine.free + sum(gpu.free for gpu in lesson.machine.gpus)
        if needed > free:
            raise MemoryError(
                f"This notebook merges the adapter into the model in 16 bits as well: {gb(needed)}, and {gb(free)} are "
                f"free. Its first cells alone, copied, need {gb(four + OVERHEAD)} and what a step keeps."
            )

    def disk(self, lesson: Lesson) -> int:
        return 6 * weight_bytes(lesson.config)  # two merged models, and three files of each kind

    def ready(self, lesson: Lesson) -> None:
        random.seed(0)  # which examples stand in a batch
        llama_cpp.require_tokenizer(lesson.path)
        lesson.converter = str(llama_cpp_converter())


TECHNIQUE = Finetune()
