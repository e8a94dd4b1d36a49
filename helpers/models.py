"""The table of models: what the parameter ``MODEL`` may be and where its files are."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import os
import pathlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = ROOT / "models" / "tiny-zephyr"
ZEPHYR = "HuggingFaceH4/zephyr-7b-beta"


def _stays_inside(name: str) -> bool:
    """Whether ``name`` is a path below a folder, on every system."""
    path = pathlib.PurePosixPath(name.replace("\\", "/"))
    return not path.is_absolute() and ".." not in path.parts and ":" not in name


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are.

    Attributes:
        source: a local folder or a hub id, as ``from_pretrained`` takes it.
        revision: the hub's commit or branch; None for a local folder.
        file: the one file that is meant, for GGUF.
        download: bytes of weights that are still to be fetched.

    Raises:
        ValueError: ``file`` leads out of the model's folder.
    """

    source: str
    revision: str | None = None
    file: str | None = None
    download: int = 0

    def __post_init__(self) -> None:
        if self.file and not _stays_inside(self.file):
            raise ValueError(f"The file {self.file!r} leads out of its model's folder. Give the name of a file in it.")

    @property
    def is_local(self) -> bool:
        return self.revision is None

    @property
    def label(self) -> str:
        """A short name, fit for a file name."""
        if not self.is_local:
            return self.source.replace("/", "--")
        return pathlib.Path(self.source).resolve().name


# name -> technique -> checkpoint; 'base' is the 16-bit model, the others are published quantized.
MODELS: dict[str, dict[str, Checkpoint]] = {
    "tiny": {"base": Checkpoint(str(TINY))},
    "zephyr": {
        "base": Checkpoint(ZEPHYR, "892b3d7a7b1cf10c7a701c60881cd93df615734c"),
        "gptq": Checkpoint("TheBloke/zephyr-7B-beta-GPTQ", "main"),
        "gguf": Checkpoint(
            "TheBloke/zephyr-7B-beta-GGUF",
            "e4714d14e9652aa9658fa937732cceadc63ac42e",
            "zephyr-7b-beta.Q4_K_M.gguf",
        ),
        "awq": Checkpoint("TheBloke/zephyr-7B-beta-AWQ", "main"),
    },
}


def resolve_model(name: str, technique: str = "base") -> Checkpoint | None:
    """Say where the files of ``MODEL = name`` are, before anything is loaded.

    Args:
        name: a name in ``MODELS``, a local folder, or a hub id such as ``owner/model``.
        technique: ``base`` or a technique that has published checkpoints (``gptq``, ``gguf``, ``awq``).

    Returns:
        The checkpoint, with a branch such as ``main`` resolved to its commit; None when ``technique`` has no
        published one, so that the notebook makes it.

    Raises:
        ValueError: ``name`` is none of the three, or a folder that holds no model.
        ConnectionError: the model is on the hub, and the hub cannot be reached.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"MODEL must be a name, a folder or a hub id, but is {name!r}. Try MODEL = 'tiny'.")
    if name in MODELS:
        found = MODELS[name].get(technique)
        if found and found.is_local:
            _require_model_folder(pathlib.Path(found.source))
        return _found_on_hub(found) if found and not found.is_local else found
    folder = pathlib.Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or "\\" in name or folder.is_dir()
    if looks_local:
        _require_model_folder(folder)
        return Checkpoint(str(folder.resolve())) if technique == "base" else None
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _found_on_hub(Checkpoint(name, "main")) if technique == "base" else None
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
        f"MODEL = {name!r} is not known.{hint} Use one of {', '.join(map(repr, MODELS))}, "
        "a hub id such as 'owner/model', or the path of a folder that holds a model."
    )


def _require_model_folder(folder: pathlib.Path) -> None:
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is a file. MODEL takes the folder that holds the model's files.")
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}. Check the path in MODEL.")
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"The folder {str(folder)!r} holds no model: config.json is missing.")
    for file in (config, folder / "tokenizer_config.json"):
        if file.is_file():
            _refuse_code(_json(file), str(folder))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"The folder {str(folder)!r} has no *.safetensors file. This series loads safetensors only: "
            "pickled weights can run code when they are opened."
        )
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(_json(index).get("weight_map", {}).values())):
            if not _stays_inside(name):
                raise ValueError(f"{index} names {name!r}, which leads out of its folder. Do not use this model.")
            if not (folder / name).is_file():
                raise ValueError(f"{index} names {name}, and there is no such file. Fetch the model again.")
    for file in sorted(folder.glob("*.safetensors")):
        _require_whole(file)


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}. Fetch the model again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(content).__name__}. Fetch the model again.")
    return content


def _refuse_code(settings: dict[str, Any], source: str) -> None:
    """A checkpoint may name Python files of its own, which transformers would ask to run."""
    if code := settings.get("auto_map"):
        named = ", ".join(map(str, code.values() if isinstance(code, dict) else [code]))
        raise ValueError(
            f"{source} brings code of its own ({named}). This series runs no code out of a checkpoint: "
            "choose a model that transformers knows itself."
        )


def _require_whole(file: pathlib.Path) -> None:
    """Raise ValueError unless a safetensors file is as long as its header says."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(length) if 8 + length <= size else b""
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        wanted = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{file} is damaged: its header cannot be read. Fetch the model again.") from None
    if size != wanted:
        raise ValueError(f"{file} is damaged: it has {size:,} bytes instead of {wanted:,}. Fetch the model again.")


