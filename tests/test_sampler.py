"""Samplers and guidance on a Gaussian, where velocity, flow and marginals are known exactly."""

import sys
from types import SimpleNamespace

import pytest
import torch

from softvq.errors import UserError
from softvq.generator.config import SiTConfig
from softvq.generator.diffusion import Diffusion
from softvq.generator.guidance import Guided
from softvq.generator.process import PROCESSES, TARGETS
from softvq.generator.sampler import SAMPLERS, NoiseStreams, time_grid
from softvq.generator.transformer import SiT

STD = 0.4
MEANS = torch.tensor([1.5, -1.0, 0.5], dtype=torch.float64)  # of two classes and the null class
NULL = 2
EVERY_PROCESS = {
    f"{name}-{target}": make(target)
    for target in TARGETS
    for name, make in {
        **PROCESSES,
        "ddpm-linear": lambda target: Diffusion(target, "linear"),
        "ddpm-cosine": lambda target: Diffusion(target, "cosine"),
    }.items()
}
ODES = {"euler": 1, "heun": 2, "ddim": 1, "dpm_solver": 2}
SDES = {"euler_maruyama": 1, "ddpm": 1}
LEAPS = [name for name, sampler in SAMPLERS.items() if sampler.leaps]


class GaussianNet:
    """The exact prediction for class y of data N(MEANS[y] + shift, STD^2)."""

    def __init__(self, process, shift=0.0):
        self.config = SimpleNamespace(num_classes=NULL, process=process)
        self.shift = shift

    def __call__(self, x, told, y):
        process = self.config.process
        t = (told + 1) / process.steps if isinstance(process, Diffusion) else told
        mean = (MEANS[y] + self.shift)[:, None, None]
        alpha, sigma = (w[:, None, None] for w in (process.alpha(t), process.sigma(t)))
        excess = (x - alpha * mean) / (alpha**2 * STD**2 + sigma**2)
        return process.regressed(mean + alpha * STD**2 * excess, sigma * excess, t)


class GaussianMap(GaussianNet):
    """The same, and where its path leads: to another Gaussian, x - mean growing as its deviation.

    For a process of continuous time.
    """

    def average(self, x, t, s, y):
        process = self.config.process
        (mean_t, std_t), (mean_s, std_s) = (marginal(process, z, MEANS[y[0]]) for z in (t, s))
        x_s = mean_s[:, None, None] + (std_s / std_t)[:, None, None] * (x - mean_t[:, None, None])
        return (x - x_s) / (t - s)[:, None, None]


def marginal(process, t, mean):
    """Mean and standard deviation of x_t."""
    return process.alpha(t) * mean, (process.alpha(t) ** 2 * STD**2 + process.sigma(t) ** 2).sqrt()


def moments(sampler, net, times, process, mean=MEANS[0], label=0):
    """Exact mean and standard deviation of what a sampler makes of x ~ its marginal at times[0].

    On a Gaussian every sampler is affine in the start and in each step's noise. So one row starts
    at zero, one at one, and one for each step has that step's noise alone: no random numbers.
    """
    steps = times.shape[0] - 1
    x = torch.zeros(steps + 2, 1, 1, dtype=torch.float64)
    x[1] = 1

    def noise(step):
        fresh = torch.zeros_like(x)
        fresh[2 + step] = 1
        return fresh

    y = torch.full((steps + 2,), label)
    out = sampler(net, x, times, y, process, noise).flatten()
    start_mean, start_std = marginal(process, times[0], mean)
    gains = out[1:] - out[0]
    variance = (gains[0] * start_std) ** 2 + gains[1:].square().sum()
    return out[0] + gains[0] * start_mean, variance.sqrt()


def slope(steps, errors):
    """Of log error over log steps, by least squares."""
    steps, errors = torch.tensor(steps).double(), torch.tensor(errors).double()
    logs = torch.stack([steps.log(), torch.ones_like(steps)], 1)
    return torch.linalg.lstsq(logs, errors.log()[:, None]).solution[0].item()


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


def log_snr_grid(process, steps):
    """Times evenly in log(alpha / sigma), from nearly noise to nearly data."""
    ends = torch.tensor([0.999, 0.001], dtype=torch.float64)
    first, last = (process.alpha(ends) / process.sigma(ends)).log()
    return process.time_at(torch.linspace(-first, -last, steps + 1, dtype=torch.float64).exp())


