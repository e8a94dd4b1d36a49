"""A ready-made checkpoint, as READY names it: where it is, what it says that it is, its files and their bytes."""

from __future__ import annotations

import pathlib
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from helpers.files import PART, format_of_name, which_file
from series.machine import gb
from series.models import (
    BESIDE_WEIGHTS,
    WEIGHTS,
    Checkpoint,
    address,
    from_hub,
    listing,
    offline,
    read_json,
    weight_files,
)

if TYPE_CHECKING:
    from series.lesson import Lesson
    from series.techniques import Technique

# What torchao's configuration calls a format -> what this series calls it.
OF_TORCHAO = {"Int8WeightOnlyConfig": "INT8", "Float8WeightOnlyConfig": "FP8", "NVFP4WeightOnlyConfig": "NVFP4"}
SEARCHED = 10  # repositories that are looked into
BESIDE = ("mmproj", "imatrix")  # files in GGUF that hold no language model
ALIKE = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class Ready:
    """A checkpoint that somebody has made.

    Attributes:
        checkpoint: where it is.
        method: what its configuration says that it is, such as 'gptq'; 'gguf' for a file of llama.cpp's.
        made_with: the notebook's parameters that it decides, such as {'BITS': 4, 'GROUP_SIZE': 128}.
        size: bytes of its weights.
        files: of a GGUF checkpoint the file, or its parts in order.
    """

    checkpoint: Checkpoint
    method: str
    made_with: dict[str, Any]
    size: int
    files: tuple[str, ...] = ()

    def fetch(self) -> pathlib.Path:
        """The folder with the checkpoint, or its file, downloaded with progress where it is on the hub."""
        folder = self.checkpoint.fetch()
        return folder / self.files[0] if self.files else folder

    @property
    def server(self) -> str:
        """Which of 09's servers takes it: llama.cpp's, called 'gguf' there, or vLLM's, called 'awq'."""
        return "gguf" if self.files else "awq"

    @property
    def parts(self) -> tuple[str, str | None, tuple[str, ...]]:
        """The hub's repository, its commit and the names of the file's parts; or its paths here, and no commit."""
        where = self.checkpoint
        here = tuple(str(pathlib.Path(where.source) / name) for name in self.files)
        return where.source, where.revision, here if where.is_local else self.files

    def link(self, made: pathlib.Path) -> None:
        """Let ``made`` be the checkpoint: a folder; or a file, with its other parts beside it."""
        place = self.fetch()
        parts = [place.parent / pathlib.PurePath(name).name for name in self.files] or [place]
        for part in parts:
            number = PART.search(part.name)
            target = made.with_name(PART.sub(number[0], made.name)) if number else made
            target.unlink(missing_ok=True)
            target.symlink_to(part)


