"""A plan on paper against real training steps, published sizes, and sums by hand."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from softvq.cli import main
from softvq.options import GPUName
from softvq.plan import GPU, GPUS, NETWORK, plan, work
from softvq.recipe import GeneratorRecipe, TokenizerRecipe, load_recipe
from softvq.train.photos import Batch
from softvq.train.tokenizer import TokenizerTask

PATCHGAN = ["adversary.weight=0.1", "adversary.width=8", "adversary.depth=2"]


@pytest.mark.parametrize(
    "name, more",
    [
        ("tiny", []),
        ("tiny", [*PATCHGAN, "objective.eye=1"]),
        ("tiny", [*PATCHGAN, "adversary.consistency=4"]),
        ("tiny", ["alignment.weight=1", "alignment.teacher=eye-7x7", "objective.eye=0"]),
        ("nested", ["model.height=64", "model.width=64", "model.tokens=4"]),
    ],
)
def test_operations_are_those_of_a_training_step(name, more):
    recipe = load_recipe(TokenizerRecipe, name, [*more, "train.precision=fp32"])
    task = TokenizerTask(recipe)
    config, count = recipe.model, 4
    pixels = torch.randn(count, 3, config.height, config.width).clamp(-1, 1)
    rows = torch.arange(count)
    batch = Batch(pixels, rows, rows, torch.zeros(count, dtype=torch.bool), 10**9)
    made = None
    with FlopCounterMode(display=False) as counter:
        for player in task.players:
            turn = player.loss(player.module.train(), batch, made)
            turn.loss.backward()
            made = turn.made if made is None else made
    planned = sum(part.flops for part in work(recipe))
    assert planned == pytest.approx(counter.get_total_flops() / count, rel=0.1)


@pytest.mark.parametrize(
    "name, millions",
    [("sit-xl", 675), ("dit-xl", 675), ("mar-b", 208), ("mar-l", 479), ("mar-h", 943)],
)
def test_parameters_are_the_published_ones(name, millions):
    """SiT: Ma et al. 2024, DiT: Peebles & Xie 2022, MAR: Li et al. 2024."""
    found = work(load_recipe(GeneratorRecipe, name))[0].learned / 1e6
    assert found == pytest.approx(millions, rel=0.02)


def test_times_and_messages_by_hand():
    recipe = load_recipe(TokenizerRecipe, "softvq-s-64")
    gpu = GPU(tflops=100, memory=80, link=300, watts=400)
    parts = work(recipe)
    flops = sum(part.flops * part.share for part in parts)
    learned = sum(part.learned for part in parts)
    one = plan(recipe, parts, 1, gpu, 0.5)
    assert one.seconds == pytest.approx(256 * flops / (100e12 * 0.5))
    assert one.hours == pytest.approx(one.steps * one.seconds / 3600) and one.communicated == 0
    two = plan(recipe, parts, 2, gpu, 0.5)
    assert two.communicated * 1e9 == pytest.approx(2 * 4 * learned / 2)  # a ring: 2 (n - 1) / n
    many = plan(recipe, parts, 1000, replace(gpu, tflops=1000), 0.5)
    assert many.batch == 8000 and many.steps == -(-recipe.train.images // 8000)
    computing = many.batch * flops / 1000 / (1000e12 * 0.5)
    travelling = many.communicated / NETWORK
    assert many.seconds == pytest.approx(computing + travelling - computing * 2 / 3)
    assert many.waiting == pytest.approx(1 - computing / many.seconds) and one.waiting == 0


def test_what_saves_memory_saves_it():
    recipe = load_recipe(TokenizerRecipe, "softvq-l-64")
    parts = work(recipe)
    whole = plan(recipe, parts, 8, GPUS["h100"], 0.35)
    for key, value in (("parallel", "fsdp"), ("accumulate", 4), ("recompute", True)):
        other = replace(recipe, train=replace(recipe.train, **{key: value}))
        less = plan(other, parts, 8, GPUS["h100"], 1)
        assert less.memory < 0.9 * whole.memory, key


def test_the_command(capsys):
    assert set(get_args(GPUName)) == {*GPUS}
    asked = ["plan", "--recipe", "softvq-s-64", "--gpus", "4", "--price-per-hour", "2"]
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "LPIPS" in said and "teacher" in said and "EUR" in said
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["gpus"] for run in found["runs"]] == [1, 4, 10, 1000]
    run = found["runs"][1]
    assert run["money"] == pytest.approx(2 * 4 * run["hours"])
    for wrong in (["--recipe", "probe"], ["--utilisation", "2"], ["--recipe", "none"]):
        assert main(["plan", *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
