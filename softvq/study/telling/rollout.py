"""rollout.yaml: how the recommendation goes into use, in stages, by measured thresholds."""

import math
from pathlib import Path

import numpy as np
import yaml

from softvq.io import write_atomically
from softvq.study.deciding.figures import Reader
from softvq.study.records import Measured, Results
from softvq.study.telling.pictures import model_kind
from softvq.study.trying import models

CANARY = 0.05  # of the parts
FLOOR = 0.01  # of the evidence's photos: the share whose PSNR is lower
PROVES = 59  # parts without a fault that prove fewer than 5 in 100, at 95%: 0.95^59 < 0.05


def plan_of(results: Results, leading: Measured, out: Path) -> dict[str, object]:
    """The plan, as YAML's values. An undecided study gives a shadow stage alone, which gathers the
    evidence that is lacking."""
    candidate = results.named(results.recommendation.leading)
    reader = Reader(results.evidence, results.confidence)
    decided = results.recommendation.name is not None
    needed = max((lack.groups for lack in results.recommendation.needed), default=0)
    kind = model_kind(candidate)
    budget: dict[str, object] = {"psnr": float(candidate.setting)}
    if candidate.kind != "target":
        budget = {"tokens": int(candidate.setting)}
    limits: dict[str, object] = {
        "psnr_at_least": round(float(np.quantile(leading.psnr, FLOOR)), 2),
    }
    alarms = candidate.metrics.get("false_alarms")
    if alarms and alarms.high is not None and reader.tells_defects:
        limits["flagged_good_parts_at_most"] = round(alarms.high, 4)
    recall = candidate.metrics.get("defect_recall")
    if recall and recall.low is not None:
        limits["defect_recall_at_least"] = round(recall.low, 4)
    stages: list[dict[str, object]] = [
        {
            "name": "shadow",
            "share": 0.0,
            "keep_originals": True,
            "parts": max(PROVES, needed),
            "why": "tokens are made beside the originals, and compared; nothing depends on them",
        }
    ]
    if decided:
        stages += [
            {"name": "canary", "share": CANARY, "keep_originals": True,
             "parts": math.ceil(PROVES / CANARY)},
            {"name": "full", "share": 1.0, "keep_originals": False},
        ]  # fmt: skip
    return {
        "candidate": candidate.name,
        "decided": decided,
        "tokenizer": results.settings.init if kind == models.SHIPPED else f"models/{kind}",
        "budget": budget,
        "tile": "native" if results.evidence.tile.native else "fit",
        "fit": results.settings.fit,
        "stages": stages,
        "roll_back_if_not": limits,
    }


def write_plan(results: Results, leading: Measured, out: Path) -> None:
    text = yaml.safe_dump(plan_of(results, leading, out), sort_keys=False, allow_unicode=True)
    write_atomically(out / "rollout.yaml", text)
