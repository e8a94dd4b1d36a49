"""How long a step of decoding takes in llama.cpp: a mixture of experts beside two dense models, for 12_experts.

    python scripts/speed_experts.py [--gpu-layers 999] [--out benchmarks/experts-h200.json]

Random weights in Q4_0: a mixture, a dense model of the same bytes, and a dense one of the bytes that a token reads.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from series.artifacts import replace_file  # noqa: E402
from series.machine import device_name  # noqa: E402
from series.mixture import step_time, write_random  # noqa: E402

USERS = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = dict(experts=64, chosen=4, width=768, hidden=2048, layers=24)
    for name, value in shape.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--out", help="the file; else the table is printed alone")
    given = parser.parse_args()
    kinds = {
        "mixture": (given.experts, given.chosen, given.width),
        "dense, same bytes": (0, 0, given.experts * given.width),
        "dense, bytes of a token": (0, 0, given.chosen * given.width),
    }
    rows = {}
    for name, (many, few, width) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "random.gguf"
            write_random(str(file), many, few, width, hidden=given.hidden, layers=given.layers)
            times = {users: round(step_time(str(file), users, given.gpu_layers, 20), 3) for users in USERS}
            rows[name] = {"bytes": file.stat().st_size, "ms": times}
        print(name, rows[name], flush=True)
    if given.out:
        found = {"machine": device_name(), "shape": {name: getattr(given, name) for name in shape}, "rows": rows}
        replace_file(pathlib.Path(given.out), (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
