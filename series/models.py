"""The table of models: what the parameter ``MODEL`` may be, where its files are, and whether they are sound."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import json
import os
import pathlib
import re
import shutil
from dataclasses import dataclass, replace
from typing import Any

from series.artifacts import TINY, content_of, key_of

ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a real model of 135 million parameters, 270 MB
MODELS = {"tiny": str(TINY), "small": SMOLLM2, "zephyr": ZEPHYR}
REVISIONS = {ZEPHYR: "892b3d7a7b1cf10c7a701c60881cd93df615734c", SMOLLM2: "12fd25f77366fa6b3b4b768ec3050bf629380bac"}
SMALL = ["*.json", "*.jinja", "tokenizer.model"]  # all of a model but its weights
WEIGHTS = ["model*.safetensors"]  # what transformers reads: some publish the same weights once more, under another name
OF_2023 = importlib.util.find_spec("auto_gptq") is not None  # in the environment of 08, with transformers 4.45
ADVICE = "Use MODEL = 'tiny', which needs no network, or a folder that you have downloaded."


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are.

    Attributes:
        source: a local folder or a hub id.
        revision: the hub's commit or branch; None for a local folder.
        patterns: the files that are meant, of a checkpoint on the hub.
        download: bytes that are still to be fetched.
    """

    source: str
    revision: str | None = None
    patterns: tuple[str, ...] = ()
    download: int = 0

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.revision is None

    @property
    def label(self) -> str:
        """A short name, fit for a file name, also where vLLM reads it: it takes brackets for a pattern."""
        name = pathlib.Path(self.source).resolve().name if self.is_local else self.source.rpartition("/")[2]
        return re.sub(r"[][*?]", "-", name)

    @property
    def identity(self) -> str:
        """What tells two states of the model apart: its files' content, or the hub's commit."""
        facts = content_of(pathlib.Path(self.source)) if self.is_local else [self.source, self.revision]
        return key_of(facts)

    def fetch(self) -> pathlib.Path:
        """The folder with the files, downloaded with progress where they are on the hub."""
        if self.is_local:
            return pathlib.Path(self.source)
        from huggingface_hub import snapshot_download

        return pathlib.Path(snapshot_download(self.source, revision=self.revision, allow_patterns=[*self.patterns]))

    def first_files(self) -> pathlib.Path:
        """The folder with the shards that hold the embedding and the first block; no others are fetched for it."""
        from huggingface_hub import snapshot_download

        wanted = dict(repo_id=self.source, revision=self.revision)
        folder = pathlib.Path(snapshot_download(allow_patterns=[*SMALL], **wanted))
        index = read_json(folder / "model.safetensors.index.json")["weight_map"]
        files = {file for name, file in index.items() if "embed" in name or ".layers.0." in name}
        snapshot_download(allow_patterns=[*SMALL, *files], **wanted)
        return folder


