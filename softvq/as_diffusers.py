"""A pipeline for people who live in diffusers: called, moved and saved as theirs are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softvq.errors import UserError
from softvq.pipeline import Pipeline

try:
    from diffusers import DiffusionPipeline, ImagePipelineOutput
except ImportError:
    raise UserError("this needs diffusers: pip install 'softvq[diffusers]'") from None


class SoftVQPipeline(DiffusionPipeline):
    """A ``DiffusionPipeline`` round a ``softvq.Pipeline``; images are the same, seed for seed.

    >>> pipeline = as_diffusers(Pipeline.from_pretrained("shipped")).to("cuda")
    >>> pipeline(["grocery_tomato", 3], generator=torch.Generator().manual_seed(0)).images

    It is saved as a ``softvq.Pipeline`` is, and ``from_pretrained`` opens what either saved.
    """

    def __init__(self, tokenizer: Any, generator: Any, classes: Sequence[str] = ()):
        super().__init__()
        self.register_modules(tokenizer=tokenizer, generator=generator)  # type: ignore[attr-defined]
        self.inside = Pipeline(tokenizer, generator, list(classes))

    def __call__(
        self,
        class_labels: list[int | str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """One image per label, or ``batch_size`` of them where there are no classes.

        ``generator`` (None: torch's own) draws the seed, unless ``seed`` is among the ``options``
        of ``Pipeline.generate_latents``, as are steps and guidance, whose default is the network's.
        ``output_type``: pil, np (floats [n, H, W, 3] in [0, 1]) or pt ([n, 3, H, W]). Raises
        UserError for another, and where the pipeline does.
        """
        if output_type not in ("pil", "np", "pt"):
            raise UserError(f"output_type '{output_type}' is none of pil, np, pt")
        named = {"steps": num_inference_steps, "guidance": guidance_scale}
        options |= {name: value for name, value in named.items() if value is not None}
        if "seed" not in options:
            where = "cpu" if generator is None else generator.device
            options["seed"] = int(torch.randint(2**31, (), generator=generator, device=where))
        images: Any = self.inside(class_labels, batch_size, **options)
        if output_type != "pil":
            images = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
        if output_type == "pt":
            images = torch.from_numpy(images).movedim(-1, 1)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def device(self) -> torch.device:
        return next(self.inside.generator.parameters()).device

    def to(self, device: str | torch.device) -> "SoftVQPipeline":
        """Move it; ``inside.precision`` says how it computes there."""
        self.inside.tokenizer.to(device)
        self.inside.generator.to(device)
        return self

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write it as ``Pipeline.save_pretrained`` does."""
        self.inside.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **_: Any) -> "SoftVQPipeline":
        """Open what ``Pipeline.from_pretrained`` opens."""
        return as_diffusers(Pipeline.from_pretrained(directory))


def as_diffusers(pipeline: Pipeline) -> SoftVQPipeline:
    """The same tokenizer and network behind the interface of diffusers."""
    return SoftVQPipeline(pipeline.tokenizer, pipeline.generator, pipeline.classes)
