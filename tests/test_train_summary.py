"""What a training says before it starts and after its end."""

import shlex

import pytest
import torch
from contract import small
from helpers.pictures import photos

from softvq.recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.train.folder import metrics
from softvq.train.generator import make_model
from softvq.train.summary import plan, result
from softvq.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"), 40)


def test_a_plan_counts_photos_and_parameters_and_writes_nothing(tmp_path, source):
    torch.manual_seed(0)
    Tokenizer(small()).save_pretrained(tmp_path / "tokenizer")
    settings = [f"data.source={source}", "train.images=1000"]
    generator = load_recipe(
        GeneratorRecipe, "tiny-generator", [*settings, f"tokenizer={tmp_path / 'tokenizer'}"]
    )
    tokenizer = load_recipe(TokenizerRecipe, "tiny", settings)
    side = ["height=32", "width=32", "channels=8"]
    recipes = [
        (tokenizer, Tokenizer(tokenizer.model)),
        (generator, make_model(generator, small(), 2, None)),
        (load_recipe(ProbeRecipe, "probe", [*settings, *side]), None),
    ]
    before = sorted(tmp_path.rglob("*")), sorted(source.rglob("*"))
    for recipe, model in recipes:
        found = plan(recipe)
        assert (found.training, found.held_out, found.classes) == (36, 4, ["class0", "class1"])
        assert found.size == (32, 32) and found.images == 1000 and 0 < found.seconds < 3600
        if model is not None:
            assert found.parameters == sum(p.numel() for p in model.parameters())
        assert "36 for training, 4 held out" in str(found)
    assert (sorted(tmp_path.rglob("*")), sorted(source.rglob("*"))) == before


def test_the_end_says_the_figure_the_place_and_the_next_command(tmp_path, source):
    run = tmp_path / "a run"
    settings = [f"data.source={source}", "train.images=64", "train.evaluate_every=64"]
    recipe = load_recipe(TokenizerRecipe, "tiny", settings)
    assert train_tokenizer(recipe, run)
    found = result(recipe, run)
    assert found.figures["psnr"] == metrics(run, "psnr")[-1]["psnr"] and found.images == 64
    assert f"psnr {found.figures['psnr']:.4g}" in str(found) and str(run) in str(found)
    words = shlex.split(str(found).split("next: ")[1])
    assert words[:4] == ["softvq", "reconstruct", "--tokenizer", str(run)]
    assert "\n" not in str(found)
