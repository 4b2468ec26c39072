"""Training the arms of a study in rungs; those that another dominates stop after the first."""

from pathlib import Path

import numpy as np

from softvq.coding import reconstruct_all
from softvq.data import Store
from softvq.errors import UserError
from softvq.evaluate.cost import tokenizer_cost
from softvq.study.clock import Clock
from softvq.study.judging.bench import Bench
from softvq.study.judging.judge import bounded_psnr
from softvq.study.records import Plan, Rung, Stop, read, read_pictures, write, write_pictures
from softvq.study.settings import Settings
from softvq.study.trying.arms import Arm, base_recipe, dominating
from softvq.study.trying.start import starting_point
from softvq.tokenizer import Tokenizer
from softvq.train.tokenizer import train_tokenizer, training_speed

PLAN = "plan.json"  # in a study's folder
RUNGS = (0.4, 0.6)  # of the training time; the second one is for the arms that were not stopped
TRAINING = 0.62  # of the budget; the rest goes into the detector, measures and start-up
FEWEST = 20  # optimizer steps of a rung
MEASURED = 60.0  # seconds of budget from which measuring the speed of training pays


def train_arms(
    arms: list[Arm],
    settings: Settings,
    source: Tokenizer | None,
    photos: Store,
    bench: Bench,
    out: Path,
    clock: Clock,
) -> Plan | None:
    """Train every arm in rungs; what was decided is in ``out``/plan.json. None if stopped.

    ``photos``: those to train on, at the study's size. Raises UserError for a damaged plan.
    """
    plan = open_plan(arms, settings, out, clock)
    alive = list(arms)
    for number, _ in enumerate(RUNGS):
        if number == len(plan.rungs):
            count = images_per_arm(number, alive, settings, plan)
            plan.rungs.append(Rung(count, [arm.name for arm in alive]))
            write(plan, out / PLAN)
        rung = plan.rungs[number]
        for i, arm in enumerate(alive):
            if pictures_of(arm.name, number, out).is_file():
                continue
            left = sum(rung.images / plan.speed.get(a.name, np.inf) for a in alive[i:])
            print(
                f"rung {number + 1} of {len(RUNGS)}, arm {i + 1} of {len(alive)}: {arm.name}"
                + (f", {left / 60:.0f} min left in this rung" if left else "")
            )
            if not train_arm(arm, number, rung.images, settings, source, photos, out, clock):
                return None
            tokenizer = Tokenizer.from_pretrained(weights_of(arm.name, number, out))
            _, rebuilt = reconstruct_all(tokenizer, bench.originals)
            write_pictures(rebuilt, pictures_of(arm.name, number, out))
        if rung.stopped is None:
            last = number == len(RUNGS) - 1
            rung.stopped = {} if last else dominated(alive, bench, number, out)
            write(plan, out / PLAN)
        alive = [arm for arm in alive if arm.name not in rung.stopped]
    return plan


def weights_of(arm: str, rung: int, out: Path) -> Path:
    """The folder of an arm's tokenizer after a rung."""
    return out / "arms" / arm / f"rung-{rung}"


def pictures_of(arm: str, rung: int, out: Path) -> Path:
    """The held-out photos that an arm rebuilt after a rung."""
    return out / "arms" / arm / f"rebuilt-{rung}.npy"


def open_plan(arms: list[Arm], settings: Settings, out: Path, clock: Clock) -> Plan:
    """The plan of a study that goes on, or a new one."""
    path = out / PLAN
    if path.is_file():
        plan = read(Plan, path, "put it back from a copy, or begin again in another --out")
        known = {arm.name for arm in arms}
        if any(set(rung.arms) - known for rung in plan.rungs):
            raise UserError(
                f"{path}: names arms that this study does not try; begin in another --out"
            )
        return plan
    plan = Plan({})
    if settings.images is None and settings.budget >= MEASURED:
        with clock("speed"):
            plan = Plan(training_speeds(arms, settings, out))
    write(plan, path)
    return plan


def training_speeds(arms: list[Arm], settings: Settings, out: Path) -> dict[str, float]:
    """Photos per second of training, by arm: measured on one, and for the others by their work."""
    middle = arms[len(arms) // 2]
    print(f"measuring the speed of training with {middle.tokens} tokens")
    fewest = FEWEST * base_recipe().train.batch
    speed = training_speed(middle.recipe(settings, fewest, None), out / "photos")
    work: dict[int, int] = {}
    for arm in arms:  # the bottleneck hardly matters
        if arm.tokens not in work:
            parts = tokenizer_cost(arm.config(settings)).values()
            work[arm.tokens] = sum(part.flops for part in parts)
    return {arm.name: speed * work[middle.tokens] / work[arm.tokens] for arm in arms}


def images_per_arm(rung: int, alive: list[Arm], settings: Settings, plan: Plan) -> int:
    """Photos that each arm sees in a rung: as many for all, within the rung's share of time."""
    batch = base_recipe().train.batch
    count = 0.0
    if settings.images is not None:
        count = settings.images * RUNGS[rung] / RUNGS[0]
    elif plan.speed:
        seconds = settings.budget * TRAINING * RUNGS[rung]
        count = seconds / sum(1 / plan.speed[arm.name] for arm in alive)
    return max(FEWEST, int(count / batch + 1e-6)) * batch  # 0.6 / 0.4 is a little below 1.5


def train_arm(
    arm: Arm,
    rung: int,
    images: int,
    settings: Settings,
    source: Tokenizer | None,
    photos: Store,
    out: Path,
    clock: Clock,
) -> bool:
    """One arm in one rung, from where it was, or from the source. False if stopped."""
    init: Path | None = weights_of(arm.name, rung - 1, out)
    if not rung:
        init = None
        if source is not None:
            init = out / "arms" / arm.name / "start"
            if not (init / "config.json").is_file():
                config = arm.config(settings)
                starting_point(config, source, photos.images, settings.seed).save_pretrained(init)
    with clock("training"):
        recipe = arm.recipe(settings, images, init)
        return train_tokenizer(recipe, weights_of(arm.name, rung, out), out / "photos")


def dominated(alive: list[Arm], bench: Bench, rung: int, out: Path) -> dict[str, Stop]:
    """The arms that another dominates after a rung: the time left goes to the others."""
    quality = {
        arm.name: bounded_psnr(
            bench.originals, np.array(read_pictures(pictures_of(arm.name, rung, out)))
        )
        for arm in alive
    }
    stopped = {
        arm.name: Stop(by=found[0].name, gap_db=found[1], rung=rung)
        for arm in alive
        if (found := dominating(arm, alive, quality, bench.groups))
    }
    if stopped:
        print(f"stopped: {', '.join(stopped)}; another is better with no more tokens")
    return stopped
