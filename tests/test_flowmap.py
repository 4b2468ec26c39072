"""Few-step generators on Gaussians, where the average velocity is known exactly."""

import math
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from contract import GeneratorContract, seeded
from torch import nn

from softvq.errors import UserError
from softvq.generator.config import FewStepConfig, FlowMapConfig, SiTConfig
from softvq.generator.families import draw
from softvq.generator.flowmap import (
    RULES,
    FlowMap,
    Path,
    SelfGuidance,
    Told,
    draw_guidance,
    draw_times,
    flow_map_loss,
)
from softvq.generator.guidance import Guided
from softvq.generator.objective import Frozen
from softvq.generator.process import LINEAR
from softvq.generator.sampler import SAMPLERS, NoiseStreams, time_grid
from softvq.generator.transformer import SiT

SMALL = FlowMapConfig(6, 3, 4, width=16, depth=2, heads=2)
STD = torch.tensor([0.4, 1.5], dtype=torch.float64)  # of two channels
MEANS = torch.tensor([[1.5, 0.0], [-1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)  # and null class
NULL = 2


def marginal(t, mean):
    """Mean and deviation [B, 1, 2] of x_t for data N(mean [B, 2], STD^2)."""
    t = t[:, None]
    return ((1 - t) * mean)[:, None], (((1 - t) * STD) ** 2 + t**2).sqrt()[:, None]


def velocity(x, t, y):
    """Exact, of class y."""
    mean, std = marginal(t, MEANS[y])
    t, excess = t[:, None, None], (x - mean) / std**2
    data = MEANS[y][:, None] + (1 - t) * STD**2 * excess
    return t * excess - data


def flow(x, t, s, mean):
    """Where the path of data N(mean, STD^2) through x at t is at s."""
    (mean_t, std_t), (mean_s, std_s) = marginal(t, mean), marginal(s, mean)
    return mean_s + std_s / std_t * (x - mean_t)


class ExactMap:
    """The exact average velocity, guided on an interval: three pieces of path."""

    config = SimpleNamespace(num_classes=NULL, process=LINEAR, label_dropout=0.0, most_guidance=3.0)

    def __call__(self, x, t, y, s=None, told=None):
        told = told or SelfGuidance.none(t)
        own, null = MEANS[y], MEANS[torch.full_like(y, NULL)]
        guided = null + told.scale[:, None] * (own - null)
        s = t if s is None else s
        near = (t - s) < 1e-9  # of which the limit is taken
        state, now = x, t
        high = torch.where(told.high < 1, told.high, 2.0)  # no kink at t = 1
        for mean, end in ((own, high), (guided, told.low), (own, torch.zeros_like(t))):
            then = torch.minimum(now, torch.maximum(end, s))
            state, now = flow(state, now, then, mean), then
        there = velocity(x, t, y)
        inside = told.at(t)[:, None, None]
        there = torch.where(inside == 1, there, velocity(x, t, torch.full_like(y, NULL)))
        there = there + torch.where(inside == 1, 0.0, inside) * (velocity(x, t, y) - there)
        span = torch.where(near, 1.0, t - s)[:, None, None]
        return torch.where(near[:, None, None], there, (x - state) / span)


class ExactTeacher:
    config = ExactMap.config

    def __call__(self, x, t, y):
        return velocity(x, t, y)


def samples(count, seed=0):
    y = torch.randint(0, 2, (count,), generator=seeded(seed))
    noise = torch.randn(count, 1, 2, dtype=torch.float64, generator=seeded(seed + 1))
    return MEANS[y][:, None] + STD * noise, y


@pytest.mark.parametrize(("rule", "error"), [("jvp", 1e-9), ("difference", 5e-3), ("step", 1e-3)])
def test_each_rule_has_the_average_velocity_as_its_fixed_point(rule, error):
    x, y = samples(64)
    t, s = (z.double() for z in (torch.linspace(0.3, 1, 64), torch.linspace(0, 0.29, 64)))
    net, v = ExactMap(), velocity(x, t, y)
    path = Path(x, t, s, v, v, lambda x, t, s: net(x, t, y, s), lambda x, t: velocity(x, t, y))
    found = RULES[rule](path)
    torch.testing.assert_close(found, net(x, t, y, s), atol=error, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_taught_network_has_no_loss_where_it_is_exact(rule):
    """Also where guidance sets in and ends on the way."""
    x0, y = samples(512)
    for whole in (0.0, 1.0):
        objective = FewStepConfig(rule=rule, whole=whole)
        how = {"objective": objective, "teacher": ExactTeacher()}
        loss = flow_map_loss(ExactMap(), x0, y, ExactMap.config, "uniform", seeded(0), **how)
        # The others straddle an end of the interval now and then, where they err.
        good = loss < (1e-12 if rule == "jvp" else 1e-4)
        assert good.double().mean() > (0.999 if rule == "jvp" else 0.9)


@pytest.mark.parametrize("rule", RULES)
def test_the_data_teach_the_average_velocity_too(rule):
    """The exact network's targets are right on average: no better one fits them by least squares.

    A step of any linear correction in (1, x) finds nothing to correct.
    """
    count = 40_000
    x0, y = samples(count)
    config = SimpleNamespace(num_classes=NULL, label_dropout=0.0, most_guidance=3.0)
    seen = {}

    class Corrected(ExactMap):
        def __call__(self, x, t, y, s=None, told=None):
            out = super().__call__(x, t, y, s, told)
            if torch.is_grad_enabled():
                weight = torch.zeros(2, dtype=torch.float64, requires_grad=True)
                seen["weight"] = weight
                out = out + weight[0] + weight[1] * x
            return out

    objective = FewStepConfig(velocity="data", rule=rule)
    flow_map_loss(Corrected(), x0, y, config, "uniform", seeded(0), objective).mean().backward()
    assert seen["weight"].grad.abs().max() < 0.02


def test_times_and_guidance_are_as_the_recipe_says():
    objective = FewStepConfig(anchors=0.25, whole=0.5)
    s, t = draw_times(8000, objective, "lognormal", seeded(0), torch.device("cpu"))
    assert (s <= t).all() and (s[:6000] < t[:6000]).all() and torch.equal(s[6000:], t[6000:])
    assert (t[:6000] == 1).float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (s[:6000] == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    told = draw_guidance(8000, 8.0, seeded(0), torch.device("cpu"))
    # P(scale < x) = log x / log 8 for a density of 1 / scale
    for scale in (2.0, 4.0):
        share = (told.scale < scale).float().mean().item()
        assert share == pytest.approx(math.log2(scale) / 3, abs=0.03)
    assert ((told.low <= 0.5) & (told.high >= 0.5)).all()
    assert torch.equal(told.at(torch.full((8000,), 0.5)), told.scale)


class Affine(nn.Module):
    """u = a x + b with weights that are learned functions of t, s and the label: all it takes."""

    config = SimpleNamespace(num_classes=NULL, process=LINEAR, label_dropout=0.0, most_guidance=1.0)

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 4)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, x, t, y, s=None, told=None):
        one_of_two = nn.functional.one_hot(y.clamp(max=1), 2).to(t)
        numbers = torch.cat([torch.stack([t, t if s is None else s], 1), one_of_two], 1)
        a, b = self.mlp(numbers)[:, None].chunk(2, -1)
        return a * x + b

    def average(self, x, t, s, y):
        return self(x.float(), t.float(), y, s.float())


@pytest.mark.parametrize(
    ("velocity", "rule"), [("teacher", "step"), ("teacher", "jvp"), ("data", "difference")]
)
def test_a_network_learns_the_closed_form(velocity, rule):
    """One step then draws the data's mean and covariance, and many steps the same pictures."""
    torch.manual_seed(0)
    net, steps = Affine(), 800
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    rate = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, steps)
    how = {"objective": FewStepConfig(velocity, rule)}
    if velocity == "teacher":
        how["teacher"] = Float(ExactTeacher())
    for step in range(steps):
        x0, y = samples(256, step)
        loss = flow_map_loss(net, x0.float(), y, net.config, "uniform", seeded(step), **how)
        loss.mean().backward()
        adam.step()
        adam.zero_grad()
        rate.step()
    noise, (x0, y) = torch.randn(4000, 1, 2, generator=seeded(0)), samples(4000)
    t = torch.linspace(0.1, 1, 4000)
    x = LINEAR.interpolate(x0.float(), noise, t)
    for s in (torch.zeros(4000), t / 2):
        with torch.no_grad():
            exact = ExactMap()(x.double(), t.double(), y, s.double())
            found = net(x, t, y, s)
        error = ((found - exact).square().mean() / exact.square().mean()).item()
        print(f"{velocity}, {rule}: {error:.4f} of the variance")
        assert error < 0.06
    one, four = (SAMPLERS["flow_map"](net, noise, time_grid(n), y) for n in (1, 4))
    assert (one - four).square().mean() < 0.02 * four.square().mean()
    for drawn in (one.double(), four.double()):
        for label in range(2):
            of_class = drawn[y == label, 0]
            torch.testing.assert_close(of_class.mean(0), MEANS[label], atol=0.15, rtol=0)
            covariance = torch.cov(of_class.T)
            torch.testing.assert_close(covariance, torch.diag(STD**2), atol=0.1, rtol=0.2)


class Float:
    """A network in float64, asked and answering in float32."""

    def __init__(self, network):
        self.network, self.config = network, network.config

    def __call__(self, x, t, y):
        return self.network(x.double(), t.double(), y).float()


# The network


class TestFlowMap(GeneratorContract):
    config = SMALL

    def predict(self, network, rows, y):
        x = torch.randn(5, 6, 3, generator=seeded(1)).to(next(network.parameters()))
        t = torch.linspace(0.1, 1, 5).to(x)
        rows = list(rows)
        return network(x[rows], t[rows], y, t[rows] / 2).detach()

    def test_bfloat16_autocast_stays_close(self):
        """Against what is predicted: a loss between two of one network's answers is next to 0."""
        network, y = self.network(), torch.arange(5) % 4
        exact = self.loss(network, y)
        with torch.autocast("cpu", torch.bfloat16):
            rough = self.loss(network, y)
        assert rough.dtype == torch.float32
        size = self.predict(network, range(5), y).square().mean()
        torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.02 * size)


