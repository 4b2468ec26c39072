"""What a study finds out, as records, and the one place where they become files and back.

Results (results.json) holds everything that the report says; Plan (plan.json) what was decided
while training; Facts (data.json, and in the results) what was found out about the photos. What
could not be measured is None. A file that is damaged, or that another version wrote, is refused.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from softvq.errors import UserError
from softvq.evaluate.intervals import Figure
from softvq.io import replacing, write_atomically
from softvq.study.settings import Settings

Sense = Literal["min", "max"]

ORIGINALS = "originals.npy"  # in the study's folder: the held-out photos, uint8 [N, H, W, 3]


Figures = dict[str, Figure | None]


@dataclass(frozen=True)
class Criterion:
    """``metric`` must be at least ``limit`` (``sense`` min) or at most (max)."""

    metric: str
    sense: Sense
    limit: float

    def holds_of(self, value: float) -> bool:
        return value >= self.limit if self.sense == "min" else value <= self.limit


@dataclass(frozen=True)
class Outcome(Criterion):
    """A criterion put to a figure: ``bound`` is the end of its interval that counts.

    holds: whether the bound is on the right side of the limit: luck is not evidence.
    why: what stood in the way of an answer, None if nothing did.
    """

    value: float | None = None
    bound: float | None = None
    holds: bool = False
    why: Literal["not measured", "one group"] | None = None

    @property
    def met(self) -> bool:
        """Whether the value itself is on the right side, proven or not."""
        return self.value is not None and self.holds_of(self.value)


@dataclass(frozen=True)
class Verdict:
    """``holds``: every criterion does."""

    holds: bool
    criteria: list[Outcome]


# ---- what the judging finds ----


@dataclass(frozen=True)
class ClassFigures:
    """Of the ``n`` held-out photos of a class; psnr only of reconstructions."""

    n: int
    recall: Figure | None
    psnr: Figure | None = None


@dataclass(frozen=True)
class SizeBin:
    """Of ``n`` regions from ``low`` to ``high`` study pixels across: means, and the share alive."""

    low: float
    high: float
    n: int
    contrast: float
    surviving: float
    psnr: float


@dataclass(frozen=True)
class RegionFigures:
    """A marked region of held-out photo number ``photo``, and how much of its contrast is kept.

    box: left, top, right, bottom, the last two outside; diameter: both in study pixels.
    """

    photo: int
    box: tuple[int, int, int, int]
    diameter: float
    contrast: float | None


@dataclass(frozen=True)
class Subgroup:
    """Of the ``n`` held-out photos with one value in a column of the metadata."""

    n: int
    metrics: Figures


@dataclass(frozen=True)
class Originals:
    """The held-out photos by ``names``, and what the detector makes of the originals.

    confusion: photos by their true class (rows) and the class they are taken for (columns).
    unmarked: defect photos without a region; None where there are no regions at all.
    """

    names: list[str]
    classes: list[str]
    accuracy: Figure | None
    defect_recall: Figure | None
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]] | None
    unmarked: int | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything that is measured on one set of reconstructions of the held-out photos.

    smallest_in_file: the metric smallest_surviving, in the photo files' own pixels.
    worst: numbers of the photos with the lowest PSNR.
    """

    metrics: Figures
    smallest_in_file: float | None = None
    per_class: dict[str, ClassFigures] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    by_size: list[SizeBin] = field(default_factory=list)
    subgroups: dict[str, dict[str, Subgroup]] = field(default_factory=dict)
    worst: list[int] = field(default_factory=list)
    regions: list[RegionFigures] = field(default_factory=list)


# ---- what was tried ----


@dataclass(frozen=True)
class Stop:
    """Why an arm was stopped after a rung: arm ``by`` was better by ``gap_db``."""

    by: str
    gap_db: float
    rung: int


