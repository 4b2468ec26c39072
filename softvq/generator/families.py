"""The families of generators: what training and drawing must know of each, in one dict.

Every family works on normalised latents [B, L, C], whatever its network takes:

    loss(network, x0, y, config, time, rng) -> [B]      time: a key of TIME_LAWS, or the family's
    sample(network, streams, y, **options) -> latents [B, L, C]      see each for its options

A new family is one entry here, beside that of its config in CONFIGS.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.generator import mar
from softvq.generator.config import CONFIGS, FlowMapConfig, TransformerConfig
from softvq.generator.flowmap import FlowMap, Told, flow_map_loss
from softvq.generator.guidance import Guided
from softvq.generator.picture import amplitudes
from softvq.generator.process import training_loss
from softvq.generator.sampler import SAMPLERS, NoiseStreams, Sampler
from softvq.generator.transformer import DiT, SiT
from softvq.layers import InBlocks


@dataclass(frozen=True)
class Family:
    """What a family is: its config, of CONFIGS, its network, and the two functions above.

    whole: whether ``sample`` asks nothing of a network but calls of it, on images as a whole.
    """

    config: Any
    network: Any
    loss: Callable[..., Tensor]
    sample: Callable[..., Tensor]
    whole: bool = True

    @property
    def time(self) -> str:
        """How training times are drawn where nothing else is said: a key of TIME_LAWS."""
        return self.config.time_law

    @property
    def options(self) -> dict[str, Any]:
        """The options of ``sample`` and their defaults."""
        parameters = list(inspect.signature(self.sample).parameters.values())[3:]
        return {parameter.name: parameter.default for parameter in parameters}


def to_net(x: Tensor, config: TransformerConfig) -> Tensor:
    """Latents [B, L, C] as the network takes them: at a picture's amplitudes if they are its
    spectrum, maps [B, C, H, W] if it cuts patches."""
    if config.picture:
        return x * _amplitudes(x, config)
    return arranged(x, config)


def _amplitudes(x: Tensor, config: TransformerConfig) -> Tensor:
    """[k, C] like x [B, k, C], of the first tokens; those of a summary are 1."""
    count = x.shape[1] - config.summary
    scale = amplitudes(config.tokens, config.channels)[:count]
    return F.pad(scale, (0, 0, 0, config.summary), value=1.0).to(x)


def first_of(x: Tensor, count: int, config: TransformerConfig) -> Tensor:
    """The first ``count`` tokens of x [B, L, C], and the summary."""
    return torch.cat([x[:, :count], x[:, config.tokens :]], dim=1)


def some_tokens(x0: Tensor, config: TransformerConfig, rng: torch.Generator | None) -> Tensor:
    """What a step learns: a nested generator all tokens half of the time, else the first k of one
    of its smaller counts, which are drawn evenly."""
    fewer = config.counts[1:]
    if not fewer:
        return x0
    u = torch.rand(1, generator=rng, device=rng.device if rng else x0.device).item()
    return x0 if u < 0.5 else first_of(x0, fewer[int((2 * u - 1) * len(fewer))], config)


def arranged(x: Tensor, config: TransformerConfig) -> Tensor:
    """[B, L, C] as the network takes it, maps [B, C, H, W] if it cuts patches; numbers as they
    are, as those of noise, which is of variance 1 where the network sees it."""
    return x if config.patch is None else x.transpose(1, 2).unflatten(2, config.latent_shape[1:])


def from_net(x: Tensor, config: TransformerConfig) -> Tensor:
    """The inverse of :func:`to_net`, without a summary."""
    if config.patch is not None:
        return x.flatten(2).transpose(1, 2)
    if config.picture:
        x = x / _amplitudes(x, config)
    return x[:, : x.shape[1] - config.summary]


def transformer_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    y: Tensor | None,
    config: TransformerConfig,
    time: str,
    rng: torch.Generator | None = None,
    contrast: float = 0.0,
) -> Tensor:
    """``training_loss`` [B] of latents [B, L, C] on the network's own process."""
    x0 = to_net(some_tokens(x0, config, rng), config)
    return training_loss(network, config.process, x0, y, config, time, rng, contrast)


