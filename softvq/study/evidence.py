"""The evidence behind the report's first page: charts, tables, data, method, limits."""

from softvq.report import Figure, Point, Section, Table, scatter_chart
from softvq.study.arms import MARGIN_DB
from softvq.study.reading import Facts, Study, digits_of, unit_of
from softvq.study.texts import TEXTS, Words

APART = 0.07  # octaves between marks of one token count


def frontier(study: Study) -> Section:
    words = study.words
    metrics = ["psnr", study.quality] if study.quality else ["psnr"]
    figures = []
    for cost, arms in (("tokens", study.learned), ("bytes", study.arms)):
        for metric in metrics:
            uri = _chart(study, arms, cost, metric)
            said = {"metric": study.metric(metric), "cost": words(f"frontier.{cost}")}
            caption = words(f"frontier.by_{cost}", metric=said["metric"])
            figures.append(Figure(uri, caption, words("frontier.alt", **said)))
    text = words("frontier.text", confidence=study.confidence)
    return Section(words("frontier.heading"), [text], figures=figures, page=True)


def _chart(study: Study, arms: list[Facts], cost: str, metric: str) -> str:
    words = study.words
    hundred = 100 if unit_of(metric)[0] == "share" else 1
    kinds = dict.fromkeys(arm["kind"] for arm in study.results["arms"])
    series: dict[str, list[Point]] = {words.name("kind", kind): [] for kind in kinds}
    trained = []
    for arm in arms:
        figure = arm["metrics"].get(metric)
        if figure is None or arm[cost] is None:
            continue
        x = float(arm[cost])
        if cost == "tokens":
            same = [a["name"] for a in arms if a["tokens"] == arm["tokens"]]
            x *= 2 ** (APART * (same.index(arm["name"]) - (len(same) - 1) / 2))
        low, high = (
            None if figure[end] is None else hundred * figure[end] for end in ("low", "high")
        )
        label = str(arm["tokens"]) if arm["learned"] and cost == "bytes" else ""
        y = hundred * figure["value"]
        point = Point(x, y, low, high, label, hollow=bool(arm["stopped"]))
        series[words.name("kind", arm["kind"])].append(point)
        if arm["learned"] and not arm["stopped"]:
            trained.append(point)
    series = {name: points for name, points in series.items() if points}
    line = (words("frontier.line"), trained)
    return scatter_chart(series, words(f"frontier.{cost}"), study.header(metric), line, words.lang)


def all_arms(study: Study) -> Section:
    words = study.words
    criteria = study.results["settings"]["criteria"]
    said = {"confidence": study.confidence, "fixed": words("column.held")}
    verdicts = Table(
        [
            *(words(f"column.{key}") for key in ("arm", "verdict", "tokens", "shape")),
            *(words(f"column.{key}") for key in ("floats", "bytes")),
            *(
                words("bracket", value=study.header(c["metric"]), more=study.limit(c))
                for c in criteria
            ),
            words("column.held"),
        ],
        [_verdict_row(study, arm) for arm in study.arms],
        words("arms.verdicts", **said),
    )
    measures = Table(
        [words("column.arm"), *map(study.header, study.metrics)],
        [
            [arm["name"], *(study.cell(m, arm["metrics"].get(m)) for m in study.metrics)]
            for arm in study.arms
        ],
        words("arms.measures", confidence=study.confidence, method=words("method.heading")),
    )
    speeds = study.results["times"].get("images_per_second", {})
    columns = (
        *("arm", "parameters", "encode", "decode", "generator"),
        *("encode_speed", "decode_speed", "seen"),
    )
    costs = Table(
        [words(f"column.{key}") for key in columns],
        [
            [
                arm["name"],
                study.number(arm["cost"]["parameters"] / 1e6, 2),
                study.number(arm["cost"]["encode_gflops"], 3),
                study.number(arm["cost"]["decode_gflops"], 3),
                study.number(arm["cost"]["generator_gflops"], 2),
                *(
                    study.number(speeds.get(arm["name"], {}).get(part))
                    for part in ("encode", "decode")
                ),
                study.number(arm["images_seen"]),
            ]
            for arm in study.learned
        ],
        words("arms.cost"),
    )
    return Section(words("arms.heading"), tables=[verdicts, measures, costs])


