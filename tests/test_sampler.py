"""Samplers and guidance on a Gaussian, where velocity, flow and marginals are known exactly."""

from types import SimpleNamespace

import pytest
import torch

from softvq.errors import UserError
from softvq.generator.guidance import Guided
from softvq.generator.path import PATHS
from softvq.generator.sampler import (
    SAMPLERS,
    NoiseStreams,
    euler,
    euler_maruyama,
    heun,
    time_grid,
)
from softvq.generator.transformer import SiT, SiTConfig

MEAN, STD = 1.5, 0.4


class GaussianNet:
    """The exact velocity for data N(MEAN, STD^2): the flow is x_0 = MEAN + STD * x_1."""

    def __init__(self, path):
        self.path = path

    def __call__(self, x, t, y):
        t = t[0]
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        alpha_rate, sigma_rate = self.path.alpha_rate(t), self.path.sigma_rate(t)
        variance = alpha**2 * STD**2 + sigma**2
        slope = (alpha * alpha_rate * STD**2 + sigma * sigma_rate) / variance
        return alpha_rate * MEAN + slope * (x - alpha * MEAN)


class LabelNet:
    """Predicts its label, whatever x and t, and counts the samples that it is asked about."""

    def __init__(self, num_classes=10):
        self.config = SimpleNamespace(num_classes=num_classes)
        self.samples = self.calls = 0

    def __call__(self, x, t, y):
        assert x.shape[0] == t.shape[0] == y.shape[0]
        self.samples += x.shape[0]
        self.calls += 1
        return y[:, None, None].to(x).expand(x.shape)


def tiny_net(num_classes=4):
    torch.manual_seed(0)
    net = SiT(SiTConfig(6, 3, num_classes, width=16, depth=2, heads=2)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_order_of_convergence(sampler, order, path):
    x = torch.randn(64, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([32, 64, 128, 256, 512, 1024])
    errors = torch.tensor(
        [
            (sampler(GaussianNet(path), x, time_grid(int(n)), None) - (MEAN + STD * x)).abs().max()
            for n in steps
        ]
    )
    # log error = -order log n + constant, by least squares
    logs = torch.stack([steps.double().log(), torch.ones(len(steps))], 1).double()
    slope = torch.linalg.lstsq(logs, errors.double().log()[:, None]).solution[0].item()
    assert slope == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_euler_maruyama_reaches_the_distribution(path):
    generator = torch.Generator().manual_seed(0)

    def noise(step=0):
        return torch.randn(5000, 2, 2, generator=generator, dtype=torch.float64)

    x = euler_maruyama(GaussianNet(path), noise(), time_grid(200, 0.01), None, path, noise)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert x.std().item() == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_any_sampler_path_and_guidance(sampler, path, interval):
    seen = []
    x, y = torch.randn(3, 6, 3), torch.tensor([0, 1, 4])
    out = sampler(
        Guided(tiny_net(), 1.5, interval),
        x,
        time_grid(4),
        y,
        path=path,
        callback=lambda step, t, state: seen.append((step, t, state)),
    )
    assert out.shape == x.shape and out.dtype == x.dtype and out.isfinite().all()
    assert [(step, t) for step, t, _ in seen] == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]
    assert torch.equal(seen[-1][2].float(), out)


def test_guidance_is_the_formula():
    x, t, y = torch.zeros(3, 2, 2), torch.tensor([0.1, 0.3, 0.7]), torch.tensor([1, 2, 3])
    net = LabelNet()
    guided = Guided(net, 1.5)(x, t, y)
    torch.testing.assert_close(guided[:, 0, 0], 10 + 1.5 * (y - 10.0))
    assert (net.samples, net.calls) == (6, 1)

    inside = Guided(net, 1.5, (0.3, 0.7))(x, t.double(), y)  # both ends belong to the interval
    torch.testing.assert_close(inside[:, 0, 0], torch.tensor([1, -2.0, -0.5]))
    assert (net.samples, net.calls) == (11, 2)


def test_guidance_on_a_net_with_gradient():
    net, x = tiny_net(), torch.randn(2, 6, 3)
    t, y = torch.tensor([0.4, 0.6]), torch.tensor([0, 3])
    conditional, null = net(x, t, y), net(x, t, torch.tensor([4, 4]))
    torch.testing.assert_close(Guided(net, 2.0)(x, t, y), null + 2 * (conditional - null))
    Guided(net, 2.0)(x, t, y).sum().backward()
    assert net.y_embedder.embedding_table.weight.grad[4].abs().sum() > 0


def test_guidance_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="unconditional"):
        Guided(LabelNet(num_classes=0), 1.5)
    Guided(LabelNet(num_classes=0), 1.0)
    for interval in [(0.7, 0.2), (-0.1, 0.5), (0.5, 1.1)]:
        with pytest.raises(UserError, match="interval"):
            Guided(LabelNet(), 1.5, interval)


