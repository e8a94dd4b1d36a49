"""The table of models: what the parameter ``MODEL`` may be, where its files are, and whether they are sound."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import pathlib
import re
import urllib.parse
from dataclasses import dataclass, replace
from typing import Any

from series.artifacts import TINY, content_of, key_of

ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a real model of 135 million parameters, 270 MB
MODELS = {"tiny": str(TINY), "small": SMOLLM2, "zephyr": ZEPHYR}
REVISIONS = {ZEPHYR: "892b3d7a7b1cf10c7a701c60881cd93df615734c", SMOLLM2: "12fd25f77366fa6b3b4b768ec3050bf629380bac"}
BESIDE_WEIGHTS = ["*.json", "*.jinja", "tokenizer.model"]  # all of a model but its weights
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
        folder = pathlib.Path(snapshot_download(allow_patterns=[*BESIDE_WEIGHTS], **wanted))
        index = folder / "model.safetensors.index.json"
        names = read_json(index)["weight_map"] if index.is_file() else {}
        files = {file for name, file in names.items() if "embed" in name or ".layers.0." in name} or {*WEIGHTS}
        snapshot_download(allow_patterns=[*BESIDE_WEIGHTS, *files], **wanted)
        return folder


def named(value: Any) -> str:
    """The parameter MODEL; ValueError where it is no text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"MODEL must be a name, a folder or a hub id, but is {value!r}. Try MODEL = 'tiny'.")
    return value


NOWHERE = "neither a folder in {} nor in the hub's cache here"
HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(.+)")
NAME = r"[\w-][\w.-]*/[\w.-]+"


