"""What a study is asked: the settings that decide its figures, and what is known of the photos."""

import math
from dataclasses import dataclass
from typing import get_args

from softvq.errors import UserError, check_there
from softvq.options import Bottleneck, Fit, Hold

PATCHES = 8  # along each side: the work of a photo is then the same at every size
MOST_PIXELS = 2048  # along each side
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """What decides a study's figures; a study of others is another study.

    data: folder of photos.  size: (height, width) that photos are fitted to.  fit: crop | stretch.
    init: the trained tokenizer that arms start from, or "none".
    tokens: the counts to try.  hold: what stays the same while tokens are cut, the ``channels`` of
        a token, the ``floats`` of a photo (those of the middle count), or both in turn.
    budget: seconds for all of it.  images: photos that an arm sees in its first rung; None measures
        this machine and spends ``budget``.

    Raises UserError for what cannot be.
    """

    data: str
    size: tuple[int, int] = (64, 64)
    fit: Fit = "stretch"
    init: str = "shipped"
    tokens: tuple[int, ...] = (8, 16, 32, 64)
    hold: Hold = "channels"
    channels: int = 32
    bottlenecks: tuple[Bottleneck, ...] = ("softvq", "kl", "vq")
    budget: float = 3600.0
    images: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        height, width = self.size
        if height != width or height % PATCHES or not PATCHES < height <= MOST_PIXELS:
            raise UserError(
                f"--size must be a multiple of {PATCHES}, one number from {2 * PATCHES} to "
                f"{MOST_PIXELS}: photos are square"
            )
        _one_of("--hold", self.hold, get_args(Hold))
        _one_of("--fit", self.fit, get_args(Fit))
        for name in self.bottlenecks:
            _one_of("bottleneck", name, get_args(Bottleneck))
        if not self.bottlenecks:
            raise UserError(
                f"--bottlenecks is empty; give some of {', '.join(get_args(Bottleneck))}"
            )
        if not self.tokens or min(self.tokens) < 1:
            raise UserError("--tokens takes whole numbers of 1 or more, with commas")
        if self.channels < 1:
            raise UserError(f"--channels must be 1 or more, not {self.channels}")
        pixels, most = 3 * height * width, max(self.tokens)
        if most * self.channels > pixels:
            raise UserError(
                f"{most:,} tokens of {self.channels:,} numbers are more than the {pixels:,} of a "
                f"photo of {height} x {width} pixels; give smaller --tokens or --channels"
            )
        if not (math.isfinite(self.budget) and self.budget > 0):
            raise UserError(f"--budget must be a time above 0, as 30m, not {self.budget}")
        if self.images is not None and self.images < 1:
            raise UserError(f"--images must be 1 or more, not {self.images}")
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
        raise UserError(f"{what} '{name}' is none of {', '.join(known)}")