def random_net(kind=FlowMap, config=SMALL):
    torch.manual_seed(0)
    net = kind(config).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def a_teacher():
    shape = {"width": 16, "depth": 2, "heads": 2}
    return random_net(SiT, SiTConfig(6, 3, 4, **shape))


def test_it_starts_as_its_teacher():
    teacher, net = a_teacher(), FlowMap(SMALL).eval()
    net.start_from(teacher)
    x, y, t = torch.randn(5, 6, 3), torch.arange(5), torch.rand(5)
    told = draw_guidance(5, 4.0, None, x.device)
    assert torch.equal(net(x, t, y, t / 3, told), teacher(x, t, y))
    streams = [NoiseStreams(0, range(5)) for _ in range(2)]
    how = {"sampler": "heun", "steps": 3, "guidance": 1.0}
    y = y % 4
    assert torch.equal(
        *(draw(n, st, y, **how) for n, st in zip((net, teacher), streams, strict=True))
    )
    for changes, message in (({"width": 32}, "width 16, and 32"), ({"num_classes": 3}, "classes")):
        with pytest.raises(UserError, match=message):
            FlowMap(replace(SMALL, **changes)).start_from(teacher)
    for changes in ({"target": "eps"}, {"interpolant": "cosine"}):
        with pytest.raises(UserError, match="velocities on straight lines"):
            net.start_from(SiT(replace(teacher.config, **changes)))


