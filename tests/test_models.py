"""The one door: what lies in a directory, opened, described and translated; and the right pair."""

import json

import pytest
import torch
from contract import small

from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.generator.config import SiTConfig
from softvq.generator.transformer import SiT
from softvq.interop.reference import export_reference
from softvq.models import describe, export_model, import_model, open_generator, open_tokenizer
from softvq.pipeline import Pipeline
from softvq.probe import Probe, ProbeConfig
from softvq.tokenizer import Tokenizer

CLASSES = ["cat", "dog", "fox"]


def tokenizer(seed: int = 0, **changes) -> Tokenizer:
    torch.manual_seed(seed)
    return Tokenizer(small(**changes)).eval()


def pair(seed: int = 0) -> Pipeline:
    """A pipeline whose generator learned the tokens of its tokenizer."""
    made = tokenizer(seed)
    shape = SiTConfig(8, 16, 3, width=32, depth=1, heads=2, tokenizer=fingerprint(made))
    return Pipeline(made, SiT(shape).eval(), CLASSES)


# ---- the right pair ----


def test_another_tokenizer_of_the_same_shape_is_refused(tmp_path):
    ours, other = pair(0), tokenizer(1)
    ours.save_pretrained(tmp_path)
    Pipeline.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="learned the tokens of another tokenizer") as caught:
        Pipeline(other, ours.generator, CLASSES)
    assert "\n" not in str(caught.value)
    other.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="another tokenizer .*give the pair that was trained"):
        Pipeline.from_pretrained(tmp_path)


def test_a_new_decoder_keeps_the_pair_and_so_does_half_precision(tmp_path):
    ours = pair()
    with torch.no_grad():
        ours.tokenizer.decoder.to_pixels.weight.mul_(1.5)
    ours.save_pretrained(tmp_path, half=True)
    again = Pipeline.from_pretrained(tmp_path)
    assert again.generator.config.tokenizer == fingerprint(again.tokenizer)
    assert ours.generator.config.tokenizer == fingerprint(ours.tokenizer)  # in memory as before


def test_a_generator_of_an_older_version_opens(tmp_path):
    ours = pair()
    ours.save_pretrained(tmp_path)
    path = tmp_path / "generator" / "config.json"
    values = {k: v for k, v in json.loads(path.read_text()).items() if k != "tokenizer"}
    path.write_text(json.dumps(values))
    tokenizer(1).save_pretrained(tmp_path / "tokenizer")
    assert Pipeline.from_pretrained(tmp_path).generator.config.tokenizer is None


def test_a_field_that_is_new_to_the_library_changes_no_fingerprint(monkeypatch):
    """Only what differs from the defaults is hashed."""
    from dataclasses import make_dataclass

    one, other = tokenizer(), tokenizer()
    wider = make_dataclass("Wider", [("unheard_of", bool, False)], bases=(type(other.config),))
    values = {k: v for k, v in vars(one.config).items()}
    other.config = wider(**values)
    assert fingerprint(one) == fingerprint(other)
    other.config = wider(**values, unheard_of=True)
    assert fingerprint(one) != fingerprint(other)


def test_the_shipped_generator_knows_its_tokenizer():
    known = open_generator("shipped").config.tokenizer
    assert known == fingerprint(open_tokenizer("shipped"))


# ---- what lies there ----


def test_describe_a_tokenizer(tmp_path):
    made = tokenizer()
    made.save_pretrained(tmp_path, half=True)
    found = describe(tmp_path)
    assert (found.kind, found.layout, found.model) == ("tokenizer", "softvq", "Tokenizer")
    assert (found.size, found.tokens, found.channels) == ((32, 32), 8, 16)
    assert found.parameters == sum(p.numel() for p in made.parameters())
    assert found.precision == "float16" and found.state is None
    assert found.tokenizer == fingerprint(open_tokenizer(tmp_path))
    for line in ("pixels: 32 x 32", "8 tokens x 16 channels", "weights: float16"):
        assert line in str(found)


def test_describe_a_pipeline(tmp_path):
    made = pair()
    made.save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert found.kind == "pipeline" and found.classes == tuple(CLASSES)
    assert [part.kind for part in found.parts] == ["tokenizer", "generator"]
    assert found.parts[1].tokenizer == found.parts[0].tokenizer == fingerprint(made.tokenizer)
    assert "classes: 3: cat, dog, fox" in str(found)


