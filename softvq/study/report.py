"""The study's report: one page that decides, and the evidence behind it, in one HTML file.

results.json + names.json + pictures -> report.html, results.csv. Nothing is measured here and no
verdict is reached here: every figure and every verdict is results.json's.
"""

import csv
import io
import json
import math
from pathlib import Path

from softvq.errors import UserError
from softvq.io import write_atomically
from softvq.report import Report, Section, write_report
from softvq.study import evidence, gallery
from softvq.study.reading import Facts, Study, digits_of, unit_of, value_of
from softvq.study.texts import Words


def write_reports(out: Path, lang: str = "en") -> Path:
    """Write ``out/report.html`` and ``out/results.csv`` from the study in ``out``.

    ``lang``: 'en' or 'ja'. Returns the report's path. Raises UserError for another language, and
    if there is no finished study in ``out``.
    """
    words = Words(lang)
    if not (out / "results.json").is_file():
        raise UserError(f"{out}: no results.json there; run softvq study to its end first")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    names = json.loads((out / "names.json").read_text(encoding="utf-8"))["names"]
    study = Study(out, results, names, words)
    report = Report(
        title=words("title"),
        summary=_summary(study),
        facts=_facts(study),
        sections=[section for section in _sections(study) if section is not None],
        footer=words("footer", version=results["version"]),
        lang=lang,
    )
    write_report(report, out / "report.html")
    write_atomically(out / "results.csv", _csv(results["arms"]))
    return out / "report.html"


# ---- the top ----


def _summary(study: Study) -> str:
    words, arm = study.words, study.recommended
    if arm:
        size = {"tokens": arm["tokens"], "bytes": round(arm["bytes"])}
        return words("summary.arm", arm=arm["name"], confidence=study.confidence, **size)
    said = [words("summary.none", arms=len(study.final), confidence=study.confidence)]
    if study.results["recommendation"]["limit"] == "evidence":
        said.append(words("summary.thin"))
    return words.prose(said)


def _facts(study: Study) -> list[tuple[str, str]]:
    words, arm = study.words, study.shown
    height, width = study.results["settings"]["size"]
    if study.recommended:
        facts = [
            (
                words("fact.tokens", tokens=arm["tokens"]),
                words("fact.tokens.label", arm=arm["name"]),
            )
        ]
    else:
        facts = [(words("fact.none"), words("fact.none.label", arm=arm["name"]))]
    facts.append((f"{height * width * 3:,} → {arm['floats']:,}", words("fact.floats.label")))
    for metric, label in (
        ("defect_kept", "kept"),
        ("contrast_kept", "contrast"),
        ("psnr", "psnr"),
    ):
        figure = arm["metrics"].get(metric)
        if figure and figure.get("low") is not None:
            unit, digits = unit_of(metric)
            low = digits_of(unit, digits, figure["low"])
            high = study.measured(metric, figure["high"])
            value = study.measured(metric, figure["value"])
            facts.append((value, words(f"fact.{label}.label", low=low, high=high)))
    smallest = value_of(arm, "smallest_surviving")
    if smallest is not None:
        value = study.measured("smallest_surviving", smallest)
        facts.append((value, words("fact.smallest.label")))
    if study.needed:
        criterion, figure, needed = max(study.needed, key=lambda lacking: lacking[2])
        said = {"metric": study.metric(criterion["metric"]), "groups": figure["groups"]}
        facts.append((words("fact.needed", needed=needed), words("fact.needed.label", **said)))
    return facts


def _sections(study: Study) -> list[Section | None]:
    return [
        _brief(study),
        evidence.frontier(study),
        evidence.all_arms(study),
        gallery.worst_cases(study),
        gallery.defect_crops(study),
        evidence.by_size(study),
        evidence.by_class(study),
        evidence.robustness(study),
        evidence.subgroups(study),
        evidence.data_section(study),
        evidence.method(study),
        evidence.limits(study),
        evidence.repeat(study),
    ]


# ---- one page for the manager ----


