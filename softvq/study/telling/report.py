"""The study's report: one page that decides, and the evidence behind it, in one HTML file.

results.json + pictures -> report.html, results.csv, rollout.yaml. Nothing is measured here and no
verdict is reached here: every figure and every verdict is results.json's.
"""

import csv
import io
import math
from pathlib import Path

from softvq.errors import UserError
from softvq.io import write_atomically
from softvq.report import Report, Section, write_report
from softvq.study.deciding.costs import PARTS
from softvq.study.records import Candidate, Criterion, Results, read
from softvq.study.telling import evidence, gallery, tokens
from softvq.study.telling.pictures import model_kind
from softvq.study.telling.rollout import write_plan
from softvq.study.telling.view import View, digits_of, unit_of, value_of
from softvq.study.telling.words import Words
from softvq.study.trying import models
from softvq.study.trying.measuring import read_measures


def write_reports(out: Path, lang: str = "en") -> Path:
    """Write ``out/report.html``, ``results.csv`` and ``rollout.yaml`` from the study in ``out``.

    ``lang``: 'en' or 'ja'. Returns the report's path. Raises UserError for another language, if
    there is no finished study in ``out``, and if its files are damaged.
    """
    words = Words(lang)
    if not (out / "results.json").is_file():
        raise UserError(f"{out}: no results.json there; run softvq study to its end first")
    results = read(Results, out / "results.json", "run softvq study again, it makes it anew")
    write_report(render(results, out, words), out / "report.html")
    write_atomically(out / "results.csv", _csv(results.candidates))
    (leading,) = read_measures([results.recommendation.leading], out)
    write_plan(results, leading, out)
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
    words, best = view.words, view.recommended
    if best:
        size = {"tokens": view.size(best), "bytes": round(best.bytes)}
        return words("summary.arm", arm=best.name, confidence=view.confidence, **size)
    advice = view.results.recommendation
    said = [words("summary.none", arms=len(view.tried), confidence=view.confidence)]
    if advice.limit is not None:
        said.append(words(f"summary.{advice.limit}", arm=advice.leading))
    return words.prose(said)


def _facts(view: View) -> list[tuple[str, str]]:
    words, best = view.words, view.shown
    height, width = view.results.evidence.size
    label = {"arm": best.name}
    if view.recommended:
        facts = [
            (words("fact.tokens", tokens=view.size(best)), words("fact.tokens.label", **label))
        ]
    else:
        facts = [(words("fact.none"), words("fact.none.label", **label))]
    pixels = height * width * 3 * sum(view.results.evidence.tile.pieces)
    pixels //= len(view.results.evidence.names)
    facts.append((f"{pixels:,} → {best.floats or 0:,.0f}", words("fact.floats.label")))
    for metric in ("defect_recall", "accuracy", "contrast_kept", "psnr"):
        figure = best.metrics.get(metric)
        if figure and figure.low is not None:
            low = digits_of(*unit_of(metric), figure.low)
            high = view.measured(metric, figure.high)
            value = view.measured(metric, figure.value)
            facts.append((value, words(f"fact.{metric}.label", low=low, high=high)))
    if best.cost:
        value = view.money(best.cost.total.value)
        facts.append((value, words("fact.cost.label", parts=PARTS)))
    needed = view.results.recommendation.needed
    if needed:
        most = max(needed, key=lambda lack: lack.groups)
        said = {"metric": view.metric(most.outcome.metric), "groups": most.figure.groups}
        facts.append((words("fact.needed", needed=most.groups), words("fact.needed.label", **said)))
    return facts


def _sections(view: View) -> list[Section | None]:
    return [
        _brief(view),
        evidence.frontier(view),
        evidence.what_if(view),
        evidence.all_candidates(view),
        gallery.worst_cases(view),
        gallery.defect_crops(view),
        tokens.meaning(view),
        evidence.budgets(view),
        evidence.by_size(view),
        evidence.by_class(view),
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
        "cost": _cost(view),
        "risk": _risk(view),
        "next": _next(view),
    }
    points = [(words(f"brief.{key}"), words.prose(said)) for key, said in parts.items() if said]
    return Section(words("brief.heading"), points=points)


