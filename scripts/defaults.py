"""What transformers takes where a config.json is silent, for the families of ``helpers.architecture``.

    python scripts/defaults.py        writes helpers/defaults.json

Only those settings that ``helpers`` reads. Of a class they are what it declares, before it derives others from them.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from series.artifacts import replace_file  # noqa: E402

FILE = ROOT / "helpers" / "defaults.json"


def defaults() -> dict[str, dict[str, Any]]:
    """Family -> setting -> what transformers declares for it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from helpers.architecture import FAMILIES

    source = "".join((ROOT / "helpers" / name).read_text(encoding="utf-8") for name in ("architecture.py", "sizes.py"))
    read = {*re.findall(r'"([a-z_0-9]+)"', source)}
    found = {}
    for family in FAMILIES:
        declared = {f.name: f.default for f in dataclasses.fields(CONFIG_MAPPING[family])}
        plain = {n: v for n, v in declared.items() if isinstance(v, (int, str)) and n in read}
        found[family] = dict(sorted(plain.items()))
    return found


def text() -> str:
    """The file, a line for each family."""
    lines = [f"{json.dumps(family)}: {json.dumps(values)}" for family, values in defaults().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    replace_file(FILE, text().encode())
    print(f"{FILE.relative_to(ROOT)}: {len(defaults())} families")
