"""Stages of a roll-out: shadow, canary, full; promoted on evidence, brought back on a breach.

The stage is the last row of the store's audit log, so that whoever asks, in whichever process and
after whatever crash, gets one answer. Comparisons count from the latest change on: what a stage is
promoted on was seen in that stage.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from softvq.errors import UserError
from softvq.evaluate import intervals
from softvq.evaluate.intervals import Figure
from softvq.serve.plan import STAGES, Criterion, Plan
from softvq.serve.store import Change, Comparison, Store


@dataclass(frozen=True)
class Evidence:
    """A criterion and what live photos say of it.

    holds: the whole interval is on the right side.  broken: the whole interval is on the wrong one.
    share: where each photo is put to the limit, the share that must keep to it; value and interval
    are then of that share.
    """

    metric: str
    limit: float
    sense: str
    value: float | None
    low: float | None
    high: float | None
    photos: int
    holds: bool
    broken: bool
    share: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.metric}: not measured yet"
        words = "at least" if self.sense == "min" else "at most"
        ends = "" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})"
        found, state = f"{self.value:.4g}{ends} of {self.photos} photos", self._state()
        if self.share is None:
            return f"{self.metric} {found}, {words} {self.limit:g}: {state}"
        return f"{self.metric} {words} {self.limit:g} in {found}, wanted in {self.share:g}: {state}"

    def _state(self) -> str:
        return "holds" if self.holds else "broken" if self.broken else "not proven"


def measure(criterion: Criterion, seen: Sequence[Comparison], plan: Plan) -> Evidence:
    """Put a criterion to comparisons; photos of one part are one piece of evidence."""
    figure = _figure(criterion, seen, plan)
    sense, limit = ("min", criterion.min) if criterion.max is None else ("max", criterion.max)
    assert limit is not None
    holds = broken = False
    if figure is not None and figure.low is not None and figure.high is not None:
        if criterion.share is not None:
            holds, broken = figure.low >= criterion.share, figure.high < criterion.share
        elif sense == "min":
            holds, broken = figure.low >= limit, figure.high < limit
        else:
            holds, broken = figure.high <= limit, figure.low > limit
    return Evidence(
        criterion.metric,
        limit,
        sense,
        figure.value if figure else None,
        figure.low if figure else None,
        figure.high if figure else None,
        figure.n or 0 if figure else 0,
        holds,
        broken,
        criterion.share,
    )


def _figure(criterion: Criterion, seen: Sequence[Comparison], plan: Plan) -> Figure | None:
    metric = criterion.metric
    if metric == "defect_kept":
        seen = [one for one in seen if one.today not in plan.normal]
    if metric == "false_alarms":
        seen = [one for one in seen if one.today in plan.normal]
    groups = [one.part for one in seen]
    shares: dict[str, Callable[[Comparison], bool]] = {
        "agreement": lambda one: one.today == one.tokens,
        "defect_kept": lambda one: one.tokens not in plan.normal,
        "false_alarms": lambda one: one.tokens not in plan.normal,
    }
    if metric in shares:
        kept = np.array([shares[metric](one) for one in seen], bool)
        return intervals.share(kept, groups, plan.confidence)
    values = np.array([getattr(one, metric) for one in seen])
    if criterion.share is None:
        return intervals.mean(values, groups, plan.confidence)
    kept = values >= criterion.min if criterion.max is None else values <= criterion.max
    return intervals.share(kept, groups, plan.confidence)


@dataclass(frozen=True)
class State:
    """Where the roll-out stands. ``held``: no promotion and no comparison moves it."""

    stage: str
    held: bool
    change: int
    since: float
    evidence: tuple[Evidence, ...] = ()
    comparisons: int = 0


class Rollout:
    """A plan's roll-out in a store."""

    def __init__(self, store: Store, plan: Plan):
        self.store, self.plan = store, plan
        if store.last_change() is None:
            self._write("start", "shadow", "shadow", False, "softvq", "first start", ())

    def state(self, measured: bool = True) -> State:
        """The stage, and with ``measured`` what the comparisons since its start say."""
        last = self.store.last_change()
        assert last is not None
        if not measured:
            return State(last.stage, last.held, last.id, last.at)
        seen = self.store.comparisons(self._since(), self.plan.window)
        evidence = tuple(measure(c, seen, self.plan) for c in self.plan.criteria)
        return State(last.stage, last.held, last.id, last.at, evidence, len(seen))

    def _since(self) -> int:
        """The change that began the stage; a hold interrupts none, what was seen before counts."""
        return next(c.id for c in reversed(self.store.changes()) if c.action != "hold")

    def promote(self, who: str, why: str = "asked for") -> State:
        """To the next stage. Raises UserError where the criteria do not hold yet."""
        state = self.state()
        if state.stage == self.plan.last:
            raise UserError(f"the roll-out is at the plan's last stage, {state.stage}")
        if state.comparisons < self.plan.least:
            raise UserError(
                f"{state.comparisons} comparisons in stage {state.stage}, the plan wants "
                f"{self.plan.least}; let more photos come"
            )
        if open_ := [str(one) for one in state.evidence if not one.holds]:
            raise UserError(f"the criteria do not hold in stage {state.stage}: {'; '.join(open_)}")
        following = STAGES[STAGES.index(state.stage) + 1]  # type: ignore[arg-type]
        self._write("promote", state.stage, following, False, who, why, state.evidence)
        return self.state()

    def hold(self, who: str, why: str = "asked for") -> State:
        """Stay: no automatic promotion until somebody promotes. A breach still falls back."""
        state = self.state()
        self._write("hold", state.stage, state.stage, True, who, why, state.evidence)
        return self.state()

    def back(self, who: str, why: str = "asked for") -> State:
        """To the stage before, held. Raises UserError in the first."""
        state = self.state()
        if state.stage == STAGES[0]:
            raise UserError("the roll-out is in shadow, today's path answers everything already")
        before = STAGES[STAGES.index(state.stage) - 1]  # type: ignore[arg-type]
        self._write("back", state.stage, before, True, who, why, state.evidence)
        return self.state()

    def consider(self) -> State:
        """After new comparisons: fall back on a breach, promote where the plan says so."""
        state = self.state()
        if state.comparisons < self.plan.least:
            return state
        # The latest alone: what was good for weeks must not hide what broke an hour ago.
        latest = self.store.comparisons(self._since(), self.plan.least)
        breach = [measure(c, latest, self.plan) for c in self.plan.criteria]
        broken = [str(one) for one in breach if one.broken]
        if broken and state.stage != STAGES[0]:
            self._write(
                "fall back", state.stage, STAGES[0], True, "softvq", "; ".join(broken), breach
            )  # fmt: skip
            return self.state()
        good = all(one.holds for one in state.evidence)
        if self.plan.automatic and good and not state.held and state.stage != self.plan.last:
            return self.promote("softvq", "the criteria hold")
        return state

    def answers_by_tokens(self, part: str, stage: str) -> bool:
        """Whether the tokens' path answers for a part: always the same for one part number."""
        if stage == "canary":
            return share_of(part) < self.plan.canary
        return stage == "full"

    def compares(self, photo: bytes, stage: str) -> bool:
        """Whether a photo takes both paths: all do, but in stage full a share of them."""
        return stage != "full" or share_of(hashlib.sha256(photo).hexdigest()) < self.plan.compared

    def _write(
        self,
        action: str,
        before: str,
        stage: str,
        held: bool,
        who: str,
        why: str,
        evidence: Sequence[Evidence],
    ) -> None:
        self.store.add([
            Change(
                at=time.time(), action=action, before=before, stage=stage, held=held,
                who=who[:200], why=why[:2000], evidence=[asdict(one) for one in evidence],
            )
        ])  # fmt: skip


def share_of(text: str) -> float:
    """A number in [0, 1) that a text always has, spread evenly over texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def part_hash(part: str) -> str:
    """What the store keeps of a part number."""
    return hashlib.sha256(part.encode()).hexdigest()[:32]
