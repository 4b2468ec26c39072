"""Training a generator: it learns, it goes on after kill -9, and what it writes can be used."""

import json
from itertools import islice

import pytest
import torch
from contract import small
from helpers.pictures import photos as photo_folder
from killing import assert_kills_change_nothing
from PIL import Image
from torch.nn import functional as F

from softvq.data import Positions, open_store
from softvq.encoding import Views, write_tokens
from softvq.errors import UserError
from softvq.generator.config import SiTConfig
from softvq.generator.flowmap import FlowMap
from softvq.generator.transformer import SiT
from softvq.io import load_tensors
from softvq.models import open_teacher, open_tokenizer
from softvq.pipeline import Pipeline
from softvq.recipe import GeneratorRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.tokens import read_tokens
from softvq.train.generator import Aim, GeneratorTask, make_model, set_classes, train_generator
from softvq.train.summaries import principal, summaries

FAMILIES = {
    "sit": ["family=sit"],
    "dit": ["family=dit", "model.timesteps=100"],
    "mar": ["family=mar", "model.head_width=32", "model.head_depth=1", "model.buffer=2"],
}


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """An untrained tokenizer whose latents have been measured as of unit variance."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    tokenizer = Tokenizer(small(gain=True)).eval()
    tokenizer.latent_std.fill_(1.0)
    tokenizer.save_pretrained(folder)
    return folder


def recipe(tokenizer, source: str, *overrides: str) -> GeneratorRecipe:
    defaults = ["train.images=3200", "train.evaluate_every=1600", "train.checkpoint_every=1600"]
    settings = [f"tokenizer={tokenizer}", f"data.source={source}", *defaults, *overrides]
    return load_recipe(GeneratorRecipe, "tiny-generator", settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_validation_loss_and_writes_a_pipeline(
    tmp_path, tokenizer_folder, family
):
    folder = tmp_path / "run"
    source = str(photo_folder(tmp_path / "photos", 60))
    chosen = recipe(tokenizer_folder, source, *FAMILIES[family])
    assert train_generator(chosen, folder)

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    tokens, held_out = (read_tokens(folder / "tokens" / split) for split in ("train", "val"))
    assert len(tokens) == 2 * 54 and len(held_out) == 6
    task = GeneratorTask(chosen, tokenizer, tokens, held_out)
    start = task.validation_loss(task.model.eval())
    assert start == task.validation_loss(task.model)  # the same times and noise

    assert losses[-1] < 0.7 * start and losses[-1] < losses[0]

    with Image.open(folder / "pictures" / "samples-000000003200.png") as sheet:
        assert sheet.size == (4 * (128 + 2) - 2, 2 * (128 + 2) - 2)  # two classes, four of each
    pipeline = Pipeline.from_pretrained(folder)
    assert pipeline.classes == ["class0", "class1"]
    assert len(pipeline(["class1"], steps=2)) == 1

    with pytest.raises(UserError, match="another recipe"):
        train_generator(recipe(tokenizer_folder, source, *FAMILIES[family], "views=1"), folder)


def test_photos_without_classes_train_an_unconditional_generator(tmp_path, tokenizer_folder):
    source = tmp_path / "photos"
    photo_folder(source, 10, classes=1)
    chosen = recipe(tokenizer_folder, str(source / "class0"), "train.images=64")
    assert train_generator(chosen, tmp_path / "run")
    assert len(Pipeline.from_pretrained(tmp_path / "run")(count=2, steps=2)) == 2


def test_latents_on_a_grid_can_be_cut_into_patches(tmp_path):
    """Of 4 x 2 tokens: the map's shape is the tokenizer's, whatever the recipe."""
    torch.manual_seed(0)
    config = small(network="cnn", bottleneck="kl", width=16, tokens=8)
    Tokenizer(config).eval().save_pretrained(tmp_path / "tokenizer")
    source = str(photo_folder(tmp_path / "photos", 10))
    chosen = recipe(tmp_path / "tokenizer", source, "train.images=64", "model.patch=2")
    assert train_generator(chosen, tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline.generator.config.latent_shape == (16, 4, 2)
    assert len(pipeline(["class1"], steps=2)) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["time=log"], "time 'log' is none of uniform, lognormal"),
        (["views=0"], "views must be in 1 .. 10,000, got 0"),
        (["family=gan"], "family 'gan' is none of sit, dit, flowmap, mar"),
        (["model.head_width=8"], r"unknown key 'model\.head_width'"),
        (["family=mar", "model.qk_norm=true"], r"unknown key 'model\.qk_norm'"),
        (["family=mar"], r"tiny-generator: lacks model\.head_depth, model\.head_width"),
        (["model.heads=3"], "width 64 must be even and divisible by heads 3"),
        (["model.patch=2"], r"model\.patch cuts maps of tokens, and the tokenizer's 8 are a seq"),
        (["alignment.weight=1"], r"give alignment\.teacher=DIRECTORY, or set"),
        (["tokenizer=nowhere"], "nowhere: no such directory"),
    ],
)
def test_a_wrong_recipe_is_said_before_any_work(tmp_path, tokenizer_folder, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        train_generator(recipe(tokenizer_folder, "nowhere", *overrides), tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_what_is_not_said_is_usual_in_the_family():
    """As published: SiT draws sigmoid(N(0, 1)) (Esser et al. 2024), DiT all timesteps evenly."""
    sit, dit = (load_recipe(GeneratorRecipe, name, []) for name in ("sit-xl", "dit-xl"))
    assert (sit.time, sit.model.target) == ("lognormal", "v")
    assert (dit.time, dit.model.target, dit.model.learn_variance) == ("uniform", "eps", True)
    assert dit.train == sit.train and dit.model.width == sit.model.width == 1152


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("sit-xl", 675), ("dit-xl", 675), ("mar-b", 208), ("mar-l", 479), ("mar-h", 943)],
)
def test_published_sizes(name, parameters):
    """Millions, as the papers print them; MAR's are with positions of 256 tokens."""
    chosen = load_recipe(GeneratorRecipe, name, [])
    tokenizer = small(tokens=64, channels=32)
    with torch.device("meta"):
        model = make_model(chosen, tokenizer, 1000, None)
    count = sum(p.numel() for p in model.net.parameters()) / 1e6
    assert count == pytest.approx(parameters, rel=0.005)


