"""DiT and what it shares with SiT: golden vectors, layouts, options, maps, and the families."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from contract import GeneratorContract, seeded
from safetensors.torch import load_file, save_file
from vectors import BESIDE, HERE, GoldenNet, found, named, random_net, timesteps_of

from softvq.errors import UserError
from softvq.generator import mar
from softvq.generator.config import DiTConfig, FlowMapConfig, SiTConfig
from softvq.generator.diffusion import SCHEDULES, Diffusion
from softvq.generator.families import GENERATORS, draw, family_of, from_net, some_tokens, to_net
from softvq.generator.guidance import Guided
from softvq.generator.picture import Picture, from_patches, picture_grid, to_patches
from softvq.generator.process import TIME_LAWS, channel_axis, denoising_loss, split_channels
from softvq.generator.sampler import SAMPLERS, NoiseStreams, time_grid
from softvq.generator.transformer import DiT, SiT, hidden_states
from softvq.layers import SwiGLU, rotary_angles, rotate
from softvq.models import open_generator

TINY = DiTConfig(tokens=6, channels=3, num_classes=4, width=16, depth=2, heads=2)
TINY_SIT = SiTConfig(tokens=6, channels=3, num_classes=4, width=16, depth=2, heads=2)
MAP = DiTConfig(16, 3, 4, width=16, depth=2, heads=2, patch=2)
TINY_MAR = mar.MARConfig(6, 3, 4, width=16, depth=1, heads=2, head_width=16, head_depth=1, buffer=2)


@pytest.fixture(scope="module", params=found("dit_*"), ids=named)
def golden(request):
    return GoldenNet(request.param, DiT)


def test_golden_forward(golden):
    assert (golden.positions - golden["sd.pos_embed"]).abs().max() < 1e-6
    with torch.no_grad():
        golden.check("out.forward", golden.net(golden["in.x"], golden["in.t"], golden["in.y"]))


def test_golden_guidance(golden):
    """The reference's batch is the samples twice; we need one, and leave the null's variance."""
    net, x, y = golden.net, golden["in.xT"], golden["in.y_gen"]
    t, null = torch.full((len(x),), 333), torch.full((len(x),), net.config.num_classes)
    with torch.no_grad():
        guided = Guided(net, 1.5, process=net.config.process)(x, t, y)
        _, variance = split_channels(net(x, t, null), x)
    mean, _ = split_channels(guided, x)
    unguided = torch.cat([mean, variance], channel_axis(x))
    golden.check("out.forward_with_cfg", torch.cat([guided, unguided]))


def test_golden_samplers(golden):
    """On any schedule and spacing, of any scale: a result's name says which."""
    x, y, calls = golden["in.xT"], golden["in.y_gen"], []
    made = golden.results(
        r"out\.(?P<sampler>ddpm|ddim)(?P<spacing>(ddim)?\d+(,\d+)*)_(?P<schedule>\w+)"
        r"_cfg(?P<scale>[\d.]+)"
    )
    for key, given in made.items():
        process = Diffusion(schedule=given["schedule"])
        guided = Guided(golden.net, float(given["scale"]), process=process)
        timesteps = timesteps_of(given["spacing"]).flip(0)
        times = torch.cat([(timesteps.double() + 1) / process.steps, torch.zeros(1)])
        calls.clear()
        hook = golden.net.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
        sampler = SAMPLERS[given["sampler"]]
        noise = lambda step: golden["in.eps"][step][: len(x)]  # noqa: E731
        golden.check(key, sampler(guided, x, times, y, process, noise))
        hook.remove()
        copies = 2 if guided.guides else 1
        assert calls == [copies * len(x)] * len(timesteps)


