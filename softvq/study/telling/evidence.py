"""The evidence behind the report's first page: charts, tables, data, method, limits."""

from collections.abc import Sequence
from dataclasses import asdict, astuple

from softvq.report import Figure, Point, Section, Table, scatter_chart
from softvq.study.records import ArmResult, BaselineResult, Outcome, Remark, Result
from softvq.study.telling.view import View, digits_of, unit_of
from softvq.study.telling.words import Words
from softvq.study.trying.arms import MARGIN_DB

APART = 0.07  # octaves between marks of one token count


def frontier(view: View) -> Section:
    words = view.words
    metrics = ["psnr", view.quality] if view.quality else ["psnr"]
    figures = []
    shown: dict[str, Sequence[Result]] = {"tokens": view.learned, "bytes": view.arms}
    for cost, arms in shown.items():
        for metric in metrics:
            uri = _chart(view, arms, cost, metric)
            name = view.metric(metric)
            caption = words(f"frontier.by_{cost}", metric=name)
            alt = words("frontier.alt", metric=name, cost=words(f"frontier.{cost}"))
            figures.append(Figure(uri, caption, alt))
    text = words("frontier.text", confidence=view.confidence)
    return Section(words("frontier.heading"), [text], figures=figures, page=True)


def _chart(view: View, arms: Sequence[Result], cost: str, metric: str) -> str:
    words = view.words
    hundred = 100 if unit_of(metric)[0] == "share" else 1
    kinds = dict.fromkeys(arm.kind for arm in view.results.arms)
    series: dict[str, list[Point]] = {words.name("kind", kind): [] for kind in kinds}
    trained = []
    for arm in arms:
        figure = arm.metrics.get(metric)
        if figure is None:
            continue
        x, label, stopped = arm.bytes, "", False
        if isinstance(arm, ArmResult):
            stopped = arm.stopped is not None
            if cost == "tokens":
                same = [a.name for a in view.learned if a.tokens == arm.tokens]
                x = arm.tokens * 2 ** (APART * (same.index(arm.name) - (len(same) - 1) / 2))
            else:
                label = str(arm.tokens)
        low, high = (None if end is None else hundred * end for end in (figure.low, figure.high))
        point = Point(x, hundred * figure.value, low, high, label, hollow=stopped)
        series[words.name("kind", arm.kind)].append(point)
        if arm.learned and not stopped:
            trained.append(point)
    series = {name: points for name, points in series.items() if points}
    line = (words("frontier.line"), trained)
    return scatter_chart(series, words(f"frontier.{cost}"), view.header(metric), line, words.lang)


def all_arms(view: View) -> Section:
    words = view.words
    criteria = view.results.criteria
    said = {"confidence": view.confidence, "fixed": words("column.held")}
    verdicts = Table(
        [
            *(words(f"column.{key}") for key in ("arm", "verdict", "tokens", "shape")),
            *(words(f"column.{key}") for key in ("floats", "bytes")),
            *(words("bracket", value=view.header(c.metric), more=view.limit(c)) for c in criteria),
            words("column.held"),
        ],
        [_verdict_row(view, arm) for arm in view.arms],
        words("arms.verdicts", **said),
    )
    measures = Table(
        [words("column.arm"), *map(view.header, view.metrics)],
        [
            [arm.name, *(view.cell(m, arm.metrics.get(m)) for m in view.metrics)]
            for arm in view.arms
        ],
        words("arms.measures", confidence=view.confidence, method=words("method.heading")),
    )
    speeds = view.results.speeds
    columns = (
        *("arm", "parameters", "encode", "decode", "generator"),
        *("encode_speed", "decode_speed", "seen"),
    )
    costs = Table(
        [words(f"column.{key}") for key in columns],
        [
            [
                arm.name,
                view.number(arm.cost.parameters / 1e6, 2),
                view.number(arm.cost.encode_gflops, 3),
                view.number(arm.cost.decode_gflops, 3),
                view.number(arm.cost.generator_gflops, 2),
                *map(
                    view.number, astuple(speeds[arm.name]) if arm.name in speeds else (None, None)
                ),
                view.number(arm.images_seen),
            ]
            for arm in view.learned
        ],
        words("arms.cost"),
    )
    return Section(words("arms.heading"), tables=[verdicts, measures, costs])


