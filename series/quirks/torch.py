"""torch: what it computes slowly on some processors, and an accelerator that is not there."""

from __future__ import annotations

from typing import Any


def multiply_in_32_bits() -> bool:
    """Have torch multiply bfloat16 matrices in 32 bits where the processor has no bfloat16 arithmetic; whether it must.

    torch then takes about seven times as long in bfloat16 as in 32 bits. The numbers stay what they are: products of
    bfloat16, added up in 32 bits, and rounded to bfloat16 at the end.
    """
    import torch

    places = ((torch.nn.functional, "linear"), (torch, "matmul"))  # looked up there at each call
    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False

    def widened(plain: Any) -> Any:
        def product(a: Any, b: Any, *more: Any, **named: Any) -> Any:
            if hasattr(b, "__tensor_flatten__"):  # one of torchao's: unpacked, if only the weights are quantized
                if getattr(b, "act_quant_kwargs", None) is not None or a.dtype != torch.bfloat16:
                    return plain(a, b, *more, **named)
                b = b.dequantize()
            if not a.dtype == b.dtype == torch.bfloat16:
                return plain(a, b, *more, **named)
            wide = [None if m is None else m.float() for m in more]
            named = {name: None if m is None else m.float() for name, m in named.items()}
            return plain(a.float(), b.float(), *wide, **named).to(torch.bfloat16)

        setattr(product, "plain", plain)  # noqa: B010
        return product

    for module, name in places:
        if not hasattr(getattr(module, name), "plain"):
            setattr(module, name, widened(getattr(module, name)))
    return True


def no_gpu_is_none() -> bool:
    """Have torch name no accelerator where it was built for CUDA and no GPU is there; whether it had to be told.

    gptqmodel asks torch for ``device_map="auto"``, and would take a kernel for GPUs.
    """
    import torch

    if torch.cuda.is_available() or torch.accelerator.current_accelerator() is None:
        return False
    torch.accelerator.current_accelerator = lambda check_available=False: None
    return True
