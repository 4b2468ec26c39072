"""What results.json holds, and how a figure is said: what every part of the report asks for."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from softvq.errors import UserError
from softvq.study.texts import Words

Facts = dict[str, Any]

# What a metric's figures are in, and how many digits they are shown with. The user's own metrics
# are plain numbers.
UNITS = {
    "psnr": ("db", 1),
    "ssim": ("plain", 3),
    "accuracy": ("share", 1),
    "accuracy_drop": ("points", 1),
    "defect_recall": ("share", 1),
    "defect_kept": ("share", 1),
    "false_alarms": ("share", 1),
    "contrast_kept": ("share", 1),
    "regions_surviving": ("share", 1),
    "psnr_inside": ("db", 1),
    "smallest_surviving": ("px", 1),
}
SHARES = ("accuracy", "defect_recall", "defect_kept", "false_alarms", "regions_surviving")
LISTED = 5  # files or pairs named in the report; results.json has them all
MOST_GROUPS = 1_000_000  # that the report asks for: a value just at its limit is never proven


@dataclass
class Study:
    """The results, and what the sections ask of them again and again."""

    out: Path
    results: Facts
    names: list[str]
    words: Words

    @cached_property
    def confidence(self) -> str:
        return self.measured("accuracy", self.results["settings"]["confidence"])

    @cached_property
    def arms(self) -> list[Facts]:
        """All, the cheapest first; a file format, which has no tokens, by its bytes."""

        def price(arm: Facts) -> tuple[float, float, float]:
            tokens, floats = arm["tokens"], arm["floats"]
            return (
                math.inf if tokens is None else tokens,
                math.inf if floats is None else floats,
                arm["bytes"],
            )

        return sorted(self.results["arms"], key=price)

    @cached_property
    def learned(self) -> list[Facts]:
        return [arm for arm in self.arms if arm["learned"]]

    @cached_property
    def baselines(self) -> list[Facts]:
        return [arm for arm in self.arms if not arm["learned"]]

    @cached_property
    def final(self) -> list[Facts]:
        """The learned arms that were trained to the end."""
        return [arm for arm in self.learned if not arm["stopped"]]

    @cached_property
    def recommended(self) -> Facts | None:
        name = self.results["recommendation"]["arm"]
        return None if name is None else next(a for a in self.arms if a["name"] == name)

    @cached_property
    def shown(self) -> Facts:
        """The arm that figures are given of: the recommended, or what misses the least."""

        def merit(arm: Facts) -> tuple[int, int, float]:
            criteria = arm["verdict"]["criteria"]
            wrong, unproven = (sum(not how(c) for c in criteria) for how in (meets, holds))
            return -wrong, -unproven, value_of(arm, "psnr") or 0.0

        return self.recommended or max(self.final, key=merit)

    @cached_property
    def rival(self) -> Facts | None:
        """The best of the baselines that are held to the size of the shown arm."""
        floats = {arm["name"]: arm["floats"] for arm in self.learned}
        metric = self.quality or "psnr"
        rivals = [
            arm
            for arm in self.baselines
            if arm["fits"]
            and floats[arm["of"]] == self.shown["floats"]
            and value_of(arm, metric) is not None
        ]
        return max(rivals, key=lambda arm: value_of(arm, metric) or 0.0, default=None)

    @cached_property
    def metrics(self) -> list[str]:
        """What was measured on any arm, in the order of results.json."""
        order = dict.fromkeys(m for arm in self.arms for m in arm["metrics"])
        return [m for m in order if any(arm["metrics"].get(m) for arm in self.arms)]

    @cached_property
    def quality(self) -> str | None:
        """What the business looks at, of what there is."""
        first = ("defect_kept", "regions_surviving", "contrast_kept", "accuracy")
        return next((m for m in first if m in self.metrics), None)

    @cached_property
    def seen(self) -> Facts | None:
        """What the classifier makes of the originals, if there is a classifier."""
        before: Facts = self.results["originals"]
        return before if before["accuracy"] else None

    @cached_property
    def alarms(self) -> str | None:
        """The share of the defect-free originals that the classifier takes for defective."""
        if not self.seen or not self.seen["confusion"]:
            return None
        normal = [name in self.results["settings"]["normal"] for name in self.seen["classes"]]
        counts = np.array(self.seen["confusion"])[normal]
        if not counts.sum():
            return None
        share = counts[:, np.logical_not(normal)].sum() / counts.sum()
        return self.measured("accuracy", float(share))

    @cached_property
    def needed(self) -> list[tuple[Facts, Facts, int]]:
        """(criterion, figure, independent groups needed) where evidence alone is what lacks."""
        if self.results["recommendation"]["limit"] != "evidence":
            return []
        confidence = self.results["settings"]["confidence"]
        lacking = []
        for criterion in self.shown["verdict"]["criteria"]:
            figure = self.shown["metrics"].get(criterion["metric"])
            if figure and "groups" in figure and meets(criterion) and not holds(criterion):
                lacking.append((criterion, figure, groups_needed(criterion, figure, confidence)))
        return lacking

    @cached_property
    def originals(self) -> np.ndarray:
        return self.pictures(self.out / "originals.npy")

    def rebuilt(self, arm: Facts) -> np.ndarray:
        """uint8 [N, H, W, 3]"""
        return self.pictures(self.out / "arms" / arm["name"] / "rebuilt.npy")

    @staticmethod
    def pictures(path: Path) -> np.ndarray:
        if not path.is_file():
            raise UserError(f"{path}: no such file; run softvq study again, it goes on from here")
        return np.load(path, mmap_mode="r", allow_pickle=False)

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

    def span(self, name: str, figure: Facts) -> str:
        """The interval with its unit."""
        unit, digits = unit_of(name)
        if figure.get("low") is None or figure.get("high") is None:
            return self.words("nothing")
        low = digits_of(unit, digits, figure["low"])
        return self.words("range", low=low, high=self.measured(name, figure["high"]))

    def cell(self, name: str, figure: Facts | None) -> str:
        """Value and interval, without the unit, which the column's head has."""
        unit, digits = unit_of(name)
        value = main_value(figure)
        if figure is None or value is None:
            return self.words("nothing")
        if figure.get("low") is None or figure.get("high") is None:
            return digits_of(unit, digits, value)
        low, high = (digits_of(unit, digits, figure[end]) for end in ("low", "high"))
        return self.words("interval", value=digits_of(unit, digits, value), low=low, high=high)

    def limit(self, criterion: Facts) -> str:
        """What a criterion asks for, with all the digits that it was given with."""
        sense = "min" if "min" in criterion else "max"
        unit, _ = unit_of(criterion["metric"])
        hundred = 100 if unit in ("share", "points") else 1
        value = self.words(f"unit.{unit}", value=f"{hundred * criterion[sense]:.10g}")
        return self.words({"min": "at_least", "max": "at_most"}[sense], value=value)

    def number(self, value: float | None, digits: int = 0) -> str:
        return self.words("nothing") if value is None else f"{value:,.{digits}f}"

    def shape(self, arm: Facts) -> str:
        if arm["learned"]:
            return self.words("by", a=arm["tokens"], b=arm["channels"])
        return str(arm["setting"])

    def listed(self, items: list[str], count: int) -> Facts:
        """The first of ``items``, and how many of ``count`` are not shown."""
        shown = items[:LISTED]
        rest = count - len(shown)
        more = self.words("data.more", count=rest) if rest > 0 else ""
        return {"count": count, "shown": self.words.join(shown), "more": more}


