"""``softvq study``: how far can tokens be cut on these photos, what does it save, what is lost?

look at the photos -> half of them are evidence, which no tokenizer learns from -> judges of what
matters in the originals -> the shipped tokenizer, principal components and files, measured -> the
shipped tokenizer fine-tuned with the rest of the time, and measured at every token count ->
results.json, results.csv, report.html and rollout.yaml.

Everything that decides a figure is in OUT/recipe.yaml and OUT/plan.json, and every stage leaves a
file, so a study that was killed goes on with the same command and ends with the same results.
Criteria, prices and the report's language may change: nothing is trained for them.
"""

import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml

from softvq import __version__
from softvq.data import Store
from softvq.errors import UserError
from softvq.evaluate.regions import Region, find_regions
from softvq.models import open_tokenizer
from softvq.outputs import Record, claimed, refuse_overlap
from softvq.study.clock import TIMES, Clock
from softvq.study.criteria import Criteria, load_criteria
from softvq.study.deciding.decide import decide
from softvq.study.judging.measure import Bench
from softvq.study.photos.inspect import Inspection, drop_leaks, inspect_photos, refuse
from softvq.study.photos.pieces import PIECES, Material, as_records, make_material
from softvq.study.records import Evidence, Machine, Plan, Results, read, write
from softvq.study.settings import Known, Settings
from softvq.study.telling.pictures import choose_shown, rebuild_shown
from softvq.study.telling.report import write_reports
from softvq.study.trying import models
from softvq.study.trying.explaining import TOKENS, explain_tokens
from softvq.study.trying.measuring import (
    measure_model,
    measure_references,
    names_in,
    read_measures,
    seconds_of_one,
)
from softvq.tokenizer import Tokenizer
from softvq.train.folder import RECIPE, claim
from softvq.words import Language

PLAN, EVIDENCE, RESULTS = "plan.json", "evidence.json", "results.json"
WORK = (
    *(TIMES, "photos", "data.json", RECIPE, PIECES, EVIDENCE, "measures", "models", PLAN),
    *("pictures", TOKENS),
)
TOLD = (RESULTS, "results.csv", "report.html", "rollout.yaml")
MEND = "put it back from a copy, or begin again in another --out"
OTHERS = 8  # files and budgets by photo take as long as so many token counts
SPARE = 0.08  # of the budget, for what tokens mean and the report
MEASURING = 0.4  # of the budget, at most: on a slow machine fewer token counts are measured


def run_study(
    settings: Settings, known: Known, out: Path, criteria: str | None = None, lang: Language = "en"
) -> bool:
    """Run the study in ``out``, or go on with it. Returns False if training was stopped.

    Raises UserError for photos, criteria or options that cannot be used, for held-out photos that
    are in training too, and if ``out`` holds anything else, or a study with other settings.
    """
    required = load_criteria(criteria)  # now: what is wrong in it must not wait for an hour
    start = models.open_start(settings)
    counts = models.counts_of(settings, start.config)
    refuse_overlap(settings.data, out)
    refuse_older(out)
    with claimed(out, "study", {}) as held:
        held.expect(WORK, later=TOLD)
        clock = Clock(out)
        if not measure_everything(settings, known, required, start, counts, out, clock, lang):
            return False
        held.expect([*WORK, *TOLD])
        conclude(settings, required, out, clock, lang)
    return True


def decide_again(out: Path, criteria: str, lang: str = "en") -> None:
    """Decide a finished study in ``out`` by other criteria or prices; nothing is measured.

    Raises UserError if there is no finished study, or for a metric that was not measured.
    """
    required = load_criteria(criteria)
    if not (out / RESULTS).is_file():
        raise UserError(f"{out}: holds no finished study; run softvq study to its end first")
    settings = read(Results, out / RESULTS, "run softvq study again, it makes it anew").settings
    with claimed(out, "study", {}) as held:
        held.expect([*WORK, *TOLD])
        conclude(settings, required, out, Clock(out), lang)


def refuse_older(out: Path) -> None:
    """Raises UserError if there is a study of a version whose record lacks its files."""
    record = Record.read(out)
    if (out / PLAN).is_file() and (record is None or EVIDENCE not in record.files):
        raise UserError(f"{out}: holds a study of an older softvq; begin again in another --out")


def recipe_of(settings: Settings, known: Known) -> str:
    """What decides the figures of a study, as YAML: it goes on only with the same."""
    said = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (asdict(settings) | asdict(known)).items()
    }
    return yaml.safe_dump({"study": said}, sort_keys=False, allow_unicode=True)


# ---- measuring ----