def _brief(study: Study) -> Section:
    words = study.words
    parts = {
        "about": [words("brief.about.text")],
        "tried": _tried(study),
        "criteria": _acceptable(study),
        "recommended": _recommended(study),
        "saved": _saved(study),
        "lost": _lost(study),
        "risk": _risk(study),
    }
    points = [(words(f"brief.{key}"), words.prose(said)) for key, said in parts.items() if said]
    return Section(words("brief.heading"), points=points)


def _tried(study: Study) -> list[str]:
    words, splits = study.words, study.results["data"]["splits"]
    tokens = sorted({arm["tokens"] for arm in study.learned})
    said = [
        words(
            "brief.tried.text",
            arms=len(study.learned),
            kinds=_kinds(study, learned=True),
            tokens=words.join(str(n) for n in tokens),
            train=splits["train"]["photos"],
            val=splits["val"]["photos"],
        )
    ]
    stopped = len(study.learned) - len(study.final)
    if stopped:
        said.append(words("brief.tried.stopped", stopped=stopped))
    if study.baselines:
        said.append(words("brief.tried.baselines", kinds=_kinds(study, learned=False)))
    return said


def _kinds(study: Study, learned: bool) -> str:
    arms = study.results["arms"]
    kinds = dict.fromkeys(arm["kind"] for arm in arms if arm["learned"] == learned)
    return study.words.join(study.words.name("kind", kind) for kind in kinds)


def _acceptable(study: Study) -> list[str]:
    words = study.words
    criteria = [_criterion(study, c) for c in study.results["settings"]["criteria"]]
    if not criteria:
        return [words("brief.criteria.none")]
    said = words("brief.criteria.text", criteria=words.join(criteria), confidence=study.confidence)
    return [said]


def _criterion(study: Study, criterion: Facts) -> str:
    name = study.metric(criterion["metric"])
    return study.words("criterion", name=name, limit=study.limit(criterion))


def _recommended(study: Study) -> list[str]:
    words, arm = study.words, study.shown
    advice = study.results["recommendation"]
    if study.recommended:
        kind = words.name("kind", arm["kind"])
        shape = {"tokens": arm["tokens"], "channels": arm["channels"]}
        said = [words("brief.recommended.arm", arm=arm["name"], kind=kind, **shape)]
        # Those that were stopped early are no candidates, whatever they miss.
        final = [a["name"] for a in study.final]
        cheaper = [failed for failed in advice["cheaper_failed"] if failed["arm"] in final]
        if cheaper:
            metrics = words.join(map(study.metric, cheaper[-1]["metrics"]))
            next_one = {"count": len(cheaper), "arm": cheaper[-1]["arm"], "metrics": metrics}
            return [*said, words("brief.recommended.cheaper", **next_one)]
        return [*said, words("brief.recommended.cheapest")]
    failing = [
        words("count", name=study.metric(metric), count=count)
        for metric, count in advice["failing"].items()
    ]
    said = [words("brief.recommended.none", arms=len(study.learned), failing=words.join(failing))]
    said.append(words("brief.recommended.best", arm=arm["name"]))
    if study.needed:
        lacking = [
            words(
                "brief.evidence.one",
                metric=study.metric(criterion["metric"]),
                value=study.measured(criterion["metric"], figure["value"]),
                groups=figure["groups"],
                bound=study.measured(criterion["metric"], criterion["bound"]),
                least=study.limit(criterion),
                needed=needed,
            )
            for criterion, figure, needed in study.needed
        ]
        said += [words("brief.evidence"), *lacking, words("brief.evidence.mend")]
    return said


def _saved(study: Study) -> list[str]:
    words, arm = study.words, study.shown
    height, width = study.results["settings"]["size"]
    pixels = height * width * 3
    times = f"{pixels / arm['floats']:,.0f}"
    said = [words("brief.saved.numbers", pixels=pixels, floats=arm["floats"], times=times)]
    longest = max(study.learned, key=lambda a: a["tokens"])
    if longest["tokens"] > arm["tokens"]:
        share = arm["cost"]["generator_gflops"] / longest["cost"]["generator_gflops"]
        share_ = words("unit.share", value=digits_of("share", 0, share))
        said.append(words("brief.saved.tokens", longest=longest["tokens"], share=share_))
    return said


