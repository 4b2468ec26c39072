"""What processes that train one model have in common: one batch, and its averages.

A process reads a part of every batch. What is drawn at random for each sample is drawn for
the whole batch, the same in every process, of which each takes its rows; what is averaged over
samples is averaged over all of them. So a run is the same on any number of processes, but for the
order in which sums are rounded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch import distributed as dist

from softvq.device import pick_device

T = TypeVar("T")

_part, _parts = 0, 1  # which part of the batch is being read here, and of how many


def joined() -> PartialState:
    """This process among those that torchrun or accelerate started, if they did."""
    # Told so, accelerate joins them on CPUs too.
    return PartialState(cpu=pick_device().type == "cpu")


def share(count: int, batch: int) -> range:
    """This process's part of ``count`` things: whole batches, all processes' in their order."""
    world = dist.get_world_size() if _together() else 1
    rank = dist.get_rank() if world > 1 else 0
    batches = -(-count // batch)
    first, last = (min(count, batch * (batches * i // world)) for i in (rank, rank + 1))
    return range(first, last)


def gathered(here: T) -> list[T]:
    """What each process has, in their order."""
    if not _together():
        return [here]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, here)
    return found


def first_of_all() -> bool:
    """Whether this process is alone, or the first of those that were joined."""
    return not _together() or dist.get_rank() == 0


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def reading(part: int, parts: int) -> Iterator[None]:
    """Inside, what is read is part 0 <= ``part`` < ``parts`` of a batch, in order."""
    global _part, _parts
    before = _part, _parts
    _part, _parts = part, parts
    try:
        yield
    finally:
        _part, _parts = before


def whole(rows: int) -> int:
    """How many rows the whole batch has, of which ``rows`` are here."""
    return rows * _parts


def ours(draw: Tensor, dim: int = 0) -> Tensor:
    """The rows that are here, along ``dim``, of what was drawn for the whole batch."""
    return draw if _parts == 1 else draw.chunk(_parts, dim)[_part]


def randn(shape: tuple[int, ...], rng: torch.Generator | None, device: torch.device) -> Tensor:
    """The rows that are here, [B, ...], of normal noise for the whole batch."""
    return ours(torch.randn(whole(shape[0]), *shape[1:], generator=rng, device=device))


def processes() -> int:
    """How many processes are at the same step, each with a part of the batch."""
    alone = _parts == 1 or not (dist.is_available() and dist.is_initialized())
    return 1 if alone else dist.get_world_size()


@torch.no_grad()
def sum_of_all(here: Tensor) -> Tensor:
    """The sum over all processes, detached."""
    if processes() == 1:
        return here.detach()
    total = here.detach().clone()
    dist.all_reduce(total)
    return total


def mean_of_all(here: Tensor) -> Tensor:
    """The mean over all processes, detached."""
    return sum_of_all(here.detach()) / processes()


def rows_of_all(here: Tensor, places: Tensor) -> Tensor:
    """Rows ``places``, int64 [N], of what all processes hold, here [n, ...] each, in their order.

    ``places`` must be the same in every process.
    """
    if processes() == 1:
        return here[places]
    first = dist.get_rank() * here.shape[0]
    found = here[(places - first).clamp(0, here.shape[0] - 1)]
    mine = (places >= first) & (places < first + here.shape[0])
    return sum_of_all(torch.where(mine.view(-1, *[1] * (here.ndim - 1)), found, 0.0))


class _Mean(torch.autograd.Function):
    """The mean over all processes; so is its gradient, as that of each process's loss is."""

    @staticmethod
    def forward(ctx: Any, here: Tensor) -> Tensor:
        return mean_of_all(here)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return mean_of_all(grads[0])


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm of [B, C, H, W] over the images of all processes; on any device.

    torch's SyncBatchNorm is for accelerators only.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and processes() > 1):
            return super().forward(x)
        x = x.float()
        mean = _Mean.apply(x.mean((0, 2, 3)))
        centred = x - mean[:, None, None]
        variance = _Mean.apply(centred.square().mean((0, 2, 3)))
        if self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None and self.num_batches_tracked is not None
            count = x.numel() // x.shape[1] * processes()
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.detach(), self.momentum or 0.1)
            unbiased = variance.detach() * count / (count - 1)
            self.running_var.lerp_(unbiased, self.momentum or 0.1)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        return centred * (variance + self.eps).rsqrt()[:, None, None] * weight + bias
