"""Do the tests see it? Single sabotages of the notebooks, one at a time on a copy, and the tests that must fail.

    python proofs/mutate.py [--only 03_nf4 ...] [--again proofs/mutate.md] [--out proofs/mutate.md]

Each sabotage is a change that a tired writer could make: a setting dropped, another model, a cell that is gone, a
constant, an assert removed together with what it guards, an output that was not made again. The tests of that notebook
run in the copy until the first one fails; on the unchanged notebook, the control, they must all pass. 07_comparison and 08_original_stack take what lies in the folder of
artifacts, which must be of this checkout: run them before ('make run').

It takes an hour. When what escaped has become a test, --again takes the caught ones from that report, and runs the
others and all controls.
"""

# ruff: noqa: E501
from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import io
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

ROOT = report.ROOT
CONTROL = "nothing: the control"
OUTPUT, CELL = "in an output", "the cell with"  # instead of the line that is replaced

# notebook -> [(what was done, [(old, new), ...]), ...]; 'old' stands in exactly one cell
SABOTAGES: dict[str, list[tuple[str, list[tuple]]]] = {
    "01_baseline": [
        ("another 16-bit type", [("dtype=dtype, device_map=\"auto\",", "dtype=torch.float16, device_map=\"auto\",")]),
        ("sampling instead of greedy decoding", [("do_sample=False, return_full_text=False)\n\nanswer =",
                                                  "do_sample=True, return_full_text=False)\n\nanswer =")]),
        ("another prompt", [("prompt = render_prompt(tokenizer, chat=CHAT)", "prompt = MESSAGES[1][\"content\"]")]),
        ("half of the parameters predicted, its assert gone",
         [("predicted = parameters * dtype.itemsize", "predicted = parameters * dtype.itemsize // 2"),
          ('\nassert abs(measured / predicted - 1) < 0.01, "the count must hold within 1 %"', ""),
          ("assert fit.weights == 2 * parameters", "assert fit.weights")]),
        ("scored on other windows", [("windows = held_out_windows(tokenizer, chat=CHAT)",
                                      "windows = held_out_windows(tokenizer, count=8, chat=CHAT)")]),
        ("the exam cut short", [("exam_prompts(tokenizer, questions))\nprint(f\"perplexity",
                                 "exam_prompts(tokenizer, questions[::-1]))\nprint(f\"perplexity")]),
        ("the record under another technique", [('technique="baseline"', 'technique="nf4"')]),
        ("peak memory left out", [("peak_bytes=peak.bytes", "peak_bytes=0")]),
        ("the pipeline never deleted", [("del pipe\nreport = clear_cache()\nassert not report.held_by and alive() is None",
                                         "report = clear_cache()")]),
        ("a wrong bias of the exponent, its assert gone",
         [("exponent.clamp(min=1) - 127", "exponent.clamp(min=1) - 126"),
          ("\nassert torch.equal(rebuilt, weight.float())", "")]),
        ("the cell with the answer gone", [(CELL, "answer = result[0]")]),
        ("a stale count of windows", [(OUTPUT, "on 16 windows of 256 tokens", "on 18 windows of 256 tokens")]),
        ("the embedding read for each token", [("rows = 0 if settings.tie_word_embeddings else settings.vocab_size",
                                                "rows = 0")]),
    ],
    "02_sharding": [
        ("no sharding", [("limit = whole // SHARDS  # bytes", "limit = 2 * whole  # bytes"),
                         ("\nassert len(list(shards.glob(\"*.safetensors\"))) >= SHARDS or MODEL != \"tiny\"", "")]),
        ("loaded without weights", [("    return load_checkpoint_and_dispatch(\n        model, folder, device_map",
                                     "    return model.to_empty(device=\"cpu\")\n    load_checkpoint_and_dispatch(\n"
                                     "        model, folder, device_map"),
                                    ("assert torch.equal(logits, expected)\n", "")]),
        ("another type", [("    tokenizer = AutoTokenizer.from_pretrained(base.source, revision=base.revision)\n    model",
                           "    tokenizer = AutoTokenizer.from_pretrained(base.source, revision=base.revision)\n    dtype = torch.float32\n    model")]),
        ("the single file measured as the shards", [("with PeakMemory() as sharded_peak, timings(\"load\"), quiet():\n"
                                                     "    model = load(shards)", "with PeakMemory() as sharded_peak, "
                                                     "timings(\"load\"), quiet():\n    model = load(single)"),
                                                    ("disk_bytes=disk_bytes(shards, \"*.safetensors\")",
                                                     "disk_bytes=disk_bytes(single)")]),
        ("nothing offloaded, its assert gone",
         [("device_map=offload_map, offload_folder=offload_folder", "device_map={\"\": \"cpu\"}"),
          ("assert difference == 0 and (in_memory < whole or len(offload_map) == 1)", "")]),
        ("a plan for one GPU", [('two_gpus = plan({0: 2 * whole // 5, 1: 2 * whole // 5, "cpu": whole})',
                                 'two_gpus = plan({0: 2 * whole // 5, "cpu": whole})')]),
        ("the record of another notebook", [('notebook="02_sharding"', 'notebook="01_baseline"')]),
        ("a longer answer", [("max_new_tokens=MAX_NEW_TOKENS, do_sample=False)\n    return output[0",
                              "max_new_tokens=8, do_sample=False)\n    return output[0")]),
        ("the wrong place of a tensor, its asserts gone",
         [("return table, 8 + length", "return table, length"),
          ('    assert torch.equal(by_hand, file.get_tensor(name)), "safetensors reads the same"\n', "    pass\n"),
          ('    assert torch.equal(by_hand, loaded.detach().cpu()), "and the model holds it"', "    pass")]),
        ("the cell that checks the shard's numbers gone", [(CELL, "a shard holds the model's own numbers")]),
        ("the model kept", [("alive = weakref.ref(model)\ndel model\nreport = clear_cache()\nassert not report.held_by and "
                             "alive() is None\nprint(\"the model is gone\")", "print(\"the model is gone\")")]),
        ("a stale size", [(OUTPUT, "17,834,752 bytes in memory, 17,834,752 before",
                           "17,834,752 bytes in memory, 35,669,504 before")]),
    ],
    "03_nf4": [
        ("no double quantization", [("    bnb_4bit_use_double_quant=True,\n", "")]),
        ("FP4 instead of NF4", [('    bnb_4bit_quant_type="nf4",\n    bnb_4bit_use', '    bnb_4bit_quant_type="fp4",\n    bnb_4bit_use'),
                                ('assert {layer.weight.quant_state.quant_type for layer in linears} == {"nf4"}\n', "")]),
        ("8 bits", [("    load_in_4bit=True,\n    bnb_4bit_quant_type", "    load_in_8bit=True,\n    bnb_4bit_quant_type")]),
        ("no quantization", [("    model = load(bnb_config)\n", "    model = load(None)\n")]),
        ("computing in another type", [("    bnb_4bit_compute_dtype=dtype,\n)", "    bnb_4bit_compute_dtype=torch.float16,\n)")]),
        ("the 16-bit model scored", [("    model = load(None, source=str(saved), revision=None)\n",
                                      "    model = load(None)\n"),
                                     ("assert torch.equal(reloaded, expected) and loaded_bytes == double_bytes", "")]),
        ("wrong count of the constants", [("    return 8 * sum(tensor_bytes(layer) for layer in layers) / weights",
                                           "    return 8 * sum(layer.weight.nbytes for layer in layers) / weights"),
                                          ("assert abs(without_tables - 4.127) < 0.02 * 4.127", ""),
                                          ("    assert abs(quantized_bits(plain) - 4.5) < 0.045\n", "    pass\n")]),
        ("evenly spaced levels", [("levels = bnb.functional.get_4bit_type(\"nf4\", device=\"cpu\")",
                                   "levels = torch.linspace(-1, 1, 16)")]),
        ("a wrong quantile, its assert gone", [("linspace(0.9677083", "linspace(0.9577083"),
                                               ("\nassert torch.equal(derived, levels)", "")]),
        ("nibbles swapped, its assert gone", [("packed = (codes[0::2] << 4) | codes[1::2]", "packed = (codes[1::2] << 4) | codes[0::2]"),
                                              ("\nassert torch.equal(packed, stored[name].flatten())", "")]),
        ("the cell that checks the layers gone", [(CELL, "all in NF4")]),
        ("a stale count of bits", [(OUTPUT, "without the tables: 4.127", "without the tables: 4.500")]),
        ("the record without the layers", [('layers={"quantized": sum(isinstance(m, bnb.nn.Linear4bit) for m in model.modules()), "in 16 bits": 0}',
                                            'layers={"quantized": 56, "in 16 bits": 56}')]),
    ],
    "04_gptq": [
        ("no quantization", [("        device_map=device_map, quantization_config=gptq_config,\n", "        device_map=device_map,\n")]),
        ("8 bits made", [("        bits=BITS, group_size=group_size, dataset=texts", "        bits=8, group_size=group_size, dataset=texts"),
                         ("m.bits == BITS for m", "m.bits for m")]),
        ("other groups", [("bits=BITS, group_size=group_size, dataset=texts", "bits=BITS, group_size=32, dataset=texts")]),
        ("calibrated with one text", [("dataset=texts, tokenizer", "dataset=texts[:1], tokenizer")]),
        ("calibrated with other text", [("texts = calibration_texts(CALIBRATION_TEXTS, CALIBRATION, tokenizer)",
                                         'texts = calibration_texts(CALIBRATION_TEXTS, "random", tokenizer)')]),
        ("the 16-bit model loaded", [("    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, device_map=device_map)",
                                      "    model = AutoModelForCausalLM.from_pretrained(base.source, dtype=dtype, device_map=device_map)")]),
        ("the constants not counted", [("bits_predicted = BITS + (16 + BITS) / group_size", "bits_predicted = BITS + 16 / group_size"),
                                       ("assert abs(8 * packed / weights / bits_predicted - 1) < 0.01\n", "")]),
        ("the damping left out of our GPTQ", [("hessian.diagonal().add_(damping * hessian.diagonal().mean())\n    inverse",
                                               "hessian.diagonal().add_(1e-6)\n    inverse")]),
        ("no error passed on, its assert gone", [("        weight[:, i:] -= torch.outer(error, factor[i, i:])\n", ""),
                                                 ('    assert output_error(repaired) < output_error(nearest) or MODEL != "tiny", "GPTQ must repair the output"\n', ""),
                                                 ("    assert agree > 0.98 and output_error(real) < output_error(rounded)", "    pass")]),
        ("zero points off by one", [('older = settings.get("checkpoint_format", "gptq") == "gptq"', "older = False"),
                                    ("    assert agree > 0.98 and output_error(real) < output_error(rounded)", "    pass")]),
        ("the cell with the stored parts gone", [(CELL, 'parts = ("qweight", "qzeros", "scales", "g_idx")')]),
        ("a stale number of bits", [(OUTPUT, "predicted 4.156 bits a weight", "predicted 4.125 bits a weight")]),
    ],
    "05_gguf": [
        ("another type of numbers", [('getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{quant_type}")', 'llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0'),
                                     ("    assert linear_type == \"Q4_K\" and 4.5 <= 8 * size / weights < 5.2 and not unquantized", "    pass")]),
        ("converted to float16", [('"--outtype", "bf16"]', '"--outtype", "f16"]')]),
        ("the 16-bit file loaded", [("    gguf_file = folder / f\"model-{QUANT_TYPE}.gguf\"", "    gguf_file = full / \"model-BF16.gguf\"")]),
        ("a penalty for repeating", [("llm.generate(ids, temp=0.0, repeat_penalty=1.0)", "llm.generate(ids, temp=0.0, repeat_penalty=1.5)")]),
        ("sampling", [("llm.generate(ids, temp=0.0, repeat_penalty=1.0)", "llm.generate(ids, temp=1.5, repeat_penalty=1.0)")]),
        ("a second beginning of the sequence", [("prompt_ids = tokenizer(prompt)[\"input_ids\"]", "prompt_ids = [1] + tokenizer(prompt)[\"input_ids\"]"),
                                                ("assert theirs == prompt_ids or MODEL not in MODELS", "")]),
        ("scored with the last window's memory", [("        scorer.reset()\n", "")]),
        ("predicted instead of measured", [("memory_bytes = llama_cpp.llama_model_size(llm.model)", "memory_bytes = 2 * fit.weights"),
                                           ("assert abs(memory_bytes / fit.weights - 1) < 0.01 or MODEL != \"tiny\"", "")]),
        ("ctransformers' naive tokens", [("    same = tokenize_old(prompt) == prompt_ids", "    same = list(old.tokenize(prompt)) == prompt_ids"),
                                         ('    assert same or MODEL != "tiny"', "    pass")]),
        ("a wrong shift, its assert gone", [("(first >> 6) << 4", "(first >> 6) << 3"), ("\nassert all(equal)", "")]),
        ("the cell with the table of types gone", [(CELL, "kinds = collections.defaultdict")]),
        ("a stale size", [(OUTPUT, "GGUF Q4_K_M", "GGUF Q5_K_M")]),
        ("the models kept", [("llm.close()\ndel llm, old, scorer\n", "del scorer\n"),
                             ("assert not report.held_by and alive() is None\n", "")]),
    ],
    "06_awq": [
        ("a symmetric grid", [("sym=False, method=METHOD.AWQ", "sym=True, method=METHOD.AWQ")]),
        ("GPTQ instead of AWQ", [("sym=False, method=METHOD.AWQ, format=FORMAT.GEMM", "sym=False, method=METHOD.GPTQ, format=FORMAT.GPTQ")]),
        ("other groups", [("        bits=4, group_size=group_size, sym", "        bits=4, group_size=32, sym")]),
        ("texts one by one, its assert gone", [("model.quantize(texts, batch_size=len(texts), backend", "model.quantize(texts, batch_size=1, backend"),
                                               ('    assert all(row["scale_retained_tokens"] == row["scale_raw_tokens"] for row in log), "all text counts"\n', "")]),
        ("calibrated with other text", [("texts = calibration_texts(CALIBRATION_TEXTS, CALIBRATION, tokenizer)",
                                         'texts = calibration_texts(CALIBRATION_TEXTS, "random", tokenizer)')]),
        ("the 16-bit model served, its assert gone", [("    llm = LLM(\n        source, dtype", "    llm = LLM(\n        base.source, dtype"),
                                                      ("assert \"awq\" in quantization and linear_class", "linear_class = linear_class or ['?']")]),
        ("sampling", [("sampling_params = SamplingParams(temperature=0.0, max_tokens=MAX_NEW_TOKENS)",
                       "sampling_params = SamplingParams(temperature=1.5, max_tokens=MAX_NEW_TOKENS)")]),
        ("only the best log-probabilities", [("temperature=0.0, max_tokens=1, prompt_logprobs=-1, flat", "temperature=0.0, max_tokens=1, prompt_logprobs=20, flat")]),
        ("the table not counted", [("memory_bytes = sum(counted.values())", "memory_bytes = counted['parameters'] // 2")]),
        ("nibbles in their natural order", [("[0, 4, 1, 5, 2, 6, 3, 7]", "[0, 1, 2, 3, 4, 5, 6, 7]"),
                                            ('assert torch.equal((each[0] * (integers - each[1])).to(theirs.dtype), theirs), "unpacked as the library unpacks"\n', ""),
                                            ("    assert agree > 0.95 and output_error(restored) < curves[4][0]", "    pass")]),
        ("the cell that counts packed layers gone", [(CELL, 'packed = [n for n in names if n.endswith(".qweight")]')]),
        ("the engine left running", [("with quiet():\n    llm.llm_engine.engine_core.shutdown()\ndel llm\n", "kept = llm\n"),
                                     ("assert not report.held_by and alive() is None and not left\n", "")]),
        ("a stale answer", [(OUTPUT, "Because the next token", "Because the last token")]),
    ],
    "07_comparison": [
        ("another reference", [('reference = read_scores(records["16-bit"])[1]', 'reference = read_scores(records["NF4"])[1]')]),
        ("the divergence the wrong way round", [("(np.exp(p) * (p - q)).sum(-1)", "(np.exp(q) * (q - p)).sum(-1)")]),
        ("each place scored on its own token", [("q[np.arange(len(q)), tokens[1:]]", "q[np.arange(len(q)), tokens[:-1]]"),
                                                ('    assert abs(figures[name]["perplexity"] / record["perplexity"] - 1) < 1e-3, name\n', "    pass\n")]),
        ("a run left out", [('    "NF4": ("03_nf4", {}),\n', "")]),
        ("two bits made with four", [('for bits in gptq_ladder}', 'for bits in (8, 4, 3)}')]),
        ("other tokens accepted", [("    if ids.tolist() != windows:\n", "    if False:\n")]),
        ("stale records accepted", [("        return why_stale(read_record(name, MODEL), {", "        return None and why_stale(read_record(name, MODEL), {")]),
        ("bits of the wrong format", [('"nf4": "NF4", "gptq"', '"nf4": "GPTQ", "gptq"')]),
        ("the audit of another figure", [('"predicted": r["predicted_bytes"], "loaded"', '"predicted": r["memory_bytes"], "loaded"')]),
        ("a front of the worst", [("if not any(u <= x and v <= y and", "if not any(u >= x and v >= y and")]),
        ("a larger noise accepted", [('noise["llama.cpp, F16"] = figures["GGUF F16"]', 'noise["llama.cpp, F16"] = figures["GGUF Q2_K"]'),
                                     ("assert spread < 0.005 and noise_floor < 0.001 or MODEL not in MODELS", "")]),
        ("the cell with the cache gone", [(CELL, "past_key_values")]),
        ("a stale divergence", [(OUTPUT, "runs, scored on the same 4,080 tokens", "runs, scored on the same 4,096 tokens")]),
        ("the cache of one conversation", [("predicted = cache_bytes(config, context=len(windows[0]), batch=2)", "predicted = cache_bytes(config, context=len(windows[0]), batch=1)")]),
    ],
    "08_original_stack": [
        ("sampling", [("do_sample=False, return_tensors=True", "do_sample=True, temperature=3.0, return_tensors=True")]),
        ("no quantization", [("quantization_config=bnb_config, torch_dtype=dtype", "torch_dtype=dtype")]),
        ("FP4 instead of NF4, its assert gone", [('bnb_4bit_quant_type="nf4"', 'bnb_4bit_quant_type="fp4"'),
                                                 ('assert layers["NF4"].startswith("bitsandbytes.") and layers["NF4"].endswith("nf4")\n', "")]),
        ("zero points as they are, the assert gone", [("tensors[name] - 0x11111111", "tensors[name] - 0"),
                                                      ('assert not today or answers["GPTQ"] == today["GPTQ"][1]["answer_ids"], "the same token ids as today\'s"', "pass"),
                                                      ("    assert np.mean(divergences) < 0.002", "    pass"),
                                                      ('    assert torch.equal(theirs, weight), "today\'s file by hand, and auto-gptq from the older one: the same weights"\n', "    pass\n")]),
        ("the 16-bit model instead of auto-gptq's, the assert gone",
         [("model, pipe = load_gptq(old_folder)\nlayer", "model, pipe = load_gptq(base.source)\nlayer"),
          ('assert all(type(model.get_submodule(name)).__module__.startswith("auto_gptq.") for name in names)\n', "")]),
        ("compared in one window", [("zip(windows[:4], np.float32(expected[:4]), strict=True)", "zip(windows[:1], np.float32(expected[:1]), strict=True)")]),
        ("the exam against itself", [("sum(say(ask(pipe, text, 48)) == old for", "sum(old == old for"),
                                     ("count=12):", "count=11):")]),
        ("a row left out", [('    {"old": "import xformers",\n     "new": "model = AutoModelForCausalLM.from_pretrained(BASE, attn_implementation=\'sdpa\')",\n'
                             '     "why": "torch has its own fused attention, and transformers takes it by default"},\n', "")]),
        ("an old line as the new one, the assert gone",
         [('"new": "model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.bfloat16)"', '"new": "model = AutoModelForCausalLM.from_pretrained(BASE, torch_dtype=torch.bfloat16)"'),
          ('    assert all(said["new"] == "runs" for said in found), "each new line runs, without a warning"\n', "")]),
        ("a wrong shift, its assert gone", [("torch.arange(0, 32, 4)[None, :, None]", "torch.arange(28, -4, -4)[None, :, None]"),
                                            ('    assert torch.equal(theirs, weight), "today\'s file by hand, and auto-gptq from the older one: the same weights"\n', "    pass\n")]),
        ("the cell with the word of zero points gone", [(CELL, "a word of qzeros")]),
        ("a stale count", [(OUTPUT, "56 linear layers of auto_gptq", "64 linear layers of auto_gptq")]),
        ("the model kept", [("del model, pipe\nreport = clear_cache()\nassert not report.held_by and alive() is None\n", "")]),
    ],
}  # fmt: skip
READY = {"07_comparison", "08_original_stack"}  # they take what the others have made
CHEAP = "not solutions and not wrong_constant and not anatomy"  # a line grown too long is no proof
ESCAPED = "**escaped**"
COMPARED = "empty or ladders or runtimes or promise or committed_figures or refused or made_again"