def _lost(study: Study) -> list[str]:
    words, metrics = study.words, study.shown["metrics"]
    said = []
    kept = metrics.get("defect_kept")
    if kept:
        value, interval = (
            study.measured("defect_kept", kept["value"]),
            study.span("defect_kept", kept),
        )
        said.append(
            words("brief.lost.kept", value=value, interval=interval, confidence=study.confidence)
        )
    if study.seen and metrics.get("accuracy"):
        both = study.seen["accuracy"], metrics["accuracy"]
        before, after = (study.measured("accuracy", figure["value"]) for figure in both)
        said.append(words("brief.lost.accuracy", before=before, after=after))
    contrast = metrics.get("contrast_kept")
    if contrast:
        value = study.measured("contrast_kept", contrast["value"])
        said.append(words("brief.lost.contrast", value=value))
        smallest = metrics.get("smallest_surviving")
        if smallest:
            sizes = {
                "study": study.measured("smallest_surviving", smallest["study_px"]),
                "original": study.measured("smallest_surviving", smallest["original_px"]),
            }
            said.append(words("brief.lost.smallest", **sizes))
        else:
            said.append(words("brief.lost.smallest_none"))
    value = study.measured("psnr", value_of(study.shown, "psnr"))
    said.append(words("brief.lost.psnr", value=value))
    rival = study.rival
    if rival:
        metric = study.quality or "psnr"
        value = study.measured(metric, value_of(rival, metric))
        names = {"kind": words.name("kind", rival["kind"]), "metric": study.metric(metric)}
        said.append(words("brief.lost.baseline", value=value, **names))
    return said


def _risk(study: Study) -> list[str]:
    words, data = study.words, study.results["data"]
    said = []
    kept = study.shown["metrics"].get("defect_kept")
    if kept and kept["low"] is not None:
        missed = math.ceil(100 * (1 - kept["low"]) - 1e-9)
        said.append(words("brief.risk.missed", missed=missed))
    if study.seen and study.seen["defect_recall"]:
        recall = study.measured("defect_recall", study.seen["defect_recall"]["value"])
        said.append(words("brief.risk.recall", recall=recall))
        if study.alarms:
            said.append(words("alarms", alarms=study.alarms))
    elif not study.seen:
        said.append(words("brief.risk.nothing"))
    val = data["splits"]["val"]
    said.append(words("brief.risk.photos", val=val["photos"], groups=val["groups"]))
    leaks = len(data["leaks"]) - data["dropped"]
    return [*said, words("brief.risk.leaks", leaks=leaks)] if leaks > 0 else said


# ---- results.csv ----


def _csv(arms: list[Facts]) -> str:
    """One row for each arm, unrounded: what it is, every figure with its interval, the verdict."""
    rows = [_row(arm) for arm in arms]
    columns = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(arm: Facts) -> Facts:
    named = ("name", "kind", "learned", "of", "tokens", "channels", "floats", "bytes", "setting")
    row = {key: arm[key] for key in named}
    row["held"] = " ".join(arm["held"])
    row |= {"fits": arm["fits"], "images_seen": arm["images_seen"]}
    row["stopped_by"] = arm["stopped"]["by"] if arm["stopped"] else None
    verdict = arm.get("verdict")
    row["holds"] = verdict["holds"] if verdict else None
    row["fails"] = (
        " ".join(c["metric"] for c in verdict["criteria"] if not c["holds"]) if verdict else None
    )
    for metric, figure in arm["metrics"].items():
        for key, value in (figure or {"value": None}).items():
            row[metric if key == "value" else f"{metric}_{key}"] = value
    return row | (arm.get("cost") or {})
