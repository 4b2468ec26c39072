"""The study's report: one page that decides, and the evidence behind it, in one HTML file.

results.json + pictures -> report.html, results.csv. Nothing is measured here and no
verdict is reached here: every figure and every verdict is results.json's.
"""

import csv
import io
import math
from dataclasses import asdict
from pathlib import Path

from softvq.errors import UserError
from softvq.io import write_atomically
from softvq.report import Report, Section, write_report
from softvq.study.records import ArmResult, Criterion, Result, Results, read
from softvq.study.telling import evidence, gallery
from softvq.study.telling.view import View, digits_of, unit_of, value_of
from softvq.study.telling.words import Words


def write_reports(out: Path, lang: str = "en") -> Path:
    """Write ``out/report.html`` and ``out/results.csv`` from the study in ``out``.

    ``lang``: 'en' or 'ja'. Returns the report's path. Raises UserError for another language, if
    there is no finished study in ``out``, and if its files are damaged.
    """
    words = Words(lang)
    if not (out / "results.json").is_file():
        raise UserError(f"{out}: no results.json there; run softvq study to its end first")
    results = read(Results, out / "results.json", "run softvq study again, it makes it anew")
    write_report(render(results, out, words), out / "report.html")
    write_atomically(out / "results.csv", _csv(results.arms))
    return out / "report.html"


def render(results: Results, out: Path, words: Words) -> Report:
    """The report on ``results`` as ``words`` say it; the pictures are in ``out``."""
    view = View(out, results, words)
    return Report(
        title=words("title"),
        summary=_summary(view),
        facts=_facts(view),
        sections=[section for section in _sections(view) if section is not None],
        footer=words("footer", version=results.version),
        lang=words.lang,
    )


# ---- the top ----


def _summary(view: View) -> str:
    words, arm = view.words, view.recommended
    if arm:
        size = {"tokens": arm.tokens, "bytes": round(arm.bytes)}
        return words("summary.arm", arm=arm.name, confidence=view.confidence, **size)
    said = [words("summary.none", arms=len(view.final), confidence=view.confidence)]
    if view.results.recommendation.limit == "evidence":
        said.append(words("summary.thin"))
    return words.prose(said)


def _facts(view: View) -> list[tuple[str, str]]:
    words, arm = view.words, view.shown
    height, width = view.results.settings.size
    if view.recommended:
        facts = [
            (
                words("fact.tokens", tokens=arm.tokens),
                words("fact.tokens.label", arm=arm.name),
            )
        ]
    else:
        facts = [(words("fact.none"), words("fact.none.label", arm=arm.name))]
    facts.append((f"{height * width * 3:,} → {arm.floats:,}", words("fact.floats.label")))
    for metric, label in (
        ("defect_kept", "kept"),
        ("contrast_kept", "contrast"),
        ("psnr", "psnr"),
    ):
        figure = arm.metrics.get(metric)
        if figure and figure.low is not None:
            unit, digits = unit_of(metric)
            low = digits_of(unit, digits, figure.low)
            high = view.measured(metric, figure.high)
            value = view.measured(metric, figure.value)
            facts.append((value, words(f"fact.{label}.label", low=low, high=high)))
    smallest = value_of(arm, "smallest_surviving")
    if smallest is not None:
        value = view.measured("smallest_surviving", smallest)
        facts.append((value, words("fact.smallest.label")))
    if view.needed:
        criterion, figure, needed = max(view.needed, key=lambda lacking: lacking[2])
        said = {"metric": view.metric(criterion.metric), "groups": figure.groups}
        facts.append((words("fact.needed", needed=needed), words("fact.needed.label", **said)))
    return facts


def _sections(view: View) -> list[Section | None]:
    return [
        _brief(view),
        evidence.frontier(view),
        evidence.all_arms(view),
        gallery.worst_cases(view),
        gallery.defect_crops(view),
        evidence.by_size(view),
        evidence.by_class(view),
        evidence.robustness(view),
        evidence.subgroups(view),
        evidence.data_section(view),
        evidence.method(view),
        evidence.limits(view),
        evidence.repeat(view),
    ]