def find(text: str, technique: Technique, loads: dict[str, str], settings: dict[str, Any]) -> Ready:
    """The checkpoint that READY = ``text`` names, before anything but its small files is fetched.

    Args:
        text: a folder or a file; a hub id, with ``@revision`` and ``:Q4_K_M`` or ``:file.gguf`` where they are wanted;
            or the address of a page of the hub.
        technique: what is to load it.
        loads: method -> the notebook that loads it.
        settings: the notebook's; QUANT_TYPE is taken where a repository has several files, and none is named.

    Raises:
        ValueError: it is not there, of another method, or not one file. ConnectionError: the hub cannot be reached.
    """
    source, revision, wanted = address(text, "READY")
    fetch: set[str] = set()
    if revision is None:
        place = pathlib.Path(source).expanduser().resolve()
        folder, wanted = (place.parent, place.name) if place.is_file() else (place, wanted)
        if not folder.is_dir():
            raise ValueError(f"There is no file or folder {source!r}. Check the path in READY.")
        checkpoint, sizes = Checkpoint(str(folder)), {f.name: f.stat().st_size for f in folder.iterdir() if f.is_file()}
    else:
        checkpoint, sizes, fetch = listing(Checkpoint(source, revision, ("*.gguf", *BESIDE_WEIGHTS, *WEIGHTS)))
        folder = from_hub(checkpoint, BESIDE_WEIGHTS)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    how = config.get("quantization_config") or config.get("compression_config") or {}
    files = [name for name in sizes if name.endswith(".gguf") and not any(word in name.lower() for word in BESIDE)]
    if files and (wanted or not how):
        _require_method("gguf", technique.loads, loads, text)
        heavy = _parts({name: sizes[name] for name in files}, wanted, settings.get("QUANT_TYPE", ""), text)
        part = PART.search(heavy[0])  # llama.cpp finds the others by the name of the first
        made = {"QUANT_TYPE": (format_of_name(heavy[0])[0] or "GGUF") + (part[0] if part else "")}
    elif how:
        _require_method(how.get("quant_method", "an unnamed method"), technique.loads, loads, text)
        local = [file.name for file in weight_files(folder)] if checkpoint.is_local else []
        heavy, made = local or [name for name in sizes if name.endswith(".safetensors")], _made_with(how)
    else:
        raise ValueError(
            f"READY = {text!r} is not quantized: its config.json has no quantization_config, and there is no GGUF file "
            "beside it. It goes to MODEL."
        )
    patterns = () if checkpoint.is_local else (*heavy,) if "QUANT_TYPE" in made else (*BESIDE_WEIGHTS, *heavy)
    checkpoint = replace(checkpoint, patterns=patterns, download=sum(sizes[name] for name in fetch & {*heavy}))
    method = "gguf" if "QUANT_TYPE" in made else how["quant_method"]
    found = {name: value for name, value in made.items() if value is not None}
    return Ready(
        checkpoint, method, found, sum(sizes[name] for name in heavy), (*heavy,) if "QUANT_TYPE" in made else ()
    )


def on_the_hub(base: Checkpoint, config: Any, free: int, loads: dict[str, str]) -> str:
    """A sentence on what others have made of a model and put on the hub, the finest that fit first.

    Args:
        base: the 16-bit model.
        free: bytes for it.
        loads: method -> the notebook that loads it.

    Returns:
        '' where the hub cannot be asked, or has nothing that fits and that a notebook here loads.
    """
    if base.is_local or offline():
        return ""
    from huggingface_hub import HfApi

    api = HfApi()
    sizes: dict[str, int] = {}
    notebooks: dict[str, str] = {}
    try:
        for found in api.list_models(filter=f"base_model:quantized:{base.source}", sort="downloads", limit=SEARCHED):
            info = api.model_info(found.id, files_metadata=True, timeout=5)
            files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            ggufs = {n: s for n, s in files.items() if n.endswith(".gguf") and not any(w in n.lower() for w in BESIDE)}
            method = ((info.config or {}).get("quantization_config") or {}).get("quant_method", "")
            if ggufs:
                sizes |= {f"{found.id}:{name}": size for name, size in ggufs.items()}
            elif method in loads:
                sizes[found.id] = sum(size for name, size in files.items() if name.endswith(".safetensors"))
                notebooks[found.id] = loads[method]
        rows = [row for row in which_file(sizes, config, free) if row["fits"] and row["format"] != "?"]
    except Exception:  # a search is a service, and no condition
        return ""
    told: dict[str, str] = {}  # one of each repository
    for row in rows:
        name = row["name"].partition(":")[0]
        told.setdefault(
            name, f"READY = {row['name']!r} ({gb(row['bytes'])}, {notebooks.get(name, loads.get('gguf', ''))})"
        )
    best = "; ".join([*told.values()][:3])
    return f" The hub has of it, the finest that fit first: {best}. None is taken by itself." if best else ""


def _require_method(method: str, methods: tuple[str, ...], loads: dict[str, str], text: str) -> None:
    if method not in methods:
        where = f"{loads[method]} loads it" if method in loads else "no notebook of this series loads such a one"
        raise ValueError(f"READY = {text!r} is a checkpoint of another kind ({method}): {where}.")


