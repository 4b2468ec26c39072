"""MAR: what the network sees, what its loss learns, and its sampler on exact Gaussians."""

import math
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from contract import GeneratorContract
from torch.nn.parallel import DistributedDataParallel

from softvq.errors import UserError
from softvq.generator import mar
from softvq.generator.config import MARConfig
from softvq.generator.mar import MAR, draw_hidden, known_counts, sample, take, training_loss
from softvq.generator.sampler import SAMPLERS, NoiseStreams, time_grid

HEUN = SAMPLERS["heun"]

# Of dopri5 an image is drawn in steps that the whole batch chose.
FIXED_STEPS = {
    name: sampler for name, sampler in SAMPLERS.items() if name != "dopri5" and not sampler.leaps
}

TINY = MARConfig(
    tokens=6, channels=3, num_classes=4, width=16, depth=2, heads=2, head_width=24, head_depth=2,
    buffer=3, repeats=2,
)  # fmt: skip
NULL = TINY.num_classes


def tiny_net(opened: bool = True, **changes) -> MAR:
    """``opened``: with random weights instead of the zero gates and output of a new network."""
    torch.manual_seed(0)
    net = MAR(MARConfig(**(vars(TINY) | changes))).eval()
    if opened:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 6, 3, generator=draws(7)), torch.arange(count) % 4


class Recorder:
    """A network that keeps what it was called with and what it said."""

    def __init__(self, net):
        self.net = net

    def __call__(self, x, t, y, **seen):
        self.x, self.t, self.y, self.seen = x, t, y, seen
        self.prediction = self.net(x, t, y, **seen)
        return self.prediction


# ---- network


class TestContract(GeneratorContract):
    config = TINY

    def predict(self, network, rows, y):
        x0, _ = batch()
        order = torch.rand(5, 6, generator=draws()).argsort(1)
        noisy, t = torch.randn(5, 6, 3, generator=draws(1)), torch.rand(5, 3, generator=draws(2))
        rows, weight = list(rows), network.mask_token
        shown, hidden = order[rows].split(3, 1)
        out = network(
            noisy[rows, :3].reshape(-1, 1, 3).to(weight), t[rows].flatten().to(weight), y,
            take(x0[rows], shown).to(weight), shown, hidden,
        )  # fmt: skip
        return out.reshape(len(rows), 3, 3)


@pytest.mark.parametrize("visible", [0, 1, 4, 5])
def test_forward_is_condition_then_head_token_by_token(visible):
    net, (x0, y) = tiny_net().double(), batch()
    order = torch.rand(5, 6, generator=draws()).argsort(1)
    shown, hidden = order.split([visible, 6 - visible], 1)
    values = take(x0, shown).double()
    z = net.condition(values, shown, hidden, y)
    assert z.shape == (5, 6 - visible, 16)
    noisy, t = torch.randn(5, 6 - visible, 2, 3).double(), torch.rand(5, 6 - visible, 2).double()
    v = net(noisy.reshape(-1, 1, 3), t.flatten(), y, values, shown, hidden)
    v = v.reshape(noisy.shape)
    for b in range(5):
        for m in range(6 - visible):
            for r in range(2):
                one = net.head(noisy[b, m, r][None, None], t[b, m, r][None], z[b, m][None])
                torch.testing.assert_close(v[b, m, r], one[0, 0])


def test_order_of_the_tokens_does_not_matter_and_positions_do():
    net, (x0, y) = tiny_net().double(), batch()
    x0 = x0.double()
    shown, hidden = torch.tensor([[4, 0, 2]] * 5), torch.tensor([[5, 1, 3]] * 5)
    z = net.condition(take(x0, shown), shown, hidden, y)
    shuffled = net.condition(take(x0, shown[:, [2, 0, 1]]), shown[:, [2, 0, 1]], hidden, y)
    torch.testing.assert_close(shuffled, z)
    turned = net.condition(take(x0, shown), shown, hidden[:, [1, 2, 0]], y)
    torch.testing.assert_close(turned, z[:, [1, 2, 0]])
    moved = net.condition(take(x0, shown), shown[:, [2, 0, 1]], hidden, y)
    assert (moved - z).abs().max() > 1e-3
    assert (z[:, 0] - z[:, 1]).abs().max() > 1e-3


