"""What must hold for a configuration to be recommended, and which is the cheapest that it holds of.

A criterion reads one metric and a bound. It holds if the end of the metric's interval that counts,
the low one for ``min`` and the high one for ``max``, is on the right side: luck is not evidence.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from softvq.errors import UserError
from softvq.io import unknown_key
from softvq.study.custom import Metric, open_metric
from softvq.study.intervals import CONFIDENCE

METRICS = (
    "psnr",
    "ssim",
    "accuracy",
    "accuracy_drop",
    "defect_recall",
    "defect_kept",
    "false_alarms",
    "contrast_kept",
    "regions_surviving",
    "psnr_inside",
)
KEYS = ("confidence", "criteria", "metrics")


@dataclass(frozen=True)
class Criterion:
    """``metric`` must be at least ``bound`` (``sense`` min) or at most (max)."""

    metric: str
    sense: str
    bound: float

    def as_dict(self) -> dict[str, Any]:
        return {"metric": self.metric, self.sense: self.bound}

    def verdict(self, figure: dict[str, Any] | None) -> dict[str, Any]:
        """Whether a figure, {"value", "low", "high"} or {"value"} alone, meets it, and why not."""
        verdict = self.as_dict() | {"value": None, "bound": None, "holds": False, "why": None}
        if figure is None:
            return verdict | {"why": "not measured"}
        end = figure.get("low" if self.sense == "min" else "high", figure["value"])
        if end is None:  # all of the evidence is one group
            return verdict | {"value": figure["value"], "why": "one group"}
        holds = end >= self.bound if self.sense == "min" else end <= self.bound
        return verdict | {"value": figure["value"], "bound": end, "holds": bool(holds)}


@dataclass(frozen=True)
class Criteria:
    """``confidence`` of every two-sided interval; the user's own ``metrics`` by their names."""

    confidence: float
    criteria: tuple[Criterion, ...]
    metrics: dict[str, Metric]


def default_criteria(measured: dict[str, Any]) -> tuple[Criterion, ...]:
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


def load_criteria(path: str | Path | None) -> Criteria:
    """Criteria from a YAML file; without one, none yet, at a confidence of 0.9.

        confidence: 0.9
        criteria:
          defect_kept: {min: 0.8}
          psnr: {min: 28}
          scratches: {max: 2}
        metrics:
          scratches: "command: count-scratches {originals} {rebuilt}"

    Raises UserError for a missing or malformed file, an unknown key or metric.
    """
    if path is None:
        return Criteria(CONFIDENCE, (), {})
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; --criteria takes a YAML file")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: no criteria; it has {', '.join(KEYS)}")
    for key in said:
        if key not in KEYS:
            raise unknown_key(str(key), list(KEYS), str(path))
    confidence = said.get("confidence", CONFIDENCE)
    if not isinstance(confidence, float) or not 0 < confidence < 1:
        raise UserError(f"{path}: confidence {confidence} is not a number between 0 and 1")
    for name in said.get("metrics") or {}:
        if name in METRICS:
            raise UserError(f"{path}: the metric {name} is measured already; call yours otherwise")
    own = {name: open_metric(str(text)) for name, text in (said.get("metrics") or {}).items()}
    criteria = []
    for metric, bounds in (said.get("criteria") or {}).items():
        if metric not in METRICS and metric not in own:
            raise unknown_key(str(metric), [*METRICS, *own], str(path))
        if not isinstance(bounds, dict) or not bounds or set(bounds) - {"min", "max"}:
            raise UserError(f"{path}: {metric}: give it {{min: NUMBER}} or {{max: NUMBER}}")
        for sense, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                raise UserError(f"{path}: {metric}: {sense} {bound!r} is not a number")
            criteria.append(Criterion(metric, sense, float(bound)))
    return Criteria(confidence, tuple(criteria), own)


def recommend(arms: list[dict[str, Any]], criteria: tuple[Criterion, ...]) -> dict[str, Any]:
    """Gives every learned arm its ``verdict``, and returns the recommendation.

    ``arms``, results.json's, are in the order of their price: the first learned arm that was not
    stopped and holds everything is recommended; "arm" is None if there is none. "failing" counts
    the candidates that miss each metric; "limit" is "evidence" if an arm misses only because its
    intervals are wide, with every value itself on the right side.
    """
    candidates = [arm for arm in arms if arm["learned"]]
    for arm in candidates:
        verdicts = [
            criterion.verdict(arm["metrics"].get(criterion.metric)) for criterion in criteria
        ]
        arm["verdict"] = {"holds": all(v["holds"] for v in verdicts), "criteria": verdicts}
    finished = [arm for arm in candidates if arm["stopped"] is None]
    chosen = next((arm for arm in finished if arm["verdict"]["holds"]), None)
    failed = {
        arm["name"]: [v["metric"] for v in arm["verdict"]["criteria"] if not v["holds"]]
        for arm in candidates
    }
    before = candidates if chosen is None else candidates[: candidates.index(chosen)]
    failing = {
        criterion.metric: sum(criterion.metric in some for some in failed.values())
        for criterion in criteria
    }
    return {
        "arm": chosen and chosen["name"],
        "failing": {metric: count for metric, count in failing.items() if count},
        "cheaper_failed": [
            {"arm": arm["name"], "metrics": failed[arm["name"]]}
            for arm in before
            if failed[arm["name"]]
        ],
        "limit": "evidence" if chosen is None and any(map(_only_wide, finished)) else None,
    }


def _only_wide(arm: dict[str, Any]) -> bool:
    """Whether the arm's values meet every criterion, and only its intervals do not."""

    def meets(verdict: dict[str, Any]) -> bool:
        if verdict["value"] is None:
            return False
        if "min" in verdict:
            return verdict["value"] >= verdict["min"]
        return verdict["value"] <= verdict["max"]

    return all(map(meets, arm["verdict"]["criteria"]))
