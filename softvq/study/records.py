"""What a study finds out, as records, and the one place where they become files and back.

Evidence (evidence.json) says what the photos are that everything is judged on, Measured
(measures/NAME.json) what was measured on them of one candidate, photo by photo. From these and the
criteria follows Results (results.json), which holds everything that the report says. Plan
(plan.json) is what was decided while training. What could not be measured is None. A file that is
damaged, or that another version wrote, is refused.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from softvq.errors import UserError
from softvq.evaluate.intervals import Figure
from softvq.evaluate.judges import Judged, JudgeKind
from softvq.io import replacing, write_atomically
from softvq.study.settings import Settings

Sense = Literal["min", "max"]
Role = Literal["candidate", "reference"]
TileReason = Literal["asked", "unmarked", "small", "large", "one"]

ORIGINALS = "originals"  # names the photos as they are, among what is measured
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


# ---- what was measured, photo by photo ----


@dataclass(frozen=True)
class Speed:
    """Photos per second on this machine, measured while working; None if it was not."""

    encode: float | None = None
    decode: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way of keeping photos, and what is left of N of them and of R marked regions.

    kind: of ``trying.models.KINDS``, ``target``, or a reference's.  setting: what it is told to do.
    tokens: of each of the N photos, [] for a file.  bytes: of each.  floats: mean per photo.
    psnr: of each photo; ssim: of some pieces.  dropin: by the judge that learned from originals.
    information: by one that learned from photos rebuilt alike.  contrast: kept of each region, None
    where the original has none.  inside: PSNR in each region.  own: of the user's metrics, a number
    or N.
    """

    name: str
    kind: str
    role: Role
    setting: str
    bytes: list[float]
    psnr: list[float]
    ssim: list[float]
    tokens: list[int] = field(default_factory=list)
    floats: float | None = None
    dropin: Judged | None = None
    information: Judged | None = None
    contrast: list[float | None] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    own: dict[str, float | list[float | None] | None] = field(default_factory=dict)
    speed: Speed = Speed()


@dataclass(frozen=True)
class MarkedRegion:
    """A marked place of photo number ``photo``, in its piece number ``piece``.

    box: left, top, right, bottom in the piece, the last two outside; diameter in its pixels;
    original: the diameter in the photo file's.
    """

    photo: int
    piece: int
    box: tuple[int, int, int, int]
    diameter: float
    original: float


@dataclass(frozen=True)
class TileChoice:
    """Whether photos were cut at native scale, and why: a code, and what its sentence is filled
    with.  pieces: of each of the N photos."""

    native: bool
    why: TileReason
    values: dict[str, float]
    pieces: list[int]


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


@dataclass(frozen=True)
class Evidence:
    """N photos that no tokenizer of the study learned from, by ``names``; photos of one of
    ``groups`` are one piece of evidence.

    held_out: whether each is of the held-out part; the others were set aside from training photos.
    learning: how many photos tokenizers learned from.  judge: what there is to be judged, None for
    nothing.  originals: what the judge makes of the photos as they are.  size: (H, W) of a piece.
    unmarked: defect photos without a region, None where there is no region at all.
    """

    names: list[str]
    classes: list[str]
    labels: list[int]
    groups: list[str]
    held_out: list[bool]
    subgroups: dict[str, list[str]]
    regions: list[MarkedRegion]
    unmarked: int | None
    learning: int
    size: tuple[int, int]
    tile: TileChoice
    facts: Facts
    judge: JudgeKind | None
    originals: Judged | None


# ---- what follows ----


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
class Subgroup:
    """Of the ``n`` held-out photos with one value in a column of the metadata."""

    n: int
    metrics: Figures


@dataclass(frozen=True)
class Prices:
    """What things cost, in the user's ``currency``.

    defect_rate: share of the parts that have a defect.  missed_defect, false_alarm: of each.
    photos_per_part, parts_per_month.  storage: of a GB (10^9 bytes) for a month, ``months`` of
    them.  compute: of an hour of this machine.  integration: paid once.
    """

    currency: str = ""
    defect_rate: float = 0.01
    missed_defect: float = 0.0
    false_alarm: float = 0.0
    photos_per_part: float = 1.0
    parts_per_month: float = 10_000.0
    storage: float = 0.0
    months: float = 12.0
    compute: float = 0.0
    integration: float = 0.0