@pytest.mark.parametrize(
    ("name", "key"),
    [(name, key) for name in [*ODES, *SDES] for key in ("linear-v", "cosine-v")]
    # The others step in t, in which a diffusion's rate is a staircase.
    + [(name, "ddpm-linear-eps") for name in ("ddim", "dpm_solver", "ddpm")],
)
def test_order_of_convergence(name, key):
    """Error of the mean and standard deviation of the samples: weak order for the SDEs.

    Evenly in t, or for the solver that steps in it and on a diffusion in log(alpha / sigma).
    """
    order, process = (ODES | SDES)[name], EVERY_PROCESS[key]
    even = name != "dpm_solver" and key != "ddpm-linear-eps"
    steps, errors = [24, 48, 96, 192, 384], []
    for n in steps:
        times = time_grid(n) if even else log_snr_grid(process, n)
        mean, std = moments(SAMPLERS[name], GaussianNet(process), times, process)
        wanted = marginal(process, times[-1], MEANS[0])
        errors.append(max(abs(mean - wanted[0]), abs(std - wanted[1])))
    print(f"{name} on {key}: order {-slope(steps, errors):.2f}")
    assert slope(steps, errors) == pytest.approx(-order, abs=0.15)


def test_dopri5_keeps_its_tolerance():
    pytest.importorskip("torchdiffeq")
    x = torch.linspace(-2, 2, 16, dtype=torch.float64)[:, None, None]
    y = torch.zeros(16).long()
    for process in EVERY_PROCESS.values():
        times, states = time_grid(4, process=process), []

        def keep(step, t, state, states=states):
            states.append(state)

        out = SAMPLERS["dopri5"](GaussianNet(process), x, times, y, process, callback=keep)
        assert torch.equal(states[-1], out) and len(states) == 4
        mean, std = marginal(process, times[0], MEANS[0])
        for t, state in zip(times[1:], states, strict=True):
            mean_then, std_then = marginal(process, t, MEANS[0])
            expected = mean_then + std_then * (x - mean) / std
            # A diffusion's rate is a staircase, which steps may skip over.
            smooth = not isinstance(process, Diffusion) and process.target != "x0"
            torch.testing.assert_close(state, expected, atol=5e-4 if smooth else 3e-3, rtol=0)


def test_dopri5_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(UserError, match=r"pip install 'softvq\[ode\]'"):
        SAMPLERS["dopri5"](LabelNet(), torch.zeros(1, 2, 2), time_grid(2), torch.tensor([0]))


# Guidance, and the mean that it moves samples of class 0 to: predictions are affine in the mean.
GUIDANCES = {
    "none": (lambda net, process: net, MEANS[0]),
    "class": (lambda net, process: Guided(net, 1.5, process=process), MEANS[NULL] + 1.5),
    "per_sample": (
        lambda net, process: Guided(net, torch.tensor([1.5]).double(), process=process),
        MEANS[NULL] + 1.5,
    ),
    "auto": (
        lambda net, process: Guided(
            net, 1.5, bad=GaussianNet(process, shift=-0.8), process=process
        ),
        MEANS[0] - 0.8 + 1.5 * 0.8,
    ),
    "interval": (lambda net, process: Guided(net, 1.5, (0.0, 0.5), process=process), None),
}


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_sampler_any_path_any_guidance(sampler, guidance):
    """The whole product, against the Gaussian that each must arrive at."""
    if sampler == "dopri5":
        pytest.importorskip("torchdiffeq")
    wrap, mean = GUIDANCES[guidance]
    if SAMPLERS[sampler].leaps:
        pytest.skip("guidance is an input of the network: tests/test_flowmap.py")
    for name, process in EVERY_PROCESS.items():
        times = time_grid(30, process=process)
        if guidance == "interval":  # class 0's own flow, and the guided one from the middle on
            middle = times[(times <= 0.5).nonzero()[0, 0] - 1]
            own, std_then = marginal(process, middle, MEANS[0])
            other, _ = marginal(process, middle, MEANS[NULL] + 1.5)
            mean = MEANS[NULL] + 1.5 + STD / std_then * (own - other)
        net = wrap(GaussianNet(process), process)
        found_mean, found_std = moments(SAMPLERS[sampler], net, times, process)
        if guidance == "interval" and sampler in SDES:  # its noise forgets some of the beginning
            assert min(mean, MEANS[NULL] + 1.5) - 0.15 < found_mean < MEANS[NULL] + 1.65, name
            continue
        assert abs(found_mean - mean) < 0.15, name
        assert abs(found_std - STD) < 0.15, name


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("sampler", LEAPS)
def test_leaps_are_exact(sampler, process, steps):
    """One step, two, four: each draws the data's mean and deviation."""
    process = process()
    net, times = GaussianMap(process), time_grid(steps)
    mean, std = moments(SAMPLERS[sampler], net, times, process)
    torch.testing.assert_close(torch.stack([mean, std]), torch.tensor([MEANS[0], STD]).double())


