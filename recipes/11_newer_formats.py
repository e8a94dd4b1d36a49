# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.19.0",
#     "accelerate==1.15.0",
#     "torchao==0.18.0",
#     "bitsandbytes==0.50.2",
# ]
# ///
"""11. Newer formats: one axis, many grids. Written by 'make recipes' out of notebooks/11_newer_formats.ipynb, which explains it.

    uv run recipes/11_newer_formats.py --model Qwen/Qwen3-0.6B --prompt "Tell me a joke"

uv installs what is named above: torch in its default build, with CUDA. What is made lies in --out, and is made once.
"""

import argparse
import os
import pathlib
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a hub id, 'owner/name', or a folder; in 16 bits")
    parser.add_argument("--prompt", default="Tell me a funny joke about Large Language Models.")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="the longest answer")
    parser.add_argument("--out", default="made", help="the folder for what is made")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"], help="the type to compute in")
    parser.add_argument("--format", type=str, default="FP8")
    parser.add_argument("--ready", help="what somebody has made of it: a hub id, a folder or a file")
    return parser.parse_args()


def links(model, out, weights=True):
    """The path of a folder in ``out`` that leads to the model's files; what the recipe makes lies beside it."""
    from huggingface_hub import snapshot_download

    folder = pathlib.Path(model).expanduser()
    if not folder.is_dir():
        wanted = ["*.json", "*.jinja", "tokenizer.model", *(["model*.safetensors"] if weights else [])]
        try:
            folder = pathlib.Path(snapshot_download(model, allow_patterns=wanted))
        except Exception as error:
            sys.exit(f"{model} is no folder here, and the hub does not give it: {type(error).__name__}.")
    if weights and not any(folder.glob("*.safetensors")):
        sys.exit(f"{model} has no *.safetensors file.")
    target = pathlib.Path(out).resolve() / model.rstrip("/").rpartition("/")[2]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(folder.resolve())
    return str(target)


def computes_in(wanted):
    """The type to compute in: on a card before compute capability 8.0, such as a T4, 'float16'."""
    import torch

    if wanted == "auto":
        old = torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0)
        return "float16" if old else "bfloat16"
    return wanted


def require_room(path, share):
    """End with a sentence where the 16-bit model is larger than all memory that is free."""
    import torch

    needed = share * sum(file.stat().st_size for file in pathlib.Path(path).glob("*.safetensors"))
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free += sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count()))
    if needed > free:
        sys.exit(f"This takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free.")


def ready(checkpoint, made):
    """Let ``made`` be a checkpoint that somebody has made: a folder or a file, or one of the hub."""
    from huggingface_hub import snapshot_download

    place, made = pathlib.Path(checkpoint).expanduser(), pathlib.Path(made)
    if not place.exists():
        name, _, kind = checkpoint.partition(":")
        try:
            place = pathlib.Path(snapshot_download(name, allow_patterns=[f"*{kind}*.gguf"] if kind else None))
        except Exception as error:
            sys.exit(f"{checkpoint} is not here, and the hub does not give it: {type(error).__name__}.")
        if kind:
            found = sorted(place.glob(f"*{kind}*.gguf"))
            if len(found) != 1:
                sys.exit(f"{checkpoint} has {len(found)} such files: {[file.name for file in found]}. Name one.")
            place = found[0]
    made.parent.mkdir(parents=True, exist_ok=True)
    made.unlink(missing_ok=True)
    made.symlink_to(place.resolve())


def main():
    given = arguments()
    path = links(given.model, given.out, weights=not given.ready)
    MAX_NEW_TOKENS = given.max_new_tokens
    FORMAT = given.format
    DTYPE = computes_in(given.dtype)
    if given.ready:
        ready(given.ready, f"{path}-{given.format}")
    else:
        require_room(path, 1)

    import gc, os

    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    folder = f"{path}-{FORMAT}"
    formats = {"INT8": Int8WeightOnlyConfig(), "FP8": Float8WeightOnlyConfig(),
               "NVFP4": NVFP4WeightOnlyConfig()}
    if not os.path.exists(folder):  # made once, under another name until it is complete
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE, device_map="auto",
                                                     quantization_config=TorchAoConfig(formats[FORMAT]))
        model.save_pretrained(f"{folder}.part")
        AutoTokenizer.from_pretrained(path).save_pretrained(f"{folder}.part")
        os.rename(f"{folder}.part", folder)
        del model
        gc.collect()  # torchao's tensors refer to one another, and would stay beside the next ones

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE, device_map="auto")

    messages = [{"role": "system", "content": "You are a friendly chatbot."},
                {"role": "user", "content": given.prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs.to(model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))


if __name__ == "__main__":
    main()
