"""vLLM's processes write their remarks to a file: they inherit the notebook's output, and would fill it."""

import os
import sys

if "SERIES_VLLM_LOG" in os.environ and "spawn_main" in " ".join(sys.orig_argv):
    log = os.open(os.environ["SERIES_VLLM_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
