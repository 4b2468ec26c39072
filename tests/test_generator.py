"""SiT, its processes and its losses, and the golden vectors of the reference for all of them."""

import json
from dataclasses import replace

import pytest
import torch
from vectors import GoldenNet, found, named, random_net

from softvq.errors import UserError
from softvq.generator.config import SiTConfig
from softvq.generator.diffusion import Diffusion
from softvq.generator.guidance import Guided
from softvq.generator.process import (
    PROCESSES,
    TARGETS,
    TIME_LAWS,
    Cosine,
    Linear,
    check_process,
    denoising_loss,
    drop_labels,
    training_loss,
)
from softvq.generator.sampler import SAMPLERS, time_grid
from softvq.generator.transformer import SiT

euler, heun = SAMPLERS["euler"], SAMPLERS["heun"]
TINY = SiTConfig(tokens=6, channels=3, num_classes=4, width=16, depth=2, heads=2)


@pytest.fixture(scope="module", params=found("sit_*"), ids=named)
def golden(request):
    return GoldenNet(request.param, SiT)


def test_golden_forward(golden):
    assert (golden.positions - golden["sd.pos_embed"]).abs().max() < 1e-6
    with torch.no_grad():
        golden.check("out.forward", golden.net(golden["in.x"], golden["in.t"], golden["in.y"]))
        golden.check("out.t_embed", golden.net.t_embedder(golden["in.t"]))


@pytest.mark.parametrize("name", PROCESSES)
def test_golden_losses_and_gradients(golden, name):
    process = PROCESSES[name]()
    uniform, lognormal = golden["in.time"].flatten(), golden["in.lognormal"].flatten().exp()
    for times, t in {"uniform": uniform, "lognormal": process.time_at(lognormal)}.items():
        loss = denoising_loss(
            golden.net, process, golden["in.x0"], golden["in.y_train"], t, golden["in.noise"]
        )
        golden.check(f"out.siloss_{name}_{times}", loss)
        if times == "uniform":
            golden.net.zero_grad()
            loss.mean().backward()
    kept = [key for key in golden.tensors if key.startswith(f"grad.{name}.")]
    assert kept or (name == "cosine" and golden.net.config.patch)
    for key in kept:
        golden.check(key, golden.net.get_parameter(key.removeprefix(f"grad.{name}.")).grad)


def test_golden_ode_samplers(golden):
    """Of any number of steps, scale and interval: a result's name says which."""
    x, y = golden["in.xT"], golden["in.y_gen"]
    made = golden.results(
        r"out\.euler(?P<steps>\d+)_cfg(?P<scale>[\d.]+)(_heun(?P<heun>[01]))?"
        r"(_low(?P<low>[\d.]+)_high(?P<high>[\d.]+))?"
    )
    for key, given in made.items():
        interval = float(given["low"] or 0), float(given["high"] or 1)
        guided = Guided(golden.net, float(given["scale"]), interval)
        sampler = heun if given["heun"] == "1" else euler
        golden.check(key, sampler(guided, x, time_grid(int(given["steps"])), y))


def test_golden_sde_sampler(golden):
    x, y, calls = golden["in.xT"], golden["in.y_gen"], []
    made = golden.results(
        r"out\.em(?P<steps>\d+)_cfg(?P<scale>[\d.]+)_(?P<process>linear|cosine)(_generate_sit_4n)?"
    )
    sampler = SAMPLERS["euler_maruyama"]
    for key, given in made.items():
        guided, process = Guided(golden.net, float(given["scale"])), PROCESSES[given["process"]]()
        times = time_grid(int(given["steps"]), last=0.04)
        calls.clear()
        hook = golden.net.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
        golden.check(key, sampler(guided, x, times, y, process, lambda i: golden["in.eps"][i]))
        hook.remove()
        # The reference's own script makes 4n evaluations a step for the same result.
        copies = 2 if guided.guides else 1
        assert calls == [copies * len(x)] * int(given["steps"])


def test_new_net_predicts_zero():
    out = SiT(TINY)(torch.randn(2, 6, 3), torch.rand(2), torch.tensor([0, 4]))
    assert out.shape == (2, 6, 3)
    assert (out == 0).all()


def test_net_reads_time_label_and_position():
    net, x = random_net(TINY), torch.randn(1, 6, 3)
    t, y = torch.tensor([0.5]), torch.tensor([1])
    out = net(x, t, y)
    assert not torch.allclose(out, net(x, t + 0.1, y))
    assert not torch.allclose(out, net(x, t, y + 1))
    assert not torch.allclose(out, net(x.flip(1), t, y).flip(1))
    assert torch.equal(net(x, t), net(x, t, torch.tensor([4])))


