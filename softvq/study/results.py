"""Every arm and baseline judged, and the recommendation: what results.json says of a study."""

import platform
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from softvq import __version__, images
from softvq.coding import reconstruct_all
from softvq.evaluate.baselines import BASELINES, coded
from softvq.evaluate.corruptions import CORRUPTIONS
from softvq.evaluate.cost import throughput
from softvq.study.judging.bench import Bench
from softvq.study.judging.criteria import Criteria, default_criteria, recommend, verdict
from softvq.study.judging.judge import judge, judge_originals, judge_spoilt
from softvq.study.photos.inspect import Inspection
from softvq.study.records import (
    ORIGINALS,
    ArmResult,
    BaselineResult,
    Criterion,
    Figures,
    Judgement,
    Machine,
    Plan,
    Results,
    Speed,
    read_pictures,
    write_pictures,
)
from softvq.study.settings import Settings
from softvq.study.trying.arms import Arm
from softvq.study.trying.rungs import pictures_of, weights_of
from softvq.tokenizer import Tokenizer

TIMED = 16  # photos at a time, where speed is measured


def collect_results(
    arms: list[Arm],
    settings: Settings,
    photos: Inspection,
    bench: Bench,
    required: Criteria,
    plan: Plan,
    out: Path,
) -> Results:
    """Judge everything that was trained, and the baselines; writes the pictures that are shown."""
    write_pictures(bench.originals, out / ORIGINALS)
    judged = {}
    for arm in arms:
        print(f"measuring {arm.name}")
        judged[arm] = judge(bench, np.array(read_pictures(last_pictures(arm, plan, out))))
    criteria = required.criteria or default_criteria(judged[arms[0]].metrics)
    tried = [arm_result(arm, settings, plan, bench, judged[arm], criteria, out) for arm in arms]
    tried.sort(key=lambda result: result.price)
    baselines = [
        baseline_result(kind, arm, photos, bench, out)
        for arm in {arm.floats: arm for arm in reversed(arms)}.values()  # one for each size
        for kind in BASELINES
    ]
    return Results(
        version=__version__,
        command="softvq " + shlex.join(sys.argv[1:]),
        settings=settings,
        images=[rung.images for rung in plan.rungs],
        confidence=bench.confidence,
        criteria=list(criteria),
        data=photos.facts,
        originals=judge_originals(bench),
        arms=[*tried, *baselines],
        recommendation=recommend(tried),
        times={},
        speeds=measured_speeds(tried, bench, out),
        machine=Machine(
            system=f"{platform.system()} {platform.machine()}",
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            torch=torch.__version__,
        ),
    )


def last_pictures(arm: Arm, plan: Plan, out: Path) -> Path:
    """What an arm rebuilt after the last rung that it was trained in."""
    return pictures_of(arm.name, len(plan.of(arm.name)) - 1, out)


def arm_result(
    arm: Arm,
    settings: Settings,
    plan: Plan,
    bench: Bench,
    judged: Judgement,
    criteria: Sequence[Criterion],
    out: Path,
) -> ArmResult:
    """An arm after its last rung, and how it fares on spoilt photos if it was not stopped."""
    rungs = plan.of(arm.name)
    stopped = (rungs[-1].stopped or {}).get(arm.name)
    robustness: dict[str, Figures] = {}
    if stopped is None:
        print(f"measuring {arm.name} under {', '.join(CORRUPTIONS)}")
        tokenizer = Tokenizer.from_pretrained(weights_of(arm.name, len(rungs) - 1, out))
        for name, corrupt in CORRUPTIONS.items():
            spoilt = corrupt(bench.originals, settings.seed)
            robustness[name] = judge_spoilt(bench, *reconstruct_all(tokenizer, spoilt))
    return ArmResult(
        name=arm.name,
        kind=arm.kind,
        bytes=arm.bytes,
        held=arm.held,
        pictures=last_pictures(arm, plan, out).relative_to(out).as_posix(),
        tokens=arm.tokens,
        channels=arm.channels,
        floats=arm.floats,
        rungs=len(rungs),
        images_seen=sum(rung.images for rung in rungs),
        stopped=stopped,
        cost=arm.cost(settings),
        robustness=robustness,
        verdict=verdict(judged.metrics, criteria),
        **vars(judged),
    )


def baseline_result(
    kind: str, arm: Arm, photos: Inspection, bench: Bench, out: Path
) -> BaselineResult:
    """What a method without training makes of as many bytes, or numbers, as an arm's tokens."""
    training, grey = photos.train.images, photos.facts.grey
    found = coded(kind, training, bench.originals, 2 * arm.floats, arm.floats, grey)
    name = f"{kind}-{arm.floats}"
    pictures = Path("arms", name, "rebuilt.npy")
    write_pictures(found.rebuilt, out / pictures)
    return BaselineResult(
        name=name,
        kind=kind,
        bytes=found.bytes,
        held=arm.held,
        pictures=pictures.as_posix(),
        of=arm.name,
        setting=found.setting,
        floats=found.floats,
        fits=found.fits,
        **vars(judge(bench, found.rebuilt)),
    )


def measured_speeds(arms: Sequence[ArmResult], bench: Bench, out: Path) -> dict[str, Speed]:
    """Photos per second of encoding and decoding on this machine, of what was not stopped."""
    pixels = images.to_tensor(bench.originals[:TIMED])
    speeds = {}
    for arm in arms:
        if arm.stopped is not None:
            continue
        tokenizer = Tokenizer.from_pretrained(weights_of(arm.name, arm.rungs - 1, out))
        with torch.inference_mode():
            latents = tokenizer.encode(pixels).latents
            encode = throughput(partial(tokenizer.encode, pixels), len(pixels)).median
            decode = throughput(partial(tokenizer.decode, latents), len(pixels)).median
        speeds[arm.name] = Speed(encode, decode)
    return speeds