def measure_everything(
    settings: Settings,
    known: Known,
    required: Criteria,
    start: Tokenizer,
    counts: Sequence[int],
    out: Path,
    clock: Clock,
    lang: Language,
) -> bool:
    """All that takes long. False if training was stopped."""
    side = start.config.height
    with clock("data"):
        photos = open_photos(settings, known, side, out)

        def marked(store: Store, native: bool) -> list[Region]:
            return open_regions(store, photos.facts.normal, settings, known, native)

        material = make_material(settings, photos, side, marked, out)
        bench = Bench(
            material,
            photos.train.classes,
            set(photos.facts.normal),
            required.metrics,
            settings.seed,
        )
        for metric in required.metrics.values():  # a broken one fails before hours of training
            metric(bench.originals[:4], bench.originals[:4], bench.piece_names[:4])
        # Only now: what was refused may come again with other options.
        claim(out, recipe_of(settings, known))
    with clock("judging"):
        if not (out / EVIDENCE).is_file():
            print("judging the originals")
            write(evidence_of(bench, photos, side), out / EVIDENCE)
    with clock("measuring"):
        counts = plan_counts(settings, start, counts, bench, out)
        measure_untrained(start, counts, bench, photos.facts.grey, out)
    if not train_and_measure(settings, start, counts, bench, out, clock):
        return False
    with clock("explaining"):
        asked = trainings(settings, out)
        first = open_tokenizer(asked[0].folder) if asked else start
        explain_tokens(first, bench, out, lang)
    return True


def open_photos(settings: Settings, known: Known, side: int, out: Path) -> Inspection:
    """The photos, looked at; what was found is in ``out``/data.json. Raises UserError for leaks."""
    found = inspect_photos(
        settings.data,
        (side, side),
        out / "photos",
        fit=settings.fit,
        metadata=None if known.metadata is None else Path(known.metadata),
        group=known.group,
        subgroup=known.subgroups,
        normal=None if known.normal is None else list(known.normal),
    )
    print(found.train.summary, file=sys.stderr)
    write(found.facts, out / "data.json")
    if found.facts.skipped:
        print(f"skipped {len(found.facts.skipped)} damaged photos", file=sys.stderr)
    if known.drop_leaks:
        return drop_leaks(found)
    refuse(found)
    return found


def open_regions(
    photos: Store, normal: list[str], settings: Settings, known: Known, native: bool
) -> list[Region]:
    """What is marked on the photos. Raises UserError."""
    defects = set(photos.classes) - set(normal)
    return find_regions(
        photos,
        Path(settings.data),
        None if known.masks is None else Path(known.masks),
        None if known.boxes is None else Path(known.boxes),
        defects if normal else None,
        settings.fit,
        native,
    )


def evidence_of(bench: Bench, photos: Inspection, side: int) -> Evidence:
    """What decisions need to know of the evidence."""
    material: Material = bench.material
    marked = np.zeros(len(material.names), bool)
    marked[material.pieces.photo[[r.photo for r in material.regions]]] = True
    question = bench.question
    return Evidence(
        names=material.names,
        classes=bench.classes,
        labels=material.labels.tolist(),
        groups=material.groups,
        held_out=material.held_out,
        subgroups=material.subgroups,
        regions=as_records(material.regions, material.pieces),
        unmarked=int((bench.defect & ~marked).sum()) if material.regions else None,
        learning=len(set(material.learning.names)),
        size=(side, side),
        tile=material.tile,
        facts=photos.facts,
        judge=question.kind if question else None,
        originals=bench.judged_originals,
    )


def plan_counts(
    settings: Settings, start: Tokenizer, counts: Sequence[int], bench: Bench, out: Path
) -> Sequence[int]:
    """The token counts for which there is time: all that were asked for, or else evenly spread ones
    that take MEASURING of the budget, by the time that the largest of them takes."""
    plan = open_plan(out)
    if not plan.counts:
        if settings.tokens or settings.images is not None:
            plan.counts = list(counts)
        else:
            fit = MEASURING * settings.budget / seconds_of_one(start, bench)
            plan.counts = spread(counts, int((fit - OTHERS) / (2 + len(trainings(settings, out)))))
        plan.left_out = [count for count in counts if count not in plan.counts]
        if plan.left_out:
            print(f"measuring {len(plan.counts)} of {len(counts)} token counts: time is short")
        write(plan, out / PLAN)
    return plan.counts


def spread(counts: Sequence[int], most: int) -> list[int]:
    """``most`` of the counts, two at least: the smallest, the largest, and evenly between."""
    at = np.ceil(np.linspace(0, len(counts) - 1, max(2, most)) - 1e-9).astype(int)
    return [counts[i] for i in np.unique(at)]


