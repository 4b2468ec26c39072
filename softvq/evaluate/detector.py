"""The detector that a study asks whether a defect is still there: it finds it, and says where.

It is trained on originals alone. Each cell of 8 x 8 pixels is judged by a small head on frozen
convolutional features, those of the shipped probe, at the four scales of its stages: a few hundred
photos teach a head, not a network. Where masks or boxes say which cells are defective, cells are
taught; where there is only a photo's class, the photo is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from softvq import images
from softvq.checks import check_fields
from softvq.data import Store
from softvq.evaluate.corruptions import to_levels
from softvq.io import load_model, save_model
from softvq.models import model_folder
from softvq.probe import STAGES, Probe, ProbeConfig

CELL = 8  # pixels
BATCH = 32
VIEWS = 4000  # at most, of training photos; they are held in memory, 0.2 MB each at 128 pixels
SHARPNESS = 4.0  # of the maximum over cells
FOUND = 3.0  # how much more a defective cell counts than another


@dataclass(frozen=True)
class DetectorConfig:
    """Photos of height x width pixels; labels 0..classes-1, and which of them are free of defects.

    channels: of the probe whose features are read.
    """

    height: int
    width: int
    classes: int
    normal: tuple[int, ...] = ()
    channels: int = 32
    hidden: int = 96

    def __post_init__(self) -> None:
        check_fields(
            self, "detector: ", above_0=("height", "width", "classes", "channels", "hidden")
        )


class Detector(nn.Module):
    """Images [B, 3, H, W] in [-1, 1] -> logits [B, classes].

    With classes free of defects, a photo's score for a defect is the smooth maximum over its cells,
    beside the first such class, and that class scores 0: one bad cell spoils a photo. Without, it
    is the mean.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        size = max(config.height, 2**STAGES), max(config.width, 2**STAGES)
        self.trunk = Probe(ProbeConfig(*size, 1, config.channels)).requires_grad_(False)
        c = config.channels
        width = 2 * c + 2 * 2 * c + 4 * c + 4 * c  # the two finer scales by mean and by maximum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.head = nn.Sequential(
            nn.Dropout(0.3),
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(config.hidden, config.classes),
        )

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        """Features of every cell, [B, H / 8, W / 8, D]."""
        x = self.trunk.stem(pixels.contiguous(memory_format=torch.channels_last))
        cells = pixels.shape[2] // CELL, pixels.shape[3] // CELL
        found = []
        for i, block in enumerate(self.trunk.blocks):
            x = block(x)
            if i % 2:  # a convolution that halves the map; the residual after it is read
                continue
            scale = F.relu(F.group_norm(x, 8)).float()
            if scale.shape[2] > cells[0]:
                found.append(F.adaptive_avg_pool2d(scale, cells))
                found.append(F.adaptive_max_pool2d(scale, cells))
            else:
                found.append(F.interpolate(scale, cells, mode="bilinear"))
        return torch.cat(found, dim=1).permute(0, 2, 3, 1)

    def cells(self, maps: Tensor) -> Tensor:
        """Logits of every cell [B, H / 8, W / 8, classes]."""
        return self.head((maps.float() - self.mean) / self.std)

    def pool(self, cells: Tensor) -> Tensor:
        """Logits of the photos [B, classes] from those of their cells."""
        if not self.config.normal:
            return cells.mean((1, 2))
        first = self.config.normal[0]
        beside = SHARPNESS * (cells - cells[..., first : first + 1]).flatten(1, 2)
        return torch.logsumexp(beside, dim=1).sub(np.log(beside.shape[1])) / SHARPNESS

    def features(self, pixels: Tensor) -> Tensor:
        """[B, D]: the mean over the cells of what the head reads."""
        return ((self.maps(pixels) - self.mean) / self.std).mean((1, 2))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.pool(self.cells(self.maps(pixels)))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors."""
        save_model(self, directory)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load what :meth:`save_pretrained` wrote, strictly. Raises UserError."""
        return load_model(cls, DetectorConfig, directory)


