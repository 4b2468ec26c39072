"""softvq.Pipeline: the same images whatever the batch split, its cost, its files."""

import json

import pytest
import torch
from contract import small

from softvq.errors import UserError
from softvq.generator.transformer import SiT, SiTConfig
from softvq.pipeline import Pipeline
from softvq.tokenizer import Tokenizer

CLASSES = ["bird", "cat", "dog"]
LABELS = ["cat", 0, "dog", "bird", 1, 2, "cat", 0]


def perturb(module: torch.nn.Module) -> None:
    """Draw every weight: new generators are the zero function, new tokenizers nearly so."""
    for parameter in module.parameters():
        parameter.data += 0.15 * torch.randn_like(parameter)


def make(classes: list[str] = CLASSES, bottleneck: str = "softvq") -> Pipeline:
    torch.manual_seed(0)
    tokenizer = Tokenizer(small(bottleneck=bottleneck)).eval()
    tokenizer.latent_mean.normal_()
    tokenizer.latent_std.uniform_(0.5, 2)
    shape = {"tokens": 8, "channels": 16, "width": 32, "depth": 2, "heads": 2}
    generator = SiT(SiTConfig(num_classes=len(classes), **shape)).eval()
    perturb(tokenizer)
    perturb(generator)
    return Pipeline(tokenizer, generator, classes)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return make()


def pixels(images) -> list[bytes]:
    return [image.tobytes() for image in images]


def test_images(pipeline):
    images = pipeline(LABELS, steps=4)
    assert len(images) == 8 and images[0].size == (32, 32) and images[0].mode == "RGB"
    assert len(set(pixels(images))) == 8  # one stream of noise each
    assert len(images[0].getcolors(1024)) > 100  # and not clipped to black and white
    assert pixels(pipeline(LABELS, steps=4)) == pixels(images)
    assert pixels(pipeline(LABELS, steps=4, seed=1)) != pixels(images)
    assert pixels(pipeline([1, 0, 2, 0, 1, 2, 1, 0], steps=4)) == pixels(images)
    assert pipeline([]) == []


@pytest.mark.parametrize("sampler", ["euler", "heun", "euler_maruyama"])
def test_same_bytes_whatever_the_batch_split(pipeline, sampler):
    options = {"steps": 6, "sampler": sampler, "interval": (0.0, 0.7), "seed": 3}
    images = pixels(pipeline(LABELS, **options))
    for batch in (1, 3, 5, 8):
        assert pixels(pipeline(LABELS, batch=batch, **options)) == images
    assert pixels(pipeline(LABELS[:3], **options)) == images[:3]
    assert pixels(pipeline(["dog", *LABELS[1:]], **options))[1:] == images[1:]


def test_latents_of_two_splits_agree_far_below_a_level(pipeline):
    whole = pipeline.generate_latents(LABELS, steps=50)
    assert whole.shape == (8, 8, 16) and whole.dtype == torch.float64
    single = pipeline.generate_latents(LABELS, steps=50, batch=1)
    torch.testing.assert_close(single, whole, atol=1e-10, rtol=0)


def test_weights_are_as_before(pipeline):
    parts = {"tokenizer": pipeline.tokenizer, "generator": pipeline.generator}
    before = {k: {n: t.clone() for n, t in p.state_dict().items()} for k, p in parts.items()}
    pipeline(LABELS, steps=2)
    with pytest.raises(ZeroDivisionError):  # also when it is interrupted
        handle = pipeline.generator.register_forward_hook(lambda *a: 1 / 0)
        pipeline(LABELS, steps=2)
    handle.remove()
    for name, part in parts.items():
        for key, value in part.state_dict().items():
            assert value.dtype == torch.float32 and torch.equal(value, before[name][key])


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
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_cost_in_network_evaluations(pipeline, options, per_image, batch):
    samples = []
    handle = pipeline.generator.register_forward_hook(lambda m, a, out: samples.append(len(out)))
    pipeline(LABELS, steps=10, batch=batch, **options)
    handle.remove()
    assert sum(samples) == len(LABELS) * per_image


def test_unconditional():
    pipeline = make([])
    images = pipeline(count=5, steps=3)
    assert pixels(images) == pixels(pipeline(count=5, steps=3, batch=2))
    for arguments in ({}, {"labels": [0]}, {"labels": [0], "count": 1}, {"count": 0}):
        with pytest.raises(UserError, match="no classes: give a count"):
            pipeline(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["cow"]}, "unknown label 'cow'; the classes are 0 bird, 1 cat, 2 dog"),
        ({"labels": [3]}, "unknown label 3; the classes"),
        ({"labels": [-1]}, "unknown label -1"),
        ({"labels": "cat"}, "list of labels; the classes"),
        ({"count": 3}, "list of labels; the classes"),
        ({"labels": [0], "sampler": "rk4"}, "sampler 'rk4' is none of euler, heun"),
        ({"labels": [0], "steps": 0}, "steps must be 1 or more"),
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


def test_save_and_load(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text()) == {"classes": CLASSES}
    loaded = Pipeline.from_pretrained(tmp_path)
    assert pixels(loaded(LABELS, steps=3)) == pixels(pipeline(LABELS, steps=3))
    pipeline.save_pretrained(tmp_path / "half", half=True)
    size = [
        (d / "generator" / "model.safetensors").stat().st_size
        for d in (tmp_path, tmp_path / "half")
    ]
    assert size[1] < 0.6 * size[0]
    assert len(Pipeline.from_pretrained(tmp_path / "half")(LABELS, steps=3)) == 8


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match=r"no model_index\.json"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "model_index.json").write_text('{"classes": []}')
    with pytest.raises(UserError, match=r"no config\.json"):
        Pipeline.from_pretrained(tmp_path)
