"""Write the address of the published repository into every notebook: its badge and its first cell.

    python scripts/stamp.py                              stamp what pyproject.toml says
    python scripts/stamp.py owner/name [--tag v1.0]      change it there, then stamp

The repository is one of GitHub's, since Colab opens notebooks from there; the tag is what a reader's Colab fetches, so
push it once you have committed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import tomllib

import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")
SETTING = re.compile(r"^REPOSITORY, TAG = .*$", re.M)


def address(root: pathlib.Path = ROOT) -> tuple[str, str]:
    """The repository, as ``owner/name``, and the tag, from pyproject.toml."""
    setting = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["series"]
    return setting["repository"], setting["tag"]


def badge(repository: str, tag: str, name: str) -> str:
    target = f"https://colab.research.google.com/github/{repository}/blob/{tag}/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def stamped(text: str, repository: str, tag: str, name: str) -> str:
    """One cell's text with the address put in; a text without a place for it comes back as it was."""
    line = f'REPOSITORY, TAG = "https://github.com/{repository}", "{tag}"  # scripts/stamp.py writes this line'
    return SETTING.sub(line, BADGE.sub(badge(repository, tag, name), text))


def stamp(root: pathlib.Path = ROOT) -> list[str]:
    """Stamp every notebook under ``root``; return the names of those that changed.

    Raises:
        ValueError: a notebook has not exactly one badge and one setting, or the address is none of GitHub's.
    """
    repository, tag = address(root)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"The repository must be OWNER/NAME on GitHub, and is {repository!r}.")
    if not re.fullmatch(r"[\w./-]+", tag):
        raise ValueError(f"{tag!r} is no name of a tag.")
    changed = []
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        texts = [cell.source for cell in notebook.cells]
        if [sum(len(p.findall(text)) for text in texts) for p in (BADGE, SETTING)] != [1, 1]:
            raise ValueError(f"{path.name} must have one badge and one line 'REPOSITORY, TAG = ...'.")
        for cell in notebook.cells:
            cell.source = stamped(cell.source, repository, tag, path.name)
        if texts != [cell.source for cell in notebook.cells]:
            scratch = path.with_suffix(".ipynb.part")
            nbformat.write(notebook, scratch)
            os.replace(scratch, path)
            changed.append(path.name)
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="?", help="owner/name on GitHub")
    parser.add_argument("--tag", help="what Colab fetches")
    given = parser.parse_args()
    settings = ROOT / "pyproject.toml"
    before, (repository, tag) = settings.read_text(encoding="utf-8"), address()
    text = before.replace(f'repository = "{repository}"', f'repository = "{given.repository or repository}"')
    settings.write_text(text.replace(f'tag = "{tag}"', f'tag = "{given.tag or tag}"'), encoding="utf-8")
    try:
        changed = stamp()
    except ValueError as error:
        settings.write_text(before, encoding="utf-8")
        raise SystemExit(str(error)) from None
    print(f"{'/'.join(address())}: {len(changed)} notebooks changed")


if __name__ == "__main__":
    main()
