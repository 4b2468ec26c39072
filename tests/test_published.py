"""The published recipes: what they ask for, and their objective with every term at work."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from softvq.cli import main
from softvq.errors import UserError
from softvq.io import load_tensors
from softvq.recipe import TokenizerRecipe, load_recipe, shipped_recipes
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.discriminator import FrozenViT
from softvq.tokenizer.lpips import LPIPS
from softvq.train.tokenizer import TokenizerTask, train_tokenizer

PUBLISHED = [name for name in shipped_recipes() if name.startswith("softvq-")]
FILES = ("objective.lpips_vgg", "adversary.dino", "alignment.teacher")


def test_there_are_all_variants():
    parts = [(s, n, px) for s in ("s", "b", "bl", "l") for n in (32, 64) for px in ("", "-512")]
    assert PUBLISHED == sorted(f"softvq-{s}-{n}{px}" for s, n, px in parts)


@pytest.mark.parametrize("name", PUBLISHED)
def test_objective_is_the_published_one(name):
    recipe = load_recipe(TokenizerRecipe, name, [])
    objective, adversary, alignment = recipe.objective, recipe.adversary, recipe.alignment
    assert (objective.l1, objective.l2, objective.perceptual, objective.lpips) == (0, 1, 0, 1)
    assert (adversary.weight, adversary.adaptive, adversary.loss) == (0.2, False, "hinge")
    assert (adversary.discriminator, adversary.augment) == ("dino", 0.5)
    assert (adversary.consistency, adversary.lecam) == (4, 0.001)
    assert (alignment.weight, alignment.scheme, alignment.hidden) == (0.1, "repeat", 1024)
    assert recipe.model.entropy_weight == 0.01
    steps = [n / recipe.train.batch for n in (objective.lpips_warmup, adversary.start)]
    assert steps == [10_000, 20_000]


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_files_one_line_names_every_key(name):
    with pytest.raises(UserError) as error:
        TokenizerTask(load_recipe(TokenizerRecipe, name, []))
    assert all(f"{key}=" in str(error.value) for key in FILES)


@pytest.mark.parametrize("given", FILES)
def test_only_what_is_lacking_is_asked_for(given):
    with pytest.raises(UserError) as error:
        TokenizerTask(load_recipe(TokenizerRecipe, "softvq-s-64", [f"{given}=x"]))
    assert [key for key in FILES if f"{key}=" not in str(error.value)] == [given]


def test_it_is_said_before_any_photo_is_read(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", "tokenizer", "--recipe", "softvq-l-64", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(key in said for key in FILES) and not out.exists()


@pytest.fixture
def files(tmp_path):
    """Random networks in the layouts of the public ones: overrides that name them."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vgg = {k: v for k, v in LPIPS().state_dict().items() if k.startswith("features.")}
    save_file(vgg, tmp_path / "vgg16.safetensors")
    save_file(FrozenViT(64, 4, 1).state_dict(), tmp_path / "dino.safetensors")
    shape = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**shape, image_size=28, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "teacher")
    names = ("vgg16.safetensors", "dino.safetensors", "teacher")
    return [f"{key}={tmp_path / name}" for key, name in zip(FILES, names, strict=True)]


SMALL = [
    "model.height=32", "model.width=32", "model.patch=8", "model.tokens=8", "model.channels=8",
    "model.codebook_size=32",
    *(f"model.{p}_{k}" for p in ("encoder", "decoder") for k in ("width=32", "depth=2", "heads=2")),
    "objective.lpips_warmup=8", "adversary.start=4", "alignment.hidden=16", "train.images=12",
    "train.batch=4", "train.warmup=4", "train.log_every=4", "train.evaluate_every=12",
]  # fmt: skip


def test_the_whole_objective_trains(tmp_path, files):
    """Three steps: LPIPS at no, half and full weight, the GAN from the second on."""
    recipe = load_recipe(TokenizerRecipe, "softvq-s-64", [*SMALL, *files])
    folder = tmp_path / "run"
    assert train_tokenizer(recipe, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    always = {"l2", "alignment", "entropy"}
    played = {"adversarial", "discriminator", "consistency", "lecam", "adversary_grad_norm"}
    for line, terms in zip(steps, (set(), {"lpips"} | played, {"lpips"} | played), strict=True):
        assert line.keys() & (always | played | {"lpips", "perceptual"}) == always | terms
        assert all(math.isfinite(value) for value in line.values())
        parts = always | (terms & {"lpips", "adversarial"})
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts), rel=1e-5)
    assert Tokenizer.from_pretrained(folder).config == recipe.model
    state = load_tensors(max((folder / "checkpoints").glob("*.safetensors")))
    heads = {k: v for k, v in state.items() if k.startswith("adversary.")}
    assert heads and not any("frozen" in k or "blocks" in k for k in heads)
    assert state["adversary.lecam.real"] != 0 and state["adversary.lecam.fake"] != 0
