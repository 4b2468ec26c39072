"""What a study is asked: the settings that decide its figures, and what is known of the photos."""

import math
from dataclasses import dataclass
from typing import get_args

from softvq.errors import UserError, check_there
from softvq.options import Fit, Scale, Trained

MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """What decides a study's figures; a study of others is another study.

    data: folder of photos.
    init: the nested tokenizer that training starts from, and whose image size is the study's.
    train: what is fine-tuned on the photos: the tokenizer as it is (``softvq``), its ``decoder``
        alone, which leaves tokens as they are, or the tokenizer with another bottleneck. Each
        takes its share of the time.
    tokens: the counts to measure, of a picture of that size; None for 1, 2, 4, .. and all.
    tile: whether photos are fitted to that size, or cut at their ``native`` scale; auto goes by
        the sizes of what is marked.  fit: how they are fitted, crop | stretch.
    budget: seconds for all of it.  images: photos seen in training, in place of the budget.
    seeds: how often the fine-tuning is repeated with another seed.

    Raises UserError for what cannot be.
    """

    data: str
    init: str = "shipped"
    train: tuple[Trained, ...] = ("softvq",)
    tokens: tuple[int, ...] | None = None
    tile: Scale = "auto"
    fit: Fit = "stretch"
    budget: float = 1200.0
    images: int | None = None
    seeds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("--tile", self.tile, get_args(Scale))
        _one_of("--fit", self.fit, get_args(Fit))
        for name in self.train:
            _one_of("--train", name, get_args(Trained))
        if self.tokens is not None and (not self.tokens or min(self.tokens) < 1):
            raise UserError("--tokens takes whole numbers of 1 or more, with commas")
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise UserError(f"--budget must be a time above 0, as 30m, not {self.budget}")
        if self.images is not None and self.images < 1:
            raise UserError(f"--images must be 1 or more, not {self.images}")
        if not 1 <= self.seeds <= 10:
            raise UserError(f"--seeds must be from 1 to 10, not {self.seeds}")
        if not 0 <= self.seed <= MOST_SEED:
            raise UserError(f"--seed must be from 0 to {MOST_SEED}, not {self.seed}")


@dataclass(frozen=True)
class Known:
    """What is known of the photos beside their pixels; paths as the user gave them.

    masks: folder of masks.  boxes: CSV of boxes.  metadata: CSV of the photos, and its columns
    ``group`` (photos of one part are one piece of evidence) and ``subgroups`` (reported apart).
    normal: the classes without defects, None to go by their names.
    drop_leaks: leave out held-out photos that are in training too, rather than refuse them.

    Raises UserError for a path that is not there.
    """

    masks: str | None = None
    boxes: str | None = None
    metadata: str | None = None
    group: str | None = None
    subgroups: tuple[str, ...] = ()
    normal: tuple[str, ...] | None = None
    drop_leaks: bool = False

    def __post_init__(self) -> None:
        check_there(masks=self.masks, boxes=self.boxes, metadata=self.metadata)


def _one_of(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UserError(f"{what}: '{name}' is none of {', '.join(known)}")
