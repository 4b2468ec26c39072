"""The one training loop. It knows nothing of images; its clock is images seen.

Every random draw of a step is a function of (seed, images seen), and so are the batch and the
learning rate. A run that was killed therefore goes on exactly where its last checkpoint stood.
"""

import copy
import json
import math
import re
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from softvq.errors import UserError
from softvq.io import write_atomically
from softvq.recipe import TrainConfig
from softvq.train.checkpoint import (
    load_newest,
    optimizer_tensors,
    restore_optimizers,
    save_checkpoint,
)


class Task(Protocol):
    """A thing to train; the loop owns everything else."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""
        ...

    def batches(self, start: int, rank: int, world: int) -> Iterable[Any]:
        """Batches from image ``start`` on; this rank's slice of each."""
        ...

    def loss(self, net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and named scalars for the log. ``net`` is the model, possibly wrapped."""
        ...

    def evaluate(self, model: Any, folder: Path, seen: int) -> dict[str, float]:
        """Metrics of the averaged weights; may write pictures into ``folder``."""
        ...

    def export(self, model: Any, folder: Path) -> None:
        """Write the averaged model, ready for use."""
        ...


@runtime_checkable
class Adversarial(Task, Protocol):
    """A task that may train an adversary too, in every step after the model."""

    @property
    def adversary(self) -> Any:
        """A module whose ``config.lr`` is its peak learning rate, or None."""
        ...

    def adversary_loss(self, net: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Its loss on what the last ``loss`` produced, and named scalars; None before it begins.

        ``net`` is the adversary, possibly wrapped.
        """
        ...


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
    """AdamW on everything, or Muon on the matrices inside blocks and AdamW on the rest.

    Matrices that modulate (adaLN) are no feature maps and stay with AdamW. Every group carries its
    ``peak`` learning rate.
    """
    shares = depth_shares([name for name, _ in model.named_parameters()], config.layer_decay)
    hidden: dict[float, list[nn.Parameter]] = {}
    rest: list[tuple[nn.Parameter, float]] = []
    for name, p in model.named_parameters():
        feature_map = p.ndim == 2 and "blocks." in name and "adaLN" not in name
        if not p.requires_grad:
            continue
        if config.optimizer == "muon" and feature_map:
            hidden.setdefault(config.muon_lr * shares[name], []).append(p)
        else:
            rest.append((p, config.lr * shares[name]))
    found: list[torch.optim.Optimizer] = [adamw(rest, config.weight_decay)]
    if hidden:
        groups = [{"params": some, "peak": peak} for peak, some in hidden.items()]
        found.append(torch.optim.Muon(groups, momentum=0.95, weight_decay=config.weight_decay))
    return found


def rate(config: TrainConfig, seen: int) -> float:
    """Learning rate at ``seen`` images as a share of its peak."""
    if seen < config.warmup:
        return (seen + config.batch) / (config.warmup + config.batch)
    done = min(1.0, (seen - config.warmup) / max(1, config.images - config.warmup))
    fall = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.final_lr + (1 - config.final_lr) * fall


def resolve_precision(precision: str) -> str:
    """``auto`` becomes bf16 where the hardware multiplies it natively, else fp32."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, keep: float) -> None:
    """ema <- keep x ema + (1 - keep) x model; buffers and frozen parameters are copied."""
    pairs = list(zip(ema.parameters(), model.parameters(), strict=True))
    moving = [pair for pair in pairs if pair[1].requires_grad]
    torch._foreach_lerp_([kept for kept, _ in moving], [new for _, new in moving], 1 - keep)
    still = [pair for pair in pairs if not pair[1].requires_grad]
    for kept, new in (*still, *zip(ema.buffers(), model.buffers(), strict=True)):
        kept.copy_(new)


class Journal:
    """Metrics as JSON lines and TensorBoard curves; on resume, lines after the checkpoint go."""

    def __init__(self, folder: Path, seen: int):
        self.path = folder / "metrics.jsonl"
        if self.path.is_file():
            lines = []
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    if json.loads(line)["seen"] <= seen:
                        lines.append(line)
                except ValueError:  # the line that a kill cut short
                    continue
            write_atomically(self.path, "".join(line + "\n" for line in lines))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=seen)

    def write(self, seen: int, values: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seen": seen} | values) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, seen)
        self.board.flush()


def claim(folder: Path, recipe: str) -> None:
    """Write the recipe into a new run's folder, or check that the run there has the same one."""
    path = folder / "recipe.yaml"
    if path.is_file() and (old := path.read_text(encoding="utf-8")) != recipe:
        changed = sorted(line.strip() for line in set(recipe.split("\n")) ^ set(old.split("\n")))
        raise UserError(
            f"{folder} holds a run with another recipe ({'; '.join(changed)}); "
            "repeat its recipe to go on with it, or choose another --out"
        )
    write_atomically(path, recipe)


def train(task: Task, config: TrainConfig, folder: Path, recipe: str) -> bool:
    """Train until ``config.images`` images were seen, or go on where a stopped run left off.

    Writes into ``folder``: recipe.yaml, metrics.jsonl, tensorboard/, checkpoints/, pictures/ and
    the exported model. Returns False if it was stopped by Ctrl-C or SIGTERM (a checkpoint is
    written first). Raises UserError if the loss or a gradient stops being finite.
    """
    claim(folder, recipe)
    # Told so, accelerate joins the processes of torchrun on CPUs too.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    autocast = torch.autocast(
        accelerator.device.type, torch.bfloat16, resolve_precision(config.precision) == "bf16"
    )
    seed = config.seed * 1_000_003
    model = task.model.to(accelerator.device)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    opts = optimizers(model, config)
    rival_opts: list[torch.optim.Optimizer] = []
    parts = {"model.": model, "ema.": ema}
    adversary: Any = task.adversary if isinstance(task, Adversarial) else None
    if adversary is not None:
        parts["adversary."] = adversary.to(accelerator.device)
        learning = [p for p in adversary.parameters() if p.requires_grad]
        peaks = [(p, adversary.config.lr) for p in learning]
        rival_opts = [adamw(peaks, config.weight_decay)]
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    seen, state, complaints = load_newest(checkpoints)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if state:
        for name, part in parts.items():
            part.load_state_dict(
                {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
            )
        restore_optimizers(opts + rival_opts, state)
        accelerator.print(f"resuming at {seen:,} of {config.images:,} images", file=sys.stderr)
    net = accelerator.prepare_model(model)
    rival = None if adversary is None else accelerator.prepare_model(adversary)
    if config.compile:
        net = torch.compile(net)
    main = accelerator.is_main_process
    journal = Journal(folder, seen) if main else None

    def save() -> None:
        if main:
            tensors = {
                name + key: tensor
                for name, part in parts.items()
                for key, tensor in part.state_dict().items()
            }
            save_checkpoint(checkpoints, seen, tensors | optimizer_tensors(opts + rival_opts))

    def evaluate() -> None:
        if journal:
            pictures = folder / "pictures"
            pictures.mkdir(exist_ok=True)
            journal.write(seen, task.evaluate(ema, pictures, seen))
            task.export(ema, folder)
        accelerator.wait_for_everyone()

    def descend(loss: Tensor, part: nn.Module, opts: list[torch.optim.Optimizer]) -> Tensor:
        """One step of ``part`` down its loss; returns the gradient's norm before clipping."""
        accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(part.parameters(), config.clip)
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            rates = f"train.lr (now {config.lr:g}) or train.muon_lr (now {config.muon_lr:g})"
            if adversary is not None:
                rates += f" or adversary.lr (now {adversary.config.lr:g})"
            raise UserError(
                f"the loss or its gradient is no longer finite at {seen:,} images; the last "
                f"checkpoint in {checkpoints} is good: lower {rates} in a new --out"
            )
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad()
        return norm

    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    old_handlers = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    logged: dict[str, list[float]] = {}
    steps, started = 0, time.perf_counter()
    bar = tqdm(
        total=config.images, initial=seen, unit="img", unit_scale=True, disable=not main,
        mininterval=1 if sys.stderr.isatty() else 30, smoothing=0.05, desc=type(task).__name__,
    )  # fmt: skip
    try:
        for batch in task.batches(seen, accelerator.process_index, accelerator.num_processes):
            set_seed(seed + seen * accelerator.num_processes + accelerator.process_index)
            share = rate(config, seen)
            for optimizer in opts + rival_opts:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * share
            net.train()
            with autocast:
                loss, terms = task.loss(net, batch)
            norm = descend(loss, model, opts)
            values = {"loss": loss, "grad_norm": norm} | terms
            if rival is not None and isinstance(task, Adversarial):
                rival.train()
                with autocast:
                    played = task.adversary_loss(rival, batch)
                if played is not None:
                    loss, terms = played
                    norm = descend(loss, adversary, rival_opts)
                    values |= {"adversary_loss": loss, "adversary_grad_norm": norm} | terms
            before, seen = seen, min(seen + config.batch, config.images)
            # A halflife that grows with the run forgets the first steps (Karras et al. 2022).
            halflife = min(config.ema_halflife, seen * 0.05)
            average(ema, model, 0.5 ** (config.batch / max(halflife, 1e-8)))
            steps += 1
            for name, value in values.items():
                logged.setdefault(name, []).append(value.item())
            bar.update(seen - before)

            def due(every: int, before: int = before, seen: int = seen) -> bool:
                return before // every != seen // every or seen == config.images

            if journal and due(config.log_every):
                means = {name: sum(some) / len(some) for name, some in logged.items()}
                means |= {"lr": config.lr * share}
                means["images_per_second"] = steps * config.batch / (time.perf_counter() - started)
                journal.write(seen, means)
                bar.set_postfix(loss=f"{means['loss']:.4f}")
                logged, steps, started = {}, 0, time.perf_counter()
            if due(config.evaluate_every):
                paused = time.perf_counter()
                evaluate()
                started += time.perf_counter() - paused
            if stopping or due(config.checkpoint_every):
                save()
            if stopping:
                break
    finally:
        bar.close()
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
    if stopping:
        print(
            f"stopped at {seen:,} of {config.images:,} images; the same command goes on from here",
            file=sys.stderr,
        )
    return not stopping
