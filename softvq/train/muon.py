"""Muon (Jordan et al. 2024): momentum whose matrices are made orthogonal before each step.

That of torch multiplies in bfloat16 whatever the hardware; a CPU without bfloat16 instructions is
fifty times slower in it than in float32, and spends nearly all of a training step there.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from softvq.device import multiplies_bf16

# Five steps with these coefficients bring singular values into 0.7 .. 1.2 (Jordan et al. 2024).
A, B, C, STEPS = 3.4445, -4.7750, 2.0315, 5


def orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, nearly, by Newton-Schulz steps; of more axes, the first is rows.

    In bfloat16, but on a CPU without its instructions in float32.
    """
    x = matrix.flatten(1)
    x = x.bfloat16() if multiplies_bf16(x.device.type) else x.float()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return (x.mT if tall else x).reshape(matrix.shape)


def orthogonal_of_all(matrix: Tensor) -> Tensor:
    """:func:`orthogonal`, also of a sharded matrix: each process gathers it, and keeps its rows."""
    if not isinstance(matrix, DTensor):
        return orthogonal(matrix)
    everywhere = [Replicate()] * matrix.device_mesh.ndim
    gathered = matrix.redistribute(placements=everywhere).to_local()
    found = DTensor.from_local(orthogonal(gathered), matrix.device_mesh, everywhere)
    return found.redistribute(placements=matrix.placements)


class Muon(torch.optim.Optimizer):
    """Steps of lr x sqrt(max(1, rows / columns)) along orthogonal matrices, with Nesterov momentum
    and decoupled weight decay; for matrices and the kernels of
    convolutions [out, in, height, width], which are matrices [out, in x height x width]."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                average = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonal_of_all(p.grad.lerp(average, momentum)).to(p.dtype)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * math.sqrt(max(1, p.shape[0] ** 2 / p.numel())))
