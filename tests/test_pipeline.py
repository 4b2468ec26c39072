"""softvq.Pipeline: the same images whatever the batch split, its cost, its files."""

import json
from typing import ClassVar

import pytest
import torch
from contract import small

from softvq.errors import SoftVQWarning, UserError
from softvq.generate import keep_promise
from softvq.generator.config import SiTConfig
from softvq.generator.families import GENERATORS
from softvq.generator.transformer import SiT
from softvq.io import load_tensors, save_tensors
from softvq.layers import in_blocks
from softvq.pipeline import Pipeline
from softvq.tokenizer import Tokenizer

CLASSES = ["bird", "cat", "dog"]
LABELS = ["cat", 0, "dog", "bird", 1, 2, "cat", 0]
EXTRA = {"mar": {"head_width": 16, "head_depth": 1, "buffer": 2}}  # fields that others lack


def perturb(module: torch.nn.Module) -> None:
    """Draw every weight: new generators are the zero function, new tokenizers nearly so."""
    for parameter in module.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)


def make(classes: list[str] = CLASSES, family: str = "sit", **shape) -> Pipeline:
    torch.manual_seed(0)
    tokenizer = Tokenizer(small()).eval()
    tokenizer.latent_mean.normal_()
    tokenizer.latent_std.uniform_(0.5, 2)
    kind = GENERATORS[family]
    size = {"width": 32, "depth": 2, "heads": 2} | EXTRA.get(family, {}) | shape
    generator = kind.network(kind.config(8, 16, len(classes), **size)).eval()
    perturb(tokenizer)
    perturb(generator)
    return Pipeline(tokenizer, generator, classes)


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


class PipelineContract:
    """Subclass with ``family`` set, and options that draw fast; pytest runs every test here."""

    family: str
    options: ClassVar[dict]

    @pytest.fixture
    def pipeline(self) -> Pipeline:
        return make(family=self.family)

    def test_images(self, pipeline):
        images = pipeline(LABELS, **self.options)
        assert len(images) == 8 and images[0].size == (32, 32) and images[0].mode == "RGB"
        assert len(set(pixels(images))) == 8  # one stream of noise each
        assert len(images[0].getcolors(1024)) > 100  # and not clipped to black and white
        assert pixels(pipeline([1, 0, 2, 0, 1, 2, 1, 0], **self.options)) == pixels(images)
        assert pixels(pipeline(LABELS, seed=1, **self.options)) != pixels(images)
        assert pipeline([]) == []

    def test_same_bytes_whatever_the_batch_split(self, pipeline):
        images = pixels(pipeline(LABELS, seed=3, **self.options))
        for batch in (1, 3, 8):
            assert pixels(pipeline(LABELS, seed=3, batch=batch, **self.options)) == images
        assert pixels(pipeline(LABELS[5:], seed=3, start=5, **self.options)) == images[5:]
        other = pipeline(["dog", *LABELS[1:]], seed=3, **self.options)
        assert pixels(other)[1:] == images[1:] and pixels(other)[0] != images[0]

    def test_unconditional(self):
        pipeline = make([], self.family)
        images = pipeline(count=3, **self.options)
        assert pixels(images) == pixels(pipeline(count=3, batch=2, **self.options))
        for arguments in ({}, {"labels": [0]}, {"labels": [0], "count": 1}, {"count": 0}):
            with pytest.raises(UserError, match="no classes: give a count"):
                pipeline(**arguments)

    def test_weights_are_as_before(self, pipeline):
        parts = {"tokenizer": pipeline.tokenizer, "generator": pipeline.generator}
        before = {k: {n: t.clone() for n, t in p.state_dict().items()} for k, p in parts.items()}
        pipeline(LABELS, **self.options)
        handle = next(pipeline.generator.children()).register_forward_hook(lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # also when it is interrupted
            pipeline(LABELS, **self.options)
        handle.remove()
        for name, part in parts.items():
            for key, value in part.state_dict().items():
                assert value.dtype == torch.float32 and torch.equal(value, before[name][key])

    def test_save_and_load(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "model_index.json").read_text()) == {"classes": CLASSES}
        images = pixels(pipeline(LABELS[:2], **self.options))
        assert pixels(Pipeline.from_pretrained(tmp_path)(LABELS[:2], **self.options)) == images
        parts = {"tokenizer": tmp_path / "tokenizer", "generator": tmp_path / "generator"}
        apart = Pipeline.from_pretrained(**parts)
        assert apart.classes == ["0", "1", "2"]
        assert pixels(apart([1, 0], **self.options)) == images
        assert Pipeline.from_pretrained(**parts, classes=CLASSES).classes == CLASSES
        again = Pipeline.from_pretrained(tokenizer=tmp_path, generator=tmp_path)
        assert again.classes == CLASSES

    def test_an_unknown_option_is_said(self, pipeline):
        with pytest.raises(UserError, match="has no option 'step'; it has steps, guidance"):
            pipeline(["cat"], step=3)
        with pytest.raises(UserError, match="sampler 'eule' is none of euler"):
            pipeline(["cat"], sampler="eule")


