"""One gate before a model is loaded or fetched: its configuration, its tokenizer, and the headers of its weights.

What transformers would make up at random, leave out, or read as something else is told here, in one sentence.
"""

from __future__ import annotations

import copy
import pathlib
import re
import tempfile
from typing import Any

from helpers.architecture import kept_by_layers, model_weights, settings_of
from helpers.prompt import render_prompt
from helpers.sizes import block_linears, experts_of, left_in_16_bits
from series import multimodal
from series.console import quiet
from series.fit import fit_on
from series.kernel import no_numbers
from series.machine import Machine
from series.models import BESIDE_WEIGHTS, Checkpoint, read_json, weight_files
from series.prepared import as_it_is_read

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}  # safetensors' names, and torch's
# What a file of one of these names holds, transformers can read as a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")
PREFIXES = {
    "_orig_mod.": "torch.compile's; save the model that was compiled",
    "base_model.model.": "PEFT's; merge the adapter with merge_and_unload(), and save the result",
    "module.": "that of a wrapper for several GPUs; save the model inside",
}


def require(checkpoint: Checkpoint, weights: bool = True, loads: dict[str, str] | None = None) -> Any:
    """The model's configuration, once all of it but the values of its weights has passed.

    Args:
        weights: whether they will be loaded, or only the configuration and the tokenizer.
        loads: the quantization method of a ready-made checkpoint -> the notebook that loads such.

    Raises:
        ValueError: the series cannot take this model, and the sentence says why. ConnectionError: no header was had.
    """
    from transformers import AutoConfig

    source = checkpoint.source
    beside = Checkpoint(source, checkpoint.revision, (*BESIDE_WEIGHTS,))
    folder = (checkpoint if checkpoint.is_local else beside).fetch()
    require_known(folder, source, loads or {})
    with tempfile.TemporaryDirectory() as scratch:
        read = as_it_is_read(folder, pathlib.Path(scratch))
        try:
            with quiet(tell=False):
                config = AutoConfig.from_pretrained(read)
                shapes = built(config)
        except Exception as error:
            said = str(error).strip().split("\n")[0][:300]
            raise ValueError(f"transformers cannot build {source} from its config.json: {said}") from None
        require_tokenizer(read, require_sums(config, shapes), source)
    if weights:
        tensors, whole = headers(checkpoint), read_json(folder / "config.json")
        if others := [name.partition("_")[0] for name in multimodal.OTHERS if whole.get(name)]:
            text = multimodal.renamed(tensors)
            print(
                f"{source} reads more than text: its language model is taken, {len(text)} tensors; "
                f"{len(tensors) - len(text)} others ({', '.join(others)}) are left out"
            )
            tensors = text
        require_weights(config, tensors, source)
    return config