# ---- one page for the manager ----


def _brief(view: View) -> Section:
    words = view.words
    parts = {
        "about": [words("brief.about.text")],
        "tried": _tried(view),
        "criteria": _acceptable(view),
        "recommended": _recommended(view),
        "saved": _saved(view),
        "lost": _lost(view),
        "risk": _risk(view),
    }
    points = [(words(f"brief.{key}"), words.prose(said)) for key, said in parts.items() if said]
    return Section(words("brief.heading"), points=points)


def _tried(view: View) -> list[str]:
    words, splits = view.words, view.results.data.splits
    tokens = sorted({arm.tokens for arm in view.learned})
    said = [
        words(
            "brief.tried.text",
            arms=len(view.learned),
            kinds=_kinds(view, learned=True),
            tokens=words.join(str(n) for n in tokens),
            train=splits.train.photos,
            val=splits.val.photos,
        )
    ]
    stopped = len(view.learned) - len(view.final)
    if stopped:
        said.append(words("brief.tried.stopped", stopped=stopped))
    if view.results.baselines:
        said.append(words("brief.tried.baselines", kinds=_kinds(view, learned=False)))
    return said


def _kinds(view: View, learned: bool) -> str:
    kinds = dict.fromkeys(arm.kind for arm in view.results.arms if arm.learned == learned)
    return view.words.join(view.words.name("kind", kind) for kind in kinds)


def _acceptable(view: View) -> list[str]:
    words = view.words
    criteria = [_criterion(view, c) for c in view.results.criteria]
    if not criteria:
        return [words("brief.criteria.none")]
    said = words("brief.criteria.text", criteria=words.join(criteria), confidence=view.confidence)
    return [said]


def _criterion(view: View, criterion: Criterion) -> str:
    name = view.metric(criterion.metric)
    return view.words("criterion", name=name, limit=view.limit(criterion))


def _recommended(view: View) -> list[str]:
    words, arm = view.words, view.shown
    advice = view.results.recommendation
    if view.recommended:
        kind = words.name("kind", arm.kind)
        shape = {"tokens": arm.tokens, "channels": arm.channels}
        said = [words("brief.recommended.arm", arm=arm.name, kind=kind, **shape)]
        # Those that were stopped early are no candidates, whatever they miss.
        cheaper = [arm.name for arm in view.final if arm.name in advice.cheaper_failed]
        if cheaper:
            metrics = words.join(map(view.metric, advice.cheaper_failed[cheaper[-1]]))
            next_one = {"count": len(cheaper), "arm": cheaper[-1], "metrics": metrics}
            return [*said, words("brief.recommended.cheaper", **next_one)]
        return [*said, words("brief.recommended.cheapest")]
    failing = [
        words("count", name=view.metric(metric), count=count)
        for metric, count in advice.failing.items()
    ]
    said = [words("brief.recommended.none", arms=len(view.learned), failing=words.join(failing))]
    said.append(words("brief.recommended.best", arm=arm.name))
    if view.needed:
        lacking = [
            words(
                "brief.evidence.one",
                metric=view.metric(criterion.metric),
                value=view.measured(criterion.metric, figure.value),
                groups=figure.groups,
                bound=view.measured(criterion.metric, criterion.bound),
                least=view.limit(criterion),
                needed=needed,
            )
            for criterion, figure, needed in view.needed
        ]
        said += [words("brief.evidence"), *lacking, words("brief.evidence.mend")]
    return said


def _saved(view: View) -> list[str]:
    words, arm = view.words, view.shown
    height, width = view.results.settings.size
    pixels = height * width * 3
    times = f"{pixels / arm.floats:,.0f}"
    said = [words("brief.saved.numbers", pixels=pixels, floats=arm.floats, times=times)]
    longest = max(view.learned, key=lambda a: a.tokens)
    if longest.tokens > arm.tokens:
        share = arm.cost.generator_gflops / longest.cost.generator_gflops
        share_ = words("unit.share", value=digits_of("share", 0, share))
        said.append(words("brief.saved.tokens", longest=longest.tokens, share=share_))
    return said


