"""Number for number with the reference implementation, and its checkpoints opened and written.

``python tools/golden_tables.py`` prints every tensor's error over its tolerance.
"""

import json
import math
from pathlib import Path
from unittest import mock

import pytest
import torch
from contract import photos, small
from torch.distributions import Normal, kl_divergence
from vectors import BESIDE, HERE, SUFFIX, Golden, found, named

from softvq.errors import UserError
from softvq.interop import reference
from softvq.interop.reference import (
    FIXED,
    KNOWN,
    UNUSED,
    export_reference,
    from_reference,
    reference_key,
    reference_state,
)
from softvq.io import load_tensors, save_tensors
from softvq.models import open_tokenizer
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import BOTTLENECKS, Tokenizer, TokenizerConfig

TOKENIZERS, SOFT, VQ, KL = map(found, ("tok_*", "quant_soft_*", "quant_vq_*", "kl_*"))


def opened(paths: list[Path]):
    """Parametrises ``golden`` with those of the files that are here."""

    @pytest.fixture(params=paths, ids=named)
    def golden(request):
        return Golden(request.param)

    return golden


tokenizer_golden, soft_golden, vq_golden, kl_golden = map(opened, (TOKENIZERS, SOFT, VQ, KL))


def config_of(golden: Golden) -> dict:
    """The reference's flat config of a golden tokenizer."""
    given = golden.config
    return FIXED | UNUSED | {
        "image_size": given["img"],
        "base_image_size": given["img"],
        "enc_patch_size": given["patch"],
        "dec_patch_size": given["patch"],
        "num_latent_tokens": given["T"],
        "codebook_size": given["n_e"],
        "codebook_embed_dim": given["dim"],
        "num_codebooks": given["cb"],
        "codebook_l2_norm": given["l2"],
        "entropy_loss_ratio": given["ent"],
        "tau": given["tau"],
        "commit_loss_beta": 0.25,
        "kl_loss_weight": 1e-6,
        "use_rope": given.get("rope", False),
        "rope_mixed": given.get("rope", False),
        "rope_theta": 10.0,
        "encoder_model": "vit_small_patch14_dinov2.lvd142m",
        "decoder_model": "vit_small_patch14_dinov2.lvd142m",
        "vq_mean": 0.0,
        "vq_std": 1.0,
    }  # fmt: skip