def training_labels(golden: GoldenNet) -> torch.Tensor:
    """Not in the file, but which rows of the table have a gradient is; their order is tried."""
    table = golden["grad.y_embedder.embedding_table.weight"]
    touched = table.abs().sum(1).nonzero().flatten().tolist()
    x0, noise, t = golden["in.x0"], golden["in.noise"], (golden["in.t_train"].double() + 1) / 1000
    orders = itertools.product(touched, repeat=len(x0))
    candidates = [torch.tensor(y) for y in orders if set(y) == set(touched)]
    with torch.no_grad():
        losses = [denoising_loss(golden.net, Diffusion(), x0, y, t, noise) for y in candidates]
    errors = [(loss - golden["out.train_linear_loss"]).abs().max() for loss in losses]
    return candidates[int(torch.stack(errors).argmin())]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_golden_losses_and_gradients(golden, schedule):
    process, net = Diffusion(schedule=schedule), golden.net
    x0, noise, y = golden["in.x0"], golden["in.noise"], training_labels(golden)
    for name, k in {"train_t0": torch.zeros(len(x0)), "train": golden["in.t_train"]}.items():
        t = (k.double() + 1) / 1000
        loss = denoising_loss(net, process, x0, y, t, noise)
        golden.check(f"out.{name}_{schedule}_loss", loss)
        with torch.no_grad():
            x = process.interpolate(x0, noise, t).float()
            own, variance = split_channels(net(x, k, y), x)
        golden.check(f"out.{name}_{schedule}_vb", process.bound(own, variance, x0, noise, t))
        mse = (own - noise).square().flatten(1).mean(1)
        golden.check(f"out.{name}_{schedule}_mse", mse)
    if schedule == "linear":
        net.zero_grad()
        loss.mean().backward()
        for key in golden.starting("grad."):
            golden.check(f"grad.{key}", net.get_parameter(key).grad)


@pytest.mark.parametrize("kind", [SiT, DiT])
def test_official_checkpoint(kind, tmp_path):
    folder = BESIDE / f"hub_{kind.__name__.lower()}_d2_h64"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    golden = GoldenNet(BESIDE / f"{folder.name.removeprefix('hub_')}.safetensors", kind)
    net = open_generator(folder)
    assert not net.training and net.config == replace(golden.net.config, label_dropout=0.1)
    assert type(net) is kind
    with torch.no_grad():
        golden.check("out.forward", net(golden["in.x"], golden["in.t"], golden["in.y"]))
    with pytest.raises(UserError, match=r"not in the layout of softvq.*softvq\.open_generator"):
        kind.from_pretrained(folder)


def as_reference(net, folder, **changes):
    """A network's weights and config as the reference writes them."""
    config = net.config
    values = {
        "input_size": config.latent_shape[-1] if config.patch else config.tokens,
        "patch_size": config.patch or 1, "vae_1d": config.patch is None,
        "in_channels": config.channels, "hidden_size": config.width, "depth": config.depth,
        "num_heads": config.heads, "mlp_ratio": 4.0, "num_classes": config.num_classes,
        "class_dropout_prob": 0.2, "license": "apache-2.0",
    }  # fmt: skip
    own = {"learn_sigma": True} if isinstance(net, DiT) else {"qk_norm": False, "z_dims": [0]}
    if isinstance(net, SiT):
        values["path_type"] = "edm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values | own | changes))
    save_file(net.state_dict(), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("kind", "config"),
    [(DiT, TINY), (SiT, TINY_SIT), (DiT, MAP), (SiT, replace(TINY_SIT, tokens=16, patch=2))],
)
def test_reference_layout(kind, config, tmp_path):
    net = random_net(config, kind)
    loaded = open_generator(as_reference(net, tmp_path / "whole"))
    assert loaded.config == replace(config, label_dropout=0.2)
    x, t, y = torch.randn(2, *config.latent_shape), torch.tensor([0.3, 0.9]), torch.tensor([0, 4])
    assert torch.equal(loaded(x, t, y), net(x, t, y))


def test_reference_layout_is_strict(tmp_path):
    net = random_net(TINY, DiT)
    for i, (changes, message) in enumerate([
        ({"depth": 3}, r"missing blocks\.2"),
        ({"num_headz": 2}, "did you mean 'num_heads'"),
        ({"patch_size": 2}, "not supported: patch_size 2"),
    ]):  # fmt: skip
        with pytest.raises(UserError, match=message):
            open_generator(as_reference(net, tmp_path / str(i), **changes))
    folder = as_reference(net, tmp_path / "lacking")
    values = json.loads((folder / "config.json").read_text())
    del values["depth"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="lacks depth"):
        open_generator(folder)
    folder = as_reference(net, tmp_path / "extra")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"projector.weight": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"extra projector\.weight"):
        open_generator(folder)


