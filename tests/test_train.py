"""The training loop: learning, stopping, resuming, and what it says when something is wrong."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from contract import photos
from killing import ROOT
from PIL import Image
from torch import nn

from softvq.data import open_store
from softvq.errors import UserError
from softvq.evaluate.distances import frechet_distance
from softvq.evaluate.features import probe_features
from softvq.io import load_tensors, save_tensors
from softvq.probe import Probe
from softvq.recipe import ProbeRecipe, TokenizerRecipe, TrainConfig, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.lpips import LPIPS
from softvq.tokenizer.objective import Objective
from softvq.tokenizer.terms import ObjectiveConfig
from softvq.train import loop
from softvq.train.checkpoint import load_newest, save_checkpoint
from softvq.train.folder import Journal, open_run
from softvq.train.optimizers import adamw, average, optimizers, rate
from softvq.train.photos import Batch
from softvq.train.players import Player, Turn
from softvq.train.probe import train_probe
from softvq.train.tokenizer import TokenizerTask, train_tokenizer


class Line:
    """A task of one parameter: fit y = 2x. It sees the batch position, so order matters."""

    name = "line"

    def __init__(self, images=64, poison=None, pause=0.0):
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.images, self.poison, self.pause = images, poison, pause
        self.draws = []
        self.players = [Player.model(self.model, self.loss, CONFIG)]

    def batches(self, start, rank, world):
        for position in range(start, self.images, 8):
            time.sleep(self.pause)
            yield torch.arange(position, position + 8.0)[:, None] / 64

    def loss(self, net, x, made=None):
        noise = torch.randn(())
        self.draws.append(noise.item())
        error = (net(x) - 2 * x - 0.01 * noise).square().mean()
        if self.poison == len(self.draws):
            error = error * float("nan")
        return Turn(error, {"noise": noise}, net(torch.ones(1, 1)).detach())

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


class Duel(Line):
    """With an adversary that from image 24 on learns, with noise, what the model says of 1."""

    def __init__(self, *args, harm=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.adversary = nn.Linear(1, 1)
        self.harm, self.duels = harm, []
        rates = {"adversary.lr": 0.05}
        self.players.append(
            Player("adversary", self.adversary, self.adversary_loss, self.optimizers, rates)
        )

    def optimizers(self, net):
        return [adamw([(p, 0.05) for p in net.parameters()], 0.0)]

    def adversary_loss(self, net, x, said):
        position = round(x[0].item() * 64)
        if position < 24:
            return None
        self.duels.append(position)
        error = (net(torch.ones(1, 1)) - said + 0.01 * torch.randn(())).square().mean()
        return Turn(error * (float("nan") if position == self.harm else 1), {"said": said.mean()})


def train(task, config, folder, recipe="recipe: line\n"):
    with open_run(folder, recipe):
        return loop.train(task, config, folder)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_what_it_promises(tmp_path):
    assert train(Line(), CONFIG, tmp_path)
    logged = lines(tmp_path)
    assert [line["seen"] for line in logged if "loss" in line] == list(range(8, 65, 8))
    assert [line["seen"] for line in logged if "weight" in line] == [64]
    assert (tmp_path / "exported").is_file() and (tmp_path / "recipe.yaml").is_file()
    assert len(list((tmp_path / "checkpoints").glob("*.safetensors"))) == 2
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_finished_run_is_not_trained_again(tmp_path):
    train(Line(), CONFIG, tmp_path)
    again = Line()
    assert train(again, CONFIG, tmp_path)
    assert again.draws == []


def test_stopped_and_continued_equals_uninterrupted(tmp_path):
    whole = Line()
    train(whole, CONFIG, tmp_path / "whole")
    stopped = Line(pause=0.05)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert not train(stopped, CONFIG, tmp_path / "parts")
    assert 0 < len(stopped.draws) < 8
    rest = Line()
    assert train(rest, CONFIG, tmp_path / "parts")
    assert stopped.draws + rest.draws == whole.draws
    name = "checkpoints/000000000064.safetensors"
    one, two = load_tensors(tmp_path / "whole" / name), load_tensors(tmp_path / "parts" / name)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [line["seen"] for line in lines(tmp_path / "parts")] == [
        line["seen"] for line in lines(tmp_path / "whole")
    ]


def test_an_adversary_learns_after_the_model_and_resumes_with_it(tmp_path):
    whole = Duel()
    train(whole, CONFIG, tmp_path / "whole")
    assert whole.duels == list(range(24, 64, 8))
    logged = [line for line in lines(tmp_path / "whole") if "loss" in line]
    assert ["adversary_loss" in line for line in logged] == [False] * 3 + [True] * 5
    stopped = Duel(pause=0.05)
    threading.Timer(0.25, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert not train(stopped, CONFIG, tmp_path / "parts")
    rest = Duel()
    assert train(rest, CONFIG, tmp_path / "parts")
    assert stopped.duels + rest.duels == whole.duels
    name = "checkpoints/000000000064.safetensors"
    one, two = load_tensors(tmp_path / "whole" / name), load_tensors(tmp_path / "parts" / name)
    assert one.keys() == two.keys() and "adversary.weight" in one
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("harm", ["truncate", "flip", "no weights", "half a note"])
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys, harm):
    train(Line(), CONFIG, tmp_path)
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
    assert len(complaints) == 1 and "is damaged" in complaints[0]
    rest = Line()
    assert train(rest, CONFIG, tmp_path)
    assert len(rest.draws) == 1
    assert "is damaged; using the one before it" in capsys.readouterr().err


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    train(Line(), CONFIG, tmp_path, "batch: 8\n")
    with pytest.raises(UserError, match=r"another recipe \(batch: 16; batch: 8\)"):
        train(Line(), CONFIG, tmp_path, "batch: 16\n")


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no longer finite at 32 images"):
        train(Line(poison=5), CONFIG, tmp_path)
    seen, state, _ = load_newest(tmp_path / "checkpoints")
    assert seen == 32 and all(torch.isfinite(value).all() for value in state.values())


def test_nan_of_the_adversary_stops_the_run_too(tmp_path):
    with pytest.raises(UserError, match=r"no longer finite at 40 images.*adversary.lr \(now 0.05"):
        train(Duel(harm=40), CONFIG, tmp_path)
    seen, state, _ = load_newest(tmp_path / "checkpoints")
    assert seen == 40 and all(torch.isfinite(value).all() for value in state.values())


class Breaking(Line):
    """One weight stops being finite in the step from ``at`` images on, by no fault of the loss."""

    def __init__(self, at, **kwargs):
        super().__init__(**kwargs)
        self.at = at
        self.players[0].optimizers = self.optimizers

    def optimizers(self, net):
        optimizer = optimizers(net, CONFIG)[0]
        step = optimizer.step

        def broken():
            step()
            if len(self.draws) * 8 > self.at:
                net.weight.data.fill_(float("inf"))

        optimizer.step = broken
        return [optimizer]


def test_a_last_step_that_diverges_is_neither_kept_nor_exported(tmp_path):
    seldom = dataclasses.replace(CONFIG, checkpoint_every=64, evaluate_every=64)
    with pytest.raises(UserError, match=r"weights \(model.weight.*at 64 images; no checkpoint was"):
        train(Breaking(56), seldom, tmp_path)
    assert not (tmp_path / "exported").exists()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert not [line for line in lines(tmp_path) if "weight" in line]


def test_the_checkpoint_that_is_called_good_is_good(tmp_path):
    """Also where every step is kept: the broken one is not."""
    with pytest.raises(UserError, match=r"at 32 images; the last good checkpoint is .*0024\."):
        train(Breaking(24), CONFIG, tmp_path)
    seen, state, _ = load_newest(tmp_path / "checkpoints")
    assert seen == 24 and all(value.isfinite().all() for value in state.values())


def test_a_metric_that_is_nan_stops_the_export(tmp_path):
    task = Line()
    task.evaluate = lambda model, folder, seen: {"weight": float("nan")}
    with pytest.raises(UserError, match="weight: no longer finite at 64 images"):
        train(task, CONFIG, tmp_path)
    assert not (tmp_path / "exported").exists()


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    holder = (
        "import sys, time; from pathlib import Path; from softvq.train.folder import open_run\n"
        "with open_run(Path(sys.argv[1]), 'a: 1'): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", holder, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="another training is running in this folder"):
            train(Line(), CONFIG, tmp_path / "run")
        other.kill()
    assert train(Line(), CONFIG, tmp_path / "run")  # the lock of a killed one is gone


def test_a_folder_of_other_files_and_the_photos_folder_are_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds files that softvq did not write"):
        train(Line(), CONFIG, tmp_path)
    with (
        pytest.raises(UserError, match="lies in the photos' folder"),
        open_run(tmp_path / "run", "a: 1", str(tmp_path)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_signal_to_stop_saves(tmp_path, name):
    task = Line()
    loss = task.players[0].loss

    def told(net, batch, made):
        if len(task.draws) == 3:
            os.kill(os.getpid(), getattr(signal, name))
        return loss(net, batch, made)

    task.players[0].loss = told
    before = signal.getsignal(getattr(signal, name))
    assert not train(task, dataclasses.replace(CONFIG, checkpoint_every=64), tmp_path)
    assert load_newest(tmp_path / "checkpoints")[0] == 32
    assert signal.getsignal(getattr(signal, name)) == before


def longer(images):
    return dataclasses.replace(CONFIG, images=images), f"train:\n  images: {images}\n  batch: 8\n"


def test_a_finished_run_goes_on_for_longer(tmp_path):
    config, recipe = longer(64)
    train(Line(), config, tmp_path, recipe)
    config, recipe = longer(96)
    more = Line(images=96)
    assert train(more, config, tmp_path, recipe)
    assert len(more.draws) == 4 and "images: 96" in (tmp_path / "recipe.yaml").read_text()
    rates = [line["lr"] for line in lines(tmp_path) if "lr" in line]
    assert rates[8:] == pytest.approx([0.1 * rate(config, seen) for seen in range(64, 96, 8)])
    for other in (recipe.replace("96", "64"), recipe.replace("96", "128").replace("8", "4")):
        with pytest.raises(UserError, match="another recipe"):
            train(Line(), config, tmp_path, other)


def test_before_its_first_checkpoint_a_run_may_change_its_recipe(tmp_path):
    with pytest.raises(UserError, match="no longer finite"):
        train(Line(poison=1), CONFIG, tmp_path, "lr: 1\n")
    assert train(Line(), CONFIG, tmp_path, "lr: 0.1\n")


@pytest.mark.parametrize("harm", ["flip", "lacks", "optimizer"])
def test_when_no_checkpoint_is_good_nothing_starts_again(tmp_path, harm):
    """``lacks``, ``optimizer``: with a right checksum, as of a file that somebody else made."""
    train(Line(), CONFIG, tmp_path)
    for path in (tmp_path / "checkpoints").glob("*.safetensors"):
        if harm == "flip":
            data = bytearray(path.read_bytes())
            data[-3] ^= 1
            path.write_bytes(data)
        else:
            state = load_tensors(path)
            del state["model.bias" if harm == "lacks" else "optimizer.0.1.exp_avg"]
            save_tensors(state, path)
            note = {"seen": int(path.stem), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            path.with_suffix(".json").write_text(json.dumps(note))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    with pytest.raises(UserError, match="no checkpoint there can be used.*another --out") as error:
        train(Line(), CONFIG, tmp_path)
    assert "\n" not in str(error.value)
    assert harm == "flip" or "missing" in str(error.value)
    assert sorted((tmp_path / "checkpoints").iterdir()) == kept


def test_damaged_records_are_one_line(tmp_path, capsys):
    config, recipe = longer(64)
    train(Line(), config, tmp_path, recipe)
    kept = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"[]\n\xff\xfe\n3\n")
    assert train(Line(), config, tmp_path, recipe)
    assert "3 damaged lines left out" in capsys.readouterr().err and lines(tmp_path) == kept
    for damage in (b"\xff\xfe\x00", b"[]", b"train: [1"):
        (tmp_path / "recipe.yaml").write_bytes(damage)
        with pytest.raises(UserError, match="recipe"):
            train(Line(), *longer(96)[:1], tmp_path, longer(96)[1])


@pytest.mark.parametrize("name", ["metrics.jsonl", "tfevents"])
def test_a_record_that_finds_no_room_is_one_line(tmp_path, name):
    resource = pytest.importorskip("resource")
    if name == "metrics.jsonl":  # the larger one meets the limit first
        lines = "".join(json.dumps({"seen": 0, "loss": i / 7}) + "\n" for i in range(200))
        (tmp_path / name).write_text(lines)
    journal = Journal(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(UserError, match=f"{name}.*ulimit -f.*free"):
            for seen in range(1, 300):
                journal.write(seen, {"loss": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_curves_are_read_by_tensorboard_and_begin_again_at_a_checkpoint(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    journal = Journal(tmp_path, 0)
    for seen in (10, 20, 30):
        journal.write(seen, {"loss": seen / 8})
    journal = Journal(tmp_path, 20)
    journal.write(40, {"loss": 1.0})
    found = accumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(point.step, point.value) for point in found] == [(10, 1.25), (20, 2.5), (40, 1.0)]


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
        ("train.batch=0", "train.batch must be in 1 .. 1,000,000, got 0"),
        ("train.batch=many", "batch"),
        ("train.btach=8", "did you mean 'train.batch'"),
        ("modle.patch=8", "did you mean 'model'"),
        ("model.tokens=0", "tokens must be above 0"),
        ("model.patch=7", "not divisible by patch 7"),
        ("model.encoder_heads=5", "not divisible by heads 5"),
        ("data.fit=squash", "data.fit 'squash' is none of crop, stretch"),
        ("data.margin=0.5", "data.margin must be in 1 .. 16, got 0.5"),
        ("data.margin=nan", "data.margin must be a number, got nan"),
        ("data.margin=inf", "data.margin must be a number, got inf"),
        ("data.workers=-1", "data.workers must be in 0 .. 256, got -1"),
        ("train.seed=-1", "train.seed must be in 0 .. 2,147,483,647, got -1"),
        ("train.seed=99999999999999", "train.seed must be at most 2,147,483,647, got 9"),
        ("train.weight_decay=-1", "train.weight_decay must be in 0 .. 100, got -1"),
        ("train.lr=-1", "train.lr must be in 0 .. 10, got -1"),
        ("train.lr=1e30", "train.lr must be in"),
        ("train.lr=nan", "train.lr must be a number, got nan"),
        ("train.warmup=-5000", "train.warmup must be in"),
        ("train.ema_halflife=-10", "train.ema_halflife must be in"),
        ("train.batch=1000000000000", "train.batch must be at most 2,147,483,647"),
        ("adversary.lr=nan", "adversary.lr must be a number, got nan"),
        ("objective.l2=nan", "objective.l2 must be in"),
        ("lora_rank=-1", "lora_rank must be in"),
        ("train.batch", "not an override of the form key.subkey=value"),
    ],
)
def test_a_wrong_recipe_value_is_one_clear_line(tmp_path, override, message):
    with pytest.raises(UserError, match=message) as caught:
        train_tokenizer(load_recipe(TokenizerRecipe, "tiny", [override]), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bottleneck", ["softvq", "vq", "kl", "ae"])
def test_60_steps_on_the_builtin_photos_halve_the_loss(tmp_path, bottleneck):
    length = ["train.images=1920", "train.log_every=32", "train.evaluate_every=1920"]
    recipe = load_recipe(TokenizerRecipe, "tiny", [f"model.bottleneck={bottleneck}", *length])
    assert train_tokenizer(recipe, tmp_path)
    logged = lines(tmp_path)
    losses = [line["l2"] for line in logged if "l2" in line]
    assert losses[-1] < losses[0] / 2
    final = [line for line in logged if "psnr" in line][-1]
    assert final["psnr"] > 13
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
    task = TokenizerTask(recipe)
    assert all(
        torch.equal(one, two)
        for one, two in zip(task.model.parameters(), trained.parameters(), strict=True)
    )
    other = load_recipe(TokenizerRecipe, "tiny", [f"init={tmp_path}", "model.tokens=4"])
    with pytest.raises(UserError, match=r"not of the recipe's shape; add model.tokens=8"):
        TokenizerTask(other)


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp32"])
def test_every_precision_can_be_given_on_the_command_line(precision):
    """YAML reads a bare ``no`` as false, so no value may look like that."""
    recipe = load_recipe(TokenizerRecipe, "tiny", [f"train.precision={precision}"])
    assert recipe.train.precision == precision


# ---- the objective ----


def adversarial(*more: str) -> TokenizerTask:
    settings = ["adversary.weight=0.2", "adversary.width=8", "adversary.depth=2"]
    return TokenizerTask(load_recipe(TokenizerRecipe, "tiny", [*settings, *more]))


def batch(seen: int):
    rows = torch.arange(4)
    return Batch(photos(), rows, rows, rows < 0, seen)


def test_precision_is_that_of_the_device_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    for kind, precision in {"cuda": "bf16", "cpu": "fp32", "mps": "fp32"}.items():
        monkeypatch.setattr(loop, "pick_device", lambda kind=kind: torch.device(kind))
        assert loop.resolve_precision("auto") == precision
        assert loop.resolve_precision("bf16") == "bf16"


def test_before_its_start_nothing_adversarial_is_computed():
    task = adversarial("adversary.start=64")
    calls = []
    task.adversary.discriminator.register_forward_hook(lambda *_: calls.append(1))
    for seen in (0, 32, 63):
        turn = task.loss(task.model, batch(seen))
        assert "adversarial" not in turn.terms
        assert task.adversary_loss(task.adversary, batch(seen), turn.made) is None
    assert not calls
    turn = task.loss(task.model, batch(64))
    assert "adversarial" in turn.terms and len(calls) == 1
    answer = task.adversary_loss(task.adversary, batch(64), turn.made)
    assert torch.isfinite(answer.loss) and len(calls) > 1


@pytest.mark.parametrize("adaptive", ["false", "true"])
def test_each_side_leaves_the_other_without_gradients(adaptive):
    task = adversarial(f"adversary.adaptive={adaptive}")
    turn = task.loss(task.model.train(), batch(0))
    turn.loss.backward()
    assert all(p.grad is None for p in task.adversary.parameters())
    assert task.model.tokenizer.last_layer.grad.any()
    task.model.zero_grad()
    task.adversary_loss(task.adversary, batch(0), turn.made).loss.backward()
    assert all(p.grad is not None for p in task.adversary.parameters())
    assert all(p.grad is None for p in task.model.parameters())


def test_the_adaptive_weight_sets_the_ratio_of_gradients():
    """At the last layer, to the adversary's weight: 0.2 of those of all pixel terms together."""
    task = adversarial("adversary.adaptive=true")
    terms = task.loss(task.model, batch(0)).terms
    last = task.model.tokenizer.last_layer
    pixel = terms["l2"] + terms["perceptual"]
    ours, theirs = (
        torch.autograd.grad(term, last, retain_graph=True)[0].norm()
        for term in (pixel, terms["adversarial"])
    )
    assert (theirs / ours).item() == pytest.approx(0.2, rel=0.05)