def _lost(view: View) -> list[str]:
    words, metrics = view.words, view.shown.metrics
    said = []
    kept = metrics.get("defect_kept")
    if kept:
        value, interval = (
            view.measured("defect_kept", kept.value),
            view.span("defect_kept", kept),
        )
        said.append(
            words("brief.lost.kept", value=value, interval=interval, confidence=view.confidence)
        )
    original = view.detected.accuracy if view.detected else None
    rebuilt = metrics.get("accuracy")
    if original and rebuilt:
        before = view.measured("accuracy", original.value)
        after = view.measured("accuracy", rebuilt.value)
        said.append(words("brief.lost.accuracy", before=before, after=after))
    contrast = metrics.get("contrast_kept")
    if contrast:
        value = view.measured("contrast_kept", contrast.value)
        said.append(words("brief.lost.contrast", value=value))
        smallest = metrics.get("smallest_surviving")
        if smallest:
            sizes = {
                "study": view.measured("smallest_surviving", smallest.value),
                "original": view.measured("smallest_surviving", view.shown.smallest_in_file),
            }
            said.append(words("brief.lost.smallest", **sizes))
        else:
            said.append(words("brief.lost.smallest_none"))
    value = view.measured("psnr", value_of(view.shown, "psnr"))
    said.append(words("brief.lost.psnr", value=value))
    rival = view.rival
    if rival:
        metric = view.quality or "psnr"
        value = view.measured(metric, value_of(rival, metric))
        names = {"kind": words.name("kind", rival.kind), "metric": view.metric(metric)}
        said.append(words("brief.lost.baseline", value=value, **names))
    return said


def _risk(view: View) -> list[str]:
    words, data = view.words, view.results.data
    said = []
    kept = view.shown.metrics.get("defect_kept")
    if kept and kept.low is not None:
        missed = math.ceil(100 * (1 - kept.low) - 1e-9)
        said.append(words("brief.risk.missed", missed=missed))
    if view.detected and view.detected.defect_recall:
        recall = view.measured("defect_recall", view.detected.defect_recall.value)
        said.append(words("brief.risk.recall", recall=recall))
        if view.alarms:
            said.append(words("alarms", alarms=view.alarms))
    elif not view.detected:
        said.append(words("brief.risk.nothing"))
    val = data.splits.val
    said.append(words("brief.risk.photos", val=val.photos, groups=val.groups))
    leaks = len(data.leaks) - data.dropped
    return [*said, words("brief.risk.leaks", leaks=leaks)] if leaks > 0 else said


# ---- results.csv ----


def _csv(arms: list[Result]) -> str:
    """One row for each arm, unrounded: what it is, every figure with its interval, the verdict."""
    rows = [_row(arm) for arm in arms]
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(arm: Result) -> dict[str, object]:
    """Columns that only arms or only baselines have are left out of the others."""
    row: dict[str, object] = {"name": arm.name, "kind": arm.kind, "learned": arm.learned}
    row |= {"floats": arm.floats, "bytes": arm.bytes, "held": " ".join(arm.held)}
    if isinstance(arm, ArmResult):
        row |= {"tokens": arm.tokens, "channels": arm.channels, "images_seen": arm.images_seen}
        row |= {"stopped_by": arm.stopped and arm.stopped.by, "holds": arm.verdict.holds}
        row["fails"] = " ".join(one.metric for one in arm.verdict.criteria if not one.holds)
        row |= asdict(arm.cost)
    else:
        row |= {"of": arm.of, "setting": arm.setting, "fits": arm.fits}
    for metric, figure in arm.metrics.items():
        row[metric] = figure and figure.value
        if figure and figure.groups is not None:
            ends = {"low": figure.low, "high": figure.high, "n": figure.n, "groups": figure.groups}
            row |= {f"{metric}_{key}": value for key, value in ends.items()}
    return row | {"smallest_surviving_in_file": arm.smallest_in_file}