def views(photos: Store, masks: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Photos [b, H, W, 3], masks and labels: as they are, mirrored both ways, lighter and darker.

    At most VIEWS of them; of more photos than that, an even choice.
    """
    chosen = np.linspace(0, len(photos) - 1, min(len(photos), VIEWS)).astype(int)
    changes = (
        (lambda x: x, lambda m: m),
        (lambda x: x[:, :, ::-1], lambda m: m[:, :, ::-1]),
        (lambda x: x[:, ::-1], lambda m: m[:, ::-1]),
        (lambda x: to_levels(0.75 * x[:, ::-1, ::-1]), lambda m: m[:, ::-1, ::-1]),
        (lambda x: to_levels(0.8 * x + 38), lambda m: m),
    )
    for change, alike in changes[: max(1, VIEWS // len(chosen))]:
        for some in np.array_split(chosen, -(-len(chosen) // BATCH)):
            pixels = np.asarray(photos.images[some])
            yield change(pixels), alike(masks[some]), photos.labels[some]


def train_detector(
    photos: Store, masks: np.ndarray, normal: list[str], seed: int, steps: int = 600
) -> Detector:
    """A detector of the classes of ``photos``, whose defects are inside ``masks`` [N, H, W].

    ``normal``: the classes that are free of defects. Takes a minute or two on two cores.
    """
    torch.manual_seed(seed)
    free = tuple(i for i, name in enumerate(photos.classes) if name in normal)
    probe = Probe.from_pretrained(model_folder("shipped") / "probe")
    config = DetectorConfig(*photos.size, len(photos.classes), free, probe.config.channels)
    detector = Detector(config)
    state = {k: v for k, v in probe.state_dict().items() if not k.startswith("head.")}
    detector.trunk.load_state_dict(state, strict=False)
    for parameter in detector.head[-1].parameters():
        nn.init.zeros_(parameter)

    parts, taught, labels = [], [], []
    for pixels, inside, some in tqdm(list(views(photos, masks)), desc="features", unit="batch"):
        parts.append(detector.maps(images.to_tensor(pixels)).half())
        wide = torch.from_numpy(inside.astype(np.float32))[:, None]
        taught.append(F.adaptive_max_pool2d(wide, parts[-1].shape[1:3])[:, 0] > 0)
        labels.append(torch.from_numpy(some))
    maps, bad, y = torch.cat(parts), torch.cat(taught), torch.cat(labels)
    cells = maps[:: max(1, len(maps) // 500)].float().flatten(0, 2)
    detector.mean.copy_(cells.mean(0))
    detector.std.copy_(cells.std(0).clamp_min(1e-3))

    defective = torch.tensor([i not in free for i in range(config.classes)])
    counts = torch.bincount(y, minlength=config.classes).clamp_min(1).float()
    weights = (counts.sum() / counts / len(counts)).sqrt()
    optimizer = torch.optim.AdamW(detector.head.parameters(), weight_decay=0.5)
    draws = torch.Generator().manual_seed(seed)
    detector.train()
    for step in tqdm(range(steps), desc="detector", unit="step"):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps)
        some = torch.randint(len(maps), (BATCH,), generator=draws)
        label, where = y[some], bad[some]
        logits = detector.cells(maps[some])
        loss = F.cross_entropy(detector.pool(logits), label, weights, label_smoothing=0.05)
        if free:
            # A defect without a mask teaches no cell: nobody knows where it is.
            known = ~defective[label] | where.flatten(1).any(1)
            aim = torch.where(
                where & defective[label][:, None, None], label[:, None, None], free[0]
            )
            each = F.cross_entropy(logits.movedim(-1, 1), aim, reduction="none")
            counts_for = torch.where(where, FOUND, 1.0) * known[:, None, None]
            loss = loss + (each * counts_for).sum() / counts_for.sum().clamp_min(1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return detector.eval()
