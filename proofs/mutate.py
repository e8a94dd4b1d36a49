"""Do the tests see it? Single sabotages of the notebooks, one at a time on a copy, and the tests of behaviour that fail.

    python proofs/mutate.py [--only 03_nf4 ...] [--again proofs/mutate.md] [--out proofs/mutate.md]

Each sabotage is a change that a tired writer could make: a setting dropped, another model, a constant, a check removed
together with what it guards, a cell that does nothing. The notebook is executed in a copy of the checkout, and the
tests that read the execution run until one fails. Tests that read the notebook as text do not count and do not run. On
the unchanged notebook, the control, all must pass. What the other notebooks have made is taken from the folder of
artifacts, which must be of this checkout ('make run'). It takes about an hour. --again takes from an
earlier report what was caught, and runs the others, each notebook's with its control.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import nbformat
import report

from series.artifacts import artifacts_folder

ROOT, ESCAPED, CONTROL = report.ROOT, "**escaped**", "nothing: the control"
GONE = None  # in place of old and new: the cell does nothing
TESTS = ["test_notebooks", "test_lessons", "test_fresh"]
OWN = {"08_original_stack": ["test_original"], "09_serving": ["test_serving"]}  # what else reads a notebook's execution
READERS = "not predict and not recipe and not term"  # of these files, the tests that read the notebook's text
WORKERS = 2

# notebook -> (what was done, [(cell, old, new), ...]); 'old' stands in the cell
SABOTAGES: dict[str, list[tuple[str, list[tuple]]]] = {
    "00_start_here": [
        ("one bit too few", [("symmetric", "largest = 2 ** (bits - 1) - 1", "largest = 2 ** (bits - 2) - 1")]),
        ("the mean instead of the maximum", [("symmetric", "np.abs(weights).max() / largest", "np.abs(weights).mean() / largest")]),
        ("the zero point left out", [("zero-point", "zero = np.round(-weights.min() / scale)", "zero = 0")]),
        ("no clipping to the levels' number", [("zero-point", "(2**bits - 1)\n    zero", "(2**bits)\n    zero")]),
        ("blocks all alike", [("blocks", "many.reshape(-1, block)", "many.reshape(-1, 32)")]),
        ("bytes for bits", [("bytes", "billions * bits / 8", "billions * bits")]),
        ("the cell with the weights' table gone", [("bytes", GONE, "")]),
    ],
    "01_baseline": [
        ("sampling", [("ask", "do_sample=False", "do_sample=True, temperature=3.0")]),
        ("another prompt", [("ask", "a funny joke", "a sad story")]),
        ("a short answer", [("ask", "max_new_tokens=MAX_NEW_TOKENS", "max_new_tokens=5")]),
        ("another type", [("load", "dtype=DTYPE", 'dtype="float16"')]),
        ("no template", [("prompt", "render_prompt(tokenizer, messages)", "messages[1]['content']")]),
        ("each place scored on its own token", [("perplexity", "ids[0, 1:, None]", "ids[0, :-1, None]")]),
        ("perplexity without the exponential", [("perplexity", "torch.tensor(total / count).exp()", "torch.tensor(total / count)")]),
        ("half of the windows", [("perplexity", "for ids in windows:", "for ids in windows[::2]:")]),
        ("Zephyr at one byte", [("count", "weight_bytes(zephyr):", "weight_bytes(zephyr) // 2:")]),
        ("a wrong bias, its check gone", [("apart", "clamp(min=1) - 127", "clamp(min=1) - 126"),
                                          ("apart", "assert torch.equal(rebuilt, weight.float())", "")]),
        ("the entropy in nats", [("apart", ".log2()", ".log()")]),
        ("the embedding read for each token", [("limit", "rows = 0 if config.tie_word_embeddings else config.vocab_size", "rows = 0")]),
        ("the pipeline never deleted", [("free-half", "del pipe", "pass"), ("free", "del model", "pass")]),
        ("not measured", [("measure", GONE, "")]),
    ],
    "02_sharding": [
        ("one file", [("make", "size // SHARDS", "2 * size")]),
        ("eight shards", [("make", "size // SHARDS", "size // 8")]),
        ("another type", [("make", "dtype=DTYPE", 'dtype="float32"')]),
        ("not filled", [("load", "model = load_checkpoint_and_dispatch(model, folder, device_map=\"auto\",\n                                     no_split_module_classes=whole_blocks)",
                         'model = model.to_empty(device="cpu")')]),
        ("sampling", [("ask", "do_sample=False", "do_sample=True, temperature=3.0")]),
        ("compared with itself", [("equal", "(model(**inputs.to(model.device)).logits - expected)", "(expected - expected / 2)"),
                                  ("equal", "assert difference == 0 and", "assert")]),
        ("the sharded model counted twice", [("equal", "{tensor_bytes(model):,}\"", "{2 * tensor_bytes(model):,}\"")]),
        ("the index of another key", [("index", "index['metadata']['total_size']", "len(index['weight_map'])")]),
        ("a plan for one GPU", [("plan", "0: 2 * size // 5, 1: 2 * size // 5", "0: 2 * size // 5")]),
        ("nothing offloaded, its check gone", [("offload", "device_map=device_map, offload", 'device_map={"": "cpu"}, offload'),
                                               ("offload", "assert difference == 0 and", "assert difference == 0 or")]),
        ("the wrong place, its check gone", [("by-hand", "return table, 8 + length", "return table, length"), ("by-library", "assert same", "")]),
        ("bytes of the file instead of the tensor", [("by-library", "{by_hand.nbytes:,}", "{file.stat().st_size:,}")]),
        ("the model kept", [("free", "del model", "pass")]),
    ],
    "03_nf4": [
        ("no double quantization", [("load", "    bnb_4bit_use_double_quant=True,\n", "")]),
        ("FP4", [("load", 'bnb_4bit_quant_type="nf4"', 'bnb_4bit_quant_type="fp4"')]),
        ("8 bits", [("load", "load_in_4bit=True", "load_in_8bit=True")]),
        ("no quantization", [("load", ", quantization_config=four_bits", "")]),
        ("sampling", [("ask", "do_sample=False", "do_sample=True, temperature=3.0")]),
        ("evenly spaced levels", [("by-hand", 'bnb.functional.get_4bit_type("nf4", device="cpu")', "torch.linspace(-1, 1, 16)")]),
        ("the mean for the maximum", [("by-hand", "eight.abs().max()", "eight.abs().mean()")]),
        ("constants not counted", [("count", "sum(map(tensor_bytes, layers))", "sum(m.weight.nbytes for m in layers)")]),
        ("always double", [("count", "bnb_4bit_use_double_quant=double", "bnb_4bit_use_double_quant=True")]),
        ("saved without comparing", [("save", "assert difference == 0", ""), ("save", "- expected).abs()", "- expected / 2).abs()")]),
        ("a wrong quantile, its check gone", [("quantiles", "0.9677083", "0.9577083"), ("quantiles", "assert torch.equal(derived, levels)", "")]),
        ("nibbles swapped, its check gone", [("layer-codes", "(codes[0::2] << 4) | codes[1::2]", "(codes[1::2] << 4) | codes[0::2]"),
                                             ("layer-codes", 'assert torch.equal(packed, stored[""].flatten())', "")]),
        ("blocks of 128", [("real-weights", "reshape(-1, 64)", "reshape(-1, 128)"), ("real-weights", "% 64", "% 128")]),
        ("no offset, its check gone", [("rebuild", ' + state["nested_offset"]', ""), ("rebuild", "assert torch.allclose", "torch.allclose")]),
        ("INT4's row lost", [("other-levels", '"INT4": torch.arange(-7, 8) / 7, ', "")]),
    ],
    "04_gptq": [
        ("8 bits", [("make", "bits=BITS", "bits=8")]),
        ("other groups", [("make", "group_size=GROUP_SIZE", "group_size=32")]),
        ("one text", [("make", "dataset=texts", "dataset=texts[:1]")]),
        ("the 16-bit model loaded", [("load", "from_pretrained(folder, dtype", "from_pretrained(path, dtype")]),
        ("not quantized", [("make", ",\n                                                 quantization_config=config)", ")"),
                           ("make", "model.config.quantization_config.dataset = None", "pass")]),
        ("the texts left in the checkpoint", [("make", "model.config.quantization_config.dataset = None", "pass")]),
        ("the calibration text for the held-out one", [("errors", "inputs=held_out", "inputs=seen")]),
        ("sampling", [("ask", "do_sample=False", "do_sample=True, temperature=3.0")]),
        ("no error handed over by hand", [("two-columns", "moved = weights[1] + error * correlation", "moved = weights[1]")]),
        ("scales not counted", [("stored", '("qweight", "qzeros", "scales")))', '("qweight", "qzeros")))')]),
        ("no damping", [("gptq", "hessian.diagonal().add_(damping * hessian.diagonal().mean())", "hessian.diagonal().add_(1e-6)")]),
        ("no error passed on, the check gone", [("gptq", "weight[:, i:] -= torch.outer(error, factor[i, i:])", "pass"),
                                                ("compare", "assert (ours", "(ours")]),
        ("rounded down", [("grid", "((weights / scale).round() + zero)", "((weights / scale).floor() + zero)"), ("compare", "assert (ours", "(ours")]),
        ("zero points off by one, the check gone", [("unpack", 'older = settings.get("checkpoint_format", "gptq") == "gptq"', "older = True"),
                                                    ("compare", "assert (ours", "(ours")]),
        ("errors of outputs for those of weights", [("errors", ': weight_error(restored)', ': output_error(restored)')]),
        ("the order ignored", [("order", '"all columns sorted": diagonal.argsort(descending=True)', '"all columns sorted": natural'),
                               ("order", "gptq(weight, hessian, 4, size, natural)", "gptq(weight, hessian, 4, size, diagonal.argsort())")]),
    ],
    "05_gguf": [
        ("another type", [("make", 'f"LLAMA_FTYPE_MOSTLY_{QUANT_TYPE}")', '"LLAMA_FTYPE_MOSTLY_Q8_0")')]),
        ("converted to float16", [("make", '"--outtype", "bf16"', '"--outtype", "f16"')]),
        ("the 16-bit file run", [("load", "Llama(file,", "Llama(full,")]),
        ("sampling", [("ask", "temperature=0.0", "temperature=3.0, top_k=0, top_p=1.0, min_p=0.0")]),
        ("a short answer", [("ask", "max_tokens=MAX_NEW_TOKENS", "max_tokens=5")]),
        ("elements for bytes", [("types", "int(tensor.n_elements), int(tensor.n_bytes)", "int(tensor.n_bytes), int(tensor.n_elements)")]),
        ("the data one step late", [("read-file", "-(-opened.tell() // step) * step", "(opened.tell() // step + 2) * step")]),
        ("shapes unread, the check gone", [("read-same", "assert len(table) == len(reader.tensors)", ""),
                                           ("read-file", 'table[name] = {"shape": shape', 'table[name[:5]] = table[name] = {"shape": shape')]),
        ("a wrong shift, the check gone", [("decode", "(first >> 6) << 4", "(first >> 6) << 3"), ("decode-same", "    assert equal\n", "")]),
        ("minimums added, the check gone", [("decode", "integers - (d_min * minimums)", "integers + (d_min * minimums)"), ("decode-same", "    assert equal\n", "")]),
        ("one tensor for four", [("decode-same", "found[-4:]", "found[-1:]")]),
        ("the cell with the types gone", [("types", GONE, "")]),
        ("the model kept", [("free", "llm.close()\ndel llm, reader, tensor", "kept = llm\ndel reader, tensor")]),
    ],
    "06_awq": [
        ("a symmetric grid", [("make", "sym=False", "sym=True")]),
        ("GPTQ for AWQ", [("make", 'method="awq"', 'method="gptq"'),
                          ("make", ", backend=BACKEND.AWQ_TORCH", "")]),
        ("other groups", [("make", "group_size=GROUP_SIZE", "group_size=32")]),
        ("one text", [("make", "model.quantize(texts,", "model.quantize(texts[:1],")]),
        ("the 16-bit model served", [("load", "LLM(folder,", "LLM(path,")]),
        ("sampling", [("ask", "temperature=0.0", "temperature=5.0")]),
        ("a short answer", [("ask", "max_tokens=MAX_NEW_TOKENS", "max_tokens=5")]),
        ("scaled and not divided", [("scale", " * step / torch.tensor([1.0, s])", " * step")]),
        ("the engine left running", [("free", "llm.llm_engine.engine_core.shutdown()\ndel llm", "pass")]),
        ("random channels for salient ones", [("kept", "keeping(magnitude.topk(few).indices, bits)", "keeping(draws[0], bits)")]),
        ("no scale in the search", [("search", "** alpha", "** 0")]),
        ("folded the wrong way, its check gone", [("fold", "(one + original) / s - one", "(one + original) * s - one"), ("fold", "assert torch.allclose", "torch.allclose")]),
        ("another order of nibbles, the checks gone", [("unpack", "[0, 4, 1, 5, 2, 6, 3, 7]", "[0, 1, 2, 3, 4, 5, 6, 7]"),
                                                       ("unpack", "assert torch.equal", "torch.equal"), ("compare", "assert (ours", "(ours")]),
    ],
    "07_comparison": [
        ("a technique left out", [("table", '"NF4", ', "")]),
        ("bits of the wrong run", [("table", 'f"{bits[name]:.2f}" for name in SIX', 'f"{bits[SIX[0]]:.2f}" for name in SIX')]),
        ("the divergence the other way round", [("kl", "np.sum(p * (np.log(p) - np.log(q)))", "np.sum(q * (np.log(q) - np.log(p)))")]),
        ("predicted against predicted", [("bytes", "run['memory_bytes'] / run['predicted_bytes'] - 1", "run['predicted_bytes'] / run['predicted_bytes'] - 1")]),
        ("disk for memory", [("bytes", "\"running\": f\"{run['memory_bytes']:,}\"", "\"running\": f\"{run['disk_bytes']:,}\"")]),
        ("noise left out", [("noise", "found[\"noise\"].items()", "list(found[\"noise\"].items())[:1]")]),
        ("standard errors as differences", [("calibration", 'f"{mean:+.4f}"', 'f"{error:+.4f}"')]),
        ("the runtime's factor for the format's", [("split", "by_runtime, by_format = ", "by_format, by_runtime = ")]),
        ("one matrix for embedding and head", [("memory", "embedding_and_head = 2 * 32_000", "embedding_and_head = 32_000")]),
        ("keys without values", [("memory", "cache = 2 * 32 * 8", "cache = 32 * 8")]),
        ("cards for another length", [("cards", "total, 4096)", "total, 1024)")]),
        ("the answers cut", [("said", "[:90]", "[:10]")]),
        ("published figures of the next row", [("published", 'f"{divergence:.3f}"', 'f"{divergence * 2:.3f}"')]),
    ],
    "08_original_stack": [
        ("sampling", [("ask", "do_sample=False", "do_sample=True, temperature=3.0")]),
        ("no quantization", [("nf4", "path, quantization_config=bnb_config,", "path,")]),
        ("FP4", [("nf4", 'bnb_4bit_quant_type="nf4"', 'bnb_4bit_quant_type="fp4"')]),
        ("zero points as they are", [("shift", "value - 0x11111111", "value - 0"), ("word", "assert torch.equal", "torch.equal")]),
        ("the 16-bit model for auto-gptq's", [("shift", "model, pipe = load_gptq(old)", "model, pipe = load_gptq(path)")]),
        ("compared with itself", [("divergence", "distance(np.stack(ours), expected[:4])", "distance(expected[:4], expected[:4])")]),
        ("one question", [("divergence", "count=6", "count=1")]),
        ("ids taken for mended", [("tokens", "mended += end + ", "mended += ")]),
        ("a wrong shift, its check gone", [("word", "torch.arange(0, 32, 4)", "torch.arange(28, -4, -4)"), ("word", "assert torch.equal", "torch.equal")]),
        ("errors of both signs", [("one-sign", "weight - scale", "rounding")]),
        ("an old line as the new one", [("rows", "from_pretrained(BASE, dtype=torch.bfloat16)", "from_pretrained(BASE, torch_dtype=torch.bfloat16)")]),
        ("the model kept", [("free", "del model, pipe", "pass")]),
    ],
    "09_serving": [
        ("the 16-bit model under the other's name", [("serve", '"serve", awq, "--tokenizer", path,', '"serve", path,')]),
        ("sampling", [("full", "**greedy)", "**greedy | {'temperature': 3})")]),
        ("no key", [("serve", "secrets.token_hex(16)", '""')]),
        ("the key on the command line", [("serve", '*here, str(PORT)]', '*here, str(PORT), "--api-key", key]')]),
        ("open to the network", [("serve", '"127.0.0.1"', '"0.0.0.0"')]),
        ("one conversation at a time", [("serve", '"--parallel", "16"', '"--parallel", "1"')]),
        ("always one user", [("load", "path, count, key", "path, 1, key")]),
        ("no grammar sent", [("schema", ", extra_body=asked", "")]),
        ("room for all", [("full", "max(80,", "max(800,")]),
        ("the cache of one conversation", [("cache", "16 * one", "one")]),
        ("70 billion weights that weigh nothing", [("gpus", " - size", "")]),
        ("the servers left running", [("free", "servers[name].terminate()", "pass")]),
    ],
    "10_which_file": [
        ("sizes without the matrix", [("listed", 'imatrix=kind < "IQ4"', "imatrix=False")]),
        ("the mean instead of the mean square", [("importance", "x.square()", "x")]),
        ("one text", [("importance", "for text in texts:", "for text in texts[:1]:")]),
        ("no matrix handed over", [("make", "settings.imatrix, settings.kv_overrides = table, note", "settings.kv_overrides = note")]),
        ("a file that does not say it", [("make", "settings.imatrix, settings.kv_overrides = table, note", "settings.imatrix = table")]),
        ("another type", [("make", "quantize(QUANT_TYPE, ", 'quantize("Q8_0", ')]),
        ("the 16-bit file run", [("ask", "Llama(file,", "Llama(full,")]),
        ("sampling", [("ask", "temperature=0.0", "temperature=3.0, top_k=0, top_p=1.0, min_p=0.0")]),
        ("the control in the matrix's place", [("gives", "(None, equal, matrix)", "(None, matrix, equal)")]),
        ("standard deviations for standard errors", [("gives-table", " / len(values) ** 0.5", "")]),
        ("one way tried instead of 37, the check gone", [("search", "np.arange(37,", "np.arange(1,"), ("same", "assert equal.mean() > 0.9", "assert True")]),
        ("scales not mended, the check gone", [("scales", "range(5)", "range(0)"), ("same", "assert equal.mean() > 0.9", "assert True")]),
        ("the file with the matrix as the one without", [("error", '"no matrix": without', '"no matrix": made[-1]')]),
        ("the model kept", [("free", "llm.close()\ndel llm, model,", "kept = model\ndel llm, model,")]),
    ],
    "13_context": [
        ("a cache in 16 bits", [("load", 'f"GGML_TYPE_{CACHE_TYPE}"', '"GGML_TYPE_F16"')]),
        ("sampling", [("ask", "temperature=0.0", "temperature=3.0, top_k=0, top_p=1.0, min_p=0.0")]),
        ("one token too few", [("bytes", "tokens = llm.n_tokens", "tokens = llm.n_tokens - 20")]),
        ("keys and values changed over", [("scoring", "for name in (keys, values)]\n", "for name in (values, keys)]\n")]),
        ("flash attention switched on", [("refused", "flash_attn=False", "flash_attn=True")]),
        ("values drawn for keys", [("draw", "part[0, 0].float()", "kept.values[0, 0].float()"), ("draw", "getattr(layer, name)", "layer.values")]),
        ("channels for tokens", [("hadamard", "rounded(x, bits, -1)", "rounded(x, bits, -2)")]),
        ("a matrix that is no rotation, the check gone", [("hadamard", "found / size**0.5", "found / size"), ("hadamard", "assert torch.allclose", "torch.allclose")]),
        ("a bit more", [("layer", "way(part, self.bits)", "way(part, self.bits + 1)")]),
        ("the rotation never off", [("switch", '"not rotated": "1"', '"not rotated": "0"')]),
        ("the newest counted as rounded", [("in-detail", "(128 - newest)", "128")]),
        ("all fed at once", [("library", "ids[:, [at]]", "ids[:, :128]"), ("library", "for at in range(128)", "for at in range(1)")]),
        ("the dense cache for all", [("models", "cache_bytes(config, tokens,", "cache_bytes({'model_type': 'llama'}, tokens,")]),
        ("a draft of 16 bits", [("draft-load", "quantization_config=four_bits, ", "")]),
        ("the model kept", [("free", "del model, draft", "kept_one = model\ndel model, draft")]),
    ],
    "14_finetune": [
        ("the question learned as well", [("examples", "[-100] * len(asked) + ids[len(asked):]", "ids")]),
        ("nothing trained", [("train", "optimizer.step(), ", "")]),
        ("the adapter left out", [("ship", "PeftModel.from_pretrained(one, adapter).eval()", "one.eval()"), ("ship", ".merge_and_unload()", "")]),
        ("no checkpointing counted", [("kept", "{held(True)", "{held(False)")]),
        ("half the optimizer", [("bytes", 'in {"adapter": trained, "optimizer": moments}', 'in {"adapter": trained, "optimizer": moments[::2]}')]),
        ("merged into 16 bits for both", [("why", '("the rounded", grid(exact)[0])', '("the rounded", exact)')]),
        ("no adapter in llama.cpp", [("gguf-ways", '{"lora_path": f"{adapter}.gguf"}', "{}")]),
        ("its own template for all", [("template", "tokenizer, form)", "tokenizer, own)")]),
        ("the model kept", [("free", "del model, plain", "kept_one = model\ndel model, plain")]),
    ],
    "12_experts": [
        ("NF4 not asked for", [("load", "quantization_config=four_bits, ", "")]),
        ("the routers counted as experts", [("count", '".experts." in name', '".gate." in name')]),
        ("another type", [("make", 'f"LLAMA_FTYPE_MOSTLY_{QUANT_TYPE}"', '"LLAMA_FTYPE_MOSTLY_Q8_0"')]),
        ("sampling", [("ask-gguf", "temperature=0.0", "temperature=3.0, top_k=0, top_p=1.0, min_p=0.0")]),
        ("not measured", [("measure", GONE, "")]),
        ("experts left in 16 bits", [("formats", "if w.dim() == 3]", "if w.dim() == 4]")]),
        ("the file in MXFP4 is none", [("formats", "LLAMA_FTYPE_MOSTLY_MXFP4_MOE", "LLAMA_FTYPE_MOSTLY_Q8_0")]),
        ("the first expert for all, the check gone", [("by-hand", "down_proj[number]", "down_proj[0]"), ("by-hand", "assert off", "off")]),
        ("one expert counted of two", [("routing", ".topk(chosen)", ".topk(1)")]),
        ("one user for 32", [("three", "bytes_read(config, kind, users)", "bytes_read(config, kind)")]),
        ("half of the card", [("where", "0.95 * size", "0.5 * size")]),
        ("not as published", [("names", "weight_bytes(published, kind)", "weight_bytes(oss, kind)")]),
        ("the model kept", [("free", "del llm, model, ", "kept = model\ndel llm, model, ")]),
    ],
    "11_newer_formats": [
        ("INT8 for FP8", [("make", "formats[FORMAT]", 'formats["INT8"]')]),
        ("the 16-bit model loaded", [("load", "from_pretrained(folder, dtype", "from_pretrained(path, dtype")]),
        ("sampling", [("ask", "do_sample=False", "do_sample=True, temperature=3.0")]),
        ("not measured", [("measure", GONE, "")]),
        ("the farthest level", [("by-hand", "argmin(1)", "argmax(1)")]),
        ("a bit of mantissa more, the checks gone", [("rebuild", "mantissa=3", "mantissa=4"), ("same", "assert torch.equal", "torch.equal")]),
        ("twice the scale in MXFP4, the checks gone", [("rebuild", "- 1.0 - 2)", "- 1.0 - 1)"), ("same", "assert torch.equal", "torch.equal")]),
        ("NVFP4's scale in 32 bits, the checks gone", [("rebuild", "scale = fp8((blocks.abs()", "scale = ((blocks.abs()"), ("same", "assert torch.equal", "torch.equal")]),
        ("blocks of 64 for 128", [("grid", '"128, 16 bits": (128, "")', '"128, 16 bits": (64, "")')]),
        ("smoothed the wrong way", [("smooth", "int8(x / s, 1) @ int8(w * s, 1).T", "int8(x * s, 1) @ int8(w / s, 1).T")]),
        ("one scale for all activations", [("smooth", "values.abs().amax(dim, keepdim=True)", "values.abs().max()")]),
        ("AWQ for 16 bits", [("speed", '"16-bit"][count]', '"AWQ"][count]')]),
        ("the model kept", [("free", "del model, weight", "kept = model\ndel model, weight")]),
    ],
}


def sabotage(notebook: nbformat.NotebookNode, edits: list[tuple]) -> None:
    """Apply the edits; ValueError unless each meets its line."""
    cells = {cell.id: cell for cell in notebook.cells}
    for place, old, new in edits:
        if place not in cells or (old is not GONE and old not in cells[place].source):
            raise ValueError(f"The sabotage meets no line of {place!r}: {old!r}")
        cells[place].source = "pass" if old is GONE else cells[place].source.replace(old, new)


def copy_of_the_checkout(folder: pathlib.Path) -> pathlib.Path:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def attempt(stem: str, edits: list[tuple], copy: pathlib.Path) -> tuple[str, float]:
    """The name of the first test that fails, or '' when none does; and seconds."""
    path, linked = copy / "notebooks" / f"{stem}.ipynb", copy.parent / "artifacts"
    original, notebook = path.read_bytes(), nbformat.read(path, as_version=4)
    sabotage(notebook, edits)
    shutil.rmtree(linked, ignore_errors=True)  # links, made anew
    left = shutil.ignore_patterns("executed", ".lock")
    shutil.copytree(artifacts_folder(), linked, copy_function=os.link, symlinks=True, ignore=left)
    env = {k: v for k, v in os.environ.items() if k != "QUANT_ARTIFACTS"}
    env |= {"SERIES_ARTIFACTS": str(linked), "SERIES_ONLY": stem}
    env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // WORKERS))
    start = time.perf_counter()
    try:
        nbformat.write(notebook, path)
        own = OWN.get(stem, [])
        files = [f"tests/{name}.py" for name in (*TESTS, *own)]
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *files]
        done = subprocess.run([*command, "-m", "not slow", "-k", f"({' or '.join([stem, *own])}) and {READERS}"], cwd=copy, env=env,
                              capture_output=True, text=True)
    finally:
        path.write_bytes(original)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest itself failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) tests/\w+\.py::(\S+)", done.stdout, re.M)
    return (failed[1] if done.returncode else ""), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SABOTAGES), choices=list(SABOTAGES))
    parser.add_argument("--again", help="an earlier report, whose caught sabotages and passed controls stand")
    parser.add_argument("--check", action="store_true", help="only say whether every sabotage meets its line")
    parser.add_argument("--out", help="the report's file")
    given = parser.parse_args()
    for stem in SABOTAGES:  # before hours are spent
        for _, edits in SABOTAGES[stem]:
            sabotage(nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4), edits)
    if given.check:
        return
    known = {}
    if given.again:
        for line in pathlib.Path(given.again).read_text(encoding="utf-8").splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) != 4:
                continue
            stem, what, verdict, seconds = cells
            if verdict == "passed" if what == CONTROL else verdict not in (ESCAPED, "caught by", "--"):
                known[stem, what] = verdict, seconds
        for stem in SABOTAGES:
            if any((stem, what) not in known for what, _ in SABOTAGES[stem]):
                known.pop((stem, CONTROL), None)
    jobs = [(stem, what, edits) for stem in given.only for what, edits in [(CONTROL, []), *SABOTAGES[stem]]]
    rows: dict[tuple[str, str], tuple[str, str]] = {key: known[key] for key in known if key[0] in given.only}
    lock, copies = threading.Lock(), queue.Queue()

    def work(job: tuple[str, str, list[tuple]]) -> None:
        stem, what, edits = job
        if (stem, what) in known:
            return
        copy = copies.get()
        try:
            caught, seconds = attempt(stem, edits, copy)
        finally:
            copies.put(copy)
        verdict = (caught or "passed") if what == CONTROL else (caught or ESCAPED)
        with lock:
            rows[stem, what] = f"`{verdict}`" if caught else verdict, f"{seconds:.0f}"
            print(f"[{len(rows)}/{len(jobs)}] {stem}: {what}: {verdict}", file=sys.stderr, flush=True)
            say(jobs, rows, given.out)

    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for number in range(WORKERS):
            copies.put(copy_of_the_checkout(pathlib.Path(folder) / str(number) / "copy"))
        list(pool.map(work, jobs))
    print(summary(rows))


def summary(rows: dict[tuple[str, str], tuple[str, str]]) -> str:
    tried = {key: verdict for key, (verdict, _) in rows.items() if key[1] != CONTROL}
    controls = [verdict for (_, what), (verdict, _) in rows.items() if what == CONTROL]
    caught = sum(verdict != ESCAPED for verdict in tried.values())
    outputs = sum("test_committed_outputs_are_fresh" in verdict for verdict in tried.values())
    return (f"{len(tried)} sabotages, {caught} caught by tests of behaviour, {outputs} of these first by the comparison "
            f"with the committed outputs; {controls.count('passed')} of {len(controls)} controls pass.")


def say(jobs: list[tuple], rows: dict, out: str | None) -> None:
    """Write the report so far."""
    body = [[stem, what, *rows[stem, what]] for stem, what, _ in jobs if (stem, what) in rows]
    missing = f" {len(jobs) - len(rows)} of {len(jobs)} runs are still to be made." if len(rows) < len(jobs) else ""
    text = f"{summary(rows)}{missing}\n\n" + report.table(["notebook", "sabotage", "caught by", "seconds"], body)
    if out:
        report.write("Sabotaged notebooks, and the tests that see it", "python proofs/mutate.py", text, out, quiet=True)


if __name__ == "__main__":
    main()