def test_wrong_shapes_are_refused():
    net, (x0, y) = tiny_net(), batch()
    order = torch.arange(6).expand(5, -1)
    x, t = torch.zeros(5 * 4, 1, 3), torch.zeros(5 * 4)
    net(x, t, y, x0[:, :2], order[:, :2], order[:, 2:])
    for values, shown, hidden in (
        (x0[:, :2], order[:, :2], order[:, 3:]),
        (x0, order[:, :2], order[:, 2:]),
        (x0[:, :2, :2], order[:, :2], order[:, 2:]),
        (x0, order, order[:, :0]),
    ):
        with pytest.raises(ValueError, match="expected the values"):
            net(x, t, y, values, shown, hidden)


def test_configs_that_do_not_fit_are_refused():
    for changes, message in (
        ({"heads": 3}, "divisible by heads 3"),
        ({"buffer": 0}, "buffer must be above 0"),
        ({"label_dropout": 1.5}, "label_dropout must be in 0 .. 1"),
        ({"num_classes": -1}, "num_classes must be 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            MARConfig(**(vars(TINY) | changes))


@pytest.mark.parametrize(("size", "millions"), [("B", 208), ("L", 479), ("H", 943)])
def test_published_parameter_counts(size, millions):
    # For 256 tokens x 16 channels. The published output layer is twice as wide (it predicts a
    # variance too), its head has affine norms, and its null class is one more row, as here.
    with torch.device("meta"):
        net = MAR(MARConfig(256, 16, 1000, buffer=64, **MARConfig.SIZES[size]))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(millions * 1e6, rel=0.003)


# ---- training


def test_positions_of_one_image_are_all_different():
    net = tiny_net()
    order = torch.tensor([[4, 1, 5, 0, 3, 2]])
    values = torch.randn(1, 2, 3)
    net.condition(values, order[:, :2], order[:, 2:]).sum().backward()
    tables = net.encoder_positions, net.decoder_positions, net.head_positions
    rows = [table.weight.grad.any(1).nonzero().flatten().tolist() for table in tables]
    assert rows == [[0, 1, 2, 3 + 1, 3 + 4], list(range(9)), [0, 2, 3, 5]]


def test_mask_ratio_is_the_truncated_normal():
    generator = draws()
    counts = torch.tensor([draw_hidden(1000, generator) for _ in range(4000)]).double() / 1000
    assert counts.min() >= 0.7 and counts.max() <= 1

    # E of a normal cut to [a, b]: mu + sigma (phi(a) - phi(b)) / (Phi(b) - Phi(a)); and ceil's 1/2.
    def density(z):
        return math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    mass = 0.5 - 0.5 * (1 + math.erf(-1.2 / math.sqrt(2)))
    expected = 1 + 0.25 * (density(-1.2) - density(0)) / mass + 0.0005
    assert counts.mean().item() == pytest.approx(expected, abs=4 * 0.085 / math.sqrt(4000))


def test_network_sees_every_token_once_and_each_hidden_one_at_several_times():
    recorder, (x0, y) = Recorder(tiny_net()), batch()
    hides = set()
    for seed in range(20):
        training_loss(recorder, x0, y, TINY, rng=draws(seed))
        shown, hidden = recorder.seen["shown"], recorder.seen["hidden"]
        assert torch.equal(
            torch.cat([shown, hidden], 1).sort(1).values, torch.arange(6).repeat(5, 1)
        )
        for b in range(5):
            assert torch.equal(recorder.seen["visible"][b], x0[b, shown[b]])
        assert recorder.x.shape == (5 * hidden.shape[1] * TINY.repeats, 1, 3)
        assert len(set(recorder.t.tolist())) == recorder.x.shape[0]
        hides.add(hidden.shape[1])
    assert hides == {5, 6}  # ceil(6 r) for r in [0.7, 1]
    assert len({tuple(row) for row in hidden.tolist()}) > 1  # an order for each image


@pytest.fixture
def pure_noise(monkeypatch):
    """Training times of 1, where noisy tokens hold nothing of the data."""
    monkeypatch.setitem(mar.TIME_LAWS, "one", lambda process, n, rng, device: torch.ones(n))


def test_hidden_values_do_not_leak(pure_noise, monkeypatch):
    monkeypatch.setattr(mar, "draw_hidden", lambda tokens, rng: 4)
    recorder, (x0, y) = Recorder(tiny_net()), batch()

    def prediction(latents):
        training_loss(recorder, latents, y, TINY, "one", draws())
        return recorder.prediction

    before = prediction(x0)
    hidden, shown = recorder.seen["hidden"], recorder.seen["shown"]
    other = x0.scatter(1, hidden[..., None].expand(-1, -1, 3), 100.0)
    assert torch.equal(prediction(other), before)
    other = x0.scatter(1, shown[..., None].expand(-1, -1, 3), 1.0)
    assert (prediction(other) - before).abs().unflatten(0, (5, -1)).amax((1, 2, 3)).min() > 1e-4


def test_loss_is_of_hidden_tokens_only():
    x0, y = batch()

    def exact(x, t, y, visible, shown, hidden):
        # e - x_0 from x_t = (1 - t) x_0 + t e, with the true x_0 of the token in each row
        truth = take(x0, hidden).repeat_interleave(TINY.repeats, 1).reshape(-1, 1, 3)
        return (x - truth) / t[:, None, None]

    def blind(x, t, y, visible, shown, hidden):
        return torch.zeros_like(x)

    assert training_loss(exact, x0, y, TINY, rng=draws()).max() < 1e-8
    recorder = Recorder(blind)
    loss = training_loss(recorder, x0, y, TINY, rng=draws())
    assert loss.shape == (5,) and loss.min() > 0
    gone = x0.scatter(1, recorder.seen["shown"][..., None].expand(-1, -1, 3), math.nan)
    assert torch.equal(training_loss(blind, gone, y, TINY, rng=draws()), loss)


def test_loss_is_reproducible_from_either_generator():
    net, (x0, y) = tiny_net(), batch()
    one, two, other = (training_loss(net, x0, y, TINY, rng=draws(s)) for s in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other)
    torch.manual_seed(3)
    one = training_loss(net, x0, y, TINY)
    torch.manual_seed(3)
    assert torch.equal(training_loss(net, x0, y, TINY), one)


@pytest.mark.parametrize("hide", [6, 4])
def test_distributed_training_reaches_every_parameter(hide, monkeypatch):
    monkeypatch.setattr(mar, "draw_hidden", lambda tokens, rng: hide)
    x0, y = batch()
    alone, net = tiny_net(), tiny_net()
    training_loss(alone, x0, y, TINY, rng=draws()).mean().backward()
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(net)
        for _ in range(2):  # a parameter without gradient fails the second forward
            net.zero_grad()
            training_loss(wrapped, x0, y, TINY, rng=draws()).mean().backward()
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(alone.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_bfloat16_autocast_stays_close():
    net, (x0, y) = tiny_net(), batch()
    exact = training_loss(net, x0, y, TINY, rng=draws())
    with torch.autocast("cpu", torch.bfloat16):
        rough = training_loss(net, x0, y, TINY, rng=draws())
        x = sample(net, NoiseStreams(0, range(5)), y, time_grid(4), 3, guidance=2.0)
    assert rough.dtype == x.dtype == torch.float32 and x.isfinite().all()
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)
    rough.mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_training_learns_how_tokens_depend_on_each_other(monkeypatch):
    """All tokens of an image are near +1 or near -1: one tells the others."""
    spread, tokens, channels = 0.1, 8, 2

    def images(count):
        sign = torch.randint(0, 2, (count, 1, 1)) * 2.0 - 1
        return sign + spread * torch.randn(count, tokens, channels)

    def floor(known_sign):
        """Least possible error of a token's velocity, with or without knowing the sign."""
        x0, e = images(20000)[:, :1], torch.randn(20000, 1, channels)
        t = mar.TIME_LAWS["lognormal"](mar.LINEAR, 20000, None, torch.device("cpu"))[:, None, None]
        x = (1 - t) * x0 + t * e
        variance = (1 - t) ** 2 * spread**2 + t**2

        def velocity(mean):  # E[e - x_0 | x_t] for data N(mean, spread^2)
            return -mean + (t - (1 - t) * spread**2) / variance * (x - (1 - t) * mean)

        plus = torch.sigmoid(2 * (1 - t) * x.sum(-1, keepdim=True) / variance)
        expected = plus * velocity(1) + (1 - plus) * velocity(-1)
        if known_sign:
            expected = velocity(x0.mean(-1, keepdim=True).sign())
        return (e - x0 - expected).square().mean().item()

    torch.manual_seed(0)
    config = MARConfig(tokens, channels, 0, 32, 1, 2, head_width=48, head_depth=2, buffer=2)
    net = MAR(config)
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3, betas=(0.9, 0.95))
    # Without a falling rate the last steps' noise decides.
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200)
    for _ in range(200):
        optimizer.zero_grad()
        training_loss(net, images(32), None, config).mean().backward()
        optimizer.step()
        rate.step()

    monkeypatch.setattr(mar, "draw_hidden", lambda tokens, rng: 6)
    with torch.no_grad():
        loss = training_loss(net, images(1000), None, config).mean().item()
    # Below the second floor is only who reads the other tokens. How far below 200 steps come (here
    # to 0.3 .. 0.4 of it) is the rounding's, which differs with threads and processors.
    assert floor(known_sign=True) < loss < 0.6 * floor(known_sign=False)

    # In one iteration tokens are independent and agree on no sign; one by one they do.
    agree = {}
    for iterations in (1, tokens):
        x = sample(
            net, NoiseStreams(0, range(100)), None, time_grid(12), iterations, SAMPLERS["heun"]
        )
        agree[iterations] = (x.mean(-1).sign().sum(1).abs() == tokens).double().mean().item()
    assert agree[1] < 0.2 and agree[tokens] > 0.7


