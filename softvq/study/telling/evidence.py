"""The evidence behind the report's first page: charts, tables, data, method, limits."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

from softvq.report import Figure, Point, Section, Slider, Table, WhatIf, WhatIfRow, scatter_chart
from softvq.study.deciding.costs import PARTS
from softvq.study.records import Candidate, Outcome, Prices, Remark
from softvq.study.telling.view import View, digits_of, unit_of
from softvq.study.telling.words import Words

SLID = ("defect_rate", "missed_defect", "false_alarm", "storage", "compute")


def frontier(view: View) -> Section:
    """Quality over tokens, over bytes with the files beside, and over what it costs."""
    words = view.words
    metrics = ["psnr", view.quality] if view.quality else ["psnr"]
    figures = []
    everything = view.results.candidates
    axes: list[tuple[str, Sequence[Candidate], Callable[[Candidate], float | None]]] = [
        ("tokens", view.tried, lambda c: c.tokens),
        ("bytes", everything, lambda c: c.bytes),
    ]
    if view.results.prices and view.quality:
        axes.append(("cost", everything, lambda c: c.cost.total.value if c.cost else None))
    for cost, some, x_of in axes:
        for metric in metrics if cost != "cost" else [str(view.quality)]:
            uri = _chart(view, some, x_of, words(f"frontier.{cost}"), metric)
            name = view.metric(metric)
            caption = words(f"frontier.by_{cost}", metric=name)
            alt = words("frontier.alt", metric=name, cost=words(f"frontier.{cost}"))
            figures.append(Figure(uri, caption, alt))
    text = words("frontier.text", confidence=view.confidence)
    return Section(words("frontier.heading"), [text], figures=figures, page=True)


def _chart(
    view: View,
    some: Sequence[Candidate],
    x_of: Callable[[Candidate], float | None],
    x_label: str,
    metric: str,
) -> str:
    words = view.words
    hundred = 100 if unit_of(metric)[0] == "share" else 1
    series: dict[str, list[Point]] = {}
    joined = []
    for each in some:
        figure, x = each.metrics.get(metric), x_of(each)
        if figure is None or not x:
            continue
        low, high = (None if end is None else hundred * end for end in (figure.low, figure.high))
        point = Point(x, hundred * figure.value, low, high, hollow=each.role == "reference")
        series.setdefault(words.name("kind", each.kind), []).append(point)
        if each.role == "candidate":
            joined.append(point)
    line = (words("frontier.line"), joined)
    return scatter_chart(series, x_label, view.header(metric), line, words.lang)


def what_if(view: View) -> Section | None:
    """What it costs, and what is recommended at other prices and limits."""
    words, prices = view.words, view.results.prices
    tables = [_moves(view)]
    if prices is None:
        return Section(words("whatif.heading"), [words("whatif.none")], tables=tables)
    header = (
        "arm",
        "cost",
        "cost_missed",
        "cost_alarms",
        "cost_storage",
        "cost_compute",
        "payback",
    )
    rows = [
        [
            ("★ " if c is view.recommended else "") + c.name,
            _interval(view, c),
            *map(view.money, (c.cost.missed, c.cost.alarms, c.cost.storage, c.cost.compute)),
            view.number(c.payback, 1),
        ]
        for c in view.results.candidates
        if c.cost
    ]
    said = {"parts": PARTS, "confidence": view.confidence}
    costs = Table([words(f"column.{key}") for key in header], rows, words("whatif.costs", **said))
    sliders = [
        Slider(name, words.name("price", name), getattr(prices, name))
        for name in SLID
        if getattr(prices, name)
    ]
    widget = WhatIf(
        sliders,
        [_whatif_row(view, c, prices) for c in view.results.candidates if c.cost],
        [words("column.arm"), words("column.cost"), words("column.holds")],
        prices.currency,
    )
    text = [words("whatif.text", parts=PARTS)]
    return Section(words("whatif.heading"), text, tables=[costs, *tables], whatif=widget)


def _interval(view: View, candidate: Candidate) -> str:
    total = candidate.cost.total if candidate.cost else None
    if total is None:
        return view.words("nothing")
    value, low, high = map(view.money, (total.value, total.low, total.high))
    return view.words("interval", value=value, low=low, high=high)


def _whatif_row(view: View, candidate: Candidate, prices: Prices) -> WhatIfRow:
    """What each price is multiplied with, per 10,000 parts."""
    photos = PARTS * prices.photos_per_part
    recall, alarms = (candidate.metrics.get(m) for m in ("defect_recall", "false_alarms"))
    seconds = sum(1 / x for x in (candidate.speed.encode, candidate.speed.decode) if x)
    return WhatIfRow(
        name=candidate.name,
        holds=candidate.role == "candidate" and candidate.verdict.holds,
        missed=PARTS * (1 - recall.value) if recall else 0.0,
        alarms=PARTS * alarms.value if alarms else 0.0,
        storage=photos * candidate.bytes / 1e9 * prices.months,
        compute=photos * seconds / 3600,
    )


def _moves(view: View) -> Table:
    words = view.words
    rows = []
    for move in view.results.recommendation.moves:
        price = words.name("price", move.what)
        name = price if price != move.what else view.metric(move.what)
        rows.append(
            [name, words("times", factor=f"{move.factor:g}"), move.name or words("fact.none")]
        )
    header = [words("column.what"), words("column.factor"), words("column.recommended")]
    return Table(header, rows, words("whatif.moves"))


def all_candidates(view: View) -> Section:
    words, criteria = view.words, view.results.criteria
    said = {"confidence": view.confidence}
    verdicts = Table(
        [
            *(words(f"column.{key}") for key in ("arm", "verdict", "tokens", "floats", "bytes")),
            *(words("bracket", value=view.header(c.metric), more=view.limit(c)) for c in criteria),
        ],
        [_verdict_row(view, each) for each in view.results.candidates],
        words("arms.verdicts", **said),
    )
    measures = Table(
        [words("column.arm"), *map(view.header, view.metrics)],
        [
            [each.name, *(view.cell(m, each.metrics.get(m)) for m in view.metrics)]
            for each in view.results.candidates
        ],
        words("arms.measures", confidence=view.confidence, method=words("method.heading")),
    )
    speeds = Table(
        [words(f"column.{key}") for key in ("arm", "encode_speed", "decode_speed")],
        [
            [each.name, view.number(each.speed.encode, 1), view.number(each.speed.decode, 1)]
            for each in view.tried
            if each.speed.encode
        ],
        words("arms.cost"),
    )
    return Section(words("arms.heading"), tables=[verdicts, measures, speeds])


def _verdict_row(view: View, candidate: Candidate) -> list[str]:
    words = view.words
    if candidate.role == "candidate":
        verdict = words("verdict.pass" if candidate.verdict.holds else "verdict.fail")
        cells = [_outcome(view, one) for one in candidate.verdict.criteria]
    else:
        verdict = words("verdict.reference")
        cells = [
            view.cell(c.metric, candidate.metrics.get(c.metric)) for c in view.results.criteria
        ]
    star = "★ " if candidate is view.recommended else ""
    floats, count = view.number(candidate.floats), view.number(candidate.bytes)
    return [star + candidate.name, verdict, view.size(candidate), floats, count, *cells]


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


def budgets(view: View) -> Section | None:
    """Tokens by photo: how many each class takes, and which photos take most."""
    words = view.words
    targets = [each for each in view.tried if each.by_class]
    if not targets:
        return None
    classes = view.results.evidence.classes[:12]
    rows = [
        [
            each.name,
            view.number(each.tokens, 1),
            view.cell("psnr", each.metrics.get("psnr")),
            *(view.number(each.by_class.get(name), 1) for name in classes),
        ]
        for each in targets
    ]
    header = [words("column.arm"), words("column.tokens"), view.header("psnr"), *classes]
    names = view.results.evidence.names
    notes = [
        words("budget.most", arm=each.name, names=words.join(names[i] for i in each.most_tokens))
        for each in targets
    ]
    table = Table(header, rows, words("budget.caption"))
    return Section(words("budget.heading"), [words("budget.text")], tables=[table], notes=notes)


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
        [words("column.diameter"), *(each.name for each in view.pictured)],
        [
            [
                size,
                *(
                    view.cell("regions_surviving", each.by_size[k].surviving)
                    for each in view.pictured
                ),
            ]
            for k, size in enumerate(sizes)
        ],
        words("size.all"),
    )
    text = [words("size.text")]
    unmarked = view.results.evidence.unmarked
    if unmarked:
        text.append(words("size.unmarked", unmarked=unmarked))
    return Section(words("size.heading"), text, tables=[one, every])


def by_class(view: View) -> Section | None:
    words, best, before = view.words, view.shown, view.results.originals
    if before.confusion is None:
        return None
    rows = [
        [
            name,
            view.number(figures.n),
            view.cell("accuracy", before.per_class[name].recall),
            view.cell("accuracy", figures.recall),
            view.cell("psnr", figures.psnr),
        ]
        for name, figures in best.per_class.items()
        if figures.n
    ]
    columns = ("class", "photos", "recall_before", "recall_after")
    recall = Table(
        [*(words(f"column.{key}") for key in columns), view.header("psnr")],
        rows,
        words("class.recall", arm=best.name, confidence=view.confidence),
    )
    return Section(words("class.heading"), tables=[recall])


def subgroups(view: View) -> Section | None:
    words, best = view.words, view.shown
    if not best.subgroups:
        return None
    known = ("psnr", "defect_recall", "false_alarms", "accuracy")
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
    words, evidence, settings = view.words, view.results.evidence, view.results.settings
    data, (height, width) = evidence.facts, evidence.size
    widths, heights = (
        words.join(f"{n:,.0f}" for n in side) for side in (data.sizes.width, data.sizes.height)
    )
    how = words("data.native" if evidence.tile.native else f"data.fit.{settings.fit}")
    fitted = {"study": words("by", a=width, b=height), "how": how}
    said = [words("data.sizes", width=widths, height=heights, **fitted)]
    group = data.group
    grouped = "none" if group is None else "stem" if group == "stem" else "column"
    said.append(words(f"data.group.{grouped}", group=group))
    tile = evidence.tile
    share = view.measured("accuracy", tile.values["small"])
    limit = view.measured("smallest_surviving", tile.values["limit"])
    said.append(words(f"tile.{tile.why}", share=share, limit=limit))
    said.append(words("data.evidence", evidence=len(evidence.names), learning=evidence.learning))
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
    words, data = view.words, view.results.evidence.facts
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
    words, evidence = view.words, view.results.evidence
    height, width = evidence.size
    text = [words("method.training", size=words("by", a=width, b=height))]
    if evidence.judge:
        text += [words(f"method.judge.{evidence.judge}"), words("method.two")]
    text += [
        words("method.pca"),
        words("method.references"),
        words("method.bytes"),
        words("method.intervals", confidence=view.confidence),
        words("method.choice.money" if view.results.prices else "method.choice"),
    ]
    points = [
        (view.metric(metric), words.name("means", metric))
        for metric in view.metrics
        if words.has(f"means.{metric}")  # the user's own need no explanation
    ]
    return Section(words("method.heading"), text, points=points)


def limits(view: View) -> Section:
    words, results = view.words, view.results
    evidence = results.evidence
    groups = len(set(evidence.groups))
    notes = [
        words("limits.seed", seed=str(results.settings.seed)),
        words("limits.held_out", val=len(evidence.names), groups=groups),
    ]
    recall = results.originals.metrics.get("defect_recall")
    alarms = results.originals.metrics.get("false_alarms")
    if recall and alarms:
        found = view.measured("defect_recall", recall.value)
        notes.append(
            words("limits.judge", recall=found, alarms=view.measured("accuracy", alarms.value))
        )
    reduced = evidence.facts.sizes.reduced
    if reduced[1] > 1.05 and not evidence.tile.native:
        notes.append(words("limits.reduced", factor=f"{reduced[1]:.1f}"))
    if results.left_out:
        left_out = words.join(map(str, results.left_out))
        notes.append(words("limits.counts", left_out=left_out))
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
        words("repeat.again"),
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