def test_the_tiny_ones_are_of_one_size_and_budget():
    counts, tokenizer = [], open_tokenizer("shipped").config
    for name in ("sit-tiny", "dit-tiny", "mar-tiny"):
        chosen = load_recipe(GeneratorRecipe, name, [])
        assert chosen.train == load_recipe(GeneratorRecipe, "sit-tiny", []).train
        with torch.device("meta"):
            model = make_model(chosen, tokenizer, 10, None)
        counts.append(sum(p.numel() for p in model.net.parameters()))
    assert max(counts) < 1.02 * min(counts)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_run_ends_with_the_same_bytes(
    tmp_path, tokenizer_folder, monkeypatch, family
):
    source = str(photo_folder(tmp_path / "photos", 10))
    lengths = ["train.images=960", "train.checkpoint_every=320", "train.evaluate_every=960"]
    chosen = recipe(tokenizer_folder, source, *lengths, *FAMILIES[family])
    assert train_generator(chosen, tmp_path / "whole")
    loss, steps = GeneratorTask.loss, []

    def interrupted(self, net, batch, made=None):
        steps.append(1)
        if len(steps) == 15:  # between the checkpoints at 10 and 20 steps
            raise KeyboardInterrupt
        return loss(self, net, batch, made)

    monkeypatch.setattr(GeneratorTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_generator(chosen, tmp_path / "cut")
    assert train_generator(chosen, tmp_path / "cut")
    assert len(steps) == 15 + 20
    for file in ("generator/model.safetensors", "checkpoints/000000000960.safetensors"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes()


# From a trained one, and few steps


def test_a_sit_becomes_a_generator_of_few_steps(tmp_path, tokenizer_folder):
    source = str(photo_folder(tmp_path / "photos", 20))
    lengths = ["train.images=320", "train.evaluate_every=320", "train.log_every=160"]
    teacher = recipe(tokenizer_folder, source, *lengths, "model.label_dropout=0.2")
    assert train_generator(teacher, tmp_path / "teacher")
    start = [f"init={tmp_path / 'teacher'}", f"tokenizer={tokenizer_folder}", "train.batch=32"]

    def few(*overrides: str) -> GeneratorRecipe:
        settings = [*start, f"data.source={source}", *lengths, *overrides]
        return load_recipe(GeneratorRecipe, "few-step", settings)

    for velocity, rule in (("teacher", "step"), ("data", "difference")):
        out = tmp_path / f"few-{velocity}"
        assert train_generator(few(f"few_step.velocity={velocity}", f"few_step.rule={rule}"), out)
        pipeline = Pipeline.from_pretrained(out)
        assert isinstance(pipeline.generator, FlowMap) and pipeline.generator.config.width == 64
        assert "width: 64" in (out / "recipe.yaml").read_text()
        assert len(pipeline(["class1"], steps=1, guidance=2.0)) == 1
    again = few(f"init={tmp_path / 'few-data'}", "few_step.velocity=data")
    assert train_generator(again, tmp_path / "again")  # a flow map goes on as one
    whole = recipe(tokenizer_folder, source, *lengths, f"init={tmp_path / 'teacher'}")
    assert train_generator(whole, tmp_path / "on")  # and a SiT

    others = str(photo_folder(tmp_path / "others", 8, classes=3))
    whole.data.source = others
    assert train_generator(whole, tmp_path / "more")  # of one class more
    assert Pipeline.from_pretrained(tmp_path / "more").classes == ["class0", "class1", "class2"]
    for overrides, message in (
        (["init=null"], "learns from a trained SiT: give --init MODEL, or set few_step.velocity"),
        ([f"init={tmp_path / 'few-data'}"], "start from a SiT that predicts velocities"),
        ([f"init={tmp_path / 'few-data'}", f"data.source={others}"], "start from a SiT"),
        ([f"data.source={others}"], "of class0, class1, class2; give photos of its classes, or"),
        (["tokenizer=shipped"], "has tokens 8, and 64 is wanted"),
        (["few_step.rule=split"], "few_step.rule|'split' is none of"),
        (["model.most_guidance=0.5"], "most_guidance must be 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            train_generator(few(*overrides), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_generator_keeps_the_classes_it_knows_and_begins_others_as_none():
    torch.manual_seed(0)
    net = SiT(SiTConfig(width=16, depth=1, heads=2, tokens=4, channels=8, num_classes=3))
    for weight in net.parameters():  # a new one predicts zeros
        torch.nn.init.normal_(weight, std=0.2)
    x, t = torch.randn(2, 4, 8), torch.rand(2)

    def drawn(label: int | None) -> torch.Tensor:
        return net(x, t, None if label is None else torch.full((2,), label))

    with torch.no_grad():
        known, none = [drawn(i) for i in range(3)], drawn(None)
        assert not torch.equal(known[2], none)
        set_classes(net, ["a", "b", "c"], ["c", "new", "a", "b"])
        for label, expected in enumerate((known[2], none, known[0], known[1], none)):
            assert torch.equal(drawn(label), expected)
        assert torch.equal(drawn(None), none) and net.config.num_classes == 4
    with pytest.raises(UserError, match="1 class names for 4 classes"):
        set_classes(net, ["a"], ["b"])


# Alignment of a transformer's states


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A random DINOv2 of 16 patches, 16 x 16 pixels."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4
    )
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def aligned(teacher, *overrides: str) -> list[str]:
    settings = ["weight=0.5", f"teacher={teacher}", "block=1", "hidden=32", *overrides]
    return [f"alignment.{setting}" for setting in settings]


@pytest.fixture
def aligned_task(tmp_path, tokenizer_folder, teacher_folder):
    source = str(photo_folder(tmp_path / "photos", 20))
    chosen = recipe(tokenizer_folder, source, "views=3", *aligned(teacher_folder))
    tokenizer = Tokenizer.from_pretrained(tokenizer_folder)
    store = open_store(source, "train", (32, 32), tmp_path / "store", margin=1.25)
    write_tokens(tmp_path / "tokens", tokenizer, store, 3, progress=False)
    tokens = read_tokens(tmp_path / "tokens")
    aim = Aim(open_teacher(str(teacher_folder)), Views(store, 3))
    return GeneratorTask(chosen, tokenizer, tokens, tokens, aim)


def test_alignment_is_the_cosine_of_states_and_features(aligned_task):
    """Token i of 8 answers for the patches 2 i and 2 i + 1 of 16."""
    task = aligned_task
    batch = next(iter(task.batches(0, 0, 1)))
    entries = next(iter(Positions(len(task.tokens), 32, 3200)))
    for i, (entry, _) in enumerate(entries):  # tokens, and the picture they were made of
        assert torch.equal(batch.latents[i], task.tokens.latents[entry])
        made = task.tokenizer.encode(batch.aimed_at[i][None]).latents
        made = task.tokenizer.normalize(made)[0]
        torch.testing.assert_close(made, batch.latents[i], atol=1e-4, rtol=1e-4)
    seen = []
    handle = task.model.net.blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))
    turn = task.loss(task.model, batch)
    handle.remove()
    features = task.aim.teacher(batch.aimed_at)
    guess = task.model.head.mlp(seen[0])
    cosines = [F.cosine_similarity(guess[:, n // 2], features[:, n], dim=-1) for n in range(16)]
    expected = -0.5 * torch.stack(cosines).mean()
    torch.testing.assert_close(turn.terms["alignment"], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(turn.loss, turn.terms["generation"] + turn.terms["alignment"])


def test_alignment_teaches_the_head_and_the_blocks_before(aligned_task):
    task = aligned_task
    for parameter in task.model.parameters():  # gates start at zero, and let no gradient through
        parameter.data += 0.02 * torch.randn_like(parameter)
    _, predicted = task.model(torch.randn(4, 8, 16), torch.tensor([0, 1, 1, 0]))
    predicted.square().mean().backward()
    taught = {name for name, p in task.model.named_parameters() if p.grad is not None}
    assert {"net.blocks.0.attn.qkv.weight", "net.x_embedder.weight", "head.mlp.0.weight"} <= taught
    assert not any("blocks.1." in name or "final_layer" in name for name in taught)
    assert all(p.grad is None for p in task.aim.teacher.parameters())


def test_alignment_ends_when_the_recipe_says(aligned_task):
    task = aligned_task
    task.recipe.alignment.images = 64
    batches = list(islice(task.batches(0, 0, 1), 3))
    assert [batch.seen for batch in batches] == [0, 32, 64]
    assert next(iter(task.batches(64, 0, 1))).seen == 64  # of a run that goes on
    turns = [task.loss(task.model, batch) for batch in batches]
    assert ["alignment" in turn.terms for turn in turns] == [True, True, False]
    turns[2].loss.backward()
    grads = [p.grad for p in task.model.head.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


def test_summaries_are_the_principal_directions():
    torch.manual_seed(0)
    features = torch.randn(60, 9) @ torch.randn(9, 9) + 3
    mean, axes = principal(features, 4)
    drawn = (features - mean) @ axes
    torch.testing.assert_close(drawn.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(drawn.T @ drawn / 60, torch.eye(4).double(), atol=1e-6, rtol=0)
    kept = [(features.double() - mean) @ a / a.norm() for a in axes.T]
    variances = torch.linalg.eigvalsh(torch.cov(features.double().T, correction=0)).flip(0)
    torch.testing.assert_close(torch.stack([k.square().mean() for k in kept]), variances[:4])
    assert torch.equal(principal(features.flip(0), 4)[1].sign(), axes.sign())
    with pytest.raises(UserError, match="asks for 9 numbers .* photos differ in 4; give more"):
        principal(features[:5], 9)


def test_a_generator_learns_and_draws_a_summary_of_its_pictures(tmp_path, tokenizer_folder):
    source = str(photo_folder(tmp_path / "photos", 40))
    lengths = ["train.images=320", "train.log_every=32", "train.evaluate_every=320"]
    chosen = recipe(tokenizer_folder, source, *lengths, "model.summary=1", "contrast=0.05")
    assert train_generator(chosen, tmp_path / "run")
    stores = [
        open_store(source, split, (32, 32), tmp_path / "run" / "photos", margin)
        for split, margin in (("train", 1.25), ("val", 1.0))
    ]
    views = Views(stores[0], 2), Views(stores[1], 1)
    folder, device = tmp_path / "run" / "summaries", torch.device("cpu")
    kept = summaries(folder, (1, 16), *views, device)  # those of the run: of no other photos
    assert [some.shape for some in kept] == [(len(some), 1, 16) for some in views]
    torch.testing.assert_close(kept[0].square().mean((0, 1)), torch.ones(16), atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="of another teacher or of other photos; delete it"):
        summaries(folder, (1, 16), views[1], views[0], device)
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline.generator.config.summary == 1
    assert pipeline.generate_latents(["class0"], steps=2).shape == (1, 8, 16)
    assert len(pipeline(["class1"], steps=2)) == 1
    few = load_recipe(
        GeneratorRecipe, "few-step",
        [f"init={tmp_path / 'run'}", f"tokenizer={tokenizer_folder}", f"data.source={source}",
         "train.images=64", "views=1"],
    )  # fmt: skip
    assert train_generator(few, tmp_path / "few")
    assert Pipeline.from_pretrained(tmp_path / "few").generator.config.summary == 1


def test_training_from_stored_features_is_training_with_the_teacher(
    tmp_path, tokenizer_folder, teacher_folder
):
    source = str(photo_folder(tmp_path / "photos", 20))
    logged = []
    for cache in ("false", "true"):
        settings = aligned(teacher_folder, f"cache={cache}")
        lengths = ["train.images=64", "train.log_every=32", "train.precision=fp32", "views=3"]
        chosen = recipe(tokenizer_folder, source, *lengths, *settings)
        assert train_generator(chosen, tmp_path / cache)
        lines = (tmp_path / cache / "metrics.jsonl").read_text().splitlines()
        logged.append([json.loads(line) for line in lines if "alignment" in line])
    assert len(logged[0]) == 2
    for one, two in zip(*logged, strict=True):
        assert one["alignment"] == pytest.approx(two["alignment"], abs=1e-4)
    saved = load_tensors(tmp_path / "true" / "generator" / "model.safetensors")
    assert not any(name.startswith(("head", "net")) for name in saved)
    assert len(Pipeline.from_pretrained(tmp_path / "true")(["class0"], steps=2)) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["alignment.block=3"], r"block 3 is none of 1\.\.2"),
        (FAMILIES["mar"], "reads the blocks of a SiT or a DiT, and a MAR has none"),
        (["alignment.teacher=nowhere"], "nowhere: not a vision model"),
    ],
)
def test_alignment_that_cannot_be_is_said_before_any_work(
    tmp_path, tokenizer_folder, teacher_folder, overrides, message
):
    settings = [*aligned(teacher_folder), *overrides]
    with pytest.raises(UserError, match=message):
        train_generator(recipe(tokenizer_folder, "nowhere", *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_kill_minus_9_changes_nothing(tmp_path, tokenizer_folder):
    source = photo_folder(tmp_path / "photos", 40)
    settings = [
        f"tokenizer={tokenizer_folder}", f"data.source={source}", "train.images=9600",
        "train.log_every=32", "train.evaluate_every=9600", "train.checkpoint_every=320",
    ]  # fmt: skip
    code = (
        "import sys; from pathlib import Path\n"
        "from softvq.recipe import GeneratorRecipe, load_recipe\n"
        "from softvq.train.generator import train_generator\n"
        f"recipe = load_recipe(GeneratorRecipe, 'tiny-generator', {settings!r})\n"
        "train_generator(recipe, Path(sys.argv[1]))"
    )
    weights = "generator/model.safetensors"
    assert_kills_change_nothing(code, tmp_path, [900, 3000, 5500], weights)


def test_a_draft_learns_and_draws_the_first_tokens_alone(tmp_path):
    torch.manual_seed(0)
    tokenizer = Tokenizer(small(nested=True)).eval()
    tokenizer.latent_std.fill_(1.0)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = str(photo_folder(tmp_path / "photos", 12))
    short = ("train.images=64", "train.evaluate_every=64", "train.checkpoint_every=64")
    assert train_generator(
        recipe(tmp_path / "tokenizer", source, "tokens=2", *short), tmp_path / "run"
    )
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    assert pipeline.generator.config.tokens == 2 < pipeline.tokenizer.config.tokens
    latents = pipeline.generate_latents([0, 1], steps=2)
    assert latents.shape[1] == 2 and len(pipeline.decode(latents)) == 2
    with pytest.raises(UserError, match="draws 2 tokens, not 3"):
        pipeline.generate_latents([0], steps=2, tokens=3)
    with pytest.raises(UserError, match="not 99"):
        train_generator(recipe(tmp_path / "tokenizer", source, "tokens=99"), tmp_path / "more")


def test_one_generator_serves_several_numbers_of_tokens(tmp_path, tokenizer_folder):
    """Trained as usual, then over lengths; a few-step generator of it draws drafts too."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(small(nested=True, tokens=16)).eval()
    tokenizer.latent_std.fill_(1.0)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = str(photo_folder(tmp_path / "photos", 12))
    short = ("train.images=64", "train.evaluate_every=64", "train.checkpoint_every=64")
    plain, nested, few = (tmp_path / name for name in ("plain", "nested", "few"))
    assert train_generator(recipe(tmp_path / "tokenizer", source, *short), plain)
    lengths = recipe(tmp_path / "tokenizer", source, f"init={plain}", "model.nested=true", *short)
    assert train_generator(lengths, nested)
    taught = load_recipe(
        GeneratorRecipe, "few-step",
        [f"init={nested}", f"tokenizer={tmp_path / 'tokenizer'}", f"data.source={source}", *short],
    )  # fmt: skip
    assert train_generator(taught, few)
    for folder in (nested, few):
        pipeline = Pipeline.from_pretrained(folder)
        assert pipeline.generator.config.counts == (16, 8)
        sizes = []
        hook = pipeline.generator.x_embedder.register_forward_hook(
            lambda m, given, out, sizes=sizes: sizes.append(out.shape[1])
        )
        drawn = [pipeline.generate_latents([0, 1], steps=2, tokens=k) for k in (5, 8, 9, 16, None)]
        hook.remove()
        assert [z.shape[1] for z in drawn] == [5, 8, 9, 16, 16]
        assert torch.equal(drawn[0], drawn[1][:, :5]) and torch.equal(drawn[3], drawn[4])
        assert min(sizes) == 8 and max(sizes) == 16
        assert len(pipeline(["class0"], steps=2, tokens=8)) == 1
    assert Pipeline.from_pretrained(plain).generate_latents([0], steps=2, tokens=8).shape[1] == 8
    with pytest.raises(UserError, match="nested"):
        train_generator(recipe(tokenizer_folder, source, "model.nested=true"), tmp_path / "no")