def named(value: Any) -> str:
    """The parameter MODEL; ValueError where it is no text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"MODEL must be a name, a folder or a hub id, but is {value!r}. Try MODEL = 'tiny'.")
    return value


def find(name: str, weights: bool = True) -> Checkpoint:
    """Say where the files of ``MODEL = name`` are, and that they are sound, before anything is loaded.

    Args:
        name: a name in ``MODELS``, a local folder, or a hub id such as ``owner/model``.
        weights: whether the weights are needed, and not only configuration and tokenizer.

    Returns:
        The checkpoint, with a branch such as ``main`` resolved to its commit.

    Raises:
        ValueError: ``name`` is none of the three, or a folder that holds no sound model.
        ConnectionError: the model is on the hub, and the hub cannot be reached.
    """
    name = MODELS.get(named(name), name)
    try:
        folder = pathlib.Path(name).expanduser()
        is_folder = folder.is_dir()
    except (OSError, RuntimeError) as error:  # a user that does not exist, or a name that is too long
        raise ValueError(f"MODEL = {name[:80]!r} is no folder here: {error}.") from None
    if name.startswith((".", "/", "~")) or "\\" in name or is_folder:
        require_model_folder(folder)
        return Checkpoint(str(folder.resolve()))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        patterns = (*SMALL, *WEIGHTS) if weights else (*SMALL,)
        return on_hub(Checkpoint(name, REVISIONS.get(name, "main"), patterns))
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    pasted = re.match(r"(?:https?://)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)|([\w.-]+/[\w.-]+)[@:/]", name)
    if pasted:
        close = [pasted[1] or pasted[2]]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"MODEL = {name!r} is not known.{hint} Use one of {', '.join(map(repr, MODELS))}, "
        "a hub id such as 'owner/model', or the path of a folder that holds a model."
    )


def require_model_folder(folder: pathlib.Path) -> None:
    """Raise ValueError, in one sentence, unless the folder holds a model that this series may load."""
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file. MODEL takes the folder that holds the model's files.")
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" (looked for in {pathlib.Path.cwd()})"
        raise ValueError(f"There is no folder {str(folder)!r}{where}. Check the path in MODEL.")
    config = folder / "config.json"
    if not config.is_file() and (folder / "adapter_config.json").is_file():
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path", "another model")
        raise ValueError(
            f"The folder {str(folder)!r} holds an adapter to {base}, and no whole model. Merge it into that model "
            "(PEFT's merge_and_unload), save the result, and give its folder."
        )
    if not config.is_file():
        raise ValueError(f"The folder {str(folder)!r} holds no model: config.json is missing.")
    read_json(config)
    from safetensors import SafetensorError, safe_open

    for file in weight_files(folder):
        try:
            with safe_open(file, framework="np"):  # reads the header, and holds it against the file's length
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}. Fetch the model again.") from None


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that transformers would read the weights from.

    Raises:
        ValueError: there are none, but others in their place; or the index names what is not there.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if pathlib.PurePath(name).name != name or "\\" in name:
                raise ValueError(f"{index} names {name!r}, which leads out of its folder. Do not use this model.")
            if not (folder / name).is_file():
                raise ValueError(f"{index} names {name}, and there is no such file. Fetch the model again.")
        return [folder / name for name in names]
    others, where = sorted(file.name for file in folder.glob("*.safetensors")), f"The folder {str(folder)!r}"
    if any(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in others):
        raise ValueError(f"{where} has shards, and no model.safetensors.index.json to say what each holds. Fetch it.")
    if "adapter_model.safetensors" in others:
        raise ValueError(f"{where} holds an adapter and no whole model. Merge it (PEFT's merge_and_unload), save that.")
    if others:
        raise ValueError(
            f"{where} has {', '.join(others[:3])}, and transformers reads model.safetensors. Rename the one you mean."
        )
    if any(folder.glob("*.gguf")):
        raise ValueError(f"{where} holds a GGUF file, which is quantized. MODEL takes what it was made from.")
    raise ValueError(
        f"{where} has no *.safetensors file. This series loads safetensors only: pickled weights can run code when "
        "they are opened."
    )


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """The object in a file of JSON; ValueError, in one sentence, where it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Fetch the model again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(content).__name__}. Fetch the model again.")
    return content


