"""The book: every notebook with its committed outputs, the glossary and the tables, as pages. Nothing is executed."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import sys
import tomllib
import zipfile

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "book")]
import fit_page  # noqa: E402

from helpers.cards import CARDS  # noqa: E402
from helpers.files import CACHES  # noqa: E402

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = "https://github.com/{repository}/blob/{tag}".format(**SETTINGS["tool"]["series"])
PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))
KNOWN = {f"{PUBLISHED['owners'][name]}/{name}": config for name, config in PUBLISHED["configs"].items()}
IN_BROWSER = ("notebooks/00_start_here", "book/by_hand")

project = html_title = "Load and shrink a large language model"
version = release = SETTINGS["project"]["version"]
extensions = ["myst_nb", "sphinx_copybutton"]
root_doc = "README"
include_patterns = ["*.md", "notebooks/*.ipynb", "proofs/*.md", "models/tiny-zephyr/README.md", "book/*.[im]*"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # of displayed Markdown, whose links are dead otherwise
nb_merge_streams = True
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
html_theme = "sphinx_book_theme"
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "footer_content_items": []}
html_static_path = ["static"]
html_css_files = ["book.css"]
html_math_renderer = "mathml"
html_show_sphinx = html_show_copyright = html_copy_source = html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
CONTENTS = """
```{toctree}
:hidden:
:caption: The notebooks
:glob:

notebooks/*
```

```{toctree}
:hidden:
:caption: To use and to look up

book/fit
book/by_hand
GLOSSARY
models/tiny-zephyr/README
```

```{toctree}
:hidden:
:caption: How we know
:glob:

CONTRIBUTING
CHANGELOG
proofs/*
```
"""


def add_contents(app, name, source):
    if name == root_doc:  # and the book does not lead to itself
        source[0] = re.sub(r"\[Read it as a book\]\S*( \*[^*]*\*)? ?", "", source[0]) + CONTENTS


def to_repository(app, doctree):
    """A link to a folder leads to the repository, which shows it."""
    here = (ROOT / app.env.doc2path(app.env.docname, base=False)).parent
    for node in [*doctree.findall(addnodes.pending_xref)]:
        folder = (here / node["reftarget"]).resolve()
        if node["reftype"] == "myst" and node["reftarget"] and folder.is_dir():
            address = f"{REPOSITORY}/{folder.relative_to(ROOT)}"
            node.replace_self(nodes.reference("", "", *node.children, refuri=address))


def math(self, node):
    """MathML, which browsers draw themselves: no script, no font, nothing fetched."""
    block = isinstance(node, nodes.math_block)
    self.body.append(convert(node.astext(), display="block" if block else "inline"))
    raise nodes.SkipNode


def add_script(app, name, template, context, doctree):
    if name in IN_BROWSER:
        app.add_js_file("run.js", type="module")


def finish(app, error):
    """What the pages in the browser need: ``helpers``, the first answers, and an index."""
    out = pathlib.Path(app.outdir)
    if error or app.builder.name != "html":
        return
    with zipfile.ZipFile(out / "_static" / "ours.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted((ROOT / "helpers").iterdir()):
            if path.suffix in (".py", ".json"):
                file.write(path, f"helpers/{path.name}")
        file.write(ROOT / "book" / "fit_page.py", "fit_page.py")
    first = {"cards": [*CARDS], "caches": CACHES, "default": fit_page.DEFAULT, "configs": KNOWN}
    first["answers"] = fit_page.first(KNOWN)
    (out / "_static" / "fit-first.json").write_text(json.dumps(first, separators=(",", ":")), encoding="utf-8")
    shutil.copy(out / f"{root_doc}.html", out / "index.html")
    (out / ".nojekyll").touch()  # GitHub Pages leaves out folders with a leading underscore otherwise


def setup(app):
    app.add_html_math_renderer("mathml", (math, None), (math, None))
    app.connect("source-read", add_contents)
    app.connect("doctree-read", to_repository)
    app.connect("html-page-context", add_script)
    app.connect("build-finished", finish)
