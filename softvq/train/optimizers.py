"""Optimizers, their rates over a run, and the average of the weights."""

import math
import re

import torch
from torch import nn

from softvq.recipe import TrainConfig
from softvq.train.muon import Muon
from softvq.train.parallel import local


def depth_shares(names: list[str], decay: float) -> dict[str, float]:
    """The share of the learning rate that each parameter gets (BEiT, Bao et al. 2022).

    In every stack of n blocks, ``<stack>blocks.<i>.``, block i gets decay^(n - i) and what is
    registered before the blocks decay^(n + 1); all other parameters get 1.
    """
    shares = dict.fromkeys(names, 1.0)
    inside = {name: re.match(r"(.*?)\bblocks\.(\d+)\.", name) for name in names}
    blocks = {name: (found[1], int(found[2])) for name, found in inside.items() if found}
    for stack in {stack for stack, _ in blocks.values()}:
        index = {name: i for name, (where, i) in blocks.items() if where == stack}
        depth = max(index.values()) + 1
        before = names[: names.index(next(iter(index)))]
        shares |= {n: decay ** (depth + 1) for n in before if n.startswith(stack)}
        shares |= {name: decay ** (depth - i) for name, i in index.items()}
    return shares


def adamw(weights: list[tuple[nn.Parameter, float]], weight_decay: float) -> torch.optim.AdamW:
    """AdamW on parameters and their peak rates; weight decay never touches vectors."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for p, peak in weights:
        groups.setdefault((p.ndim <= 1, peak), []).append(p)
    return torch.optim.AdamW(
        [
            {"params": some, "peak": peak, "weight_decay": 0.0 if vectors else weight_decay}
            for (vectors, peak), some in sorted(groups.items(), key=lambda item: item[0])
        ],
        betas=(0.9, 0.95),
        fused=True,
    )


def optimizers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW on everything, or Muon on matrices and kernels inside blocks and AdamW on the rest.

    Matrices that modulate (adaLN) are no feature maps and stay with AdamW. Every group carries its
    ``peak`` learning rate.
    """
    shares = depth_shares([name for name, _ in model.named_parameters()], config.layer_decay)
    hidden: dict[float, list[nn.Parameter]] = {}
    rest: list[tuple[nn.Parameter, float]] = []
    for name, p in model.named_parameters():
        feature_map = p.ndim > 1 and "blocks." in name and "adaLN" not in name
        if not p.requires_grad:
            continue
        if config.optimizer == "muon" and feature_map:
            hidden.setdefault(config.muon_lr * shares[name], []).append(p)
        else:
            rest.append((p, config.lr * shares[name]))
    found: list[torch.optim.Optimizer] = [adamw(rest, config.weight_decay)]
    if hidden:
        groups = [{"params": some, "peak": peak} for peak, some in hidden.items()]
        found.append(Muon(groups, momentum=0.95, weight_decay=config.weight_decay))
    return found


def rate(config: TrainConfig, seen: int) -> float:
    """Learning rate at ``seen`` images as a share of its peak."""
    if seen < config.warmup:
        return (seen + config.batch) / (config.warmup + config.batch)
    done = min(1.0, (seen - config.warmup) / max(1, config.images - config.warmup))
    fall = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.final_lr + (1 - config.final_lr) * fall


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, keep: float) -> None:
    """ema <- keep x ema + (1 - keep) x model; buffers and frozen parameters are copied."""
    pairs = list(zip(ema.parameters(), model.parameters(), strict=True))
    moving = [pair for pair in pairs if pair[1].requires_grad]
    torch._foreach_lerp_([local(x) for x, _ in moving], [local(x) for _, x in moving], 1 - keep)
    still = [pair for pair in pairs if not pair[1].requires_grad]
    for kept, new in (*still, *zip(ema.buffers(), model.buffers(), strict=True)):
        local(kept).copy_(local(new))
