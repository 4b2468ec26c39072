"""Guidance: a network that wraps a network, so that every sampler has it and none knows it."""

from typing import Any

import torch
from torch import Tensor

from softvq.errors import UserError


class Guided:
    """Classifier-free guidance (Ho & Salimans 2022), called like the network it wraps.

        v = v(null) + scale (v(y) - v(null))    for low <= t <= high,    v = v(y) elsewhere

    One network call either way: 2n sample evaluations for n guided samples, n outside the
    interval (Kynkaanniemi et al. 2024) or with scale 1. The null class is
    ``net.config.num_classes``.

    Raises UserError if an unconditional network is to be guided, or the interval is not within
    [0, 1] and in order.
    """

    def __init__(self, net: Any, scale: float, interval: tuple[float, float] = (0.0, 1.0)):
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance interval {low}..{high} is not within 0..1, low first")
        if scale != 1 and net.config.num_classes == 0:
            raise UserError("an unconditional generator cannot be guided; use guidance 1")
        self.net = net
        self.scale = scale
        self.interval = interval

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        if self.scale == 1 or y is None:  # towards the null class from itself is no way at all
            return self.net(x, t, y)
        low, high = self.interval
        # In float32 a grid's 0.7000000000000001 counts as 0.7.
        inside = ((t.float() >= low) & (t.float() <= high)).nonzero().squeeze(1)
        null = torch.full_like(y[inside], self.net.config.num_classes)
        prediction = self.net(
            torch.cat([x, x[inside]]), torch.cat([t, t[inside]]), torch.cat([y, null])
        )
        conditional, unconditional = prediction.tensor_split([x.shape[0]])
        guided = unconditional + self.scale * (conditional[inside] - unconditional)
        return conditional.index_copy(0, inside, guided)
