"""The model in the package: complete, small, and as good as its card says."""

import json

import numpy as np
import pytest
from PIL import Image

from softvq import images
from softvq.coding import reconstruct_all
from softvq.data import fixed_batches, open_store
from softvq.evaluate.baselines import thumbnail
from softvq.evaluate.pixels import psnr
from softvq.models import model_folder, open_tokenizer
from softvq.pipeline import Pipeline
from softvq.probe import Probe
from softvq.recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe, load_recipe

FOLDER = model_folder("shipped")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("shipped")


def test_it_is_within_its_limits(pipeline):
    config = pipeline.tokenizer.config
    assert (config.height, config.width) == (64, 64)
    assert config.tokens * config.channels <= 512
    files = [FOLDER / part / "model.safetensors" for part in ("tokenizer", "generator")]
    assert sum(file.stat().st_size for file in files) <= 30e6
    assert len(pipeline.classes) == pipeline.generator.config.num_classes == 10
    assert open_tokenizer(FOLDER).config == open_tokenizer("shipped").config == config


@pytest.mark.parametrize(
    ("part", "kind", "name", "metric"),
    [
        ("tokenizer", TokenizerRecipe, "small", "psnr"),
        ("generator", GeneratorRecipe, "small-generator", "validation_loss"),
        ("probe", ProbeRecipe, "probe", "held_out_accuracy"),
    ],
)
def test_each_part_has_its_recipe_and_its_whole_log(part, kind, name, metric):
    used = load_recipe(kind, str(FOLDER / part / "recipe.yaml"), [])
    packaged = load_recipe(kind, name, [])
    assert used.train.images == packaged.train.images
    assert getattr(used, "model", None) == getattr(packaged, "model", None)
    log = [json.loads(line) for line in (FOLDER / part / "metrics.jsonl").open()]
    assert log[-1]["seen"] == used.train.images and metric in log[-1]
    assert "/" not in used.data.source


def test_tokenizer_beats_a_thumbnail_of_as_many_numbers(pipeline, tmp_path):
    """13 x 13 x 3 = 507 values against 512, on photos of another kind than it was trained on."""
    photos = open_store("builtin", "val", (64, 64), tmp_path, 1.0)
    originals, rebuilt = reconstruct_all(pipeline.tokenizer, photos)
    small = [Image.fromarray(p).resize((13, 13), Image.Resampling.LANCZOS) for p in originals]
    enlarged = np.stack([np.asarray(p.resize((64, 64), Image.Resampling.BICUBIC)) for p in small])
    assert psnr(originals, rebuilt) > psnr(originals, enlarged) + 1
    # as benchmarks/same_numbers.py makes the row of the model card
    row = thumbnail(originals, 512, False, Image.Resampling.LANCZOS)
    assert row.setting == "13x13" and np.array_equal(row.rebuilt, enlarged)


def test_latents_of_photos_have_zero_mean_and_unit_variance(pipeline, tmp_path):
    photos = open_store("builtin", "val", (64, 64), tmp_path, 1.0)
    pixels, _ = next(fixed_batches(photos, 128))
    unit = pipeline.tokenizer.normalize(pipeline.tokenizer.encode(pixels).latents)
    assert unit.mean().abs() < 0.3 and 0.7 < unit.std() < 1.5


def test_generated_pictures_depend_on_their_label(pipeline):
    """The probe, a network of its own, recognises the classes more often than by chance (1/10)."""
    probe = Probe.from_pretrained(FOLDER / "probe")
    labels = [i for i in range(10) for _ in range(2)]
    drawn = np.stack([np.asarray(p) for p in pipeline(labels, steps=20, guidance=2.0)])
    found = probe(images.to_tensor(drawn)).argmax(1).tolist()
    assert sum(a == b for a, b in zip(found, labels, strict=True)) >= 8
