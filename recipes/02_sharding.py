# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.19.0",
#     "accelerate==1.15.0",
# ]
# ///
"""2. Sharding: one model, many files. Written by 'make recipes' out of notebooks/02_sharding.ipynb, which explains it.

    uv run recipes/02_sharding.py --model Qwen/Qwen3-0.6B --prompt "Tell me a joke"

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
    parser.add_argument("--shards", type=int, default=4)
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


def main():
    given = arguments()
    path = links(given.model, given.out)
    MAX_NEW_TOKENS = given.max_new_tokens
    SHARDS = given.shards
    DTYPE = computes_in(given.dtype)
    require_room(path, 1)

    import torch
    from accelerate import Accelerator, init_empty_weights, load_checkpoint_and_dispatch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = f"{path}-shards"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE)
    size = sum(weight.nbytes for weight in model.parameters())  # bytes
    Accelerator().save_model(model, folder, max_shard_size=size // SHARDS)

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path),
                                                 dtype=getattr(torch, DTYPE))
    model.tie_weights()  # in some models the head is the embedding
    whole_blocks = model._no_split_modules  # a block stays on one device
    model = load_checkpoint_and_dispatch(model, folder, device_map="auto",
                                         no_split_module_classes=whole_blocks)

    messages = [{"role": "system", "content": "You are a friendly chatbot."},
                {"role": "user", "content": given.prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs.to(model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))


if __name__ == "__main__":
    main()
