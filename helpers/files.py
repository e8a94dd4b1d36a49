"""What the names on a model's page mean, and which of its files a machine should take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from helpers.architecture import model_weights, settings_of
from helpers.sizes import (
    GGUF_TYPES,
    IN_SAFETENSORS,
    LARGE_ENDS,
    NEED_IMATRIX,
    OF_EXPERTS,
    OVERHEAD,
    RUNTIMES,
    bits_per_weight,
    bytes_read,
    cache_bytes,
    experts_of,
    left_in_16_bits,
    weight_bytes,
)

# What publishers write -> the format, as ``weight_bytes`` knows it. The longest are tried first.
NAMES = {name: name for name in (*GGUF_TYPES, *LARGE_ENDS, OF_EXPERTS)} | {
    "BF16": "16-bit",
    "W4A16": "GPTQ",
    "GPTQ": "GPTQ",
    "AutoRound": "GPTQ",
    "AWQ": "AWQ",
    "bnb-4bit": "NF4",
    "NF4": "NF4",
    "W8A8": "INT8",
    "W8A16": "INT8",
    "INT8": "INT8",
    "FP8": "FP8",
    "NVFP4": "NVFP4",
    "MXFP4": "MXFP4",
}
# The range of compute capability of the NVIDIA cards that run the format, and the range in which activations may have
# its own type, which makes prefill faster. By vLLM 0.32: tests/test_helpers.py asks it for the lower ends and
# for that of FP8; the others are its documentation's (features/quantization).
CAPABILITY = {
    "GPTQ": ((7.5, 99), None),
    "AWQ": ((7.5, 99), None),
    "INT8": ((7.5, 9.9), (7.5, 9.9)),
    "FP8": ((7.5, 99), (8.9, 99)),
    "MXFP4": ((8.0, 99), (10.0, 99)),
    "NVFP4": ((7.5, 99), (10.0, 99)),
}
# Of the GGUF types, those that most publishers offer.
USUAL = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", OF_EXPERTS)
CACHES = ("F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # types of keys and values in llama.cpp
NOTEBOOKS = {"16-bit": "01_baseline", "NF4": "03_nf4", "GPTQ": "04_gptq", "AWQ": "06_awq"}
PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)")


def arithmetic(kind: str, capability: float) -> str:
    """How an NVIDIA card of this compute capability multiplies a format of ``CAPABILITY`` in vLLM 0.32.

    Returns:
        'its own' type, for weights and activations; '16 bits', after unpacking; '-' where it does not run.
    """
    runs, own = CAPABILITY[kind]
    if own and own[0] <= capability <= own[1]:
        return "its own"
    return "16 bits" if runs[0] <= capability <= runs[1] else "-"


def format_of_name(name: str) -> tuple[str | None, str]:
    """The format that a file's or repository's name stands for, None if it is not known, and what is said beside it.

    The beginning 'UD-' or 'i1-', as unsloth and mradermacher write it, is the remark.
    """
    plain = PART.sub("", name).removesuffix(".gguf")
    if name.endswith(".gguf") and re.search(r"(?:^|[-._])mxfp4(?:$|[-._])", plain, flags=re.I):
        return OF_EXPERTS, "the experts in MXFP4, the rest in Q8_0"
    for kind in sorted(NAMES, key=len, reverse=True):
        found = re.search(rf"(?:^|[-._])((?:UD-|i1-)?){re.escape(kind)}(?:$|[-._])", plain, flags=re.I)
        if found and found[1].upper() == "UD-":
            break
        if found:
            return NAMES[kind], "made with an importance matrix" if found[1] else ""
    unsloth = re.search(r"(?:^|[-._])UD-", plain)
    return None, "UD: a mixture of its own; the page says the size" if unsloth else "not a name that is known here"


def which_file(
    names: Iterable[str] | Mapping[str, int],
    config: Any,
    memory: float,
    context: int = 4096,
    imatrix: bool = True,
    users: int = 1,
    cache: str = "F16",
) -> list[dict[str, Any]]:
    """Rank what a model's page offers for a machine: what fits first, the most bits in the blocks first among those.

    The blocks' matrices are nearly all of a large model. Formats of safetensors files leave embedding and head in 16
    bits, so that by the bits of the whole model a four-bit checkpoint would stand above a finer GGUF file.

    Args:
        names: of files or repositories, such as 'Model-Q4_K_M.gguf' or 'Model-FP8-dynamic'; or name -> bytes, where
            the page says them. The parts of one file count as one. Files beside the weights are passed over.
        config: the model's configuration.
        memory: bytes that are free for it, on the GPU or in RAM.
        context: tokens that the key-value cache must hold.
        imatrix: whether GGUF files were made with an importance matrix, as most of today are.
        users: conversations at once, each of ``context`` tokens.
        cache: the type of keys and values in llama.cpp, one of ``helpers.sizes.GGML_BITS``.

    Returns:
        A row for each: ``name``, ``format``, ``blocks`` (bits per weight in the blocks, None where the format is not
        known), ``bits`` per weight over the whole model, ``bytes``, ``needs`` (with the cache and 1 GB for the
        libraries), ``fits``, ``note``. Where the format is not known and no size was given, ``bytes`` is None and
        ``fits`` is False.

    Raises:
        ValueError: ``memory``, ``context`` or ``users`` is no positive number, or no name is left.
    """
    if not memory > 0 or not context > 0 or not users > 0:
        found = f"{memory!r}, {context!r} and {users!r}"
        raise ValueError(f"memory (bytes), context (tokens) and users must be positive; they are {found}.")
    given: dict[str, int | None] = {}
    for name in names:
        beside = re.search(r"mmproj|\.(md|json|txt|dat|jinja|png)$", name, flags=re.I)
        if not beside and ("imatrix" not in name.lower() or format_of_name(name)[0]):  # the matrix itself has no format
            size = names[name] if isinstance(names, Mapping) else None
            whole = PART.sub("", name)
            given[whole] = (given.get(whole) or 0) + size if size is not None else given.get(whole)
    if not given:
        raise ValueError("None of these names is a file of weights.")
    count, rows = sum(w.count for w in model_weights(config)), []
    types = {"transformers": "F16", "llama.cpp": cache}
    rest = {name: cache_bytes(config, context, users, name, types[name]) + OVERHEAD for name in RUNTIMES}
    for name, size in given.items():
        kind, note = format_of_name(name)
        if size is None and kind:
            size = weight_bytes(config, kind, imatrix=imatrix)
        bits, needs = (
            (None, None) if size is None else (8 * size / count, size + rest[RUNTIMES[name.endswith(".gguf")]])
        )
        blocks = bits_per_weight(config, kind, imatrix=imatrix) if kind else None
        rows.append(
            {
                "name": name,
                "format": kind or "?",
                "blocks": blocks,
                "bits": bits,
                "bytes": size,
                "needs": needs,
                "fits": needs is not None and needs <= memory,
                "note": note,
            }
        )

    def place(row: dict[str, Any]) -> tuple[bool, float, float]:
        fine = row["blocks"] or row["bits"] or 99.0
        return (False, -fine, -row["bits"]) if row["fits"] else (True, fine, row["bits"] or 99.0)

    return sorted(rows, key=place)


def will_fit(
    config: Any,
    memory: float,
    context: int = 8192,
    users: int = 1,
    cache: str = "F16",
    bandwidth: float = 0,
    every: bool = False,
) -> list[dict[str, Any]]:
    """Every format that a model is usually had in, ranked by ``which_file``, for a memory that is free.

    Args:
        config, memory, context, users, cache: as ``which_file`` takes them.
        bandwidth: bytes per second of that memory.
        every: all types of GGUF files that need no importance matrix, instead of the usual ones.

    Returns:
        The rows of ``which_file``, each also with ``users``, the conversations of that length for which there is room;
        ``limit``, the tokens per second, of all users together, that reading weights and cache allows at ``bandwidth``,
        None without it or where the format does not fit; ``left``, whether the format's library leaves the experts in
        16 bits; and ``notebook``.

    Raises:
        ValueError: as ``which_file``; or the bytes of this model are not known.
    """
    experts = experts_of(config)
    types = [kind for kind in GGUF_TYPES if kind not in NEED_IMATRIX and (every or kind in USUAL)]
    names = {"16-bit": "BF16"} | {kind: kind for kind in IN_SAFETENSORS[1:]}
    names |= {kind: f"model-{kind}.gguf" for kind in (*types, *([OF_EXPERTS] if experts else []))}
    if experts and (settings_of(config).get("quantization_config") or {}).get("quant_method") != "mxfp4":
        del names["MXFP4"]  # of experts in safetensors: where the maker publishes it
    rows = which_file(names.values(), config, memory, context, users=users, cache=cache)
    types_of = dict(zip(RUNTIMES, ("F16", cache), strict=True))
    one = {name: cache_bytes(config, context, 1, name, types_of[name]) for name in RUNTIMES}
    for row in rows:
        kind, kept = row["format"], one[RUNTIMES[row["name"].endswith(".gguf")]]
        room = memory - row["bytes"] - OVERHEAD
        row["users"] = max(0, int(room // kept)) if kept else 0
        read = bytes_read(config, kind, users) + users * kept
        row["limit"] = users * bandwidth / read if bandwidth and row["fits"] else None
        row["left"] = kind != "16-bit" and bool(left_in_16_bits(config, kind).get("expert"))
        row["notebook"] = NOTEBOOKS.get(kind, "11_newer_formats" if kind in IN_SAFETENSORS else "05_gguf")
        if experts and (kind in ("GPTQ", "AWQ", "MXFP4") or kind not in IN_SAFETENSORS):
            row["notebook"] = "12_experts"
    return rows