@pytest.mark.parametrize("kind", [SiT, DiT])
def test_largest_size_has_the_reference_s_tensors(kind):
    manifest = json.loads((HERE / f"manifest_{kind.__name__.lower()}-xl.json").read_text())
    expected = {
        key.replace("*", str(block)): shape
        for key, shape in manifest.items()
        for block in range(28)
    }
    with torch.device("meta"):
        net = kind(kind.config_class.sized("XL", 64, 32, 1000))
    assert {key: list(value.shape) for key, value in net.state_dict().items()} == expected
    assert len(expected) == 292


@pytest.mark.parametrize(
    ("size", "millions"), [("S", 32.9), ("B", 130.4), ("L", 457.7), ("XL", 674.9)]
)
def test_published_sizes(size, millions):
    """Parameters as the DiT paper's table 4 gives them, to what other tokens change."""
    with torch.device("meta"):
        net = SiT(SiTConfig(tokens=64, channels=32, num_classes=1000, **SiTConfig.SIZES[size]))
    count = sum(parameter.numel() for parameter in net.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("kind", [SiT, DiT])
@pytest.mark.parametrize("patch", [None, 2])
@pytest.mark.parametrize(
    "options", [{}, {"norm": "rms", "mlp": "swiglu", "rotary": True, "qk_norm": True}]
)
def test_shape_zero_start_and_saving(kind, patch, options, tmp_path):
    config = kind.config_class(
        tokens=16, channels=3, num_classes=4, width=16, depth=2, heads=2, patch=patch, **options
    )
    x, t = torch.randn(2, *config.latent_shape), torch.tensor([3, 999])
    y = torch.tensor([0, 4])
    assert config.latent_shape == ((3, 4, 4) if patch else (16, 3))
    assert (kind(config)(x, t, y) == 0).all()
    net = random_net(config, kind)
    out = net(x, t, y)
    assert split_channels(out, x)[0].shape == x.shape
    assert (split_channels(out, x)[1] is None) == (kind is SiT)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    net.save_pretrained(tmp_path)
    loaded = open_generator(tmp_path)
    assert type(loaded) is kind and loaded.config == config
    assert torch.equal(loaded(x, t, y), out)


def test_options_change_nothing_when_off():
    names = set(SiT(TINY_SIT).state_dict())
    for option in ({"norm": "rms"}, {"rotary": True}, {"mlp": "swiglu"}):
        changed = SiT(replace(TINY_SIT, **option))
        assert set(changed.state_dict()) == names  # all else equal: norms have no weights here
    more = set(SiT(replace(TINY_SIT, qk_norm=True, norm="rms")).state_dict()) - names
    assert {name.split(".", 2)[2] for name in more} == {"attn.q_norm.weight", "attn.k_norm.weight"}
    torch.manual_seed(0)
    before = SiT(TINY_SIT)
    torch.manual_seed(0)
    after = SiT(replace(TINY_SIT, rotary=True))
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value)


def test_swiglu_has_as_many_parameters():
    gated, plain = (
        SwiGLU(48),
        torch.nn.Sequential(torch.nn.Linear(48, 192), torch.nn.Linear(192, 48)),
    )
    count, other = (sum(p.numel() for p in m.parameters()) for m in (gated, plain))
    assert count == pytest.approx(other, rel=0.01)
    x = torch.randn(2, 48)
    gate, value = (x @ gated.fc1.weight.T + gated.fc1.bias).split(128, 1)
    expected = (gate / (1 + (-gate).exp()) * value) @ gated.fc2.weight.T + gated.fc2.bias
    torch.testing.assert_close(gated(x), expected)


