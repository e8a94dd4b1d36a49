# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.19.0",
#     "accelerate==1.15.0",
#     "bitsandbytes==0.50.2",
# ]
# ///
"""3. NF4: four bits while loading. Written by 'make recipes' out of notebooks/03_nf4.ipynb, which explains it.

    uv run recipes/03_nf4.py --model Qwen/Qwen3-0.6B --prompt "Tell me a joke"

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


def main():
    given = arguments()
    path = links(given.ready or given.model, given.out)
    MAX_NEW_TOKENS = given.max_new_tokens
    DTYPE = computes_in(given.dtype)
    require_room(path, 0.3)

    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPE,
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPE, quantization_config=four_bits,
                                                 device_map="auto")

    messages = [{"role": "system", "content": "You are a friendly chatbot."},
                {"role": "user", "content": given.prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs.to(model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))


if __name__ == "__main__":
    main()