def on_hub(checkpoint: Checkpoint) -> Checkpoint:
    """With its commit and the bytes to fetch; fails within seconds, in one sentence, when it cannot be had."""
    from huggingface_hub import HfApi, snapshot_download

    wanted = dict(repo_id=checkpoint.source, allow_patterns=[*checkpoint.patterns])
    here, nowhere = None, f"neither a folder in {pathlib.Path.cwd()} nor in the hub's cache here"
    with contextlib.suppress(Exception):
        here = pathlib.Path(snapshot_download(revision=checkpoint.revision, local_files_only=True, **wanted))
    if here is not None and is_whole(here, checkpoint):
        return replace(checkpoint, revision=here.name)
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError(f"{checkpoint.source} is {nowhere}, and HF_HUB_OFFLINE is set. {ADVICE}")
    try:
        commit = HfApi().model_info(checkpoint.source, revision=checkpoint.revision, timeout=5).sha
        files = snapshot_download(revision=commit, dry_run=True, **wanted)
        snapshot_download(checkpoint.source, revision=commit, allow_patterns=SMALL)
    except Exception as error:
        raise _refused(error, checkpoint, nowhere) from None
    heavy = set(checkpoint.patterns) - set(SMALL)
    if heavy and not any(pathlib.PurePath(f.filename).match(pattern) for f in files for pattern in heavy):
        raise ValueError(f"{checkpoint.source} has no {' or '.join(heavy)} file. This series loads no pickled weights.")
    download = sum(file.file_size or 0 for file in files if file.will_download)
    return replace(checkpoint, revision=commit, download=download)


def _refused(error: Exception, checkpoint: Checkpoint, nowhere: str) -> Exception:
    """Why the hub did not give a model, with its own words where it has answered."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    source, response = checkpoint.source, getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    said = str((getattr(response, "headers", None) or {}).get("X-Error-Message", "")).strip()
    words = f" The hub said: {status}{f', {said}' if said else ''}." if status else ""
    has_token = "a token is set (HF_TOKEN, or 'hf auth login')" if _has_token() else "no token is set"
    if isinstance(error, GatedRepoError):
        return ConnectionError(
            f"{source} asks for a login: accept its terms on the hub first, and log in ('hf auth login'); "
            f"{has_token}.{words}"
        )
    if status in (401, 403) and _has_token() and not isinstance(error, RepositoryNotFoundError):
        return ConnectionError(
            f"The hub did not accept your token for {source}: it has expired, or is misspelt. Log in again ('hf auth "
            f"login'), or unset HF_TOKEN: a public model needs none.{words}"
        )
    if isinstance(error, RevisionNotFoundError):
        return ValueError(f"{source} has no revision {checkpoint.revision!r}.{words}")
    if isinstance(error, RepositoryNotFoundError):
        return ValueError(
            f"The hub knows no model {source!r}, or does not show it to you: check the spelling in MODEL. A private "
            f"one needs a login ('hf auth login'); {has_token}.{words}"
        )
    if isinstance(error, HfHubHTTPError) and status:
        wait = " Wait some minutes, or log in ('hf auth login')." if status == 429 else ""
        return ConnectionError(f"{source} is {nowhere}, and the hub does not give it.{words}{wait} {ADVICE}")
    why = type(error).__name__ + (f": {str(error).strip()[:150]}" if isinstance(error, ImportError) else "")
    return ConnectionError(f"{source} is {nowhere}, and the hub cannot be reached ({why}). {ADVICE}")


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def is_whole(folder: pathlib.Path, checkpoint: Checkpoint) -> bool:
    """Whether a snapshot in the hub's cache holds all that is wanted: it may have been fetched in part."""
    heavy = set(checkpoint.patterns) - set(SMALL)
    if index := next(folder.glob("*.safetensors.index.json"), None):
        names = set(read_json(index).get("weight_map", {}).values()) if heavy else set()
        return all((folder / name).is_file() for name in names)
    config = any(folder.glob("config.json")) or bool(heavy - set(WEIGHTS))
    return config and (not heavy or any(path for pattern in heavy for path in folder.glob(pattern)))


# --- the model as the recipe finds it --------------------------------------------------------