def _verdict_row(study: Study, arm: Facts) -> list[str]:
    words, verdict = study.words, arm.get("verdict")
    star = "★ " if arm is study.recommended else ""
    return [
        star + arm["name"],
        _verdict(study, arm),
        study.number(arm["tokens"]),
        study.shape(arm),
        study.number(arm["floats"]),
        study.number(arm["bytes"]),
        *(
            [_criterion_cell(study, c) for c in verdict["criteria"]]
            if verdict
            else [
                study.cell(c["metric"], arm["metrics"].get(c["metric"]))
                for c in study.results["settings"]["criteria"]
            ]
        ),
        words.join(words.name("held", held) for held in arm["held"] if arm["learned"])
        or words("nothing"),
    ]


def _criterion_cell(study: Study, criterion: Facts) -> str:
    words = study.words
    mark = words("pass" if criterion["holds"] else "fail")
    if criterion["value"] is None:
        return f"{mark} {words.name('why', criterion['why'])}"
    unit, digits = unit_of(criterion["metric"])
    value = digits_of(unit, digits, criterion["value"])
    if criterion["bound"] is None or criterion["bound"] == criterion["value"]:
        return f"{mark} {value}"
    bound = digits_of(unit, digits, criterion["bound"])
    return f"{mark} {words('bracket', value=value, more=bound)}"


def _verdict(study: Study, arm: Facts) -> str:
    words = study.words
    if arm["stopped"]:
        gap = f"{arm['stopped']['gap_db']:.1f}"
        return words("verdict.stopped", by=arm["stopped"]["by"], gap=gap)
    if arm["fits"] is False:
        return words("verdict.unfit", of=arm["of"])
    if not arm["learned"]:
        return words("verdict.reference", of=arm["of"])
    return words("verdict.pass" if arm["verdict"]["holds"] else "verdict.fail")


def by_size(study: Study) -> Section | None:
    words, best = study.words, study.shown
    bins = best["by_size"]
    if not bins:
        return None
    sizes = [words("range", low=f"{b['low']:.1f}", high=f"{b['high']:.1f}") for b in bins]
    columns = ("contrast_kept", "regions_surviving", "psnr")
    heads = [study.header(m) for m in ("contrast_kept", "regions_surviving", "psnr_inside")]
    one = Table(
        [words("column.diameter"), words("column.defects"), *heads],
        [
            [
                size,
                study.number(b["n"]),
                *(
                    study.cell(metric, None if b[key] is None else {"value": b[key]})
                    for metric, key in zip(columns, ("contrast", "surviving", "psnr"), strict=True)
                ),
            ]
            for size, b in zip(sizes, bins, strict=True)
        ],
        best["name"],
    )
    every = Table(
        [words("column.diameter"), *(arm["name"] for arm in study.final)],
        [
            [
                size,
                *(
                    study.cell("regions_surviving", {"value": arm["by_size"][k]["surviving"]})
                    for arm in study.final
                ),
            ]
            for k, size in enumerate(sizes)
        ],
        words("size.all"),
    )
    text = [words("size.text")]
    unmarked = study.results["originals"]["unmarked"]
    if unmarked:
        text.append(words("size.unmarked", unmarked=unmarked))
    return Section(words("size.heading"), text, tables=[one, every])


def by_class(study: Study) -> Section | None:
    words, best, before = study.words, study.shown, study.seen
    if not before:
        return None
    rows = [
        [
            name,
            study.number(figures["n"]),
            study.cell("defect_recall", before["per_class"][name]["recall"]),
            study.cell("defect_recall", figures["recall"]),
            study.cell("psnr", figures["psnr"]),
        ]
        for name, figures in best["per_class"].items()
    ]
    columns = ("class", "photos", "recall_before", "recall_after")
    recall = Table(
        [*(words(f"column.{key}") for key in columns), study.header("psnr")],
        rows,
        words("class.recall", arm=best["name"], confidence=study.confidence),
    )
    confusions = [
        _confusion(study, before["confusion"], words("class.confusion_before")),
        _confusion(study, best["confusion"], words("class.confusion_after", arm=best["name"])),
    ]
    return Section(words("class.heading"), tables=[recall, *confusions])


