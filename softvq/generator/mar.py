"""MAR: masked autoregression on continuous tokens (Li et al. 2024, arXiv 2406.11838).

Tokens come in a random order, some at a time. A masked autoencoder turns the known tokens into one
vector z per unknown token, and a small MLP, the head, draws a token given its z:

    p(x) = prod_k p(X_k | X_1 .. X_{k-1}),    X_k the set of tokens of iteration k        (1)
    z = decoder(encoder(X_1 .. X_{k-1})),     p(X_k | ..) = prod_{i in X_k} p(x_i | z_i)  (2)

Tokens of one iteration are independent given the earlier ones: fewer iterations, less dependence.

The paper's head is a DDPM of a thousand steps with a learned variance. This one, the same adaLN
MLP, learns the velocity of the library's linear process, as SiT does: one definition of noise and
time for both, and every sampler serves. The paper's dropout of 0.1 is left out.

Shapes: B batch, L tokens, C channels, D width, V visible and M hidden tokens, V + M = L,
N tokens of any number of images in one row.
"""

# To torch a network that is called gives Any.
# mypy: disable-error-code="no-any-return"

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from softvq.errors import UserError
from softvq.generator.config import MARConfig
from softvq.generator.guidance import Guided
from softvq.generator.process import LINEAR, TIME_LAWS, denoising_loss, drop_labels
from softvq.generator.sampler import SAMPLERS, NoiseStreams, Sampler
from softvq.generator.transformer import FinalLayer, layer_norm
from softvq.io import load_model, save_model
from softvq.layers import LabelEmbedder, Mlp, TimeEmbedder, modulate
from softvq.processes import ours, randn, whole
from softvq.tokenizer.vit import Block