BROKEN = (Exception,)  # a template is a program, and may fail in any way
PLAIN = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
SYSTEM_FIRST = (  # the instruction opens the user's turn, as Gemma's makers advise
    "{% if messages[0]['role'] == 'system' and messages|length > 1 %}{% set messages = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\n\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)


def prepare(source: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Make ``target`` a folder of links to a model's files; return what was changed for this series, in sentences.

    Decoding is the same for all runtimes: the checkpoint's own sampling, penalties and beams are left out of
    ``generation_config.json``. The chat template is one that takes the series' conversation. What a training left in
    ``config.json``, and an adapter that lies beside the model, change nothing.
    """
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    weights = {*weight_files(source)} if any(source.glob("*.safetensors")) else set()  # none for a published checkpoint
    whole = any(file.name == "model.safetensors" for file in weights)  # then an index beside it is of another day
    said = []
    for file in source.iterdir():
        if file.name.startswith("adapter_"):
            said = ["an adapter lies beside this model: it is left out (PEFT's merge_and_unload would put it in)"]
        elif file.is_file() and file.suffix in (".json", ".model", ".jinja", ".txt") or file in weights:
            if not (whole and file.name.endswith(".index.json")):
                (target / file.name).symlink_to(file.resolve())
    return [*said, *_config(target), *_head(target, weights), *_greedy(target), *_tokenizer(target), *_template(target)]


def _rewrite(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def as_it_is_read(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """``target`` with links to a model's small files, the configuration and the tokenizer as they will be read."""
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".model", ".jinja", ".txt") and file.name[:8] != "adapter_":
            (target / file.name).symlink_to(file.resolve())
    settings, _ = usable(read_json(target / "config.json"))
    _rewrite(target / "config.json", {k: v for k, v in settings.items() if "attn_implementation" not in k})
    _tokenizer(target)
    return target


def usable(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A ``config.json`` as this series reads it, and what was changed, in sentences."""
    found, said = dict(settings), []
    if found.pop("auto_map", None):  # no library is to find the names of Python files
        said.append("this model brings code of its own, which is left out: transformers knows its type")
    for name in ("attn_implementation", "_attn_implementation"):
        if wanted := found.pop(name, None):
            module = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}.get(wanted)
            if wanted in ("eager", "sdpa") or module and importlib.util.find_spec(module):
                found[name] = wanted
            else:
                said.append(f"config.json asks for {wanted}, which is not installed: transformers' own choice is taken")
    if found.get("use_cache") is False:
        found["use_cache"] = True
        said.append("config.json switches the cache off, as trainings do (use_cache); it is on here")
    rope = found.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope and "rope_theta" not in found:  # where libraries of 2023 look
        found["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            found["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return found, said


def _config(folder: pathlib.Path) -> list[str]:
    file = folder / "config.json"
    settings = read_json(file)
    found, said = usable(settings)
    if found != settings and (said or OF_2023):
        _rewrite(file, found if OF_2023 else {n: v for n, v in found.items() if n in settings})
    return said


def _head(folder: pathlib.Path, weights: set[pathlib.Path]) -> list[str]:
    """Where config.json says that the head is the embedding, and the files hold another: one reading for all."""
    settings = read_json(folder / "config.json")
    if settings.get("tie_word_embeddings", False) is not True or not weights:
        return []
    import numpy as np
    from safetensors import safe_open

    rows: dict[str, Any] = {}
    for file in weights:
        with safe_open(file, framework="pt") as opened:  # NumPy knows no bfloat16
            for name in opened.keys():
                if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                    rows[name.rpartition(".weight")[0].rpartition(".")[2]] = opened.get_tensor(name)
    if len(rows) < 2 or np.array_equal(*(tensor.float().numpy() for tensor in rows.values())):
        return []
    _rewrite(folder / "config.json", settings | {"tie_word_embeddings": False})
    return [
        "config.json says that the head is the embedding (tie_word_embeddings), and the files hold another head: that "
        "of the files is taken, as transformers does, by every runtime"
    ]


def _tokenizer(folder: pathlib.Path) -> list[str]:
    """A tokenizer that transformers 5 has saved, for transformers 4; and none that names Python files."""
    file = folder / "tokenizer_config.json"
    settings = read_json(file) if file.exists() else {}
    found = {name: value for name, value in settings.items() if name != "auto_map"}
    if OF_2023:
        if found.get("tokenizer_class") == "TokenizersBackend":
            found["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(found.get("extra_special_tokens"), list):  # a dictionary there
            found["additional_special_tokens"] = found.pop("extra_special_tokens")
    if found != settings:
        _rewrite(file, found)
    return []


def _greedy(folder: pathlib.Path) -> list[str]:
    file = folder / "generation_config.json"
    if not file.exists():
        return []
    settings = read_json(file)
    neutral = ("_from_model_config", "transformers_version", "use_cache", "cache_implementation")
    kept = {name: value for name, value in settings.items() if name.endswith("_token_id") or name in neutral}
    dropped = ", ".join(sorted(name for name in settings.keys() - kept.keys() if settings[name] not in (None, False)))
    if kept.get("use_cache") is False:
        kept["use_cache"] = True
    elif not dropped:
        return []
    _rewrite(file, kept)
    if not dropped:
        return ["generation_config.json switches the cache off, as trainings do (use_cache); it is on here"]
    return [f"decoding is greedy in every runtime; this model's own settings are left out: {dropped}"]


def _template(folder: pathlib.Path) -> list[str]:
    from jinja2.exceptions import SecurityError
    from transformers import AutoTokenizer

    from helpers.prompt import MESSAGES

    file, own, said = folder / "tokenizer_config.json", folder / "chat_template.jinja", []
    settings = read_json(file) if file.exists() else {}

    def write(template: str) -> None:
        own.unlink(missing_ok=True)  # it may be a link
        own.write_text(template, encoding="utf-8")
        found = {k: v for k, v in settings.items() if k != "chat_template"}
        if (found := found | ({"chat_template": template} if OF_2023 else {})) != settings:
            _rewrite(file, found)

    named = settings.get("chat_template")
    if own.exists():
        if OF_2023:  # which looks for it in the other file only
            write(own.read_text(encoding="utf-8"))
    elif isinstance(named, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in named}
        name = "default" if "default" in by_name else next(iter(by_name))
        write(by_name[name])
        said.append(f"of this model's chat templates the one called {name!r} is used")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    if not template:
        write(PLAIN)
        return [*said, "this model has no chat template, as base models have none: it gets the messages as plain text"]
    try:
        tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    except SecurityError as error:
        raise ValueError(f"The chat template of this model reaches for what no template needs: {error}") from None
    except BROKEN:
        write(SYSTEM_FIRST + template)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        try:
            tokenizer.apply_chat_template(MESSAGES, tokenize=False)
        except BROKEN as error:
            raise ValueError(f"The chat template of this model does not take this conversation: {error}") from None
        said.append("this model's chat template takes no system message: it is put in front of the question")
    return said


def first_block(path: str | os.PathLike[str], dtype: Any) -> Any:
    """The model's embedding and first block, on the processor, in ``dtype``; its last norm is not the model's own.

    Real weights, and real activations of that block, without the memory for the rest: of a sharded checkpoint only
    the shards that hold them are read.

    Raises:
        ValueError: there is no safetensors file with the first block's weights.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    folder = pathlib.Path(path)
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):  # one entry for each block, in some architectures
        config.layer_types = config.layer_types[:1]

    def wanted(name: str) -> bool:
        number = re.search(r"\blayers\.(\d+)\.", name)
        return int(number[1]) == 0 if number else "embed" in name

    weights: dict[str, Any] = {}
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = {folder / file for name, file in read_json(index)["weight_map"].items() if wanted(name)}
    else:
        files = {*folder.glob("*.safetensors")}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            weights |= {name: opened.get_tensor(name) for name in opened.keys() if wanted(name)}
    if not any(re.search(r"\b0\.", name) for name in weights):
        raise ValueError(f"{folder} holds no weights of a first block.")
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config))
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype).eval()
