"""The table of models: what the parameter ``MODEL`` may be, where its files are, and whether they are sound."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pathlib
import re
import shutil
from dataclasses import dataclass, replace
from typing import Any

from series.artifacts import ROOT, content_of, key_of
from series.techniques import ZEPHYR, Published

TINY = ROOT / "models" / "tiny-zephyr"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a real model of 135 million parameters, 270 MB
MODELS = {"tiny": str(TINY), "small": SMOLLM2, "zephyr": ZEPHYR}
REVISIONS = {ZEPHYR: "892b3d7a7b1cf10c7a701c60881cd93df615734c", SMOLLM2: "12fd25f77366fa6b3b4b768ec3050bf629380bac"}
SMALL = ["*.json", "*.jinja", "tokenizer.model"]  # all of a model but its weights
WEIGHTS = ["model*.safetensors"]  # what transformers reads: some publish the same weights once more, under another name
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
        return self.revision is None

    @property
    def label(self) -> str:
        """A short name, fit for a file name."""
        return pathlib.Path(self.source).resolve().name if self.is_local else self.source.rpartition("/")[2]

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
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"MODEL must be a name, a folder or a hub id, but is {name!r}. Try MODEL = 'tiny'.")
    name = MODELS.get(name, name)
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
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"MODEL = {name!r} is not known.{hint} Use one of {', '.join(map(repr, MODELS))}, "
        "a hub id such as 'owner/model', or the path of a folder that holds a model."
    )


def published(checkpoint: Published, settings: dict[str, Any]) -> Checkpoint:
    """A checkpoint that others have made, found on the hub."""
    patterns = (checkpoint.file.format(**settings),) if checkpoint.file else (*SMALL, *WEIGHTS)
    return on_hub(Checkpoint(checkpoint.repository, checkpoint.revision, patterns))


def require_model_folder(folder: pathlib.Path) -> None:
    """Raise ValueError, in one sentence, unless the folder holds a model that this series may load."""
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file. MODEL takes the folder that holds the model's files.")
    if not folder.is_dir():
        where = "" if folder.is_absolute() else f" (looked for in {pathlib.Path.cwd()})"
        raise ValueError(f"There is no folder {str(folder)!r}{where}. Check the path in MODEL.")
    config = folder / "config.json"
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
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

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
    except GatedRepoError:
        raise ConnectionError(f"{checkpoint.source} asks for a login: accept its terms on the hub first.") from None
    except RepositoryNotFoundError:
        raise ValueError(f"The hub knows no model {checkpoint.source!r}. Check the spelling in MODEL.") from None
    except Exception as error:
        raise ConnectionError(
            f"{checkpoint.source} is {nowhere}, and the hub cannot be reached ({type(error).__name__}). {ADVICE}"
        ) from None
    heavy = set(checkpoint.patterns) - set(SMALL)
    if heavy and not any(pathlib.PurePath(f.filename).match(pattern) for f in files for pattern in heavy):
        raise ValueError(
            f"{checkpoint.source} has no {' or '.join(heavy)} file. This series loads no pickled weights."
        )
    download = sum(file.file_size or 0 for file in files if file.will_download)
    return replace(checkpoint, revision=commit, download=download)


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
    ``generation_config.json``. The chat template is one that takes the series' conversation.
    """
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    weights = {*weight_files(source)} if any(source.glob("*.safetensors")) else set()  # none for a published checkpoint
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".model", ".jinja", ".txt") or file in weights:
            (target / file.name).symlink_to(file.resolve())
    return [*_without_code(target), *_greedy(target), *_template(target)]


def _rewrite(file: pathlib.Path, content: dict[str, Any]) -> None:
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _without_code(folder: pathlib.Path) -> list[str]:
    """No library is to find the names of Python files; transformers knows the type itself, or the gate said no."""
    found = False
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        settings = read_json(file) if file.exists() else {}
        if settings.pop("auto_map", None):
            found = True
            _rewrite(file, settings)
    return ["this model brings code of its own, which is left out: transformers knows its type"] if found else []


def _greedy(folder: pathlib.Path) -> list[str]:
    file = folder / "generation_config.json"
    if not file.exists():
        return []
    settings = read_json(file)
    neutral = ("_from_model_config", "transformers_version", "use_cache", "cache_implementation")
    kept = {name: value for name, value in settings.items() if name.endswith("_token_id") or name in neutral}
    dropped = ", ".join(sorted(name for name in settings.keys() - kept.keys() if settings[name] not in (None, False)))
    if not dropped:
        return []
    _rewrite(file, kept)
    return [f"decoding is greedy in every runtime; this model's own settings are left out: {dropped}"]


def _template(folder: pathlib.Path) -> list[str]:
    from jinja2.exceptions import SecurityError
    from transformers import AutoTokenizer

    from helpers.prompt import MESSAGES

    file, said = folder / "tokenizer_config.json", []
    settings = read_json(file) if file.exists() else {}
    own, named = folder / "chat_template.jinja", settings.get("chat_template")
    if isinstance(named, list) and not own.exists():  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in named}
        name = "default" if "default" in by_name else next(iter(by_name))
        own.write_text(by_name[name], encoding="utf-8")
        _rewrite(file, {k: v for k, v in settings.items() if k != "chat_template"})
        said.append(f"of this model's chat templates the one called {name!r} is used")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    if not template:
        own.unlink(missing_ok=True)  # it may be a link
        own.write_text(PLAIN, encoding="utf-8")
        return [*said, "this model has no chat template, as base models have none: it gets the messages as plain text"]
    try:
        tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    except SecurityError as error:
        raise ValueError(f"The chat template of this model reaches for what no template needs: {error}") from None
    except BROKEN:
        own.unlink(missing_ok=True)
        own.write_text(SYSTEM_FIRST + template, encoding="utf-8")
        _rewrite(file, {k: v for k, v in settings.items() if k != "chat_template"})
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

    weights, index = {}, folder / "model.safetensors.index.json"
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
