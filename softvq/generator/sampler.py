"""Samplers: plain functions of a network, noise and a time grid that falls from noise to data.

Every sampler has one signature, so that any of them takes any network, path and guidance:

    sampler(net, x, times, y, path=LINEAR, noise=None, callback=None) -> latents like x

net       ``net(x, t [B], y [B]) -> prediction``, guided or not; see ``Path`` for what it predicts
x         noise at times[0], tokens [B, L, C] or maps [B, C, H, W]; the network is called in its
          dtype, and the result has it
times     falling times [steps + 1] from 1 to 0, see ``time_grid``
y         labels [B], or None for an unconditional network
path      what the network's predictions mean; ``net.config.process`` of the library's own networks
noise     ``noise(step) -> [B, ...]``, fresh normal noise for a step that adds some; None draws from
          the global generator. ``NoiseStreams`` makes the draws independent of the batch
callback  called after each step as ``callback(step, time reached, state in float64)``

The state is kept in float64: rounding then does not grow with the number of steps. All raise
ValueError for a bad time grid and for a path that is not the network's.

    sampler         what it steps in      order  network calls
    euler           the ODE's t           1      steps
    heun            the ODE's t           2      2 steps - 1
    dopri5          the ODE's t           5      as many as its tolerance takes
    ddim            sigma / alpha         1      steps
    dpm_solver      log(alpha / sigma)    2      steps
    euler_maruyama  the SDE's t           1      steps
    ddpm            posterior by posterior  1    steps
"""

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from softvq.errors import UserError
from softvq.generator.path import LINEAR, Path, check_path, split_channels

Net = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Noise = Callable[[int], Tensor]
Callback = Callable[[int, float, Tensor], None]

LAST_SDE_STEP = 0.04  # as in the reference; see ``time_grid``
TOLERANCE = 1e-5  # of dopri5, relative and absolute
NEARLY_DATA = 1e-3  # dopri5 looks no closer: predicted data says nothing of the noise at sigma = 0


def time_grid(steps: int, last: float | None = None, path: Path = LINEAR) -> Tensor:
    """Times [steps + 1] in float64: evenly from 1 to ``last``, then 0. Default: all steps equal.

    The SDE's score diverges at t = 0, so its last, deterministic step is best of fixed size
    (LAST_SDE_STEP). A diffusion takes its timesteps, the last step from the first one; a
    noise-predicting network starts a little below 1, see ``Path.latest``. Raises ValueError
    unless steps >= 1 and 0 < last < 1, and UserError for more steps than a diffusion has.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if steps > 1 and last is not None and not 0 < last < 1:
        raise ValueError(f"the last step must start in (0, 1), got {last}")
    times = path.grid(steps, last)
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


def _prepare(
    net: Net, x: Tensor, times: Tensor, y: Tensor | None, path: Path
) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor], Tensor]]:
    """Times and the state in float64, and the network as ``predict(state, t)`` in float64."""
    check_path(net, path)
    if times.ndim != 1 or times.shape[0] < 2 or not (times.diff() < 0).all():
        raise ValueError("times must be a vector of at least two strictly falling values")
    if times[0] > path.latest or times[-1] < 0:
        raise ValueError(
            f"times must lie in 0..{path.latest} on {path}; time_grid(steps, path=path) makes such"
        )

    def predict(state: Tensor, t: Tensor) -> Tensor:
        return net(state.to(x.dtype), path.clock(t).expand(state.shape[0]), y).double()

    return times.to(x.device, torch.float64), x.double(), predict


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
    """dx = v dt by Euler's method."""
    times, state, predict = _prepare(net, x, times, y, path)
    for step, (t, t_next) in enumerate(pairwise(times)):
        state = state + (t_next - t) * path.velocity(*path.split(predict(state, t), state, t), t)
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
    """dx = v dt by Heun's method.

    The last step is Euler's, as in EDM (Karras et al. 2022), which leaves the order at 2.
    """
    times, state, predict = _prepare(net, x, times, y, path)
    last = times.shape[0] - 2
    for step, (t, t_next) in enumerate(pairwise(times)):
        v = path.velocity(*path.split(predict(state, t), state, t), t)
        guess = state + (t_next - t) * v
        if step < last:
            end = path.velocity(*path.split(predict(guess, t_next), guess, t_next), t_next)
            guess = state + (t_next - t) * (v + end) / 2
        state = guess
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