def _made_with(settings: dict[str, Any]) -> dict[str, Any]:
    found = {"BITS": settings.get("bits"), "GROUP_SIZE": settings.get("group_size")}
    kind = settings.get("quant_type")  # torchao's own
    if isinstance(kind, dict) and isinstance(kind.get("default"), dict):
        found["FORMAT"] = OF_TORCHAO.get(str(kind["default"].get("_type")))
    return found


def _parts(sizes: dict[str, int], wanted: str | None, kind: str, text: str) -> list[str]:
    """The one GGUF file that is meant, or its parts in order, by its name or its type."""
    whole: dict[str, list[str]] = {}  # the name without its number -> its parts
    for name in sorted(sizes):
        whole.setdefault(PART.sub("", name), []).append(name)
    if wanted and wanted.endswith(".gguf"):
        found = [name for name, parts in whole.items() if wanted in (name, *parts)]
    else:
        types = [wanted.upper()] if wanted else [kind]
        found = [name for name in whole if format_of_name(name)[0] in types or wanted and wanted in name]
        found = found or ([*whole] if len(whole) == 1 and not wanted else [])
    if len(found) != 1:
        offered = ", ".join(f"{name} ({gb(sum(sizes[p] for p in parts))})" for name, parts in whole.items())
        what = f"{len(found)} files that could be meant" if found else f"no file of type {wanted or kind}"
        raise ValueError(f"READY = {text!r} has {what}. Name one, as in 'owner/name:file.gguf'. There are: {offered}.")
    parts = whole[found[0]]
    numbers = re.search(r"-of-(\d{5})\.gguf$", parts[0])
    if numbers and len(parts) != int(numbers[1]):
        raise ValueError(f"Of {found[0]} there are {len(parts)} of {int(numbers[1])} parts. Fetch it again.")
    return parts


def decide(ready: Ready, lesson: Lesson) -> None:
    """Set the parameters that were decided when the checkpoint was made."""
    asked = lesson.given.get("READY")
    for name, value in ready.made_with.items():
        if not asked and name in lesson.settings and lesson.settings[name] != value:
            raise ValueError(f"The published checkpoint has {name} = {value!r}; set it so, or READY to another one.")
        lesson.set(name, value, "as the ready-made checkpoint has it")
    if asked:
        lesson.asked = lesson.settings | {"READY": asked}


def take(ready: Ready, lesson: Lesson) -> None:
    """Fetch the checkpoint, hold it against MODEL, and let it lie where the recipe would have made it."""
    require_same(ready, lesson.config, lesson.model)
    if lesson.technique.makes:
        ready.link(lesson.made)


def require_same(ready: Ready, config: Any, model: str) -> None:
    """Raise ValueError where a checkpoint that lies here is not of the model that ``config`` describes.

    Args:
        model: what MODEL says.
    """
    wanted = {name: getattr(config, name, None) for name in ALIKE}
    place = ready.fetch()
    if ready.files:
        from gguf import GGUFReader

        fields = {name: field.contents() for name, field in GGUFReader(place).fields.items() if field.types}
        arch = fields.get("general.architecture")
        names = {"num_hidden_layers": "block_count", "hidden_size": "embedding_length"}
        found = {name: fields.get(f"{arch}.{key}") for name, key in names.items()}
        by = fields.get("general.base_model.0.repo_url") or fields.get("general.name") or "another model"
    else:
        settings = read_json(place / "config.json")
        found = {name: settings.get(name) for name in ALIKE}
        by = settings.get("_name_or_path") or "another model"
    if wrong := [name for name, value in found.items() if value is not None and value != wanted[name]]:
        raise ValueError(
            f"The checkpoint in READY was made from {by}, and not from MODEL = {model!r}: its {wrong[0]} is "
            f"{found[wrong[0]]}, and the model's is {wanted[wrong[0]]}. MODEL names the model in 16 bits, of which the "
            "configuration and the tokenizer are read."
        )