@dataclass(frozen=True)
class Cost:
    """Expected, per 10,000 parts: all of it, and its parts. None where nothing judges defects."""

    total: Figure
    missed: float | None
    alarms: float | None
    storage: float
    compute: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way of keeping photos, with its figures. ``role``: references cannot be recommended.

    tokens, bytes, floats: means per photo; tokens None for a file.  by_class: mean tokens of each
    class.  worst: numbers of the photos with the lowest PSNR.  smallest_in_file: the metric
    smallest_surviving in the photo files' own pixels.  payback: months until its integration is
    earned against keeping files, None for never or unknown.
    """

    name: str
    kind: str
    role: Role
    setting: str
    tokens: float | None
    floats: float | None
    bytes: float
    metrics: Figures
    verdict: Verdict
    warnings: list[Outcome] = field(default_factory=list)
    cost: Cost | None = None
    payback: float | None = None
    per_class: dict[str, ClassFigures] = field(default_factory=dict)
    by_class: dict[str, float] = field(default_factory=dict)
    by_size: list[SizeBin] = field(default_factory=list)
    subgroups: dict[str, dict[str, Subgroup]] = field(default_factory=dict)
    most_tokens: list[int] = field(default_factory=list)
    worst: list[int] = field(default_factory=list)
    contrast: list[float | None] = field(default_factory=list)
    smallest_in_file: float | None = None
    confusion: list[list[int]] | None = None
    speed: Speed = Speed()

    @property
    def price(self) -> tuple[float, float, float]:
        """What decides without prices of money: tokens, then bytes, then the better picture."""
        psnr = self.metrics.get("psnr")
        tokens = math.inf if self.tokens is None else self.tokens
        return tokens, self.bytes, -(psnr.value if psnr else 0.0)


@dataclass(frozen=True)
class Needed:
    """A criterion that the evidence cannot decide: groups there are, and would be needed."""

    outcome: Outcome
    figure: Figure
    groups: int


@dataclass(frozen=True)
class Move:
    """What is recommended where one price or limit is ``factor`` times as large."""

    what: str
    factor: float
    name: str | None


@dataclass(frozen=True)
class Recommendation:
    """The name of the recommended candidate, or None.

    leading: the recommended, or else what misses the least.  failing: how many candidates fail
    each metric.  cheaper_failed: the metrics that each cheaper candidate fails.
    limit: "evidence" if nothing holds, but of the leading one every value is on the right side;
    "seeds" if another seed decides otherwise.  needed: where evidence alone is what lacks.
    moves: what would be recommended at other prices and limits.
    """

    name: str | None
    leading: str
    failing: dict[str, int]
    cheaper_failed: dict[str, list[str]]
    limit: Literal["evidence", "seeds"] | None
    needed: list[Needed] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class Shown:
    """Pieces of the evidence that the report shows: of photos, and which regions are in them."""

    photos: list[int]
    pieces: list[int]
    regions: list[int]


@dataclass(frozen=True)
class Machine:
    system: str
    threads: int
    python: str
    torch: str


@dataclass(frozen=True)
class Results:
    """results.json. ``images``: photos that each model saw in training. ``left_out``: token counts
    for which there was no time.

    Everything is the same however often the study was interrupted, but for ``times`` (seconds of
    each stage), the candidates' speeds and what of costs follows from them, and ``command``.
    """

    version: str
    command: str
    settings: Settings
    images: dict[str, int]
    left_out: list[int]
    confidence: float
    criteria: list[Criterion]
    prices: Prices | None
    evidence: Evidence
    originals: Candidate
    candidates: list[Candidate]
    recommendation: Recommendation
    shown: Shown
    times: dict[str, float]
    machine: Machine

    def named(self, name: str) -> Candidate:
        return next(each for each in self.candidates if each.name == name)


@dataclass
class Plan:
    """plan.json, what was decided by the time that is left: the token ``counts`` that are measured,
    those ``left_out``, and photos that each model sees in training, when its turn came."""

    counts: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.images.values()):
            raise ValueError("a model that sees no image")


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
