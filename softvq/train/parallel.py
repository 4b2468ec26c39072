"""How a run's networks are spread over its processes, with what torch has for it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from softvq.errors import UserError


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of its stacks, or the module itself where there are none."""
    stacks = [m for name, m in module.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for stack in stacks for block in stack.children()] or [module]


def recompute(module: nn.Module) -> None:
    """Have every block keep its input alone, and go forward once more for its gradient."""
    for block in blocks_of(module):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def shard(module: nn.Module, device: torch.device) -> None:
    """Leave each process a share of every parameter; a block gathers its own while it computes.

    Parameters stay float32, also on the way. Raises UserError for one without an axis to cut.
    """
    if scalars := [name for name, p in module.named_parameters() if not p.ndim]:
        raise UserError(
            f"train.parallel=fsdp: {scalars[0]} is one number and cannot be sharded; set "
            "model.gain=false, or train.parallel=ddp"
        )
    # Nothing here changes a network's output in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in blocks_of(module):
        if block is not module:
            fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """The module whose gradients are averaged over all processes, unless it is sharded.

    Buffers move alike everywhere, see ``softvq.processes``, and are not sent.
    """
    learning = any(p.requires_grad for p in module.parameters())
    if not dist.is_initialized() or isinstance(module, FSDPModule) or not learning:
        return module
    places = None if device.type == "cpu" else [device]
    with warnings.catch_warnings():  # its successor is not in torch 2.9
        warnings.filterwarnings("ignore", message="`broadcast_buffers`")
        return DistributedDataParallel(module, places, broadcast_buffers=False)


@contextmanager
def averaging(net: nn.Module, now: bool) -> Iterator[None]:
    """Inside, a backward pass averages gradients over all processes, or leaves that to the next.

    Sharded ones are averaged in every pass: a process has no room for the whole.
    """
    if isinstance(net, DistributedDataParallel) and not now:
        with net.no_sync():
            yield
    else:
        yield


def local(tensor: Tensor) -> Tensor:
    """This process's share of a sharded tensor; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor whole, which all processes must ask for together; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(module: nn.Module, into: nn.Module) -> None:
    """Copy a sharded module's state, whole, into one that is not sharded."""
    whole: dict[str, Any] = {name: full(x) for name, x in module.state_dict().items()}
    into.load_state_dict(whole)