def as_reference(key: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor of ours in the reference's order of rows."""
    return reference.colour_last(value) if key in reference.PIXELS else value


# The reference's names for our losses and statistics.
LOSSES = {"entropy_loss": "entropy", "vq_loss": "codebook", "commit_loss": "commitment"}
STATS = {"zq_z_cos": "soft_cosine", "max_probs": "soft_peak"}


def in_codebook_order(indices: torch.Tensor, codebooks: int) -> torch.Tensor:
    """Our indices [B, L] -> [codebooks, B * L / codebooks], as the reference first has them."""
    return indices.unflatten(1, (codebooks, -1)).transpose(0, 1).flatten(1)


def check_indices(golden: Golden, indices: torch.Tensor) -> None:
    """The reference views indices by codebook as if they were by image: the mapping to that."""
    wrong = in_codebook_order(indices, golden.config["cb"]).view(golden["out.indices"].shape)
    assert torch.equal(wrong, golden["out.indices"])


def test_golden_tokenizers(tokenizer_golden):
    golden = tokenizer_golden
    net = from_reference(config_of(golden), golden.starting("sd."), golden.config["heads"])
    images, is_kl = golden["in.x"], "in.noise" in golden
    with torch.no_grad():
        features = net.encoder(images)
        golden.check("out.encoder_tokens", features)
        golden.check("out.quant_conv", net.to_latent(features))
        reconstruction, tokens = net(images)
        golden.check("out.rec_mode" if is_kl else "out.rec", reconstruction)
        golden.check("out.post_mean" if is_kl else "out.quant", tokens.latents)
        if is_kl:
            golden.check("out.post_logvar", tokens.posterior[1])
    if "out.train_rec" not in golden:  # the reference cannot train with rotary positions
        return
    net.train()
    with mock.patch("torch.randn", lambda shape, **_: golden["in.noise"]):
        reconstruction, tokens = net(images)
    golden.check("out.train_rec", reconstruction)
    if is_kl:
        golden.check("out.z", tokens.latents)
        golden.check("out.rec", reconstruction)
        golden.check("out.train_kl_term", tokens.losses["kl"])
    else:
        for theirs, ours in LOSSES.items():
            golden.check(f"out.train_{theirs}", tokens.losses.get(ours, torch.zeros(())))
    if not is_kl:
        check_indices(golden, tokens.indices)
    if net.config.bottleneck == "softvq":
        for theirs, ours in STATS.items():
            golden.check(f"out.{theirs}", tokens.stats[ours])
    loss = (reconstruction * golden["in.w"]).mean() + sum(tokens.losses.values())
    golden.check("out.train_loss", loss)
    loss.backward()
    ours = {reference_key(key): key for key, _ in net.named_parameters()}
    for key in golden.starting("grad."):
        gradient = net.get_parameter(ours[key]).grad
        golden.check(f"grad.{key}", as_reference(ours[key], gradient))


def bottleneck_of(golden: Golden, kind: str) -> torch.nn.Module:
    given = golden.config
    config = TokenizerConfig(
        tokens=given["T"],
        channels=given["dim"],
        bottleneck=kind,
        codebook_size=given["n_e"],
        codebooks=given.get("cb", 1),
        l2_norm=given["l2"],
        tau=given.get("tau", 0.07),
        entropy_weight=given["ent"],
        entropy_pooled=True,
    )
    made = BOTTLENECKS[kind](config)
    state = golden.starting("sd.")
    state.pop("codebook_used", None)
    made.load_state_dict(state)
    return made


def check_bottleneck(golden: Golden, made: torch.nn.Module):
    """Latents, losses and gradients of a bottleneck alone; returns the tokens of training."""
    z = golden["in.z"].clone().requires_grad_()
    golden.check("out.quant_eval", made.eval()(z).latents)
    tokens = made.train()(z)
    golden.check("out.quant_train", tokens.latents)
    for theirs, ours in LOSSES.items():
        golden.check(f"out.{theirs}", tokens.losses.get(ours, torch.zeros(())))
    ((tokens.latents * golden["in.w"]).sum() + sum(tokens.losses.values())).backward()
    golden.check("out.grad_z", z.grad)
    for key in golden.starting("grad."):
        golden.check(f"grad.{key}", made.get_parameter(key).grad)
    return tokens


def test_golden_soft_quantisation(soft_golden):
    golden = soft_golden
    tokens = check_bottleneck(golden, bottleneck_of(golden, "softvq"))
    for theirs, ours in STATS.items():
        golden.check(f"out.{theirs}", tokens.stats[ours])
    check_indices(golden, tokens.indices)
    # Of each step, the reference keeps one token per codebook, and not of the codebook it writes
    # to. Its usage counts what the record was filled with at the start as codeword 0.
    codebooks = golden.config["cb"]
    right = in_codebook_order(tokens.indices, codebooks)
    record = torch.zeros_like(golden["out.codebook_used_tail_after"])
    record[:, -codebooks:] = right[:, :codebooks].T
    assert torch.equal(record, golden["out.codebook_used_tail_after"])
    used = sum(len(row.unique()) for row in record) / codebooks
    golden.check("out.usage", torch.tensor(used / golden.config["n_e"]))
    truly = sum(len(row.unique()) for row in right) / codebooks / golden.config["n_e"]
    assert tokens.stats["codebook_usage"].item() == pytest.approx(truly)


def test_pooled_entropy_depends_on_an_order_of_codewords_that_means_nothing():
    """Why one entropy per codebook is right, and the released one is not."""
    losses = {}
    for pooled in (False, True):
        torch.manual_seed(0)
        config = small(codebooks=2, entropy_pooled=pooled, entropy_weight=1.0)
        soft = BOTTLENECKS["softvq"](config).train()
        soft.init_weights()
        z = torch.randn(16, 8, 16)
        before = soft(z).losses["entropy"]
        with torch.no_grad():
            soft.embedding[1] = soft.embedding[1].flip(0)
        losses[pooled] = (before, soft(z).losses["entropy"])
    torch.testing.assert_close(*losses[False])
    assert (losses[True][0] - losses[True][1]).abs() > 1e-3


def test_golden_vector_quantisation(vq_golden):
    golden = vq_golden
    tokens = check_bottleneck(golden, bottleneck_of(golden, "vq"))
    assert torch.equal(tokens.indices.flatten(), golden["out.indices"])
    # Its usage counts what the record was filled with at the start as codeword 0.
    used = len(torch.cat([tokens.indices.flatten(), torch.zeros(1)]).unique())
    golden.check("out.usage", torch.tensor(used / golden.config["n_e"]))


def test_golden_posterior(kl_golden):
    golden = kl_golden
    for key, value in golden.tensors.items():
        if value.ndim == 4:  # [B, C, H, W] of a convolutional encoder, as tokens
            golden.tensors[key] = value.flatten(2).transpose(1, 2)
    tokens, channels = golden["in.params"].shape[1], golden["in.params"].shape[2] // 2
    config = TokenizerConfig(bottleneck="kl", tokens=tokens, channels=channels)
    made = BOTTLENECKS["kl"](config)
    kept = made.eval()(golden["in.params"])
    mean, logvar = kept.posterior
    golden.check("out.mode", kept.latents)
    golden.check("out.mean", mean)
    golden.check("out.logvar", logvar)
    golden.check("out.std", torch.exp(0.5 * logvar))
    golden.check("out.var", logvar.exp())
    made.train()
    with mock.patch("torch.randn", lambda shape, **_: golden["in.noise"]):
        golden.check("out.sample", made(golden["in.params"]).latents)
    golden.check("out.kl", torch.stack([made(z[None]).stats["kl"] for z in golden["in.params"]]))
    # A posterior is all that torch's own distribution needs.
    other = made(golden["in.other"]).posterior
    ours, theirs = (Normal(m, torch.exp(0.5 * v)) for m, v in ((mean, logvar), other))
    golden.check("out.kl_other", kl_divergence(ours, theirs).sum((1, 2)))
    golden.check("out.nll", -ours.log_prob(golden["in.sample_pt"]).sum((1, 2)))


@pytest.mark.skipif(not BESIDE.is_dir(), reason=f"{BESIDE} is not here")
def test_golden_released_directory_opens_and_reconstructs():
    for folder in BESIDE.glob("hub_tok_*"):
        golden = Golden(BESIDE / (folder.name.removeprefix("hub_") + SUFFIX))
        net = open_tokenizer(folder, num_heads=golden.config["heads"])
        assert not net.training
        with torch.no_grad():
            golden.check("out.rec", net(golden["in.x"])[0])
        assert sorted(KNOWN) == sorted(json.loads((folder / "config.json").read_text()))


def random_tokenizer(**changes) -> Tokenizer:
    """A tokenizer that the reference could have, with no two weights alike."""
    torch.manual_seed(0)
    net = Tokenizer(small(**({"layer_scale": 1e-5, "entropy_pooled": True} | changes)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    net.latent_mean.fill_(0.25)
    net.latent_std.fill_(0.07)
    return net.eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"codebooks": 4},
        {"bottleneck": "vq"},
        {"bottleneck": "kl"},
        {"bottleneck": "ae"},
        {"rope": "mixed", "rope_theta": 100.0},
        {"rope": "axial"},
    ],
    ids=["softvq", "vq", "kl", "ae", "mixed", "axial"],
)
def test_round_trip(changes, tmp_path):
    net = random_tokenizer(**changes)
    export_reference(net, tmp_path)
    again = open_tokenizer(tmp_path, num_heads=2)
    assert again.config == net.config and not again.training
    assert all(torch.equal(again.state_dict()[k], v) for k, v in net.state_dict().items())
    assert torch.equal(again.reconstruct(photos()), net.reconstruct(photos()))
    export_reference(again, tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_means_per_channel_are_pooled(tmp_path):
    net = random_tokenizer()
    latents = torch.randn(100, 16) * torch.linspace(0.5, 2, 16) + torch.linspace(-1, 1, 16)
    net.latent_mean.copy_(latents.mean(0))
    net.latent_std.copy_(latents.std(0, correction=0))
    export_reference(net, tmp_path)
    again = open_tokenizer(tmp_path, num_heads=2)
    torch.testing.assert_close(again.latent_mean, latents.mean().expand(16))
    torch.testing.assert_close(again.latent_std, latents.std(correction=0).expand(16))


@pytest.fixture
def directory(tmp_path):
    export_reference(random_tokenizer(), tmp_path)
    return tmp_path


def edit(directory: Path, tensors=lambda state: {}, **fields) -> None:
    """Change tensors and fields of a directory; None takes one away."""
    state = load_tensors(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    for values, changes in ((state, tensors(state)), (config, fields)):
        values |= changes
        for key in [key for key, value in values.items() if value is None]:
            del values[key]
    save_tensors(state, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))


def test_alignment_teacher_and_dead_tensors_are_dropped(directory):
    net = open_tokenizer(directory, num_heads=2)
    teacher = {"repa_model.cls_token": torch.ones(1), "projection.0.weight": torch.ones(1)}
    edit(directory, lambda state: teacher, repa=True)
    dead = {"decoder.model.patch_embed.proj.weight": None, "quantize.codebook_used": None}
    edit(directory, lambda state: dead)
    again = open_tokenizer(directory, num_heads=2)
    assert torch.equal(again.reconstruct(photos()), net.reconstruct(photos()))
    edit(directory, repa=False)
    with pytest.raises(UserError, match="extra projection.0.weight; extra repa_model.cls"):
        open_tokenizer(directory, num_heads=2)


def test_every_fault_of_the_tensors_is_listed(directory):
    edit(
        directory,
        lambda state: {
            "quant_conv.bias": None,
            "quantize.embedding": None,
            "decoder.model.norm.weight": torch.ones(63),
            "encoder.model.reg_token": torch.ones(1, 4, 64),
        },
    )
    with pytest.raises(UserError) as caught:
        open_tokenizer(directory, num_heads=2)
    for fault in (
        "missing quant_conv.bias",
        "missing quantize.embedding",
        "extra encoder.model.reg_token",
        "decoder.model.norm.weight is [63], expected [64]",
    ):
        assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tauu": 0.1}, "unknown key 'tauu'; did you mean 'tau'"),
        ({"tau": None, "vq_std": None}, "the config lacks tau, vq_std"),
        ({"use_ape": False, "dec_type": "cnn"}, "not supported: dec_type 'cnn', use_ape False"),
        ({"use_rope": True, "rope_mixed": True}, r"missing encoder.freqs; missing decoder.freqs"),
        ({"dec_patch_size": 4}, "dec_patch_size 4 other than the encoder's"),
        ({"num_latent_tokens": 4}, r"latent_tokens is \[1, 8, 64\], expected \[1, 4, 64\]"),
    ],
)
def test_other_configs_say_what_is_wrong(directory, fields, message):
    edit(directory, **fields)
    with pytest.raises(UserError, match=message):
        open_tokenizer(directory, num_heads=2)