def _tried(view: View) -> list[str]:
    words, facts = view.words, view.results.evidence
    fixed = [each for each in view.tried if each.kind != "target"]
    counts = sorted({int(each.setting) for each in fixed})
    said = [
        words(
            "brief.tried.text",
            arms=len(view.tried),
            kinds=_kinds(view, fixed),
            tokens=words.join(str(count) for count in counts),
            learning=facts.learning,
            evidence=len(facts.names),
        )
    ]
    return [*said, words("brief.tried.references", kinds=_kinds(view, view.references))]


def _kinds(view: View, some: list[Candidate]) -> str:
    kinds = dict.fromkeys(each.kind for each in some)
    return view.words.join(view.words.name("kind", kind) for kind in kinds)


def _acceptable(view: View) -> list[str]:
    words = view.words
    criteria = [_criterion(view, c) for c in view.results.criteria]
    said = words("brief.criteria.text", criteria=words.join(criteria), confidence=view.confidence)
    return [said]


def _criterion(view: View, criterion: Criterion) -> str:
    name = view.metric(criterion.metric)
    return view.words("criterion", name=name, limit=view.limit(criterion))


def _recommended(view: View) -> list[str]:
    words, best = view.words, view.shown
    advice = view.results.recommendation
    if view.recommended:
        kind = words.name("kind", best.kind)
        said = [words("brief.recommended.arm", arm=best.name, kind=kind, tokens=view.size(best))]
        why = {"pca": "pca", "shipped": "shipped", "target": "target"}.get(best.kind)
        if why:
            said.append(words(f"brief.recommended.{why}"))
        cheaper = [name for name in advice.cheaper_failed if advice.cheaper_failed[name]]
        if cheaper:
            metrics = words.join(map(view.metric, advice.cheaper_failed[cheaper[-1]]))
            next_one = {"count": len(cheaper), "arm": cheaper[-1], "metrics": metrics}
            return [*said, words("brief.recommended.cheaper", **next_one)]
        return [*said, words("brief.recommended.cheapest")]
    failing = [
        words("count", name=view.metric(metric), count=count)
        for metric, count in advice.failing.items()
    ]
    said = [words("brief.recommended.none", arms=len(view.tried), failing=words.join(failing))]
    said.append(words("brief.recommended.best", arm=best.name))
    if advice.needed:
        lacking = [
            words(
                "brief.evidence.one",
                metric=view.metric(lack.outcome.metric),
                value=view.measured(lack.outcome.metric, lack.figure.value),
                groups=lack.figure.groups,
                bound=view.measured(lack.outcome.metric, lack.outcome.bound),
                least=view.limit(lack.outcome),
                needed=lack.groups,
            )
            for lack in advice.needed
        ]
        said += [words("brief.evidence"), *lacking, words("brief.evidence.mend")]
    elif advice.limit is None:
        missed = [
            view.metric(one.metric)
            for one in best.verdict.criteria
            if one.value is not None and not one.met
        ]
        if missed:
            said.append(words("brief.recommended.misses", metrics=words.join(missed)))
    return said


def _saved(view: View) -> list[str]:
    words, best = view.words, view.shown
    said = []
    if view.today and best.bytes:
        share = view.measured("accuracy", 1 - best.bytes / view.today.bytes)
        sizes = {"bytes": round(best.bytes), "today": round(view.today.bytes)}
        said.append(words("brief.saved.bytes", share=share, **sizes))
    longest = max((each.tokens or 0.0) for each in view.tried)
    if best.tokens and longest > best.tokens:
        share = view.measured("accuracy", best.tokens / longest)
        said.append(words("brief.saved.tokens", longest=f"{longest:g}", share=share))
    return said


def _lost(view: View) -> list[str]:
    words, best, before = view.words, view.shown, view.results.originals
    said = []
    for metric in ("defect_recall", "accuracy"):
        original, after = before.metrics.get(metric), best.metrics.get(metric)
        if original and after:
            values = {
                "before": view.measured(metric, original.value),
                "after": view.measured(metric, after.value),
                "interval": view.span(metric, after),
            }
            said.append(words(f"brief.lost.{metric}", **values))
    contrast = best.metrics.get("contrast_kept")
    if contrast:
        value = view.measured("contrast_kept", contrast.value)
        said.append(words("brief.lost.contrast", value=value))
        smallest = best.metrics.get("smallest_surviving")
        if smallest:
            sizes = {
                "study": view.measured("smallest_surviving", smallest.value),
                "original": view.measured("smallest_surviving", best.smallest_in_file),
            }
            said.append(words("brief.lost.smallest", **sizes))
        else:
            said.append(words("brief.lost.smallest_none"))
    value = view.measured("psnr", value_of(best, "psnr"))
    return [*said, words("brief.lost.psnr", value=value), *_rivals(view)]


def _rivals(view: View) -> list[str]:
    """Other models of as many tokens, by PSNR."""
    words, best = view.words, view.shown
    named = [
        words("rival", arm=each.name, value=view.measured("psnr", value_of(each, "psnr")))
        for each in view.tried
        if each.tokens == best.tokens and each.name != best.name and each.kind != "target"
    ]
    return [words("brief.lost.rivals", rivals=words.join(named))] if named else []


def _cost(view: View) -> list[str]:
    words, best = view.words, view.shown
    if best.cost is None or best.cost.total.low is None:
        return []
    values = {
        "value": view.money(best.cost.total.value),
        "low": view.money(best.cost.total.low),
        "high": view.money(best.cost.total.high),
        "confidence": view.confidence,
        "parts": PARTS,
    }
    said = [words("brief.cost.text", **values)]
    if view.today and view.today.cost:
        said.append(words("brief.cost.today", value=view.money(view.today.cost.total.value)))
        if best.payback is None:
            said.append(words("brief.cost.never"))
        else:
            said.append(words("brief.cost.payback", months=view.number(best.payback, 1)))
    return said


def _risk(view: View) -> list[str]:
    words, facts, best = view.words, view.results.evidence, view.shown
    said = []
    lost = best.metrics.get("recall_lost")
    if lost and lost.high is not None:
        missed = max(0, math.ceil(100 * lost.high - 1e-9))
        said.append(words("brief.risk.missed", missed=missed))
    recall = view.results.originals.metrics.get("defect_recall")
    alarms = view.results.originals.metrics.get("false_alarms")
    if recall and alarms:
        values = {
            "recall": view.measured("defect_recall", recall.value),
            "alarms": view.measured("false_alarms", alarms.value),
        }
        said.append(words("brief.risk.judge", **values))
    if facts.judge is None:
        said.append(words("brief.risk.nothing"))
    for one in best.warnings:
        values = {"metric": view.metric(one.metric), "value": view.measured(one.metric, one.value)}
        key = "dropin" if one.metric.startswith("dropin") else "warning"
        said.append(words(f"brief.risk.{key}", **values))
    groups = len(set(facts.groups))
    said.append(words("brief.risk.photos", val=len(facts.names), groups=groups))
    leaks = len(facts.facts.leaks) - facts.facts.dropped
    return [*said, words("brief.risk.leaks", leaks=leaks)] if leaks > 0 else said


def _next(view: View) -> list[str]:
    words, best = view.words, view.shown
    kind = model_kind(best)
    settings = view.results.settings
    folder = settings.init if kind == models.SHIPPED else str(view.out / "models" / kind)
    said = [words("brief.next.plan" if view.recommended else "brief.next.shadow")]
    budget = "--psnr" if best.kind == "target" else "--tokens"
    tile = " --tile auto" if view.results.evidence.tile.native else ""
    command = f"softvq encode --tokenizer {folder} {budget} {best.setting}{tile}"
    return [*said, words("brief.next.command", command=command)]


# ---- results.csv ----


def _csv(candidates: list[Candidate]) -> str:
    """One row for each candidate, unrounded: what it is, every figure with its interval."""
    rows = [_row(each) for each in candidates]
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(each: Candidate) -> dict[str, object]:
    row: dict[str, object] = {"name": each.name, "kind": each.kind, "role": each.role}
    row |= {"setting": each.setting, "tokens": each.tokens, "floats": each.floats}
    row |= {"bytes": each.bytes, "holds": each.role == "candidate" and each.verdict.holds}
    row["fails"] = " ".join(one.metric for one in each.verdict.criteria if not one.holds)
    if each.cost:
        total = each.cost.total
        row |= {"cost": total.value, "cost_low": total.low, "cost_high": total.high}
    for metric, figure in each.metrics.items():
        row[metric] = figure and figure.value
        if figure and figure.groups is not None:
            ends = {"low": figure.low, "high": figure.high, "n": figure.n, "groups": figure.groups}
            row |= {f"{metric}_{key}": value for key, value in ends.items()}
    return row | {"smallest_surviving_in_file": each.smallest_in_file}
