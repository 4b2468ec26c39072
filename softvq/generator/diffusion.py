"""Denoising diffusion (Ho et al. 2020) as a process: what a DiT learns.

    x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) e,    abar_k = prod_{j <= k} (1 - beta_j)      (3)

Timestep k = 0..T-1 of the discrete process is time t = (k + 1) / T, and t = 0 is clean data. A
process that keeps the variance walks on the quarter circle alpha = cos(phi), sigma = sin(phi), so
between timesteps phi is interpolated: at the timesteps this is (3), and it has a rate everywhere,
which lets ODE and SDE samplers run on a DiT. Respacing is nothing but a coarser time grid.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from softvq.errors import UserError
from softvq.generator.process import Circular, per_sample, split_channels


def linear_betas(steps: int) -> Tensor:
    """From 1e-4 to 0.02 in 1000 steps (Ho et al. 2020), and as much noise in any other number."""
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64, device="cpu")


def cosine_betas(steps: int) -> Tensor:
    """abar = cos^2, shifted a little, and no beta above 0.999 (Nichol & Dhariwal 2021, eq. 17)."""
    t = torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps
    abar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


# On the CPU, whatever the default device is: the tables are kept.
SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear_betas, "cosine": cosine_betas}


@cache
def angles(schedule: str, steps: int, device: torch.device) -> Tensor:
    """phi at t = 0, 1/T, .., 1, [T + 1] in float64: cos^2(phi) = abar."""
    abar = (1 - SCHEDULES[schedule](steps)).cumprod(0)
    return torch.cat([abar.new_zeros(1), torch.atan2((1 - abar).sqrt(), abar.sqrt())]).to(device)


@dataclass(frozen=True)
class Diffusion(Circular):
    """A schedule of T steps. "v" is dx/d phi = alpha e - sigma x_0 (Salimans & Ho 2022).

    The network is told the timestep k, in 0..T-1. If it predicts more channels than x has, they are
    its variance: -1 for the least, the posterior's, and 1 for the most, beta (Nichol & Dhariwal
    2021, eq. 15). Raises UserError for an unknown target or schedule, and too few steps for it.
    """

    target: str = "eps"
    schedule: str = "linear"
    steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule '{self.schedule}' is none of {', '.join(SCHEDULES)}")
        if self.steps < 2 or SCHEDULES[self.schedule](self.steps).max() >= 1:
            raise UserError(f"{self.steps} timesteps are too few for the {self.schedule} schedule")

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """phi at the timestep before t, the rise to the next, and the part of it that t is at."""
        phi = angles(self.schedule, self.steps, t.device)
        below = (t * self.steps).ceil().sub(1).clamp(0, self.steps - 1)
        first = phi[below.long()]
        return first, phi[below.long() + 1] - first, t * self.steps - below

    def angle(self, t: Tensor) -> Tensor:
        first, rise, part = self._segment(t)
        return first + part * rise

    def angle_rate(self, t: Tensor) -> Tensor:
        return self._segment(t)[1] * self.steps

    def time_at(self, ratio: Tensor) -> Tensor:
        phi = angles(self.schedule, self.steps, ratio.device)
        angle = torch.atan(ratio).double().clamp(max=float(phi[-1]))
        above = torch.searchsorted(phi, angle).clamp(min=1)
        part = (angle - phi[above - 1]) / (phi[above] - phi[above - 1])
        return (above - 1 + part) / self.steps

    @property
    def latest(self) -> float:
        return 1.0  # some data is left at every timestep

    def clock(self, t: Tensor) -> Tensor:
        return (t * self.steps - 1).clamp(min=0)

    def snap(self, t: Tensor) -> Tensor:
        return ((t.double() * self.steps).floor().clamp(max=self.steps - 1) + 1) / self.steps

    def grid(self, steps: int, last: float | None = None) -> Tensor:
        """Times of timesteps: evenly spaced, rounded (Nichol & Dhariwal 2021), down to 0."""
        first = 0.0 if last is None else last * self.steps - 1
        k = torch.linspace(self.steps - 1, first, steps, dtype=torch.float64).round().clamp(min=0)
        if not (k.diff() < 0).all():
            raise UserError(f"{self.steps} timesteps do not hold {steps} steps; take fewer")
        return (k + 1) / self.steps

    def direction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -self.sigma(t), self.alpha(t)

    def loss(self, prediction: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Per sample, [B]: squared error, and the variational bound if the variance is learned.

        The bound teaches the variance alone (L_hybrid of Nichol & Dhariwal 2021, as in DiT).
        """
        own, variance = split_channels(prediction, x0)
        loss = super().loss(own, x0, noise, t)
        if variance is None:
            return loss
        return loss + self.bound(own.detach(), variance, x0, noise, t).to(loss)

    def bound(self, own: Tensor, variance: Tensor, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The timestep's term of the variational bound in bits per number, [B] in float64.

        KL(q(x_{k-1} | x_k, x_0) || p(x_{k-1} | x_k)), and at k = 0 -log p(x_0 | x_1), with x_0 on
        levels 1/127.5 apart in [-1, 1], as if latents were pixels: so it is in DiT.
        """
        x0, noise, t = x0.double(), noise.double(), t.double()
        x = self.interpolate(x0, noise, t)
        guess, _ = self.split(own.double(), x, t)
        step = self.posterior(t, (t - 1 / self.steps).clamp(min=0))
        # The first timestep's posterior has no variance: the second's stands in (Ho et al. 2020).
        second = t.clamp(min=2 / self.steps)
        step = step._replace(variance=self.posterior(second, second - 1 / self.steps).variance)
        true_mean, mean = step.mean(x0, x), step.mean(guess, x)
        least = per_sample(step.variance, x).log()
        log_variance = step.log_variance(variance.double())
        kl = 0.5 * (
            log_variance - least - 1
            + torch.exp(least - log_variance)
            + (true_mean - mean).square() * torch.exp(-log_variance)
        )  # fmt: skip
        decoder = -level_log_likelihood(x0, mean, (0.5 * log_variance).exp())
        first = per_sample(t * self.steps < 1.5, x)
        return torch.where(first, decoder, kl).flatten(1).mean(1) / math.log(2)


def level_log_likelihood(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log P of the level, of 256 in [-1, 1], that holds x under N(mean, std^2), elementwise.

    The outermost levels reach to infinity (Ho et al. 2020, eq. 13).
    """
    above = normal_cdf((x - mean + 1 / 255) / std).where(x < 0.999, 1.0)
    below = normal_cdf((x - mean - 1 / 255) / std).where(x > -0.999, 0.0)
    return (above - below).clamp(min=1e-12).log()


def normal_cdf(x: Tensor) -> Tensor:
    """Page's (1977) approximation, which DiT is trained with: off by 2e-4 at most."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
