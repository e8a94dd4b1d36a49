"""What a learner imports: the prompt, the bytes of a model, memory that comes back, and the check of an exercise.

Importing the package is cheap: torch and transformers are imported by the functions that need them.
"""

from helpers.exercise import check
from helpers.files import which_file
from helpers.memory import clear_cache, tensor_bytes
from helpers.prompt import MESSAGES, render_prompt
from helpers.sizes import (
    bits_per_weight,
    block_linears,
    bytes_read,
    cache_bytes,
    distinct_experts,
    experts_in_memory,
    weight_bytes,
)

__all__ = [
    "MESSAGES",
    "bits_per_weight",
    "block_linears",
    "bytes_read",
    "cache_bytes",
    "check",
    "clear_cache",
    "distinct_experts",
    "experts_in_memory",
    "render_prompt",
    "tensor_bytes",
    "weight_bytes",
    "which_file",
]