def _confusion(study: Study, counts: list[list[int]], caption: str) -> Table:
    words, classes = study.words, study.results["originals"]["classes"]
    return Table(
        [words("column.true"), *(words("column.as", name=name) for name in classes)],
        [[name, *map(study.number, row)] for name, row in zip(classes, counts, strict=True)],
        caption,
    )


def robustness(study: Study) -> Section | None:
    words, best = study.words, study.shown
    worse = best.get("robustness")
    if not worse:
        return None
    known = ("psnr", "defect_kept", "accuracy", "contrast_kept")
    metrics = [m for m in known if any(figures.get(m) for figures in worse.values())]
    one = Table(
        [words("column.corruption"), *map(study.header, metrics)],
        [
            [words.name("corruption", name), *(study.cell(m, figures.get(m)) for m in metrics)]
            for name, figures in worse.items()
        ],
        best["name"],
    )
    tables = [one]
    arms = [arm for arm in study.final if arm.get("robustness")]
    if study.quality and len(arms) > 1:
        every = [
            [
                words.name("corruption", name),
                *(
                    study.cell(study.quality, arm["robustness"][name].get(study.quality))
                    for arm in arms
                ),
            ]
            for name in worse
        ]
        header = [words("column.corruption"), *(arm["name"] for arm in arms)]
        caption = words("robust.all", metric=study.metric(study.quality))
        tables.append(Table(header, every, caption))
    text = words("robust.text", metric=study.metric("defect_kept"))
    return Section(words("robust.heading"), [text], tables=tables)


def subgroups(study: Study) -> Section | None:
    words, best = study.words, study.shown
    if not best["subgroups"]:
        return None
    known = ("psnr", "defect_kept", "accuracy")
    tables = []
    for column, values in best["subgroups"].items():
        metrics = [m for m in known if any(figures.get(m) for figures in values.values())]
        rows = [
            [
                value or words("nothing"),
                study.number(figures["n"]),
                *(study.cell(m, figures.get(m)) for m in metrics),
            ]
            for value, figures in values.items()
        ]
        header = [column, words("column.photos"), *map(study.header, metrics)]
        caption = words("subgroup.caption", arm=best["name"], column=column)
        tables.append(Table(header, rows, caption))
    return Section(words("subgroup.heading"), tables=tables)


def data_section(study: Study) -> Section:
    words, data, settings = study.words, study.results["data"], study.results["settings"]
    height, width = settings["size"]
    sizes = {
        side: words.join(f"{n:,.0f}" for n in data["sizes"][side]) for side in ("width", "height")
    }
    said = [
        words(
            "data.sizes",
            study=words("by", a=width, b=height),
            how=words(f"data.fit.{settings['fit']}"),
            **sizes,
        )
    ]
    group = data["group"]
    grouped = "none" if group is None else "stem" if group == "stem" else "column"
    said.append(words(f"data.group.{grouped}", group=group))
    if data["grey"]:
        said.append(words("data.grey"))
    if settings["normal"]:
        said.append(words("data.normal", classes=words.join(settings["normal"])))
    splits = data["splits"]
    classes = list(dict.fromkeys(name for split in splits.values() for name in split["classes"]))
    counts = Table(
        [words("column.split"), *classes, words("column.all"), words("column.groups")],
        [
            [
                words.name("split", split),
                *(study.number(facts["classes"].get(name, 0)) for name in classes),
                study.number(facts["photos"]),
                study.number(facts["groups"]),
            ]
            for split, facts in splits.items()
        ],
        words("data.counts"),
    )
    notes = _found(study) or [words("data.clean")]
    notes += [_remark(words, remark) for remark in data["remarks"]]
    return Section(words("data.heading"), [words.prose(said)], tables=[counts], notes=notes)


