"""Samplers: plain functions of a network, noise and a time grid that falls from noise to data.

Every sampler has one signature, so that any of them takes any network, path and guidance:

    sampler(net, x, times, y, path=LINEAR, noise=None, callback=None) -> latents [B, L, C]

net       velocity ``net(x [B, L, C], t [B], y [B]) -> [B, L, C]``, guided or not
x         noise at times[0], [B, L, C]; the network is called in its dtype, and the result has it
times     falling times [steps + 1] from 1 to 0, see ``time_grid``
y         labels [B], or None for an unconditional network
path      the interpolant the network was trained on; only the SDE reads it
noise     ``noise(step) -> [B, L, C]``, fresh normal noise for the SDE's step; None draws from the
          global generator. ``NoiseStreams`` makes the draws independent of the batch
callback  called after each step as ``callback(step, time reached, state [B, L, C] in float64)``

The state is kept in float64: rounding then does not grow with the number of steps.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from softvq.generator.path import Linear, Path

Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Noise = Callable[[int], Tensor]
Callback = Callable[[int, float, Tensor], None]

LINEAR = Linear()


def time_grid(steps: int, last: float | None = None) -> Tensor:
    """Times [steps + 1] in float64: evenly from 1 to ``last``, then 0. Default: all steps equal.

    The SDE's score diverges at t = 0, so its last, deterministic step is best of fixed size
    (0.04 in the reference). Raises ValueError unless steps >= 1 and 0 < last < 1.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    last = 1 / steps if last is None else last
    if steps > 1 and not 0 < last < 1:
        raise ValueError(f"the last step must start in (0, 1), got {last}")
    times = torch.linspace(1, last, steps, dtype=torch.float64)
    return torch.cat([times, times.new_zeros(1)])


class NoiseStreams:
    """One stream of normal numbers per image: image ``index`` of ``seed`` always draws the same.

    The streams are the CPU's, one for each of ``indices``, so neither the batch that an image
    is drawn in nor the device changes its noise.
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        # SeedSequence mixes the pair: neighbouring seeds and indices give unrelated streams.
        seeds = [np.random.SeedSequence([seed, i]).generate_state(1, np.uint64) for i in indices]
        self.generators = [torch.Generator().manual_seed(int(state[0])) for state in seeds]

    def draw(self, *shape: int) -> Tensor:
        """The next normal numbers of every stream, [B, *shape] in float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=g) for g in self.generators])


def _velocity(net: Net, state: Tensor, t: Tensor, y: Tensor | None, dtype: torch.dtype) -> Tensor:
    return net(state.to(dtype), t.expand(state.shape[0]), y).double()


def _check(x: Tensor, times: Tensor) -> Tensor:
    if times.ndim != 1 or times.shape[0] < 2 or not (times.diff() < 0).all():
        raise ValueError("times must be a vector of at least two strictly falling values")
    return times.to(x.device, torch.float64)


@torch.no_grad()
def euler(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """dx = v dt by Euler's method: order 1, one network call per step."""
    times, state = _check(x, times), x.double()
    for step, (t, t_next) in enumerate(pairwise(times)):
        state = state + (t_next - t) * _velocity(net, state, t, y, x.dtype)
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


@torch.no_grad()
def heun(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """dx = v dt by Heun's method: order 2, two network calls per step.

    The last step is Euler's, as in EDM (Karras et al. 2022), which leaves the order at 2:
    2 * steps - 1 calls in all.
    """
    times, state = _check(x, times), x.double()
    last = times.shape[0] - 2
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = _velocity(net, state, t, y, x.dtype)
        guess = state + (t_next - t) * v
        if step < last:
            v = (v + _velocity(net, guess, t_next, y, x.dtype)) / 2
            guess = state + (t_next - t) * v
        state = guess
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


@torch.no_grad()
def euler_maruyama(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """dx = (v - w/2 score) dt + sqrt(w) dW, w = 2t, by Euler-Maruyama: one network call per step.

    For any w >= 0 the SDE has the ODE's marginals (Ma et al. 2024). The last step adds no
    noise. Draws noise(0) .. noise(steps - 2).
    """
    times, state = _check(x, times), x.double()
    last = times.shape[0] - 2
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = _velocity(net, state, t, y, x.dtype)
        score = path.score_from_velocity(v, state, t.expand(state.shape[0]))
        state = state + (t_next - t) * (v - t * score)
        if step < last:
            fresh = noise(step).to(state) if noise else torch.randn_like(state)
            state = state + torch.sqrt(2 * t * (t - t_next)) * fresh
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "euler_maruyama": euler_maruyama,
}
