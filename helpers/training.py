"""The bytes of fine-tuning: the weights, the adapter, its gradients, the optimizer, and what a step keeps."""

from __future__ import annotations

from typing import Any

from helpers.architecture import model_weights, settings_of
from helpers.sizes import experts_of, weight_bytes

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

    A block that is computed again on the way back needs more for a moment, which is not counted. With NF4, peft's
    ``prepare_model_for_kbit_training`` puts what is not quantized into 32 bits: embedding, head and norms, and with
    them what flows from block to block. With other formats it does so or not, by the library that made them.

    Args:
        config: the model's configuration.
        tokens: of a batch in all: its rows times the longest of them.
        rank: of the LoRA adapter; None: all weights are trained.
        kind: the format of the weights: '16-bit', '32-bit', or with an adapter 'NF4'.

    Returns:
        'weights', 'adapter', 'gradients', 'optimizer', and 'kept': the inputs of the blocks, and the probabilities.

    Raises:
        ValueError: another format or rank, or a model with experts.
    """
    if kind not in ("16-bit", "32-bit", *(["NF4"] if rank else [])) or (rank is not None and rank < 1):
        raise ValueError(
            f"The bytes of training are known for '16-bit' and '32-bit', and for 'NF4' with an adapter of "
            f"rank 1 or more, not for {kind!r} with rank {rank}."
        )
    if experts_of(config):
        raise ValueError("The bytes of training are known for dense models, and this one has experts.")
    whole, width = sum(w.count for w in model_weights(config)), 2 if kind == "16-bit" else FULL
    weights = FULL * whole if kind == "32-bit" else weight_bytes(config, kind, whole=width)
    adapter = 0 if rank is None else FULL * adapter_weights(config, rank)
    trained = adapter or width * whole
    found = {"weights": weights, "adapter": adapter, "gradients": trained, "optimizer": MOMENTS * trained}
    return found | {"kept": tokens * kept_per_token(config, width, everything=rank is None)}


def kept_per_token(config: Any, width: int, everything: bool) -> int:
    """Bytes that a step keeps for a token, with checkpointing, of a model of Llama's kind.

    The input of each block, and in 32 bits that of the last norm and the logarithms of the probabilities of the
    whole vocabulary. A norm and a head that are trained keep their own inputs as well.

    Args:
        width: bytes of a number that flows from block to block.
        everything: whether all weights are trained.
    """
    settings = settings_of(config)
    inputs = settings["num_hidden_layers"] + (2 if everything else 0)
    return (width * inputs + FULL) * settings["hidden_size"] + FULL * settings["vocab_size"]
