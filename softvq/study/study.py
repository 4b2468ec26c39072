"""``softvq study``: how far can tokens be cut on these photos, what does it save, what is lost?

look at the photos -> a detector of what matters, trained on originals -> arms trained in rungs,
those that another dominates stopped -> every arm judged on held-out photos -> the cheapest that
meets every criterion -> results.json, results.csv and report.html.

Everything that decides a figure is in OUT/recipe.yaml and OUT/plan.json, and every stage leaves a
file, so a study that was killed goes on with the same command and ends with the same results.
Criteria and the report's language may change: nothing is trained for them.
"""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import yaml

from softvq.data import Store
from softvq.errors import UserError
from softvq.evaluate.detector import Detector, train_detector
from softvq.models import open_tokenizer
from softvq.outputs import Record, claimed, refuse_overlap
from softvq.study.clock import TIMES, Clock
from softvq.study.judging.bench import Bench
from softvq.study.judging.criteria import Criteria, load_criteria
from softvq.study.photos.inspect import Inspection, drop_leaks, inspect_photos, refuse
from softvq.study.records import ORIGINALS, Results, write
from softvq.study.regions import Region, find_regions
from softvq.study.results import collect_results
from softvq.study.settings import Known, Settings
from softvq.study.telling.report import write_reports
from softvq.study.trying.arms import make_arms
from softvq.study.trying.rungs import PLAN, train_arms
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.train.folder import RECIPE, claim

WORK = (TIMES, "photos", "data.json", RECIPE, "detector", PLAN, "arms", ORIGINALS)
TOLD = ("results.json", "results.csv", "report.html")


def run_study(
    settings: Settings, known: Known, out: Path, criteria: str | None = None, lang: str = "en"
) -> bool:
    """Run the study in ``out``, or go on with it. Returns False if training was stopped.

    Raises UserError for photos, criteria or options that cannot be used, for held-out photos that
    are in training too, and if ``out`` holds anything else, or a study with other settings.
    """
    required = load_criteria(criteria)  # now: what is wrong in it must not wait for an hour
    source = open_source(settings)
    refuse_overlap(settings.data, out)
    refuse_older(out)
    with claimed(out, "study", {}) as held:
        held.expect(WORK, later=TOLD)
        results = find_results(settings, known, required, source, out)
        if results is None:
            return False
        held.expect([*WORK, *TOLD])
        write(results, out / "results.json")
        path = write_reports(out, lang)
    chosen = results.recommendation.arm
    print(f"recommended: {chosen or 'none; the report says which criterion fails'}")
    print(f"report: {path.resolve()}")
    return True


def find_results(
    settings: Settings, known: Known, required: Criteria, source: Tokenizer | None, out: Path
) -> Results | None:
    """All of it but the report; None if training was stopped. Raises UserError."""
    arms, clock = make_arms(settings), Clock(out)
    with clock("data"):
        photos = open_photos(settings, known, out)
        taught, judged = (
            open_regions(part, photos.facts.normal, settings, known)
            for part in (photos.train, photos.val)
        )
        for metric in required.metrics.values():  # a broken one fails before hours of training
            metric(np.array(photos.val.images), np.array(photos.val.images), photos.val.names)
        # Only now: what was refused may come again with other options.
        claim(out, recipe_of(settings, known))
        detector = open_detector(photos, taught, settings, out)
    bench = make_bench(photos, judged, detector, required)
    plan = train_arms(arms, settings, source, photos.train, bench, out, clock)
    if plan is None:
        return None
    with clock("measuring"):
        results = collect_results(arms, settings, photos, bench, required, plan, out)
    return replace(results, times=clock.spent)


def refuse_older(out: Path) -> None:
    """Raises UserError if there is a study of a version whose record lacks its files."""
    record = Record.read(out)
    if (out / PLAN).is_file() and (record is None or PLAN not in record.files):
        raise UserError(f"{out}: holds a study of an older softvq; begin again in another --out")


def recipe_of(settings: Settings, known: Known) -> str:
    """What decides the figures of a study, as YAML: it goes on only with the same."""
    said = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (asdict(settings) | asdict(known)).items()
    }
    return yaml.safe_dump({"study": said}, sort_keys=False, allow_unicode=True)


def open_source(settings: Settings) -> Tokenizer | None:
    """The tokenizer that arms start from, None for none. Raises UserError."""
    if settings.init == "none":
        return None
    source = open_tokenizer(settings.init)
    if not isinstance(source.config, TokenizerConfig) or source.config.network != "vit":
        raise UserError(f"{settings.init}: no vit of softvq; --init takes a directory of one")
    return source


def open_photos(settings: Settings, known: Known, out: Path) -> Inspection:
    """The photos, looked at; what was found is in ``out``/data.json. Raises UserError for leaks."""
    found = inspect_photos(
        settings.data,
        settings.size,
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
    photos: Store, normal: list[str], settings: Settings, known: Known
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
    )


def open_detector(
    photos: Inspection, taught: list[Region], settings: Settings, out: Path
) -> Detector | None:
    """A detector of the classes of the originals, trained if it was not yet; None without two.

    ``taught``: the regions of the training photos.
    """
    if len(set(photos.train.labels.tolist())) < 2:  # MVTec has only good ones for training
        return None
    folder = out / "detector"
    if not (folder / "config.json").is_file():
        print("training the detector on originals")
        masks = np.zeros((len(photos.train), *settings.size), bool)
        for region in taught:
            masks[region.photo] |= region.mask
        detector = train_detector(photos.train, masks, photos.facts.normal, settings.seed)
        detector.save_pretrained(folder)
    return Detector.from_pretrained(folder)


def make_bench(
    photos: Inspection, judged: list[Region], detector: Detector | None, required: Criteria
) -> Bench:
    """What arms are judged on; ``judged``: the regions of the held-out photos."""
    return Bench(
        photos.val,
        np.array(photos.val.images),
        detector,
        photos.val_groups,
        judged,
        set(photos.facts.normal),
        photos.subgroups,
        required.confidence,
        required.metrics,
    )
