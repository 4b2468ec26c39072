"""Denoising diffusion: tables against the reference's, formulas against distributions."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from vectors import Golden, found, named, timesteps_of

from softvq.errors import UserError
from softvq.generator.config import DiTConfig
from softvq.generator.diffusion import SCHEDULES, Diffusion, level_log_likelihood, normal_cdf
from softvq.generator.process import TARGETS, TIME_LAWS, training_loss
from softvq.generator.sampler import time_grid
from softvq.generator.transformer import DiT


@pytest.fixture(scope="module", params=found("diffusion_schedules*"), ids=named)
def golden(request):
    return Golden(request.param)


def test_golden_tables(golden):
    """Every schedule and spacing that the file holds."""
    settings = golden.results(r"out\.(?P<schedule>\w+?)_(?P<spacing>[\w,]+)\.betas").values()
    for schedule, spacing in {tuple(setting.values()) for setting in settings}:
        check_tables(golden, schedule, spacing)


def check_tables(golden: Golden, schedule: str, spacing: str) -> None:
    process, start = Diffusion(schedule=schedule), f"out.{schedule}_{spacing}."
    k = timesteps_of(spacing)
    t = (k.double() + 1) / 1000
    s = torch.cat([t.new_zeros(1), t[:-1]])
    back = process.posterior(t, s)
    tables = {
        "betas": back.added,
        "alphas_cumprod": process.alpha(t) ** 2,
        "sqrt_recip_alphas_cumprod": 1 / process.alpha(t),
        "sqrt_recipm1_alphas_cumprod": process.sigma(t) / process.alpha(t),
        "posterior_mean_coef1": back.data,
        "posterior_mean_coef2": back.state,
        "posterior_variance": back.variance,
        "posterior_log_variance_clipped": torch.cat([back.variance[1:2], back.variance[1:]]).log(),
    }
    kept = golden.starting(start)
    if "timestep_map" in kept:
        assert torch.equal(k, kept.pop("timestep_map"))
    for name in kept:
        golden.check(start + name, tables[name])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_it_walks_on_the_circle(schedule):
    process = Diffusion(schedule=schedule)
    t = torch.linspace(0, 1, 3001, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert (alpha[0], sigma[0]) == (1, 0) and 0 < alpha[-1] < 0.01
    assert (process.angle(t).diff() > 0).all()
    inside = (t[:-1] + t[1:]) / 2  # between timesteps, where there is one rate
    h = 1e-6
    rates = process.angle_rate(inside), process.alpha_rate(inside), process.sigma_rate(inside)
    for value, rate in zip((process.angle, process.alpha, process.sigma), rates, strict=True):
        torch.testing.assert_close(
            (value(inside + h) - value(inside - h)) / (2 * h), rate, atol=1e-5, rtol=1e-5
        )
    torch.testing.assert_close(process.time_at(sigma / alpha), t, atol=1e-9, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_targets(target):
    process = Diffusion(target)
    t = torch.tensor([0.001, 0.3, 1.0], dtype=torch.float64)
    x0, noise = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    x = process.interpolate(x0, noise, t)
    alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
    learned = process.regressed(x0, noise, t)
    torch.testing.assert_close(
        learned, {"v": alpha * noise - sigma * x0, "eps": noise, "x0": x0}[target]
    )
    torch.testing.assert_close(process.split(learned, x, t), (x0, noise), atol=1e-9, rtol=1e-9)


def test_clock_counts_timesteps():
    process = Diffusion(steps=1000)
    t = (torch.arange(1000).double() + 1) / 1000
    torch.testing.assert_close(process.clock(t), torch.arange(1000).double(), atol=1e-9, rtol=0)
    assert process.clock(torch.tensor(0.0)) == 0
    drawn = TIME_LAWS["uniform"](
        process, 200000, torch.Generator().manual_seed(0), torch.device("cpu")
    )
    timesteps = process.clock(process.snap(drawn))
    torch.testing.assert_close(timesteps, timesteps.round(), atol=1e-9, rtol=0)
    counts = timesteps.round().long().bincount(minlength=1000)
    assert counts.shape == (1000,) and counts.min() > 100  # of 200 expected
    assert abs(counts[0] - 200) < 60 and abs(counts[-1] - 200) < 60


def test_time_grids():
    process = Diffusion(schedule="cosine", steps=10)
    assert time_grid(10, process=process).tolist() == pytest.approx(
        [k / 10 for k in range(10, -1, -1)]
    )
    assert time_grid(2, process=process).tolist() == [1, 0.1, 0]
    assert time_grid(3, 0.4, process).tolist() == [1, 0.7, 0.4, 0]
    assert time_grid(1, process=process).tolist() == [1, 0]
    with pytest.raises(UserError, match="10 timesteps do not hold 11"):
        time_grid(11, process=process)


@pytest.mark.parametrize(
    "arguments",
    [{"schedule": "sine"}, {"target": "score"}, {"steps": 1}, {"steps": 15}],
)
def test_bad_processes_are_refused(arguments):
    with pytest.raises(UserError, match=str(next(iter(arguments.values())))):
        Diffusion(**arguments)


def test_bound_is_the_divergence():
    """Of q(x_{k-1} | x_k, x_0) from the network's step, by torch's own normal distributions."""
    torch.manual_seed(0)
    process = Diffusion()
    k = torch.tensor([1, 40, 500, 999])
    betas = SCHEDULES["linear"](1000)
    abar = (1 - betas).cumprod(0)
    x0, noise, predicted, learned = torch.randn(4, 4, 3, 2, dtype=torch.float64)
    beta, now, before = (v[:, None, None] for v in (betas[k], abar[k], abar[k - 1]))
    x = now.sqrt() * x0 + (1 - now).sqrt() * noise
    guess = (x - (1 - now).sqrt() * predicted) / now.sqrt()
    variance = beta * (1 - before) / (1 - now)

    def mean(data):
        return (before.sqrt() * beta * data + (1 - beta).sqrt() * (1 - before) * x) / (1 - now)

    log_variance = (learned + 1) / 2 * beta.log() + (1 - learned) / 2 * variance.log()
    expected = kl_divergence(
        Normal(mean(x0), variance.sqrt().expand(4, 3, 2)),
        Normal(mean(guess), (log_variance / 2).exp()),
    ).mean((1, 2)) / math.log(2)
    t = (k.double() + 1) / 1000
    bound = process.bound(predicted, learned, x0, noise, t)
    torch.testing.assert_close(bound, expected)
    both = process.loss(torch.cat([predicted, learned], -1), x0, noise, t)
    torch.testing.assert_close(both, (predicted - noise).square().mean((1, 2)) + expected)


def test_level_likelihood_is_a_distribution():
    """The 256 levels share the whole probability, each as much as lies within its borders."""
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64)
    for mean, std in ((0.0, 0.1), (0.4, 0.3), (-0.5, 0.5)):
        likelihood = level_log_likelihood(levels, torch.tensor(mean), torch.tensor(std)).exp()
        assert likelihood.sum().item() == pytest.approx(1, abs=1e-6)
        normal = Normal(mean, std)
        exact = normal.cdf(levels[100] + 1 / 255) - normal.cdf(levels[100] - 1 / 255)
        assert likelihood[100].item() == pytest.approx(exact.item(), rel=0.02)


def test_normal_cdf():
    x = torch.linspace(-8, 8, 10001).double()
    assert (normal_cdf(x) - torch.special.ndtr(x)).abs().max() < 2e-4


def test_the_bound_teaches_the_variance_alone():
    process, t = Diffusion(), torch.tensor([0.001, 0.5], dtype=torch.float64)
    x0, noise, own = torch.randn(3, 2, 3, 2)
    own.requires_grad_()
    learned = torch.zeros(2, 3, 2, requires_grad=True)
    process.loss(torch.cat([own, learned], -1), x0, noise, t).sum().backward()
    torch.testing.assert_close(own.grad, 2 * (own - noise).detach() / 6)
    assert (learned.grad != 0).all()


@pytest.mark.parametrize("learn_variance", [True, False])
def test_a_dit_trains(learn_variance):
    config = DiTConfig(4, 2, 3, width=32, depth=1, heads=2, learn_variance=learn_variance)
    torch.manual_seed(0)
    net, generator = DiT(config), torch.Generator().manual_seed(0)
    x0, y = torch.randn(64, 4, 2) * 0.3, torch.arange(64) % 3
    losses = []
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(80):
        loss = training_loss(net, config.process, x0, y, config, "uniform", generator)
        assert loss.shape == (64,) and loss.dtype == torch.float32
        losses.append(loss.mean().item())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert sum(losses[-10:]) < sum(losses[:10]) / 2