def test_its_velocity_is_the_step_of_no_length():
    net, x, y, t = random_net(), torch.randn(5, 6, 3), torch.arange(5), torch.rand(5)
    assert torch.equal(net(x, t, y), net(x, t, y, t))
    assert not torch.allclose(net(x, t, y), net(x, t, y, t / 2))
    assert torch.equal(Told(net)(x, t, y), net(x, t, y))


def test_an_interval_means_nothing_without_guidance():
    net, x, y, t = random_net(), torch.randn(5, 6, 3), torch.arange(5), torch.rand(5)
    asked = Told(net, 1.0, (0.2, 0.6))(x, t, y)
    assert torch.equal(asked, net(x, t, y))
    assert not torch.allclose(Told(net, 2.0, (0.2, 0.6))(x, t, y), Told(net, 2.0)(x, t, y))


def test_guidance_costs_no_evaluation_and_may_differ_by_picture():
    net, rows = random_net(), []
    net.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[0]))
    y = torch.tensor([0, 1, 2])
    scales = torch.tensor([1.0, 2.0, 3.0])
    for steps in (1, 2, 4):
        rows.clear()
        drawn = draw(net, NoiseStreams(0, range(3)), y, steps=steps, guidance=scales)
        assert rows == [3] * steps
        alone = draw(net, NoiseStreams(0, [2]), y[2:], steps=steps, guidance=3.0)
        torch.testing.assert_close(drawn[2:], alone, atol=1e-4, rtol=1e-4)


