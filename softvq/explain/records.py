"""What was found out about a tokenizer's tokens, as one record: explanation.json.

Tokens count from 0 here, from 1 in sentences and on the page. What could not be measured is None.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from softvq.explain.contributions import Prefix
from softvq.explain.decision import Decision
from softvq.explain.edits import Edit
from softvq.explain.faithful import Checks
from softvq.explain.maps import Look, Place
from softvq.explain.marked import Mark
from softvq.explain.mixtures import Mixture
from softvq.io import write_atomically


@dataclass(frozen=True)
class TokenizerFacts:
    """What was explained."""

    network: str
    bottleneck: str
    nested: bool
    tokens: int
    channels: int
    height: int
    width: int
    fingerprint: str


@dataclass(frozen=True)
class PhotoFacts:
    """fitted: photos that means, variation and directions are of.  held_out: photos that directions
    are tested on.  measured: names of those that tokens were removed from, each token from
    ``each`` of them or more.  mapped: rows of ``measured`` that have maps; the first is the one in
    focus.
    """

    fitted: int
    held_out: int
    measured: list[str]
    each: int
    mapped: list[int]
    classes: list[str]


@dataclass(frozen=True)
class Token:
    """act: where it changes the picture.  read: where it is read from.  look: what it changes.

    lost_db: PSNR lost without it, mean over the measured photos; lost_db_margin: half of the mean's
    95% interval, None if it was taken from one photo alone; lost_db_most: over the tenth of them
    that lose most.  lost_eye: how much further the eye finds the picture.  lost_inside_db: the
    PSNR lost inside of what is marked.
    """

    act: Place
    read: Place
    look: Look
    lost_db: float
    lost_db_margin: float | None
    lost_db_most: float
    lost_eye: float
    lost_inside_db: float | None = None


@dataclass(frozen=True)
class ClassLoss:
    """PSNR lost without each token by the ``photos`` measured ones of a class."""

    name: str
    photos: int
    lost_db: list[float]


@dataclass(frozen=True)
class DirectionFacts:
    """See :class:`softvq.explain.directions.Direction`. most, least: held-out photos by score."""

    name: str
    kind: str
    fitted: int
    held_out: int
    measure: str
    score: float
    control: float
    control_largest: float
    real: bool
    shares: list[float]
    carriers: list[int]
    most: list[str]
    least: list[str]


@dataclass(frozen=True)
class Explanation:
    """explanation.json. order: tokens by what is lost without them, the most important first."""

    version: str
    tokenizer: TokenizerFacts
    photos: PhotoFacts
    psnr: float
    tokens: list[Token]
    order: list[int]
    prefixes: list[Prefix]
    directions: list[DirectionFacts]
    too_few: list[str]
    mixture: Mixture
    edit_photos: list[str]
    edits: list[Edit]
    checks: Checks
    by_class: list[ClassLoss] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    decision: Decision | None = None

    def of_kind(self, kind: str) -> list[int]:
        """The tokens that act as a place, globally, or wander."""
        return [i for i, token in enumerate(self.tokens) if token.act.kind == kind]


def write_explanation(explanation: Explanation, path: Path) -> None:
    """As JSON. ValueError for numbers that are not finite."""
    content = json.dumps(asdict(explanation), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, content + "\n")
