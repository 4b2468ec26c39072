"""A picture's pooled features as tokens beside its own: what a generator with a summary learns.

The eye's last map at 224 x 224 pixels, averaged over its places, in the S x C directions in which
the photos differ most, each at unit variance: S tokens of C numbers (REG, Wu et al. 2025, who take
the class token of DINOv2 as it is).
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from softvq.encoding import Views
from softvq.errors import UserError
from softvq.io import load_tensors, save_tensors
from softvq.options import BATCH
from softvq.tokenizer.alignment import EYES, EyeTeacher

STAGE = EYES["eye-7x7"]


def pooled_features(views: Views, device: torch.device) -> Tensor:
    """Of every view, [N, D]."""
    teacher = EyeTeacher(STAGE).to(device)
    pictures: Iterable[Tensor] = DataLoader(views, batch_size=BATCH)
    with tqdm(total=len(views), desc="summaries", unit="img") as bar:
        found = []
        for batch in pictures:
            found.append(teacher(batch.to(device)).mean(1).cpu())
            bar.update(len(batch))
    return torch.cat(found)


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

    Computed once, and kept in ``folder``/summaries.safetensors. UserError as :func:`principal`.
    """
    path = folder / "summaries.safetensors"
    if not path.is_file():
        sets = {"train": train, "val": held_out}
        found = {name: pooled_features(views, device) for name, views in sets.items()}
        mean, axes = principal(found["train"], shape[0] * shape[1])
        drawn = {k: ((x - mean) @ axes).float().unflatten(1, shape) for k, x in found.items()}
        save_tensors(drawn, path)
    kept = load_tensors(path)
    return kept["train"], kept["val"]