def test_unconditional_net_ignores_labels():
    net = random_net(SiTConfig(6, 3, num_classes=0, width=16, depth=1, heads=2))
    x, t = torch.randn(2, 6, 3), torch.rand(2)
    assert torch.equal(net(x, t), net(x, t, torch.tensor([5, 7])))
    assert training_loss(net, Linear(), x, None, net.config).shape == (2,)
    assert euler(net, x, time_grid(3), None).shape == x.shape


def test_wrong_latents_are_refused():
    with pytest.raises(ValueError, match=r"expected latents \[B, 6, 3\]"):
        SiT(TINY)(torch.randn(2, 1, 3), torch.rand(2))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 0},
        {"width": 15},
        {"heads": 3},
        {"num_classes": -1},
        {"label_dropout": 1.5},
    ],
)
def test_bad_config_is_refused(change):
    fields = {"tokens": 6, "channels": 3, "num_classes": 4, "width": 16, "depth": 1, "heads": 2}
    with pytest.raises(UserError, match=next(iter(change))):
        SiTConfig(**(fields | change))


def test_save_and_load(tmp_path):
    net = random_net(TINY)
    net.save_pretrained(tmp_path)
    again = SiT.from_pretrained(tmp_path)
    assert again.config == TINY
    x, t, y = torch.randn(2, 6, 3), torch.rand(2), torch.tensor([0, 3])
    assert torch.equal(net(x, t, y), again(x, t, y))

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"] == "SiT"
    (tmp_path / "config.json").write_text(json.dumps(config | {"widht": 16}))
    with pytest.raises(UserError, match="widht"):
        SiT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"depth": 3}))
    with pytest.raises(UserError, match=r"missing blocks\.2"):
        SiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", PROCESSES.values(), ids=PROCESSES.keys())
def test_path_formulas(kind, target):
    process = kind(target)
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(process.alpha(ends), 1 - ends)
    torch.testing.assert_close(process.sigma(ends), ends)
    torch.testing.assert_close(process.time_at(process.sigma(t) / process.alpha(t)), t)

    x0, noise = torch.randn(2, 7, 4, 3, dtype=torch.float64)
    step = 1e-5
    later, earlier = (process.interpolate(x0, noise, t + h) for h in (step, -step))
    torch.testing.assert_close(process.velocity(x0, noise, t), (later - earlier) / (2 * step))
    learned = process.regressed(x0, noise, t)
    expected = {"v": process.velocity(x0, noise, t), "eps": noise, "x0": x0}[target]
    torch.testing.assert_close(learned, expected)
    found = process.split(learned, process.interpolate(x0, noise, t), t)
    torch.testing.assert_close(found, (x0, noise))
    more = torch.cat([learned, torch.zeros(7, 4, 3)], -1)  # a learned variance is no part of it
    assert torch.equal(process.split(more, process.interpolate(x0, noise, t), t)[0], found[0])
    assert (process.loss(learned, x0, noise, t) == 0).all()
    torch.testing.assert_close(process.loss(learned + 2, x0, noise, t), torch.full_like(t, 4))


@pytest.mark.parametrize("kind", PROCESSES.values(), ids=PROCESSES.keys())
def test_posterior_is_conditioning_of_gaussians(kind):
    """x_s and x_t given x_0: condition their joint normal distribution on x_t."""
    process = kind()
    t, s = torch.tensor([1.0, 0.6, 0.2]).double(), torch.tensor([0.9, 0.3, 0.0]).double()
    ratio = process.alpha(t) / process.alpha(s)
    # x_t = ratio x_s + noise, so cov(x_s, x_t | x_0) = ratio sigma_s^2
    gain = ratio * process.sigma(s) ** 2 / process.sigma(t) ** 2
    x0, x = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    a_t, a_s, g = (w[:, None, None] for w in (process.alpha(t), process.alpha(s), gain))
    back = process.posterior(t, s)
    torch.testing.assert_close(back.mean(x0, x), a_s * x0 + g * (x - a_t * x0))
    torch.testing.assert_close(back.variance, process.sigma(s) ** 2 * (1 - gain * ratio))
    torch.testing.assert_close(back.added, process.sigma(t) ** 2 - ratio**2 * process.sigma(s) ** 2)


