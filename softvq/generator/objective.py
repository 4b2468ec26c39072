"""What training a generator minimises: its family's loss, and with alignment a term on its states.

Alignment inside the generator (REPA, Yu et al. 2024): a head turns what block k of a transformer
gives out into a frozen vision model's features of the clean image, and the loss is the mean
negative cosine of the two. The head is left behind when the generator is saved.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.generator.config import HiddenAlignmentConfig
from softvq.generator.families import family_of
from softvq.generator.transformer import TokenTransformer, hidden_states
from softvq.tokenizer.alignment import HEADS, Head


class Learning(nn.Module):
    """What is trained: a network and, with alignment, the head that reads a block of it.

    ``time`` is a key of TIME_LAWS, None what is usual in the network's family; ``features`` are the
    teacher's (patches, width); ``loss`` is the family's, unless another is given, as one that has a
    teacher. Raises UserError if the network has no such block.
    """

    def __init__(
        self,
        network: Any,
        time: str | None = None,
        alignment: HiddenAlignmentConfig | None = None,
        features: tuple[int, int] = (0, 0),
        loss: Callable[..., Tensor] | None = None,
    ):
        super().__init__()
        self.net, self.family = network, family_of(network)  # ``net`` in every checkpoint
        self.time, self.minimised = time or self.family.time, loss or self.family.loss
        self.head: Head | None = None
        if alignment is not None:
            if not isinstance(network, TokenTransformer):
                raise UserError(
                    "alignment reads the blocks of a SiT or a DiT, and a "
                    f"{type(network).__name__} has none; set alignment.weight=0"
                )
            if network.config.nested:
                raise UserError(
                    "alignment reads states of all places, and a nested generator learns from "
                    "fewer too; set model.nested=false or alignment.weight=0"
                )
            with hidden_states(network, alignment.block):  # says if there is no such block
                rows, columns = network.config.grid
            states = (rows * columns, network.config.width)
            self.head = HEADS[alignment.scheme](alignment.hidden, states, features)
            self.block = alignment.block

    def forward(
        self, x0: Tensor, y: Tensor | None, rng: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised latents [B, L, C], labels [B] -> loss [B], predicted features [B, M, D]."""
        if self.head is None:
            return self.loss(x0, y, rng), None
        with hidden_states(self.net, self.block) as states:
            loss = self.loss(x0, y, rng)
        rows, columns = self.net.config.grid  # a summary's states come after those of places
        return loss, self.head(states[0][:, : rows * columns])

    def loss(self, x0: Tensor, y: Tensor | None, rng: torch.Generator | None) -> Tensor:
        """The family's, [B]. In evaluation mode no label and no token is dropped."""
        config = self.net.config
        if not self.training:
            whole = {"nested": False} if isinstance(self.net, TokenTransformer) else {}
            config = replace(config, label_dropout=0.0, **whole)
        return self.minimised(self.net, x0, y, config, self.time, rng)


class Frozen:
    """A network that teaches and does not learn, on whichever device it is asked.

    No module, so that it is neither saved nor averaged nor copied with what learns from it.
    """

    def __init__(self, network: Any):
        self.network, self.config = network.eval().requires_grad_(False), network.config

    def __call__(self, x: Tensor, *others: Tensor | None) -> Tensor:
        return self.network.to(x.device)(x, *others)

    def __deepcopy__(self, memo: Any) -> "Frozen":
        return self
