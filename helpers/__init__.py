"""What the notebooks of this series share: nothing in here is taught, it only repeats.

Importing the package is cheap: torch and the model libraries are imported where they are used.
"""

from helpers.artifacts import (
    artifact,
    artifacts_folder,
    building,
    disk_bytes,
    is_made,
    require_disk,
    scratch_folder,
    temporary_files,
)
from helpers.console import quiet, show_versions
from helpers.converter import llama_cpp_converter
from helpers.exercise import check
from helpers.fit import block_linears, fitting_group, preflight, weight_bytes
from helpers.machine import this_machine
from helpers.memory import PeakMemory, clear_cache, tensor_bytes
from helpers.models import MODELS, Checkpoint, calibration_texts, first_block, resolve_model
from helpers.parameters import check_parameters
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
    "block_linears",
    "building",
    "calibration_texts",
    "check",
    "check_parameters",
    "clear_cache",
    "disk_bytes",
    "exam_prompts",
    "exam_questions",
    "first_block",
    "fitting_group",
    "generate_answers",
    "held_out_windows",
    "is_made",
    "llama_cpp_converter",
    "log_probabilities",
    "measure_speed",
    "perplexity",
    "preflight",
    "quiet",
    "read_records",
    "records_table",
    "render_prompt",
    "require_disk",
    "resolve_model",
    "scratch_folder",
    "show_versions",
    "tensor_bytes",
    "temporary_files",
    "this_machine",
    "weight_bytes",
    "write_record",
]
