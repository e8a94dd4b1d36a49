"""06: four bits by AWQ, made by gptqmodel and run by vLLM."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from series import gate
from series.fit import Fit, fit_on
from series.machine import OVERHEAD, OVERHEAD_VLLM_CPU, Machine, gb
from series.parameters import one_of, whole
from series.quirks import gptqmodel, vllm
from series.techniques.base import CALIBRATIONS
from series.techniques.serving import Vllm
from series.texts import WIKITEXT_WINDOW

if TYPE_CHECKING:
    from series.lesson import Lesson

FOLDS = {"self_attn.q_proj": "input_layernorm", "mlp.gate_proj": "post_attention_layernorm"}
OTHERS = "03_nf4, 04_gptq and 05_gguf fold nothing, and say themselves whether they take it."


def _doubled(names: dict[str, Any]) -> list[tuple[float, float]]:
    largest, error = names["scales_for"](names["best"][4]).max().item(), min(names["curves"][4])
    return [(largest, error), (2 * largest, error)]


class Awq(Vllm):
    name, notebook, record, kind = "awq", "06_awq", "AWQ 4-bit", "AWQ"
    library, packages = "vLLM", ("vllm", "gptqmodel", "torch", "transformers")
    settings, makes = ("GROUP_SIZE", "CALIBRATION_TEXTS", "CALIBRATION"), "-awq"
    parameters = Vllm.parameters | {
        "CALIBRATION_TEXTS": whole(1, 128),
        "CALIBRATION": one_of(*CALIBRATIONS),
        "GPUS": whole(1, 64),
    }
    calibrates = article = True
    refuses, loads = (gate.no_experts, gate.no_states), ("awq",)
    published = {"zephyr": "TheBloke/zephyr-7B-beta-AWQ"}
    environment = gptqmodel.ENVIRONMENT | vllm.ENVIRONMENT
    imports = ("transformers", "gptqmodel", "vllm")
    color, marker = "#cc79a7", "v"
    answers = {
        1: (lambda names: 0, "AWQ scales the important channels, and spares none."),
        2: (_doubled, "Multiply by the scales, round, divide by the same."),
        3: (lambda names: ["GGUF", "AWQ"], "One starts in a moment on any processor, the other batches."),
    }

    def ladder(self, model: str) -> list[dict[str, Any]]:
        return [{"CALIBRATION": kind} for kind in CALIBRATIONS] if model == "tiny" else []

    def offers(self, machine: Machine, config: Any) -> list[tuple[str, Fit]]:
        if not machine.has_int4_kernel:
            return []
        one = fit_on(machine, config, "AWQ", overhead=OVERHEAD if machine.gpus else OVERHEAD_VLLM_CPU)
        made, gpus = fit_on(machine, config, "16-bit").fits, len(machine.gpus)
        found = [(f"AWQ ({gb(one.needed)}, {self.notebook}{'' if made else ' with READY'})", one)]
        if gpus > 1:
            cut = fit_on(machine, config, "AWQ", gpus=gpus)
            found.append((f"AWQ cut across your {gpus} GPUs (GPUS = {gpus}, {self.notebook})", cut))
        return found

    def imported(self, lesson: Lesson) -> None:
        gptqmodel.imported(lesson.temporary)

    def require(self, lesson: Lesson) -> None:
        if lesson.given.get("TEXT") == "wikitext" and lesson.given["CONTEXT"] <= WIKITEXT_WINDOW:
            raise ValueError(f"TEXT = 'wikitext' has windows of {WIKITEXT_WINDOW} tokens; set CONTEXT higher.")
        super().require(lesson)
        if not lesson.ready:
            require_folds(lesson.config)

    def ready(self, lesson: Lesson) -> None:
        vllm.keep_remarks(lesson.folder)
        print("vLLM's processes write their remarks, and errors, to vllm.log in the folder above path")


def require_folds(config: Any) -> None:
    """Raise ValueError where gptqmodel would fold AWQ's scales into a norm that does not feed the layer."""
    kind = config.model_type
    known = importlib.import_module("gptqmodel.models.auto").MODEL_MAP.get(kind)
    if "layernorm" not in str(getattr(known, "module_tree", "")):  # the norms that the scales are folded into
        raise ValueError(f"gptqmodel has no AWQ recipe for {kind!r}. {OTHERS}")
    feeds = gate.norms_that_feed(config)
    for layer, norm in FOLDS.items():
        if feeds.get(layer, norm) != norm:
            raise ValueError(
                f"gptqmodel's AWQ folds its scales into {norm}, and in {kind!r} what {layer} reads comes from "
                f"{feeds[layer] or 'no norm'}: another function would come out. {OTHERS}"
            )
    if wrong := sorted(size for size in gate.outputs_of(config) if size % 64):
        raise ValueError(f"gptqmodel's AWQ wants layers with a multiple of 64 outputs, and here some have {wrong}.")


TECHNIQUE = Awq()
