"""What the report asks of the results again and again, and how a figure is said."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist

import numpy as np

from softvq.evaluate.intervals import Figure
from softvq.study.judging.criteria import METRICS
from softvq.study.records import (
    ORIGINALS,
    ArmResult,
    BaselineResult,
    Criterion,
    Originals,
    Outcome,
    Result,
    Results,
    read_pictures,
)
from softvq.study.telling.words import Words

SHARES = ("accuracy", "defect_recall", "defect_kept", "false_alarms", "regions_surviving")
LISTED = 5  # files or pairs named in the report; results.json has them all
MOST_GROUPS = 1_000_000  # that the report asks for: a value just at its limit is never proven


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
    def arms(self) -> list[Result]:
        """All, the cheapest first; a file format, which has no tokens, by its bytes."""
        return sorted(self.results.arms, key=lambda arm: arm.price)

    @cached_property
    def learned(self) -> list[ArmResult]:
        return sorted(self.results.learned, key=lambda arm: arm.price)

    @cached_property
    def final(self) -> list[ArmResult]:
        """The learned arms that were trained to the end."""
        return [arm for arm in self.learned if not arm.stopped]

    @cached_property
    def recommended(self) -> ArmResult | None:
        name = self.results.recommendation.arm
        return next((arm for arm in self.learned if arm.name == name), None)

    @cached_property
    def shown(self) -> ArmResult:
        """The arm that figures are given of: the recommended, or what misses the least."""

        def merit(arm: ArmResult) -> tuple[int, int, float]:
            outcomes = arm.verdict.criteria
            wrong = sum(not one.met for one in outcomes)
            unproven = sum(not one.holds for one in outcomes)
            return -wrong, -unproven, value_of(arm, "psnr") or 0.0

        return self.recommended or max(self.final, key=merit)

    @cached_property
    def rival(self) -> BaselineResult | None:
        """The best of the baselines that are held to the size of the shown arm."""
        floats = {arm.name: arm.floats for arm in self.learned}
        metric = self.quality or "psnr"
        rivals = [
            arm
            for arm in self.results.baselines
            if arm.fits
            and floats[arm.of] == self.shown.floats
            and value_of(arm, metric) is not None
        ]
        return max(rivals, key=lambda arm: value_of(arm, metric) or 0.0, default=None)

    @cached_property
    def metrics(self) -> list[str]:
        """What was measured on any arm, in the order of results.json."""
        order = dict.fromkeys(metric for arm in self.arms for metric in arm.metrics)
        return [m for m in order if any(arm.metrics.get(m) for arm in self.arms)]

    @cached_property
    def quality(self) -> str | None:
        """What the business looks at, of what there is."""
        first = ("defect_kept", "regions_surviving", "contrast_kept", "accuracy")
        return next((m for m in first if m in self.metrics), None)

    @cached_property
    def detected(self) -> Originals | None:
        """What the detector makes of the originals, if there is a detector."""
        return self.results.originals if self.results.originals.accuracy else None

    @cached_property
    def alarms(self) -> str | None:
        """The share of the defect-free originals that the detector takes for defective."""
        if not self.detected or not self.detected.confusion:
            return None
        normal = [name in self.results.data.normal for name in self.detected.classes]
        counts = np.array(self.detected.confusion)[normal]
        if not counts.sum():
            return None
        share = counts[:, np.logical_not(normal)].sum() / counts.sum()
        return self.measured("accuracy", float(share))

    @cached_property
    def needed(self) -> list[tuple[Outcome, Figure, int]]:
        """(criterion, figure, independent groups needed) where evidence alone is what lacks."""
        if self.results.recommendation.limit != "evidence":
            return []
        lacking = []
        for one in self.shown.verdict.criteria:
            figure = self.shown.metrics.get(one.metric)
            if figure and figure.groups is not None and one.met and not one.holds:
                lacking.append((one, figure, groups_needed(one, figure, self.results.confidence)))
        return lacking

    @cached_property
    def originals(self) -> np.ndarray:
        return read_pictures(self.out / ORIGINALS)

    def rebuilt(self, arm: Result) -> np.ndarray:
        """uint8 [N, H, W, 3]"""
        return read_pictures(self.out / arm.pictures)

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

    def shape(self, arm: Result) -> str:
        if isinstance(arm, ArmResult):
            return self.words("by", a=arm.tokens, b=arm.channels)
        return arm.setting

    def listed(self, key: str, items: list[str], count: int) -> str:
        """A sentence with the first of ``items``, and how many of ``count`` are not shown."""
        shown = items[:LISTED]
        rest = count - len(shown)
        more = self.words("data.more", count=rest) if rest > 0 else ""
        return self.words(key, count=count, shown=self.words.join(shown), more=more)


def groups_needed(outcome: Outcome, figure: Figure, confidence: float) -> int:
    """Independent groups from which a figure of the same value would meet its criterion.

    Wilson's interval of a share inverts the test of the limit p0, so its end reaches p0 at
    n = z^2 p0 (1 - p0) / (value - p0)^2. Other intervals shrink as the root of n.
    """
    groups, limit = figure.groups or 0, outcome.limit
    slack = (figure.value - limit) ** 2
    if outcome.metric in SHARES:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        needed = z * z * limit * (1 - limit) / slack if slack else math.inf
    elif outcome.bound is None:
        needed = math.inf
    else:
        reach = (outcome.bound - figure.value) ** 2
        needed = groups * reach / slack if slack else math.inf
    # A share's interval counts each group once, its value each photo: the two may differ a little.
    return max(groups + 1, math.ceil(min(needed, MOST_GROUPS)))


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


def value_of(arm: Result, metric: str) -> float | None:
    figure = arm.metrics.get(metric)
    return None if figure is None else figure.value
