"""What vLLM's processes load as a plugin: two questions to its workers, and a kernel for processors without AVX-512.

``start`` puts this folder on PYTHONPATH; vLLM finds it by the entry point ``vllm.general_plugins`` beside it.
"""

from __future__ import annotations

import os

import torch


def tensor_bytes(worker):
    """Bytes of the worker's parameters and buffers, each storage counted once."""
    model = worker.model_runner.get_model()
    parts = {"parameters": model.parameters(), "buffers": model.buffers()}
    return {part: sum({t.data_ptr(): t.nbytes for t in tensors}.values()) for part, tensors in parts.items()}


def linear_classes(worker):
    """How vLLM holds each kind of linear layer, and the kernel that multiplies it."""
    modules = worker.model_runner.get_model().modules()
    methods = [m.quant_method for m in modules if hasattr(m, "quant_method") and "Linear" in type(m).__name__]
    return sorted({f"{type(m).__name__} / {type(getattr(m, 'kernel', m)).__name__}" for m in methods})


def register():
    """Called once in each of vLLM's processes."""
    from vllm.v1.worker.worker_base import WorkerBase

    WorkerBase.tensor_bytes, WorkerBase.linear_classes = tensor_bytes, linear_classes
    if torch.cuda.is_available():
        return
    torch.cpu._init_amx()  # asks the system for Intel's AMX, which vLLM's kernel takes without asking
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return
    os.environ["VLLM_DISABLED_KERNELS"] = "CPUWNA16LinearKernel"
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
    from vllm.platforms import PlatformEnum

    class TorchWNA16LinearKernel(CPUWNA16LinearKernel):
        """4-bit weights times 16-bit inputs in plain PyTorch."""

        def process_weights_after_loading(self, layer):
            self.weights = None

        def unpack(self, packed):
            """[rows / 8, columns] of int32 -> [rows, columns] of integers 0 to 15."""
            shifts = torch.arange(0, 32, 4, dtype=torch.int32).view(1, 8, 1)
            return ((packed.data.unsqueeze(1) >> shifts) & 15).flatten(0, 1)

        def apply_weights(self, layer, x, bias=None):
            if self.weights is None:  # rounded as by the real kernel, and kept in 32 bits, which AVX2 multiplies well
                packed, scales, zeros = self._get_weight_params(layer)[:3]
                codes = self.unpack(packed).unflatten(0, (scales.shape[0], -1))  # [groups, size, outputs]
                centred = codes - self.unpack(zeros).t().unsqueeze(1)
                self.weights = (centred * scales.data.float().unsqueeze(1)).flatten(0, 1).t().to(x.dtype).float()
            more = None if bias is None else bias.float()
            return torch.nn.functional.linear(x.float(), self.weights, more).to(x.dtype)

    register_linear_kernel(TorchWNA16LinearKernel, PlatformEnum.CPU)