def measure_untrained(
    start: Tokenizer, counts: Sequence[int], bench: Bench, grey: bool, out: Path
) -> None:
    """What costs no training: the tokenizer as it is, principal components, files."""
    measure_model(models.SHIPPED, start, counts, bench, out, targets=False)
    folder = models.folder_of(models.PCA, out)
    if not (folder / "config.json").is_file():
        print("fitting principal components")
        models.fit_pca(start.config, bench.material.learning).save_pretrained(folder)
    pca = Tokenizer.from_pretrained(folder)
    measure_model(models.PCA, pca, counts, bench, out, targets=False)
    sizes = [2 * count * start.config.channels for count in counts]
    budgets = [size for size in sizes[::-2] if size >= 256][:2] or sizes[-1:]
    measure_references(budgets, grey, bench, out)


def train_and_measure(
    settings: Settings,
    start: Tokenizer,
    counts: Sequence[int],
    bench: Bench,
    out: Path,
    clock: Clock,
) -> bool:
    """Fine-tune with the time that is left, and measure. False if stopped."""
    photos = bench.material.learning
    shown = models.pieces_store(bench.originals[:: max(1, len(bench.originals) // 16)][:16])
    asked = trainings(settings, out)
    per_model = clock.spent["measuring"] / 2  # two models and the files, so far
    plan = open_plan(out)
    for i, one in enumerate(asked):
        kind = one.folder.name
        begin = one.folder.with_name(f"{kind}-start")
        if not (begin / "config.json").is_file():
            made = models.starting_point(one.trained, start, settings.seed)
            made.save_pretrained(begin)
        warm = models.WARM
        if settings.images is not None:
            warm = max(1, min(warm, settings.images // 4))
        with clock("training"):
            print(f"fine-tuning {kind}, {i + 1} of {len(asked)}")
            if not one.run(begin, photos, shown, warm, first=True):
                return False
        if kind not in plan.images:
            spent = sum(clock.spent.values()) + SPARE * settings.budget
            left = settings.budget - spent - per_model * (len(asked) - i)
            images = (settings.images or 0) - warm
            if settings.images is None:
                batch = models.base_recipe().train.batch
                images = int(left / (len(asked) - i) * one.speed / batch) * batch
                images = max(models.FEWEST, images)
            plan.images[kind] = max(1, images)
            write(plan, out / PLAN)
        with clock("training"):
            if not one.run(one.round(True), photos, shown, plan.images[kind], first=False):
                return False
        with clock("measuring"):
            tuned = open_tokenizer(one.folder)
            measure_model(kind, tuned, counts, bench, out, targets=kind == asked[0].folder.name)
    return True


def trainings(settings: Settings, out: Path) -> list[models.Training]:
    """What is fine-tuned: each that is asked for, and the first again with other seeds."""
    asked = [models.Training(t, models.folder_of(models.kind_of(t), out), settings.seed)
             for t in dict.fromkeys(settings.train)]  # fmt: skip
    if settings.train:
        asked += [
            models.Training(settings.train[0], models.folder_of(f"seed{i}", out), settings.seed + i)
            for i in range(1, settings.seeds)
        ]
    return asked


def open_plan(out: Path) -> Plan:
    """The plan of a study that goes on, or a new one."""
    return read(Plan, out / PLAN, MEND) if (out / PLAN).is_file() else Plan()


# ---- concluding ----


def conclude(settings: Settings, required: Criteria, out: Path, clock: Clock, lang: str) -> Results:
    """Decide by what was measured, and write everything that says so."""
    evidence = read(Evidence, out / EVIDENCE, "run softvq study again in another --out")
    measured = read_measures(names_in(out), out)
    if lacking := [name for name in required.metrics if name not in measured[0].own]:
        raise UserError(
            f"{', '.join(lacking)}: was not measured in this study; begin another with it"
        )
    asked, originals, candidates, recommendation = decide(evidence, measured, required)
    by_name = {each.name: each for each in measured}
    plan = open_plan(out)
    shown = choose_shown(evidence, by_name[recommendation.leading])
    results = Results(
        version=__version__,
        command="softvq " + shlex.join(sys.argv[1:]),
        settings=settings,
        images=plan.images,
        left_out=plan.left_out,
        confidence=required.confidence,
        criteria=list(asked),
        prices=required.prices,
        evidence=evidence,
        originals=originals,
        candidates=candidates,
        recommendation=recommendation,
        shown=shown,
        times=clock.spent,
        machine=Machine(
            system=f"{platform.system()} {platform.machine()}",
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            torch=torch.__version__,
        ),
    )
    rebuild_shown(results, out)
    write(replace(results, times=clock.spent), out / RESULTS)
    path = write_reports(out, lang)
    chosen = recommendation.name
    print(f"recommended: {chosen or 'none; the report says what is lacking'}")
    print(f"report: {path.resolve()}")
    return results