@pytest.mark.parametrize(
    ("scale", "interval", "per_image"),
    [
        (1.0, (0.0, 1.0), 10),
        (1.5, (0.0, 1.0), 20),
        (1.5, (0.0, 0.7), 17),  # the grid's 0.7 .. 0.1 are inside, 1.0, 0.9 and 0.8 are not
        (1.5, (0.41, 0.44), 10),
    ],
)
def test_cost_in_network_evaluations(scale, interval, per_image):
    samples = []
    net = tiny_net()
    net.register_forward_hook(lambda module, args, output: samples.append(args[0].shape[0]))
    y = torch.tensor([0, 1, 2])
    euler(Guided(net, scale, interval), torch.randn(3, 6, 3), time_grid(10), y)
    assert len(samples) == 10
    assert sum(samples) == 3 * per_image


def test_cost_of_heun():
    net = LabelNet()
    heun(net, torch.randn(3, 2, 2), time_grid(10), torch.tensor([0, 1, 2]))
    assert net.calls == 19


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_images_whatever_the_batch_split(name):
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])

    def sample(indices):
        streams = NoiseStreams(7, indices)
        return SAMPLERS[name](
            Guided(tiny_net(), 1.5),
            streams.draw(6, 3),
            time_grid(5),
            labels[list(indices)],
            noise=lambda step: streams.draw(6, 3),
        )

    whole = sample(range(7))
    for parts in ([range(3), range(3, 7)], [range(6), range(6, 7)], [[i] for i in range(7)]):
        # Noise is identical; matrix products of another batch size may round differently.
        torch.testing.assert_close(torch.cat([sample(p) for p in parts]), whole, atol=1e-5, rtol=0)


def test_noise_streams():
    streams = NoiseStreams(0, range(4))
    first, second = streams.draw(50, 8), streams.draw(50, 8)
    assert first.shape == (4, 50, 8)
    assert not torch.equal(first, second)
    assert abs(first.mean()) < 0.1 and abs(first.std() - 1) < 0.1
    again = NoiseStreams(0, [2, 0])
    assert torch.equal(again.draw(50, 8), first[[2, 0]])
    assert torch.equal(again.draw(50, 8), second[[2, 0]])
    # neither the next seed nor the next index repeats a stream
    others = torch.cat([NoiseStreams(1, range(4)).draw(50, 8), first]).flatten(1)
    assert (torch.corrcoef(others) - torch.eye(8)).abs().max() < 0.25


def test_time_grid():
    torch.testing.assert_close(time_grid(4), torch.tensor([1, 0.75, 0.5, 0.25, 0]).double())
    torch.testing.assert_close(time_grid(3, last=0.04), torch.tensor([1, 0.52, 0.04, 0]).double())
    assert time_grid(1).tolist() == [1, 0]
    for steps, last in [(0, None), (4, 0.0), (4, 1.0)]:
        with pytest.raises(ValueError):
            time_grid(steps, last)


@pytest.mark.parametrize("times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [[1.0, 0.0]]])
def test_bad_time_grids_are_refused(times):
    with pytest.raises(ValueError, match="times"):
        euler(LabelNet(), torch.zeros(1, 2, 2), torch.tensor(times), torch.tensor([0]))