def test_what_was_not_learned_is_refused():
    net, y = random_net(), torch.tensor([0])
    for scale in (0.5, 4.1, torch.tensor([9.0]), float("nan")):
        with pytest.raises(UserError, match="has learned 1 to 4"):
            draw(net, NoiseStreams(0, [0]), y, guidance=scale)
    with pytest.raises(UserError, match=r"interval 0\.7\.\.0\.2"):
        draw(net, NoiseStreams(0, [0]), y, interval=(0.7, 0.2))
    with pytest.raises(UserError, match="no option 'bad'"):
        draw(net, NoiseStreams(0, [0]), y, bad=net)
    with pytest.raises(UserError, match="most_guidance must be 1 or more"):
        replace(SMALL, most_guidance=0.5)


def test_a_teacher_is_no_part_of_what_learns():
    teacher = Frozen(a_teacher())
    assert deepcopy({"teacher": teacher})["teacher"] is teacher
    x0, y = torch.randn(8, 6, 3), torch.arange(8) % 4
    net = FlowMap(SMALL)
    flow_map_loss(net, x0, y, SMALL, "uniform", teacher=teacher).mean().backward()
    assert all(p.grad is None for p in teacher.network.parameters())


def test_guidance_is_learned():
    """What a student draws at a scale is what its teacher draws guided by it, after few steps: a
    code in which scales differ too little leaves it alike at all of them."""
    torch.manual_seed(0)
    teacher, config = a_teacher(), SMALL
    torch.manual_seed(1)
    student = FlowMap(config)
    student.start_from(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), 2e-3)
    x0 = torch.randn(256, 6, 3, generator=seeded(1))
    y = torch.arange(256) % 4
    for step in range(150):
        rows = torch.randint(256, (64,), generator=seeded(step))
        loss = flow_map_loss(student, x0[rows], y[rows], config, "uniform", teacher=Frozen(teacher))
        loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    t = torch.full((256,), 0.7)
    x = torch.lerp(x0, torch.randn(256, 6, 3, generator=seeded(2)), 0.7)
    with torch.no_grad():
        wanted = Guided(teacher, 4.0)(x, t, y) - teacher(x, t, y)
        found = Told(student, 4.0)(x, t, y) - Told(student)(x, t, y)
    slope = (found * wanted).sum() / wanted.square().sum()
    assert 0.5 < slope < 1.5
