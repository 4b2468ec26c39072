"""The roll-out rehearsed: shadow, canary, a breach, back; on evidence, in a log, after a crash."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from helpers.postgres import server
from sqlalchemy import create_engine, text

from softvq.errors import UserError
from softvq.serve.plan import Criterion, DriftPlan, Plan, plan_yaml, read_plan
from softvq.serve.rollout import Rollout, measure, part_hash, share_of
from softvq.serve.store import Compared, Comparison, Seen, Store, Window

PLAN = Plan(
    normal=("ok",),
    criteria=(Criterion("agreement", min=0.9), Criterion("psnr", min=25.0)),
    least=100,
    window=400,
)


@pytest.fixture(scope="module")
def postgres():
    with server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'softvq.db'}"
    else:
        home = create_engine(request.getfixturevalue("postgres") + "postgres")
        name = "t" + part_hash(request.node.name)
        with home.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        home.dispose()
        url = request.getfixturevalue("postgres") + name
    opened = Store(url)
    yield opened
    opened.close()


def compare(rollout: Rollout, count: int, agree: float, psnr: float = 30.0, seed: int = 0) -> None:
    """Comparisons of as many parts, a share of which both paths judge alike."""
    random = np.random.default_rng(seed)
    change = rollout.state(measured=False).change
    rollout.store.add([
        Compared(
            at=time.time(), change=change, part=part_hash(f"{seed}-{i}"), today="ok",
            tokens="ok" if random.random() < agree else "scratch",
            psnr=psnr + random.normal(), eye_distance=0.2,
        )
        for i in range(count)
    ])  # fmt: skip


def test_a_rehearsal(store):
    rollout = Rollout(store, PLAN)
    assert rollout.state().stage == "shadow"
    with pytest.raises(UserError, match="0 comparisons in stage shadow"):
        rollout.promote("ann")
    compare(rollout, 150, 0.99)
    assert rollout.promote("ann", "two quiet weeks").stage == "canary"
    # What was seen in shadow counts no more.
    with pytest.raises(UserError, match="0 comparisons in stage canary"):
        rollout.promote("ann")
    compare(rollout, 90, 0.99, seed=1)
    assert rollout.consider().stage == "canary"
    compare(rollout, 100, 0.4, seed=2)  # a degraded model
    state = rollout.consider()
    assert (state.stage, state.held) == ("shadow", True)
    log = store.changes()
    assert [c.action for c in log] == ["start", "promote", "fall back"]
    assert [c.who for c in log] == ["softvq", "ann", "softvq"]
    assert log[1].why == "two quiet weeks" and "agreement" in log[2].why
    assert {one["metric"] for one in log[2].evidence} == {"agreement", "psnr"}
    assert log[0].at <= log[1].at <= log[2].at


def test_luck_is_not_evidence(store):
    rollout = Rollout(store, PLAN)
    compare(rollout, 100, 0.93)
    value = rollout.state().evidence[0]
    assert value.value > 0.9 and not value.holds and not value.broken
    with pytest.raises(UserError, match="do not hold in stage shadow"):
        rollout.promote("ann")


def test_what_was_good_for_long_does_not_hide_a_breach(store):
    rollout = Rollout(store, PLAN)
    for seed in range(2):
        compare(rollout, 150, 1.0, seed=seed)
        rollout.promote("ann")
    compare(rollout, 300, 1.0, seed=3)
    compare(rollout, 100, 0.5, seed=4)
    assert rollout.consider().stage == "shadow"


def test_automatic_promotion_stops_at_a_hold(store):

    rollout = Rollout(store, replace(PLAN, automatic=True))
    compare(rollout, 120, 1.0)
    rollout.hold("ann")
    assert rollout.consider().stage == "shadow"
    # A hold interrupts no stage: what was seen before it counts.
    assert rollout.promote("ann").stage == "canary"
    compare(rollout, 120, 1.0, seed=1)
    assert rollout.consider().stage == "full"
    assert rollout.back("ann").stage == "canary"
    assert rollout.state().held


def test_ends_are_refused(store):
    rollout = Rollout(store, PLAN)
    with pytest.raises(UserError, match="in shadow"):
        rollout.back("ann")
    for seed in range(2):
        compare(rollout, 150, 1.0, seed=seed)
        rollout.promote("ann")
    with pytest.raises(UserError, match="last stage"):
        rollout.promote("ann")


KILLED = """
import os, sys
from softvq.serve.plan import Criterion, Plan
from softvq.serve.rollout import Rollout
from softvq.serve.store import Store
sys.path.insert(0, {tests!r})
from test_rollout import PLAN, compare
rollout = Rollout(Store({url!r}), PLAN)
compare(rollout, 150, 1.0)
rollout.promote("ann")
os.kill(os.getpid(), 9)
"""


def test_a_killed_process_resumes_at_its_stage(tmp_path, request):
    url = f"sqlite:///{tmp_path / 'softvq.db'}"
    script = KILLED.format(url=url, tests=str(request.path.parent))
    ran = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ran.returncode == -9, ran.stderr
    store = Store(url)
    again = Rollout(store, PLAN)
    assert again.state().stage == "canary"
    assert [c.action for c in store.changes()] == ["start", "promote"]
    store.close()


def test_a_part_is_always_answered_by_one_path(store):
    parts = [f"part {i}" for i in range(4000)]
    share = np.mean([share_of(part) < 0.1 for part in parts])
    assert 0.08 < share < 0.12
    assert share_of("part 7") == share_of("part 7")
    rollout = Rollout(store, PLAN)
    assert not any(rollout.answers_by_tokens(part, "shadow") for part in parts)
    assert all(rollout.answers_by_tokens(part, "full") for part in parts)


def test_criteria_count_parts_not_photos():
    one_part = [Comparison("a", "ok", "ok", 30.0, 0.1)] * 500
    found = measure(Criterion("agreement", min=0.9), one_part, PLAN)
    assert found.value == 1 and not found.holds
    kept = [Comparison(str(i), "scratch", "scratch", 30.0, 0.1) for i in range(100)]
    passed = [Comparison(str(i), "ok", "ok", 30.0, 0.1) for i in range(100, 200)]
    for criterion in (Criterion("defect_kept", min=0.9), Criterion("false_alarms", max=0.05)):
        found = measure(criterion, kept + passed, PLAN)
        assert found.holds and found.photos == 100
    assert measure(Criterion("defect_kept", min=0.9), passed, PLAN).value is None


def test_old_figures_are_forgotten_and_the_log_is_not(store):
    rollout = Rollout(store, PLAN)
    change, old = rollout.state(measured=False).change, time.time() - 100 * 86400
    store.add([
        Compared(
            at=old, change=change, part="a", today="x", tokens="x", psnr=1.0, eye_distance=0.1
        ),
        Seen(at=old, part=None, tokens=4, token_mean=0.0, token_std=1.0, error=-3.0, health={}),
        Window(at=time.time(), alarm=False, figures={"mmd": 0.5}, said={"en": [], "ja": []}),
    ])  # fmt: skip
    assert store.forget(90) == 2
    assert len(store.windows()) == 1 and len(store.changes()) == 1


def test_a_plan_is_read_as_it_is_written(tmp_path):
    plan = Plan(
        tokens=8, normal=("良品",),
        criteria=(Criterion("defect_kept", min=0.8), Criterion("eye_distance", max=0.3, share=0.9)),
        drift=DriftPlan(reference="photos", window=50),
    )  # fmt: skip
    (tmp_path / "rollout.yaml").write_text(plan_yaml(plan), encoding="utf-8")
    assert read_plan(tmp_path / "rollout.yaml") == plan


STUDY = """
candidate: nested at 16 tokens
decided: {decided}
tokenizer: models/nested
budget: {{tokens: 16}}
stages:
- {{name: shadow, share: 0.0, keep_originals: true, parts: 59, why: compared}}
- {{name: canary, share: 0.05, keep_originals: true, parts: 1180}}
- {{name: full, share: 1.0, keep_originals: false}}
roll_back_if_not: {{psnr_at_least: 24.1, defect_recall_at_least: 0.8}}
"""


def test_a_studys_plan_is_read(tmp_path, store):
    path = tmp_path / "rollout.yaml"
    path.write_text(STUDY.format(decided="true"))
    plan = read_plan(path)
    assert (plan.tokens, plan.least, plan.canary, plan.last) == (16, 59, 0.05, "full")
    psnr, kept = plan.criteria
    assert (psnr, kept) == (Criterion("psnr", min=24.1, share=0.95), Criterion("defect_kept", 0.8))
    # Its PSNR is that of its worst photos: a mean far above it says nothing of them.
    seen = [Comparison(str(i), "ok", "ok", 23.0 if i % 5 == 0 else 30.0, 0.1) for i in range(300)]
    assert np.mean([one.psnr for one in seen]) > 28 and measure(psnr, seen, plan).broken
    seen = [replace(one, psnr=24.2) for one in seen[:59]]
    assert measure(psnr, seen, plan).holds and not measure(psnr, seen[:40], plan).holds
    assert str(measure(psnr, seen, plan)).startswith("psnr at least 24.1 in 1 (0.956")
    path.write_text(STUDY.format(decided="false"))
    with pytest.raises(UserError, match="last stage, shadow"):
        Rollout(store, read_plan(path)).promote("ann")


@pytest.mark.parametrize(
    "plan, said",
    [
        ("tokenz: 3", "did you mean 'tokens'"),
        ("criteria: {beauty: {min: 1}}", "is none of"),
        ("criteria: {psnr: {}}", "give it min or max"),
        ("criteria: {psnr: {min: 20, share: 2}}", "share must be"),
        ("criteria: {agreement: {min: 0.9, share: 0.9}}", "is a share itself"),
        ("criteria: {psnr: {min: high}}", "'high' is no number"),
        ("roll_back_if_not: {psnr_at_least: 20}", "softvq|stages|form"),
        ("criteria: 7", "should be lines"),
        ("canary: 3", "canary"),
        ("least: 0", "least"),
        ("drift: {window: 1}", "window must be in"),
        ("- a", "no plan"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_bad_plan_is_one_line(tmp_path, plan, said):
    (tmp_path / "rollout.yaml").write_text(plan)
    with pytest.raises(UserError, match=said):
        read_plan(tmp_path / "rollout.yaml")


def test_a_bad_store_is_one_line(tmp_path):
    for url in (
        "nonsense",
        "oracle9://x",
        "sqlite://",
        f"sqlite:///{tmp_path}/no/such/folder/x.db",
    ):
        with pytest.raises(UserError, match="--store"):
            Store(url)


def test_tables_are_what_the_migrations_make(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from softvq.serve.store import Table

    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []
