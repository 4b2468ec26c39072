"""Guidance: a network that wraps a network, so that every sampler has it and none knows it."""

from typing import Any

import torch
from torch import Tensor

from softvq.errors import UserError
from softvq.generator.process import (
    LINEAR,
    Process,
    channel_axis,
    check_process,
    per_sample,
    split_channels,
)


class Guided:
    """A network pushed away from a worse one, called like the network it wraps.

        p = p_bad + scale (p_net - p_bad)    for low <= t <= high,    p = p_net elsewhere

    Classifier-free guidance (Ho & Salimans 2022): the worse network is the same one on the null
    class, ``network.config.num_classes``. One network call either way: 2n sample evaluations for n
    guided samples, n outside the interval (Kynkaanniemi et al. 2024) or with scale 1.

    Autoguidance (Karras et al. 2024): ``bad`` is a smaller or less trained network, asked about
    the same labels; n evaluations of either. Unconditional networks can be guided so.

    scale     a number, or a tensor [B] with one for each sample
    interval  times low <= high within [0, 1]
    process   tells the time on ``network``'s clock: a diffusion's is its timestep

    A learned variance, further channels of the prediction, is ``network``'s own, unguided. Raises
    UserError if an unconditional network is to be guided by its null class, the scale is not
    finite, or the interval is not within [0, 1] and in order; ValueError if the process is not the
    network's.
    """

    def __init__(
        self,
        network: Any,
        scale: float | Tensor,
        interval: tuple[float, float] = (0.0, 1.0),
        bad: Any = None,
        process: Process = LINEAR,
    ):
        low, high = interval
        if not 0 <= low <= high <= 1:
            raise UserError(f"guidance interval {low}..{high} is not within 0..1, low first")
        self.scale = torch.as_tensor(scale, dtype=torch.float64)
        if not self.scale.isfinite().all():
            raise UserError(f"guidance {scale} is not finite")
        self.guides = bool((self.scale != 1).any())
        if self.guides and bad is None and network.config.num_classes == 0:
            raise UserError("an unconditional generator cannot be guided; use guidance 1")
        for part in (network, bad):
            check_process(part, process)
        self.network, self.bad = network, bad
        self.config = getattr(network, "config", None)
        # In float32 a grid's 0.7000000000000001 counts as 0.7.
        self.interval = process.clock(torch.tensor(interval, dtype=torch.float64)).float().tolist()

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        if not self.guides or (y is None and self.bad is None):
            return self.network(x, t, y)  # towards the null class from itself is no way at all
        low, high = self.interval
        scale = self.scale.to(x.device).expand(x.shape[0])
        inside = ((t.float() >= low) & (t.float() <= high) & (scale != 1)).nonzero().squeeze(1)
        if y is not None and self.bad is None:
            null = torch.full_like(y[inside], self.network.config.num_classes)
            both = self.network(
                torch.cat([x, x[inside]]), torch.cat([t, t[inside]]), torch.cat([y, null])
            )
            good, bad = both.tensor_split([x.shape[0]])
        else:
            good = self.network(x, t, y)
            if not inside.shape[0]:
                return good
            bad = self.bad(x[inside], t[inside], None if y is None else y[inside])
        mean, variance = split_channels(good, x)
        worse, _ = split_channels(bad, x)
        weight = per_sample(scale[inside], x).to(torch.promote_types(x.dtype, torch.float32))
        pushed = worse + weight * (mean[inside] - worse)
        guided = mean.index_copy(0, inside, pushed.to(mean))
        return guided if variance is None else torch.cat([guided, variance], channel_axis(x))