def built(config: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each parameter, as transformers itself builds the model; nothing is filled."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def require_sums(config: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """The rows of the embedding; ValueError where the bytes of a model are not computed here as transformers has them.

    Args:
        shapes: of the parameters, as transformers builds them.
    """
    block_linears(config)
    kept_by_layers(config)
    weights = model_weights(config)
    if {w.name: w.shape for w in weights} != shapes:
        other = sorted({(w.name, w.shape) for w in weights} ^ {*shapes.items()})[0][0]
        raise ValueError(
            f"transformers builds this {config.model_type!r} otherwise than this series counts it (first difference: "
            f"{other}), so that its bytes would be wrong here. Please report it with the config.json."
        )
    return next(w.shape[0] for w in weights if w.role == "embedding")


def no_experts(config: Any) -> None:
    """Raise ValueError for a mixture of experts, where what the notebook makes of one would be wrong."""
    if experts := experts_of(config):
        raise ValueError(
            f"{config.model_type!r} is a mixture of {experts} experts in a layer. gptqmodel's checkpoints of some "
            "mixtures are loaded wrong by transformers or vLLM, without a word. 05_gguf makes a file of it; "
            "01_baseline and 02_sharding run it in 16 bits; 12_experts says more."
        )


def tell_what_stays(config: Any, kind: str) -> None:
    """Say, before the work, which weights of a mixture its library leaves in 16 bits."""
    if not experts_of(config):
        return
    left, all_of_them = left_in_16_bits(config, kind).get("expert", 0), sum(w.count for w in model_weights(config))
    if left:
        print(
            f"{kind} leaves {left / 1e9:,.3g} of {all_of_them / 1e9:,.3g} billion weights in 16 bits: the experts. "
            "05_gguf shrinks them too, and 12_experts shows how else."
        )


def no_states(config: Any) -> None:
    """Raise ValueError for a model of which some layers keep a state, where the library does not take such."""
    if keeps_a_state(config):
        raise ValueError(
            f"Some layers of {config.model_type!r} keep a state and no cache of tokens. gptqmodel and llama.cpp fail "
            "on such models half-way here. 01_baseline and 02_sharding run it in 16 bits; 03_nf4 says whether it does."
        )


def outputs_of(config: Any) -> set[int]:
    """The numbers of outputs that the linear layers of the blocks have."""
    return {weight.shape[0] for weight in model_weights(config) if weight.linear}


def longest(config: Any) -> int:
    """Tokens that the model reads at most; ValueError where they are too few for this series."""
    found = settings_of(config).get("max_position_embeddings") or 10**9
    if found < 128:
        raise ValueError(
            f"This model reads {found} tokens at most (max_position_embeddings). The prompt of this series and its "
            "answer need 128."
        )
    return found


def keeps_a_state(config: Any) -> bool:
    """Whether some layers keep a state instead of a cache of tokens (Mamba, Gated DeltaNet), as in hybrid models."""
    return any(layer.kind == "state" for layer in kept_by_layers(config))


def require_known(folder: pathlib.Path, source: str, loads: dict[str, str]) -> None:
    """Raise ValueError unless ``config.json`` describes a causal language model in 16 bits that transformers knows."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    settings = multimodal.text_settings(read_json(folder / "config.json"))
    kind, code = settings.get("model_type"), settings.get("auto_map")
    if made := settings.get("quantization_config") or settings.get("compression_config"):
        method = made.get("quant_method", "an unnamed method")
        where = f"In {loads[method]} it goes to READY." if method in loads else ""
        raise ValueError(
            f"{source} is already quantized ({method}). MODEL takes the 16-bit model that it was made from. {where}"
        )
    if kind not in CONFIG_MAPPING_NAMES:
        if code:
            named = ", ".join(map(str, code.values() if isinstance(code, dict) else [code]))
            raise ValueError(
                f"{source} brings code of its own ({named}). This series runs no code out of a checkpoint: choose a "
                f"model whose type transformers knows itself."
            )
        raise ValueError(
            f"{source} has model_type {kind!r} in config.json, which transformers {transformers.__version__} does not "
            "know. A newer release may; or the entry is misspelt."
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{source} is of type {kind!r}, which is no causal language model: it does not write on, token by token. "
            "Choose one whose class in config.json ends with ForCausalLM."
        )
    wanted = [str(name) for name in settings.get("architectures") or ()]
    if wanted and not any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in wanted):
        raise ValueError(
            f"{source} is a {wanted[0]} (architectures in config.json), and writes no text: transformers would leave "
            "out what it was trained for, and make up a head or take the embedding for one. Choose one whose class "
            "ends with ForCausalLM."
        )


