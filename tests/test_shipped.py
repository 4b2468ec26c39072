"""The model in the package: complete, nested, and as good as its card says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from softvq import cli, images
from softvq.coding import decode_all, encode_all
from softvq.data import fixed_batches, open_store
from softvq.evaluate.baselines import thumbnail
from softvq.evaluate.pixels import psnr
from softvq.fingerprint import fingerprint
from softvq.generator.flowmap import FlowMap, Told
from softvq.generator.guidance import Guided
from softvq.generator.sampler import NoiseStreams
from softvq.generator.transformer import SiT
from softvq.models import model_folder, open_tokenizer
from softvq.pipeline import Pipeline
from softvq.probe import Probe
from softvq.recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe, load_recipe

FOLDER = model_folder("shipped")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("shipped")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Crops of the built-in photos, of another kind than it was trained on."""
    return open_store("builtin", "val", (256, 256), tmp_path_factory.mktemp("photos"), 1.0)


def test_it_is_within_its_limits(pipeline):
    config = pipeline.tokenizer.config
    assert (config.height, config.width) == (256, 256)
    assert config.nested and (config.tokens, config.channels) == (64, 32)
    parts = ("tokenizer", "generator", "probe", "many-step/generator")
    files = [FOLDER / part / "model.safetensors" for part in parts]
    assert sum(file.stat().st_size for file in files) <= 60e6
    assert 12 <= len(pipeline.classes) == pipeline.generator.config.num_classes <= 40
    assert open_tokenizer(FOLDER).config == open_tokenizer("shipped").config == config


@pytest.mark.parametrize(
    ("part", "kind", "name", "metric"),
    [
        ("tokenizer", TokenizerRecipe, "nested", "psnr"),
        ("tokenizer/sharpened-1", TokenizerRecipe, "sharpen", "psnr"),
        ("tokenizer/sharpened-2", TokenizerRecipe, "sharpen", "psnr"),
        ("many-step/generator/first", GeneratorRecipe, "nested-generator", "validation_loss"),
        ("many-step/generator", GeneratorRecipe, "nested-generator", "validation_loss"),
        ("generator", GeneratorRecipe, "few-step", "validation_loss"),
        ("probe", ProbeRecipe, "probe", "held_out_accuracy"),
    ],
)
def test_each_part_has_its_recipe_and_its_whole_log(part, kind, name, metric):
    used = load_recipe(kind, str(FOLDER / part / "recipe.yaml"), [])
    packaged = load_recipe(kind, name, [])
    if part != "generator":  # whose shape is that of the one it was made of
        assert getattr(used, "model", None) == getattr(packaged, "model", None)
    log = [json.loads(line) for line in (FOLDER / part / "metrics.jsonl").open()]
    assert log[-1]["seen"] == used.train.images and metric in log[-1]
    assert "/" not in used.data.source


def test_more_tokens_are_better_and_beat_thumbnails_of_as_many_numbers(pipeline, photos):
    pictures = [photos.images[i] for i in range(0, len(photos), max(1, len(photos) // 8))]
    latents = encode_all(pipeline.tokenizer, pictures)
    originals, last = np.stack(pictures), 0.0
    for k in (1, 4, 16, 64):
        quality = psnr(originals, decode_all(pipeline.tokenizer, latents[:, :k]))
        row = thumbnail(originals, 32 * k, False, Image.Resampling.LANCZOS)
        assert quality > psnr(originals, row.rebuilt) and quality > last + 0.5
        last = quality


def test_few_evaluations_draw_what_many_do(pipeline, monkeypatch):
    """From like noise: nearer with each evaluation, and far nearer than another noise's picture."""
    many = Pipeline.from_pretrained("shipped-many-step")
    assert many.classes == pipeline.classes and isinstance(many.generator, SiT)
    assert isinstance(pipeline.generator, FlowMap)
    assert fingerprint(many.tokenizer) == many.generator.config.tokenizer
    many.precision = "fp32"  # without padding to blocks of images
    monkeypatch.setattr(pipeline, "precision", "fp32")
    labels = many.classes[:4]
    normal = many.tokenizer.normalize
    wanted, others = (normal(many.generate_latents(labels, seed=seed)) for seed in (0, 1))
    apart = [
        (normal(pipeline.generate_latents(labels, seed=0, steps=steps)) - wanted).abs().mean()
        for steps in (1, 2, 4)
    ]
    assert apart[0] > apart[1] > apart[2]
    assert apart[0] < 0.5 * (others - wanted).abs().mean()
    usual = pipeline.generate_latents(labels, seed=0)
    assert torch.equal(usual, pipeline.generate_latents(labels, seed=0, steps=2))


def test_guidance_leads_where_it_leads_the_one_of_many_steps(pipeline):
    """Of what guidance adds to the velocity a part was learned, and little else."""
    many, few = Pipeline.from_pretrained("shipped-many-step").generator, pipeline.generator
    y = torch.arange(13)
    x = NoiseStreams(0, range(13)).draw(64, 32)
    t = torch.full((13,), 1.0)
    with torch.no_grad():
        wanted = Guided(many, 4.0)(x, t, y) - many(x, t, y)
        found = Told(few, 4.0)(x, t, y) - Told(few)(x, t, y)
    assert (found * wanted).sum() > 0.25 * wanted.square().sum()
    assert (found - wanted).square().mean() < 0.8 * wanted.square().mean()


def test_the_one_of_many_steps_is_known_by_name(capsys, tmp_path):
    assert open_tokenizer("shipped-many-step").config == open_tokenizer("shipped").config
    assert cli.main(["info", "shipped-many-step"]) == 0
    assert "SiT" in capsys.readouterr().out
    assert cli.main(["cost", "shipped-many-step", "shipped"]) == 0
    row = next(x for x in capsys.readouterr().out.splitlines() if "in steps" in x)
    assert row.split()[2:4] == ["50", "2"]
    command = ["generate", "--model", "shipped-many-step", "--steps", "1", "--count", "1"]
    assert cli.main([*command, "--out", str(tmp_path / "out")]) == 0


def test_latents_of_photos_have_zero_mean_and_unit_variance(pipeline, photos):
    pixels, _ = next(fixed_batches(photos, 16))
    unit = pipeline.tokenizer.normalize(pipeline.tokenizer.encode(pixels).latents)
    assert unit.mean().abs() < 0.3 and 0.5 < unit.std() < 1.5


def test_generated_pictures_depend_on_their_label(pipeline):
    """The probe, a network of its own, recognises the classes far more often than by chance."""
    probe = Probe.from_pretrained(FOLDER / "probe")  # of the same classes in the same order
    assert probe.config.classes == len(pipeline.classes)
    drawn = pipeline(pipeline.classes, guidance=4.0)
    small = np.stack([np.asarray(p.resize((64, 64), Image.Resampling.LANCZOS)) for p in drawn])
    found = probe(images.to_tensor(small)).argmax(1).tolist()
    assert sum(found[i] == i for i in range(len(found))) >= 6