def _cached_commit(checkpoint: Checkpoint) -> str | None:
    """The commit of ``checkpoint`` when all of its weights are in the hub's cache, else None."""
    from huggingface_hub import try_to_load_from_cache

    def cached(file: str) -> str | None:
        found = try_to_load_from_cache(checkpoint.source, file, revision=checkpoint.revision)
        return found if isinstance(found, str) else None

    if checkpoint.file:
        wanted = [checkpoint.file]
    elif index := cached("model.safetensors.index.json"):
        weight_map = json.loads(pathlib.Path(index).read_text(encoding="utf-8"))["weight_map"]
        wanted = ["config.json", *set(weight_map.values())]
    else:
        wanted = ["config.json", "model.safetensors"]
    paths = [cached(file) for file in wanted]
    return None if None in paths else pathlib.Path(paths[0]).parent.name


def _found_on_hub(checkpoint: Checkpoint) -> Checkpoint:
    """With its commit and the bytes to fetch; fails within seconds, in one sentence, when it cannot be had."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if commit := _cached_commit(checkpoint):
        return _without_code(replace(checkpoint, revision=commit), ("config.json", "tokenizer_config.json"))
    advice = "Use MODEL = 'tiny', which needs no network, or a folder that you have downloaded."
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError(f"{checkpoint.source} is not on this machine, and HF_HUB_OFFLINE is set. {advice}")
    try:
        info = HfApi().model_info(checkpoint.source, revision=checkpoint.revision, timeout=5, files_metadata=True)
    except GatedRepoError:
        raise ConnectionError(f"{checkpoint.source} asks for a login: accept its terms on the hub first.") from None
    except RepositoryNotFoundError:
        raise ValueError(f"The hub knows no model {checkpoint.source!r}. Check the spelling in MODEL.") from None
    except Exception as error:
        raise ConnectionError(
            f"{checkpoint.source} is not on this machine, and the hub cannot be reached "
            f"({type(error).__name__}). {advice}"
        ) from None
    ending = checkpoint.file or ".safetensors"
    wanted = [f for f in info.siblings if f.rfilename.endswith(ending)]
    if not wanted:
        kind = checkpoint.file or "*.safetensors file"
        raise ValueError(f"{checkpoint.source} has no {kind}. This series loads no pickled weights.")
    # some repositories hold the weights twice: as 'model-*' for transformers, and in their makers' own files
    wanted = [f for f in wanted if pathlib.PurePath(f.rfilename).name.startswith("model")] or wanted
    found = replace(checkpoint, revision=info.sha, download=sum(f.size or 0 for f in wanted))
    return _without_code(found, {f.rfilename for f in info.siblings} & {"config.json", "tokenizer_config.json"})


def _without_code(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The checkpoint, after a look into its small files; the hub's client keeps them."""
    for name in names:
        if (file := _file_of(checkpoint, name)) is not None:
            _refuse_code(_json(file), checkpoint.source)
    return checkpoint


