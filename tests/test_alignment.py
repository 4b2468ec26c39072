"""Alignment: teachers of every family, heads against brute force, the cache, and who learns."""

import json

import numpy as np
import pytest
import torch
from contract import photos
from helpers.pictures import photos as photo_folder
from torch.nn import functional as F

from softvq.data import open_store
from softvq.errors import UserError
from softvq.evaluate.features import load_network
from softvq.io import load_tensors
from softvq.models import open_teacher
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.tokenizer.alignment import HEADS, CrossAttention, Global, Pool, Repeat, negative_cosine
from softvq.tokenizer.terms import AlignmentConfig
from softvq.train.features import FeatureCache
from softvq.train.photos import Batch
from softvq.train.tokenizer import TokenizerTask, train_tokenizer

transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def vision(family: str, layers: int):
    """A random model of 16 patches, and how many tokens stand before them."""
    shape = SHAPE | {"num_hidden_layers": layers}
    torch.manual_seed(0)
    match family:
        case "dinov2":
            return transformers.Dinov2Model(transformers.Dinov2Config(**shape)), 1
        case "dinov2 with registers":
            config = transformers.Dinov2WithRegistersConfig(**shape, num_register_tokens=3)
            return transformers.Dinov2WithRegistersModel(config), 4
        case "dinov3":
            config = transformers.DINOv3ViTConfig(**shape, num_register_tokens=4)
            return transformers.DINOv3ViTModel(config), 5
        case "clip":
            return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**shape)), 1
        case "siglip":
            return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**shape)), 0
        case "mae":
            return transformers.ViTMAEModel(transformers.ViTMAEConfig(**shape)), 1
        case "vit":
            return transformers.ViTModel(transformers.ViTConfig(**shape)), 1
    raise ValueError(family)


FAMILIES = ["dinov2", "dinov2 with registers", "dinov3", "clip", "siglip", "mae", "vit"]


def saved(folder, family: str = "dinov2", layers: int = 2, **settings):
    """The folder of such a model with its preprocessor's settings."""
    model, _ = vision(family, layers)
    model.save_pretrained(folder)
    settings = {"image_mean": MEAN, "image_std": STD} | settings
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_the_patches(tmp_path, family):
    teacher = open_teacher(str(saved(tmp_path, family)))
    model, prefix = vision(family, 2)
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    options = {}
    if family == "mae":
        model.config.mask_ratio = 0.0
        options["noise"] = torch.linspace(0, 1, 16).expand(4, -1)
    with torch.no_grad():
        pixels = (photos() / 2 + 0.5 - mean) / std
        expected = model.eval()(pixels, **options).last_hidden_state[:, prefix:]
    features = teacher(photos())
    assert features.shape == (4, teacher.patches, teacher.width) == (4, 16, 32)
    torch.testing.assert_close(features, expected)
    assert not features.requires_grad and not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_feature_i_belongs_to_patch_i(tmp_path, family):
    """Without blocks nothing mixes: a changed patch changes its own feature and no other."""
    teacher = open_teacher(str(saved(tmp_path, family, layers=0)))
    changed = photos(1)
    row, column = 2, 1
    changed[..., 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] *= -0.5
    moved = (teacher(photos(1)) - teacher(changed)).abs().amax(-1)[0] > 1e-5
    assert moved.nonzero().flatten().tolist() == [4 * row + column]