def test_no_weight_no_adversary():
    task = TokenizerTask(load_recipe(TokenizerRecipe, "tiny", []))
    assert task.adversary is None and task.teacher is None and task.model.head is None
    assert list(task.objective.parameters()) == []


def test_lpips_rises_linearly_over_its_warmup(monkeypatch):
    """With a distance of 2, at 1/4 of the way: 0.5 x 1/4 x 2."""

    class Two(nn.Module):
        def forward(self, a, b):
            return torch.full((a.shape[0],), 2.0)

    monkeypatch.setattr(LPIPS, "from_file", lambda path: Two())
    config = ObjectiveConfig(lpips=0.5, lpips_vgg="vgg.pth", lpips_warmup=100)
    objective = Objective(config)
    for seen, expected in ((0, None), (25, 0.25), (50, 0.5), (100, 1.0), (1000, 1.0)):
        terms = objective(photos(), photos(), seen)
        assert terms.get("lpips") == (None if expected is None else pytest.approx(expected))
    at_once = Objective(dataclasses.replace(config, lpips_warmup=0))
    assert at_once(photos(), photos(), 0)["lpips"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["objective.lpips=1"], "give objective.lpips_vgg=FILE"),
        (["objective.lpips=1", "objective.lpips_vgg=nowhere"], "nowhere: no such file"),
        (["adversary.weight=1", "adversary.discriminator=dino", "adversary.dino=nowhere"],
         "nowhere: no such file"),
        (["encoder_init=nowhere", "model.layer_scale=1e-5", "model.stem=patch",
          "model.class_token=true"], "nowhere: no such"),
        (["init=nowhere"], "nowhere: no such"),
        (["alignment.weight=1", "alignment.teacher=nowhere"], "nowhere: "),
    ],
)  # fmt: skip
def test_a_file_that_is_not_there_is_refused_before_photos_are_decoded(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_tokenizer(load_recipe(TokenizerRecipe, "tiny", settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_objective_is_the_weighted_sum_of_its_closed_forms():
    config = ObjectiveConfig(l1=0.5, l2=2.0, perceptual=0.0)
    terms = Objective(config)(photos(), photos() + 0.1, 0)
    assert {k: round(v.item(), 5) for k, v in terms.items()} == {"l1": 0.05, "l2": 0.02}