def _verdict_row(view: View, arm: Result) -> list[str]:
    words, criteria = view.words, view.results.criteria
    if isinstance(arm, ArmResult):
        star = "★ " if arm is view.recommended else ""
        tokens = view.number(arm.tokens)
        cells = [_outcome(view, one) for one in arm.verdict.criteria]
        held = words.join(words.name("held", held) for held in arm.held)
    else:
        star, tokens, held = "", view.number(None), words("nothing")
        cells = [view.cell(c.metric, arm.metrics.get(c.metric)) for c in criteria]
    size = [view.shape(arm), view.number(arm.floats), view.number(arm.bytes)]
    return [star + arm.name, _verdict(view, arm), tokens, *size, *cells, held]


def _outcome(view: View, outcome: Outcome) -> str:
    words = view.words
    mark = words("pass" if outcome.holds else "fail")
    if outcome.value is None:
        return f"{mark} {words.name('why', str(outcome.why))}"
    unit, digits = unit_of(outcome.metric)
    value = digits_of(unit, digits, outcome.value)
    if outcome.bound is None or outcome.bound == outcome.value:
        return f"{mark} {value}"
    bound = digits_of(unit, digits, outcome.bound)
    return f"{mark} {words('bracket', value=value, more=bound)}"


def _verdict(view: View, arm: Result) -> str:
    words = view.words
    if isinstance(arm, BaselineResult):
        return words("verdict.reference" if arm.fits else "verdict.unfit", of=arm.of)
    if arm.stopped:
        return words("verdict.stopped", by=arm.stopped.by, gap=f"{arm.stopped.gap_db:.1f}")
    return words("verdict.pass" if arm.verdict.holds else "verdict.fail")


def by_size(view: View) -> Section | None:
    words, best = view.words, view.shown
    if not best.by_size:
        return None
    sizes = [words("range", low=f"{b.low:.1f}", high=f"{b.high:.1f}") for b in best.by_size]
    heads = [view.header(m) for m in ("contrast_kept", "regions_surviving", "psnr_inside")]
    one = Table(
        [words("column.diameter"), words("column.defects"), *heads],
        [
            [
                size,
                view.number(some.n),
                view.cell("contrast_kept", some.contrast),
                view.cell("regions_surviving", some.surviving),
                view.cell("psnr_inside", some.psnr),
            ]
            for size, some in zip(sizes, best.by_size, strict=True)
        ],
        best.name,
    )
    every = Table(
        [words("column.diameter"), *(arm.name for arm in view.final)],
        [
            [size, *(view.cell("regions_surviving", a.by_size[k].surviving) for a in view.final)]
            for k, size in enumerate(sizes)
        ],
        words("size.all"),
    )
    text = [words("size.text")]
    unmarked = view.results.originals.unmarked
    if unmarked:
        text.append(words("size.unmarked", unmarked=unmarked))
    return Section(words("size.heading"), text, tables=[one, every])


def by_class(view: View) -> Section | None:
    words, best, before = view.words, view.shown, view.detected
    if not before:
        return None
    rows = [
        [
            name,
            view.number(figures.n),
            view.cell("defect_recall", before.per_class[name].recall),
            view.cell("defect_recall", figures.recall),
            view.cell("psnr", figures.psnr),
        ]
        for name, figures in best.per_class.items()
    ]
    columns = ("class", "photos", "recall_before", "recall_after")
    recall = Table(
        [*(words(f"column.{key}") for key in columns), view.header("psnr")],
        rows,
        words("class.recall", arm=best.name, confidence=view.confidence),
    )
    confusions = [
        _confusion(view, before.confusion, words("class.confusion_before")),
        _confusion(view, best.confusion, words("class.confusion_after", arm=best.name)),
    ]
    return Section(words("class.heading"), tables=[recall, *confusions])


