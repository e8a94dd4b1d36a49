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

from helpers import cache_bytes  # noqa: E402
from helpers.architecture import settings_of  # noqa: E402
from helpers.cards import CARDS, USABLE  # noqa: E402
from helpers.files import CACHES, will_fit  # noqa: E402
from helpers.sizes import experts_of  # noqa: E402

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")


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
    speed = 1e9 * (given.bandwidth or 0)
    try:
        experts = experts_of(config)
        rows = will_fit(config, 1e9 * given.memory, context, users, given.cache, speed, given.all)
        kept = cache_bytes(config, context, users, "llama.cpp", given.cache)
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"The bytes of {given.model} are not known: {error if isinstance(error, ValueError) else repr(error)}")
    print(f"{given.model}: {settings_of(config)['model_type']}, {f'{experts} experts' if experts else 'dense'}")
    print(f"cache of {users} x {context:,} tokens in llama.cpp, {given.cache}: {kept / 1e9:.2f} GB\n")
    print(f"{'format':10}{'GB':>8}{'needs':>8}  {'fits':6}{'tokens/s':>9}  taught in")
    for row in rows:
        limit = f"{row['limit']:,.0f}" if row["limit"] else ""
        note = f"{row['notebook']}{'  leaves the experts in 16 bits' if row['left'] else ''}"
        numbers = f"{row['bytes'] / 1e9:8.1f}{row['needs'] / 1e9:8.1f}"
        print(f"{row['format']:10}{numbers}  {'yes' if row['fits'] else 'no':6}{limit:>9}  {note}")


if __name__ == "__main__":
    main()
