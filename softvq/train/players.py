"""What is trained: players, each a network with its optimizers and its loss, and their task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from softvq.recipe import TrainConfig
from softvq.train.optimizers import optimizers


@dataclass
class Turn:
    """What a player's loss gives: what it goes down, what is logged, what the next player reads.

    loss: scalar.  terms: scalars by name.  made: what it made of the batch, detached.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    made: Any = None


@dataclass
class Player:
    """A network that learns. In every step each player of a task has one turn, in their order.

    name: of its tensors in checkpoints and of its curves.
    loss: (net, batch, made) -> :class:`Turn`, or None for a turn that it sits out. ``net`` is the
        module, possibly wrapped; ``made`` what the player before it made of the same batch.
    optimizers: makes those of a module; every parameter group has its ``peak`` learning rate.
    rates: the recipe's keys of its learning rates, and their values, for messages.
    """

    name: str
    module: nn.Module
    loss: Callable[[nn.Module, Any, Any], Turn | None]
    optimizers: Callable[[nn.Module], list[torch.optim.Optimizer]]
    rates: dict[str, float]

    @classmethod
    def model(cls, module: nn.Module, loss: Callable[..., Turn], config: TrainConfig) -> "Player":
        """The first player of a task, trained as the recipe says."""
        rates = {"train.lr": config.lr}
        if config.optimizer == "muon":
            rates["train.muon_lr"] = config.muon_lr
        return cls("model", module, loss, partial(optimizers, config=config), rates)


class Task(Protocol):
    """A thing to train; the loop owns everything else."""

    @property
    def name(self) -> str:
        """What is trained, in plain words: ``tokenizer``."""
        ...

    @property
    def players(self) -> list[Player]:
        """Who learns. The first is the model: its averaged weights are evaluated and exported."""
        ...

    def batches(self, start: int, rank: int, world: int) -> Iterable[Any]:
        """Batches from image ``start`` on, this process's part of each, in as many pieces as
        ``train.accumulate`` says."""
        ...

    def evaluate(self, model: Any, folder: Path, seen: int) -> dict[str, float]:
        """Metrics of the averaged weights; may write pictures into ``folder``."""
        ...

    def export(self, model: Any, folder: Path) -> None:
        """Write the averaged model, ready for use."""
        ...
