"""softvq.Pipeline behind the interface of diffusers."""

import numpy as np
import pytest
import torch
from test_pipeline import CLASSES, make

from softvq import Pipeline
from softvq.errors import UserError

diffusers = pytest.importorskip("diffusers")

from softvq.as_diffusers import SoftVQPipeline, as_diffusers  # noqa: E402

LABELS = ["cat", 0]


@pytest.fixture(scope="module")
def pipeline():
    return as_diffusers(make())


def drawn(pipeline, **options) -> np.ndarray:
    images = pipeline(LABELS, num_inference_steps=3, output_type="np", **options).images
    assert images.shape == (2, 32, 32, 3) and 0 <= images.min() and images.max() <= 1
    return images


def test_the_images_are_the_pipelines(pipeline):
    assert isinstance(pipeline, diffusers.DiffusionPipeline)
    expected = pipeline.inside(LABELS, steps=3, guidance=2.0, seed=7)
    output = pipeline(LABELS, num_inference_steps=3, guidance_scale=2.0, seed=7)
    assert isinstance(output, diffusers.ImagePipelineOutput)
    assert [i.tobytes() for i in output.images] == [i.tobytes() for i in expected]
    arrays = drawn(pipeline, guidance_scale=2.0, seed=7)
    assert np.array_equal(arrays * 255, np.stack(expected))
    tensors = pipeline(LABELS, 3, 2.0, seed=7, output_type="pt", return_dict=False)[0]
    assert np.array_equal(tensors.permute(0, 2, 3, 1), arrays)


def test_the_generator_decides(pipeline):
    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    images = drawn(pipeline, generator=seeded())
    assert np.array_equal(drawn(pipeline, generator=seeded()), images)
    generator = seeded()
    drawn(pipeline, generator=generator)
    assert not np.array_equal(drawn(pipeline, generator=generator), images)  # it has moved on
    torch.manual_seed(3)
    assert np.array_equal(drawn(pipeline), images)  # torch's own, of the same seed


def test_moved_and_saved(pipeline, tmp_path):
    assert pipeline.to("cpu").device.type == "cpu"
    assert set(pipeline.components) >= {"tokenizer", "generator"}
    pipeline.save_pretrained(tmp_path)
    images = drawn(pipeline, seed=1)
    opened = SoftVQPipeline.from_pretrained(tmp_path)
    assert np.array_equal(drawn(opened, seed=1), images) and opened.inside.classes == CLASSES
    assert np.array_equal(drawn(as_diffusers(Pipeline.from_pretrained(tmp_path)), seed=1), images)


def test_unconditional_and_wrong_arguments(pipeline):
    assert len(as_diffusers(make([]))(batch_size=3, num_inference_steps=2).images) == 3
    with pytest.raises(UserError, match="output_type 'latent' is none of pil, np, pt"):
        pipeline(LABELS, output_type="latent")
    with pytest.raises(UserError, match="unknown label 'cow'"):
        pipeline(["cow"])
    with pytest.raises(UserError, match="no option 'temperature'"):
        pipeline(LABELS, temperature=2.0)
