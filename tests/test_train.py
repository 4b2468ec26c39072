"""The training loop: learning, stopping, resuming, and what it says when something is wrong."""

import dataclasses
import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from softvq.data import open_store
from softvq.errors import UserError
from softvq.evaluate.distances import frechet_distance
from softvq.evaluate.model import probe_features
from softvq.evaluate.probe import Probe
from softvq.io import load_tensors
from softvq.recipe import ProbeRecipe, TokenizerRecipe, TrainConfig, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.train.checkpoint import load_newest, save_checkpoint
from softvq.train.loop import average, optimizers, rate, train
from softvq.train.probe import train_probe
from softvq.train.tokenizer import TokenizerTask, train_tokenizer


class Line:
    """A task of one parameter: fit y = 2x. It sees the batch position, so order matters."""

    def __init__(self, images=64, poison=None, pause=0.0):
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.images, self.poison, self.pause = images, poison, pause
        self.draws = []

    def batches(self, start, rank, world):
        for position in range(start, self.images, 8):
            time.sleep(self.pause)
            yield torch.arange(position, position + 8.0)[:, None] / 64

    def loss(self, net, x):
        noise = torch.randn(())
        self.draws.append(noise.item())
        error = (net(x) - 2 * x - 0.01 * noise).square().mean()
        if self.poison == len(self.draws):
            error = error * float("nan")
        return error, {"noise": noise}

    def evaluate(self, model, folder, seen):
        return {"weight": model.weight.item()}

    def export(self, model, folder):
        (folder / "exported").write_text(str(model.weight.item()))


CONFIG = TrainConfig(
    images=64,
    batch=8,
    optimizer="adamw",
    lr=0.1,
    warmup=8,
    precision="fp32",
    checkpoint_every=8,
    log_every=8,
    evaluate_every=64,
)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_what_it_promises(tmp_path):
    assert train(Line(), CONFIG, tmp_path, "recipe")
    logged = lines(tmp_path)
    assert [line["seen"] for line in logged if "loss" in line] == list(range(8, 65, 8))
    assert [line["seen"] for line in logged if "weight" in line] == [64]
    assert (tmp_path / "exported").is_file() and (tmp_path / "recipe.yaml").is_file()
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 2
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(Line(), CONFIG, tmp_path, "recipe")
    again = Line()
    assert train(again, CONFIG, tmp_path, "recipe")
    assert again.draws == []


def test_stopped_and_continued_equals_uninterrupted(tmp_path):
    whole = Line()
    train(whole, CONFIG, tmp_path / "whole", "recipe")
    stopped = Line(pause=0.05)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert not train(stopped, CONFIG, tmp_path / "parts", "recipe")
    assert 0 < len(stopped.draws) < 8
    rest = Line()
    assert train(rest, CONFIG, tmp_path / "parts", "recipe")
    assert stopped.draws + rest.draws == whole.draws
    name = "checkpoints/000000000064.safetensors"
    one, two = load_tensors(tmp_path / "whole" / name), load_tensors(tmp_path / "parts" / name)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["seen"] for line in lines(tmp_path / "parts")] == [
        line["seen"] for line in lines(tmp_path / "whole")
    ]


