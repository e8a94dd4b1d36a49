"""09: two servers, and a load on them. 06 runs vLLM as well, with ``Vllm``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import helpers
from series import fit, gate, serving
from series.machine import OVERHEAD, OVERHEAD_VLLM_CPU
from series.parameters import number, whole
from series.quirks import vllm
from series.techniques.base import Technique

if TYPE_CHECKING:
    from series.lesson import Lesson


class Vllm(Technique):
    """What runs vLLM."""

    parameters = {"GPU_MEMORY": number(0, 1, "a share of the GPU's memory, up to 1.0", float)}

    def settle(self, lesson: Lesson) -> None:
        serving.watch()  # also of a kernel that is killed nothing stays
        vllm.settle()

    def decide(self, lesson: Lesson) -> None:
        machine, given = lesson.machine, lesson.given
        if machine.gpus:
            share = machine.vllm_share(min(given.get("GPUS", 1), len(machine.gpus)))
            lesson.set("GPU_MEMORY", min(share, given["GPU_MEMORY"]), "vLLM's share of all of the GPU's memory")

    def require(self, lesson: Lesson) -> None:
        vllm.require_kernel(lesson.machine, lesson.config)
        gpus, here = lesson.given.get("GPUS", 1), len(lesson.machine.gpus)
        if gpus > max(1, here):
            raise ValueError(f"GPUS = {gpus}, and this machine has {here}; without a GPU it stays 1.")

    def room(self, lesson: Lesson) -> dict[str, Any]:
        overhead = OVERHEAD if lesson.machine.gpus else OVERHEAD_VLLM_CPU
        return {"gpus": lesson.given.get("GPUS", 1), "overhead": overhead}

    def require_path(self, lesson: Lesson) -> None:
        vllm.require_path(lesson.path)

    def loaded(self, lesson: Lesson, model: Any) -> None:
        vllm.at_the_end_of(model, lesson.forget)

    def explain(self, lesson: Lesson, error: BaseException) -> str | None:
        return vllm.explain(error, lesson.folder)


class Serving(Vllm):
    name, notebook, kind = "serving", "09_serving", "AWQ"
    library = "vLLM, llama.cpp"
    packages = ("vllm", *([] if shutil.which("llama-server") else ["xllamacpp"]), "openai", "torch", "transformers")
    parameters = Vllm.parameters | {"PORT": whole(1024, 65000)}
    refuses = (gate.no_experts, gate.no_states)
    loads, beside, spares = ("awq", "gptq", "gguf"), True, 2  # with both, there is no server in 16 bits
    environment = vllm.ENVIRONMENT
    answers = {
        1: (
            lambda names: 16 * helpers.cache_bytes(names["lesson"].config, names["CONTEXT"], runtime="llama.cpp"),
            'One conversation takes cache_bytes(lesson.config, CONTEXT, runtime="llama.cpp").',
        ),
        2: (lambda names: ["vLLM", "llama.cpp"], "One of the two needs no torch, and starts in a second."),
    }

    def settle(self, lesson: Lesson) -> None:
        super().settle(lesson)
        serving.settle(lesson.temporary)

    def decide(self, lesson: Lesson) -> None:
        super().decide(lesson)
        port = serving.free_port(lesson.given["PORT"], 4)
        lesson.set("PORT", port, "the first of four ports in a row that are free")

    def require_room(self, lesson: Lesson) -> None:
        given, sizes = lesson.given, {each.server: each.size for each in lesson.beside}
        if len(sizes) < len(lesson.beside):
            raise ValueError(
                f"READY = {given['READY']!r} names {len(lesson.beside)} checkpoints for one server. 09_serving takes "
                "one for vLLM (awq or gptq) and one for llama.cpp (gguf), with a comma between them."
            )
        fit.require_room_to_serve(
            lesson.machine, lesson.config, given["CONTEXT"], given["GPU_MEMORY"], sizes, not lesson.alone
        )

    def ready(self, lesson: Lesson) -> None:
        serving.leave_proxies()
        if any(each.method == "gptq" for each in lesson.beside):
            print("what is called awq below is the GPTQ checkpoint in READY")


TECHNIQUE = Serving()