@torch.no_grad()
def dopri5(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """dx = v dt by Dormand and Prince's method, with steps of its own choice.

    The error of every step and sample stays within a tolerance of 1e-5. The steps are the whole
    batch's, so an image depends on the batch it is drawn in, to about that. Raises UserError
    without the package torchdiffeq.
    """
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise UserError("sampler dopri5 needs torchdiffeq: pip install 'softvq[ode]'") from None
    times, state, predict = _prepare(net, x, times, y, path)
    earliest = NEARLY_DATA if path.target == "x0" else 0.0

    def velocity(t: Tensor, state: Tensor) -> Tensor:
        t = t.clamp(min=earliest)
        return path.velocity(*path.split(predict(state, t), state, t), t)

    def worst(error: Tensor) -> Tensor:
        return error.reshape(x.shape[0], -1).square().mean(1).sqrt().max()

    states = odeint(
        velocity,
        state,
        times,
        rtol=TOLERANCE,
        atol=TOLERANCE,
        method="dopri5",
        options={"norm": worst, "step_t": times[-1:]},  # not a step beyond the end
    )
    for step, t_next in enumerate(times[1:]):
        if callback:
            callback(step, float(t_next), states[step + 1])
    return states[-1].to(x.dtype)


@torch.no_grad()
def ddim(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """The expected data and noise of x_t, mixed again for the next time (Song et al. 2021).

    d(x/alpha) = e d(sigma/alpha) by Euler's method; eta = 0.
    """
    times, state, predict = _prepare(net, x, times, y, path)
    for step, (t, t_next) in enumerate(pairwise(times)):
        state = path.interpolate(*path.split(predict(state, t), state, t), t_next)
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


@torch.no_grad()
def dpm_solver(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM with the data predicted a step ahead.

    In lambda = log(alpha / sigma) the ODE is d(x/sigma) = e^lambda x_0 d lambda, and two
    evaluations tell how x_0 changes. Steps from or to infinite lambda know one: they are DDIM's.
    """
    times, state, predict = _prepare(net, x, times, y, path)
    log_snr = torch.log(path.alpha(times) / path.sigma(times))
    before: Tensor | None = None
    for step, (t, t_next) in enumerate(pairwise(times)):
        x0, _ = path.split(predict(state, t), state, t)
        data = x0
        if before is not None:
            ratio = (log_snr[step + 1] - log_snr[step]) / (log_snr[step] - log_snr[step - 1])
            if ratio.isfinite():
                data = x0 + ratio / 2 * (x0 - before)
        kept = path.sigma(t_next) / path.sigma(t)
        state = kept * state + (path.alpha(t_next) - kept * path.alpha(t)) * data
        before = x0
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
    """dx = (v - w/2 score) dt + sqrt(w) dW, w = 2t, by the method of Euler and Maruyama.

    For any w >= 0 the SDE has the ODE's marginals (Ma et al. 2024); the score is -e / sigma. The
    last step adds no noise. Draws noise(0) .. noise(steps - 2).
    """
    times, state, predict = _prepare(net, x, times, y, path)
    last = times.shape[0] - 2
    for step, (t, t_next) in enumerate(pairwise(times)):
        x0, e = path.split(predict(state, t), state, t)
        state = state + (t_next - t) * (path.velocity(x0, e, t) + t * e / path.sigma(t))
        if step < last:
            fresh = noise(step).to(state) if noise else torch.randn_like(state)
            state = state + torch.sqrt(2 * t * (t - t_next)) * fresh
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


@torch.no_grad()
def ddpm(
    net: Net,
    x: Tensor,
    times: Tensor,
    y: Tensor | None,
    path: Path = LINEAR,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draws from q(x_s | x_t, x_0) with the expected x_0 for the true one (Ho et al. 2020).

    Its variance is the network's where that is learned, the posterior's where it is not. The last
    step adds no noise. Draws noise(0) .. noise(steps - 2).
    """
    times, state, predict = _prepare(net, x, times, y, path)
    last = times.shape[0] - 2
    for step, (t, t_next) in enumerate(pairwise(times)):
        prediction = predict(state, t)
        x0, _ = path.split(prediction, state, t)
        _, learned = split_channels(prediction, state)
        back = path.posterior(t, t_next)
        state = back.mean(x0, state)
        if step < last:
            fresh = noise(step).to(state) if noise else torch.randn_like(state)
            variance = back.variance if learned is None else back.log_variance(learned).exp()
            state = state + variance.sqrt() * fresh
        if callback:
            callback(step, float(t_next), state)
    return state.to(x.dtype)


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler,
    "heun": heun,
    "dopri5": dopri5,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "euler_maruyama": euler_maruyama,
    "ddpm": ddpm,
}