def test_heads_come_from_the_name_or_the_user(directory, tmp_path):
    with pytest.raises(UserError, match="width 64 is not divisible by 6 heads; give num_heads"):
        open_tokenizer(directory)
    edit(directory, decoder_model="vit_giant_patch14_dinov2.lvd142m", encoder_model="vit_large_x")
    with pytest.raises(UserError, match="heads of 'vit_giant_patch14_dinov2.lvd142m' are not kno"):
        open_tokenizer(directory)
    edit(directory, decoder_model="vit_large_patch14_dinov2.lvd142m")
    assert open_tokenizer(directory).config.encoder_heads == 16
    ours = tmp_path / "ours"
    random_tokenizer().save_pretrained(ours)
    with pytest.raises(UserError, match="num_heads is read from its config.json"):
        open_tokenizer(ours, num_heads=2)


def test_export_says_what_the_reference_cannot_express(tmp_path):
    net = random_tokenizer(width=40, stem="conv", class_token=False, layer_scale=None, gain=True)
    with pytest.raises(UserError, match="height other than width, stem conv, no class_token, no "
                                        "layer_scale, gain$"):  # fmt: skip
        export_reference(net, tmp_path)
    assert not list(tmp_path.iterdir())


# Millions of trainable parameters at 256 px and 64 tokens; the reference counts its dead ones.
PUBLISHED = {"softvq-s-64": 44.84, "softvq-b-64": 173.56, "softvq-l-64": 608.92}
ROUNDED = {"softvq-bl-64": 391}
VARIANTS = [
    f"softvq-{size}-{tokens}{pixels}"
    for size in ("s", "b", "bl", "l")
    for tokens in (32, 64)
    for pixels in ("", "-512")
]


