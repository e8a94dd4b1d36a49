"""Many users at once on GPUs: vLLM's server with Zephyr's shape in 16 bits, FP8 and 4 bits, on one GPU and two.

    python scripts/speed_serving.py [--gpus 1 2] [--rows NAME ...] [--users 1 4 16 64] [--out FILE]

Makes the checkpoints with random weights (speed does not depend on their values), starts one server after the other,
and puts each under load with ``vllm bench serve``. 09_serving shows the committed result.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import speed
from series import serving

ROWS = [  # name, checkpoint, GPUs, what is shared
    ("16-bit, 1 GPU", "base", 1, []),
    ("AWQ, 1 GPU", "awq", 1, []),
    ("FP8 dynamic, 1 GPU", "base", 1, ["--quantization", "fp8"]),
    ("FP8 static, 1 GPU", "fp8", 1, []),
    ("W4A16, 1 GPU", "packed", 1, []),
    ("16-bit, tensor parallel 2", "base", 2, ["--tensor-parallel-size", "2"]),
    ("AWQ, tensor parallel 2", "awq", 2, ["--tensor-parallel-size", "2"]),
    ("16-bit, pipeline parallel 2", "base", 2, ["--pipeline-parallel-size", "2"]),
    ("AWQ, pipeline parallel 2", "awq", 2, ["--pipeline-parallel-size", "2"]),
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


def measure(row: tuple, scratch: pathlib.Path, users: list[int], more: list[str]) -> dict:
    """The figures of one server under each number of users, and the seconds of its start."""
    name, checkpoint, _, flags = row
    log = scratch / "log"
    port, begun = serving.free_port(8000, 1), time.perf_counter()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(scratch / checkpoint)]
    command += ["--served-model-name", "it", "--max-model-len", "2048", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen([*command, *flags, *more], stdout=file, stderr=file, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                if server.poll() is not None:
                    raise RuntimeError(f"{name}: the server has ended.\n{log.read_text()[-3000:]}") from None
                time.sleep(1)
        found = {"name": name, "gpus": row[2], "start_seconds": time.perf_counter() - begun, "users": {}}
        for count in users:
            found["users"][count] = serving.load(port, "it", str(scratch / "base"), count, "no key", 256, 128)
        return found
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", nargs="+", choices=[row[0] for row in ROWS], default=[row[0] for row in ROWS])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--layers", type=int, default=speed.SHAPES["cuda"]["num_hidden_layers"])
    parser.add_argument("--flags", default="", help="more for vLLM, such as '--attention-backend TRITON_ATTN'")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("serving.json"))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("This needs a GPU; 09_serving.ipynb measures a small model on a processor.")
    most = torch.cuda.device_count()
    rows = [row for row in ROWS if row[0] in given.rows and row[2] in given.gpus and row[2] <= most]
    result = {
        "machine": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: importlib.metadata.version(name) for name in ("vllm", "torch", "transformers")},
        "layers": given.layers,
        "flags": given.flags,
        "tokens": {"prompt": 256, "answer": 128},
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        speed.make_base(scratch / "base", given.layers)
        torch.cuda.empty_cache()
        for name, make in {"awq": make_awq, "fp8": make_fp8, "packed": make_packed}.items():
            if any(row[1] == name for row in rows):
                make(scratch / "base", scratch / name)
        for row in rows:
            try:
                result["rows"].append(measure(row, scratch, given.users, given.flags.split()))
            except RuntimeError as error:
                result["rows"].append({"name": row[0], "gpus": row[2], "error": str(error)})
            print(json.dumps(result["rows"][-1])[:1500], flush=True)
            given.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a server ends with this program
    main()