def find_sampler(name: str) -> Sampler:
    """A sampler by its name. Raises UserError."""
    if name not in SAMPLERS:
        raise UserError(f"sampler '{name}' is none of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


@torch.no_grad()
def transformer_sample(
    network: Any,
    streams: NoiseStreams,
    y: Tensor | None,
    steps: int = 20,
    guidance: float | Tensor = 1.5,
    interval: tuple[float, float] = (0.0, 1.0),
    sampler: str = "dpm_solver",
    bad: Any = None,
    tokens: int | None = None,
) -> Tensor:
    """Normalised latents [B, L, C], one image from each stream, given labels y [B] or None.

    steps, sampler                 see ``softvq.generator.sampler``; how the defaults were chosen is
                                   in docs/generating.md
    guidance, interval, bad        see ``Guided``; without labels or ``bad`` there is none
    tokens                         L: one of the network's ``config.counts``; None for all

    Raises UserError for an unknown sampler, fewer than one step or more than a diffusion has, and
    for guidance that cannot be.
    """
    chosen = find_sampler(sampler)
    if y is None and bad is None:
        guidance = 1.0
    guided = Guided(network, guidance, interval, bad, network.config.process)
    return _drawn(network, guided, streams, y, steps, chosen, tokens)


def _drawn(
    network: Any,
    guided: Any,
    streams: NoiseStreams,
    y: Tensor | None,
    steps: int,
    sampler: Sampler,
    tokens: int | None,
) -> Tensor:
    """Latents [B, L, C] that a sampler draws from a transformer, guided as ``guided`` is."""
    config, process = network.config, network.config.process
    weight = next(network.parameters())
    count = tokens or config.tokens
    if count not in config.counts:
        counts = " or ".join(map(str, config.counts))
        raise UserError(f"this generator draws {counts} tokens, not {tokens}")

    def noise(step: int) -> Tensor:
        drawn = streams.draw(*config.latent_shape).to(weight)  # a draft's is that of all tokens
        return drawn if count == config.tokens else first_of(drawn, count, config)

    times = sampler.grid(steps, process)
    return from_net(sampler(guided, noise(0), times, y, process, noise), config)


def few_step_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    y: Tensor | None,
    config: FlowMapConfig,
    time: str,
    rng: torch.Generator | None = None,
    **objective: Any,
) -> Tensor:
    """``flow_map_loss`` [B] of latents [B, L, C]; see it for ``objective``."""
    x0 = to_net(some_tokens(x0, config, rng), config)
    return flow_map_loss(network, x0, y, config, time, rng, **objective)


@torch.no_grad()
def flow_map_sample(
    network: FlowMap,
    streams: NoiseStreams,
    y: Tensor | None,
    steps: int = 2,
    guidance: float | Tensor | None = None,
    interval: tuple[float, float] = (0.0, 1.0),
    sampler: str = "flow_map",
    tokens: int | None = None,
) -> Tensor:
    """Normalised latents [B, L, C], one image from each stream, given labels y [B] or None.

    steps, sampler          of one evaluation each, whatever the guidance
    guidance, interval      see ``Told``; None is 1.5, or the most that the network knows
    tokens                  L: one of the network's ``config.counts``; None for all

    Raises UserError as ``transformer_sample``, and for a scale that the network has not learned.
    """
    usual = min(1.5, network.config.most_guidance) if guidance is None else guidance
    told = Told(network, 1.0 if y is None else usual, interval)
    return _drawn(network, told, streams, y, steps, find_sampler(sampler), tokens)


@torch.no_grad()
def mar_sample(
    network: mar.MAR,
    streams: NoiseStreams,
    y: Tensor | None,
    steps: int | None = None,
    guidance: float = 1.5,
    schedule: str = "linear",
    sampler: str = "euler",
    head_steps: int = 25,
    temperature: float = 1.0,
) -> Tensor:
    """Normalised latents [B, L, C], one image from each stream, given labels y [B] or None.

    steps                       iterations, at most L; None for L, one token each
    sampler, head_steps         how the head draws a token
    guidance, schedule, temperature   see ``mar.sample``

    Raises UserError for what ``mar.sample`` refuses, an unknown sampler, and no head_steps.
    """
    if head_steps < 1:
        raise UserError(f"head_steps must be 1 or more, got {head_steps}")
    chosen = find_sampler(sampler)
    return mar.sample(
        network,
        streams,
        y,
        chosen.grid(head_steps),
        network.config.tokens if steps is None else steps,
        chosen,
        1.0 if y is None else guidance,
        schedule,
        temperature,
    )


GENERATORS: dict[str, Family] = {
    "sit": Family(CONFIGS["sit"], SiT, transformer_loss, transformer_sample),
    "dit": Family(CONFIGS["dit"], DiT, transformer_loss, transformer_sample),
    "flowmap": Family(CONFIGS["flowmap"], FlowMap, few_step_loss, flow_map_sample),
    "mar": Family(CONFIGS["mar"], mar.MAR, mar.training_loss, mar_sample, whole=False),
}


def family_of(network: nn.Module) -> Family:
    """The family that a network belongs to."""
    return next(family for family in GENERATORS.values() if isinstance(network, family.network))


def draw(
    network: nn.Module,
    streams: NoiseStreams,
    y: Tensor | None,
    rows: int | None = None,
    **options: Any,
) -> Tensor:
    """``sample`` of the network's family. Raises UserError for an option that it does not have.

    ``rows``: how many images networks see at a time, if the family's are called as a ``whole``; see
    ``layers.in_blocks``.
    """
    family = family_of(network)
    for name in options:
        if name not in family.options:
            raise UserError(
                f"a {type(network).__name__} has no option '{name}'; it has "
                f"{', '.join(family.options)}"
            )
    if rows is None or not family.whole:
        return family.sample(network, streams, y, **options)
    others = {k: InBlocks(v, rows) if isinstance(v, nn.Module) else v for k, v in options.items()}
    return family.sample(InBlocks(network, rows), streams, y, **others)
