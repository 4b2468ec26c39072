"""A picture's pooled features as tokens beside its own: what a generator with a summary learns.

The eye's last map at 224 x 224 pixels, averaged over its places, in the S x C directions in which
the photos differ most, each at unit variance: S tokens of C numbers (REG, Wu et al. 2025, who take
the class token of DINOv2 as it is).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from softvq.encoding import Views
from softvq.errors import UserError
from softvq.options import BATCH
from softvq.tokenizer.alignment import EYES, EyeTeacher
from softvq.train.features import stored_features


class PooledEye(EyeTeacher):
    """The eye's last map averaged over its places, as the features of one patch."""

    def __init__(self) -> None:
        super().__init__(EYES["eye-7x7"])

    def shape(self) -> tuple[int, int]:
        return 1, super().shape()[1]

    def kind(self) -> list[Any]:
        return [*super().kind(), "pooled"]

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).mean(1, keepdim=True)


def principal(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and axes [D, count] on which features [N, D] have variance 1, the largest first.

    Raises UserError if they have fewer directions.
    """
    mean = features.double().mean(0)
    _, spread, axes = torch.linalg.svd(features.double() - mean, full_matrices=False)
    present = int((spread > 1e-6 * spread[0]).sum())
    if present < count:
        raise UserError(
            f"model.summary asks for {count} numbers of a picture's features, and those of "
            f"{len(features)} photos differ in {present}; give more photos, or a smaller summary"
        )
    axes, spread = axes[:count], spread[:count] / len(features) ** 0.5
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    return mean, (axes * largest.sign() / spread[:, None]).T


def summaries(
    folder: Path, shape: tuple[int, int], train: Views, held_out: Views, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Float32 [N, S, C] of each view of either set, for ``shape`` = (S, C).

    The features are computed once and kept in ``folder``. UserError as :func:`principal` and
    ``stored_features``.
    """
    teacher = PooledEye().to(device)

    def pooled(name: str, views: Views) -> Tensor:
        pictures = DataLoader(views, batch_size=BATCH)
        kept = stored_features(folder / name, teacher, views.made_of, len(views), pictures)
        return torch.from_numpy(kept[:, 0].astype("float32"))

    found = pooled("train", train), pooled("val", held_out)
    mean, axes = principal(found[0], shape[0] * shape[1])
    drawn = [((x - mean) @ axes).float().unflatten(1, shape) for x in found]
    return drawn[0], drawn[1]