def test_the_image_half_of_a_whole_clip(tmp_path):
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
        vision_config=SHAPE | {"num_hidden_layers": 1},
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    teacher = open_teacher(str(tmp_path))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        pixels = (photos() / 2 + 0.5 - mean) / std
        expected = model.vision_model(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(teacher(photos()), expected)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}}, 48),
        ({"size": {"height": 40, "width": 40}}, 40),
        ({"size": 24}, 24),
        ({}, 32),
    ],
)
def test_images_are_resized_to_what_the_teacher_was_trained_on(tmp_path, settings, size):
    teacher = open_teacher(str(saved(tmp_path, "dinov2", **settings)))
    assert teacher.size == size and teacher.patches == (size // 8) ** 2
    grey = torch.full((1, 3, 1, 1), 0.3)
    small, large = (teacher(grey.expand(-1, -1, s, s)) for s in (16, 56))
    assert small.shape == (1, teacher.patches, 32)
    torch.testing.assert_close(small, large)


def test_what_is_no_teacher_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="give its local directory, or alignment.download=true"):
        open_teacher(str(tmp_path / "none"))
    saved(tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x" * 100)
    for opens in (open_teacher, load_network):  # for training, and to measure distances
        with pytest.raises(UserError, match="damaged: not a vision model") as error:
            opens(str(tmp_path / "damaged"))
        assert "alignment" not in str(error.value) and "\n" not in str(error.value)
    transformers.BertModel(
        transformers.BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    ).save_pretrained(tmp_path / "bert")
    for opens in (open_teacher, load_network):
        with pytest.raises(UserError, match="bert: a bert has no fixed grid of patches"):
            opens(str(tmp_path / "bert"))
    transformers.Siglip2VisionModel(  # the one without a fixed size
        transformers.Siglip2VisionConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
    ).save_pretrained(tmp_path / "naflex")
    with pytest.raises(UserError, match="has no fixed grid of patches"):
        open_teacher(str(tmp_path / "naflex"))
    with pytest.raises(UserError, match="none of repeat, global, pool, cross-attention"):
        AlignmentConfig(scheme="shuffle")


# ---- heads ----


@pytest.mark.parametrize(("tokens", "patches"), [(8, 16), (8, 20), (5, 16), (16, 9), (7, 7)])
def test_repeat_gives_patch_i_the_token_floor_i_l_over_n(tokens, patches):
    head = Repeat(24, (tokens, 6), (patches, 10))
    latents = torch.randn(3, tokens, 6)
    predicted = head(latents)
    assert predicted.shape == (3, patches, 10)
    for i in range(patches):
        torch.testing.assert_close(predicted[:, i], head.mlp(latents[:, int(i * tokens / patches)]))
    if patches % tokens == 0:
        contiguous = head.mlp(latents).repeat_interleave(patches // tokens, dim=1)
        torch.testing.assert_close(predicted, contiguous)


def test_global_and_pool_average():
    features = torch.randn(3, 20, 10)
    head = Global(24, (8, 6), (20, 10))
    torch.testing.assert_close(head.target(features), features.mean(1, keepdim=True))
    assert head(torch.randn(3, 8, 6)).shape == (3, 1, 10)
    pooled = Pool(24, (8, 6), (20, 10)).target(features)
    for i in range(8):  # from floor(i N / L) to ceil((i + 1) N / L)
        share = features[:, i * 20 // 8 : -(-(i + 1) * 20 // 8)]
        torch.testing.assert_close(pooled[:, i], share.mean(1))


def test_cross_attention_mixes_the_tokens_predictions():
    head = CrossAttention(24, (8, 6), (20, 10))
    latents = torch.randn(3, 8, 6)
    values, keys = head.mlp(latents), head.key(latents) + head.position
    for i in range(20):
        weights = (keys @ head.query[0, i] / 24**0.5).softmax(-1)
        expected = (weights[..., None] * values).sum(1)
        torch.testing.assert_close(head(latents)[:, i], expected, atol=1e-5, rtol=1e-4)


def test_negative_cosine_is_minus_one_for_equal_directions():
    a = torch.randn(2, 5, 8)
    assert negative_cosine(a, 3 * a) == pytest.approx(-1)
    expected = -(F.normalize(a, dim=-1) * F.normalize(a.flip(0), dim=-1)).sum(-1).mean()
    torch.testing.assert_close(negative_cosine(a, a.flip(0)), expected)


# ---- in training ----


def recipe(folder, *more: str) -> TokenizerRecipe:
    values = ["alignment.weight=0.1", f"alignment.teacher={folder}", "alignment.hidden=16"]
    length = ["train.images=64", "train.log_every=32", "train.precision=fp32"]
    return load_recipe(TokenizerRecipe, "tiny", [*values, *length, *more])


@pytest.mark.parametrize("scheme", list(HEADS))
def test_gradient_reaches_encoder_and_head_and_not_the_teacher(tmp_path, scheme):
    task = TokenizerTask(recipe(saved(tmp_path), f"alignment.scheme={scheme}"))
    model = task.model.train()
    rows = torch.arange(4)
    terms = task.loss(model, Batch(photos(), rows, rows, rows < 0, 0)).terms
    terms["alignment"].backward()
    assert all(p.grad is not None and p.grad.any() for p in model.head.parameters())
    assert model.tokenizer.encoder.latent_tokens.grad.any()
    assert model.tokenizer.decoder.mask_token.grad is None
    assert all(p.grad is None for p in task.teacher.parameters())
    assert terms["alignment"].abs() <= 0.1


def test_the_head_is_not_saved_with_the_tokenizer_and_the_teacher_nowhere(tmp_path):
    source = photo_folder(tmp_path / "photos", 40)
    aligned = recipe(saved(tmp_path / "teacher"), f"data.source={source}")
    assert train_tokenizer(aligned, tmp_path / "run")
    names = load_tensors(tmp_path / "run" / "model.safetensors").keys()
    assert not any("head" in name or "tokenizer" in name for name in names)
    held = load_tensors(tmp_path / "run" / "checkpoints" / "000000000064.safetensors").keys()
    assert any(name.startswith("ema.head.mlp.") for name in held)
    assert not any("teacher" in name or "embeddings" in name for name in held)


def test_what_does_not_go_together_is_one_clear_line(tmp_path):
    teacher = saved(tmp_path)
    for change, message in (
        ("alignment.teacher=null", "give alignment.teacher=DIRECTORY"),
        ("alignment.cache=true", "set data.margin=1"),
    ):
        with pytest.raises(UserError, match=message):
            TokenizerTask(recipe(teacher, change))


@pytest.mark.parametrize("flip", [False, True])
def test_cached_features_are_the_teachers(tmp_path, flip):
    teacher = open_teacher(str(saved(tmp_path / "teacher")))
    source = photo_folder(tmp_path / "photos", 12)
    store = open_store(source, "all", (32, 32), tmp_path / "store", margin=1.0)
    cache = FeatureCache(tmp_path / "cache", teacher, store, flip)
    pictures = torch.stack([torch.tensor(np.array(x)) for x in store.images]).permute(0, 3, 1, 2)
    pictures = pictures.float() / 127.5 - 1
    rows, mirrored = torch.tensor([7, 2, 11]), torch.tensor([flip, False, flip])
    shown = torch.where(mirrored[:, None, None, None], pictures[rows].flip(-1), pictures[rows])
    torch.testing.assert_close(cache(rows, mirrored), teacher(shown), atol=2e-3, rtol=2e-3)
    wide = open_store(source, "all", (32, 32), tmp_path / "store", margin=1.25)
    with pytest.raises(UserError, match=r"set data.margin=1"):
        FeatureCache(tmp_path / "cache", teacher, wide, flip)
    written = (tmp_path / "cache" / "features.npy").stat().st_mtime_ns
    FeatureCache(tmp_path / "cache", teacher, store, flip)
    assert (tmp_path / "cache" / "features.npy").stat().st_mtime_ns == written
    with torch.no_grad():
        next(teacher.parameters()).add_(1)
    with pytest.raises(UserError, match="of another teacher or of other photos; delete it"):
        FeatureCache(tmp_path / "cache", teacher, store, flip)


def test_training_from_the_cache_is_training_with_the_teacher(tmp_path):
    logged = []
    for cache in ("false", "true"):
        values = recipe(
            saved(tmp_path / "teacher"), "data.margin=1", f"alignment.cache={cache}",
            f"data.source={photo_folder(tmp_path / 'photos', 40)}", "train.evaluate_every=64",
        )  # fmt: skip
        assert train_tokenizer(values, tmp_path / cache)
        lines = (tmp_path / cache / "metrics.jsonl").read_text().splitlines()
        logged.append([json.loads(line) for line in lines if "alignment" in line])
    assert len(logged[0]) == 2
    for one, two in zip(*logged, strict=True):
        assert one["alignment"] == pytest.approx(two["alignment"], abs=1e-4)
