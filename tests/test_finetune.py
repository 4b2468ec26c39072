"""Starting from trained weights: the decoder alone, adapters, rates by depth; masking and noise."""

import json

import pytest
import torch
from contract import photos
from helpers.pictures import photos as photo_folder
from safetensors.torch import save_file

from softvq.cli import main
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.generator.config import SiTConfig
from softvq.generator.transformer import SiT
from softvq.io import load_tensors
from softvq.pipeline import Pipeline
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.train.optimizers import depth_shares, optimizers
from softvq.train.tokenizer import (
    Autoencoding,
    TokenizerTask,
    noised,
    train_tokenizer,
    unmasked,
)

ENCODING = ("encoder.", "to_latent.", "bottleneck.", "latent_")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return photo_folder(tmp_path_factory.mktemp("photos"), 40)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, source):
    """A tokenizer of the tiny recipe whose statistics are not the initial ones."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(3)
    tokenizer = Tokenizer(load_recipe(TokenizerRecipe, "tiny", []).model).eval()
    tokenizer.latent_mean.copy_(torch.randn(16) / 10)
    tokenizer.latent_std.copy_(torch.rand(16) + 0.5)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(source, trained, *more: str) -> TokenizerRecipe:
    settings = [f"data.source={source}", f"init={trained}", "train.images=96", "train.warmup=32"]
    often = ["train.log_every=32", "train.evaluate_every=96", "train.weight_decay=0.1"]
    return load_recipe(TokenizerRecipe, "tiny", [*settings, *often, *more])


@pytest.mark.parametrize(
    "kind",
    [
        ["model.bottleneck=softvq"],
        ["model.bottleneck=vq", "model.vq_update=ema"],  # a codebook that moves without a gradient
        ["model.bottleneck=kl"],
    ],
    ids=lambda kind: kind[-1],
)
def test_decoder_only_leaves_tokens_the_same_to_the_bit(tmp_path, source, kind):
    torch.manual_seed(3)
    before = Tokenizer(load_recipe(TokenizerRecipe, "tiny", kind).model).eval()
    measure = torch.randn(16)
    before.latent_mean.copy_(measure)
    before.latent_std.copy_(measure.abs())
    before.save_pretrained(tmp_path / "before")
    run = tmp_path / "run"
    assert train_tokenizer(recipe(source, tmp_path / "before", *kind, "trainable=decoder"), run)
    after = Tokenizer.from_pretrained(run)
    assert torch.equal(before.encode(photos()).latents, after.encode(photos()).latents)
    old, new = before.state_dict(), after.state_dict()
    for key in old:
        same = torch.equal(old[key], new[key])
        assert same == key.startswith(ENCODING) or not old[key].any(), key
    ema = load_tensors(run / "checkpoints" / "000000000096.safetensors")
    for key in old:
        if key.startswith(ENCODING):
            assert torch.equal(ema[f"model.tokenizer.{key}"], old[key])
            assert torch.equal(ema[f"ema.tokenizer.{key}"], old[key])


@pytest.mark.parametrize("lighter", [[], ["model.decoder_width=16", "model.decoder_depth=1"]])
def test_a_generator_of_the_old_tokens_draws_with_the_new_decoder(
    tmp_path, source, trained, lighter
):
    torch.manual_seed(0)
    generator = SiT(SiTConfig(tokens=8, channels=16, num_classes=2, width=32, depth=1, heads=2))
    old = Pipeline(Tokenizer.from_pretrained(trained), generator.eval(), ["a", "b"])
    assert train_tokenizer(recipe(source, trained, "trainable=decoder", *lighter), tmp_path)
    new = Pipeline(Tokenizer.from_pretrained(tmp_path), generator, ["a", "b"])
    latents = [pipeline.generate_latents(["a", "b"], steps=2) for pipeline in (old, new)]
    assert torch.equal(*latents)
    assert old.decode(latents[0])[0].tobytes() != new.decode(latents[0])[0].tobytes()


def test_a_lighter_decoder_starts_afresh_behind_the_tokens_of_the_old_one(source, trained):
    lighter = recipe(source, trained, "trainable=decoder", "model.decoder_width=16")
    made, old = TokenizerTask(lighter).model.tokenizer, Tokenizer.from_pretrained(trained)
    assert fingerprint(made) == fingerprint(old)
    torch.testing.assert_close(made.latent_std, old.latent_std)
    assert sum(p.numel() for p in made.decoder.parameters()) < sum(
        p.numel() for p in old.decoder.parameters()
    )
    for all_of_it in ("trainable=all", "trainable=decoder"):
        change = "model.decoder_width=16" if all_of_it == "trainable=all" else "model.tokens=4"
        with pytest.raises(UserError, match="not of the recipe's shape"):
            TokenizerTask(recipe(source, trained, all_of_it, change))


def test_a_frozen_encoder_runs_without_graph_and_in_evaluation_mode(source, trained):
    task = TokenizerTask(recipe(source, trained, "trainable=decoder"))
    model = task.model.train()
    assert model.tokenizer.decoder.training and not model.tokenizer.bottleneck.training
    _, tokens, _ = model(photos())
    assert not tokens.latents.requires_grad and not tokens.losses
    whole = TokenizerTask(recipe(source, trained)).model.train()
    assert whole(photos())[1].latents.requires_grad


def test_decoder_only_on_the_command_line_needs_a_start(tmp_path, capsys):
    command = ["train", "tokenizer", "--recipe", "tiny", "--decoder-only", "--out", str(tmp_path)]
    assert main([*command, f"data.source={photo_folder(tmp_path / 'photos', 12)}"]) == 2
    assert "trainable=decoder is for a trained tokenizer: give --init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainable=encoder"], "none of all, decoder"),
        (["encoder_init=dino.pth"], "give init or encoder_init, not both"),
        (["init=null", "lora_rank=4"], "lora_rank is for a trained tokenizer"),
        (["objective.masking=1"], "objective.masking must be in 0 .. 0.99, got 1"),
        (["objective.latent_noise=-1"], "objective.latent_noise must be in 0 .. .*, got -1"),
        (["train.layer_decay=0"], "train.layer_decay must be in 0.001 .. 1, got 0"),
        (
            ["trainable=decoder", "alignment.weight=1", "alignment.teacher=x"],
            "alignment teaches the encoder, which is frozen",
        ),
    ],
)
def test_what_does_not_go_together_is_one_clear_line(source, trained, changes, message):
    with pytest.raises(UserError, match=message):
        TokenizerTask(recipe(source, trained, *changes))


def test_encoder_init_reaches_the_encoder(tmp_path, source):
    """From a file of DINOv2's names that holds the encoder's own shapes."""
    shape = ["model.stem=patch", "model.class_token=true", "model.layer_scale=1.0e-5"]
    shape += ["model.encoder_width=384", "model.encoder_depth=12", "model.encoder_heads=6"]
    other = load_recipe(TokenizerRecipe, "tiny", shape)
    torch.manual_seed(9)
    donor = Tokenizer(other.model).encoder
    state = {
        key.removeprefix("grid."): value.clone()
        for key, value in donor.state_dict().items()
        if not key.startswith("latent_")
    }
    save_file(state, tmp_path / "dino.safetensors")
    given = load_recipe(
        TokenizerRecipe, "tiny", [*shape, f"encoder_init={tmp_path / 'dino.safetensors'}"]
    )
    task = TokenizerTask(given)
    for one, two in zip(task.model.tokenizer.encoder.blocks, donor.blocks, strict=True):
        assert torch.equal(one.attn.qkv.weight, two.attn.qkv.weight)


# ---- rates by depth ----


def test_shares_fall_with_depth_as_in_beit():
    names = [
        "tokenizer.encoder.latent_tokens",
        "tokenizer.encoder.patch_embed.proj.weight",
        "tokenizer.encoder.blocks.0.norm1.weight",
        "tokenizer.encoder.blocks.2.mlp.fc1.weight",
        "tokenizer.encoder.norm.weight",
        "tokenizer.to_latent.weight",
        "tokenizer.decoder.mask_token",
        "tokenizer.decoder.blocks.1.norm1.weight",
        "tokenizer.decoder.to_pixels.weight",
        "head.mlp.0.weight",
    ]
    expected = [0.5**4, 0.5**4, 0.5**3, 0.5, 1, 1, 0.5**3, 0.5, 1, 1]
    assert list(depth_shares(names, 0.5).values()) == expected
    assert set(depth_shares(names, 1.0).values()) == {1.0}


def test_both_optimizers_take_the_shares(source, trained):
    config = recipe(source, trained, "train.layer_decay=0.5")
    model = TokenizerTask(config).model
    peaks = {}
    for kind, optimizer in zip(("adamw", "muon"), optimizers(model, config.train), strict=True):
        for group in optimizer.param_groups:
            peaks |= {id(p): (kind, group["peak"]) for p in group["params"]}
    named = dict(model.tokenizer.named_parameters())
    assert len(peaks) == len(named)
    for name, expected in {
        "encoder.blocks.0.attn.qkv.weight": ("muon", config.train.muon_lr / 4),
        "decoder.blocks.1.attn.qkv.weight": ("muon", config.train.muon_lr / 2),
        "encoder.blocks.1.norm1.weight": ("adamw", config.train.lr / 2),
        "encoder.latent_tokens": ("adamw", config.train.lr / 8),
        "from_latent.weight": ("adamw", config.train.lr),
    }.items():
        assert peaks[id(named[name])] == expected, name


# ---- adapters ----


@pytest.mark.parametrize("trainable", ["all", "decoder"])
def test_adapters_are_all_that_learns_and_are_merged(tmp_path, source, trained, trainable):
    pytest.importorskip("peft")
    settings = [f"trainable={trainable}", "lora_rank=2", "train.ema_halflife=1"]
    config = recipe(source, trained, *settings, "train.optimizer=adamw")
    task = TokenizerTask(config)
    learning = {name for name, p in task.model.named_parameters() if p.requires_grad}
    parts = 1 if trainable == "decoder" else 2
    assert len(learning) == parts * 2 * 4 * 2  # blocks, matrices, A and B
    assert all("lora_" in name for name in learning)
    run = tmp_path / "run"
    assert train_tokenizer(config, run)
    before, after = Tokenizer.from_pretrained(trained), Tokenizer.from_pretrained(run)
    old, new = before.state_dict(), after.state_dict()
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    matrices = {key for key in old if "blocks." in key and key.endswith("weight")}
    expected = {key for key in matrices if old[key].ndim == 2 and "adaLN" not in key}
    if trainable == "decoder":
        expected = {key for key in expected if key.startswith("decoder.")}
    else:
        expected |= {"latent_mean", "latent_std"}
    assert changed == expected
    for key in expected:
        if old[key].ndim == 2:
            assert torch.linalg.matrix_rank(new[key] - old[key], rtol=1e-3) <= 2
    logged = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert "psnr" in logged[-1]


# ---- masked and noised ----


def small(**changes):
    torch.manual_seed(0)
    config = load_recipe(
        TokenizerRecipe, "tiny", [f"objective.{k}={v}" for k, v in changes.items()]
    )
    return Autoencoding(Tokenizer(config.model), None, config.objective)


@pytest.mark.parametrize("change", [{"masking": 0.7}, {"latent_noise": 3.0}])
def test_masking_and_noise_are_for_training_alone(change):
    changed, plain = small(**change), small()
    changed.eval()
    assert torch.equal(changed(photos())[0], plain.eval()(photos())[0])
    changed.train(), plain.train()
    torch.manual_seed(1)
    one = changed(photos())[0]
    torch.manual_seed(1)
    assert torch.equal(one, changed(photos())[0])
    assert not torch.equal(one, plain(photos())[0])


def test_masking_draws_its_share_and_each_image_its_patches():
    torch.manual_seed(0)
    kept = [unmasked(photos(), 8, 0.5) for _ in range(400)]
    counts = torch.tensor([float(keep.shape[1]) for keep in kept])
    assert counts.min() == 8 and counts.max() == 16
    assert counts.mean() == pytest.approx(12, abs=0.5)  # four standard deviations
    for keep in kept:
        assert all(len(set(row.tolist())) == keep.shape[1] for row in keep)
        assert keep.min() >= 0 and keep.max() < 16
    assert any(not torch.equal(keep[0], keep[1]) for keep in kept)


@pytest.mark.parametrize("rope", ["none", "axial", "mixed"])
@pytest.mark.parametrize("class_token", [False, True])
def test_a_patch_that_is_left_out_is_not_read(rope, class_token):
    """The other patches keep their places: any order of all of them gives the same tokens."""
    torch.manual_seed(0)
    settings = [f"model.rope={rope}", f"model.class_token={str(class_token).lower()}"]
    model = Tokenizer(load_recipe(TokenizerRecipe, "tiny", settings).model).eval()
    shuffled = torch.stack([torch.randperm(16) for _ in range(4)])
    whole, same = model.encode(photos()), model.encode(photos(), shuffled)
    torch.testing.assert_close(whole.latents, same.latents, atol=1e-4, rtol=1e-4)
    keep = torch.tensor([0, 3, 4, 9, 15]).expand(4, -1)
    changed = photos()
    changed[..., 8:16, 16:24] += 1  # patch 6
    assert torch.equal(model.encode(photos(), keep).latents, model.encode(changed, keep).latents)
    changed[..., 16:24, 8:16] += 1  # patch 9
    different = model.encode(changed, keep).latents - model.encode(photos(), keep).latents
    assert different.abs().max() > 1e-3


def test_noise_interpolates_between_latents_and_noise_of_their_size():
    """E = z / 2, and E of squares = z^2 / 3 + (strength sd)^2 / 3, for s ~ U(0, 1)."""
    torch.manual_seed(0)
    latents = 5 * torch.randn(2, 4, 3) + torch.tensor([0.0, 10, -3])
    many = latents.repeat(40_000, 1, 1)
    moved = noised(many, 2.0).unflatten(0, (-1, 2))
    deviation = latents.std((0, 1), correction=0)
    torch.testing.assert_close(moved.mean(0), latents / 2, atol=0.15, rtol=0.02)
    expected = latents.square() / 3 + (2 * deviation).square() / 3
    torch.testing.assert_close(moved.square().mean(0), expected, atol=0.2, rtol=0.03)