@pytest.mark.parametrize("harm", ["truncate", "flip", "no weights", "half a note"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys, harm):
    train(Line(), CONFIG, tmp_path, "recipe")
    weights = tmp_path / "checkpoints" / "000000000064.safetensors"
    data = bytearray(weights.read_bytes())
    if harm == "truncate":
        weights.write_bytes(data[:-7])
    elif harm == "flip":
        data[-3] ^= 1
        weights.write_bytes(data)
    elif harm == "no weights":
        weights.unlink()
    else:
        weights.with_suffix(".json").write_text('{"seen": 6')
    seen, state, complaints = load_newest(tmp_path / "checkpoints")
    assert seen == 56 and "model.weight" in state
    assert len(complaints) == 1 and "is damaged; using the one before it" in complaints[0]
    rest = Line()
    assert train(rest, CONFIG, tmp_path, "recipe")
    assert len(rest.draws) == 1
    assert "is damaged" in capsys.readouterr().err


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    train(Line(), CONFIG, tmp_path, "batch: 8\n")
    with pytest.raises(UserError, match=r"another recipe \(batch: 16; batch: 8\)"):
        train(Line(), CONFIG, tmp_path, "batch: 16\n")


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no longer finite at 32 images"):
        train(Line(poison=5), CONFIG, tmp_path, "recipe")
    seen, state, _ = load_newest(tmp_path / "checkpoints")
    assert seen == 32 and all(torch.isfinite(value).all() for value in state.values())


def test_only_two_checkpoints_are_kept_and_leftovers_go(tmp_path):
    (tmp_path / "000000000001.safetensors").write_bytes(b"half")
    for seen in (10, 20, 30):
        save_checkpoint(tmp_path, seen, {"x": torch.ones(1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000000020.json", "000000000020.safetensors",
        "000000000030.json", "000000000030.safetensors",
    ]  # fmt: skip


def test_rate_rises_and_falls_by_images_seen():
    config = TrainConfig(images=1000, batch=10, warmup=100, schedule="linear", final_lr=0.1)
    assert rate(config, 0) == pytest.approx(10 / 110)
    assert rate(config, 100) == 1
    assert rate(config, 550) == pytest.approx(0.55)
    assert rate(config, 1000) == pytest.approx(0.1)
    cosine = dataclasses.replace(config, schedule="cosine")
    assert rate(cosine, 550) == pytest.approx(0.55)
    assert rate(cosine, 325) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5 * 0.5**0.5))


def test_average_is_the_weighted_mean():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.75 * one.weight + 0.25 * two.weight
    average(one, two, keep=0.75)
    torch.testing.assert_close(one.weight, expected)


def test_muon_gets_block_matrices_and_adamw_the_rest():
    recipe = load_recipe(TokenizerRecipe, "tiny", [])
    tokenizer = Tokenizer(recipe.model)
    adamw, muon = optimizers(tokenizer, recipe.train)
    names = {id(p): name for name, p in tokenizer.named_parameters()}
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert len(matrices) == 4 * 4  # qkv, proj, fc1, fc2 in 2 + 2 blocks
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert not matrices & others and len(matrices | others) == len(names)
    assert all(p.ndim <= 1 for p in adamw.param_groups[1]["params"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.precision=fp16", "train.precision 'fp16' is none of auto, bf16, fp32"),
        ("train.optimizer=sgd", "none of adamw, muon"),
        ("train.schedule=step", "none of cosine, linear"),
        ("train.batch=0", "train.batch must be above 0, got 0"),
        ("train.batch=many", "batch"),
        ("train.btach=8", "did you mean 'train.batch'"),
        ("modle.patch=8", "did you mean 'model'"),
        ("model.tokens=0", "tokens must be above 0"),
        ("model.patch=7", "not divisible by patch 7"),
        ("model.encoder_heads=5", "not divisible by heads 5"),
        ("data.fit=squash", "unknown fit 'squash'"),
        ("data.margin=0.5", "margin must be 1 or more"),
        ("train.batch", "not an override of the form key.subkey=value"),
    ],
)
def test_a_wrong_recipe_value_is_one_clear_line(tmp_path, override, message):
    with pytest.raises(UserError, match=message) as caught:
        train_tokenizer(load_recipe(TokenizerRecipe, "tiny", [override]), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bottleneck", ["softvq", "vq", "kl", "ae"])
def test_200_steps_on_the_builtin_photos_halve_the_loss(tmp_path, bottleneck):
    recipe = load_recipe(
        TokenizerRecipe,
        "tiny",
        [f"model.bottleneck={bottleneck}", "train.log_every=32", "train.evaluate_every=6400"],
    )
    assert train_tokenizer(recipe, tmp_path)
    logged = lines(tmp_path)
    losses = [line["l2"] for line in logged if "l2" in line]
    assert losses[-1] < losses[0] / 2
    final = [line for line in logged if "psnr" in line][-1]
    assert final["psnr"] > 14
    if bottleneck in ("softvq", "vq"):
        assert 0 < logged[-2]["codebook_usage"] <= 1
    tokenizer = Tokenizer.from_pretrained(tmp_path)
    assert not torch.equal(tokenizer.latent_std, torch.ones_like(tokenizer.latent_std))


def test_probe_learns_and_measures(tmp_path):
    """Better than chance (1/14) on held-out crops after 60 steps; distances order pictures."""
    recipe = load_recipe(
        ProbeRecipe,
        "probe",
        ["height=32", "width=32", "channels=8", "train.images=1920", "train.batch=32"],
    )
    assert train_probe(recipe, tmp_path)
    assert lines(tmp_path)[-1]["held_out_accuracy"] > 0.3
    probe = Probe.from_pretrained(tmp_path)
    store = open_store("builtin", "val", (32, 32), tmp_path / "photos", 1.0)
    pictures = np.asarray(store.images)
    blurred = np.repeat(np.repeat(pictures[:, ::4, ::4], 4, 1), 4, 2)
    real = probe_features(probe, pictures)
    assert real.shape == (len(store), 32)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(real, probe_features(probe, blurred)) > 0.01
    with pytest.raises(UserError, match="train one at their size"):
        probe_features(probe, pictures[:, :16])


def test_probe_needs_classes(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    recipe = load_recipe(ProbeRecipe, "probe", [f"data.source={tmp_path / 'photos'}"])
    with pytest.raises(UserError, match="2 or more classes"):
        train_probe(recipe, tmp_path / "run")


def test_init_starts_from_the_given_weights_and_wants_their_shape(tmp_path):
    torch.manual_seed(5)
    recipe = load_recipe(TokenizerRecipe, "tiny", [f"init={tmp_path}"])
    trained = Tokenizer(recipe.model)
    trained.save_pretrained(tmp_path)
    task = TokenizerTask(recipe, None, None)
    assert all(
        torch.equal(one, two)
        for one, two in zip(task.model.parameters(), trained.parameters(), strict=True)
    )
    other = load_recipe(TokenizerRecipe, "tiny", [f"init={tmp_path}", "model.tokens=4"])
    with pytest.raises(UserError, match=r"not of the recipe's shape; add model.tokens=8"):
        TokenizerTask(other, None, None)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_every_precision_can_be_given_on_the_command_line(precision):
    """YAML reads a bare ``no`` as false, so no value may look like that."""
    recipe = load_recipe(TokenizerRecipe, "tiny", [f"train.precision={precision}"])
    assert recipe.train.precision == precision
