"""Samplers: a rule for one step of a process each, and the one loop that takes the steps.

A sampler is a ``step``: from the state x_t at time t to x_s at s < t. What a step may ask for, the
expected data, noise and velocity at x_t, is a :class:`Step`, which asks the network once at most. A
new sampler is a subclass of :class:`Sampler`, an entry of SAMPLERS, and nothing else: the loop,
guidance, time grids, noise and callbacks are those of all.

    sampler         what it steps in        order  network calls
    euler           the ODE's t             1      steps
    heun            the ODE's t             2      2 steps - 1
    dopri5          the ODE's t             5      as many as its tolerance takes
    ddim            sigma / alpha           1      steps
    dpm_solver      log(alpha / sigma)      2      steps
    euler_maruyama  the SDE's t             1      steps
    ddpm            posterior by posterior  1      steps
    flow_map        the ODE's own path      exact  steps
    consistency     to the data and back    exact  steps

The last two ask a network of average velocities, ``network.average(x, t, s, y)``, as
:class:`softvq.generator.flowmap.FlowMap` is one: their steps may be as long as one likes, and what
error there is is the network's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from softvq.errors import UserError
from softvq.generator.process import LINEAR, Process, check_process, split_channels

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Noise = Callable[[int], Tensor]
Callback = Callable[[int, float, Tensor], None]

MOST_STEPS = 100_000  # a longer grid is a slip of the hand
TOLERANCE = 1e-5  # of dopri5, relative and absolute
NEARLY_DATA = 1e-3  # dopri5 looks no closer: predicted data says nothing of the noise at sigma = 0


def time_grid(steps: int, last: float | None = None, process: Process = LINEAR) -> Tensor:
    """Times [steps + 1] in float64: evenly from 1 to ``last``, then 0. Default: all steps equal.

    A diffusion takes its timesteps, the last step from the first one; a noise-predicting network
    starts a little below 1, see ``Process.latest``. Raises UserError unless 1 <= steps <= 100,000
    and for more steps than a diffusion has, and ValueError unless 0 < last < 1.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise UserError(f"steps must be 1 or more, at most {MOST_STEPS:,}, got {steps}")
    if steps > 1 and last is not None and not 0 < last < 1:
        raise ValueError(f"the last step must start in (0, 1), got {last}")
    times = process.grid(steps, last)
    return torch.cat([times, times.new_zeros(1)])


class NoiseStreams:
    """One stream of normal numbers per image: image ``index`` of ``seed`` always draws the same.

    The streams are the CPU's, one for each of ``indices``, so neither the batch that an image
    is drawn in nor the device changes its noise. Raises UserError for a negative seed.
    """

    def __init__(self, seed: int, indices: Iterable[int]):
        if seed < 0:
            raise UserError(f"seed must be 0 or more, got {seed}")
        # SeedSequence mixes the pair: neighbouring seeds and indices give unrelated streams.
        seeds = [np.random.SeedSequence([seed, i]).generate_state(1, np.uint64) for i in indices]
        self.rngs = [torch.Generator().manual_seed(int(state[0])) for state in seeds]

    def draw(self, *shape: int) -> Tensor:
        """The next normal numbers of every stream, [B, *shape] in float32 on the CPU."""
        return torch.stack([torch.randn(shape, generator=rng) for rng in self.rngs])


@dataclass
class Step:
    """One step: the state x at time t, on its way to time s, and what is known there.

    x        the state x_t, [B, ...] in float64
    t, s     times, scalars in float64, s < t
    index    0 for the first step
    final    whether s is the end of the grid
    process  what the network's predictions mean
    predict  ``predict(x, t)``: the network at any state, in float64, as it predicts
    leap     ``leap(x, t, s)``: its average velocity from t to s, if it knows that
    noise    as the sampler is given it
    before   the step before, None at the first
    """

    x: Tensor
    t: Tensor
    s: Tensor
    index: int
    final: bool
    process: Process
    predict: Callable[[Tensor, Tensor], Tensor]
    noise: Noise | None = None
    before: "Step | None" = None
    leap: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def at(self, x: Tensor, t: Tensor) -> "Step":
        """Another state and time on the way, which the network is asked about anew."""
        return replace(self, x=x, t=t)

    @cached_property
    def prediction(self) -> Tensor:
        """What the network says of x_t, with a learned variance if it has one."""
        return self.predict(self.x, self.t)

    @cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Expected data x_0 and noise e."""
        return self.process.split(self.prediction, self.x, self.t)

    @property
    def velocity(self) -> Tensor:
        """Expected dx/dt."""
        return self.process.velocity(*self.expected, self.t)

    def average(self, s: Tensor) -> Tensor:
        """Mean of dx/dt on the path from x_t to time s, of a network that knows it."""
        assert self.leap is not None  # ``Sampler.leaps``
        return self.leap(self.x, self.t, s)

    def draw(self) -> Tensor:
        """Fresh normal noise like x, this step's own."""
        return self.noise(self.index).to(self.x) if self.noise else torch.randn_like(self.x)