def test_rotary_products_see_offsets_alone():
    """<R_m q, R_n k> depends on m - n, on each axis."""
    q, k = torch.randn(2, 8, dtype=torch.float64)
    for places in (torch.arange(6)[:, None], torch.cartesian_prod(*[torch.arange(4)] * 2)):
        angles = rotary_angles(places, 8).double()
        products = (
            rotate(q.expand(len(places), 8), angles) @ rotate(k.expand(len(places), 8), angles).T
        )
        seen = {}
        for i, a in enumerate(places.tolist()):
            for j, b in enumerate(places.tolist()):
                offset = tuple(m - n for m, n in zip(a, b, strict=True))
                product = seen.setdefault(offset, products[i, j])
                torch.testing.assert_close(product, products[i, j], atol=1e-6, rtol=0)
        assert len({round(float(v), 4) for v in seen.values()}) > len(seen) // 2


def test_maps_keep_their_places():
    """A pixel reaches its own patch's token: output patches move with the input's."""
    net = random_net(replace(MAP, depth=1, rows=2, tokens=16), DiT)
    assert net.config.latent_shape == (3, 2, 8) and net.config.grid == (1, 4)
    with torch.no_grad():
        net.pos_embed.zero_()
    x, t, y = torch.randn(1, 3, 2, 8), torch.tensor([500]), torch.tensor([1])
    moved = net(x.roll(2, 3), t, y)
    torch.testing.assert_close(moved, net(x, t, y).roll(2, 3), atol=1e-4, rtol=1e-4)


def test_patches_are_row_major_and_channels_last():
    net = DiT(replace(MAP, learn_variance=False))
    numbered = torch.arange(3 * 16).reshape(1, 3, 4, 4)
    cells = numbered.unfold(2, 2, 2).unfold(3, 2, 2)  # [1, C, rows, columns, p, p]
    tokens = cells.permute(0, 2, 3, 4, 5, 1).reshape(1, 4, -1)
    assert torch.equal(net._map(tokens), numbered)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batch"}, "norm 'batch'"),
        ({"mlp": "relu"}, "mlp 'relu'"),
        ({"schedule": "sine"}, "schedule 'sine'"),
        ({"target": "score"}, "target 'score'"),
        ({"timesteps": 1}, "timesteps"),
        ({"rotary": True, "width": 14}, "rotary"),
        ({"patch": 2, "tokens": 12}, "no map"),
        ({"patch": 3, "tokens": 16}, "patch 3"),
        ({"patch": 0}, "patch must be above 0"),
    ],
)
def test_bad_config_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(TINY, **change)


def test_wrong_latents_are_refused():
    with pytest.raises(ValueError, match=r"expected latents \[B, 3, 4, 4\], got \[2, 16, 3\]"):
        DiT(MAP)(torch.randn(2, 16, 3), torch.tensor([1, 2]))


def test_a_net_on_the_wrong_clock_is_refused():
    net, x = random_net(TINY, DiT), torch.randn(2, 6, 3)
    with pytest.raises(ValueError, match="belongs to Diffusion"):
        SAMPLERS["euler"](net, x, time_grid(2), torch.tensor([0, 1]))


def test_hidden_states_train_the_blocks_before():
    net = random_net(TINY, DiT)
    x, t, y = torch.randn(2, 6, 3), torch.tensor([5, 900]), torch.tensor([0, 3])
    plain = net(x, t, y)
    with hidden_states(net, 1) as states:
        assert torch.equal(net(x, t, y), plain)
    assert [state.shape for state in states] == [(2, 6, 16)]
    condition = net.t_embedder(t) + net.y_embedder(y)
    torch.testing.assert_close(
        states[0], net.blocks[0](net.x_embedder(x) + net.pos_embed, condition)
    )
    net.zero_grad()
    states[0].square().sum().backward()
    assert net.blocks[0].mlp.fc1.weight.grad.any() and net.blocks[1].mlp.fc1.weight.grad is None
    net(x, t, y)
    assert len(states) == 1  # nothing is kept after the block ends
    for block in (0, 3):
        with (
            pytest.raises(UserError, match=f"block {block} is none of 1..2"),
            hidden_states(net, block),
        ):
            pass


