"""``llama-server`` where llama.cpp's own is not installed: the same server out of the package xllamacpp.

It knows the flags that this series uses, under llama-server's names, and takes the key from LLAMA_API_KEY as well.
"""

from __future__ import annotations

import argparse
import os
import signal


def main() -> None:
    """Start the server, as ``llama-server`` with the same words would."""
    parser = argparse.ArgumentParser(prog="llama-server", description=__doc__)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("-a", "--alias", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-c", "--ctx-size", type=int, default=0)
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-ngl", "--gpu-layers", type=int, default=-1)
    parser.add_argument("--lora", help="an adapter, as a GGUF file")
    parser.add_argument("--metrics", action="store_true")
    given = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = given.model, {given.alias or os.path.basename(given.model)}
    params.hostnames, params.port = [given.host], given.port
    params.n_ctx, params.n_parallel, params.n_gpu_layers = given.ctx_size, given.parallel, given.gpu_layers
    params.cpuparams.n_threads, params.endpoint_metrics = given.threads, given.metrics
    if given.lora:
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = given.lora, 1.0
        params.lora_adapters = [adapter]
    params.verbosity = 4  # with what the model and its cache take
    if key := os.environ.get("LLAMA_API_KEY"):
        params.api_keys = [key]
    server = xllamacpp.Server(params)  # answers from threads of its own
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)  # its threads may be in the middle of an answer


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})  # before any thread starts
    main()