def shapes_of(name: str) -> dict[str, list[int]]:
    """Names and shapes of a recipe's model after export."""
    with torch.device("meta"):
        net = Tokenizer(load_recipe(TokenizerRecipe, name, []).model)
    return {key: list(value.shape) for key, value in reference_state(net).items()}


def test_a_published_model_has_the_released_names_and_shapes():
    manifest = json.loads((HERE / "manifest_softvq-l-64.json").read_text())
    expected = {
        key.replace("*", str(block)): shape
        for key, shape in manifest.items()
        for block in range(24)
    }
    assert shapes_of("softvq-l-64") == expected


@pytest.mark.parametrize("manifest", ["softvq-l-64_norepa", "softvq-l-64", "softvq-b-64"])
def test_whole_manifests(manifest):
    path = BESIDE / f"manifest_{manifest}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    said = json.loads(path.read_text())
    alignment = reference.ALIGNMENT if said["config"]["repa"] else ()
    expected = {k: shape for k, (shape, _) in said["keys"].items() if not k.startswith(alignment)}
    assert shapes_of(manifest.removesuffix("_norepa")) == expected
    assert said["config"].keys() == set(KNOWN)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_recipe(name):
    recipe = load_recipe(TokenizerRecipe, name, [])
    shapes = shapes_of(name)
    shapes.pop("quantize.codebook_used")
    millions = sum(map(math.prod, shapes.values())) / 1e6
    if name in PUBLISHED:
        assert millions == pytest.approx(PUBLISHED[name], abs=0.005)
    if name in ROUNDED:
        assert round(millions) == ROUNDED[name]
    _, size, tokens, *pixels = name.split("-")
    assert (recipe.model.tokens, recipe.model.channels) == (int(tokens), 2048 // int(tokens))
    assert recipe.model.height == recipe.model.width == int(*pixels or (256,))
    widths = {"s": 384, "b": 768, "l": 1024}
    assert recipe.model.encoder_width == widths[size[0]]
    assert recipe.model.decoder_width == widths[size[-1]]