class Sampler(ABC):
    """``sampler(network, x, times, y)`` takes its steps along a falling time grid.

    A subclass gives ``step``. It holds nothing between the steps: ``Step.before`` is the past.

    last_start: where the last step of its usual grid starts; None for a step like the others.
    leaps: whether it needs a network of average velocities.
    """

    last_start: ClassVar[float | None] = None
    leaps: ClassVar[bool] = False

    @abstractmethod
    def step(self, step: Step) -> Tensor:
        """The state at time s, [B, ...]."""

    def grid(self, steps: int, process: Process = LINEAR) -> Tensor:
        """Its usual times [steps + 1], see :func:`time_grid`."""
        return time_grid(steps, self.last_start, process)

    @torch.no_grad()
    def __call__(
        self,
        network: Network,
        x: Tensor,
        times: Tensor,
        y: Tensor | None,
        process: Process = LINEAR,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Latents like x, from noise x.

        network   ``network(x, t [B], y [B]) -> prediction``, guided or not; see ``Process``
        x         noise at times[0], tokens [B, L, C] or maps [B, C, H, W]; the network is called
                  in its dtype, and the result has it
        times     falling times [steps + 1] from 1 to 0, as ``grid`` or :func:`time_grid` make them
        y         labels [B], or None for an unconditional network
        process   what the network's predictions mean; ``network.config.process`` of the library's
                  own networks
        noise     ``noise(step) -> [B, ...]``, fresh normal noise for a step that adds some; None
                  draws from the global rng. ``NoiseStreams`` makes the draws independent of the
                  batch
        callback  called after each step as ``callback(step, time reached, state in float64)``

        The state is kept in float64: rounding then does not grow with the number of steps. Raises
        ValueError for a bad time grid and for a process that is not the network's, and UserError
        if it ``leaps`` and the network knows no average velocities.
        """
        if self.leaps and not hasattr(network, "average"):
            raise UserError(
                "the samplers flow_map and consistency are for few-step generators, as recipe "
                "few-step trains them; choose another --sampler"
            )
        check_process(network, process)
        _check_times(times, process)
        return self.loop(network, x, times, y, process, noise, callback)

    def loop(
        self,
        network: Network,
        x: Tensor,
        times: Tensor,
        y: Tensor | None,
        process: Process = LINEAR,
        noise: Noise | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """What :meth:`__call__` does, unchecked: an exported graph cannot look at its times."""

        def predict(state: Tensor, t: Tensor) -> Tensor:
            return network(state.to(x.dtype), process.clock(t).expand(state.shape[0]), y).double()

        def leap(state: Tensor, t: Tensor, s: Tensor) -> Tensor:
            ends = (process.clock(time).expand(state.shape[0]) for time in (t, s))
            return network.average(state.to(x.dtype), *ends, y).double()  # type: ignore[attr-defined]

        state, times = x.double(), times.to(x.device, torch.float64)
        before: Step | None = None
        for index, (t, s) in enumerate(pairwise(times)):
            final = index == len(times) - 2
            step = Step(state, t, s, index, final, process, predict, noise, before, leap)
            state = self.step(step)
            step.before = None  # or every state since the first would be kept
            before = step
            if callback:
                callback(index, float(s), state)
        return state.to(x.dtype)


def _check_times(times: Tensor, process: Process) -> None:
    if times.ndim != 1 or times.shape[0] < 2 or not (times.diff() < 0).all():
        raise ValueError("times must be a vector of at least two strictly falling values")
    if times[0] > process.latest or times[-1] < 0:
        raise ValueError(
            f"times must lie in 0..{process.latest} on {process}; "
            "time_grid(steps, process=process) makes such"
        )


class Euler(Sampler):
    """dx = v dt by Euler's method."""

    def step(self, step: Step) -> Tensor:
        return step.x + (step.s - step.t) * step.velocity


class Heun(Sampler):
    """dx = v dt by Heun's method.

    The last step is Euler's, as in EDM (Karras et al. 2022), which leaves the order at 2.
    """

    def step(self, step: Step) -> Tensor:
        guess = step.x + (step.s - step.t) * step.velocity
        if step.final:
            return guess
        end = step.at(guess, step.s).velocity
        return step.x + (step.s - step.t) * (step.velocity + end) / 2


class Dopri5(Sampler):
    """dx = v dt by Dormand and Prince's method, with smaller steps of its own choice within each.

    The error of every step and sample stays within a tolerance of 1e-5. The steps are the whole
    batch's, so an image depends on the batch it is drawn in, to about that. Raises UserError
    without the package torchdiffeq.
    """

    def step(self, step: Step) -> Tensor:
        try:
            from torchdiffeq import odeint
        except ImportError:
            raise UserError("sampler dopri5 needs torchdiffeq: pip install 'softvq[ode]'") from None
        earliest = NEARLY_DATA if step.process.target == "x0" else 0.0

        def velocity(t: Tensor, state: Tensor) -> Tensor:
            return step.at(state, t.clamp(min=earliest)).velocity

        def worst(error: Tensor) -> Tensor:
            return error.reshape(step.x.shape[0], -1).square().mean(1).sqrt().max()

        ends = torch.stack([step.t, step.s])
        options = {"norm": worst, "first_step": step.t - step.s, "step_t": ends[1:]}
        return odeint(
            velocity, step.x, ends, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5", options=options
        )[1]


class DDIM(Sampler):
    """The expected data and noise of x_t, mixed again for the next time (Song et al. 2021).

    d(x/alpha) = e d(sigma/alpha) by Euler's method; eta = 0.
    """

    def step(self, step: Step) -> Tensor:
        return step.process.interpolate(*step.expected, step.s)


class DPMSolver(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): DDIM with the data predicted a step ahead.

    In lambda = log(alpha / sigma) the ODE is d(x/sigma) = e^lambda x_0 d lambda, and two
    evaluations tell how x_0 changes. Steps from or to infinite lambda know one: they are DDIM's.
    """

    def step(self, step: Step) -> Tensor:
        process = step.process
        data = x0 = step.expected[0]
        if step.before is not None:
            times = torch.stack([step.before.t, step.t, step.s])
            past, now, then = torch.log(process.alpha(times) / process.sigma(times))
            ratio = (then - now) / (now - past)
            ratio = torch.where(ratio.isfinite(), ratio, 0.0)  # no branch: graphs have none
            data = x0 + ratio / 2 * (x0 - step.before.expected[0])
        kept = process.sigma(step.s) / process.sigma(step.t)
        return kept * step.x + (process.alpha(step.s) - kept * process.alpha(step.t)) * data


class EulerMaruyama(Sampler):
    """dx = (v - w/2 score) dt + sqrt(w) dW, w = 2t, by the method of Euler and Maruyama.

    For any w >= 0 the SDE has the ODE's marginals (Ma et al. 2024); the score is -e / sigma. It
    diverges at t = 0, so the last step, which adds no noise, is best of fixed size; it starts where
    the reference's does.
    """

    last_start = 0.04

    def step(self, step: Step) -> Tensor:
        t, length = step.t, step.t - step.s
        _, e = step.expected
        state = step.x - length * (step.velocity + t * e / step.process.sigma(t))
        return state if step.final else state + torch.sqrt(2 * t * length) * step.draw()


class DDPM(Sampler):
    """Draws from q(x_s | x_t, x_0) with the expected x_0 for the true one (Ho et al. 2020).

    Its variance is the network's where that is learned, the posterior's where it is not. The last
    step adds no noise.
    """

    def step(self, step: Step) -> Tensor:
        back = step.process.posterior(step.t, step.s)
        mean = back.mean(step.expected[0], step.x)
        if step.final:
            return mean
        _, learned = split_channels(step.prediction, step.x)
        variance = back.variance if learned is None else back.log_variance(learned).exp()
        return mean + variance.sqrt() * step.draw()


class FlowMapSampler(Sampler):
    """x_s = x_t + (s - t) u(x_t, s, t), u the average velocity (Geng et al. 2025, eq. 12)."""

    leaps = True

    def step(self, step: Step) -> Tensor:
        return step.x + (step.s - step.t) * step.average(step.s)


class ConsistencySampler(Sampler):
    """To the end of the path, and with fresh noise back to s (Song et al. 2023, algorithm 1)."""

    leaps = True

    def step(self, step: Step) -> Tensor:
        zero = torch.zeros_like(step.t)
        data = step.x - step.t * step.average(zero)
        return data if step.final else step.process.interpolate(data, step.draw(), step.s)


SAMPLERS: dict[str, Sampler] = {
    "euler": Euler(),
    "heun": Heun(),
    "dopri5": Dopri5(),
    "ddim": DDIM(),
    "dpm_solver": DPMSolver(),
    "euler_maruyama": EulerMaruyama(),
    "ddpm": DDPM(),
    "flow_map": FlowMapSampler(),
    "consistency": ConsistencySampler(),
}
