# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "torch==2.13.0",
#     "transformers==5.19.0",
#     "accelerate==1.15.0",
#     "bitsandbytes==0.50.2",
#     "llama-cpp-python==0.3.36",
#     "gguf==0.19.0",
#     "sentencepiece==0.2.2",
#     "pip",
# ]
# ///
"""12. Experts: what must fit, and what is read. Written by 'make recipes' out of notebooks/12_experts.ipynb, which explains it.

    uv run recipes/12_experts.py --model Qwen/Qwen3-0.6B --prompt "Tell me a joke"

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
    parser.add_argument("--quant-type", type=str, default="Q4_K_M")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--gpu-layers", type=int, default=-1)
    parser.add_argument("--converter", help="llama.cpp's convert_hf_to_gguf.py; else it is fetched")
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


def require_experts(path):
    """End with a sentence for a dense model."""
    if "experts" not in (pathlib.Path(path) / "config.json").read_text(encoding="utf-8"):
        sys.exit(f"{path} is no mixture of experts: its config.json names none. recipes/05_gguf.py takes any model.")


def llama_cpp_converter(out):
    """llama.cpp's own script, out of the sources of the llama-cpp-python that is installed."""
    import importlib.metadata
    import subprocess
    import tarfile

    version, name = importlib.metadata.version("llama-cpp-python"), "convert_hf_to_gguf.py"
    folder = pathlib.Path(out).resolve() / f"llama.cpp-{version}"
    if not (folder / name).exists():
        get = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", str(folder)]
        if subprocess.run([*get, f"llama-cpp-python=={version}"]).returncode:
            sys.exit("The sources of llama-cpp-python, which hold llama.cpp's converter, could not be fetched.")
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            for member in archive:
                member.name = member.name.partition("/vendor/llama.cpp/")[2]
                if member.isfile() and member.name.startswith((name, "conversion/", "gguf-py/gguf/")):
                    archive.extract(member, folder, filter="data")
    return str(folder / name)


def main():
    given = arguments()
    path = links(given.model, given.out)
    require_experts(path)
    MAX_NEW_TOKENS = given.max_new_tokens
    QUANT_TYPE = given.quant_type
    CONTEXT = given.context
    GPU_LAYERS = given.gpu_layers
    DTYPE = computes_in(given.dtype)
    require_room(path, 1)
    converter = given.converter or llama_cpp_converter(given.out)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                   bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=getattr(torch, DTYPE))
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, quantization_config=four_bits, dtype=DTYPE,
                                                 device_map="auto")

    messages = [{"role": "system", "content": "You are a friendly chatbot."},
                {"role": "user", "content": given.prompt}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**inputs.to(model.device), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))

    experts = [weight for name, weight in model.named_parameters() if ".experts." in name]
    size = sum(weight.nbytes for weight in experts)
    print(f"in 'four bits': {model.get_memory_footprint() / 1e6:,.1f} MB")
    print(f"experts: {size / 1e6:,.1f} MB, in {experts[0].dtype}, {experts[0].dim()} dimensions")

    import ctypes, os, subprocess, sys

    import llama_cpp

    full, file = f"{path}-BF16.gguf", f"{path}-{QUANT_TYPE}.gguf"
    if not os.path.exists(file):  # made once, under another name until it is complete
        if not os.path.exists(full):
            command = [sys.executable, converter, path, "--outfile", f"{full}.part"]
            subprocess.run([*command, "--outtype", "bf16"], check=True, capture_output=True)
            os.rename(f"{full}.part", full)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{QUANT_TYPE}")
        if llama_cpp.llama_model_quantize(full.encode(), f"{file}.part".encode(),
                                          ctypes.byref(settings)):
            raise RuntimeError(f"llama.cpp could not quantize {full} to {QUANT_TYPE}")
        os.rename(f"{file}.part", file)

    llm = llama_cpp.Llama(file, n_ctx=CONTEXT, n_gpu_layers=GPU_LAYERS, verbose=False)
    output = llm.create_chat_completion(messages, max_tokens=MAX_NEW_TOKENS, temperature=0.0)
    print(output["choices"][0]["message"]["content"])
    print(f"{QUANT_TYPE}: {os.path.getsize(file) / 1e6:,.1f} MB")


if __name__ == "__main__":
    main()