class TransformerContract(GeneratorContract):
    def predict(self, network, rows, y):
        rng, weight = torch.Generator().manual_seed(1), network.final_layer.linear.weight
        x, t = torch.randn(5, *self.shape, generator=rng), torch.rand(5, generator=rng).double()
        told = self.config.process.clock(t)
        return network(x[list(rows)].to(weight), told[list(rows)].to(weight), y)


class TestSiT(TransformerContract):
    config = TINY_SIT


class TestDiT(TransformerContract):
    config = TINY


class TestSiTOnPictures(TransformerContract):
    config = replace(TINY_SIT, picture=True)


class TestDiTOnPictures(TransformerContract):
    config = replace(TINY, picture=True)


class TestSiTOnAPyramid(TransformerContract):
    config = replace(TINY_SIT, picture=True, pyramid=4)


class TestSiTWithASummary(TransformerContract):
    config = replace(TINY_SIT, summary=2)
    shape = (8, 3)


class TestSiTOfEverything(TransformerContract):
    config = replace(
        TINY_SIT, picture=True, pyramid=4, summary=2, rotary=True, value_residual=True, time_shift=2
    )
    shape = (8, 3)


class TestNestedSiT(TransformerContract):
    config = replace(TINY_SIT, nested=True)


class TestDiTWithASummary(TransformerContract):
    config = replace(TINY, summary=1, value_residual=True)
    shape = (7, 3)