def hub_cache() -> pathlib.Path:
    """Where the hub's client keeps its downloads, or the folder above, where it will make that."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = pathlib.Path(HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    return folder


CALIBRATION_KINDS = ("own", "unrelated", "random")
CALIBRATION_COUNT = 128  # texts in tiny-zephyr's calibration.json


def calibration_texts(count: int, kind: str = "own", tokenizer: Any = None) -> list[str]:
    """The first ``count`` documents (at most 128) to calibrate GPTQ and AWQ with.

    Args:
        kind: 'own' (chats and short prose in tiny-zephyr's style), or, to see what the text matters, 'unrelated'
            (Python source code) and 'random' (random tokens).
        tokenizer: for the last two, to cut each document to as many tokens as the own one has.

    Raises:
        ValueError: there are not so many texts, or the kind is not known.
    """
    own = json.loads((TINY / "calibration.json").read_text(encoding="utf-8"))
    if not 1 <= count <= len(own):
        raise ValueError(f"There are {len(own)} calibration texts; {count} were asked for.")
    if kind not in CALIBRATION_KINDS:
        known = ", ".join(map(repr, CALIBRATION_KINDS))
        raise ValueError(f"There is no calibration text of the kind {kind!r}. Use one of {known}.")
    own = own[:count]
    if kind == "own":
        return own
    lengths = [len(ids) for ids in tokenizer(own, add_special_tokens=False)["input_ids"]]
    if kind == "unrelated":
        code = inspect.getsource(argparse) + inspect.getsource(inspect)
        ids = tokenizer(code, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        dice = random.Random(0)
        ids = [dice.randrange(len(tokenizer)) for _ in range(sum(lengths))]
        ids = [token for token in ids if token not in tokenizer.all_special_ids] + ids[:1000]
    texts, start = [], 0
    for length in lengths:
        texts.append(tokenizer.decode(ids[start : start + length]))
        start += length
    return texts


def first_block(checkpoint: Checkpoint, dtype: Any) -> Any:
    """The model's embedding and first block, on the processor, in ``dtype``; its last norm is not the model's own.

    Real weights, and real activations of that block, without the memory for the rest. Of a sharded checkpoint only
    the shards that hold them are read, and of a model on the hub only these are fetched.

    Raises:
        ValueError: the checkpoint has no safetensors file with the first block's weights.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(checkpoint.source, revision=checkpoint.revision)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):  # one entry for each block, in some architectures
        config.layer_types = config.layer_types[:1]

    def wanted(name: str) -> bool:
        number = re.search(r"\b(?:layers|h|blocks)\.(\d+)\.", name)
        return int(number[1]) == 0 if number else "embed" in name or ".wte." in name or ".wpe." in name

    index = _file_of(checkpoint, "model.safetensors.index.json")
    if index:
        weight_map = _json(index)["weight_map"]
        names = {file for name, file in weight_map.items() if wanted(name)}
        files = [_file_of(checkpoint, name) for name in sorted(names)]
    elif checkpoint.is_local:
        files = sorted(pathlib.Path(checkpoint.source).glob("*.safetensors"))
    else:
        files = [_file_of(checkpoint, "model.safetensors")]
    weights = {}
    for path in files:
        if path is None:
            raise ValueError(f"{checkpoint.source} lacks a file that its index names. Fetch the model again.")
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys() if wanted(name)}
    if not any(re.search(r"\b0\.", name) for name in weights):
        raise ValueError(f"{checkpoint.source} holds no weights of a first block.")
    with torch.device("meta"):
        kind = type(AutoModel.from_config(config))
    return kind.from_pretrained(None, config=config, state_dict=weights, dtype=dtype).eval()


def _file_of(checkpoint: Checkpoint, name: str) -> pathlib.Path | None:
    """One file of a checkpoint, fetched if it is on the hub; None when the checkpoint has none of that name."""
    if checkpoint.is_local:
        path = pathlib.Path(checkpoint.source) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return pathlib.Path(hf_hub_download(checkpoint.source, name, revision=checkpoint.revision))
    except EntryNotFoundError:  # also a file that is not in the cache, with HF_HUB_OFFLINE
        return None