# ---- the order and its schedule


def test_cosine_schedule_predicts_every_token_once():
    for tokens in range(1, 65):
        for iterations in range(1, tokens + 1):
            known = known_counts(tokens, iterations)
            assert len(known) == iterations + 1 and (known[0], known[-1]) == (0, tokens)
            hidden = tokens
            for k, (before, after) in enumerate(pairwise(known), 1):
                assert after > before
                # the published rule: the cosine, at least one less than before, at least one left
                cosine = math.floor(tokens * math.cos(math.pi / 2 * k / iterations))
                hidden = max(1, min(hidden - 1, cosine)) if k < iterations else 0
                assert tokens - after == hidden
    assert known_counts(64, 8) == [0, 2, 5, 11, 19, 29, 40, 52, 64]
    for iterations in (0, 65):
        with pytest.raises(UserError, match="iterations must be 1..64"):
            known_counts(64, iterations)


class EchoNet:
    """A stand-in for MAR: z is the label, the velocity is z. It records what it is asked."""

    def __init__(self, tokens, channels=2, num_classes=4):
        self.config = SimpleNamespace(tokens=tokens, channels=channels, num_classes=num_classes)
        self.mask_token = torch.zeros(1, 1, 1, dtype=torch.float64)
        self.asked = []

    def condition(self, visible, shown, hidden, y):
        self.asked.append((visible, shown, hidden))
        y = torch.full((hidden.shape[0],), self.config.num_classes) if y is None else y
        return y[:, None, None].double().expand(-1, hidden.shape[1], 1)

    def head(self, x, t, z):
        return z[:, None].expand(x.shape)