def address(text: str, parameter: str) -> tuple[str, str | None, str | None]:
    """What a reader has in his clipboard, as a hub id or a path, a revision (None for a path), and a file or a type.

    Args:
        text: a path; 'owner/name', with '@revision', ':Q4_K_M' or ':file.gguf'; or an address of a page of the hub.
        parameter: the parameter's name, for the error.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    try:
        here = pathlib.Path(text).expanduser().exists()
        if here or text.startswith((".", "/", "~")) or "\\" in text:
            return text, None, None
    except (OSError, RuntimeError) as error:  # a user that does not exist, or a name that is too long
        raise ValueError(f"{parameter} = {text[:80]!r} is no folder here: {error}.") from None
    if page := HUB.fullmatch(text):
        text = urllib.parse.unquote(page[1].partition("?")[0].partition("#")[0]).strip("/")
    if page := re.fullmatch(rf"({NAME})/(?:blob|resolve)/((?:refs/(?:pr|convert)/)?[^/]+)/(.+)", text):
        return page[1], page[2], page[3]
    if page := re.fullmatch(rf"({NAME})/tree/(.+)", text):
        return page[1], page[2], None
    if plain := re.fullmatch(rf"({NAME})(?:@([\w./-]+))?(?::([\w./-]+))?", text):
        return plain[1], plain[2] or REVISIONS.get(plain[1], "main"), plain[3]
    close = difflib.get_close_matches(text, MODELS, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close and parameter == "MODEL" else ""
    known = f"one of {', '.join(map(repr, MODELS))}, " if parameter == "MODEL" else ""
    raise ValueError(
        f"{parameter} = {text!r} is not known.{hint} Use {known}a hub id such as 'owner/model', or the path of a "
        "folder that holds a model."
    )


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
    source, revision, file = address(name, "MODEL")
    if revision is None:
        folder = pathlib.Path(source).expanduser()
        require_model_folder(folder)
        return Checkpoint(str(folder.resolve()))
    if file:
        raise ValueError(f"MODEL = {name!r} names a file of {source}. MODEL takes a whole model, and READY a file.")
    patterns = (*BESIDE_WEIGHTS, *WEIGHTS) if weights else (*BESIDE_WEIGHTS,)
    return on_hub(Checkpoint(source, revision, patterns))


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
            f"The folder {str(folder)!r} holds an adapter to {base}, and no whole model. 14_finetune loads "
            "it with ADAPTER, and says how to merge it: MODEL takes the folder of the result."
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
        raise ValueError(f"{where} holds an adapter and no whole model: 14_finetune loads it with ADAPTER.")
    if others:
        raise ValueError(
            f"{where} has {', '.join(others[:3])}, and transformers reads model.safetensors. Rename the one you mean."
        )
    if any(folder.glob("*.gguf")):
        raise ValueError(
            f"{where} holds a GGUF file, which is quantized. MODEL takes what it was made from, and READY, in "
            "05_gguf, the file."
        )
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


def listing(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, int], set[str]]:
    """With its commit; name -> bytes of the files that its patterns mean, and which of them are still to be fetched.

    Where the hub cannot be reached, what its cache here holds.
    """
    from huggingface_hub import HfApi, snapshot_download

    wanted = dict(repo_id=checkpoint.source, allow_patterns=[*checkpoint.patterns])
    try:
        if offline():
            raise ConnectionError("HF_HUB_OFFLINE is set")
        commit = HfApi().model_info(checkpoint.source, revision=checkpoint.revision, timeout=5).sha
        files = snapshot_download(revision=commit, dry_run=True, **wanted)
        sizes = {file.filename: file.file_size or 0 for file in files}
        return replace(checkpoint, revision=commit), sizes, {file.filename for file in files if file.will_download}
    except Exception as error:
        with contextlib.suppress(Exception):
            folder = pathlib.Path(snapshot_download(revision=checkpoint.revision, local_files_only=True, **wanted))
            names = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            return replace(checkpoint, revision=folder.name), {n: p.stat().st_size for n, p in names.items()}, set()
        raise _refused(error, checkpoint, NOWHERE.format(pathlib.Path.cwd())) from None


def from_hub(checkpoint: Checkpoint, patterns: list[str]) -> pathlib.Path:
    """The folder of a checkpoint with the files of these patterns, and no others that are not here already."""
    from huggingface_hub import snapshot_download

    return pathlib.Path(snapshot_download(checkpoint.source, revision=checkpoint.revision, allow_patterns=patterns))


def on_hub(checkpoint: Checkpoint) -> Checkpoint:
    """With its commit and the bytes to fetch; fails within seconds, in one sentence, when it cannot be had."""
    from huggingface_hub import HfApi, snapshot_download

    wanted = dict(repo_id=checkpoint.source, allow_patterns=[*checkpoint.patterns])
    here, nowhere = None, NOWHERE.format(pathlib.Path.cwd())
    with contextlib.suppress(Exception):
        here = pathlib.Path(snapshot_download(revision=checkpoint.revision, local_files_only=True, **wanted))
    if here is not None and is_whole(here, checkpoint):
        return replace(checkpoint, revision=here.name)
    if offline():
        raise ConnectionError(f"{checkpoint.source} is {nowhere}, and HF_HUB_OFFLINE is set. {ADVICE}")
    try:
        commit = HfApi().model_info(checkpoint.source, revision=checkpoint.revision, timeout=5).sha
        files = snapshot_download(revision=commit, dry_run=True, **wanted)
        snapshot_download(checkpoint.source, revision=commit, allow_patterns=BESIDE_WEIGHTS)
    except Exception as error:
        raise _refused(error, checkpoint, nowhere) from None
    heavy = set(checkpoint.patterns) - set(BESIDE_WEIGHTS)
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
            f"The hub knows no model {source!r}, or does not show it to you: check the spelling. A private "
            f"one needs a login ('hf auth login'); {has_token}.{words}"
        )
    if isinstance(error, HfHubHTTPError) and status:
        wait = " Wait some minutes, or log in ('hf auth login')." if status == 429 else ""
        return ConnectionError(f"{source} is {nowhere}, and the hub does not give it.{words}{wait} {ADVICE}")
    why = type(error).__name__ + (f": {str(error).strip()[:150]}" if isinstance(error, ImportError) else "")
    return ConnectionError(f"{source} is {nowhere}, and the hub cannot be reached ({why}). {ADVICE}")


def offline() -> bool:
    """Whether the hub must not be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}


def _has_token() -> bool:
    from huggingface_hub import get_token

    return bool(get_token())


def is_whole(folder: pathlib.Path, checkpoint: Checkpoint) -> bool:
    """Whether a snapshot in the hub's cache holds all that is wanted: it may have been fetched in part."""
    heavy = set(checkpoint.patterns) - set(BESIDE_WEIGHTS)
    if index := next(folder.glob("*.safetensors.index.json"), None):
        names = set(read_json(index).get("weight_map", {}).values()) if heavy else set()
        return all((folder / name).is_file() for name in names)
    config = any(folder.glob("config.json")) or bool(heavy - set(WEIGHTS))
    return config and (not heavy or any(path for pattern in heavy for path in folder.glob(pattern)))