def _confusion(view: View, counts: list[list[int]] | None, caption: str) -> Table:
    words, classes = view.words, view.results.originals.classes
    return Table(
        [words("column.true"), *(words("column.as", name=name) for name in classes)],
        [[name, *map(view.number, row)] for name, row in zip(classes, counts or [], strict=True)],
        caption,
    )


def robustness(view: View) -> Section | None:
    words, best = view.words, view.shown
    worse = best.robustness
    if not worse:
        return None
    known = ("psnr", "defect_kept", "accuracy", "contrast_kept")
    metrics = [m for m in known if any(figures.get(m) for figures in worse.values())]
    one = Table(
        [words("column.corruption"), *map(view.header, metrics)],
        [
            [words.name("corruption", name), *(view.cell(m, figures.get(m)) for m in metrics)]
            for name, figures in worse.items()
        ],
        best.name,
    )
    tables = [one]
    if view.quality and len(view.final) > 1:
        every = [
            [
                words.name("corruption", name),
                *(
                    view.cell(view.quality, arm.robustness[name].get(view.quality))
                    for arm in view.final
                ),
            ]
            for name in worse
        ]
        header = [words("column.corruption"), *(arm.name for arm in view.final)]
        caption = words("robust.all", metric=view.metric(view.quality))
        tables.append(Table(header, every, caption))
    text = words("robust.text", metric=view.metric("defect_kept"))
    return Section(words("robust.heading"), [text], tables=tables)


def subgroups(view: View) -> Section | None:
    words, best = view.words, view.shown
    if not best.subgroups:
        return None
    known = ("psnr", "defect_kept", "accuracy")
    tables = []
    for column, values in best.subgroups.items():
        metrics = [m for m in known if any(some.metrics.get(m) for some in values.values())]
        rows = [
            [
                value or words("nothing"),
                view.number(some.n),
                *(view.cell(m, some.metrics.get(m)) for m in metrics),
            ]
            for value, some in values.items()
        ]
        header = [column, words("column.photos"), *map(view.header, metrics)]
        caption = words("subgroup.caption", arm=best.name, column=column)
        tables.append(Table(header, rows, caption))
    return Section(words("subgroup.heading"), tables=tables)


def data_section(view: View) -> Section:
    words, data, settings = view.words, view.results.data, view.results.settings
    height, width = settings.size
    widths, heights = (
        words.join(f"{n:,.0f}" for n in side) for side in (data.sizes.width, data.sizes.height)
    )
    how = words(f"data.fit.{settings.fit}")
    fitted = {"study": words("by", a=width, b=height), "how": how}
    said = [words("data.sizes", width=widths, height=heights, **fitted)]
    group = data.group
    grouped = "none" if group is None else "stem" if group == "stem" else "column"
    said.append(words(f"data.group.{grouped}", group=group))
    if data.grey:
        said.append(words("data.grey"))
    if data.normal:
        said.append(words("data.normal", classes=words.join(data.normal)))
    splits = {"train": data.splits.train, "val": data.splits.val}
    classes = list(dict.fromkeys(name for split in splits.values() for name in split.classes))
    counts = Table(
        [words("column.split"), *classes, words("column.all"), words("column.groups")],
        [
            [
                words.name("split", split),
                *(view.number(facts.classes.get(name, 0)) for name in classes),
                view.number(facts.photos),
                view.number(facts.groups),
            ]
            for split, facts in splits.items()
        ],
        words("data.counts"),
    )
    notes = _found(view) or [words("data.clean")]
    notes += [_remark(words, remark) for remark in data.remarks]
    return Section(words("data.heading"), [words.prose(said)], tables=[counts], notes=notes)