def require_tokenizer(folder: pathlib.Path, rows: int, source: str) -> None:
    """Raise ValueError unless there is a tokenizer with a row of the embedding for each of its tokens."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ValueError(
            f"{source} has no tokenizer ({', '.join(TOKENIZERS[:3])} are missing). Copy the tokenizer's files from the "
            "model that it was trained from."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        said = str(error).strip().split("\n")[0]
        raise ValueError(f"transformers cannot load the tokenizer of {source}: {said[:200]}") from None
    if len(tokenizer) > rows:
        raise ValueError(
            f"The tokenizer of {source} has {len(tokenizer):,} tokens, and the embedding {rows:,} rows: they are of "
            "two models, or tokens were added and the embedding was not resized."
        )


def headers(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> type and shape of each tensor that transformers would read; nothing but headers is fetched.

    Raises:
        ValueError: the repository has no weights that transformers would read. ConnectionError: it cannot be reached.
    """
    if checkpoint.is_local or not checkpoint.download:
        from safetensors import safe_open

        found = {}
        for file in weight_files(checkpoint.fetch()):
            with safe_open(file, framework="np") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    found[name] = part.get_dtype(), tuple(part.get_shape())
        return found
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        files = get_safetensors_metadata(checkpoint.source, revision=checkpoint.revision).files_metadata
    except NotASafetensorsRepoError:
        raise ValueError(
            f"{checkpoint.source} has neither model.safetensors nor model.safetensors.index.json, which transformers "
            "would read."
        ) from None
    except Exception as error:
        raise ConnectionError(f"The weights of {checkpoint.source} cannot be read ({type(error).__name__}).") from None
    return {n: (t.dtype, tuple(t.shape)) for file in files.values() for n, t in file.tensors.items()}


