"""llama.cpp: its remarks, and the sliding windows that it does not read."""

from __future__ import annotations

import importlib
import json
import pathlib
from typing import Any

# Models with a sliding window that llama.cpp reads whole, since its converter does not write the window into the file.
READ_WHOLE = ("mistral", "mixtral", "ministral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "starcoder2")


def imported() -> None:
    """Once it is imported: nothing but errors."""
    importlib.import_module("llama_cpp._logger").set_verbose(False)


def require_window(config: Any, context: int, longest: int) -> None:
    """Raise ValueError for a model that reads a window, where llama.cpp would read all of a longer text.

    Args:
        context: tokens that the notebook gives the model room for.
        longest: tokens that the model reads at most.
    """
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False or config.model_type not in READ_WHOLE:
        return
    if window < max(context, min(256, longest)):
        way = f"Set CONTEXT to {window}." if window >= 320 else "01 to 04 and 06 run it as it is."
        raise ValueError(
            f"This model reads the last {window:,} tokens (sliding_window), and llama.cpp reads all of them "
            f"for {config.model_type!r}: for a longer text it would be another model. {way}"
        )


def require_tokenizer(folder: str) -> None:
    """Raise ValueError for a tokenizer that says it falls back to bytes, and has no tokens for them.

    llama.cpp ends the process, and the kernel with it, at the first character that is in no token. transformers 5.17
    wrote such files for the byte-level tokenizers of GGUF files.
    """
    file = pathlib.Path(folder) / "tokenizer.json"
    if not file.is_file() or file.with_name("tokenizer.model").is_file():
        return
    found = json.loads(file.read_text(encoding="utf-8"))
    model, decoder = found["model"], found.get("decoder") or {}
    by_bytes = model.get("type") == "BPE" and model.get("byte_fallback") and decoder.get("type") == "Sequence"
    if by_bytes and "<0x0A>" not in model["vocab"]:  # what the converter takes for a tokenizer of Llama 2's kind
        raise ValueError(
            "This model's tokenizer.json says byte_fallback, and has no token for a byte: llama.cpp would end this "
            "kernel at the first character that it does not know. Copy the tokenizer's files from the model that this "
            "one was made from."
        )
