"""A teacher's features of photos, computed once and kept on disk."""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from softvq.coding import batches
from softvq.data import Store
from softvq.errors import UserError
from softvq.io import check_finite, replacing, write_atomically
from softvq.tokenizer.alignment import Teacher


def stored_features(
    folder: Path, teacher: Teacher, source: list[Any], count: int, pictures: Iterable[Tensor]
) -> np.ndarray:
    """A teacher's features of ``count`` images: float16 [count, N, D] in ``folder``/features.npy.

    Computed from batches of ``pictures`` [B, 3, H, W] unless they are there. Beside them
    ``index.json`` has a hash of the teacher and of ``source``, which must tell the images from any
    others. It is written last, so an interrupted computation is begun again. Raises UserError if
    the folder holds other features, and if the disk is too small.
    """
    weights = hashlib.sha256(save({k: v.cpu() for k, v in teacher.state_dict().items()}))
    kind = [*teacher.kind(), *source]
    made_by = hashlib.sha256(f"{weights.hexdigest()} {kind}".encode()).hexdigest()
    mark = json.dumps({"fingerprint": made_by}) + "\n"
    index, path = folder / "index.json", folder / "features.npy"
    if not index.is_file():
        _compute(path, teacher, count, pictures)
        write_atomically(index, mark)
    elif index.read_text(encoding="utf-8") != mark:
        raise UserError(f"{folder} holds features of another teacher or of other photos; delete it")
    return np.load(path, mmap_mode="r")


def _compute(path: Path, teacher: Teacher, count: int, pictures: Iterable[Tensor]) -> None:
    shape = (count, teacher.patches, teacher.width)
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    with (
        replacing(path, 2 * math.prod(shape)) as partial,
        partial.open("wb") as file,
        tqdm(total=count, desc="teacher", unit="img") as bar,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in pictures:
            features = check_finite(teacher(pixels.to(teacher.mean.device)), "the teacher")
            file.write(features.half().cpu().numpy().astype("<f2").tobytes())
            bar.update(pixels.shape[0])


class FeatureCache:
    """``stored_features`` of whole photos, with ``flip`` also mirrored: [photos, views, N, D].

    Raises UserError for photos with a margin, of which crops are taken.
    """

    def __init__(self, folder: Path, teacher: Teacher, photos: Store, flip: bool):
        if photos.margin != 1:
            raise UserError("alignment.cache is for whole photos: set data.margin=1")
        views = 1 + flip
        pictures = (
            torch.stack([pixels, pixels.flip(-1)][:views], dim=1).flatten(0, 1)
            for pixels in batches(photos, photos.size)
        )
        source, count = [photos.fingerprint, flip], views * len(photos)
        features = stored_features(folder, teacher, source, count, pictures)
        self.features = features.reshape(len(photos), views, *features.shape[1:])

    def __call__(self, rows: Tensor, mirrored: Tensor) -> Tensor:
        """Features [B, N, D] of the photos ``rows``, int64 [B]; ``mirrored`` bool [B]."""
        return torch.from_numpy(self.features[rows.numpy(), mirrored.long().numpy()]).float()
