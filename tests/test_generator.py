"""SiT, its paths and its losses, and the golden vectors of the reference for all of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from softvq.errors import UserError
from softvq.generator.guidance import Guided
from softvq.generator.path import (
    PATHS,
    TIMES,
    Linear,
    drop_labels,
    training_loss,
    velocity_loss,
)
from softvq.generator.sampler import euler, euler_maruyama, heun, time_grid
from softvq.generator.transformer import SiT, SiTConfig

TINY = SiTConfig(tokens=6, channels=3, num_classes=4, width=16, depth=2, heads=2)

# The first file is in the repository, the other only where the acceptance material lies beside it.
HERE = Path(__file__).parent / "golden" / "sit_d2_h64.safetensors"
BESIDE = Path(__file__).parents[2] / "shared" / "golden" / "model"
GOLDEN = [HERE, BESIDE / "sit_d2_h64.safetensors", BESIDE / "sit_d2_h64_naive_qknorm.safetensors"]


class Golden:
    """One golden file: its tensors, and a comparison by its own tolerances."""

    def __init__(self, path: Path):
        with safe_open(path, "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}
            metadata = file.metadata()
        if "tolerances" in metadata:
            self.tolerances = json.loads(metadata["tolerances"])
        else:
            index = json.loads((path.parent / "INDEX.json").read_text())[path.stem]["tensors"]
            self.tolerances = {k: v["tol_abs"] for k, v in index.items() if "tol_abs" in v}
        official = json.loads(metadata["config"])
        config = SiTConfig(
            tokens=official["T"],
            channels=official["C"],
            num_classes=1000,
            width=official["hid"],
            depth=official["depth"],
            heads=official["heads"],
            qk_norm=official["qk_norm"],
        )
        self.net = SiT(config).eval()
        self.positions = self.net.pos_embed.clone()
        state = {k.removeprefix("sd."): v for k, v in self.tensors.items() if k.startswith("sd.")}
        self.net.load_state_dict(state)

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def check(self, key: str, value: torch.Tensor) -> None:
        assert value.shape == self[key].shape
        error = (value.double() - self[key].double()).abs().max().item()
        assert error <= self.tolerances[key], (
            f"{key}: off by {error}, {self.tolerances[key]} allowed"
        )


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def golden(request):
    if not request.param.is_file():
        pytest.skip(f"{request.param} is not here")
    return Golden(request.param)


def test_golden_forward(golden):
    assert (golden.positions - golden["sd.pos_embed"]).abs().max() < 1e-6
    with torch.no_grad():
        golden.check("out.forward", golden.net(golden["in.x"], golden["in.t"], golden["in.y"]))
        golden.check("out.t_embed", golden.net.t_embedder(golden["in.t"]))


@pytest.mark.parametrize("name", PATHS)
def test_golden_losses_and_gradients(golden, name):
    path = PATHS[name]
    uniform, lognormal = golden["in.time"].flatten(), golden["in.lognormal"].flatten().exp()
    for times, t in {"uniform": uniform, "lognormal": path.time_at(lognormal)}.items():
        loss = velocity_loss(
            golden.net, path, golden["in.x0"], golden["in.y_train"], t, golden["in.noise"]
        )
        golden.check(f"out.siloss_{name}_{times}", loss)
        if times == "uniform":
            golden.net.zero_grad()
            loss.mean().backward()
    kept = [key for key in golden.tensors if key.startswith(f"grad.{name}.")]
    assert kept
    for key in kept:
        golden.check(key, golden.net.get_parameter(key.removeprefix(f"grad.{name}.")).grad)


def test_golden_ode_samplers(golden):
    net, x, y, times = golden.net, golden["in.xT"], golden["in.y_gen"], time_grid(8)
    golden.check("out.euler8_cfg1.0", euler(net, x, times, y))
    golden.check("out.euler8_cfg1.5_heun0", euler(Guided(net, 1.5), x, times, y))
    golden.check("out.euler8_cfg1.5_heun1", heun(Guided(net, 1.5), x, times, y))
    interval = Guided(net, 1.5, (0.2, 0.7))
    golden.check("out.euler8_cfg1.5_low0.2_high0.7", euler(interval, x, times, y))


def test_golden_sde_sampler(golden):
    x, y, times = golden["in.xT"], golden["in.y_gen"], time_grid(8, last=0.04)

    def sample(net, path):
        return euler_maruyama(net, x, times, y, PATHS[path], noise=lambda i: golden["in.eps"][i])

    guided = Guided(golden.net, 1.5)
    golden.check("out.em8_cfg1.0_linear", sample(golden.net, "linear"))
    golden.check("out.em8_cfg1.5_linear", sample(guided, "linear"))
    golden.check("out.em8_cfg1.5_cosine", sample(guided, "cosine"))
    # The reference's own script evaluates the network twice as often for this same result.
    golden.check("out.em8_cfg1.5_linear_generate_sit_4n", sample(guided, "linear"))


def random_net(config: SiTConfig = TINY) -> SiT:
    """A net with every weight drawn, for adaLN-Zero starts as the zero function."""
    torch.manual_seed(0)
    net = SiT(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return net


def test_new_net_predicts_zero():
    out = SiT(TINY)(torch.randn(2, 6, 3), torch.rand(2), torch.tensor([0, 4]))
    assert out.shape == (2, 6, 3)
    assert (out == 0).all()


def test_net_reads_time_label_and_position():
    net, x = random_net(), torch.randn(1, 6, 3)
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
    net = random_net()
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


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_path_formulas(path):
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.alpha(ends), 1 - ends)
    torch.testing.assert_close(path.sigma(ends), ends)
    torch.testing.assert_close(path.time_at(path.sigma(t) / path.alpha(t)), t)

    x0, noise = torch.randn(2, 7, 4, 3, dtype=torch.float64)
    step = 1e-5
    later, earlier = (path.interpolate(x0, noise, t + h) for h in (step, -step))
    v = path.velocity(x0, noise, t)
    torch.testing.assert_close(v, (later - earlier) / (2 * step))
    # Given x0, x_t is a Gaussian of deviation sigma: its score is -noise / sigma.
    score = path.score_from_velocity(v, path.interpolate(x0, noise, t), t)
    torch.testing.assert_close(score, -noise / path.sigma(t)[:, None, None])


def test_times_lie_in_the_unit_interval():
    generator = torch.Generator().manual_seed(0)
    for path in PATHS.values():
        for draw in TIMES.values():
            t = draw(path, 2000, generator, torch.device("cpu"))
            assert t.shape == (2000,)
            assert t.min() >= 0 and t.max() <= 1
            assert abs(t.median() - 0.5) < 0.05


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
