"""The one training loop. It knows nothing of images; its clock is images seen.

Every random draw of a step is a function of (seed, images seen), and so are the batch and the
learning rate. A run that was killed therefore goes on exactly where its last checkpoint stood.
"""

import copy
import math
import signal
import sys
import time
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from softvq.device import multiplies_bf16, pick_device
from softvq.errors import UserError
from softvq.processes import joined, reading
from softvq.recipe import TrainConfig
from softvq.train.checkpoint import Checkpoint
from softvq.train.folder import Journal
from softvq.train.optimizers import average, rate
from softvq.train.parallel import (
    averaging,
    blocks_of,
    full,
    gather,
    recompute,
    replicate,
    shard,
)
from softvq.train.players import Player, Task
from softvq.train.sharded import ShardedCheckpoint


def train(task: Task, config: TrainConfig, folder: Path) -> bool:
    """Train until ``config.images`` images were seen, or go on where a stopped run left off.

    Writes into ``folder``, which :func:`softvq.train.folder.open_run` holds: metrics.jsonl,
    tensorboard/, checkpoints/, pictures/ and the exported model. Returns False if it was stopped by
    Ctrl-C, SIGTERM or SIGHUP (a checkpoint is written first). Raises UserError if a loss, a
    gradient, a weight or a metric stops being finite; nothing of it is saved then.
    """
    with StopSignals() as stop:
        # The players, and the average of the first one's weights. Without ``cpu``, accelerate
        # would leave out the processes of torchrun on machines without a GPU.
        state = joined()
        rank, world, pieces = state.process_index, state.num_processes, config.accumulate
        main, device = state.is_main_process, state.device
        bf16 = resolve_precision(config.precision) == "bf16"
        autocast = torch.autocast(device.type, torch.bfloat16, bf16)
        players = task.players
        model = players[0].module.to(device)
        ema = copy.deepcopy(model).eval().requires_grad_(False)
        averaged = ema  # whole, for evaluation
        sharded = config.parallel == "fsdp"
        if config.recompute:
            recompute(model)
        if sharded and world > 1:
            averaged = copy.deepcopy(ema)
            for spread in (model, ema):
                shard(spread, device)
        optimizers = [player.optimizers(player.module.to(device)) for player in players]
        every_optimizer = [optimizer for some in optimizers for optimizer in some]

        # Where the run stands
        parts = {player.name: player.module for player in players} | {"ema": ema}
        kind = ShardedCheckpoint if sharded else Checkpoint
        checkpoint = kind(folder / "checkpoints", parts, every_optimizer)
        seen = checkpoint.restore()
        if seen and main:
            print(f"{seen:,} of {config.images:,} images are done", file=sys.stderr)
        if config.compile:
            for block in blocks_of(model):
                block.compile()
        nets = [replicate(player.module, device) for player in players]
        journal = Journal(folder, seen) if main else None
        pictures = folder / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        logged: dict[str, list[float]] = {}
        steps, started = 0, time.perf_counter()
        bar = tqdm(
            total=config.images, initial=seen, unit="img", unit_scale=True, disable=not main,
            mininterval=1 if sys.stderr.isatty() else 30, smoothing=0.05,
            desc=f"training the {task.name}",
        )  # fmt: skip

        with bar:
            batches = iter(task.batches(seen, rank, world))
            while batch := list(islice(batches, pieces)):
                # A step: every player has its turn.
                share = rate(config, seen)
                for optimizer in every_optimizer:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak"] * share
                made: list[Any] = [None] * pieces
                for number, (player, net, own) in enumerate(
                    zip(players, nets, optimizers, strict=True)
                ):
                    net.train()
                    values: dict[str, list[Tensor]] = {}
                    for piece, some in enumerate(batch):
                        # The same in every process, which takes its rows of each draw.
                        torch.manual_seed(config.seed * 1_000_003 + seen + number * 2**40)
                        part = reading(rank * pieces + piece, world * pieces)
                        with part, averaging(net, now=piece == pieces - 1):
                            with autocast:
                                turn = player.loss(net, some, made[piece])
                            if turn is None:
                                continue
                            (turn.loss / pieces).backward()
                        made[piece] = turn.made
                        for name, value in ({"loss": turn.loss} | turn.terms).items():
                            values.setdefault(name, []).append(value.detach())
                    if not values:
                        continue
                    norm = full(nn.utils.clip_grad_norm_(player.module.parameters(), config.clip))
                    means = agreed({k: torch.stack(some).mean() for k, some in values.items()})
                    if not (math.isfinite(means["loss"]) and math.isfinite(norm.item())):
                        diverged("the loss or its gradient", seen, players, checkpoint)
                    for optimizer in own:
                        optimizer.step()
                        optimizer.zero_grad()
                    prefix = "" if player is players[0] else f"{player.name}_"
                    means[f"{prefix}loss"] = means.pop("loss")
                    means[f"{prefix}grad_norm"] = norm.item()
                    for name, mean in means.items():
                        logged.setdefault(name, []).append(mean)
                before, seen = seen, min(seen + config.batch, config.images)
                # A halflife that grows with the run forgets the first steps (Karras et al. 2022).
                halflife = min(config.ema_halflife, seen * 0.05)
                average(ema, model, 0.5 ** (config.batch / max(halflife, 1e-8)))
                steps += 1
                bar.update(seen - before)

                # What is due
                logs, evaluates, saves = (
                    before // every != seen // every or seen == config.images
                    for every in (config.log_every, config.evaluate_every, config.checkpoint_every)
                )
                if journal and logs:
                    means = {name: sum(some) / len(some) for name, some in logged.items()}
                    speed = steps * config.batch / (time.perf_counter() - started)
                    journal.write(
                        seen, means | {"lr": config.lr * share, "images_per_second": speed}
                    )
                    bar.set_postfix(loss=f"{means['loss']:.4f}")
                    logged, steps, started = {}, 0, time.perf_counter()
                asked = agreed({"asked": torch.tensor(float(stop.asked), device=device)})
                stop.asked = asked["asked"] > 0  # of any process: all stop at the same image
                saves = saves or stop.asked
                if (evaluates or saves) and (damaged := checkpoint.damaged()):
                    diverged(f"the weights ({damaged[0]}, ...)", seen, players, checkpoint)
                if evaluates:
                    paused = time.perf_counter()
                    if averaged is not ema:
                        gather(ema, averaged)
                    if journal:
                        figures = task.evaluate(averaged, pictures, seen)
                        if wrong := [name for name, x in figures.items() if math.isnan(x)]:
                            diverged(wrong[0], seen, players, checkpoint)
                        journal.write(seen, figures)
                        task.export(averaged, folder)
                    state.wait_for_everyone()
                    started += time.perf_counter() - paused
                if saves and (main or sharded):
                    checkpoint.save(seen)
                if stop.asked:
                    break
            checkpoint.finish()

    if stop.asked:
        print(
            f"stopped at {seen:,} of {config.images:,} images; the same command goes on from here",
            file=sys.stderr,
        )
    return not stop.asked


class StopSignals:
    """Inside this context Ctrl-C, SIGTERM and SIGHUP set ``asked``; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopSignals":
        names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        self.before = {number: signal.signal(number, self.ask) for number in numbers}
        return self

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def diverged(what: str, seen: int, players: list[Player], checkpoint: Checkpoint) -> NoReturn:
    """Raises the UserError of a run whose numbers are no longer finite."""
    newest = checkpoint.newest()
    kept = f"the last good checkpoint is {newest}" if newest else "no checkpoint was written before"
    rates = [f"{key} (now {value:g})" for player in players for key, value in player.rates.items()]
    raise UserError(
        f"{what}: no longer finite at {seen:,} images; {kept}; lower {' or '.join(rates)} in a new "
        "--out"
    )


def agreed(values: dict[str, Tensor]) -> dict[str, float]:
    """Numbers by name, averaged over all processes, which must give the same names."""
    numbers = torch.stack([value.float() for value in values.values()])
    if dist.is_initialized():
        dist.all_reduce(numbers)
        numbers /= dist.get_world_size()
    return dict(zip(values, numbers.tolist(), strict=True))


def resolve_precision(precision: str) -> str:
    """``auto`` becomes bf16 where the device multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bf16(pick_device().type) else "fp32"
