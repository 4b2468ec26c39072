"""Training the arms of a study in rungs; those without hope stop after the first."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from softvq import images
from softvq.data import Store
from softvq.study.arms import Arm, Settings, hopeless
from softvq.study.data import Inspection
from softvq.study.judge import Ground, bounded_psnr
from softvq.study.keeping import Clock, rebuilt, save_array, save_json
from softvq.study.start import starting_point
from softvq.tokenizer import Tokenizer
from softvq.train.tokenizer import train_tokenizer, training_speed

RUNGS = (0.4, 0.6)  # of the training time; the second one is for the arms that were not stopped
TRAINING = 0.62  # of the budget; the rest goes into the detector, measures and start-up
FEWEST = 20  # optimizer steps of a rung
BATCH = 64


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


def rebuild(tokenizer: Tokenizer, pictures: np.ndarray) -> np.ndarray:
    """Pictures through the tokens and back, uint8 [N, H, W, 3]."""
    device = next(tokenizer.parameters()).device
    parts = [
        images.to_uint8(tokenizer.reconstruct(images.to_tensor(some).to(device)))
        for some in np.array_split(pictures, -(-len(pictures) // BATCH))
    ]
    return np.concatenate(parts)
