"""The roll-out plan, ``rollout.yaml``: what a study decided, and how to go there step by step.

``softvq serve --plan`` and ``softvq rollout`` read it with :func:`read_plan`: as it is described
here, which :func:`plan_yaml` writes, or as a study writes its decision. Needs no torch.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from softvq.checks import check_fields
from softvq.errors import UserError, check_ranges
from softvq.io import make_config

Stage = Literal["shadow", "canary", "full"]
STAGES: tuple[Stage, ...] = ("shadow", "canary", "full")

# What is measured of every photo that takes both paths, and criteria may ask for:
#   agreement      the share of photos that both paths judge alike
#   defect_kept    of the photos that today's path takes for a defect, the share that the tokens'
#                  path takes for one too
#   false_alarms   of the photos that today's path passes, the share that the tokens' path does not
#   psnr           in dB, of the rebuilt photo
#   eye_distance   of the rebuilt photo from the original, see EyeDistance
METRICS = ("agreement", "defect_kept", "false_alarms", "psnr", "eye_distance")
EACH = ("psnr", "eye_distance")  # that every photo has a number of


@dataclass(frozen=True)
class Criterion:
    """The metric's interval must lie at or above ``min``, or at or below ``max``.

    share: of psnr and eye_distance, the share of the photos that must lie there each for itself, in
    place of their mean: a hundredth of ruined photos hardly moves a mean.
    """

    metric: Literal["agreement", "defect_kept", "false_alarms", "psnr", "eye_distance"]
    min: float | None = None
    max: float | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UserError(f"criterion '{self.metric}' is none of {', '.join(METRICS)}")
        if (self.min is None) == (self.max is None):
            raise UserError(f"criterion {self.metric}: give it min or max")
        limit = self.min if self.max is None else self.max
        if isinstance(limit, bool) or not isinstance(limit, int | float):
            raise UserError(f"criterion {self.metric}: {limit!r} is no number")
        if self.share is not None and self.metric not in EACH:
            raise UserError(f"criterion {self.metric} is a share itself; leave out its share")
        if self.share is not None:
            check_ranges(self, f"criterion {self.metric}", share=(0, 1))


@dataclass(frozen=True)
class DriftPlan:
    """When photos count as changed.

    reference: folder of the photos that the study looked at, or one that `softvq monitor` wrote.
    window: photos that are judged together.  stride: photos between windows.
    one_in: one false alarm in so many windows.
    webhook: URL that alarms are posted to.  email: address; smtp: host[:port] that takes the mail.
    """

    reference: str | None = None
    window: int = 100
    stride: int = 20
    one_in: int = 1000
    webhook: str | None = None
    email: str | None = None
    smtp: str = "localhost"

    def __post_init__(self) -> None:
        check_ranges(self, "drift", window=(20, 10_000), stride=(1, 10_000), one_in=(10, 100_000))


@dataclass(frozen=True)
class Plan:
    """Everything a roll-out goes by.

    tokens: how many of a photo's tokens are kept; None for all.
    judge: directory of a probe, or 'shipped': the verdict on a photo.
    normal: its classes that are free of defects.
    criteria: all must hold, with their intervals, for a promotion; one that is proven broken brings
        the roll-out back to shadow.  confidence: of the two-sided intervals.
    canary: share of the parts that the tokens' path answers in stage canary.
    compared: share of the requests that take both paths in stage full.
    least: comparisons below which nothing is decided.  window: the latest that count.
    automatic: promote without being asked, as soon as the criteria hold.
    last: the stage beyond which nobody is let: an undecided study stays in shadow.
    """

    tokens: int | None = None
    judge: str = "shipped"
    normal: tuple[str, ...] = ()
    criteria: tuple[Criterion, ...] = (Criterion("agreement", min=0.95),)
    confidence: float = 0.9
    canary: float = 0.1
    compared: float = 0.1
    least: int = 300
    window: int = 2000
    automatic: bool = False
    last: Stage = "full"
    drift: DriftPlan = DriftPlan()

    def __post_init__(self) -> None:
        check_fields(self, "plan: ", above_0=("least", "window"))
        check_ranges(self, "", canary=(0, 1), compared=(0, 1), confidence=(0.5, 0.999))
        if self.last not in STAGES:
            raise UserError(f"plan: last '{self.last}' is none of {', '.join(STAGES)}")
        if self.least > self.window:
            raise UserError(f"plan: least {self.least} is more than window {self.window}")


def read_plan(path: str | Path) -> Plan:
    """Raises UserError for a missing or damaged file, an unknown key, and a value out of range."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the rollout.yaml that `softvq study` wrote")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(said, dict):
        raise UserError(f"{path}: no plan; it has {', '.join(f.name for f in fields(Plan))}")
    values: dict[str, Any] = {str(key): value for key, value in said.items()}
    where = str(path)
    try:
        if "roll_back_if_not" in values:
            values = _of_study(values)
        if "drift" in values:
            values["drift"] = make_config(DriftPlan, _mapping(values["drift"]), where)
        if "criteria" in values:
            asked = _mapping(values["criteria"])
            values["criteria"] = tuple(
                make_config(Criterion, {"metric": name} | _mapping(bounds), f"{where}: {name}")
                for name, bounds in asked.items()
            )
        if "normal" in values:
            values["normal"] = tuple(str(name) for name in values["normal"])
        return make_config(Plan, values, where)
    except (TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: {error}; see docs/operations.md for its form") from None


# What a study calls a limit, and the criterion that watches it on live photos. Its PSNR is one that
# 99 in 100 of its photos reached: its shadow stage has as many parts as can prove 95 in 100.
LIMITS: dict[str, tuple[str, str, dict[str, float]]] = {
    "psnr_at_least": ("psnr", "min", {"share": 0.95}),
    "defect_recall_at_least": ("defect_kept", "min", {}),
    "flagged_good_parts_at_most": ("false_alarms", "max", {}),
}


def _of_study(said: dict[str, Any]) -> dict[str, Any]:
    """A study's rollout.yaml in this file's terms. Its shadow's parts are the least comparisons."""
    stages = {stage["name"]: stage for stage in said["stages"]}
    limits = _mapping(said["roll_back_if_not"])
    least = int(stages["shadow"]["parts"])
    values: dict[str, Any] = {
        "tokens": _mapping(said["budget"]).get("tokens"),
        "criteria": {
            metric: {sense: limits[name], **more}
            for name, (metric, sense, more) in LIMITS.items()
            if name in limits
        },
        "least": least,
        "window": max(Plan.window, least),
        "last": "full" if said.get("decided") else "shadow",
    }
    if "canary" in stages:
        values["canary"] = stages["canary"]["share"]
    return values


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} should be lines of 'name: value'")
    return {str(name): inside for name, inside in value.items()}


def plan_yaml(plan: Plan) -> str:
    """The plan as :func:`read_plan` reads it."""
    values = asdict(plan)
    values["normal"] = list(plan.normal)
    values["criteria"] = {
        c.metric: {k: v for k, v in asdict(c).items() if k != "metric" and v is not None}
        for c in plan.criteria
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
