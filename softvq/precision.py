"""How networks compute: float64, float32 or bfloat16, for as long as a context lasts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "fp32", "bf16"]


@contextmanager
def exact(*modules: nn.Module) -> Iterator[None]:
    """On a CPU, hold the weights in float64, and put them back as they were, bit for bit."""
    with ExitStack() as stack:
        for module in modules:
            parameter = next(module.parameters())
            stack.callback(module.to, parameter.dtype)
            module.to(torch.float64 if parameter.device.type == "cpu" else parameter.dtype)
        yield


@contextmanager
def cast_weights(*modules: nn.Module) -> Iterator[None]:
    """Hold the weights of linear layers and convolutions in bfloat16, for use under autocast.

    Autocast alone casts them in every batch. Afterwards they are as they were, bit for bit.
    """
    layers = [
        layer for module in modules for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]  # fmt: skip
    held = [(p, p.data) for layer in layers for p in layer.parameters(recurse=False)]
    try:
        for parameter, data in held:
            parameter.data = data.to(torch.bfloat16)
        yield
    finally:
        for parameter, data in held:
            parameter.data = data


@contextmanager
def bfloat16(*modules: nn.Module) -> Iterator[None]:
    """Matrix products and convolutions in bfloat16, and the rest in float32, in this thread."""
    device = next(modules[0].parameters()).device.type
    with cast_weights(*modules), torch.autocast(device, torch.bfloat16):
        yield


# By name; "auto" is chosen by pick_precision.
PRECISIONS: dict[str, Callable[..., AbstractContextManager[None]]] = {
    "exact": exact,
    "fp32": lambda *modules: nullcontext(),
    "bf16": bfloat16,
}


def pick_precision(name: str, device: str | torch.device = "cpu") -> str:
    """What "auto" is on a device: bf16 where the hardware multiplies it, else fp32."""
    if name != "auto":
        return name
    kind = torch.device(device).type
    if kind == "cpu":
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"
    return "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported(False) else "fp32"


def computing(name: str, *modules: nn.Module) -> AbstractContextManager[None]:
    """The context of a precision, "auto" included, for modules on one device."""
    device = next(modules[0].parameters()).device
    return PRECISIONS[pick_precision(name, device)](*modules)
