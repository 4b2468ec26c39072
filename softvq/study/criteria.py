"""What must hold for a candidate to be recommended, and what things cost: criteria and prices.

A criterion reads one metric and a limit. It holds if the end of the metric's interval that counts,
the low one for ``min`` and the high one for ``max``, is on the right side: luck is not evidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from softvq.errors import UserError, unknown_key
from softvq.evaluate.custom import Metric, open_metric
from softvq.evaluate.intervals import CONFIDENCE, Figure
from softvq.study.records import Criterion, Figures, Outcome, Prices, Verdict

# What a metric's figures are in, and how many digits they are shown with. Criteria may ask for
# these, and for the user's own, which are plain numbers. Of what judges tell, a plain name is by
# the information judge, and ``dropin_`` by the one that knows originals alone.
TOLD = {
    "defect_recall": ("share", 1),
    "false_alarms": ("share", 1),
    "recall_lost": ("points", 1),
    "alarms_added": ("points", 1),
    "accuracy": ("share", 1),
    "accuracy_lost": ("points", 1),
}
METRICS = {
    "psnr": ("db", 1),
    "ssim": ("plain", 3),
    **TOLD,
    **{f"dropin_{name}": unit for name, unit in TOLD.items()},
    "contrast_kept": ("share", 1),
    "regions_surviving": ("share", 1),
    "psnr_inside": ("db", 1),
    "smallest_surviving": ("px", 1),
}
KEYS = ("confidence", "criteria", "metrics", "prices")
# What is asked where nobody says: the first line of which something is measured. Then what is no
# criterion, but is warned of: an inspection in use would have to learn anew.
DEFAULTS = (
    (Criterion("recall_lost", "max", 0.1), Criterion("alarms_added", "max", 0.1)),
    (Criterion("accuracy_lost", "max", 0.1),),
    (Criterion("ssim", "min", 0.8),),
)
WARNINGS = (
    Criterion("dropin_recall_lost", "max", 0.1),
    Criterion("dropin_alarms_added", "max", 0.1),
    Criterion("dropin_accuracy_lost", "max", 0.1),
    Criterion("regions_surviving", "min", 0.8),
)


@dataclass(frozen=True)
class Criteria:
    """``confidence`` of every two-sided interval; the user's own ``metrics`` by their names, None
    for those that are not opened; ``prices`` where the user gives any."""

    confidence: float = CONFIDENCE
    criteria: tuple[Criterion, ...] = ()
    metrics: dict[str, Metric] = field(default_factory=dict)
    prices: Prices | None = None


def default_criteria(measured: Figures) -> tuple[Criterion, ...]:
    """What is asked where nobody says: of what is measured, what matters most.

    Nine tenths confidence on both sides is 95% on the one that counts.
    """
    for wanted in DEFAULTS:
        if some := tuple(c for c in wanted if measured.get(c.metric) is not None):
            return some
    return DEFAULTS[-1]


# ---- from a file ----


def load_criteria(path: str | Path | None) -> Criteria:
    """Criteria from a YAML file; without one, none yet, at a confidence of 0.9.

        confidence: 0.9
        criteria:
          recall_lost: {max: 0.05}
          scratches: {max: 2}
        metrics:
          scratches: "command: count-scratches {originals} {rebuilt}"
        prices:
          currency: EUR
          missed_defect: 400
          false_alarm: 3

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
    prices = _prices(_section(said, "prices", "missed_defect: NUMBER", path), path)
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
    return Criteria(confidence, tuple(criteria), own, prices)


def _prices(said: dict[str, Any], path: Path) -> Prices | None:
    """Prices from their section, None for none. Raises UserError for what is no price."""
    known = {f.name: f for f in fields(Prices)}
    values: dict[str, Any] = {}
    for name, value in said.items():
        if name not in known:
            raise unknown_key(name, list(known), f"{path}: prices")
        number = _number(value)
        if name == "currency":
            values[name] = str(value)
        elif number is None or number < 0:
            raise UserError(f"{path}: prices: {name} {value!r} is not a number of 0 or more")
        elif name == "defect_rate" and number > 1:
            raise UserError(f"{path}: prices: defect_rate is a share from 0 to 1, not {value!r}")
        else:
            values[name] = number
    return Prices(**values) if values else None


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
