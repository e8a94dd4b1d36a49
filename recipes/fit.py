# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""Will it fit? A model's bytes in each format, from its configuration alone; nothing else is fetched.

    uv run recipes/fit.py Qwen/Qwen3-8B --memory 16 --context 8192

    uv run recipes/fit.py Qwen/Qwen3-8B --card T4

The model is a hub id, a folder, or a config.json. No torch is needed. 'GB' is what the weights take, and 'needs' adds
the cache and 1 GB for the libraries. With --card or --bandwidth, 'tokens/s' is the limit that reading the weights and the cache
sets: real speeds lie below it. With --users, it is of all of them together, a token for each in a step.
"""

import argparse
import json
import os
import pathlib
import sys
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from helpers import bytes_read, cache_bytes, which_file  # noqa: E402
from helpers.architecture import settings_of  # noqa: E402
from helpers.cards import CARDS, USABLE  # noqa: E402
from helpers.sizes import GGUF_TYPES, IN_SAFETENSORS, NEED_IMATRIX, OF_EXPERTS, experts_of, left_in_16_bits  # noqa: E402

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
NOTEBOOKS = {"16-bit": "01_baseline", "NF4": "03_nf4", "GPTQ": "04_gptq", "AWQ": "06_awq"}
SHOWN = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", OF_EXPERTS)  # of the GGUF types, without --all
CACHES = ("F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")  # of llama.cpp


def configuration(model):
    """The object in a config.json: of a file, a folder, or a repository of the hub, by 'owner/name' or with '@commit'."""
    place = pathlib.Path(model).expanduser()
    if place.exists():
        try:
            return json.loads((place / "config.json" if place.is_dir() else place).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            sys.exit(f"{model} holds no config.json that can be read: {error}")
    name, _, revision = model.removeprefix("https://huggingface.co/").partition("@")
    if name.count("/") != 1:
        sys.exit(f"{model!r} is no file or folder here, and no hub id such as 'owner/name'.")
    request = urllib.request.Request(f"{HUB}/{name}/resolve/{revision or 'main'}/config.json")
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        why = {401: "it asks for a login, or is not there; set HF_TOKEN", 403: "you have not been let in; ask on its page"}
        why |= {404: "there is no such repository or revision, or it has no config.json, as GGUF repositories have none"}
        sys.exit(f"The hub does not give the configuration of {name} ({error.code}): {why.get(error.code, error.reason)}.")
    except (OSError, ValueError) as error:
        sys.exit(f"{name} is no folder here, and the hub cannot be reached ({type(error).__name__}).")


def positive(text):
    value = float(text)
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"{text} is no positive number of a sensible size")
    return value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a hub id, a folder, or a config.json")
    parser.add_argument("--card", choices=[*CARDS], help="an NVIDIA card: its memory, and the bandwidth of its data sheet")
    parser.add_argument("--memory", type=positive, help="GB that are free, of a card or of ordinary memory")
    parser.add_argument("--context", type=positive, default=8192, help="tokens of each conversation")
    parser.add_argument("--users", type=positive, default=1, help="conversations at once")
    parser.add_argument("--cache", choices=CACHES, default="F16", help="the type of keys and values, in llama.cpp")
    parser.add_argument("--bandwidth", type=positive, help="GB/s of that memory, by its data sheet")
    parser.add_argument("--all", action="store_true", help="every type of GGUF file")
    given = parser.parse_args()
    if given.card:  # what the driver and gaps between the pieces keep, is not free
        given.memory = given.memory or USABLE * CARDS[given.card].memory / 1e9
        given.bandwidth = given.bandwidth or CARDS[given.card].bandwidth / 1e9
    if not given.memory:
        parser.error("--memory or --card is needed")
    config, users, context = configuration(given.model), int(given.users), int(given.context)
    names = {"16-bit": "BF16"} | {kind: kind for kind in IN_SAFETENSORS[1:]}
    types = [kind for kind in (*GGUF_TYPES, OF_EXPERTS) if kind not in NEED_IMATRIX and (given.all or kind in SHOWN)]
    names |= {kind: f"model-{kind}.gguf" for kind in types}
    try:
        experts = experts_of(config)
        if not experts:
            del names[OF_EXPERTS]
        elif settings_of(config).get("quantization_config", {}).get("quant_method") != "mxfp4":
            del names["MXFP4"]
        settings = dict(context=context, users=users, cache=given.cache)
        rows = which_file(names.values(), config, 1e9 * given.memory, **settings)
        kept = cache_bytes(config, context, users, "llama.cpp", given.cache)
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"The bytes of {given.model} are not known: {error if isinstance(error, ValueError) else repr(error)}")
    print(f"{given.model}: {settings_of(config)['model_type']}, {f'{experts} experts' if experts else 'dense'}")
    print(f"cache of {users} x {context:,} tokens in llama.cpp, {given.cache}: {kept / 1e9:.2f} GB\n")
    print(f"{'format':10}{'GB':>8}{'needs':>8}  {'fits':6}{'tokens/s':>9}  taught in")
    for row in rows:
        kind = row["format"]
        limit = ""
        if given.bandwidth:
            limit = f"{users * 1e9 * given.bandwidth / (bytes_read(config, kind, users) + kept):,.0f}"
        note = "  leaves the experts in 16 bits" if left_in_16_bits(config, kind).get("expert") and kind != "16-bit" else ""
        where = NOTEBOOKS.get(kind, "11_newer_formats" if kind in IN_SAFETENSORS else "05_gguf")
        if experts and (kind in ("GPTQ", "AWQ", "MXFP4") or kind not in IN_SAFETENSORS):
            where = "12_experts"
        fits = "yes" if row["fits"] else "no"
        print(f"{kind:10}{row['bytes'] / 1e9:8.1f}{row['needs'] / 1e9:8.1f}  {fits:6}{limit:>9}  {where}{note}")


if __name__ == "__main__":
    main()
