"""What judges read of pictures: the eye's features, of cells of 16 pixels and of whole photos."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn import functional as F

from softvq import images
from softvq.device import pick_device
from softvq.eye import Eye

CELL = 16  # pixels
BATCH = 16
DIMENSIONS = 96  # principal components of a cell's 624 features that are kept


@dataclass(frozen=True)
class Seen:
    """Features of M pieces, float32.

    cells: [M, n, P], the cells of each piece row by row, in the space of the :class:`Looker`.
    mean, top: [M, 624], mean and maximum over all cells of their features.
    piece: int64 [M], the photo that each piece is of, in order.
    """

    cells: np.ndarray
    mean: np.ndarray
    top: np.ndarray
    piece: np.ndarray

    @cached_property
    def photo(self) -> np.ndarray:
        """[N, 2Q], of whole photos: the mean of the pieces' means and the maximum of all."""
        first = self.first
        counts = np.diff(np.r_[first, len(self.piece)])
        mean = np.add.reduceat(self.mean, first) / counts[:, None]
        return np.concatenate([mean, np.maximum.reduceat(self.top, first)], axis=1)

    @property
    def first(self) -> np.ndarray:
        """The first piece of each photo, [N]."""
        return np.flatnonzero(np.r_[True, np.diff(self.piece) > 0])


def chosen(seen: Sequence[Seen], which: np.ndarray) -> Seen:
    """Features of pieces of which each, [M], is taken from one of several."""

    def picked(parts: list[np.ndarray]) -> np.ndarray:
        return np.stack([parts[k][i] for i, k in enumerate(which.tolist())])

    return Seen(
        picked([each.cells for each in seen]),
        picked([each.mean for each in seen]),
        picked([each.top for each in seen]),
        seen[0].piece,
    )


class Looker:
    """The eye, and the space of its cells' features, which the first pictures seen set up."""

    def __init__(self, bf16: bool = False) -> None:
        self.device = pick_device()
        self.eye = Eye.shipped().to(self.device)
        self.bf16 = bf16  # twice as fast where the device multiplies it natively
        self.centre = self.spread = np.zeros(0)
        self.axes = np.zeros((0, 0))

    def __call__(self, pictures: np.ndarray, piece: np.ndarray) -> Seen:
        """Features of pieces, uint8 [M, S, S, 3] of any side; ``piece`` names each one's photo."""
        if not len(self.axes):
            self.set_up(pictures)
        cells, means, maxima = [], [], []
        for maps in self.maps(pictures):
            cells.append((((maps - self.centre) / self.spread) @ self.axes).astype(np.float32))
            means.append(maps.mean(1))
            maxima.append(maps.max(1))
        return Seen(
            np.concatenate(cells), np.concatenate(means), np.concatenate(maxima), np.asarray(piece)
        )

    def maps(self, pictures: np.ndarray) -> Iterator[np.ndarray]:
        """The cells' features of each batch, [b, n, 624]: of finer maps mean, maximum and minimum
        over the cell, of coarser ones what lies between."""
        for first in range(0, len(pictures), BATCH):
            some = images.to_tensor(np.asarray(pictures[first : first + BATCH])).to(self.device)
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, torch.bfloat16, self.bf16),
            ):
                stages = self.eye.stages(some)
            height, width = (max(1, side // CELL) for side in some.shape[-2:])
            parts = []
            for stage in stages.values():
                stage = stage.float()
                if stage.shape[-1] > width:
                    parts += [
                        F.adaptive_avg_pool2d(stage, (height, width)),
                        F.adaptive_max_pool2d(stage, (height, width)),
                        -F.adaptive_max_pool2d(-stage, (height, width)),
                    ]
                else:
                    parts.append(F.interpolate(stage, (height, width), mode="bilinear"))
            yield torch.cat(parts, dim=1).flatten(2).transpose(1, 2).cpu().numpy()

    def set_up(self, pictures: np.ndarray, most: int = 64) -> None:
        """Standardise a cell's features and keep their principal components."""
        some = np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(int)
        found = np.concatenate(list(self.maps(pictures[some])))
        cells = found.reshape(-1, found.shape[-1]).astype(np.float64)
        self.centre, self.spread = cells.mean(0), cells.std(0) + 1e-3
        scaled = (cells - self.centre) / self.spread
        _, vectors = np.linalg.eigh(scaled.T @ scaled)
        self.axes = vectors[:, ::-1][:, :DIMENSIONS]


def marked_cells(masks: np.ndarray, least: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Cells of masks, bool [M, S, S] -> bool [M, n] twice: marked (``least`` of them is inside),
    and near a mark, which neither teach that a cell is marked nor that it is not."""
    from scipy.ndimage import binary_dilation

    count, height, width = masks.shape
    rows, columns = max(1, height // CELL), max(1, width // CELL)
    cut = masks[:, : rows * (height // rows), : columns * (width // columns)]
    shares = cut.reshape(count, rows, height // rows, columns, width // columns).mean((2, 4))
    inside = shares >= least
    around = np.stack([binary_dilation(share > 0) for share in shares])
    return inside.reshape(count, -1), around.reshape(count, -1)
