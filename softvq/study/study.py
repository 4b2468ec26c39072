"""``softvq study``: how far can tokens be cut on these photos, what does it save, what is lost?

look at the data -> a detector of what matters, trained on originals -> arms trained in rungs, the
hopeless ones stopped -> every arm judged on held-out photos -> the cheapest that meets every
criterion -> results.json, results.csv and report.html.

Everything that decides a figure is in OUT/recipe.yaml and OUT/plan.json, and every stage leaves a
file, so a study that was killed goes on with the same command and ends with the same results.
Criteria and the report's language may change: nothing is trained for them.
"""

import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softvq import __version__, images
from softvq.data import Store
from softvq.errors import UserError
from softvq.evaluate.cost import throughput
from softvq.io import write_atomically
from softvq.pipeline import load_tokenizer
from softvq.study.arms import Arm, Settings, cost, hopeless, make_arms
from softvq.study.baselines import BASELINES, coded
from softvq.study.criteria import Criteria, default_criteria, load_criteria, recommend
from softvq.study.data import Inspection, drop_leaks, look_at, refuse
from softvq.study.detector import Detector, train_detector
from softvq.study.judge import Ground, bounded_psnr, brief, judge, look
from softvq.study.regions import Region, find_regions
from softvq.study.report import write_reports
from softvq.study.robustness import CORRUPTIONS
from softvq.study.start import starting_point
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.train.loop import claim
from softvq.train.tokenizer import train_tokenizer, training_speed

