"""The bytes of fine-tuning: the weights, the adapter, its gradients, the optimizer, and what a step keeps."""

from __future__ import annotations

from typing import Any

from helpers.architecture import model_weights, settings_of
from helpers.sizes import weight_bytes

FULL = 4  # bytes of a number in 32 bits: those of an adapter, its gradients and the optimizer
MOMENTS = 2  # numbers that AdamW keeps for each weight that it changes


def adapter_weights(config: Any, rank: int) -> int:
    """The weights of a LoRA adapter on every linear layer of the blocks.

    A layer [outputs, inputs] gets two matrices: A, [rank, inputs], and B, [outputs, rank].

    Raises:
        ValueError: the model has experts, whose stacked weights are no linear layers.
    """
    weights = model_weights(config)
    if any(w.role == "expert" for w in weights):
        raise ValueError("Experts are stacked, and 'all-linear' passes them over: name them in target_parameters.")
    return sum(rank * (w.inputs + w.count // w.inputs) for w in weights if w.linear)


def training_bytes(config: Any, tokens: int, rank: int | None = None, kind: str = "16-bit") -> dict[str, int]:
    """What a step of training with gradient checkpointing holds, in bytes.

    A block that is computed again on the way back needs more for a moment, which is not counted.

    Args:
        config: the model's configuration.
        tokens: of a batch in all: its rows times the longest of them.
        rank: of the LoRA adapter; None: all weights are trained, in the type of ``kind`` ('16-bit' or '32-bit').
        kind: the format of the weights, one of ``helpers.sizes.FORMATS``, or '32-bit'.

    Returns:
        'weights', 'adapter', 'gradients', 'optimizer', and 'kept': the inputs of the blocks, and the scores.
    """
    whole = sum(w.count for w in model_weights(config))
    weights = FULL * whole if kind == "32-bit" else weight_bytes(config, kind)
    if rank is None:
        width = FULL if kind == "32-bit" else 2
        adapter, trained = 0, width * whole
    else:
        adapter = trained = FULL * adapter_weights(config, rank)
    found = {"weights": weights, "adapter": adapter, "gradients": trained, "optimizer": MOMENTS * trained}
    return found | {"kept": tokens * kept_per_token(config)}


def kept_per_token(config: Any) -> int:
    """Bytes that a step keeps for a token, with checkpointing: 16-bit inputs of the blocks, and the scores.

    The last norm and the head keep theirs as well. The scores are of the whole vocabulary, in 16 bits as the head
    gives them, and in 32 bits for the loss.
    """
    settings = settings_of(config)
    return 2 * (settings["num_hidden_layers"] + 2) * settings["hidden_size"] + (2 + FULL) * settings["vocab_size"]
