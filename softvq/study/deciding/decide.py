"""The recommendation: of the candidates of which every criterion holds, the one of least cost.

Without prices, cost is tokens, then bytes; of equals the better picture is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from softvq.evaluate.intervals import Figure
from softvq.study.criteria import WARNINGS, Criteria, default_criteria, outcome, verdict
from softvq.study.deciding.costs import cost_of, payback
from softvq.study.deciding.figures import Reader, as_measured, candidate_of
from softvq.study.records import (
    Candidate,
    Criterion,
    Evidence,
    Measured,
    Move,
    Needed,
    Outcome,
    Prices,
    Recommendation,
)

TUNED, SEED = "tuned", "seed"  # what is fine-tuned, and what the same with other seeds begin with
TODAY = "jpeg-q90"  # the reference that candidates must earn their integration against
SHARES = ("accuracy", "defect_recall", "false_alarms", "regions_surviving")
MOST_GROUPS = 1_000_000  # that are asked for: a value just at its limit is never proven
FACTORS = (0.5, 1.5)  # by which prices and limits are moved


def decide(
    evidence: Evidence, measured: Sequence[Measured], criteria: Criteria
) -> tuple[list[Criterion], Candidate, list[Candidate], Recommendation]:
    """The criteria, the originals, all candidates (the cheapest first), and what is recommended."""
    reader = Reader(evidence, criteria.confidence)
    everything = [candidate_of(reader, each) for each in measured]
    found = [each for each in everything if not each.kind.startswith(SEED)]
    asked = list(criteria.criteria or default_criteria(_first(found).metrics))
    found = [with_verdict(each, asked) for each in found]
    again = [with_verdict(each, asked) for each in everything if each.kind.startswith(SEED)]
    found = with_costs(found, criteria.prices)
    candidates = sorted(found, key=lambda each: (each.role != "candidate", each.price))
    originals = candidate_of(reader, as_measured(evidence))
    originals = replace(originals, metrics={**originals.metrics, "psnr": None}, worst=[])
    chosen = steady(recommend(candidates, criteria.confidence), candidates, again)
    moves = moved(candidates, asked, criteria.prices, criteria.confidence)
    return asked, originals, candidates, replace(chosen, moves=moves)


def _first(found: Sequence[Candidate]) -> Candidate:
    return next(each for each in found if each.role == "candidate")


def with_verdict(candidate: Candidate, asked: Sequence[Criterion]) -> Candidate:
    warned = [outcome(one, candidate.metrics.get(one.metric)) for one in WARNINGS]
    return replace(
        candidate,
        verdict=verdict(candidate.metrics, asked),
        warnings=[one for one in warned if one.value is not None and not one.met],
    )


def with_costs(found: Sequence[Candidate], prices: Prices | None) -> list[Candidate]:
    """The candidates with what they cost, and pay-back against what photos are kept as today."""
    if prices is None:
        return list(found)
    priced = [replace(each, cost=cost_of(each, prices)) for each in found]
    today = next((each.cost for each in priced if each.name == TODAY), None)
    if today is None:
        return priced
    return [
        replace(each, payback=payback(each.cost, today, prices))
        if each.cost and each.role == "candidate"
        else each
        for each in priced
    ]


def preference(candidate: Candidate) -> tuple[float, ...]:
    """What decides between those of which everything holds: the least comes first."""
    money = candidate.cost.total.value if candidate.cost else 0.0
    return money, *candidate.price


def recommend(candidates: Sequence[Candidate], confidence: float) -> Recommendation:
    """The cheapest candidate whose verdict holds, or what stands in the way of one."""
    tried = sorted((c for c in candidates if c.role == "candidate"), key=preference)
    holding = [c for c in tried if c.verdict.holds]
    chosen = holding[0] if holding else None
    failed = {c.name: [o.metric for o in c.verdict.criteria if not o.holds] for c in tried}
    asked = dict.fromkeys(o.metric for c in tried for o in c.verdict.criteria)
    failing = {metric: sum(metric in some for some in failed.values()) for metric in asked}
    met = [c for c in tried if all(o.met for o in c.verdict.criteria)]
    leading = chosen or (met[0] if met else max(tried, key=_merit))
    cheaper = tried if chosen is None else tried[: tried.index(chosen)]
    lacking = [] if chosen or not met else [
        Needed(one, figure, groups_needed(one, figure, confidence))
        for one in leading.verdict.criteria
        if (figure := leading.metrics.get(one.metric))
        and figure.groups is not None and one.met and not one.holds
    ]  # fmt: skip
    return Recommendation(
        name=chosen.name if chosen else None,
        leading=leading.name,
        failing={metric: count for metric, count in failing.items() if count},
        cheaper_failed={c.name: failed[c.name] for c in cheaper if failed[c.name]},
        limit="evidence" if chosen is None and met else None,
        needed=lacking,
    )


def steady(
    chosen: Recommendation, candidates: Sequence[Candidate], again: Sequence[Candidate]
) -> Recommendation:
    """What is recommended if the same, fine-tuned ``again`` with other seeds, holds too."""
    name, _, setting = (chosen.name or "").rpartition("-")
    same = [each for each in again if each.setting == setting]
    if name != TUNED or all(each.verdict.holds for each in same):
        return chosen
    return replace(chosen, name=None, limit="seeds")


def _merit(candidate: Candidate) -> tuple[int, float]:
    """What misses the least."""
    wrong = sum(not one.met for one in candidate.verdict.criteria)
    psnr = candidate.metrics.get("psnr")
    return -wrong, psnr.value if psnr else 0.0


def groups_needed(one: Outcome, figure: Figure, confidence: float) -> int:
    """Independent groups from which a figure of the same value would meet its criterion.

    Wilson's interval of a share inverts the test of the limit p0, so its end reaches p0 at
    n = z^2 p0 (1 - p0) / (value - p0)^2. Other intervals shrink as the root of n.
    """
    groups, limit = figure.groups or 0, one.limit
    slack = (figure.value - limit) ** 2
    if one.metric.removeprefix("dropin_") in SHARES:
        z = NormalDist().inv_cdf((1 + confidence) / 2)
        needed = z * z * limit * (1 - limit) / slack if slack else math.inf
    elif one.bound is None:
        needed = math.inf
    else:
        reach = (one.bound - figure.value) ** 2
        needed = groups * reach / slack if slack else math.inf
    # A share's interval counts each group once, its value each photo: the two may differ a little.
    return max(groups + 1, math.ceil(min(needed, MOST_GROUPS)))


def moved(
    candidates: Sequence[Candidate], asked: Sequence[Criterion], prices: Prices | None,
    confidence: float,
) -> list[Move]:  # fmt: skip
    """What is recommended where one limit, or one price, is half as large again, or half."""
    moves = []
    for i, one in enumerate(asked):
        for factor in FACTORS:
            other = [*asked[:i], replace(one, limit=one.limit * factor), *asked[i + 1 :]]
            some = [with_verdict(each, other) for each in candidates]
            moves.append(Move(one.metric, factor, recommend(some, confidence).name))
    for name in ("defect_rate", "missed_defect", "false_alarm", "storage", "compute"):
        value = getattr(prices, name, 0.0)
        for factor in FACTORS if value else ():
            most = min(1.0, value * factor) if name == "defect_rate" else value * factor
            assert prices is not None
            changes: dict[str, Any] = {name: most}
            some = with_costs(candidates, replace(prices, **changes))
            moves.append(Move(name, factor, recommend(some, confidence).name))
    return moves