def test_orders_are_uniform():
    net = EchoNet(3)
    sample(net, NoiseStreams(0, range(1200)), None, time_grid(1), 3)
    counts = Counter(tuple(row) for row in net.asked[0][2].tolist())
    assert len(counts) == 6  # 200 of each, standard deviation 13
    assert all(abs(count - 200) < 4 * 13 for count in counts.values())


@pytest.mark.parametrize("iterations", [1, 4, 9])
def test_each_iteration_sees_exactly_what_was_drawn(iterations):
    net = EchoNet(9)
    x = sample(net, NoiseStreams(0, range(4)), None, time_grid(3), iterations)
    assert len(net.asked) == iterations
    order = net.asked[0][2]
    for (visible, shown, hidden), known in zip(
        net.asked, known_counts(9, iterations), strict=False
    ):
        assert torch.equal(torch.cat([shown, hidden], 1), order) and shown.shape[1] == known
        assert torch.equal(visible, take(x, shown))


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_noise_belongs_to_image_and_position(iterations):
    # A new network's velocity is zero, so the noise itself comes out.
    streams = NoiseStreams(3, range(5))
    _, start = streams.draw(6), streams.draw(6, 3)
    x = sample(tiny_net(opened=False), NoiseStreams(3, range(5)), None, time_grid(2), iterations)
    assert torch.equal(x, start)