def require_weights(config: Any, tensors: dict[str, tuple[str, tuple[int, ...]]], source: str) -> None:
    """Raise ValueError unless transformers finds a tensor for each of the model's parameters, in its shape.

    transformers itself looks, with tensors that have a name and a shape and no memory (the ``meta`` device).
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    packed = sorted({dtype for dtype, _ in tensors.values()} - DTYPES.keys())
    if packed:
        raise ValueError(
            f"The weights of {source} are stored as {', '.join(packed)}, and config.json does not say how they were "
            "quantized. MODEL takes a model in 16 or 32 bits."
        )
    try:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ValueError(f"transformers has no causal language model for {source} ({config.model_type!r}).") from None
    hollow = {n: torch.empty(s, dtype=getattr(torch, DTYPES[d]), device="meta") for n, (d, s) in tensors.items()}
    with quiet():
        _, said = kind.from_pretrained(
            None,
            config=copy.deepcopy(config),
            state_dict=hollow,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    missing, unknown = sorted(said["missing_keys"]), sorted(said["unexpected_keys"])
    for prefix, whose in PREFIXES.items():
        if missing and unknown and all(name.startswith(prefix) for name in unknown):
            raise ValueError(
                f"The names of the weights of {source} begin with {prefix!r}, so transformers would find none of "
                f"them and fill the model at random. The prefix is {whose}."
            )
    if missing:
        instead = f" There are others instead, such as {unknown[0]!r}." if unknown else ""
        raise ValueError(
            f"The files of {source} lack {len(missing)} of the tensors of a {kind.__name__}, such as {missing[0]!r}; "
            f"transformers would fill them at random.{instead} Fetch or save the model again."
        )
    if wrong := sorted(said["mismatched_keys"]):
        name, has, wants = wrong[0]
        raise ValueError(
            f"{len(wrong)} tensors of {source} have other shapes than config.json says, such as {name!r}: "
            f"{list(has)} instead of {list(wants)}."
        )
    if astray := [name for name in unknown if re.search(r"\blayers\.\d|lora", name)]:
        raise ValueError(
            f"The files of {source} hold {len(astray)} tensors that a {kind.__name__} of this config.json has no place "
            f"for, such as {astray[0]!r}; transformers would leave them out, and the model would be another one."
        )
    if unknown:
        print(f"{len(unknown)} tensors of the files are no part of this model, such as {unknown[0]!r}: left out")


def head_of_its_own(folder: pathlib.Path, config: Any) -> bool:
    """Whether the files hold a head beside the embedding, which ``config`` has tied; then it has not, any more."""
    if not getattr(config, "tie_word_embeddings", False) or read_json(folder / "config.json").get(
        "tie_word_embeddings", True
    ):
        return False
    config.tie_word_embeddings = False
    return True


def require_numbers(folder: pathlib.Path, dtype: str | None, machine: Machine, config: Any) -> None:
    """Raise ValueError where a weight is no number, or leaves the range of the type that it will be loaded in.

    One NaN spreads over everything behind it: transformers then samples from nothing, and vLLM ends the kernel. For
    float16 the model reads the series' prompt as well, if it fits: activations leave the range before weights do.

    Args:
        folder: a model's files. All weights are read once.
        dtype: the notebook's DTYPE, such as 'float16'.
    """
    import torch
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():
                tensor = opened.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                bad = tensor.numel() - int(torch.isfinite(tensor).sum())
                if bad:
                    raise ValueError(
                        f"{bad:,} of the {tensor.numel():,} weights in {name!r} "
                        f"{'is no number' if bad == 1 else 'are no numbers'} (NaN or infinite), in {file.name}. The "
                        "file was damaged, or the training went astray; no technique mends that. Fetch the model "
                        "again, or take an earlier checkpoint."
                    )
                if dtype == "float16" and tensor.dtype != torch.float16 and tensor.abs().max() > 65504:
                    raise ValueError(
                        f"A weight in {name!r} is {tensor.abs().max():.3g}, and float16 ends at 65,504: loaded in "
                        "DTYPE = 'float16' it would be infinite. Set DTYPE = 'bfloat16' or 'float32'."
                    )
    if dtype == "float16" and fit_on(machine, config, "16-bit", where="spread").fits:
        with quiet():  # a GPU shows it as it is, and bfloat16 by its range
            where = beyond_float16(folder, "float16" if machine.gpus else "bfloat16")
        if where:
            raise ValueError(no_numbers("float16", where))


def beyond_float16(folder: pathlib.Path, dtype: str) -> str:
    """The first part of a model whose output, of the series' prompt, is no number or leaves float16's range; or ''.

    Args:
        dtype: what to load it in. A type with a larger range shows what float16 would do.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="auto")
    ids = tokenizer.encode(render_prompt(tokenizer), add_special_tokens=False)
    found: list[str] = []

    def look(name: str, result: Any) -> None:
        first = result[0] if isinstance(result, tuple) else result
        if not found and isinstance(first, torch.Tensor) and first.is_floating_point():
            if not bool((first.float().abs() <= 65504).all()):  # false for NaN as well
                found.append(name)

    for name, module in model.named_modules():
        if name and not [*module.children()]:
            module.register_forward_hook(lambda _, given, result, name=name: look(name, result))
    with torch.no_grad():
        model(torch.tensor([ids], device=model.device))
    return found[0] if found else ""


def norms_that_feed(config: Any) -> dict[str, str]:
    """Of the first block: each linear layer -> the norm whose output it gets, where it gets that of one.

    A skeleton of the model on the ``meta`` device runs on one token, and the tensors are followed.
    """
    import torch
    from transformers import AutoModelForCausalLM

    settings = copy.deepcopy(config)
    settings.num_hidden_layers = 1
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[:1]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    out, found = {}, {}
    for name, module in model.named_modules():
        place = name.partition(".layers.0.")[2]
        if place.endswith("norm"):
            module.register_forward_hook(lambda _, given, result, name=place: out.update({id(result): (name, result)}))
        elif place and isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=place: found.update({name: out.get(id(given[0]), ("", None))[0]})
            )
    with torch.no_grad(), quiet():
        ids = torch.ones(1, 2, dtype=torch.long, device="meta")
        # a whole mask, since to make one the library would look at values
        model(ids, attention_mask=torch.zeros(1, 1, 2, 2, device="meta"), use_cache=False)
    return found
