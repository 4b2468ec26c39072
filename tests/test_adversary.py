"""Discriminators, their losses, augmentation and regularisers: golden vectors and properties."""

import copy

import pytest
import torch
from contract import photos
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from vectors import Golden, found, named

from softvq.errors import UserError
from softvq.tokenizer import augment
from softvq.tokenizer.adversary import (
    DISCRIMINATORS,
    LOSSES,
    Adversary,
    LeCam,
    adaptive_weight,
    hinge,
    linear,
    logistic,
    non_saturating,
)
from softvq.tokenizer.augment import diff_augment
from softvq.tokenizer.discriminator import (
    BatchNormLocal,
    DinoDiscriminator,
    FrozenViT,
    PatchGAN,
    SpectralConv1d,
    held,
    vit_state,
)
from softvq.tokenizer.terms import AdversaryConfig


def opened(pattern: str):
    """Parametrises ``golden`` with the files of a kind that are here."""

    @pytest.fixture(params=found(pattern), ids=named)
    def golden(request):
        return Golden(request.param)

    return golden


def check_gradients(golden: Golden, grads: dict[str, torch.Tensor], prefix: str) -> None:
    """Every gradient that the file has, and no parameter without one."""
    assert all(g is not None for g in grads.values())
    kept = {k: g for k, g in grads.items() if f"{prefix}{k}" in golden}
    assert kept
    for key, value in kept.items():
        golden.check(f"{prefix}{key}", value)


# --- PatchGAN ---------------------------------------------------------------------------------

patchgan_golden = opened("patchgan*")


def test_patchgan_golden(patchgan_golden):
    golden = patchgan_golden
    model = PatchGAN(golden.config["ndf"], golden.config["nl"])
    model.load_state_dict(golden.starting("sd."))
    golden.check("out.eval_logits", model.eval()(golden["in.x"]))
    images = golden["in.x"].clone().requires_grad_()
    logits = model.train()(images)
    golden.check("out.train_logits", logits)
    linear(logits).backward()
    check_gradients(golden, {k: p.grad for k, p in model.named_parameters()}, "grad.")
    if "out.grad_x" in golden:
        golden.check("out.grad_x", images.grad)
    for key, value in golden.starting("out.after.").items():
        golden.check(f"out.after.{key}", model.state_dict()[key])
        assert value.any()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_patchgan_says_how_small_is_too_small(depth):
    model = PatchGAN(4, depth)
    side = model.smallest
    assert model(torch.zeros(2, 3, side, side)).shape == (2, 1, 1, 1)
    with pytest.raises(UserError, match=f"at least {side} pixels a side"):
        model(torch.zeros(2, 3, side - 1, side))


# --- the discriminator on a frozen ViT --------------------------------------------------------

dino_golden = opened("dino_disc*")
HEAD_NAMES = (
    ("1.fn.", "neighbours."), ("0.0.", "mix.0."), ("0.1.", "mix.1."), ("2.", "out."),
    ("weight_orig", "weight"),
)  # fmt: skip


def head_key(key: str) -> str:
    """The reference's name of a head's tensor -> ours."""
    _, index, rest = key.split(".", 2)
    for old, new in HEAD_NAMES[:4]:
        if rest.startswith(old):
            rest = new + rest.removeprefix(old)
            break
    return f"heads.{index}.{rest.replace(*HEAD_NAMES[4])}"


def dino_of(golden: Golden) -> DinoDiscriminator:
    given = golden.config
    vit = FrozenViT(given["hid"], given["depth"], given["heads"], taps=tuple(given["keys"]))
    state = vit_state(golden.starting("sd.dino."))
    torch.testing.assert_close(vit.scale[None], state.pop("x_scale"))
    torch.testing.assert_close(vit.shift[None], state.pop("x_shift"))
    vit.load_state_dict(state)
    model = DinoDiscriminator(vit, given["ks"])
    model.load_state_dict({head_key(k): v for k, v in golden.starting("sd.disc.").items()})
    return model


def test_dino_golden(dino_golden):
    golden, model = dino_golden, dino_of(dino_golden)
    with torch.no_grad():
        for index, feature in enumerate(model.frozen[0].features(golden["in.x"])):
            golden.check(f"out.act{index}", feature)
        golden.check("out.eval_logits", model.eval()(golden["in.x"]))
    images = golden["in.x"].clone().requires_grad_()
    logits = model.train()(images)
    golden.check("out.train_logits", logits)
    linear(logits).backward()
    golden.check("out.grad_x", images.grad)
    grads = dict(model.named_parameters())
    names = {head_key(k): k for k in golden.starting("grad.disc.")}
    assert names.keys() == grads.keys()
    for ours, theirs in names.items():
        golden.check(f"grad.disc.{theirs}", grads[ours].grad)