def test_describe_a_run_and_where_it_stands(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "recipe.yaml").write_text("train:\n  images: 6400\n")
    (tmp_path / "metrics.jsonl").write_text('{"seen": 320}\n{"seen": 640}\n{"se')
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "train-32x32-0.json").write_text('{"fingerprint": "abc"}')
    assert "before its first checkpoint" in str(describe(tmp_path).state)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000000000640.json").write_text('{"seen": 640}')
    found = describe(tmp_path)
    assert found.images == 640 and found.data == "abc"
    assert "resumable at 640 of 6,400 images" in str(found)
    (tmp_path / "metrics.jsonl").write_text('{"seen": 6400}\n')
    assert describe(tmp_path).state == "finished"
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\x00")
    (tmp_path / "recipe.yaml").write_text("{[")
    describe(tmp_path)


def test_describe_other_layouts_and_what_is_none(tmp_path):
    made = tokenizer(layer_scale=1e-5, entropy_pooled=True, encoder_heads=2)
    export_reference(made, tmp_path / "theirs")
    with pytest.raises(UserError, match=r"give num_heads \(--num-heads on the command line\)"):
        open_tokenizer(tmp_path / "theirs")
    found = describe(tmp_path / "theirs")
    assert (found.kind, found.layout, found.tokens) == ("tokenizer", "reference", 8)
    assert found.parameters == sum(p.numel() for p in made.parameters())
    Probe(ProbeConfig(32, 32, 3, 8)).save_pretrained(tmp_path / "probe")
    assert describe(tmp_path / "probe").kind == "probe"
    (tmp_path / "tokens").mkdir()
    index = {
        "shards": {"tokens-00000.safetensors": 5}, "tokens": 8, "channels": 16, "count": 5,
        "height": 32, "width": 32, "classes": [], "tokenizer": "f", "photos": "p",
    }  # fmt: skip
    (tmp_path / "tokens" / "index.json").write_text(json.dumps(index))
    found = describe(tmp_path / "tokens")
    assert (found.kind, found.count, found.tokenizer, found.data) == ("tokens", 5, "f", "p")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model, training run, tokens or study of softvq there"):
        describe(tmp_path / "empty")
    with pytest.raises(UserError, match="no such directory"):
        describe(tmp_path / "none")


# ---- translated ----


def test_export_finds_the_shipped_model_and_says_what_cannot_be_written(tmp_path):
    with pytest.raises(
        UserError, match=r"recipes softvq-\*.*network spectral, assignment"
    ) as caught:
        export_model("shipped", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_an_imported_generator_is_used_beside_a_tokenizer(tmp_path):
    made = pair()
    made.save_pretrained(tmp_path / "ours")
    theirs = {
        "class_dropout_prob": 0.1, "depth": 1, "hidden_size": 32, "in_channels": 16,
        "input_size": 8, "mlp_ratio": 4.0, "num_classes": 3, "num_heads": 2, "patch_size": 1,
        "qk_norm": False, "vae_1d": True,
    }  # fmt: skip
    (tmp_path / "theirs").mkdir()
    weights = (tmp_path / "ours" / "generator" / "model.safetensors").read_bytes()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(weights)
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(theirs))
    with pytest.raises(UserError, match="num_heads is read from its config.json, not given"):
        import_model(tmp_path / "theirs", tmp_path / "new", num_heads=7)
    assert import_model(tmp_path / "theirs", tmp_path / "new") == "SiT"
    with pytest.raises(UserError, match="a generator alone; give the directory of its tokenizer"):
        Pipeline.from_pretrained(tmp_path / "new")
    opened = Pipeline.from_pretrained(tokenizer=tmp_path / "ours", generator=tmp_path / "new")
    assert len(opened(["1"], steps=1)) == 1
    assert describe(tmp_path / "theirs").layout == "reference"
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(theirs | {"input_size": "8"}))
    with pytest.raises(UserError, match="input_size must be a whole number, got '8'"):
        open_generator(tmp_path / "theirs")
