"""Which notebook takes which architecture? Small models with random weights go through every notebook.

tests/test_architectures.py holds what comes out against the committed table, which proofs/supported.py writes.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Callable

from nbclient.exceptions import CellExecutionError

from architectures import WHOLE, make_model, make_whole
from execution import ROOT, Task, shorter
from series.run import in_one_kernel
from series.techniques import ARTICLE

QUICK = {"04_gptq": {"CALIBRATION_TEXTS": 4}, "06_awq": {"CALIBRATION_TEXTS": 2}}
SHORT = shorter(questions=8, windows=4)  # what random weights say is noise
STEMS = [row.notebook for row in ARTICLE]


def with_list_of_templates(folder: pathlib.Path) -> None:
    """As Hermes and Command-R have them, in older files."""
    own, file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    both = [{"name": name, "template": own.read_text(encoding="utf-8")} for name in ("default", "tool_use")]
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"chat_template": both}))
    own.unlink()


def with_code(folder: pathlib.Path) -> None:
    """As Microsoft publishes Phi-3."""
    file = folder / "config.json"
    code = {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | code))
    (folder / "modeling_phi3.py").write_text("raise SystemExit('code out of a checkpoint ran')\n")


def with_settings(folder: pathlib.Path) -> None:
    """As Vicuna's: a temperature without sampling, which transformers loads and does not save."""
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"temperature": 0.9, "top_p": 0.6}))


TIED = {"tie_word_embeddings": True}
# The row's name -> the architecture, what differs from tests/architectures.py, what is odd about its files.
ROWS: dict[str, tuple[str, dict, Callable[[pathlib.Path], None] | None]] = {
    "Llama, with a list of chat templates": ("llama", {}, with_list_of_templates),
    "Llama, with a tied head, and settings that cannot be saved": ("llama", TIED, with_settings),
    "Qwen2": ("qwen2", {}, None),
    "Qwen3": ("qwen3", {}, None),
    "Gemma": ("gemma", {}, None),
    "Gemma 2": ("gemma2", {}, None),
    "Gemma 3 (text)": ("gemma3_text", {}, None),
    "OLMo 2": ("olmo2", {}, None),
    "Phi-3, with code of its own": ("phi3", {}, with_code),
    "Gemma 4 (text)": ("gemma4_text", {}, None),
    "Gemma 3, which reads pictures": ("gemma3", {}, None),
    "Mixtral": ("mixtral", {}, None),
    "Qwen3-MoE": ("qwen3_moe", {}, None),
    "gpt-oss": ("gpt_oss", {}, None),
    "Qwen3.5 (text)": ("qwen3_5_text", {}, None),
}


def models_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """A row's name -> where its model lies. The names are neutral: llama.cpp looks for Phi-3's tokens in a folder
    called so."""
    return {name: folder / f"random-{number}" for number, name in enumerate(ROWS)}


def make_models(folder: pathlib.Path) -> None:
    for name, target in models_of(folder).items():
        kind, changed, spoil = ROWS[name]
        make_whole(kind, target) if kind in WHOLE else make_model(kind, target, **changed)
        if spoil:
            spoil(target)


def try_all(stem: str, folder: pathlib.Path) -> dict[str, str]:
    """A row's name -> 'yes', or the sentence that refused it; all in one kernel, but after a refusal in another one."""
    models = models_of(folder)
    found, waiting = {}, list(models)
    while waiting:
        given = [{"MODEL": str(models[name]), "MAX_NEW_TOKENS": 16, **QUICK.get(stem, {})} for name in waiting]
        try:
            for _ in in_one_kernel(stem, given, whole=True, after_start=SHORT):
                found[waiting.pop(0)] = "yes"
        except CellExecutionError as error:
            said = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines()[-1]
            found[waiting.pop(0)] = said.replace(str(ROOT), "SERIES")
    return found


def tasks(folder: pathlib.Path) -> dict[str, Task]:
    """The models, then 01_baseline, against which the others are held, then these, the longest first."""
    made = {"architectures": Task(make_models, (folder,))}
    for stem in [STEMS[0], *reversed(STEMS[1:])]:
        needs = ("architectures",) if stem == STEMS[0] else (task_of(STEMS[0]),)
        made[task_of(stem)] = Task(try_all, (stem, folder), needs)
    return made


def task_of(stem: str) -> str:
    return f"{stem}, architectures"


def table(found: dict[str, dict[str, str]]) -> str:
    """The committed table: yes or no for each, and below it each reason once."""
    reasons: dict[str, int] = {}
    rows = []
    for name in ROWS:
        cells = []
        for stem in STEMS:
            said = found[stem][name]
            cells.append("yes" if said == "yes" else f"no [{reasons.setdefault(said, len(reasons) + 1)}]")
        rows.append([name, *cells])
    notes = "\n".join(f"{number}. {said}" for said, number in reasons.items())
    head = [["", *(stem[:2] for stem in STEMS)], ["--"] * (len(STEMS) + 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [*head, *rows]]
    return "\n".join(lines) + (f"\n\n{notes}" if notes else "")
