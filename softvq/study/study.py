"""``softvq study``: how far can tokens be cut on these photos, what does it save, what is lost?

look at the data -> a detector of what matters, trained on originals -> arms trained in rungs, the
hopeless ones stopped -> every arm judged on held-out photos -> the cheapest that meets every
criterion -> results.json, results.csv and report.html.

Everything that decides a figure is in OUT/recipe.yaml and OUT/plan.json, and every stage leaves a
file, so a study that was killed goes on with the same command and ends with the same results.
Criteria and the report's language may change: nothing is trained for them.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from softvq.data import Store
from softvq.errors import UserError
from softvq.io import write_atomically
from softvq.models import open_tokenizer
from softvq.study.arms import Settings, make_arms
from softvq.study.criteria import Criteria, load_criteria
from softvq.study.data import Inspection, drop_leaks, look_at, refuse
from softvq.study.detector import Detector, train_detector
from softvq.study.judge import Ground
from softvq.study.keeping import Clock
from softvq.study.regions import Region, find_regions
from softvq.study.report import write_reports
from softvq.study.results import machine, measure, speeds
from softvq.study.training import train_arms
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.train.folder import claim


@dataclass(frozen=True)
class Evidence:
    """What is known of the photos beside the pixels; see ``softvq.study.data`` and ``regions``."""

    masks: str | None = None
    boxes: str | None = None
    metadata: str | None = None
    group: str | None = None
    subgroups: tuple[str, ...] = ()
    normal: tuple[str, ...] | None = None
    drop_leaks: bool = False


def run_study(
    settings: Settings,
    evidence: Evidence,
    out: Path,
    criteria: str | None = None,
    lang: str = "en",
) -> bool:
    """Run the study in ``out``, or go on with it. Returns False if training was stopped.

    Raises UserError for photos, criteria or options that cannot be used, for held-out photos that
    are in training too, and if ``out`` holds a study with other settings.
    """
    required = load_criteria(criteria)  # now: what is wrong in it must not wait for an hour
    arms = make_arms(settings)
    for arm in arms:
        arm.recipe(settings, 1, None)
    source = open_source(settings)
    clock = Clock(out)
    with clock("data"):
        photos = open_photos(settings, evidence, out)
        taught, judged = (
            open_regions(part, photos.normal, settings, evidence)
            for part in (photos.train, photos.val)
        )
        for metric in required.metrics.values():  # a broken one fails before hours of training
            metric(np.array(photos.val.images), np.array(photos.val.images), photos.val.names)
        # Only now: what was refused may come again with other options.
        claim(out, json.dumps({"study": asdict(settings) | asdict(evidence)}, indent=1) + "\n")
        ground = stand_on(photos, taught, judged, settings, required, out)
    if not train_arms(arms, settings, source, photos, ground, out, clock):
        return False
    with clock("measuring"):
        results = measure(arms, settings, photos, ground, required, out)
    results["times"] = clock.spent | {"images_per_second": speeds(results, out, ground)}
    results["machine"] = machine()
    write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    path = write_reports(out, lang)
    chosen = results["recommendation"]["arm"]
    print(f"recommended: {chosen or 'none; the report says which criterion fails'}")
    print(f"report: {path.resolve()}")
    return True


# ---- the photos, and what they are judged on ----


def open_photos(settings: Settings, evidence: Evidence, out: Path) -> Inspection:
    """The photos, looked at; what was found is in ``out``/data.json. Raises UserError for leaks."""
    found = look_at(
        settings.data,
        settings.size,
        out / "photos",
        fit=settings.fit,
        metadata=None if evidence.metadata is None else Path(evidence.metadata),
        group=evidence.group,
        subgroup=list(evidence.subgroups),
        normal=None if evidence.normal is None else list(evidence.normal),
    )
    write_atomically(out / "data.json", json.dumps(found.facts, indent=1) + "\n")
    if found.facts["skipped"]:
        print(f"skipped {len(found.facts['skipped'])} damaged photos", file=sys.stderr)
    if evidence.drop_leaks:
        return drop_leaks(found)
    refuse(found)
    return found


def open_regions(
    photos: Store, normal: list[str], settings: Settings, evidence: Evidence
) -> list[Region]:
    """What is marked on the photos. Raises UserError."""
    defects = set(photos.classes) - set(normal)
    return find_regions(
        photos,
        Path(settings.data),
        None if evidence.masks is None else Path(evidence.masks),
        None if evidence.boxes is None else Path(evidence.boxes),
        defects if normal else None,
        settings.fit,
    )


def stand_on(
    photos: Inspection,
    taught: list[Region],
    judged: list[Region],
    settings: Settings,
    required: Criteria,
    out: Path,
) -> Ground:
    """What arms are judged on, with a detector trained on the originals if there are classes.

    ``taught``, ``judged``: the regions of the training and of the held-out photos.
    """
    originals = np.array(photos.val.images)
    folder = out / "detector"
    detector = None
    if len(photos.train.classes) > 1:
        if not (folder / "config.json").is_file():
            print("training the detector on originals")
            masks = np.zeros((len(photos.train), *settings.size), bool)
            for region in taught:
                masks[region.photo] |= region.mask
            train_detector(photos.train, masks, photos.normal, settings.seed).save_pretrained(
                folder
            )
        detector = Detector.from_pretrained(folder)
    return Ground(
        photos.val,
        originals,
        detector,
        photos.val_groups,
        judged,
        set(photos.normal),
        photos.subgroups,
        required.confidence,
        required.metrics,
    )


def open_source(settings: Settings) -> Tokenizer | None:
    """The tokenizer that arms start from, None for none. Raises UserError."""
    if settings.init == "none":
        return None
    source = open_tokenizer(settings.init)
    if not isinstance(source.config, TokenizerConfig) or source.config.network != "vit":
        raise UserError(f"{settings.init}: no vit of softvq; --init takes a directory of one")
    return source