@pytest.mark.parametrize("sampler", LEAPS)
def test_leaps_need_average_velocities(sampler):
    with pytest.raises(UserError, match="for few-step generators"):
        SAMPLERS[sampler](LabelNet(), torch.zeros(1, 2, 2), time_grid(2), torch.tensor([0]))


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())
@pytest.mark.parametrize("sampler", [each for each in SAMPLERS.values() if not each.leaps])
def test_callbacks_see_every_step(sampler, process, interval):
    if sampler is SAMPLERS["dopri5"]:
        pytest.importorskip("torchdiffeq")
    seen = []
    x, y = torch.randn(3, 6, 3), torch.tensor([0, 1, 4])
    out = sampler(
        Guided(tiny_net(), 1.5, interval),
        x,
        time_grid(4),
        y,
        process=process(),
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


def test_guidance_of_one_scale_per_sample():
    x, t, y = torch.zeros(3, 2, 2), torch.tensor([0.1, 0.3, 0.7]), torch.tensor([1, 2, 3])
    net = LabelNet()
    guided = Guided(net, torch.tensor([1.5, 1.0, 3.0]))(x, t, y)
    torch.testing.assert_close(guided[:, 0, 0], torch.tensor([-3.5, 2.0, -11.0]))
    assert (net.samples, net.calls) == (5, 1)  # a scale of 1 costs nothing


def test_autoguidance_is_the_formula():
    x, t, y = torch.zeros(3, 2, 2), torch.tensor([0.1, 0.3, 0.7]), torch.tensor([1, 2, 3])
    net, halved = LabelNet(num_classes=0), LabelNet()

    def bad(x, t, y):
        return 0.5 * halved(x, t, y)

    guided = Guided(net, 2.0, (0.3, 0.7), bad=bad)(x, t, y)
    torch.testing.assert_close(guided[:, 0, 0], torch.tensor([1, 1 + 2.0, 1.5 + 3.0]))
    assert (net.samples, halved.samples) == (3, 2)
    Guided(net, 2.0, (0.8, 0.9), bad=bad)(x, t, y)
    assert (net.calls, halved.calls) == (2, 1)


@pytest.mark.parametrize("shape", [(3, 6, 3), (3, 3, 4, 4)])
def test_guidance_leaves_a_learned_variance(shape):
    axis = 1 if len(shape) == 4 else -1

    def net(x, t, y):
        mean = y.reshape(-1, *[1] * (x.ndim - 1)).to(x).expand(x.shape)
        return torch.cat([mean, 100 + mean], axis)

    net.config = SimpleNamespace(num_classes=10)
    t, y = torch.tensor([0.1, 0.3, 0.7]), torch.tensor([1, 2, 3])
    out = Guided(net, 1.5)(torch.zeros(shape), t, y)
    mean, variance = out.chunk(2, axis)
    torch.testing.assert_close(mean.flatten(1)[:, 0], 10 + 1.5 * (y - 10.0))
    torch.testing.assert_close(variance.flatten(1)[:, 0], 100.0 + y)


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
    SAMPLERS["euler"](Guided(net, scale, interval), torch.randn(3, 6, 3), time_grid(10), y)
    assert len(samples) == 10
    assert sum(samples) == 3 * per_image


@pytest.mark.parametrize(("interval", "per_image"), [((0.0, 1.0), 20), ((0.0, 0.7), 17)])
def test_cost_on_a_diffusion(interval, per_image):
    """The interval is in t, though the network is told timesteps: 1000, 900, .. 100."""
    process, told = Diffusion(), []

    def net(x, t, y):
        told.append(t)
        return torch.zeros_like(x)

    net.config = SimpleNamespace(num_classes=4)
    guided = Guided(net, 1.5, interval, process=process)
    times = torch.arange(10, -1, -1) / 10
    SAMPLERS["ddim"](guided, torch.randn(3, 6, 3), times, torch.tensor([0, 1, 2]), process)
    assert sum(t.shape[0] for t in told) == 3 * per_image
    first = torch.stack([t[0] for t in told])
    torch.testing.assert_close(
        first, 100.0 * torch.arange(10, 0, -1).double() - 1, atol=1e-4, rtol=0
    )


def test_cost_of_heun():
    net = LabelNet()
    SAMPLERS["heun"](net, torch.randn(3, 2, 2), time_grid(10), torch.tensor([0, 1, 2]))
    assert net.calls == 19


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in LEAPS])
def test_same_images_whatever_the_batch_split(name):
    if name == "dopri5":
        pytest.importorskip("torchdiffeq")
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
        # Noise is identical; matrix products of another batch size may round differently, and
        # dopri5 chooses its steps for a whole batch.
        atol = 1e-3 if name == "dopri5" else 1e-5
        torch.testing.assert_close(torch.cat([sample(p) for p in parts]), whole, atol=atol, rtol=0)


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


@pytest.mark.parametrize(
    "times", [[1.0], [0.0, 1.0], [1.1, 0.0], [1.0, -0.1], [1.0, 0.5, 0.5, 0.0], [[1.0, 0.0]]]
)
def test_bad_time_grids_are_refused(times):
    with pytest.raises(ValueError, match="times"):
        SAMPLERS["euler"](LabelNet(), torch.zeros(1, 2, 2), torch.tensor(times), torch.tensor([0]))