def _found(view: View) -> list[str]:
    """What is wrong with files and pairs of files."""
    words, data = view.words, view.results.data
    skipped = [
        words("bracket", value=item.path, more=_reason(words, item.reason)) for item in data.skipped
    ]
    same = [" = ".join(names) for names in data.duplicates]
    near = [f"{pair.a} ≈ {pair.b}" for pair in data.near_duplicates]
    leaks = [
        words("data.leak", val=leak.val, train=leak.train, why=words.name("why", leak.why))
        for leak in data.leaks
    ]
    found = {
        "skipped": (skipped, len(skipped)),
        "duplicates": (same, len(same)),
        "near": (near, data.near_duplicates_count),
        "leaks": (leaks, len(leaks)),
    }
    notes = [
        view.listed(f"data.{key}", items, count) for key, (items, count) in found.items() if count
    ]
    if data.dropped:
        notes.append(words("data.dropped", count=data.dropped))
    return notes


def _reason(words: Words, reason: str) -> str:
    """Why a file is no photo; what stands behind a colon are the decoder's own words."""
    head, colon, rest = reason.partition(": ")
    said = words.name("reason", head)
    return words("colon", what=said, value=rest) if colon else said


def _remark(words: Words, remark: Remark) -> str:
    return words(f"remark.{remark.code}", **remark.values)


def method(view: View) -> Section:
    words = view.words
    height, width = view.results.settings.size
    text = [
        words("method.training", size=words("by", a=width, b=height)),
        words("method.stopping", margin=str(MARGIN_DB), confidence=view.confidence),
    ]
    if view.detected:
        text.append(words("method.detector"))
    if view.results.baselines:
        text.append(words("method.baselines"))
    text += [
        words("method.bytes"),
        words("method.intervals", confidence=view.confidence),
        words("method.choice"),
    ]
    points = [
        (view.metric(metric), words.name("means", metric))
        for metric in view.metrics
        if words.has(f"means.{metric}")  # the user's own need no explanation
    ]
    return Section(words("method.heading"), text, points=points)


def limits(view: View) -> Section:
    words, results = view.words, view.results
    val = results.data.splits.val
    notes = [
        words("limits.seed", seed=str(results.settings.seed)),
        words("limits.held_out", val=val.photos, groups=val.groups),
    ]
    if results.settings.init != "none":
        notes.append(words("limits.start", init=results.settings.init))
    before = view.detected
    if before and before.accuracy and before.defect_recall:
        recall = view.measured("defect_recall", before.defect_recall.value)
        accuracy = view.measured("accuracy", before.accuracy.value)
        said = [words("limits.detector", recall=recall, accuracy=accuracy)]
        if view.alarms:
            said.append(words("alarms", alarms=view.alarms))
        notes.append(words.prose(said))
    reduced = results.data.sizes.reduced
    if reduced[1] > 1.05:
        notes.append(words("limits.reduced", factor=f"{reduced[1]:.1f}"))
    notes += [words("limits.budget"), words("limits.many")]
    return Section(words("limits.heading"), notes=notes)


def repeat(view: View) -> Section:
    words, results = view.words, view.results
    machine = words.join(
        words("colon", what=words.name("machine", key), value=str(value))
        for key, value in asdict(results.machine).items()
    )
    text = [
        words("repeat.command", command=results.command),
        words("repeat.versions", version=results.version, machine=machine),
        words("repeat.files"),
    ]
    rows = [
        [words.name("time", key), _duration(words, seconds)]
        for key, seconds in results.times.items()
    ]
    times = Table([words("column.step"), words("column.time")], rows, words("repeat.times"))
    return Section(words("repeat.heading"), text, tables=[times] if rows else [])


def _duration(words: Words, seconds: float) -> str:
    if seconds < 90:
        return words("seconds", value=f"{seconds:.0f}")
    return words("minutes", value=f"{seconds / 60:.1f}")
