"""Does memory come back? The recipes of all techniques and the servers in one kernel, in turn, for ten rounds.

    python proofs/soak.py [--rounds 10] [--layers N] [--techniques baseline nf4 ...] [--out proofs/soak.md]

The model has a real shape and random weights (scripts/speed.py makes it), so that 2 % of it is more than an
allocator's noise. In each round every recipe (the cells tagged 'copy') is run, and treated as a reader would: a cell
that raises with the model in a frame, a cell that ends in the model's name, a second name. Then the names are deleted
and clear_cache is called. The first round is not counted: libraries load then.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile

import nbformat
import report
from nbclient import NotebookClient

sys.path[:0] = [str(report.ROOT), str(report.ROOT / "scripts")]
import speed  # noqa: E402
from series import notebooks  # noqa: E402
from series.techniques import MEASURED, TECHNIQUES  # noqa: E402

LIMIT = 0.02  # of the 16-bit model's bytes
FREE = """
if "llm" in globals() and hasattr(llm, "llm_engine"):
    from series.quirks import vllm
    vllm.end(llm)
elif "llm" in globals():
    llm.close()
for server in [each for each in globals().values() if isinstance(each, subprocess.Popen)]:
    server.terminate()
    server.wait()
for name in ("model", "llm", "pipe", "second", "output", "outputs"):
    globals().pop(name, None)
import contextlib, io, json, psutil, torch
from helpers import clear_cache
from helpers.memory import resident_bytes
lesson.close()
with contextlib.redirect_stdout(io.StringIO()):
    held = clear_cache().held_by
from series import serving
watchers = {each.pid for each in serving._watchers}  # which end with the kernel
family = [p for p in [psutil.Process(), *psutil.Process().children(recursive=True)] if p.pid not in watchers]
state = {"resident": resident_bytes(), "held": held, "children": len(family) - 1, "files": psutil.Process().num_fds(),
         "ports": sum(c.status == "LISTEN" for p in family for c in p.net_connections("inet")),
         "gpu": torch.cuda.memory_allocated() if torch.cuda.is_available() else 0}
print("STATE", json.dumps(state))
"""
READER = [  # after the recipe, as a reader would
    "second = globals().get('model', globals().get('llm', globals().get('pipe')))",
    "def fail(held):\n    raise ValueError('on purpose')\ntry:\n    fail(second)\nexcept ValueError as error:\n"
    "    import sys; sys.last_value, sys.last_traceback = error, error.__traceback__",
    "second",
]


def soak(folder: str, names: list[str], rounds: int) -> list[dict]:
    """The state after each release: technique, round, and what FREE prints."""
    client = NotebookClient(
        nbformat.v4.new_notebook(),
        timeout=3600,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebooks.FOLDER)}},
    )
    found = []

    def run(source: str) -> str:
        client.nb.cells.append(nbformat.v4.new_code_cell(source))
        done = client.execute_cell(client.nb.cells[-1], len(client.nb.cells) - 1)
        return "".join(output.get("text", "") for output in done.outputs)

    with client.setup_kernel():
        run(f"import sys; sys.path.insert(0, {str(report.ROOT)!r}); import pathlib, subprocess")
        for number in range(rounds):
            for row in (row for row in TECHNIQUES.values() if row.name in names):
                # what servers hold is gone with them: with tiny, the kernel beside them is what counts
                model = "tiny" if row.name == "serving" else folder
                given = notebooks.default_parameters(row.notebook) | {"MODEL": model, "MAX_NEW_TOKENS": 8}
                run("\n".join(f"{name} = {value!r}" for name, value in given.items()))
                for cell in notebooks.cells(row.notebook):
                    if cell["id"] == "start" or "copy" in cell["tags"]:
                        run(cell["source"])
                for source in READER:
                    run(source)
                text = run(FREE)
                state = json.loads(text.partition("STATE ")[2].splitlines()[0])
                found.append({"technique": row.name, "round": number + 1, **state})
                print(f"round {number + 1}: {row.name} {state}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--techniques", nargs="+", default=[*(row.name for row in MEASURED), "serving"])
    parser.add_argument("--out")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder) / "random-model"
        base.mkdir()
        speed.make_base(base, given.layers)
        size = sum(f.stat().st_size for f in base.glob("*.safetensors"))
        found = soak(str(base), given.techniques, given.rounds)
    # What the first round holds when it is over: all libraries are loaded then.
    first = [row for row in found if row["round"] == 1]
    start = {key: max(row[key] for row in first) for key in ("resident", "gpu", "children", "ports")}
    lines = [
        f"A 16-bit model of {size / 1e6:,.0f} MB; {len(found)} releases. Above the largest state of the first round:",
        "",
        "| technique | resident, at most | GPU, at most | children | ports | held |",
        "|---|---|---|---|---|---|",
    ]
    worst, left = 0.0, 0
    for name in dict.fromkeys(row["technique"] for row in first):
        rows = [row for row in found if row["technique"] == name]
        most = {key: max(row[key] - start[key] for row in rows) for key in ("resident", "gpu", "children", "ports")}
        worst = max(worst, most["resident"] / size, most["gpu"] / size)
        left = max(left, most["children"], most["ports"])
        held = sorted({text for row in rows for text in row["held"]})
        cells = [
            name,
            *(f"{most[key] / 1e6:+.1f} MB" for key in ("resident", "gpu")),
            *(f"{most[key]:+}" for key in ("children", "ports")),
            ", ".join(held) or "nothing",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    verdict = "passed" if worst < LIMIT and left <= 0 and not any(row["held"] for row in found) else "FAILED"
    lines += ["", f"At most {worst:.2%} of the model; the limit is {LIMIT:.0%}: {verdict}."]
    command = f"python proofs/soak.py --rounds {given.rounds} --layers {given.layers} "
    command += f"--techniques {' '.join(given.techniques)}"
    report.write("Memory that comes back", command, "\n".join(lines), given.out)
    raise SystemExit(verdict != "passed")


if __name__ == "__main__":
    main()