def _found(study: Study) -> list[str]:
    """What is wrong with files and pairs of files."""
    words, data = study.words, study.results["data"]
    skipped = [
        words("bracket", value=item["path"], more=_reason(words, item["reason"]))
        for item in data["skipped"]
    ]
    same = [" = ".join(names) for names in data["duplicates"]]
    near = [f"{pair['a']} ≈ {pair['b']}" for pair in data["near_duplicates"]]
    leaks = [
        words("data.leak", val=leak["val"], train=leak["train"], why=words.name("why", leak["why"]))
        for leak in data["leaks"]
    ]
    found = {
        "skipped": (skipped, len(skipped)),
        "duplicates": (same, len(same)),
        "near": (near, data["near_duplicates_count"]),
        "leaks": (leaks, len(leaks)),
    }
    notes = [
        words(f"data.{key}", **study.listed(items, count))
        for key, (items, count) in found.items()
        if count
    ]
    if data["dropped"]:
        notes.append(words("data.dropped", count=data["dropped"]))
    return notes


def _reason(words: Words, reason: str) -> str:
    """Why a file is no photo; what stands behind a colon are the decoder's own words."""
    head, colon, rest = reason.partition(": ")
    said = words.name("reason", head)
    return words("colon", what=said, value=rest) if colon else said


def _remark(words: Words, remark: Facts) -> str:
    values = {key: value for key, value in remark.items() if key != "code"}
    return words.name("remark", remark["code"], **values)


def method(study: Study) -> Section:
    words, settings = study.words, study.results["settings"]
    height, width = settings["size"]
    text = [
        words("method.training", size=words("by", a=width, b=height)),
        words("method.stopping", margin=str(MARGIN_DB), confidence=study.confidence),
    ]
    if study.seen:
        text.append(words("method.classifier"))
    if study.baselines:
        text.append(words("method.baselines"))
    text += [
        words("method.bytes"),
        words("method.intervals", confidence=study.confidence),
        words("method.choice"),
    ]
    points = [
        (study.metric(metric), words.name("means", metric))
        for metric in study.metrics
        if f"means.{metric}" in TEXTS  # the user's own need no explanation
    ]
    return Section(words("method.heading"), text, points=points)


def limits(study: Study) -> Section:
    words, results = study.words, study.results
    val = results["data"]["splits"]["val"]
    notes = [
        words("limits.seed", seed=str(results["settings"]["seed"])),
        words("limits.held_out", val=val["photos"], groups=val["groups"]),
    ]
    if results["settings"]["init"] != "none":
        notes.append(words("limits.start", init=results["settings"]["init"]))
    before = study.seen
    if before and before["defect_recall"]:
        figures = {
            "recall": study.measured("defect_recall", before["defect_recall"]["value"]),
            "accuracy": study.measured("accuracy", before["accuracy"]["value"]),
        }
        said = [words("limits.classifier", **figures)]
        if study.alarms:
            said.append(words("alarms", alarms=study.alarms))
        notes.append(words.prose(said))
    reduced = results["data"]["sizes"]["reduced"]
    if reduced[1] > 1.05:
        notes.append(words("limits.reduced", factor=f"{reduced[1]:.1f}"))
    notes += [words("limits.budget"), words("limits.many")]
    return Section(words("limits.heading"), notes=notes)


def repeat(study: Study) -> Section:
    words, results = study.words, study.results
    machine = words.join(
        words("colon", what=words.name("machine", key), value=str(value))
        for key, value in results["machine"].items()
    )
    text = [
        words("repeat.command", command=results["command"]),
        words("repeat.versions", version=results["version"], machine=machine),
        words("repeat.files"),
    ]
    rows = [
        [words.name("time", key), _duration(words, seconds)]
        for key, seconds in results["times"].items()
        if isinstance(seconds, int | float)
    ]
    times = Table([words("column.step"), words("column.time")], rows, words("repeat.times"))
    return Section(words("repeat.heading"), text, tables=[times] if rows else [])


def _duration(words: Words, seconds: float) -> str:
    if seconds < 90:
        return words("seconds", value=f"{seconds:.0f}")
    return words("minutes", value=f"{seconds / 60:.1f}")