class TestSiT(PipelineContract):
    family = "sit"
    options: ClassVar[dict] = {"steps": 4, "sampler": "euler_maruyama", "interval": (0.0, 0.7)}


class TestDiT(PipelineContract):
    family = "dit"
    options: ClassVar[dict] = {"steps": 4, "sampler": "ddpm"}


class TestFlowMap(PipelineContract):
    family = "flowmap"
    options: ClassVar[dict] = {"steps": 2, "interval": (0.0, 0.7), "sampler": "consistency"}


class TestMAR(PipelineContract):
    family = "mar"
    options: ClassVar[dict] = {"steps": 3, "head_steps": 2, "temperature": 0.9}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make()


def test_latents_of_two_splits_are_the_same_bits(pipeline, monkeypatch):
    whole = pipeline.generate_latents(LABELS, steps=20)
    assert whole.shape == (8, 8, 16) and whole.dtype == torch.float64
    for batch in (1, 3, 5):
        assert torch.equal(pipeline.generate_latents(LABELS, steps=20, batch=batch), whole)
    monkeypatch.setattr(pipeline, "precision", "exact")
    exact = pipeline.generate_latents(LABELS, steps=20)
    torch.testing.assert_close(whole, exact, atol=1e-3, rtol=1e-3)
    single = pipeline.generate_latents(LABELS, steps=20, batch=1)
    torch.testing.assert_close(single, exact, atol=1e-10, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("tokens", [7, 16, 48])
def test_a_block_treats_its_rows_alike(tokens, threads):
    """What the promise rests on: the bits of a row depend on the shape, not on its neighbours."""
    torch.manual_seed(0)
    config = SiTConfig(tokens, 12, 3, width=96, depth=2, heads=3)
    network, before = SiT(config).eval(), torch.get_num_threads()
    perturb(network)
    x, t, y = torch.randn(11, tokens, 12), torch.rand(11), torch.arange(11) % 4
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            rows = {7: 64, 16: 16, 48: 8}[tokens]
            whole = in_blocks(network, rows, x, t, y)
            for some in (torch.arange(1), torch.randperm(11), torch.arange(4, 9)):
                assert torch.equal(in_blocks(network, rows, x[some], t[some], y[some]), whole[some])
            torch.testing.assert_close(whole, network(x, t, y), atol=1e-4, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_pictures_are_the_pixels(pipeline):
    latents = pipeline.generate_latents(LABELS, steps=2)
    array = pipeline.decode_uint8(latents, batch=3)
    assert array.shape == (8, 32, 32, 3) and array.dtype == "uint8"
    assert [x.tobytes() for x in array] == pixels(pipeline.decode(latents))


def test_options_may_differ_between_the_images(pipeline):
    scales = torch.tensor([1.0, 1.5, 3.0, 1.0, 2.0, 0.5, 1.5, 4.0])
    whole = pipeline.generate_latents(LABELS, guidance=scales, steps=3, batch=3)
    for i, scale in enumerate(scales.tolist()):
        one = pipeline.generate_latents(LABELS[i : i + 1], guidance=scale, steps=3, start=i)
        torch.testing.assert_close(one[0], whole[i], atol=1e-10, rtol=0)


def test_autoguidance_computes_the_worse_network_as_exactly(pipeline):
    options = {"bad": make(depth=1).generator, "guidance": 2.0, "steps": 3}
    images = pixels(pipeline(LABELS, **options))
    assert pixels(pipeline(LABELS, batch=3, **options)) == images
    assert images != pixels(pipeline(LABELS, guidance=2.0, steps=3))
    assert options["bad"].pos_embed.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "per_image"),
    [
        ({}, 20),
        ({"guidance": 1.0}, 10),
        ({"interval": (0.0, 0.7)}, 17),  # 0.7 .. 0.1 are inside, 1.0, 0.9 and 0.8 are not
        ({"interval": (0.41, 0.44)}, 10),
        ({"sampler": "heun"}, 38),
        ({"sampler": "euler_maruyama"}, 20),
    ],
)
@pytest.mark.parametrize("batch", [3, 64])
def test_cost_in_network_evaluations(pipeline, options, per_image, batch, monkeypatch):
    monkeypatch.setattr(pipeline, "precision", "exact")  # which repeats no image to fill a block
    samples = []
    handle = pipeline.generator.register_forward_hook(lambda m, a, out: samples.append(len(out)))
    pipeline(LABELS, steps=10, batch=batch, **options)
    handle.remove()
    assert sum(samples) == len(LABELS) * per_image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["cow"]}, "unknown label 'cow'; the classes are 0 bird, 1 cat, 2 dog"),
        ({"labels": [3]}, "unknown label 3; the classes"),
        ({"labels": [-1]}, "unknown label -1"),
        ({"labels": "cat"}, "list of labels; the classes"),
        ({"count": 3}, "list of labels; the classes"),
        ({"labels": [0], "steps": 0}, "steps must be 1 or more"),
        ({"labels": [0], "batch": 0}, "batch must be 1 or more"),
        ({"labels": [0], "interval": (0.7, 0.2)}, "interval"),
    ],
)
def test_wrong_arguments_are_said(pipeline, arguments, message):
    with pytest.raises(UserError, match=message):
        pipeline(**arguments)


