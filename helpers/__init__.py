"""What the notebooks of this series share: nothing in here is taught, it only repeats.

Importing the package is cheap: torch and the model libraries are imported where they are used.
"""

from helpers.artifacts import artifact, artifacts_folder, building, disk_bytes, require_disk
from helpers.console import quiet, show_versions
from helpers.converter import llama_cpp_converter
from helpers.exercise import check
from helpers.fit import require_memory, weight_bytes
from helpers.memory import PeakMemory, clear_cache, tensor_bytes
from helpers.models import MODELS, Checkpoint, calibration_texts, first_block, resolve_model
from helpers.prompt import MESSAGES, render_prompt
from helpers.quality import (
    exam_prompts,
    exam_questions,
    generate_answers,
    held_out_windows,
    log_probabilities,
    perplexity,
)
from helpers.record import Timings, measure_speed, read_records, records_table, write_record

__all__ = [
    "MESSAGES",
    "MODELS",
    "Checkpoint",
    "PeakMemory",
    "Timings",
    "artifact",
    "artifacts_folder",
    "building",
    "calibration_texts",
    "check",
    "clear_cache",
    "disk_bytes",
    "exam_prompts",
    "exam_questions",
    "first_block",
    "generate_answers",
    "held_out_windows",
    "llama_cpp_converter",
    "log_probabilities",
    "measure_speed",
    "perplexity",
    "quiet",
    "read_records",
    "records_table",
    "render_prompt",
    "require_disk",
    "require_memory",
    "resolve_model",
    "show_versions",
    "tensor_bytes",
    "weight_bytes",
    "write_record",
]
