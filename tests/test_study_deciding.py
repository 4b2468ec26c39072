"""From what was measured to a recommendation: by hand."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from softvq.errors import UserError
from softvq.evaluate.intervals import Figure, difference, share, wilson
from softvq.evaluate.judges import Judged
from softvq.study.criteria import Criteria, load_criteria
from softvq.study.deciding.costs import cost_of, payback
from softvq.study.deciding.decide import decide, groups_needed
from softvq.study.records import (
    Candidate,
    Criterion,
    Evidence,
    Facts,
    Measured,
    Outcome,
    Prices,
    Sizes,
    Speed,
    SplitFacts,
    Splits,
    TileChoice,
    Verdict,
)

COUNT = 80


def evidence(**changes):
    """80 photos of as many parts, every other one defective, of which the judge finds all but two
    and takes one sound one for defective."""
    labels = [i % 2 for i in range(COUNT)]
    flagged = list(labels)
    flagged[1] = flagged[3] = 0
    flagged[0] = 1
    split = SplitFacts(COUNT, {"ok": 40, "bad": 40}, COUNT, 40)
    facts = Facts(Splits(split, split), Sizes([1, 1, 1], [1, 1, 1], [1, 1, 1], 0.0, 0.0), ["ok"])
    values = {
        "names": [f"{i}.png" for i in range(COUNT)], "classes": ["ok", "bad"], "labels": labels,
        "groups": [str(i) for i in range(COUNT)], "held_out": [True] * COUNT, "subgroups": {},
        "regions": [], "unmarked": None, "learning": 10, "size": (32, 32), "facts": facts,
        "tile": TileChoice(False, "one", {"small": 0.0, "limit": 8.0}, [1] * COUNT),
        "judge": "defects", "originals": Judged(flagged),
    }  # fmt: skip
    return Evidence(**(values | changes))


def measured(name="tuned-4", lost=(), alarms=(), psnr=30.0, **changes):
    """A candidate that loses the defects ``lost`` of those found in originals, and adds alarms."""
    flagged = list(evidence().originals.predicted)
    for i in lost:
        flagged[i] = 0
    for i in alarms:
        flagged[i] = 1
    kind, _, setting = name.rpartition("-")
    tokens = int(re.sub(r"\D", "", setting) or 1)
    values = {
        "name": name, "kind": kind, "role": "candidate", "setting": setting,
        "tokens": [tokens] * COUNT, "bytes": [64.0 * tokens] * COUNT, "floats": 32.0 * tokens,
        "psnr": [psnr] * COUNT, "ssim": [0.9] * 64,
        "information": Judged(flagged), "dropin": Judged(flagged),
    }  # fmt: skip
    return Measured(**(values | changes))


def chosen(candidates, **criteria):
    return decide(evidence(), candidates, Criteria(**criteria))[3]


# ---- figures ----


def test_figures_counted_by_hand():
    lost = measured(lost=(5, 7, 9), alarms=(2, 4))
    _, originals, candidates, _ = decide(evidence(), [lost], Criteria())
    metrics, defect = candidates[0].metrics, np.arange(COUNT) % 2 == 1
    assert metrics["defect_recall"].value == 35 / 40
    assert metrics["false_alarms"].value == 3 / 40
    assert metrics["recall_lost"].value == pytest.approx(3 / 40)
    assert metrics["alarms_added"].value == pytest.approx(2 / 40)
    assert originals.metrics["defect_recall"].value == 38 / 40
    before = np.array(evidence().originals.predicted, bool)[defect]
    after = np.array(lost.information.predicted, bool)[defect]
    assert metrics["recall_lost"] == difference(before, after, list(range(40)), 0.9)
    assert metrics["defect_recall"] == share(after, list(range(40)), 0.9)
    assert metrics["psnr"].value == pytest.approx(30.0)


def test_classes_where_nothing_is_sound():
    facts = replace(evidence().facts, normal=[])
    asked, _, candidates, _ = decide(
        evidence(facts=facts, judge="classes"), [measured(lost=(5, 7))], Criteria()
    )
    assert [c.metric for c in asked] == ["accuracy_lost"]
    assert candidates[0].metrics["accuracy_lost"].value == pytest.approx(2 / COUNT)


# ---- the recommendation ----


def test_the_cheapest_that_holds_is_recommended():
    found = chosen([
        measured("tuned-1", lost=range(5, 40, 2)),
        measured("tuned-4"),
        measured("pca-4", psnr=31.0),
        measured("tuned-8"),
        measured("jpeg-256B", role="reference", tokens=[]),
    ])  # fmt: skip
    assert found.name == found.leading == "pca-4"  # as many tokens as tuned-4, a better picture
    assert found.cheaper_failed == {"tuned-1": ["recall_lost"]}
    assert found.failing == {"recall_lost": 1}


def test_money_decides_where_there_are_prices():
    """Four tokens miss three defects more; it depends on what a miss costs."""
    some = [measured("tuned-4", lost=(5,)), measured("tuned-8")]
    criteria = {"criteria": (Criterion("recall_lost", "max", 0.5),)}
    cheap = Prices(missed_defect=1.0, storage=1e6)
    assert chosen(some, prices=cheap, **criteria).name == "tuned-4"
    dear = Prices(missed_defect=1e6, storage=1e-3)
    assert chosen(some, prices=dear, **criteria).name == "tuned-8"


def test_a_good_value_with_a_wide_interval_is_not_enough():
    found = chosen(
        [measured("tuned-4", lost=(5,))], criteria=(Criterion("recall_lost", "max", 0.03),)
    )
    assert found.name is None and found.leading == "tuned-4" and found.limit == "evidence"
    (needed,) = found.needed
    assert needed.groups > 40 and needed.figure.groups == 40


def test_another_seed_that_fails_leaves_it_undecided():
    good, bad = measured("tuned-4"), measured("seed1-4", lost=range(5, 40, 2))
    assert chosen([good, measured("seed1-4")]).name == "tuned-4"
    found = chosen([good, bad])
    assert (found.name, found.leading, found.limit) == (None, "tuned-4", "seeds")
    assert chosen([measured("pca-4"), bad]).name == "pca-4"


def test_what_is_not_measured_does_not_hold():
    found = chosen([measured()], criteria=(Criterion("psnr_inside", "min", 1.0),))
    assert found.name is None and found.limit is None
    assert not found.needed  # more photos would not change what is missed as measured


def test_moves_say_when_the_recommendation_changes():
    some = [measured("tuned-4", lost=(5, 7, 9)), measured("tuned-8")]
    found = chosen(some, criteria=(Criterion("recall_lost", "max", 0.2),))
    assert found.name == "tuned-4"
    assert [(m.what, m.factor, m.name) for m in found.moves] == [
        ("recall_lost", 0.5, "tuned-8"), ("recall_lost", 1.5, "tuned-4"),
    ]  # fmt: skip


def test_groups_needed_is_the_least_that_proves_it():
    """By brute force: the least n whose Wilson interval at the same share reaches the limit."""
    figure = share(np.arange(20) < 18, list(range(20)), 0.9)
    one = Outcome("defect_recall", "min", 0.8, figure.value, figure.low, False)
    needed = groups_needed(one, figure, 0.9)
    reached, short = (wilson(0.9 * n, n, 0.9)[0] for n in (needed, needed - 2))
    assert reached >= 0.8 > short


# ---- costs ----


def test_costs_by_hand():
    """10,000 parts, 2% defective: 200, of which a tenth is missed at 50 each: 1,000. 9,800 sound
    ones, of which a twentieth is looked at again at 2: 980. Two photos of 1 MB each: 20 GB, at 0.1
    a month for 10 months: 20. Encoding at 10 and decoding at 20 photos a second: 20,000 x 0.15 s
    are 50 minutes, at 6 an hour: 5."""
    candidate = Candidate(
        name="tuned-4", kind="tuned", role="candidate", setting="4", tokens=4.0, floats=128.0,
        bytes=1e6, verdict=Verdict(True, []), speed=Speed(10.0, 20.0),
        metrics={
            "defect_recall": Figure(0.9, 0.8, 0.94, 40, 40),
            "false_alarms": Figure(0.05, 0.03, 0.10, 40, 40),
        },
    )  # fmt: skip
    prices = Prices(
        "EUR", defect_rate=0.02, missed_defect=50.0, false_alarm=2.0, photos_per_part=2.0,
        parts_per_month=20_000.0, storage=0.1, months=10.0, compute=6.0, integration=1000.0,
    )  # fmt: skip
    cost = cost_of(candidate, prices)
    assert cost.missed == pytest.approx(1000.0)
    assert cost.alarms == pytest.approx(980.0)
    assert cost.storage == pytest.approx(20.0)
    assert cost.compute == pytest.approx(5.0)
    assert cost.total.value == pytest.approx(2005.0)
    # At recall 0.8 1,000 more, at alarms 0.10 980 more: together the root of their squares.
    assert cost.total.high == pytest.approx(2005 + (1000**2 + 980**2) ** 0.5)
    assert cost.total.low == pytest.approx(2005 - (400**2 + 392**2) ** 0.5)
    today = replace(cost, total=Figure(2505.0))
    assert payback(cost, today, prices) == pytest.approx(1.0)  # 500 x 2 a month
    assert payback(today, cost, prices) is None


# ---- criteria from a file ----


@pytest.mark.parametrize(
    "text, message",
    [
        ("criteria: {pnsr: {min: 3}}", "psnr"),
        ("criteria: {psnr: 3}", "give it"),
        ("criteria: {psnr: {min: .nan}}", "not a number"),
        ("criteria: [psnr]", "has no names"),
        ("confidence: 2", "between 0 and 1"),
        ("other: 1", "criteria"),
        ("metrics: {psnr: 'a.py:b'}", "measured already"),
        ("- 1", "no criteria"),
        ("a: [", "not valid YAML"),
        ("prices: {missed: 3}", "missed_defect"),
        ("prices: {missed_defect: -3}", "0 or more"),
        ("prices: {missed_defect: much}", "0 or more"),
        ("prices: {defect_rate: 3}", "0 to 1"),
    ],
)
def test_criteria_that_cannot_be(tmp_path, text, message):
    path = tmp_path / "criteria.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_criteria(path)
    assert "\n" not in str(caught.value)


def test_criteria_from_a_file(tmp_path):
    path = tmp_path / "criteria.yaml"
    path.write_text(
        "confidence: 0.8\ncriteria: {recall_lost: {max: 1e-2}, dropin_false_alarms: {max: 0.3}}\n"
        "prices: {currency: JPY, missed_defect: 5e4, defect_rate: 0.002}\n"
    )
    found = load_criteria(path)
    assert found.confidence == 0.8
    assert found.criteria == (
        Criterion("recall_lost", "max", 0.01), Criterion("dropin_false_alarms", "max", 0.3),
    )  # fmt: skip
    assert found.prices == Prices("JPY", missed_defect=50_000.0, defect_rate=0.002)


def test_the_recommendation_follows_by_the_script_of_the_manual(tmp_path):
    """docs/choosing-tokens.md prints 20 lines that recompute the recommendation."""
    text = (Path(__file__).parent.parent / "docs" / "choosing-tokens.md").read_text(
        encoding="utf-8"
    )
    (script,) = re.findall(r"```python\n(# recommend.*?)```", text, flags=re.DOTALL)
    assert len(script.splitlines()) <= 20
    some = [measured("tuned-1", lost=range(5, 40, 2)), measured("tuned-4"), measured("pca-4")]
    for prices in (None, Prices(missed_defect=10.0)):
        _, _, candidates, recommendation = decide(evidence(), some, Criteria(prices=prices))
        values = {"candidates": [asdict(c) for c in candidates]}
        (tmp_path / "results.json").write_text(json.dumps(values))
        names: dict[str, object] = {}
        exec(script.replace('"study/results.json"', repr(str(tmp_path / "results.json"))), names)
        assert names["recommended"] == recommendation.name
