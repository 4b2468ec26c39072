"""What the report asks of the results again and again, and how a figure is said."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from softvq.evaluate.intervals import Figure
from softvq.study.criteria import METRICS
from softvq.study.records import Candidate, Criterion, Results, read_pictures
from softvq.study.telling.pictures import pictures_of, shown_in
from softvq.study.telling.words import Words

LISTED = 5  # files or pairs named in the report; results.json has them all


@dataclass
class View:
    """The results of the study in ``out``, as ``words`` say them."""

    out: Path
    results: Results
    words: Words

    @cached_property
    def confidence(self) -> str:
        return self.measured("accuracy", self.results.confidence)

    @cached_property
    def tried(self) -> list[Candidate]:
        """What can be recommended, the cheapest first."""
        return [each for each in self.results.candidates if each.role == "candidate"]

    @cached_property
    def references(self) -> list[Candidate]:
        return [each for each in self.results.candidates if each.role == "reference"]

    @cached_property
    def recommended(self) -> Candidate | None:
        name = self.results.recommendation.name
        return None if name is None else self.results.named(name)

    @cached_property
    def shown(self) -> Candidate:
        """The candidate that figures are given of: the recommended, or what misses the least."""
        return self.results.named(self.results.recommendation.leading)

    @cached_property
    def pictured(self) -> list[Candidate]:
        return shown_in(self.results)

    @cached_property
    def today(self) -> Candidate | None:
        """What photos are kept as where nobody thinks of tokens."""
        return next((each for each in self.references if each.name == "jpeg-q90"), None)

    @cached_property
    def metrics(self) -> list[str]:
        """What was measured on any candidate, in the order of results.json."""
        everything = self.results.candidates
        order = dict.fromkeys(metric for each in everything for metric in each.metrics)
        return [m for m in order if any(each.metrics.get(m) for each in everything)]

    @cached_property
    def quality(self) -> str | None:
        """What the business looks at, of what there is."""
        first = ("defect_recall", "accuracy", "regions_surviving")
        return next((m for m in first if m in self.metrics), None)

    @cached_property
    def originals(self) -> np.ndarray:
        return read_pictures(pictures_of("originals", self.out))

    def rebuilt(self, candidate: Candidate) -> np.ndarray:
        """The shown pieces, uint8 [n, H, W, 3]."""
        return read_pictures(pictures_of(candidate.name, self.out))

    def place(self, piece: int) -> int:
        """Where a piece is among the shown ones."""
        return self.results.shown.pieces.index(piece)

    def piece_of(self, photo: int) -> int:
        """The first piece of a photo."""
        return sum(self.results.evidence.tile.pieces[:photo])

    # How things are said

    def metric(self, name: str) -> str:
        return self.words.name("metric", name)

    def header(self, name: str) -> str:
        """The metric with its unit, for the head of a column."""
        return self.words(f"header.{unit_of(name)[0]}", name=self.metric(name))

    def measured(self, name: str, value: float | None) -> str:
        """A value with its unit."""
        unit, digits = unit_of(name)
        if value is None:
            return self.words("nothing")
        number = digits_of(unit, digits, value)
        if unit in ("share", "points", "px"):
            number = number.removesuffix(".0")
        return self.words(f"unit.{unit}", value=number)

    def span(self, name: str, figure: Figure) -> str:
        """The interval with its unit."""
        if figure.low is None or figure.high is None:
            return self.words("nothing")
        low = digits_of(*unit_of(name), figure.low)
        return self.words("range", low=low, high=self.measured(name, figure.high))

    def cell(self, name: str, figure: Figure | float | None) -> str:
        """Value and interval, without the unit, which the column's head has."""
        if figure is None:
            return self.words("nothing")
        if not isinstance(figure, Figure):
            figure = Figure(figure)
        value, low, high = (
            None if number is None else digits_of(*unit_of(name), number)
            for number in (figure.value, figure.low, figure.high)
        )
        if low is None or high is None:
            return str(value)
        return self.words("interval", value=value, low=low, high=high)

    def limit(self, criterion: Criterion) -> str:
        """What a criterion asks for, with all the digits that it was given with."""
        unit, _ = unit_of(criterion.metric)
        hundred = 100 if unit in ("share", "points") else 1
        value = self.words(f"unit.{unit}", value=f"{hundred * criterion.limit:.10g}")
        return self.words({"min": "at_least", "max": "at_most"}[criterion.sense], value=value)

    def number(self, value: float | None, digits: int = 0) -> str:
        return self.words("nothing") if value is None else f"{value:,.{digits}f}"

    def money(self, value: float | None) -> str:
        """An amount, with three digits at least."""
        if value is None:
            return self.words("nothing")
        prices = self.results.prices
        amount = f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
        return self.words("money", value=amount, currency=prices.currency if prices else "").strip()

    def size(self, candidate: Candidate) -> str:
        """Its tokens, or the setting of a file."""
        if candidate.tokens is None:
            return candidate.setting
        return self.number(candidate.tokens, 0 if candidate.tokens.is_integer() else 1)

    def listed(self, key: str, items: list[str], count: int) -> str:
        """A sentence with the first of ``items``, and how many of ``count`` are not shown."""
        shown = items[:LISTED]
        rest = count - len(shown)
        more = self.words("data.more", count=rest) if rest > 0 else ""
        return self.words(key, count=count, shown=self.words.join(shown), more=more)


def unit_of(metric: str) -> tuple[str, int]:
    return METRICS.get(metric, ("plain", 4))


def digits_of(unit: str, digits: int, value: float) -> str:
    """At most so many digits after the point; shares and points in hundredths."""
    if unit in ("share", "points"):
        value *= 100
    if unit == "plain" and digits > 3:
        return f"{value:,.4g}"
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def value_of(candidate: Candidate, metric: str) -> float | None:
    figure = candidate.metrics.get(metric)
    return None if figure is None else figure.value