def test_a_summary_is_denoised_beside_the_tokens_and_left_out():
    """White beside a picture's spectrum; what is drawn are the tokens alone."""
    config = replace(TINY_SIT, picture=True, summary=2)
    x = torch.randn(5, 8, 3)
    seen = to_net(x, config)
    torch.testing.assert_close(seen[:, 6:], x[:, 6:])
    torch.testing.assert_close(seen[:, :6], to_net(x[:, :6], replace(config, summary=0)))
    torch.testing.assert_close(from_net(seen, config), x[:, :6])
    net = SiT(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    drawn = draw(net, NoiseStreams(0, range(3)), torch.tensor([0, 1, 2]), steps=2)
    assert drawn.shape == (3, 6, 3)
    y, t = torch.arange(5) % 4, torch.full((5,), 0.5)
    moved = seen.clone()
    moved[:, 6:] += 1.0  # what the picture is said to be decides what it becomes
    assert (net(moved, t, y) - net(seen, t, y))[:, :6].abs().max() > 1e-3


def test_a_summary_is_no_map():
    with pytest.raises(UserError, match="a summary is beside tokens, not on a map"):
        replace(TINY_SIT, tokens=4, patch=1, summary=1)


def test_values_of_the_first_block_are_mixed_into_the_others():
    config = replace(TINY_SIT, value_residual=True)
    net, plain = SiT(config).eval(), SiT(replace(config, value_residual=False)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    mixes = [name for name in net.state_dict() if name.endswith("attn.mix")]
    assert mixes == [f"blocks.{i}.attn.mix" for i in range(1, config.depth)]
    weights = {k: v for k, v in net.state_dict().items() if k not in mixes}
    plain.load_state_dict(weights)
    x, t, y = torch.randn(3, 6, 3), torch.rand(3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        net.blocks[1].attn.mix.copy_(torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(net(x, t, y), plain(x, t, y))  # none of the first: as without
    # the first block's alone: as if the second computed its values from what the first reads
    reads = []
    hook = net.blocks[0].attn.register_forward_pre_hook(lambda m, given: reads.append(given[0]))
    with torch.no_grad():
        net.blocks[1].attn.mix.copy_(torch.tensor([0.0, 1.0]))
    found = net(x, t, y)
    hook.remove()
    first = plain.blocks[0].attn
    _, _, v = first.qkv(reads[0]).unflatten(-1, (3, config.heads, -1)).permute(2, 0, 3, 1, 4)
    width = config.width
    second = plain.blocks[1].attn
    given = second.qkv.forward

    def swapped(z):
        return torch.cat([given(z)[..., : 2 * width], v.transpose(1, 2).flatten(2)], -1)

    second.qkv.forward = swapped
    torch.testing.assert_close(found, plain(x, t, y))


def test_a_picture_holds_its_tokens_and_no_more():
    """The change of basis is exact: patches of the picture give the tokens back."""
    picture = Picture(64, 32)
    x = torch.randn(3, 64, 32)
    patches = to_patches(picture.views(x)[:, :3])
    assert patches.shape == (3, 64, 3 * 6**2)
    rebuilt = from_patches(patches, picture_grid(64, 32))
    torch.testing.assert_close(picture.tokens(rebuilt), x, atol=1e-4, rtol=1e-4)
    # orthogonal too, so that white noise in tokens is white in what pixels can hold of it
    squares = patches.square().mean((1, 2)) * 3
    torch.testing.assert_close(squares, x.square().sum((1, 2)), atol=1e-3, rtol=1e-3)


def test_a_pictures_tokens_have_its_amplitudes():
    """White tokens become a photograph's spectrum, coarse above fine, and come back exactly."""
    config = replace(TINY_SIT, tokens=64, channels=32, picture=True)
    x = torch.randn(2, 64, 32)
    seen = to_net(x, config)
    size = seen.square().mean((0, 2)).sqrt()
    assert size[0] > 5 * size[8] > 0 and size[8] > 2 * size[63]
    torch.testing.assert_close((seen / x).square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(from_net(seen, config), x)


def test_a_pyramid_needs_a_picture():
    with pytest.raises(UserError, match="a pyramid stands on a picture; set picture=true"):
        replace(TINY_SIT, pyramid=4)


TINY_MAP = FlowMapConfig(tokens=6, channels=3, num_classes=4, width=16, depth=2, heads=2)
CONFIGS = {"sit": TINY_SIT, "dit": TINY, "flowmap": TINY_MAP, "mar": TINY_MAR}


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("num_classes", [4, 0])
def test_every_family_trains_and_draws(name, num_classes, tmp_path):
    family, config = GENERATORS[name], replace(CONFIGS[name], num_classes=num_classes)
    torch.manual_seed(0)
    net = family.network(config)
    assert type(config) is family.config and family_of(net) is family and family.time in TIME_LAWS
    x0, y = torch.randn(5, 6, 3), torch.arange(5) % 4 if num_classes else None
    generator = torch.Generator().manual_seed(0)
    loss = family.loss(net, x0, y, config, family.time, generator)
    generator.manual_seed(0)
    assert torch.equal(loss, family.loss(net, x0, y, config, family.time, generator))
    assert loss.shape == (5,) and loss.isfinite().all()
    loss.mean().backward()

    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    net.double().eval()
    images = draw(net, NoiseStreams(0, range(5)), y, steps=4)
    assert images.shape == (5, 6, 3) and images.isfinite().all()
    part = draw(net, NoiseStreams(0, range(2, 5)), None if y is None else y[2:], steps=4)
    torch.testing.assert_close(part, images[2:])
    net.float().save_pretrained(tmp_path)
    assert type(open_generator(tmp_path)) is family.network
    with pytest.raises(UserError, match=r"no option 'stepz'; it has steps, guidance"):
        draw(net, NoiseStreams(0, range(5)), y, stepz=4)
    for options, message in (({"steps": 0}, "1"), ({"sampler": "rk4"}, "sampler 'rk4'")):
        with pytest.raises(UserError, match=message):
            draw(net, NoiseStreams(0, range(5)), y, **options)


@pytest.mark.parametrize("name", ["sit", "dit"])
@pytest.mark.parametrize("sampler", [name for name, each in SAMPLERS.items() if not each.leaps])
def test_families_take_every_sampler_and_maps(name, sampler):
    if sampler == "dopri5":
        pytest.importorskip("torchdiffeq")
    family = GENERATORS[name]
    config = replace(CONFIGS[name], tokens=16, patch=2)
    net, y = random_net(config, family.network), torch.tensor([0, 3])
    for p in net.parameters():
        p.data.mul_(0.1)
    options = {"steps": 3, "interval": (0.0, 0.7), "sampler": sampler}
    bad = random_net(replace(config, depth=1), family.network)
    images = draw(net, NoiseStreams(0, range(2)), y, guidance=1.5, bad=bad, **options)
    assert images.shape == (2, 16, 3) and images.isfinite().all()
    loss = family.loss(net, torch.randn(2, 16, 3), y, config, family.time)
    assert loss.shape == (2,)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "Tokenizer"}')
    with pytest.raises(
        UserError, match="holds a Tokenizer, which is none of SiT, DiT, FlowMap, MAR"
    ):
        open_generator(tmp_path)


# Generators that draw the first tokens alone


@pytest.mark.parametrize("picture", [False, True])
@pytest.mark.parametrize("summary", [0, 2])
def test_a_nested_generator_draws_the_first_tokens_for_less(picture, summary):
    config = replace(TINY_SIT, tokens=32, nested=True, picture=picture, summary=summary)
    assert config.counts == (32, 16, 8) and replace(config, nested=False).counts == (32,)
    net = SiT(config).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    seen = []
    hook = net.blocks[0].register_forward_pre_hook(lambda m, given: seen.append(given[0].shape[1]))
    y = torch.tensor([0, 1, 2])
    draft = draw(net, NoiseStreams(0, range(3)), y, steps=2, tokens=8)
    drafted, seen[:] = set(seen), []
    assert draft.shape == (3, 8, 3)
    whole = draw(net, NoiseStreams(0, range(3)), y, steps=2)
    hook.remove()
    assert whole.shape == (3, 32, 3) and max(drafted) < max(seen)
    alone = draw(net, NoiseStreams(0, [1]), y[1:2], steps=2, tokens=8)
    torch.testing.assert_close(alone, draft[1:2], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="this generator draws 32 or 16 or 8 tokens, not 12"):
        draw(net, NoiseStreams(0, range(3)), y, steps=2, tokens=12)
    with pytest.raises(ValueError, match="expected latents"):
        net(torch.zeros(1, 12 + summary, 3), torch.zeros(1))


def test_what_a_draft_sees_is_the_same_picture_in_fewer_pixels():
    """The first tokens at their amplitudes are the same whether or not others follow."""
    config = replace(TINY_SIT, tokens=64, channels=32, picture=True, nested=True)
    x = torch.randn(2, 64, 32)
    x[:, 16:] = 0
    whole, first = to_net(x, config), to_net(x[:, :16], config)
    torch.testing.assert_close(first, whole[:, :16])
    torch.testing.assert_close(from_net(first, config), x[:, :16])
    picture = Picture(64, 32)
    large, small = picture.views(whole), picture.views(first)
    assert large.shape[-1] == 2 * small.shape[-1]
    # of the same means over patches, but for what a mean of cosines loses
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert (shrunk - small).square().mean() < 0.1 * small.square().mean()
    torch.testing.assert_close(picture.tokens(small[:, :3], 16), first, atol=1e-4, rtol=1e-4)


def test_a_nested_generator_learns_all_its_counts():
    """All tokens half of the time, and no draw of chance where there is one count alone."""
    config, x0 = replace(TINY_SIT, tokens=32, nested=True), torch.randn(2, 32, 3)
    rng = torch.Generator().manual_seed(0)
    counts = [some_tokens(x0, config, rng).shape[1] for _ in range(400)]
    for count, share in ((32, 0.5), (16, 0.25), (8, 0.25)):
        assert abs(counts.count(count) / 400 - share) < 0.08
    rng.manual_seed(0)
    assert some_tokens(x0, replace(config, nested=False), rng) is x0
    assert torch.equal(torch.rand(1, generator=rng), torch.rand(1, generator=seeded(0)))
    summed = torch.cat([x0, torch.full((2, 1, 3), 9.0)], dim=1)
    config = replace(config, summary=1)
    found = next(z for z in (some_tokens(summed, config, rng) for _ in range(99)) if len(z[0]) < 33)
    assert (found[:, -1] == 9).all() and torch.equal(found[:, :-1], x0[:, : found.shape[1] - 1])


@pytest.mark.parametrize("change", [{"patch": 1, "tokens": 4}, {"rotary": True}])
def test_nested_is_of_a_sequence(change):
    with pytest.raises(UserError, match="nested draws the first of a sequence"):
        replace(TINY_SIT, nested=True, **change)