def tiny_vit() -> FrozenViT:
    torch.manual_seed(0)
    return FrozenViT(width=64, depth=4, heads=1, patch=32, positions=7)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_published_files_open(kind, tmp_path):
    """Number for number with transformers, whose names and layout the published files have."""
    transformers = pytest.importorskip("transformers")
    shape = {
        "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 224,
        "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    }  # fmt: skip
    if kind == "ViT":
        shape["intermediate_size"] = 512
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**shape))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.eval().save_pretrained(tmp_path)
    ours = FrozenViT.from_file(tmp_path)
    assert ours.taps == (0, 1, 2, 3)
    images = photos(2, 224, 224)
    with torch.no_grad():
        states = theirs(
            (images / 2 + 0.5 - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
            / torch.tensor([0.229, 0.224, 0.225])[:, None, None],
            output_hidden_states=True,
        ).hidden_states
        features = ours.features(images)
    assert len(features) == len(states) == 5
    for feature, state in zip(features, states, strict=True):
        expected = (state[:, 1:] + state[:, :1]).transpose(1, 2)
        torch.testing.assert_close(feature, expected, atol=1e-4, rtol=1e-4)


def test_vit_files_of_other_networks_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        FrozenViT.from_file(tmp_path)
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not a vision transformer that is known here"):
        FrozenViT.from_file(tmp_path)
    state = {k.removeprefix("grid."): v for k, v in tiny_vit().state_dict().items()}
    save_file(state | {"register_tokens": torch.zeros(1, 4, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="extra register_tokens"):
        FrozenViT.from_file(tmp_path)


def test_vit_reads_the_end_of_each_quarter():
    with torch.device("meta"):
        assert FrozenViT().taps == (2, 5, 8, 11)
        assert FrozenViT(depth=24, width=64, heads=1).taps == (5, 11, 17, 23)


def test_dino_takes_images_of_any_size():
    model = DinoDiscriminator(tiny_vit())
    for height, width in ((32, 32), (224, 224), (256, 320)):
        assert model(photos(2, height, width)).shape == (2, 5 * 49)


def test_frozen_vit_moves_but_is_never_saved_or_trained():
    model = DinoDiscriminator(tiny_vit())
    vit = model.frozen[0]
    assert all(k.startswith("heads.") for k in model.state_dict())
    assert all(not p.requires_grad for p in vit.parameters())
    images = photos(2).requires_grad_()
    model.train()(images).mean().backward()
    assert images.grad.any()
    assert all(p.grad is None for p in vit.parameters())
    assert all(p.grad is not None for p in model.parameters())
    model.double()
    assert {p.dtype for p in vit.parameters()} == {torch.float64}
    twin = copy.deepcopy(model)
    assert twin.frozen[0] is not vit


def test_spectral_norm_finds_the_largest_singular_value():
    torch.manual_seed(0)
    conv = SpectralConv1d(16, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(100)
    for _ in range(200):
        conv(torch.zeros(1, 16, 4))
    # A unit impulse shows the weight that the convolution really applies.
    applied = torch.zeros(16, 8, 3)
    conv.bias.data.zero_()
    for channel in range(16):
        impulse = torch.zeros(1, 16, 9)
        impulse[0, channel, 4] = 1
        applied[channel] = conv(impulse)[0, :, 3:6].flip(1)
    largest = torch.linalg.matrix_norm(applied.transpose(0, 1).flatten(1), ord=2)
    torch.testing.assert_close(largest, torch.tensor(1.0), atol=1e-3, rtol=0)


def test_spectral_estimate_starts_settled_and_rests_outside_training():
    conv = SpectralConv1d(16, 8, 3)
    exact = torch.linalg.matrix_norm(conv.weight.detach().flatten(1), ord=2)
    estimate = conv.weight_u @ conv.weight.detach().flatten(1) @ conv.weight_v
    assert 0.9 * exact < estimate <= exact * 1.001
    before = conv.weight_u.clone()
    conv.eval()(torch.zeros(1, 16, 4))
    conv.train().weight.requires_grad_(False)
    conv(torch.zeros(1, 16, 4))
    assert torch.equal(conv.weight_u, before)


@pytest.mark.parametrize(("batch", "size"), [(4, 4), (8, 8), (12, 6), (16, 8), (9, 3)])
def test_local_batch_norm_is_batch_norm_of_each_group(batch, size):
    x = 3 + 2 * torch.randn(batch, 5, 7, generator=torch.Generator().manual_seed(0))
    norm = BatchNormLocal(5)
    expected = torch.cat([F.batch_norm(part, None, None, training=True) for part in x.split(size)])
    torch.testing.assert_close(norm(x), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(norm.train()(x), norm.eval()(x))


# --- losses -----------------------------------------------------------------------------------

losses_golden = opened("gan_losses*")


def test_losses_golden(losses_golden):
    golden = losses_golden
    real, fake = golden["in.real"][0], golden["in.fake"][0]
    golden.check("out.hinge_d_loss", hinge(real, fake))
    golden.check("out.vanilla_d_loss", logistic(real, fake))
    golden.check("out.hinge_gen_loss", linear(fake))


def test_golden_non_saturating_loss_is_not_the_swapped_one(losses_golden):
    """The recorded values are those of cross-entropy(logits=target, target=logits)."""
    golden = losses_golden
    real, fake = golden["in.real"][0], golden["in.fake"][0]
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    entropy = F.binary_cross_entropy_with_logits
    golden.check("out.non_saturating_gen_loss", entropy(ones, fake))
    golden.check("out.non_saturating_d_loss", 0.5 * (entropy(ones, real) + entropy(zeros, fake)))
    torch.testing.assert_close(non_saturating(fake), entropy(fake, ones))
    right = 0.5 * (entropy(real, ones) + entropy(fake, zeros))
    torch.testing.assert_close(logistic(real, fake), right)
    # The wrong one falls without end as the generator wins; the right one ends at 0.
    assert entropy(ones, 1000 * ones) < -900
    assert non_saturating(1000 * ones) == 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_point_the_right_way(name):
    for_discriminator, for_generator = LOSSES[name]
    real = torch.zeros(8, requires_grad=True)
    fake = torch.zeros(8, requires_grad=True)
    for_discriminator(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    fake.grad = None
    for_generator(fake).backward()
    assert (fake.grad < 0).all()


def test_lecam_golden(losses_golden):
    golden = losses_golden
    lecam = LeCam()
    rows = []
    for real, fake in zip(golden["in.real"], golden["in.fake"], strict=True):
        pull = lecam(real, fake)
        rows.append(torch.stack([lecam.real, lecam.fake, pull]).clone())
    golden.check("out.lecam_seq_realema_fakeema_reg", torch.stack(rows))
    assert lecam.state_dict().keys() == {"real", "fake"}


def test_adaptive_weight_golden(losses_golden):
    golden = losses_golden
    decoder = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 3, 3, padding=1))
    decoder.load_state_dict(golden.starting("sd."))
    reconstruction = decoder(golden["in.img"])
    nll = F.mse_loss(reconstruction, golden["in.target"])
    judged = linear(reconstruction * golden["in.proj"])
    golden.check("out.nll", nll)
    golden.check("out.g_loss", judged)
    weight = adaptive_weight(nll, judged, decoder[2].weight)
    assert not weight.requires_grad
    golden.check("out.adaptive_weight", weight)
    (nll + 0.2 * weight * judged).backward()
    check_gradients(golden, {k: p.grad for k, p in decoder.named_parameters()}, "grad.")


def test_adaptive_weight_in_closed_form():
    last = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = (last * torch.tensor([3.0, 4.0])).sum()
    judged = (last * torch.tensor([0.0, 0.5])).sum()
    weight = adaptive_weight(loss, judged, last)
    torch.testing.assert_close(weight, torch.tensor(5 / (0.5 + 1e-4)))
    assert adaptive_weight(loss, 1e-9 * judged, last) == 1e4


# --- DiffAugment ------------------------------------------------------------------------------

augment_golden = opened("diffaug*")


def test_augment_golden(augment_golden):
    golden = augment_golden
    x = golden["in.x"]
    draws = {
        k: v.flatten()
        for k, v in golden.starting("in.").items()
        if k[:2] in ("tx", "ty", "ox", "oy")
    }
    golden.check("out.brightness", augment.brightness(x, golden["in.r_bri"]))
    golden.check("out.saturation", augment.saturation(x, golden["in.r_sat"]))
    golden.check("out.contrast", augment.contrast(x, golden["in.r_con"]))
    golden.check("out.translation", augment.translation(x, draws["tx"], draws["ty"]))
    for key, given in golden.results(r"out\.cutout_(?P<share>[\d.]+)").items():
        row, column = draws[f"ox{given['share']}"], draws[f"oy{given['share']}"]
        golden.check(key, augment.cutout(x, row, column, float(given["share"])))


def test_translation_and_cutout_by_hand():
    x = 1 + torch.arange(12.0).reshape(1, 1, 3, 4)
    moved = augment.translation(x, torch.tensor([1]), torch.tensor([-2]))
    assert moved[0, 0].tolist() == [[0, 0, 5, 6], [0, 0, 9, 10], [0, 0, 0, 0]]
    cut = augment.cutout(x, torch.tensor([0]), torch.tensor([4]), share=0.5)
    assert cut[0, 0].tolist() == [[1, 2, 3, 0], [5, 6, 7, 8], [9, 10, 11, 12]]


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_drawn_operations_stay_in_their_ranges(name):
    torch.manual_seed(0)
    height, width = 32, 24
    x = torch.ones(400, 3, height, width)
    changed = augment.OPERATIONS[name](x, 0.5)
    if name == "color":
        # A grey picture knows brightness alone; its mean is moved by up to a half, evenly.
        shift = (changed - x).mean((1, 2, 3))
        assert shift.min() < -0.45 and shift.max() > 0.45 and shift.abs().max() <= 0.5
        return
    holes = (changed[:, 0] == 0).float()
    rows = holes.mean(2).amax(1), holes.mean(1).amax(1)
    covered = holes.mean((1, 2))
    if name == "translation":
        assert covered.max() <= 1 - (1 - 0.125) ** 2 and covered.min() == 0
        assert (holes[:, 0, width // 2].mean() > 0.3) and (holes[:, -1, width // 2].mean() > 0.3)
    else:
        assert covered.max() == 0.25 and covered.min() >= 0.25 / 4
        assert torch.stack(rows).max() <= 0.5
        corners = holes[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
        assert (corners > 0).all()


def test_augmenting_is_drawn_by_image_from_the_global_generator():
    x = photos(64)
    torch.manual_seed(3)
    once = diff_augment(x, 0.5)
    torch.manual_seed(3)
    assert torch.equal(diff_augment(x, 0.5), once)
    untouched = (once == x).flatten(1).all(1).float().mean()
    assert 0.03 < untouched < 0.35  # 1/8 expected, and some that were moved by nothing
    before = torch.get_rng_state()
    assert diff_augment(x, 0.0) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_augmenting_is_differentiable():
    torch.manual_seed(0)
    x = photos(8).double().requires_grad_()
    direction = torch.randn_like(x)

    def value(scale: float) -> torch.Tensor:
        torch.manual_seed(1)
        return diff_augment(x + scale * direction).square().sum()

    (gradient,) = torch.autograd.grad(value(0.0), x)
    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-6)


# --- the adversary ----------------------------------------------------------------------------


@pytest.fixture(params=["patchgan", "dino"])
def adversary(request, monkeypatch) -> Adversary:
    monkeypatch.setitem(DISCRIMINATORS, "dino", lambda config: DinoDiscriminator(tiny_vit()))
    torch.manual_seed(0)
    return Adversary(full(request.param)).train()


def full(discriminator: str, **changes) -> AdversaryConfig:
    """Everything switched on, small."""
    return AdversaryConfig(
        weight=0.2, discriminator=discriminator, dino="vit.safetensors", width=8, depth=2,
        consistency=4.0, lecam=0.001, **changes,
    )  # fmt: skip


def test_generator_loss_leaves_no_trace_in_the_discriminator(adversary):
    state = copy.deepcopy(adversary.state_dict())
    reconstruction = photos(4).requires_grad_()
    loss = adversary.generator_loss(reconstruction)
    loss.backward()
    assert loss.shape == () and torch.isfinite(reconstruction.grad).all()
    assert reconstruction.grad.any()
    assert all(p.grad is None and p.requires_grad for p in adversary.parameters())
    for name, value in adversary.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_generator_sees_the_discriminator_of_training(adversary):
    """Held or not, the same judge: batch statistics, not running ones."""
    adversary.config.augment = 0.0
    adversary.discriminator.requires_grad_(False)  # spectral estimates rest in both passes
    expected = linear(adversary.discriminator(photos(4)))
    adversary.discriminator.requires_grad_(True)
    torch.testing.assert_close(adversary.generator_loss(photos(4)), expected)


def test_a_pass_that_fails_gives_the_weights_back():
    model = PatchGAN(4, 1)
    model.main[0].weight.requires_grad_(False)
    with pytest.raises(RuntimeError), held(model):
        assert not any(p.requires_grad for p in model.parameters())
        raise RuntimeError
    assert not model.main[0].weight.requires_grad  # was not learning before either
    assert model.main[0].bias.requires_grad and model.main[3].track_running_stats


def test_discriminator_step_teaches_the_discriminator_alone(adversary):
    images, reconstruction = photos(4).requires_grad_(), photos(4, seed=1).requires_grad_()
    loss, terms = adversary(images.detach(), reconstruction)
    loss.backward()
    assert reconstruction.grad is None
    silent = [n for n, p in adversary.named_parameters() if p.grad is None]
    assert not silent
    names = ("discriminator", "consistency", "lecam")
    torch.testing.assert_close(loss.detach(), sum(terms[name] for name in names))
    assert terms.keys() == {*names, "logits_real", "logits_fake"}
    assert all(v.shape == () and not v.requires_grad for v in terms.values())
    assert adversary.lecam.real != 0 and adversary.lecam.fake != 0


def test_terms_of_weight_zero_are_not_computed(monkeypatch):
    adversary = Adversary(AdversaryConfig(weight=0.1, width=4, depth=1))
    calls = []
    adversary.discriminator.register_forward_hook(lambda *_: calls.append(1))
    _, terms = adversary(photos(2), photos(2, seed=1))
    assert len(calls) == 2 and not {"consistency", "lecam"} & terms.keys()
    assert adversary.lecam.real == 0
    adversary.config.consistency = 1.0
    adversary(photos(2), photos(2, seed=1))
    assert len(calls) == 6


def test_consistency_is_zero_for_a_discriminator_that_ignores_augmentation():
    adversary = Adversary(AdversaryConfig(weight=0.1, width=4, depth=1, consistency=4.0))
    _, terms = adversary(photos(4), photos(4, seed=1))
    assert terms["consistency"] > 0
    nn.init.zeros_(adversary.discriminator.main[-1].weight)
    _, terms = adversary(photos(4), photos(4, seed=1))
    assert terms["consistency"] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_learns_to_tell_blurred_from_sharp_and_the_generator_to_pass(loss):
    torch.manual_seed(0)
    adversary = Adversary(AdversaryConfig(weight=1.0, width=8, depth=2, loss=loss, lecam=0.001))
    optimizer = torch.optim.Adam(adversary.parameters(), 2e-3, betas=(0.5, 0.9))
    sharp = torch.rand(16, 3, 32, 32) * 2 - 1
    blurred = F.avg_pool2d(sharp, 3, 1, 1)
    first = None
    for _ in range(30):
        value, _ = adversary(sharp, blurred)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        first = value.item() if first is None else first
    assert value.item() < 0.7 * first
    image = blurred.clone().requires_grad_()
    adversary.config.augment = 0.0
    before = adversary.generator_loss(image)
    before.backward()
    after = adversary.generator_loss(image - 0.1 * image.grad / image.grad.abs().max())
    assert after < before


def test_bfloat16_autocast_stays_finite_and_close(adversary):
    """Losses, norms and regularisers in float32; only convolutions and products are rough."""
    values = []
    for enabled in (False, True):
        twin = copy.deepcopy(adversary)
        torch.manual_seed(5)
        reconstruction = photos(8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled):
            judged = twin.generator_loss(reconstruction)
            loss, terms = twin(photos(8, seed=1), reconstruction)
        judged.backward()
        loss.backward()
        assert judged.dtype == loss.dtype == torch.float32
        assert torch.isfinite(reconstruction.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in twin.parameters())
        values.append(torch.stack([judged.detach(), terms["discriminator"], terms["lecam"]]))
    torch.testing.assert_close(values[1], values[0], rtol=0.1, atol=0.1)


def test_state_survives_a_stop(adversary):
    adversary(photos(4), photos(4, seed=1))
    torch.manual_seed(1)
    again = copy.deepcopy(adversary)
    nn.init.zeros_(again.lecam.real)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    again.load_state_dict(adversary.state_dict())
    results = []
    for model in (adversary, again):
        torch.manual_seed(2)
        results.append(model(photos(4), photos(4, seed=1))[0])
    assert torch.equal(*results)


def test_config_is_checked_in_one_line():
    assert OmegaConf.to_object(OmegaConf.structured(AdversaryConfig)) == AdversaryConfig()
    for values, message in (
        ({"loss": "wasserstein"}, "adversary.loss 'wasserstein' is none of hinge"),
        ({"discriminator": "gan"}, "adversary.discriminator 'gan' is none of patchgan, dino"),
        ({"augment": 1.5}, "adversary.augment must be in 0 .. 1, got 1.5"),
        ({"lecam": -1.0}, "adversary.lecam must be in 0 .. .*, got -1.0"),
    ):
        with pytest.raises(UserError, match=message):
            AdversaryConfig(**values)
    for file, message in ((None, "adversary.dino: no such"), ("absent.pth", "absent.pth: no such")):
        with pytest.raises(UserError, match=message):
            Adversary(AdversaryConfig(discriminator="dino", dino=file))