def take(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of x [B, L, C] at index [B, n], in its order: [B, n, C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


class HeadBlock(nn.Module):
    """Residual MLP with adaLN-Zero: x [N, 1, D], condition [N, D] -> [N, 1, D]."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = layer_norm(width)
        self.mlp = Mlp(width, ratio=1.0, approximate="tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(condition).chunk(3, -1)
        return x + gate[:, None] * self.mlp(modulate(self.norm(x), shift, scale))


class Head(nn.Module):
    """Velocity of single tokens: ``head(x [N, 1, C], t [N], z [N, D]) -> [N, 1, C]``.

    That is a network as the samplers take it: a token is a sequence of one, and z its label.
    """

    def __init__(self, config: MARConfig):
        super().__init__()
        width = config.head_width
        self.x_embedder = nn.Linear(config.channels, width)
        self.t_embedder = TimeEmbedder(width)
        self.z_embedder = nn.Linear(config.width, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(config.head_depth))
        self.final_layer = FinalLayer(width, config.channels)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        condition = self.t_embedder(t) + self.z_embedder(z)
        x = self.x_embedder(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)


class MAR(nn.Module):
    """Masked autoencoder and head. It is given the visible tokens only, so nothing can leak."""

    def __init__(self, config: MARConfig):
        super().__init__()
        self.config = config
        width, positions = config.width, config.buffer + config.tokens
        self.y_embedder = LabelEmbedder(config.num_classes, width)
        self.x_embedder = nn.Linear(config.channels, width)
        self.encoder_positions = nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.encoder_blocks = nn.ModuleList(
            Block(width, config.heads, None) for _ in range(config.depth)
        )
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.to_decoder = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_positions = nn.Embedding(positions, width)
        self.decoder_blocks = nn.ModuleList(
            Block(width, config.heads, None) for _ in range(config.depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.head_positions = nn.Embedding(config.tokens, width)
        self.head = Head(config)
        self._initialise()

    def _initialise(self) -> None:
        """The paper's: Xavier everywhere, small embeddings, zero gates and zero output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        head = self.head
        for layer in head.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        modulations = [layer.adaLN_modulation[1] for layer in (*head.blocks, head.final_layer)]
        for linear in (*modulations, head.final_layer.linear):
            nn.init.zeros_(linear.weight)

    def condition(
        self, visible: Tensor, shown: Tensor, hidden: Tensor, y: Tensor | None = None
    ) -> Tensor:
        """Equation (2): z [B, M, D] of the hidden tokens.

        visible  values [B, V, C] of the known tokens; V may be 0
        shown    their positions [B, V] in 0..L-1
        hidden   the other positions [B, M]
        y        labels [B], ``config.num_classes`` is the null class; None means the null class
                 for all, and an unconditional model ignores y

        Attention knows no order: positions are added, so tokens may stand in any.
        """
        batch, buffer = hidden.shape[0], self.config.buffer
        if y is None or self.config.num_classes == 0:
            y = torch.full((batch,), self.config.num_classes, device=hidden.device)
        first = torch.arange(buffer, device=hidden.device).expand(batch, -1)
        known = torch.cat([first, shown + buffer], 1)
        label = self.y_embedder(y)[:, None].expand(-1, buffer, -1)
        x = torch.cat([label, self.x_embedder(visible)], 1)
        x = self.norm(x + self.encoder_positions(known))
        for block in self.encoder_blocks:
            x = block(x)
        x = self.to_decoder(self.encoder_norm(x))
        masks = self.mask_token.expand(batch, hidden.shape[1], -1).to(x.dtype)
        x = torch.cat([x, masks], 1)
        x = x + self.decoder_positions(torch.cat([known, hidden + buffer], 1))
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x[:, known.shape[1] :]) + self.head_positions(hidden)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None,
        visible: Tensor,
        shown: Tensor,
        hidden: Tensor,
    ) -> Tensor:
        """Velocity [B * M * R, 1, C] of the hidden tokens at R noise levels each.

        x  noisy hidden tokens [B * M * R, 1, C], token by token
        t  their times [B * M * R]

        The others are as ``condition`` takes them. Raises ValueError where the shapes disagree.
        """
        tokens, channels = self.config.tokens, self.config.channels
        known, unknown = shown.shape[1], hidden.shape[1]
        if known + unknown != tokens or visible.shape[1:] != (known, channels) or not unknown:
            raise ValueError(
                f"expected the values [B, V, {channels}] of V visible tokens and the positions of "
                f"{tokens} - V > 0 hidden ones, got {list(visible.shape)} and {list(hidden.shape)}"
            )
        z = self.condition(visible, shown, hidden, y).flatten(0, 1)
        return self.head(x, t, z.repeat_interleave(x.shape[0] // z.shape[0], 0))

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write config.json and model.safetensors; ``half`` stores the weights in float16."""
        save_model(self, directory, half=half)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load what ``save_pretrained`` wrote, strictly, in evaluation mode, on the CPU.

        Raises UserError for a missing or damaged file, an unknown config field, and weights that
        are missing, extra or of another shape.
        """
        return load_model(cls, MARConfig, directory)


def draw_hidden(tokens: int, rng: torch.Generator | None = None) -> int:
    """How many tokens a training step hides: all times a ratio of N(1, 0.25^2) cut to [0.7, 1]."""
    # Without an rng the CPU draws: asking a GPU would wait for it.
    ratio = torch.empty((), device=rng.device if rng else "cpu")
    nn.init.trunc_normal_(ratio, 1.0, 0.25, 0.7, 1.0, rng)
    return math.ceil(tokens * ratio.item())


def training_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    y: Tensor | None,
    config: MARConfig,
    time: str = "lognormal",
    rng: torch.Generator | None = None,
) -> Tensor:
    """Squared error of the hidden tokens' velocity, mean per sample [B].

    x0 are normalised latents [B, L, C], y labels [B] (None for an unconditional network), ``time``
    a key of TIME_LAWS. Order, noise, times and label dropout come from ``rng``, or from the global
    one of x0's device. The number of hidden tokens is one for the batch, which keeps it dense.
    ``config`` is the network's, which DistributedDataParallel hides.
    """
    device = rng.device if rng else x0.device
    batch, tokens = x0.shape[:2]
    hide = draw_hidden(tokens, rng)
    draws = ours(torch.rand(whole(batch), tokens, generator=rng, device=device))
    order = draws.argsort(1).to(x0.device)
    shown, hidden = order.split([tokens - hide, hide], dim=1)
    target = take(x0, hidden).repeat_interleave(config.repeats, 1).reshape(-1, 1, x0.shape[2])
    t = TIME_LAWS[time](LINEAR, target.shape[0], rng, device).to(x0.device)
    noise = randn(target.shape, rng, device).to(x0)
    if y is not None:
        y = drop_labels(y, config.num_classes, config.label_dropout, rng)
    velocity = partial(network, visible=take(x0, shown), shown=shown, hidden=hidden)
    return denoising_loss(velocity, LINEAR, target, y, t, noise).unflatten(0, (batch, -1)).mean(1)


def known_counts(tokens: int, iterations: int) -> list[int]:
    """How many tokens are known before each iteration and after the last, [iterations + 1].

    The cosine schedule of MaskGIT (Chang et al. 2022): tokens * cos(pi/2 k/iterations), rounded
    down, are still hidden after iteration k, and at least one fewer than before. Raises UserError
    unless 1 <= iterations <= tokens.
    """
    if not 1 <= iterations <= tokens:
        raise UserError(f"iterations must be 1..{tokens}, the number of tokens, got {iterations}")
    hidden = [tokens]
    for k in range(1, iterations + 1):
        # The cosine is concave, so it leaves a token for every iteration to come.
        hidden.append(min(hidden[-1] - 1, int(tokens * math.cos(math.pi / 2 * k / iterations))))
    return [tokens - count for count in hidden]


# Guidance scale from the full scale and the share of tokens known after the iteration.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda scale, share: 1 + (scale - 1) * share,
    "constant": lambda scale, share: scale,
}