def test_network_on_another_path_is_refused():
    net, x, y = random_net(TINY), torch.randn(2, 6, 3), torch.tensor([0, 1])
    noisy = random_net(replace(TINY, target="eps"))
    for wrong, process in ((noisy, Linear()), (net, Linear("eps")), (net, Diffusion("v"))):
        with pytest.raises(ValueError, match="belongs to"):
            euler(wrong, x, time_grid(2, process=process), y, process)
        with pytest.raises(ValueError, match="belongs to"):
            Guided(wrong, 1.5, process=process)
    check_process(net, Cosine())  # as the reference samples


def test_predicted_noise_says_nothing_at_the_end():
    net, x = random_net(replace(TINY, target="eps")), torch.randn(2, 6, 3)
    with pytest.raises(ValueError, match=r"0\.\.0\.999"):
        euler(net, x, time_grid(2), None, Linear("eps"))
    assert time_grid(2, process=Linear("eps")).tolist() == [0.999, 0.4995, 0]


@pytest.mark.parametrize("change", [{"target": "velocity"}, {"interpolant": "straight"}])
def test_unknown_process_is_refused(change):
    with pytest.raises(UserError, match="is none of"):
        replace(TINY, **change)


def test_times_lie_in_the_unit_interval():
    generator = torch.Generator().manual_seed(0)
    for kind in PROCESSES.values():
        for draw in TIME_LAWS.values():
            t = draw(kind(), 2000, generator, torch.device("cpu"))
            assert t.shape == (2000,)
            assert t.min() >= 0 and t.max() <= 1
            assert abs(t.median() - 0.5) < 0.05


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_shifted_times_are_those_of_other_noise_levels(shift):
    """On straight lines sigma / alpha grows by the factor, in training and in sampling."""
    plain, moved = Linear(), Linear(shift=shift)
    t = torch.rand(50, dtype=torch.float64)
    there = moved.snap(t)
    torch.testing.assert_close(there / (1 - there), shift * t / (1 - t))
    grid, usual = time_grid(7, process=moved), time_grid(7, process=plain)
    torch.testing.assert_close(grid, shift * usual / (1 + (shift - 1) * usual))
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    noise_predicting = Linear("eps", shift=shift)
    assert time_grid(7, process=noise_predicting)[0] <= noise_predicting.latest
    config = replace(TINY, time_shift=shift)
    assert config.process == moved
    drawn = []

    def network(x, t, y):
        drawn.append(t)
        return torch.zeros_like(x)

    latents, y = torch.zeros(4000, 2, 3), None
    for process in (plain, moved):
        training_loss(network, process, latents, y, config, rng=torch.Generator().manual_seed(0))
    found, expected = (t.double() / (1 - t.double()) for t in drawn[::-1])
    torch.testing.assert_close(found, shift * expected, rtol=1e-4, atol=0)


def test_contrast_takes_away_the_loss_for_another_sample():
    x0, noise, t = torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.rand(4)
    guess = torch.randn(4, 2, 3)

    def network(x, t, y):
        return guess

    found = denoising_loss(network, Linear(), x0, None, t, noise, contrast=0.1)
    for i in range(4):
        own, other = noise[i] - x0[i], noise[i - 1] - x0[i - 1]
        expected = (guess[i] - own).square().mean() - 0.1 * (guess[i] - other).square().mean()
        torch.testing.assert_close(found[i], expected)


def test_label_dropout():
    y = torch.arange(4).repeat(500)
    dropped = drop_labels(y, 4, 0.1, torch.Generator().manual_seed(0))
    assert 0.07 < (dropped == 4).float().mean() < 0.13
    assert torch.equal(torch.where(dropped == 4, y, dropped), y)
    assert torch.equal(drop_labels(y, 4, 0.0), y)
    assert (drop_labels(y, 4, 1.0) == 4).all()


def test_training_loss_follows_its_generator_and_trains():
    x0, y = torch.randn(32, 6, 3) + 2, torch.arange(32) % 4
    net = SiT(TINY)
    generator = torch.Generator().manual_seed(0)
    start = training_loss(net, Linear(), x0, y, TINY, "uniform", generator)
    generator.manual_seed(0)
    assert torch.equal(start, training_loss(net, Linear(), x0, y, TINY, "uniform", generator))

    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(60):
        loss = training_loss(net, Linear(), x0, y, TINY, "lognormal", generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < start.mean() / 2
