"""The table of wrong inputs, with the sentence that the reader gets for each.

    python proofs/bad_input.py [--out proofs/bad_input.md]

The same cases are tests: tests/test_bad_input.py.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
import tempfile

import report

sys.path.insert(0, str(report.ROOT / "tests"))
import test_bad_input  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="the report's file")
    given = parser.parse_args()
    test_bad_input.tokenizer()  # the heavy imports are no part of an answer's time
    rows, wrong = [], []
    for number, case in enumerate(test_bad_input.CASES, 1):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name).resolve()
            try:
                told = test_bad_input.tell(case, folder)
            except BaseException as error:  # another error than the table wants
                wrong.append(f"{case}: {type(error).__name__}: {error}")
                continue
        if told.kind == "nothing" or told.lost or told.lines >= 40:
            wrong.append(f"{case}: {told}")
        sentence = told.sentence.replace(str(folder), "FOLDER").replace(str(report.ROOT), "SERIES")
        sentence = re.sub(r"\s+", " ", sentence).replace("|", "\\|").replace("<", "\\<")
        rows.append([number, case.kind, case.given, told.kind, sentence, round(told.seconds, 1)])
    text = f"**{len(test_bad_input.CASES)} wrong inputs, {len(rows) - len(wrong)} answered as they should be.** "
    text += "Each answer came in time, without a traceback of forty lines, and left earlier artifacts as they were.\n\n"
    text += "".join(f"- {line}\n" for line in wrong) + ("\n" if wrong else "")
    text += report.table(["", "what", "given", "error", "what the reader is told", "s"], rows)
    report.write("Wrong input: what is the reader told?", "python proofs/bad_input.py", text, given.out)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
