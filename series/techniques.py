"""The table of techniques: everything that lists them reads this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helpers.sizes import GGUF_TYPES

CALIBRATIONS = {"own": "", "unrelated": ", unrelated text", "random": ", random tokens"}
ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"


@dataclass(frozen=True)
class Published:
    """A checkpoint on the hub: repository, revision, and for GGUF the pattern of its one file."""

    repository: str
    revision: str
    file: str | None = None


@dataclass(frozen=True)
class Technique:
    """One way to load or shrink a model.

    Attributes:
        name: as ``start`` knows it.
        notebook: the notebook that teaches it.
        record: what the tables call a run, with its settings filled in.
        kind: its format, one of ``helpers.sizes.FORMATS``; a setting QUANT_TYPE or FORMAT decides before it.
        library: what runs the model.
        packages: whose versions explain the numbers; the first is what the technique is made by.
        settings: the parameters, beyond MAX_NEW_TOKENS, that decide the result.
        where: the memory that must hold the model: 'gpu', 'memory' or 'spread'; see ``series.fit.fit_on``.
        makes: what the recipe writes beside the model, as the end of its name; {} are settings.
        calibrates: whether it looks at text.
        published: MODEL -> the checkpoint that others have made.
        environment: variables that a library needs before its import, and why.
        color, marker: in every figure.
    """

    name: str
    notebook: str
    record: str
    kind: str
    library: str
    packages: tuple[str, ...]
    settings: tuple[str, ...] = ()
    where: str = "gpu"
    makes: str = ""
    calibrates: bool = False
    published: dict[str, Published] = field(default_factory=dict)
    environment: dict[str, tuple[str, str]] = field(default_factory=dict)
    color: str = "black"
    marker: str = "o"

    def record_name(self, settings: dict[str, Any]) -> str:
        note = CALIBRATIONS[settings.get("CALIBRATION", "own")]
        size = f", groups of {settings['GROUP_SIZE']}" if settings.get("GROUP_SIZE", 128) != 128 else ""
        return self.record.format(**settings) + size + note

    def format_of(self, settings: dict[str, Any]) -> str:
        return settings.get("QUANT_TYPE", settings.get("FORMAT", self.kind))


MAKING = {
    "GPTQMODEL_CPU_WORKERS": ("2", "gptqmodel asks for two workers, also on two cores"),
    "OMP_WAIT_POLICY": ("PASSIVE", ""),
    "THP_MEM_ALLOC_ENABLE": ("1", ""),
}
# Where the reason is empty, nothing is printed: TORCHDYNAMO_DISABLE, since compiling takes longer than all we ask here;
# OMP_WAIT_POLICY, since gptqmodel's threads and libgomp's wait for each other on few cores; THP_MEM_ALLOC_ENABLE, large
# pages of memory, with which AWQ's search takes half the time on a processor; VLLM_CPU_KVCACHE_SPACE, the
# room for the cache in GiB on a processor, where vLLM would take a large share of the memory.
VLLM = {
    "VLLM_LOGGING_LEVEL": ("ERROR", ""),
    "VLLM_NO_USAGE_STATS": ("1", ""),
    "VLLM_WORKER_MULTIPROC_METHOD": ("spawn", ""),
    "VLLM_CPU_KVCACHE_SPACE": ("1", ""),
    "VLLM_CPU_INT4_W4A8": ("0", "4-bit weights and 16-bit inputs, also on processors with AMX"),
}
TABLE = [
    Technique("baseline", "01_baseline", "16-bit", "16-bit", "transformers", ("transformers", "torch", "accelerate"),
              where="spread", color="0.35"),
    Technique("sharding", "02_sharding", "16-bit, sharded", "16-bit", "accelerate",
              ("accelerate", "torch", "transformers", "safetensors"), ("SHARDS",), makes="-shards", color="0.6"),
    Technique("nf4", "03_nf4", "NF4", "NF4", "bitsandbytes",
              ("bitsandbytes", "torch", "transformers", "accelerate"), color="#0072b2", marker="^"),
    Technique("gptq", "04_gptq", "GPTQ {BITS}-bit", "GPTQ", "gptqmodel",
              ("gptqmodel", "torch", "transformers", "optimum"),
              ("BITS", "GROUP_SIZE", "CALIBRATION_TEXTS", "CALIBRATION"), makes="-gptq", calibrates=True,
              published={"zephyr": Published("TheBloke/zephyr-7B-beta-GPTQ", "main")},
              environment=MAKING | {"TORCHDYNAMO_DISABLE": ("1", "")},
              color="#d55e00", marker="s"),
    Technique("gguf", "05_gguf", "GGUF {QUANT_TYPE}", "Q4_K_M", "llama.cpp",
              ("llama-cpp-python", "gguf", "transformers"), ("QUANT_TYPE",), where="memory",
              makes="-{QUANT_TYPE}.gguf",
              published={"zephyr": Published("TheBloke/zephyr-7B-beta-GGUF",
                                             "e4714d14e9652aa9658fa937732cceadc63ac42e", "*{QUANT_TYPE}.gguf")},
              color="#009e73", marker="D"),
    Technique("awq", "06_awq", "AWQ 4-bit", "AWQ", "vLLM", ("vllm", "gptqmodel", "torch", "transformers"),
              ("GROUP_SIZE", "CALIBRATION_TEXTS", "CALIBRATION"), makes="-awq", calibrates=True,
              published={"zephyr": Published("TheBloke/zephyr-7B-beta-AWQ", "main")},
              environment=MAKING | VLLM, color="#cc79a7", marker="v"),
    Technique("imatrix", "10_which_file", "GGUF {QUANT_TYPE}, importance matrix", "Q4_K_M", "llama.cpp",
              ("llama-cpp-python", "gguf", "transformers"), ("QUANT_TYPE", "CALIBRATION_TEXTS", "CALIBRATION"),
              where="memory", makes="-{QUANT_TYPE}-imatrix.gguf", calibrates=True, color="#56b4e9", marker="D"),
    Technique("formats", "11_newer_formats", "{FORMAT}", "FP8", "torchao", ("torchao", "torch", "transformers"),
              ("FORMAT",), makes="-{FORMAT}", color="#8c564b", marker="P"),
    Technique("comparison", "07_comparison", "", "16-bit", "", ("torch", "transformers", "matplotlib"),
              where="spread"),
    Technique("serving", "09_serving", "", "AWQ", "vLLM, llama.cpp",
              ("vllm", "xllamacpp", "openai", "torch", "transformers"), environment=VLLM),
    Technique("original", "08_original_stack", "", "16-bit", "transformers 4.45",
              ("transformers", "torch", "optimum", "auto-gptq", "ctransformers", "bitsandbytes")),
]  # fmt: skip
TECHNIQUES = {row.name: row for row in TABLE}
MEASURED = [row for row in TABLE if row.record]  # those that leave a record
SIX = [row for row in MEASURED if row.notebook < "07"]  # the article's
BY_NOTEBOOK = {row.notebook: row for row in TABLE}

# --- parameters ----------------------------------------------------------------------------


def _whole(low: int, high: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and low <= value <= high, f"a whole number from {low} to {high:,}"


def _one_of(*values: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda given: any(type(given) is type(v) and given == v for v in values), f"one of {str(values)[1:-1]}"


# name -> (whether a value is right, what is right)
PARAMETERS = {
    "MAX_NEW_TOKENS": _whole(1, 4096),
    "DTYPE": _one_of("bfloat16", "float16", "float32"),
    "SHARDS": _whole(1, 64),
    "BITS": _one_of(2, 3, 4, 8),
    "GROUP_SIZE": _one_of(32, 64, 128),
    "CALIBRATION_TEXTS": _whole(1, 128),
    "CALIBRATION": _one_of(*CALIBRATIONS),
    "QUANT_TYPE": _one_of(*GGUF_TYPES),
    "FORMAT": _one_of("INT8", "FP8", "NVFP4"),
    "CONTEXT": _whole(320, 1_000_000),
    "GPU_LAYERS": _whole(-1, 1000),
    "GPU_MEMORY": (lambda given: type(given) is float and 0 < given <= 1, "a share of the GPU's memory, up to 1.0"),
    "GPUS": _whole(1, 64),
    "PORT": _whole(1024, 65000),
    "TEXT": _one_of("own", "wikitext"),
    "MEMORY_GB": (lambda given: type(given) in (int, float) and 0 < given < 1e5, "gigabytes, a number above 0"),
    "LADDERS": _one_of(True, False),
}


def check_parameters(namespace: dict[str, Any]) -> None:
    """Raise ValueError for the first parameter in ``namespace`` that is wrong: before anything is downloaded or made.

    Args:
        namespace: the notebook's names, ``globals()``; those that are no parameters are passed over. ``MODEL`` is
            checked by ``series.models.find``.
    """
    for name, (is_right, wanted) in PARAMETERS.items():
        if name in namespace and not is_right(namespace[name]):
            raise ValueError(f"{name} must be {wanted}; it is {namespace[name]!r}.")
    context, answer = namespace.get("CONTEXT"), namespace.get("MAX_NEW_TOKENS")
    if context and answer and answer > context - 64:
        raise ValueError(
            f"An answer of MAX_NEW_TOKENS = {answer} leaves no room for the question in CONTEXT = {context}. "
            f"Set MAX_NEW_TOKENS to at most {context - 64}, or CONTEXT higher."
        )