@dataclass(frozen=True)
class ArmCost:
    """Of a tokenizer, and of one evaluation of a SiT-XL/1 on its tokens."""

    parameters: int
    encode_gflops: float
    decode_gflops: float
    generator_gflops: float


@dataclass(frozen=True)
class Speed:
    """Photos per second on this machine; None if it was not measured."""

    encode: float | None = None
    decode: float | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that photos were kept in: ``bytes`` of a photo on average.

    held: what stays the same in other arms.  pictures: the .npy file of its reconstructions of the
    held-out photos, below the study's folder.
    """

    name: str
    kind: str
    bytes: float
    held: tuple[str, ...]
    pictures: str


@dataclass(frozen=True, kw_only=True)
class ArmResult(Judgement, Entry):
    """A tokenizer that was trained. Without ``stopped`` it is a candidate for the recommendation.

    floats: numbers that a photo becomes.  images_seen: in training, over so many ``rungs``.
    robustness: by what spoilt the photos, see ``judging.judge.judge_spoilt``.
    """

    learned: Literal[True] = True
    tokens: int
    channels: int
    floats: int
    rungs: int
    images_seen: int
    stopped: Stop | None
    cost: ArmCost
    robustness: dict[str, Figures] = field(default_factory=dict)
    verdict: Verdict

    @property
    def price(self) -> tuple[float, float, float]:
        """Tokens decide what a generator costs, then numbers, then bytes."""
        return self.tokens, self.floats, self.bytes


@dataclass(frozen=True, kw_only=True)
class BaselineResult(Judgement, Entry):
    """A method without training, held to the size of the arm ``of``; ``fits``: it keeps to it.

    setting: its quality, size or number of components.  floats: None for a file format.
    """

    learned: Literal[False] = False
    of: str
    setting: str
    floats: int | None
    fits: bool

    @property
    def price(self) -> tuple[float, float, float]:
        """As an arm's; what has no tokens comes after all that have."""
        return math.inf, math.inf if self.floats is None else self.floats, self.bytes


Result = ArmResult | BaselineResult


@dataclass(frozen=True)
class Recommendation:
    """The name of the cheapest arm that was trained to the end and holds everything, or None.

    failing: how many arms fail each metric.  cheaper_failed: the metrics that each cheaper arm
    fails, in the order of price.
    limit: "evidence" if nothing holds, but of some arm every value is on the right side.
    """

    arm: str | None
    failing: dict[str, int]
    cheaper_failed: dict[str, list[str]]
    limit: Literal["evidence"] | None


# ---- what was found out about the photos ----

RemarkCode = Literal[
    "few_train", "few_val", "few_class_val", "few_defect_groups", "no_classes", "one_class",
    "no_normal", "no_defects", "imbalance", "upscaled", "reduced", "mixed_sizes", "cropped",
    "blank", "metadata_unused", "unmatched",
]  # fmt: skip
LeakReason = Literal["same pixels", "near-duplicate", "same group"]


@dataclass(frozen=True)
class Remark:
    """What is too little or odd, by its code, and the values that its sentence is filled with."""

    code: RemarkCode
    values: dict[str, int | float | str]


@dataclass(frozen=True)
class Leak:
    """A held-out photo that has its like in training; similarity of pixels, or the group."""

    val: str
    train: str
    why: LeakReason
    similarity: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two photos of one split that are nearly the same."""

    a: str
    b: str
    similarity: float


@dataclass(frozen=True)
class Skipped:
    """A file that is no photo, below the source, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Sizes:
    """[min, median, max] of the photo files' sides in pixels, and what fitting makes of them.

    reduced: [min, median, max] of photo pixels per study pixel.  upscaled: share of the photos with
    fewer pixels than the study's.  cropped: median share of a photo that is cut off.
    """

    width: list[int]
    height: list[int]
    reduced: list[float]
    upscaled: float
    cropped: float


@dataclass(frozen=True)
class SplitFacts:
    """Photos of a split, by class, and the groups that they are of."""

    photos: int
    classes: dict[str, int]
    groups: int
    defect_groups: int


