"""Many users at once on GPUs: vLLM's and llama.cpp's servers with Zephyr's shape in 16 bits, FP8 and 4 bits.

    python scripts/speed_serving.py [--gpus 1 2] [--rows NAME ...] [--users 1 4 16 64] [--at-once] [--out FILE]

Makes the checkpoints with random weights (speed does not depend on their values), starts the servers, one after the
other or all at once on a large card, and puts one at a time under load with ``vllm bench serve``. ``llama-server``
has to be on PATH, with CUDA. What a server says that its weights take stands beside ``weight_bytes``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import speed
from helpers.sizes import weight_bytes
from series import installed, serving

VERSIONS = ("vllm", "torch", "transformers", "llama-cpp-python")  # the last: llama.cpp's sources
ROWS = [  # name, checkpoint, GPUs, more words for vLLM, the format for ``weight_bytes`` where it knows it
    ("16-bit, 1 GPU", "base", 1, [], "16-bit"),
    ("AWQ, 1 GPU", "awq", 1, [], "AWQ"),
    ("GPTQ, 1 GPU", "gptq", 1, [], "GPTQ"),
    ("Q4_K_M, llama.cpp, 1 GPU", "model-Q4_K_M.gguf", 1, [], "Q4_K_M"),
    ("Q8_0, llama.cpp, 1 GPU", "model-Q8_0.gguf", 1, [], "Q8_0"),
    ("FP8 dynamic, 1 GPU", "base", 1, ["--quantization", "fp8"], "FP8"),
    ("FP8 static, 1 GPU", "fp8", 1, [], "FP8"),
    ("W4A16, 1 GPU", "packed", 1, [], ""),
    ("16-bit, tensor parallel 2", "base", 2, ["--tensor-parallel-size", "2"], ""),
    ("AWQ, tensor parallel 2", "awq", 2, ["--tensor-parallel-size", "2"], ""),
    ("16-bit, pipeline parallel 2", "base", 2, ["--pipeline-parallel-size", "2"], ""),
    ("AWQ, pipeline parallel 2", "awq", 2, ["--pipeline-parallel-size", "2"], ""),
]


def rewrite(base: pathlib.Path, folder: pathlib.Path, change: Callable, config: dict) -> None:
    """The checkpoint ``base`` in another format: ``change(place, weight)`` gives what takes a matrix's place."""
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    tensors = {}
    for file in base.glob("*.safetensors"):
        for name, weight in load_file(file).items():
            place = name.removesuffix(".weight")
            tensors |= change(place, weight) if place.endswith("_proj") else {name: weight}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in base.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(size=shape, low=-(2**31), high=2**31, dtype=torch.int32)


