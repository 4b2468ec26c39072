"""What results.json says of a study: every arm and baseline judged, and the recommendation."""

import json
import platform
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softvq import __version__, images
from softvq.evaluate.cost import throughput
from softvq.study.arms import Arm, Settings, cost
from softvq.study.baselines import BASELINES, coded
from softvq.study.criteria import Criteria, default_criteria, recommend
from softvq.study.data import Inspection
from softvq.study.judge import Ground, brief, judge, look
from softvq.study.keeping import rebuilt, save_array, save_json
from softvq.study.robustness import CORRUPTIONS
from softvq.study.training import rebuild
from softvq.tokenizer import Tokenizer

TIMED = 16  # photos at a time, where speed is measured


def measure(
    arms: list[Arm],
    settings: Settings,
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