@dataclass(frozen=True)
class Splits:
    train: SplitFacts
    val: SplitFacts


@dataclass(frozen=True)
class Facts:
    """What was found out about the photos; every leak that was found, ``dropped`` of them left out.

    metadata: the table's file name, or why it is not used.  unmatched: photos without a row.
    blank: photos of one colour.  near_duplicates: the most similar of near_duplicates_count.
    """

    splits: Splits
    sizes: Sizes
    normal: list[str]
    group: str | None = None
    metadata: str | None = None
    metadata_unused: str | None = None
    unmatched: int = 0
    grey: bool = False
    blank: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)
    near_duplicates: list[Pair] = field(default_factory=list)
    near_duplicates_count: int = 0
    leaks: list[Leak] = field(default_factory=list)
    dropped: int = 0
    remarks: list[Remark] = field(default_factory=list)


# ---- the files ----


@dataclass(frozen=True)
class Machine:
    system: str
    threads: int
    python: str
    torch: str


@dataclass(frozen=True)
class Results:
    """results.json. ``images``: photos that an arm saw in each rung.

    Everything is the same however often the study was interrupted, but for ``times`` (seconds of
    each stage), ``speeds`` (of the arms that were not stopped) and ``command``.
    """

    version: str
    command: str
    settings: Settings
    images: list[int]
    confidence: float
    criteria: list[Criterion]
    data: Facts
    originals: Originals
    arms: list[ArmResult | BaselineResult]
    recommendation: Recommendation
    times: dict[str, float]
    speeds: dict[str, Speed]
    machine: Machine

    @property
    def learned(self) -> list[ArmResult]:
        """The tokenizers, the cheapest first."""
        return [arm for arm in self.arms if isinstance(arm, ArmResult)]

    @property
    def baselines(self) -> list[BaselineResult]:
        return [arm for arm in self.arms if isinstance(arm, BaselineResult)]


@dataclass
class Rung:
    """Photos that each of the ``arms`` sees, and which were stopped; None before it has ended."""

    images: int
    arms: list[str]
    stopped: dict[str, Stop] | None = None


@dataclass
class Plan:
    """plan.json. ``speed``: photos per second of training, by arm; {} if it was not measured.

    Raises ValueError for a speed that is not above 0, and for a rung of nothing.
    """

    speed: dict[str, float]
    rungs: list[Rung] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not all(0 < speed < math.inf for speed in self.speed.values()):
            raise ValueError("a speed is not above 0")
        if any(rung.images < 1 or not rung.arms for rung in self.rungs):
            raise ValueError("a rung without images or arms")

    def of(self, arm: str) -> list[Rung]:
        """The rungs that an arm was trained in."""
        return [rung for rung in self.rungs if arm in rung.arms]


Record = TypeVar("Record")


def write(record: object, path: Path) -> None:
    """A record as JSON. ValueError for numbers that are not finite."""
    values = asdict(record)  # type: ignore[call-overload]
    content = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, content + "\n")


def read(kind: type[Record], path: Path, mend: str) -> Record:
    """A record from its file. Raises UserError, with the ``mend``, for one that is not."""
    from pydantic import TypeAdapter, ValidationError  # takes a moment

    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        fault = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{path}: damaged, or of another version ({fault}); {mend}") from None


def write_pictures(pictures: np.ndarray, path: Path) -> None:
    """uint8 [N, H, W, 3] as a .npy file, the whole of it or none."""
    with replacing(path, needed=pictures.nbytes) as partial, partial.open("wb") as file:
        np.save(file, pictures)


def read_pictures(path: Path) -> np.ndarray:
    """What ``write_pictures`` wrote, mapped into memory. Raises UserError for a damaged file."""
    mend = "run softvq study again, it goes on from here"
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; run softvq study again, it goes on from here"
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged ({error}); {mend}") from None