def make_awq(base: pathlib.Path, folder: pathlib.Path) -> None:
    """An AWQ checkpoint of random integers in groups of 128, in the layout that gptqmodel and AutoAWQ write."""

    def change(place: str, weight: torch.Tensor) -> dict:
        outputs, inputs = weight.shape
        return {
            f"{place}.qweight": integers(inputs, outputs // 8),
            f"{place}.qzeros": integers(inputs // 128, outputs // 8),
            f"{place}.scales": torch.rand(inputs // 128, outputs).half() / 500,
        }

    how = dict(quant_method="awq", bits=4, group_size=128, zero_point=True, version="gemm")
    rewrite(base, folder, change, {"quantization_config": how, "dtype": "float16"})


def make_gptq(base: pathlib.Path, folder: pathlib.Path) -> None:
    """A GPTQ checkpoint of random integers in symmetric groups of 128, in the order of the columns."""

    def change(place: str, weight: torch.Tensor) -> dict:
        outputs, inputs = weight.shape
        return {
            f"{place}.qweight": integers(inputs // 8, outputs),
            f"{place}.qzeros": integers(inputs // 128, outputs // 8),
            f"{place}.scales": torch.rand(inputs // 128, outputs).half() / 500,
            f"{place}.g_idx": (torch.arange(inputs) // 128).int(),
        }

    how = dict(quant_method="gptq", bits=4, group_size=128, desc_act=False, sym=True)
    rewrite(base, folder, change, {"quantization_config": how, "dtype": "float16"})


def make_packed(base: pathlib.Path, folder: pathlib.Path) -> None:
    """compressed-tensors' W4A16, as llm-compressor writes it: random integers in groups of 128, no zero point."""

    def change(place: str, weight: torch.Tensor) -> dict:
        outputs, inputs = weight.shape
        return {
            f"{place}.weight_packed": integers(outputs, inputs // 8),
            f"{place}.weight_scale": torch.rand(outputs, inputs // 128).bfloat16() / 500,
            f"{place}.weight_shape": torch.tensor(weight.shape),
        }

    weights = dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=128, dynamic=False)
    how = dict(
        quant_method="compressed-tensors",
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}},
    )
    rewrite(base, folder, change, {"quantization_config": how})


def make_fp8(base: pathlib.Path, folder: pathlib.Path) -> None:
    """A checkpoint in FP8: one scale for each matrix, and a fixed one for its activations, as vLLM's 'fp8' reads it."""

    def change(place: str, weight: torch.Tensor) -> dict:
        scale = weight.abs().max().float() / 448
        return {
            f"{place}.weight": (weight.float() / scale).to(torch.float8_e4m3fn),
            f"{place}.weight_scale": scale,
            f"{place}.input_scale": torch.tensor(0.01),
        }

    rewrite(base, folder, change, {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}})


@dataclass
class Server:
    """A row of ``ROWS``, and the process that has been started for it."""

    row: tuple
    port: int
    process: subprocess.Popen
    log: pathlib.Path
    begun: float


@contextlib.contextmanager
def started(row: tuple, scratch: pathlib.Path, more: list[str], port: int, users: int) -> Iterator[Server]:
    """The server of a row, which begins to load, and ends with the block."""
    _, checkpoint, _, words, _ = row
    log, file = scratch / f"log-{port}", str(scratch / checkpoint)
    shared = f"--host 127.0.0.1 --port {port}".split()
    if checkpoint.endswith(".gguf"):  # it says what its weights take from level 4 on
        command = ["llama-server", "-m", file, *f"-a it -c {1024 * users} -np {users} -ngl 999 -lv 4".split()]
    else:  # a cache of its own size for each, since several may start on one card
        room = f"--max-model-len 2048 --kv-cache-memory-bytes {2**33} --gpu-memory-utilization 0.1".split()
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", file]
        command += ["--served-model-name", "it", *room, *words, *more]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *shared],
            stdout=out,
            stderr=out,
            start_new_session=True,
            env=os.environ | {"VLLM_LOGGING_LEVEL": "INFO"},
        )
    try:
        yield Server(row, port, process, log, time.perf_counter())
    finally:
        process.terminate()
        process.wait(60)


def wait(server: Server, scratch: pathlib.Path) -> dict:
    """Wait until it answers: seconds of the start, and the bytes that its weights take, as it says and as computed."""
    name, _, gpus, _, kind = server.row
    facts = {"name": name, "gpus": gpus}
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5)
            break
        except OSError:  # an error of HTTP too: llama-server answers 503 while it loads
            if server.process.poll() is not None:
                return facts | {"error": f"The server has ended.\n{server.log.read_text()[-3000:]}"}
            time.sleep(1)
    facts["start_seconds"] = time.perf_counter() - server.begun
    text = server.log.read_text(errors="replace")
    found = [
        (float(size), 2**30) for size in re.findall(r"oading took ([\d.]+) GiB", text)
    ]  # vLLM, a line for each GPU
    found += [(float(size), 2**20) for size in re.findall(r"(?:CUDA\d|CPU\w*) model buffer size = +([\d.]+) MiB", text)]
    facts["weights_bytes"] = round(sum(size * unit for size, unit in found))
    facts["computed_bytes"] = weight_bytes(scratch / "base", kind) if kind else None
    return facts | {"kernels": sorted(set(re.findall(r"Using (\w+Kernel) for", text)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", nargs="+", choices=[row[0] for row in ROWS], default=[row[0] for row in ROWS])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--layers", type=int, default=speed.SHAPES["cuda"]["num_hidden_layers"])
    parser.add_argument("--flags", default="", help="more for vLLM, such as '--attention-backend TRITON_ATTN'")
    parser.add_argument("--at-once", action="store_true", help="start all first: a large card holds them side by side")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("serving.json"))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This needs a GPU; 09_serving.ipynb measures a small model on a processor.")
    most = torch.cuda.device_count()
    rows = [row for row in ROWS if row[0] in given.rows and row[2] in given.gpus and row[2] <= most]
    if not rows:
        raise SystemExit(f"No row is for --gpus {given.gpus} and the {most} that are here.")
    if any(row[1].endswith(".gguf") for row in rows) and not shutil.which("llama-server"):
        raise SystemExit(
            "There is no llama-server on PATH for the rows of GGUF files: build llama.cpp, or name --rows."
        )
    result = {
        "machine": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: installed.version(name) for name in VERSIONS},
        "layers": given.layers,
        "flags": given.flags,
        "tokens": {"prompt": 256, "answer": 128},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        speed.make_base(scratch / "base", given.layers)
        torch.cuda.empty_cache()
        makers = {"awq": make_awq, "gptq": make_gptq, "fp8": make_fp8, "packed": make_packed}
        wanted = {row[1]: row[4] for row in rows if row[1] != "base"}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(makers[n], scratch / "base", scratch / n) for n in wanted if n in makers]
            kinds = [kind for name, kind in wanted.items() if name not in makers]
            jobs += [pool.submit(speed.child, "make", kind, scratch, given.layers) for kind in kinds]
        for job in jobs:
            job.result()  # or its error
        for group in [rows] if given.at_once else [[row] for row in rows]:
            with contextlib.ExitStack() as ends:
                port, servers = 8000, []
                # Left last: with this program the servers end, and then the threads that wait for them.
                pool = ends.enter_context(concurrent.futures.ThreadPoolExecutor(len(group)))
                for row in group:
                    port = serving.free_port(port + 1, 1)
                    one = started(row, scratch, given.flags.split(), port, max(given.users))
                    servers.append(ends.enter_context(one))
                found = list(pool.map(wait, servers, [scratch] * len(servers)))  # each has its own time of starting
                for server, facts in zip(servers, found, strict=True):
                    ask = (server.port, "it", str(scratch / "base"))
                    try:
                        if "error" not in facts:
                            facts["users"] = {n: serving.load(*ask, n, "no key", 256, 128) for n in given.users}
                    except RuntimeError as error:
                        facts["error"] = str(error)
                    result["rows"].append(facts)
                    print(json.dumps(facts)[:1500], flush=True)
                    given.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server ends with this program
    main()