@pytest.mark.parametrize("sampler", FIXED_STEPS.values(), ids=FIXED_STEPS)
def test_images_do_not_depend_on_the_batch(sampler):
    net = tiny_net().double()
    y = torch.tensor([0, 3, 1, 2, 0])

    def draw(indices):
        return sample(
            net, NoiseStreams(5, indices), y[list(indices)], time_grid(4, 0.1), 4,
            sampler, guidance=1.5,
        )  # fmt: skip

    together = draw(range(5))
    for split in ([[0], [1], [2], [3], [4]], [[0, 1], [2, 3, 4]], [[4, 2, 0], [1, 3]]):
        for indices in split:
            some = draw(indices)
            torch.testing.assert_close(some, together[indices], rtol=0, atol=1e-11)
            assert torch.equal(some.float(), together[indices].float())


# ---- sampling in closed form


class GaussianNet(EchoNet):
    """The exact MAR of a Gaussian: z is mean and covariance of a token given the known ones."""

    def __init__(self, mean, covariance):
        super().__init__(*mean.shape, num_classes=0)
        self.mean, self.covariance = mean, covariance

    def condition(self, visible, shown, hidden, y):
        channels = self.config.channels
        rows = []
        for values, known, unknown in zip(visible, shown, hidden, strict=True):
            k, u = (
                (i[:, None] * channels + torch.arange(channels)).flatten() for i in (known, unknown)
            )
            gain = self.covariance[u][:, k] @ torch.linalg.inv(self.covariance[k][:, k])
            mean = self.mean[unknown] + (gain @ (values - self.mean[known]).flatten()).reshape(
                -1, channels
            )
            covariance = self.covariance[u][:, u] - gain @ self.covariance[k][:, u]
            blocks = covariance.reshape(len(unknown), channels, len(unknown), channels)
            own = blocks[torch.arange(len(unknown)), :, torch.arange(len(unknown))]
            rows.append(torch.cat([mean, own.flatten(1)], 1))
        return torch.stack(rows)

    def head(self, x, t, z):
        channels = self.config.channels
        mean, own = z[:, :channels], z[:, channels:].unflatten(1, (channels, channels))
        t = t.double()[:, None, None]
        eye = torch.eye(channels, dtype=torch.float64)
        slope = (t * eye - (1 - t) * own) @ torch.linalg.inv((1 - t) ** 2 * own + t**2 * eye)
        offset = x[:, 0] - (1 - t[:, 0]) * mean
        return (-mean + (slope @ offset[..., None])[..., 0])[:, None]


TOKENS, CHANNELS = 4, 2


def gaussian() -> GaussianNet:
    size = TOKENS * CHANNELS
    root = torch.randn(size, size, generator=draws(1), dtype=torch.float64) / math.sqrt(size)
    mean = torch.randn(TOKENS, CHANNELS, generator=draws(2), dtype=torch.float64)
    return GaussianNet(mean, root @ root.T + 0.2 * torch.eye(size))


class UnitStreams:
    """One order for all images; noise 0 for the first and one unit vector for each of the others.

    Everything here is linear in the noise, so these images are the columns of the linear map.
    """

    def draw(self, *shape):
        size = TOKENS * CHANNELS
        if len(shape) == 1:
            return torch.tensor([0.3, -1.0, 2.0, 0.1]).expand(1 + size, -1)
        units = torch.eye(size).reshape(size, TOKENS, CHANNELS)
        return torch.cat([torch.zeros_like(units[:1]), units])