def sabotage(notebook: nbformat.NotebookNode, edits: list[tuple]) -> None:
    """Apply the edits; ValueError unless each meets exactly what it means."""
    for old, new, *times in edits:
        if old == CELL:
            cells = [cell for cell in notebook.cells if cell.cell_type == "code" and new in cell.source]
            require(len(cells) == 1, new)
            notebook.cells.remove(cells[0])
        elif old == OUTPUT:
            old, new = new, times[0]
            outputs = [o for c in notebook.cells for o in c.get("outputs", []) if old in o.get("text", "")]
            tables = [o.data for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
            tables = [data for data in tables if old in str(data.get("text/plain", ""))]
            require(len(outputs) + len(tables) >= 1, old)
            for output in outputs:
                output.text = output.text.replace(old, new)
            for data in tables:
                data["text/plain"] = data["text/plain"].replace(old, new)
        else:
            cells = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
            require(len(cells) == (times[0] if times else 1), old)
            for cell in cells:
                cell.source = cell.source.replace(old, new)


def require(good: bool, text: str) -> None:
    if not good:
        raise ValueError(f"The sabotage meets no line, or several: {text!r}")


def copy_of_the_checkout(folder: pathlib.Path) -> pathlib.Path:
    """All files that git knows or would take, with their times, which the artifacts go by."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    return folder


def tests_of(stem: str) -> list[str]:
    files = ["test_static", "test_notebooks", "test_lessons", "test_fresh"]
    wanted = f"{stem} and {CHEAP}"
    if stem == "07_comparison":
        files.append("test_comparison")
        wanted = f"({stem} or {COMPARED}) and {CHEAP}"
    if stem == "08_original_stack":
        files[1] = "test_original"
        wanted = f"({stem} or test_original) and {CHEAP}"
    return [*(f"tests/{file}.py" for file in files), "-k", wanted]


def attempt(stem: str, edits: list[tuple], copy: pathlib.Path, artifacts: pathlib.Path | None) -> tuple[str, float]:
    """The name of the first test that fails, or '' when none does; and seconds."""
    path = copy / "notebooks" / f"{stem}.ipynb"
    original = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    sabotage(notebook, edits)
    env = {key: value for key, value in os.environ.items() if key != "QUANT_ARTIFACTS"} | {"HF_HUB_OFFLINE": "1"}
    if artifacts:  # links, made anew: no sabotage finds what another one made
        linked = copy.parent / "artifacts"
        shutil.rmtree(linked, ignore_errors=True)
        shutil.copytree(artifacts, linked, copy_function=os.link)
        env["SERIES_ARTIFACTS"] = str(linked)
    start = time.perf_counter()
    try:
        nbformat.write(notebook, path)
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests_of(stem)]
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    finally:
        path.write_bytes(original)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest itself failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) tests/\w+\.py::(\w+)", done.stdout, re.M)
    return (failed[1] if done.returncode else ""), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(SABOTAGES), choices=list(SABOTAGES))
    parser.add_argument("--again", help="an earlier report, whose caught sabotages are not applied again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="only say whether every sabotage meets its line")
    parser.add_argument("--out", help="the report's file")
    given = parser.parse_args()
    for stem in given.only:  # before hours are spent
        for _, edits in SABOTAGES[stem]:  # fails when one does not meet its line
            sabotage(nbformat.read(ROOT / "notebooks" / f"{stem}.ipynb", as_version=4), edits)
    if given.check:
        return
    from helpers.artifacts import artifacts_folder

    jobs = [(stem, CONTROL, []) for stem in given.only]
    jobs += [(stem, what, edits) for stem in given.only for what, edits in SABOTAGES[stem]]
    done, earlier = {}, ""
    if given.again:
        done, earlier = caught_before((report.HERE / given.again).read_text(encoding="utf-8"), jobs)
    with tempfile.TemporaryDirectory() as name:
        copies: queue.Queue = queue.Queue()
        for number in range(given.workers):
            copies.put(copy_of_the_checkout(pathlib.Path(name).resolve() / str(number) / "checkout"))
        one_at_a_time = threading.Lock()

        def run(job):
            stem, what, edits = job
            copy = copies.get()
            try:
                failed, seconds = attempt(stem, edits, copy, artifacts_folder() if stem in READY else None)
            finally:
                copies.put(copy)
            done[stem, what] = failed
            text = failed or ("passed" if what == CONTROL else "ESCAPED")
            print(f"[{len(done):2}/{len(jobs)}] {stem:14} {what:50} {seconds:4.0f} s  {text}", flush=True)
            with one_at_a_time, contextlib.redirect_stdout(io.StringIO()):  # so far: hours may be cut short
                write(jobs, done, earlier, given.out)

        with concurrent.futures.ThreadPoolExecutor(given.workers) as pool:
            list(pool.map(run, [job for job in jobs if job[:2] not in done]))
    sys.exit(not write(jobs, done, earlier, given.out))


def caught_before(text: str, jobs: list[tuple]) -> tuple[dict[tuple[str, str], str], str]:
    """What an earlier report says was caught, by a test that still counts; and a sentence on where it comes from."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    found = {(stem, what): test for stem, what, test in (row for row in cells if len(row) == 3)}
    again = [key for stem, what, _ in jobs if what != CONTROL and (key := (stem, what)) in found
             and (found[key] == ESCAPED or "anatomy" in found[key])]  # fmt: skip
    done = {job[:2]: found[job[:2]] for job in jobs if job[:2] in found and job[:2] not in again}
    when = re.search(r"on (\S+), at commit ([^.\s]+)", text)
    escaped = [f"{stem}, {what}" for stem, what in again if found[stem, what] == ESCAPED]
    sentence = (
        f"{len(done)} were applied on {when[1]}, at commit {when[2]}. There escaped: {'; '.join(escaped) or 'none'}."
    )
    return done, f"{sentence} The other {len(jobs) - len(done)}, controls included, ran at this commit.\n\n"


def write(jobs: list[tuple], done: dict[tuple[str, str], str], earlier: str, out: str | None) -> bool:
    """The report of what has been done so far; whether all sabotages were caught and all controls passed."""
    rows = [
        [stem, what, done[stem, what] or ESCAPED]
        for stem, what, _ in jobs
        if done.get((stem, what)) is not None and what != CONTROL
    ]
    controls = {stem: done.get((stem, CONTROL)) for stem, what, _ in jobs if what == CONTROL}
    said = {stem: "not tried" if failed is None else failed or "passed" for stem, failed in controls.items()}
    applied = collections.Counter(row[0] for row in rows)
    caught = collections.Counter(row[0] for row in rows if row[2] != ESCAPED)
    text = f"**{applied.total()} sabotages applied, {caught.total()} caught.** "
    text += f"{sum(word == 'passed' for word in said.values())} of {len(said)} unchanged notebooks passed the same tests.\n\n"
    if len(rows) + len(controls) < len(jobs):
        text += f"{len(jobs) - len(controls) - len(rows)} more were not tried.\n\n"
    text += earlier
    lines = [[stem, said[stem], applied[stem], caught[stem]] for stem in said]
    text += report.table(["notebook", "unchanged", "applied", "caught"], lines)
    text += "\n\n" + report.table(["notebook", "what was done", "the first test that failed"], rows)
    report.write(
        "Mutations: do the tests see it?", "python proofs/mutate.py" + (" --again" if earlier else ""), text, out
    )
    return applied == caught and set(said.values()) == {"passed"}


if __name__ == "__main__":
    main()
