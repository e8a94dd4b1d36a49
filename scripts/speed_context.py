"""How long a step of decoding takes in llama.cpp behind a long text, with a cache of 16, 8 and 4 bits: for 13_context.

    python scripts/speed_context.py [--gpu-layers 999] [--out benchmarks/context-h200.json]

Random weights in Q4_0, of Zephyr's shape by default: the answers mean nothing, the bytes are real.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from helpers.sizes import GGML_BITS  # noqa: E402
from series.artifacts import replace_file  # noqa: E402
from series.machine import device_name  # noqa: E402
from series.mixture import step_time, write_random  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shape = dict(inner=14_336, hidden=4096, layers=32, heads=32, pairs=8)
    for name, value in shape.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--gpu-layers", type=int, default=0)
    parser.add_argument("--before", type=int, nargs="+", default=[512, 8192, 32_512], help="tokens in the cache")
    parser.add_argument("--users", type=int, nargs="+", default=[1])
    parser.add_argument("--cache", nargs="+", default=["F16", "Q8_0", "Q4_0"])
    parser.add_argument("--places", type=int, nargs="+", default=[1], help="tokens in a pass, as behind a draft")
    parser.add_argument("--out", help="the file; else the table is printed alone")
    given = parser.parse_args()
    shape = {name: getattr(given, name) for name in shape}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "random.gguf"
        write_random(str(file), 0, 0, **shape, context=max(given.before) + 64)
        weights = file.stat().st_size
        for users in given.users:
            for before in given.before:
                for cache, places in itertools.product(given.cache, given.places):
                    time = step_time(str(file), users, given.gpu_layers, 20, before, cache, places)
                    numbers = 2 * shape["layers"] * shape["pairs"] * shape["hidden"] // shape["heads"]
                    kept = round(users * before * numbers * GGML_BITS[cache] / 8)
                    row = {"users": users, "tokens": before, "cache": cache, "bytes": kept, "ms": round(time, 3)}
                    rows.append(row | ({"places": places} if places > 1 else {}))
                    print(rows[-1], flush=True)
    if given.out:
        found = {"machine": device_name(), "shape": shape, "weights": weights, "rows": rows}
        replace_file(pathlib.Path(given.out), (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
