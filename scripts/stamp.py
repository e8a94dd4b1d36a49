"""Write the address of the published repository into every notebook, its badge and its first cell, and the README.

    python scripts/stamp.py                              stamp what pyproject.toml says
    python scripts/stamp.py owner/name [--tag v1.0]      change it there, then stamp

The repository is one of GitHub's, since Colab opens notebooks from there; the tag is what a reader's Colab fetches:
after the commit, git tag v1.0 && git push origin HEAD v1.0
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import tomllib

import nbformat

ROOT = pathlib.Path(__file__).resolve().parents[1]
BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)( \*This badge [^*]*\*)?")
NOBODY = "OWNER/REPOSITORY"  # until somebody publishes it
BOOK = re.compile(r"\[Read it as a book\]\([^)]*\)( \*This link [^*]*\*)?")
SETTING = re.compile(r"^FETCH = .*$", re.M)


def address(root: pathlib.Path = ROOT) -> tuple[str, str]:
    """The repository, as ``owner/name``, and the tag, from pyproject.toml."""
    setting = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["series"]
    return setting["repository"], setting["tag"]


def badge(repository: str, tag: str, name: str) -> str:
    target = f"https://colab.research.google.com/github/{repository}/blob/{tag}/notebooks/{name}"
    words = " *This badge leads nowhere until the series is published. Until then, clone or upload it into Colab.*"
    picture = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    return f"{picture}({target}){words if repository == NOBODY else ''}"


def stamped(text: str, repository: str, tag: str, name: str) -> str:
    """One cell's text with the address put in; a text without a place for it comes back as it was."""
    fetch = f"{{GIT}} -b {tag} https://github.com/{repository} shrink"
    return SETTING.sub(f'FETCH = f"{fetch}"', BADGE.sub(badge(repository, tag, name), text))


def front(text: str, repository: str, tag: str) -> str:
    """The README with its badge and the address of the book."""
    owner, _, name = repository.partition("/")
    words = " *This link leads nowhere until the series is published; `make book` makes the pages.*"
    book = f"[Read it as a book](https://{owner}.github.io/{name}/){words if repository == NOBODY else ''}"
    text = BOOK.sub(lambda _: book, text)
    return re.sub(r"(github/)[\w./-]+(/notebooks/00_start_here\.ipynb\))", rf"\g<1>{repository}/blob/{tag}\2", text)


def stamp(repository: str, tag: str, root: pathlib.Path = ROOT) -> list[str]:
    """Stamp every notebook under ``root`` and return the names of those that changed; all is checked before any write.

    Raises:
        ValueError: a notebook has not exactly one badge and one setting (00 has none), or the address is wrong.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"The repository must be OWNER/NAME on GitHub, and is {repository!r}.")
    if not re.fullmatch(r"[\w./-]+", tag):
        raise ValueError(f"{tag!r} is no name of a tag.")
    changed = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        texts = [cell.source for cell in notebook.cells]
        settings = 0 if path.name.startswith("00") else 1
        if [sum(len(p.findall(text)) for text in texts) for p in (BADGE, SETTING)] != [1, settings]:
            raise ValueError(f"{path.name} must have one badge and one line 'FETCH = ...'.")
        for cell in notebook.cells:
            cell.source = stamped(cell.source, repository, tag, path.name)
        if texts != [cell.source for cell in notebook.cells]:
            changed[path] = notebook
    for path, notebook in changed.items():
        scratch = path.with_suffix(".ipynb.part")
        nbformat.write(notebook, scratch)
        os.replace(scratch, path)
    readme = root / "README.md"
    if readme.is_file() and (text := front(old := readme.read_text(encoding="utf-8"), repository, tag)) != old:
        readme.write_text(text, encoding="utf-8")
    return [path.name for path in changed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="?", help="owner/name on GitHub")
    parser.add_argument("--tag", help="what Colab fetches")
    given = parser.parse_args()
    before = address()
    after = given.repository or before[0], given.tag or before[1]
    try:
        changed = stamp(*after)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    settings = ROOT / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    for name, old, new in zip(("repository", "tag"), before, after, strict=True):
        text = text.replace(f'{name} = "{old}"', f'{name} = "{new}"')
    settings.write_text(text, encoding="utf-8")
    print(f"{after[0]} at {after[1]}: {len(changed)} notebooks changed")


if __name__ == "__main__":
    main()