def blocks_only(covariance):
    block = torch.ones(CHANNELS, CHANNELS, dtype=torch.float64)
    return covariance * torch.block_diag(*[block] * TOKENS)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_one_by_one_gives_the_joint_gaussian_and_all_at_once_the_marginals(temperature):
    net = gaussian()
    for iterations, covariance in (
        (TOKENS, net.covariance),
        (1, blocks_only(net.covariance)),
    ):
        x = sample(
            net,
            UnitStreams(),
            None,
            time_grid(200),
            iterations,
            SAMPLERS["heun"],
            temperature=temperature,
        )
        torch.testing.assert_close(x[0], net.mean)
        columns = (x[1:] - x[0]).flatten(1)
        torch.testing.assert_close(
            columns.T @ columns, temperature**2 * covariance, rtol=0, atol=1e-3
        )


@pytest.mark.parametrize("iterations", [1, 2, 4])
@pytest.mark.parametrize("sampler", FIXED_STEPS.values(), ids=FIXED_STEPS)
def test_temperature_scales_the_deviation_from_the_mean(sampler, iterations):
    net, times = gaussian(), time_grid(10, 0.05)

    def deviation(temperature):
        x = sample(
            net,
            NoiseStreams(0, range(6)),
            None,
            times,
            iterations,
            sampler,
            temperature=temperature,
        )
        return x - net.mean

    full = deviation(1.0)
    assert full.abs().max() > 0.5
    torch.testing.assert_close(deviation(0.6), 0.6 * full)
    assert deviation(0.0).abs().max() < 1e-12


def test_stochastic_sampler_reaches_the_distribution():
    net = gaussian()
    x = sample(
        net,
        NoiseStreams(0, range(1500)),
        None,
        time_grid(50, 0.02),
        TOKENS,
        SAMPLERS["euler_maruyama"],
    ).flatten(1)
    assert (x.mean(0) - net.mean.flatten()).abs().max() < 0.12
    assert (x.T.cov() - net.covariance).abs().max() < 0.15


@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("iterations", [1, 3, 7])
def test_guidance_follows_its_schedule(schedule, iterations):
    net, y = EchoNet(7), torch.tensor([0, 1, 2])
    streams = NoiseStreams(0, range(3))
    order, start = streams.draw(7).argsort(1), streams.draw(7, 2)
    x = sample(
        net, NoiseStreams(0, range(3)), y, time_grid(5), iterations, guidance=3.0, schedule=schedule
    )
    velocity = start - x  # it is constant in time
    for before, after in pairwise(known_counts(7, iterations)):
        scale = 1 + 2 * after / 7 if schedule == "linear" else 3.0
        expected = 4 + scale * (y.double() - 4)
        now = take(velocity, order[:, before:after])
        torch.testing.assert_close(now, expected[:, None, None].expand(now.shape))


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize(("guidance", "copies"), [(1.0, 1), (2.5, 2)])
@pytest.mark.parametrize(("sampler", "per_token"), [("euler", 5), ("heun", 9)])
def test_cost_in_network_evaluations(sampler, per_token, guidance, copies, conditional):
    net, count = tiny_net(), Counter()
    for name, module in (
        ("encoder", net.encoder_blocks[0]),
        ("decoder", net.decoder_blocks[0]),
        ("head", net.head),
    ):
        module.register_forward_hook(
            lambda module, inputs, output, name=name: count.update({name: inputs[0].shape[0]})
        )
    y = torch.tensor([0, 1, 2]) if conditional else None
    copies = copies if conditional else 1  # without labels there is nothing to guide by
    sample(net, NoiseStreams(0, range(3)), y, time_grid(5), 4, SAMPLERS[sampler], guidance=guidance)
    assert count == {
        "encoder": 3 * 4 * copies, "decoder": 3 * 4 * copies, "head": 3 * 6 * per_token * copies
    }  # fmt: skip


def test_sampling_refuses_what_it_cannot_do():
    streams, y = NoiseStreams(0, range(2)), torch.tensor([0, 1])
    for options, message in (
        ({"iterations": 7}, "iterations must be 1..6"),
        ({"iterations": 0}, "iterations must be 1..6"),
        ({"iterations": 2, "schedule": "cosine"}, "none of linear, constant"),
        ({"iterations": 2, "temperature": -0.1}, "temperature must be 0 or more"),
    ):
        with pytest.raises(UserError, match=message):
            sample(tiny_net(), streams, y, time_grid(2), **options)
    with pytest.raises(UserError, match="unconditional"):
        sample(tiny_net(num_classes=0), streams, None, time_grid(2), 2, guidance=2.0)