RUNGS = (0.4, 0.6)  # of the training time; the second one is for the arms that were not stopped
TRAINING = 0.62  # of the budget; the rest goes into the detector, measures and start-up
FEWEST = 20  # optimizer steps of a rung
BATCH = 64
TIMED = 16  # photos at a time, where speed is measured


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
        results = measure(arms, settings, evidence, photos, ground, required, out)
    results["times"] = clock.spent | {"images_per_second": speeds(results, out, ground)}
    results["machine"] = machine()
    write_atomically(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    path = write_reports(out, lang)
    chosen = results["recommendation"]["arm"]
    print(f"recommended: {chosen or 'none; the report says which criterion fails'}")
    print(f"report: {path.resolve()}")
    return True


class Clock:
    """Seconds of each stage, over all the runs of a study, in ``out``/times.json."""

    def __init__(self, out: Path):
        self.path = out / "times.json"
        self.spent: dict[str, Any] = {}
        if self.path.is_file():
            self.spent = json.loads(self.path.read_text(encoding="utf-8"))

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[stage] = self.spent.get(stage, 0.0) + time.perf_counter() - started
        write_atomically(self.path, json.dumps(self.spent) + "\n")


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


def rebuild(tokenizer: Tokenizer, pictures: np.ndarray) -> np.ndarray:
    """Pictures through the tokens and back, uint8 [N, H, W, 3]."""
    device = next(tokenizer.parameters()).device
    parts = [
        images.to_uint8(tokenizer.reconstruct(images.to_tensor(some).to(device)))
        for some in np.array_split(pictures, -(-len(pictures) // BATCH))
    ]
    return np.concatenate(parts)


# ---- training ----


def train_arms(
    arms: list[Arm],
    settings: Settings,
    source: Tokenizer | None,
    photos: Inspection,
    ground: Ground,
    out: Path,
    clock: Clock,
) -> bool:
    """Train every arm in rungs; ``out``/plan.json says what was decided. False if stopped."""
    plan_file = out / "plan.json"
    if not plan_file.is_file():
        with clock("speed"):
            speed = {} if settings.images else measured_speeds(arms, settings, out)
        save_json(plan_file, {"speed": speed, "rungs": []})
    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    alive = list(arms)
    for rung in range(len(RUNGS)):
        if rung == len(plan["rungs"]):
            count = images_of(rung, alive, settings, plan["speed"])
            plan["rungs"].append({"images": count, "arms": [arm.name for arm in alive]})
            save_json(plan_file, plan)
        count = plan["rungs"][rung]["images"]
        for number, arm in enumerate(alive, 1):
            folder = out / "arms" / arm.name
            if (folder / f"rebuilt-{rung}.npy").is_file():
                continue
            left = sum(
                count / plan["speed"].get(str(a.tokens), np.inf) for a in alive[number - 1 :]
            )
            print(
                f"rung {rung + 1} of {len(RUNGS)}, arm {number} of {len(alive)}: {arm.name}"
                + (f", {left / 60:.0f} min left in this rung" if left else "")
            )
            before: Path | None = folder / f"rung-{rung - 1}"
            if not rung:
                before = start(arm, settings, source, photos.train, folder)
            with clock("training"):
                recipe = arm.recipe(settings, count, before)
                if not train_tokenizer(recipe, folder / f"rung-{rung}", out / "photos"):
                    return False
            tokenizer = Tokenizer.from_pretrained(folder / f"rung-{rung}")
            save_array(folder / f"rebuilt-{rung}.npy", rebuild(tokenizer, ground.originals))
        if "stopped" not in plan["rungs"][rung]:
            last = rung == len(RUNGS) - 1
            plan["rungs"][rung]["stopped"] = {} if last else stop(alive, ground, out, rung)
            save_json(plan_file, plan)
        alive = [arm for arm in alive if arm.name not in plan["rungs"][rung]["stopped"]]
    return True


def stop(alive: list[Arm], ground: Ground, out: Path, rung: int) -> dict[str, Any]:
    """The arms without hope after a rung, and by which other each is beaten, and by how much."""
    quality = {arm.name: bounded_psnr(ground.originals, rebuilt(out, arm, rung)) for arm in alive}
    stopped = {
        arm.name: {"by": found[0].name, "gap_db": found[1], "rung": rung}
        for arm in alive
        if (found := hopeless(arm, alive, quality, ground.groups))
    }
    if stopped:
        print(f"no hope for {', '.join(stopped)}: another is better with no more tokens")
    return stopped


def open_source(settings: Settings) -> Tokenizer | None:
    """The tokenizer that arms start from, None for none. Raises UserError."""
    if settings.init == "none":
        return None
    source = load_tokenizer(settings.init)
    if not isinstance(source.config, TokenizerConfig) or source.config.network != "vit":
        raise UserError(f"{settings.init}: no vit of softvq; --init takes a directory of one")
    return source


def start(
    arm: Arm, settings: Settings, source: Tokenizer | None, photos: Store, folder: Path
) -> Path | None:
    """Where an arm's weights start: a folder, or None for new ones."""
    if source is None:
        return None
    made = folder / "start"
    if not (made / "config.json").is_file():
        config = arm.recipe(settings, 1000, None).model
        starting_point(config, source, photos.images, settings.seed).save_pretrained(made)
    return made


def measured_speeds(arms: list[Arm], settings: Settings, out: Path) -> dict[str, float]:
    """Images per second of training, for each token count: the bottleneck hardly matters."""
    speed: dict[str, float] = {}
    for arm in arms:
        if str(arm.tokens) not in speed:
            print(f"measuring the speed of training with {arm.tokens} tokens")
            recipe = arm.recipe(settings, 1000, None)
            speed[str(arm.tokens)] = training_speed(recipe, out / "photos")
    return speed


def images_of(rung: int, alive: list[Arm], settings: Settings, speed: dict[str, float]) -> int:
    """Images that each arm sees in a rung: as many for all, within the rung's share of time."""
    batch = alive[0].recipe(settings, 1000, None).train.batch
    if settings.images:
        count = settings.images * RUNGS[rung] / RUNGS[0]
    else:
        seconds = settings.budget * TRAINING * RUNGS[rung]
        count = seconds / sum(1 / speed[str(arm.tokens)] for arm in alive)
    return max(FEWEST, int(count / batch)) * batch


def rebuilt(out: Path, arm: Arm, rung: int) -> np.ndarray:
    """Held-out photos after a rung."""
    return np.load(out / "arms" / arm.name / f"rebuilt-{rung}.npy")


def save_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def save_array(path: Path, array: np.ndarray) -> None:
    """A .npy file, the whole of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    partial.replace(path)


# ---- results ----


def measure(
    arms: list[Arm],
    settings: Settings,
    evidence: Evidence,
    photos: Inspection,
    ground: Ground,
    required: Criteria,
    out: Path,
) -> dict[str, Any]:
    """Everything in results.json but times; writes the pictures that the report shows."""
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    save_array(out / "originals.npy", ground.originals)
    save_json(out / "names.json", {"names": ground.photos.names})
    judged = [learned_arm(arm, settings, plan, ground, out) for arm in arms]
    judged.sort(key=lambda arm: (arm["tokens"], arm["floats"], arm["bytes"]))
    for arm in {arm.floats: arm for arm in reversed(arms)}.values():  # one for each size
        for kind in BASELINES:
            judged.append(baseline(kind, arm, photos.train.images, photos.grey, ground, out))
    criteria = required.criteria or default_criteria(judged[0]["metrics"])
    recommendation = recommend(judged, criteria)
    return {
        "version": __version__,
        "command": "softvq " + shlex.join(sys.argv[1:]),
        "data": photos.facts,
        "settings": asdict(settings)
        | {
            "images": [rung["images"] for rung in plan["rungs"]],
            "normal": photos.normal,
            "confidence": ground.confidence,
            "criteria": [criterion.as_dict() for criterion in criteria],
        },
        "originals": look(ground),
        "arms": judged,
        "recommendation": recommendation,
    }


def learned_arm(
    arm: Arm, settings: Settings, plan: dict[str, Any], ground: Ground, out: Path
) -> dict[str, Any]:
    """An arm's entry in results.json, from its last rung."""
    rungs = [i for i, rung in enumerate(plan["rungs"]) if arm.name in rung["arms"]]
    last = rungs[-1]
    stopped = plan["rungs"][last]["stopped"].get(arm.name)
    pictures = rebuilt(out, arm, last)
    save_array(out / "arms" / arm.name / "rebuilt.npy", pictures)
    recipe = arm.recipe(settings, plan["rungs"][last]["images"], None)
    entry = {
        "name": arm.name,
        "kind": arm.kind,
        "learned": True,
        "of": None,
        "held": list(arm.held),
        "tokens": arm.tokens,
        "channels": arm.channels,
        "floats": arm.floats,
        "bytes": arm.bytes(recipe.model.codebook_size),
        "setting": None,
        "fits": True,
        "images_seen": sum(plan["rungs"][i]["images"] for i in rungs),
        "stopped": stopped,
        "cost": cost(arm, recipe),
    } | judge(ground, pictures)
    if stopped is None:
        print(f"measuring {arm.name} under {', '.join(CORRUPTIONS)}")
        tokenizer = Tokenizer.from_pretrained(out / "arms" / arm.name / f"rung-{last}")
        entry["robustness"] = {}
        for name, corrupt in CORRUPTIONS.items():
            inputs = corrupt(ground.originals, settings.seed)
            entry["robustness"][name] = brief(ground, inputs, rebuild(tokenizer, inputs))
    return entry


def baseline(
    kind: str, arm: Arm, training: np.ndarray, grey: bool, ground: Ground, out: Path
) -> dict[str, Any]:
    """What a method without training makes of as many bytes, or numbers, as an arm's tokens."""
    found = coded(kind, training, ground.originals, 2 * arm.floats, arm.floats, grey)
    name = f"{kind}-{arm.floats}"
    save_array(out / "arms" / name / "rebuilt.npy", found.rebuilt)
    return {
        "name": name,
        "kind": kind,
        "learned": False,
        "of": arm.name,
        "held": list(arm.held),
        "tokens": None,
        "channels": None,
        "floats": found.floats,
        "bytes": found.bytes,
        "setting": found.setting,
        "fits": found.fits,
        "images_seen": None,
        "stopped": None,
        "cost": None,
    } | judge(ground, found.rebuilt)


def speeds(results: dict[str, Any], out: Path, ground: Ground) -> dict[str, dict[str, float]]:
    """Images per second of encode and decode on this machine, of every arm that was not stopped."""
    measured = {}
    pixels = images.to_tensor(ground.originals[:TIMED])
    for entry in results["arms"]:
        if not entry["learned"] or entry["stopped"]:
            continue
        folder = out / "arms" / entry["name"]
        tokenizer = Tokenizer.from_pretrained(sorted(folder.glob("rung-*"))[-1])
        with torch.inference_mode():
            latents = tokenizer.encode(pixels).latents
            jobs: dict[str, Callable[[], object]] = {
                "encode": partial(tokenizer.encode, pixels),
                "decode": partial(tokenizer.decode, latents),
            }
            measured[entry["name"]] = {
                name: throughput(job, len(pixels)).median for name, job in jobs.items()
            }
    return measured


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
