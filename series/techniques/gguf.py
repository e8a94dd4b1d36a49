"""05: a file that llama.cpp runs on any machine. 10 makes such files as well, with ``LlamaCpp``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from helpers.sizes import GGUF_TYPES, NEED_IMATRIX, weight_bytes
from series import gate
from series.console import quiet
from series.converter import llama_cpp_converter
from series.parameters import one_of, whole
from series.quirks import llama_cpp
from series.techniques.base import Technique

if TYPE_CHECKING:
    from series.lesson import Lesson


def _q8_0(names: dict[str, Any]) -> Any:
    gguf = names["gguf"]
    return gguf.quants.dequantize(names["raw"], gguf.GGMLQuantizationType.Q8_0)


class LlamaCpp(Technique):
    """What makes a GGUF file and runs it with llama.cpp."""

    kind, library = "Q4_K_M", "llama.cpp"
    packages: tuple[str, ...] = ("llama-cpp-python", "gguf", "transformers")
    parameters = {"QUANT_TYPE": one_of(*GGUF_TYPES), "GPU_LAYERS": whole(-1, 1000)}
    where = "memory"
    refuses = (gate.no_states,)
    imports: tuple[str, ...] = ("transformers", "llama_cpp")
    marker = "D"

    def imported(self, lesson: Lesson) -> None:
        llama_cpp.imported()

    def decide(self, lesson: Lesson) -> None:
        with quiet():
            supported = importlib.import_module("llama_cpp").llama_supports_gpu_offload()
        given = lesson.given
        layers, why = lesson.machine.gpu_layers(lesson.config, given["QUANT_TYPE"], given["CONTEXT"], supported)
        lesson.set("GPU_LAYERS", layers, why)

    def require(self, lesson: Lesson) -> None:
        llama_cpp.require_window(lesson.config, lesson.given["CONTEXT"], lesson.longest)

    def room(self, lesson: Lesson) -> dict[str, Any]:
        layers = lesson.given["GPU_LAYERS"]
        return {"where": "gpu" if layers == -1 else "spread"} if layers else {}

    def disk(self, lesson: Lesson) -> int:
        return lesson.fit.weights + weight_bytes(lesson.config)  # the file in 16 bits as well

    def ready(self, lesson: Lesson) -> None:
        if not lesson.ready:
            llama_cpp.require_tokenizer(lesson.path)
            lesson.converter = str(llama_cpp_converter())


class Gguf(LlamaCpp):
    name, notebook, record = "gguf", "05_gguf", "GGUF {QUANT_TYPE}"
    settings, makes = ("QUANT_TYPE",), "-{QUANT_TYPE}.gguf"
    loads = ("gguf",)
    published = {"zephyr": "TheBloke/zephyr-7B-beta-GGUF@e4714d14e9652aa9658fa937732cceadc63ac42e"}
    article = True
    offered = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
    color = "#009e73"
    answers = {
        1: (lambda names: 4.5, "A byte has 8 bits, and a super-block 256 weights."),
        2: (_q8_0, "raw[:, :2].copy().view(np.float16) is the scale; the bytes are signed: view(np.int8)."),
        3: (lambda names: "Q4_K_M", "Weights times bits, divided by 8, are bytes; 4.5 GB are left for them."),
    }

    def ladder(self, model: str) -> list[dict[str, Any]]:
        return [{"QUANT_TYPE": kind} for kind in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")]

    def require(self, lesson: Lesson) -> None:
        if lesson.settings["QUANT_TYPE"] in NEED_IMATRIX:
            raise ValueError(
                f"llama.cpp makes {lesson.settings['QUANT_TYPE']} with an importance matrix only: "
                "10_which_file.ipynb makes one."
            )
        super().require(lesson)


TECHNIQUE = Gguf()