def test_a_thousand_classes_are_not_all_listed():
    with pytest.raises(UserError, match=r"19 c19, and 980 more$"):
        make([f"c{i}" for i in range(1000)])(["x"])


def test_parts_that_do_not_fit_are_refused(pipeline):
    with pytest.raises(UserError, match="2 class names for 3 classes"):
        Pipeline(pipeline.tokenizer, pipeline.generator, CLASSES[:2])
    with pytest.raises(UserError, match="4 tokens x 16 channels, the generator 8 x 16"):
        Pipeline(Tokenizer(small(tokens=4)), pipeline.generator, CLASSES)


def test_half_precision_files(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    pipeline.save_pretrained(tmp_path / "half", half=True)
    size = [
        (d / "generator" / "model.safetensors").stat().st_size
        for d in (tmp_path, tmp_path / "half")
    ]
    assert size[1] < 0.6 * size[0]
    assert len(Pipeline.from_pretrained(tmp_path / "half")(LABELS, steps=3)) == 8


def test_a_released_generator_opens_beside_a_tokenizer(pipeline, tmp_path):
    """In the reference's layout: a flat config, and classes without names."""
    pipeline.save_pretrained(tmp_path / "ours")
    theirs = {
        "class_dropout_prob": 0.1, "decoder_hidden_size": 32, "depth": 2, "fused_attn": True,
        "hidden_size": 32, "in_channels": 16, "input_size": 8, "mlp_ratio": 4.0, "num_classes": 3,
        "num_heads": 2, "patch_size": 1, "path_type": "edm", "qk_norm": False, "use_cfg": True,
        "vae_1d": True, "z_dims": [0],
    }  # fmt: skip
    weights = load_tensors(tmp_path / "ours" / "generator" / "model.safetensors")
    save_tensors(weights, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(theirs))
    released = Pipeline.from_pretrained(tokenizer=tmp_path / "ours", generator=tmp_path / "theirs")
    assert released.classes == ["0", "1", "2"]
    images = released(["1", 0], steps=3)
    assert pixels(images) == pixels(pipeline(["cat", "bird"], steps=3))


def test_loading_says_what_is_wrong(tmp_path):
    for given in ({}, {"generator": "shipped"}, {"directory": "shipped", "generator": "shipped"}):
        with pytest.raises(UserError, match="directory of a pipeline, or a tokenizer and a gener"):
            Pipeline.from_pretrained(**given)
    with pytest.raises(UserError, match=r"no model_index\.json"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"classes": []}')
    with pytest.raises(UserError, match="(tokenizer|generator): no such directory"):
        Pipeline.from_pretrained(tmp_path)


def test_of_a_nested_tokenizer_the_first_tokens_are_kept():
    plain = make()
    torch.manual_seed(0)
    nested = Tokenizer(small(nested=True)).eval()
    perturb(nested)
    pipeline = Pipeline(nested, plain.generator, CLASSES)
    whole = pipeline.generate_latents([0, 1], steps=2)
    first = pipeline.generate_latents([0, 1], steps=2, tokens=1)
    assert torch.equal(first, whole[:, :1])
    assert pixels(pipeline.decode(first)) != pixels(pipeline.decode(whole))
    with pytest.raises(UserError, match="not nested"):
        plain.generate_latents([0], steps=2, tokens=1)


def test_a_machine_whose_rows_differ_is_found_out(monkeypatch):
    pipeline = make()
    assert pipeline.rows_alike()
    forward = type(pipeline.generator).forward

    def uneven(self, x, t, y=None):
        return forward(self, x, t, y) + 1e-6 * torch.arange(len(x))[:, None, None]

    monkeypatch.setattr(type(pipeline.generator), "forward", uneven)
    assert not pipeline.rows_alike()
    with pytest.warns(SoftVQWarning, match="drawing in float64"):
        keep_promise(pipeline)
    assert pipeline.precision == "exact"
