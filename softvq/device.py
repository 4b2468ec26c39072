"""Which device the networks are on: one rule for training and for use."""

import torch

from softvq.errors import UserError

wanted = "auto"  # by the command line


def use_device(name: str) -> None:
    """From now on, auto is this device. Raises UserError as :func:`pick_device`."""
    global wanted
    wanted = pick_device(name).type


def pick_device(name: str = "auto") -> torch.device:
    """The device called auto, cpu, cuda or mps; auto: the accelerator there is, else the CPU.

    Raises UserError if this machine has none of that kind.
    """
    name = wanted if name == "auto" else name
    there = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return there or torch.device("cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise UserError(f"unknown device '{name}'; known: auto, cpu, cuda, mps")
    if name != "cpu" and (there is None or there.type != name):
        found = "only the CPU" if there is None else f"the CPU and {there.type}"
        raise UserError(f"no device '{name}' here, torch sees {found}; give another, or auto")
    return torch.device(name)


def multiplies_bf16(device: str) -> bool:
    """Whether a device of this type has instructions for bfloat16, which are then the fastest."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and torch.cpu._is_avx512_bf16_supported()
