"""What must hold for a configuration to be recommended, and which is the cheapest that it holds of.

A criterion reads one metric and a limit. It holds if the end of the metric's interval that counts,
the low one for ``min`` and the high one for ``max``, is on the right side: luck is not evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from softvq.errors import UserError, unknown_key
from softvq.evaluate.intervals import CONFIDENCE, Figure
from softvq.study.judging.custom import Metric, open_metric
from softvq.study.records import (
    ArmResult,
    Criterion,
    Figures,
    Outcome,
    Recommendation,
    Verdict,
)

# What a metric's figures are in, and how many digits they are shown with. Criteria may ask for
# these, and for the user's own, which are plain numbers.
METRICS = {
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
KEYS = ("confidence", "criteria", "metrics")


@dataclass(frozen=True)
class Criteria:
    """``confidence`` of every two-sided interval; the user's own ``metrics`` by their names."""

    confidence: float = CONFIDENCE
    criteria: tuple[Criterion, ...] = ()
    metrics: dict[str, Metric] = field(default_factory=dict)


def default_criteria(measured: Figures) -> tuple[Criterion, ...]:
    """What is asked where nobody says: of what is measured, what matters most.

    Nine tenths confidence on both sides is 95% on the one that counts.
    """
    defects = [
        Criterion("defect_kept", "min", 0.8),
        Criterion("false_alarms", "max", 0.2),
        Criterion("regions_surviving", "min", 0.8),
    ]
    for wanted in (defects, [Criterion("accuracy_drop", "max", 0.1)]):
        if some := [c for c in wanted if measured.get(c.metric) is not None]:
            return tuple(some)
    return (Criterion("ssim", "min", 0.8),)


# ---- from a file ----


def load_criteria(path: str | Path | None) -> Criteria:
    """Criteria from a YAML file; without one, none yet, at a confidence of 0.9.

        confidence: 0.9
        criteria:
          defect_kept: {min: 0.8}
          psnr: {min: 28}
          scratches: {max: 2}
        metrics:
          scratches: "command: count-scratches {originals} {rebuilt}"

    Raises UserError for a missing or malformed file, an unknown key or metric, and for a number
    that is none.
    """
    if path is None:
        return Criteria()
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; --criteria takes a YAML file")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path}: not valid YAML (nested too deeply)") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: no criteria; it has {', '.join(KEYS)}")
    for key in said:
        if key not in KEYS:
            raise unknown_key(str(key), list(KEYS), str(path))
    confidence = _number(said.get("confidence", CONFIDENCE))
    if confidence is None or not 0 < confidence < 1:
        raise UserError(f"{path}: confidence {said['confidence']} is not a number between 0 and 1")
    metrics = _section(said, "metrics", "NAME: file.py:function", path)
    for name in metrics:
        if name in METRICS:
            raise UserError(f"{path}: the metric {name} is measured already; call yours otherwise")
    own = {name: open_metric(str(text)) for name, text in metrics.items()}
    criteria = []
    for metric, bounds in _section(said, "criteria", "METRIC: {min: NUMBER}", path).items():
        if metric not in METRICS and metric not in own:
            raise unknown_key(metric, [*METRICS, *own], str(path))
        if not isinstance(bounds, dict) or not bounds or set(bounds) - {"min", "max"}:
            raise UserError(f"{path}: {metric}: give it {{min: NUMBER}} or {{max: NUMBER}}")
        for sense, bound in bounds.items():
            limit = _number(bound)
            if limit is None:
                raise UserError(f"{path}: {metric}: {sense} {bound!r} is not a number")
            criteria.append(Criterion(metric, sense, limit))
    return Criteria(confidence, tuple(criteria), own)


def _section(said: dict[Any, Any], key: str, form: str, path: Path) -> dict[str, Any]:
    section = said.get(key)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: {key}: has no names; below it, write lines such as '{form}'")
    return {str(name): content for name, content in section.items()}


def _number(given: object) -> float | None:
    """A finite number, or None. YAML 1.1 reads 1e-3 and 1e9, which have no dot, as text."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        number = float(given)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# ---- the verdict ----


def outcome(criterion: Criterion, figure: Figure | None) -> Outcome:
    """Whether a figure meets a criterion, and why not."""
    asked = criterion.metric, criterion.sense, criterion.limit
    if figure is None:
        return Outcome(*asked, why="not measured")
    bound = figure.low if criterion.sense == "min" else figure.high
    if figure.groups is None:  # a bare number
        bound = figure.value
    if bound is None:
        return Outcome(*asked, value=figure.value, why="one group")
    return Outcome(*asked, value=figure.value, bound=bound, holds=criterion.holds_of(bound))


def verdict(metrics: Figures, criteria: Sequence[Criterion]) -> Verdict:
    outcomes = [outcome(criterion, metrics.get(criterion.metric)) for criterion in criteria]
    return Verdict(all(one.holds for one in outcomes), outcomes)


def recommend(arms: Sequence[ArmResult]) -> Recommendation:
    """The first arm that was not stopped and whose verdict holds; ``arms`` are in price's order."""
    finished = [arm for arm in arms if arm.stopped is None]
    chosen = next((arm for arm in finished if arm.verdict.holds), None)
    failed = {
        arm.name: [one.metric for one in arm.verdict.criteria if not one.holds] for arm in arms
    }
    asked = dict.fromkeys(one.metric for arm in arms for one in arm.verdict.criteria)
    failing = {metric: sum(metric in some for some in failed.values()) for metric in asked}
    cheaper = arms if chosen is None else arms[: arms.index(chosen)]
    only_wide = any(all(one.met for one in arm.verdict.criteria) for arm in finished)
    return Recommendation(
        arm=chosen.name if chosen else None,
        failing={metric: count for metric, count in failing.items() if count},
        cheaper_failed={arm.name: failed[arm.name] for arm in cheaper if failed[arm.name]},
        limit="evidence" if chosen is None and only_wide else None,
    )