def groups_needed(criterion: Facts, figure: Facts, confidence: float) -> int:
    """Independent groups from which a figure of the same value would meet its criterion.

    Wilson's interval of a share inverts the test of the limit p0, so its end reaches p0 at
    n = z^2 p0 (1 - p0) / (value - p0)^2. Other intervals shrink as the root of n.
    """
    limit = criterion["min"] if "min" in criterion else criterion["max"]
    slack = (figure["value"] - limit) ** 2
    if criterion["metric"] in SHARES:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        needed = z * z * limit * (1 - limit) / slack if slack else math.inf
    elif criterion["bound"] is None:
        needed = math.inf
    else:
        reach = (criterion["bound"] - figure["value"]) ** 2
        needed = figure["groups"] * reach / slack if slack else math.inf
    # A share's interval counts each group once, its value each photo: the two may differ a little.
    return max(figure["groups"] + 1, math.ceil(min(needed, MOST_GROUPS)))


def holds(criterion: Facts) -> bool:
    return bool(criterion["holds"])


def meets(criterion: Facts) -> bool:
    """Whether the value itself is on the right side, proven or not."""
    value = criterion["value"]
    if value is None:
        return False
    return bool(value >= criterion["min"] if "min" in criterion else value <= criterion["max"])


def unit_of(metric: str) -> tuple[str, int]:
    return UNITS.get(metric, ("plain", 4))


def digits_of(unit: str, digits: int, value: float) -> str:
    """At most so many digits after the point; shares and points in hundredths."""
    if unit in ("share", "points"):
        value *= 100
    if unit == "plain" and digits > 3:
        return f"{value:,.4g}"
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def main_value(figure: Facts | None) -> float | None:
    """The number that a figure is about; of the smallest surviving defect its study pixels."""
    if figure is None:
        return None
    return figure["value"] if "value" in figure else figure.get("study_px")


def value_of(arm: Facts, metric: str) -> float | None:
    return main_value(arm["metrics"].get(metric))