@torch.no_grad()
def sample(
    network: MAR,
    streams: NoiseStreams,
    y: Tensor | None,
    times: Tensor,
    iterations: int,
    sampler: Sampler = SAMPLERS["euler"],
    guidance: float = 1.0,
    schedule: str = "linear",
    temperature: float = 1.0,
) -> Tensor:
    """Draw normalised latents [B, L, C], one image from each stream.

    y            labels [B]; None for the null class and for an unconditional network
    times        the head's falling time grid from 1 to 0, see ``time_grid``
    iterations   1..L, see ``known_counts``
    sampler      for the head
    guidance     scale of classifier-free guidance, 1 for none; without labels there is none
    schedule     "linear": from 1, in proportion to the tokens known, up to ``guidance`` in the
                 last iteration (the paper's, after Muse); or "constant"
    temperature  0 or more, a factor on all noise of the head: at t = 1, and of a stochastic
                 sampler's steps. The paper scales the noise of its DDPM's steps, but an ODE's have
                 none. Scaling all of it means the same for every sampler: a Gaussian token keeps
                 its mean, and its standard deviation is multiplied by the temperature

    An image's order and noise come from its stream alone, and its noise at t = 1 belongs to a
    position, whenever that is drawn: other options, same order and noise. An image costs
    ``iterations`` evaluations of encoder and decoder, and L of the head for each network call of
    the sampler; twice both with guidance.

    Raises UserError for iterations out of range, an unknown schedule, a negative temperature, and
    an unconditional network that is to be guided.
    """
    config, weight = network.config, network.mask_token
    known = known_counts(config.tokens, iterations)
    if schedule not in SCHEDULES:
        raise UserError(f"guidance schedule '{schedule}' is none of {', '.join(SCHEDULES)}")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature must be 0 or more, got {temperature}")
    if guidance != 1 and config.num_classes == 0:
        raise UserError("an unconditional generator cannot be guided; use guidance 1")

    def draw(count: int) -> Tensor:
        return temperature * streams.draw(count, config.channels).to(weight)

    def noise(count: int, step: int) -> Tensor:
        return draw(count).reshape(-1, 1, config.channels)

    def given(labels: int) -> Callable[..., Tensor]:
        """The head on one of a token's two z: 0 given the label, 1 given the null class."""
        return lambda x, t, z: network.head(x, t, z[:, labels])

    order = streams.draw(config.tokens).argsort(1).to(weight.device)
    start = draw(config.tokens)
    copies = 1
    if y is None:
        guidance = 1.0
    elif guidance != 1:
        copies, y = 2, torch.cat([y, torch.full_like(y, config.num_classes)])

    drawn = start[:, :0]  # in the order of generation
    for before, after in pairwise(known):
        visible, shown, hidden = (
            torch.cat([part] * copies) for part in (drawn, order[:, :before], order[:, before:])
        )
        z = network.condition(visible, shown, hidden, y)[:, : after - before]
        z = z.flatten(0, 1).unflatten(0, (copies, -1)).transpose(0, 1)  # [N, 1 or 2, D]
        x = sampler(
            Guided(given(0), SCHEDULES[schedule](guidance, after / config.tokens), bad=given(1)),
            take(start, order[:, before:after]).reshape(-1, 1, config.channels),
            times,
            z,
            noise=partial(noise, after - before),
        )
        drawn = torch.cat([drawn, x.reshape(drawn.shape[0], -1, config.channels)], 1)
    return take(drawn, order.argsort(1))
