"""What a model costs: parameters and operations by count, images per second by the clock.

Operations are counted on the meta device, where tensors have shapes and no memory, so a model of
any size is counted in about a second. FLOPs are 2 x multiply-adds (MACs); papers print either,
under either name, so print both. Matrix products, convolutions and attention count; element-wise
operations do not.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from softvq.generator.config import FlowMapConfig, MARConfig, TransformerConfig
from softvq.generator.families import GENERATORS
from softvq.generator.mar import MAR, known_counts
from softvq.tokenizer import Tokenizer, TokenizerConfig

GeneratorConfig = TransformerConfig | MARConfig
NETWORKS: dict[type, type[nn.Module]] = {
    family.config: family.network for family in GENERATORS.values()
}
USUAL = 50  # sampling steps of generators of many, as papers count them
HIDDEN = 0.87  # of the tokens, on average, in a training step of MAR: see ``mar.draw_hidden``


@dataclass(frozen=True)
class Cost:
    """Of one call: ``parameters`` numbers, ``flops`` operations, ``macs`` multiply-adds.

    ``activations``: bytes that autograd keeps from the forward to the backward pass of this call,
    in float32; about half under bf16 autocast. Fused attention is assumed, which keeps its inputs
    and its output but no scores. An estimate of the memory that grows with the batch: weights,
    gradients, the optimizer's state, losses and workspace come on top.
    """

    parameters: int
    flops: int
    macs: int
    activations: int = 0

    @property
    def training(self) -> int:
        """FLOPs of a training step: three calls, as a backward pass makes two products, for input
        and weight, where the forward pass makes one. (The first layer's input needs none.)
        """
        return 3 * self.flops


class Throughput(NamedTuple):
    """Images per second: the median of the calls, and the quartiles around it."""

    median: float
    low: float
    high: float


class _Method(nn.Module):
    """A model whose forward is another of its methods."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, *inputs: Tensor) -> object:
        return getattr(self.model, self.name)(*inputs)


def _parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def count(model: nn.Module, *inputs: Tensor) -> Cost:
    """What ``model(*inputs)`` costs.

    Neither the model nor the inputs are changed, moved or read, and nothing is allocated or
    computed; both may be on the meta device. The model is counted in its present mode: call
    ``eval()`` first to leave out what only training does.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    state = {
        name: torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)
        for name, x in tensors.items()
    }
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        parameter = x if x._base is None else x._base
        if not (parameter.is_leaf and parameter.requires_grad):
            storage = x.untyped_storage()  # which several views may share
            kept[id(storage)] = storage
        return x

    class Fused(TorchFunctionMode):
        """Attention keeps what a fused kernel keeps."""

        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: tuple = (),
            kwargs: dict[str, Any] | None = None,
        ) -> Any:
            if func is not F.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            with saved_tensors_hooks(lambda x: x, lambda x: x):
                output = func(*args, **(kwargs or {}))
            if output.requires_grad:
                for x in (*args[:3], output):
                    keep(x)
            return output

    # MATH spells attention out as two matrix products, which the counter knows.
    with (
        torch.enable_grad(),
        sdpa_kernel(SDPBackend.MATH),
        saved_tensors_hooks(keep, lambda x: x),
        Fused(),
        FlopCounterMode(display=False) as counter,
    ):
        meta = tuple(
            torch.empty_like(x, device="meta").requires_grad_(x.requires_grad) for x in inputs
        )
        functional_call(model, state, meta)
    flops = counter.get_total_flops()
    activations = sum(storage.nbytes() for storage in kept.values())
    return Cost(_parameters(model), flops, flops // 2, activations)


# ---- our models ----


class _Encoder(nn.Module):
    """Up to the bottleneck: the first ``tokens`` of a nested tokenizer; None for all."""

    def __init__(self, tokenizer: Tokenizer, tokens: int | None):
        super().__init__()
        self.encoder, self.to_latent = tokenizer.encoder, tokenizer.to_latent
        self.fewer = {} if tokens is None else {"tokens": tokens}

    def forward(self, images: Tensor) -> Tensor:
        return self.to_latent(self.encoder(images, **self.fewer))


def tokenizer_cost(
    tokenizer: TokenizerConfig | Tokenizer, tokens: int | None = None
) -> dict[str, Cost]:
    """Cost of ``encoder``, ``bottleneck`` and ``decoder`` for one image of the config's size.

    ``tokens``: of the first so many tokens alone, if it is nested; None for all. UserError.

    Given a config, the tokenizer is built without memory; one of diffusers is given itself.
    The encoder is ``Tokenizer.encode`` up to the bottleneck, without it; encoder and bottleneck
    together are ``encode``, the decoder is ``decode``.
    """
    with torch.device("meta"):
        if isinstance(tokenizer, TokenizerConfig):
            tokenizer = Tokenizer(tokenizer).eval()
        config = tokenizer.config
        if tokens is not None:
            tokenizer.check_tokens(tokens)
        image = torch.empty(1, 3, config.height, config.width)
        latents = torch.empty(1, tokens or config.tokens, config.channels)
        features = torch.empty(1, tokens or config.tokens, tokenizer.bottleneck.features)
    decode = count(_Method(tokenizer, "decode"), latents)
    return {
        "encoder": count(_Encoder(tokenizer, tokens), image),
        "bottleneck": count(tokenizer.bottleneck, features),
        "decoder": replace(
            decode, parameters=_parameters(tokenizer.from_latent, tokenizer.decoder)
        ),
    }


def sampling_steps(config: GeneratorConfig, steps: int | None) -> int:
    """How many of ``steps`` a generator can make: a MAR draws a token or more in each. None is
    usual."""
    if steps is None:
        few = isinstance(config, FlowMapConfig)
        steps = int(GENERATORS["flowmap"].options["steps"]) if few else USUAL
    return min(steps, config.tokens) if isinstance(config, MARConfig) else steps


def generator_cost(
    config: GeneratorConfig, steps: int | None, guidance: float, head_steps: int = 25
) -> dict[str, Cost]:
    """Cost of one ``network`` evaluation and of one ``image``: all of them, without the decoder.

    Euler's method makes one evaluation per step, two with guidance (a scale other than 1) on all
    of the time interval; a few-step generator is told its guidance, and makes one. Heun's makes
    2 steps - 1. For MAR a step is an iteration, at most one for
    each token, and an evaluation an iteration on average: encoder and decoder once, and the head
    ``head_steps`` times for each token that is drawn.
    """
    steps = sampling_steps(config, steps)
    copies = 1 if guidance == 1 or isinstance(config, FlowMapConfig) else 2
    if isinstance(config, MARConfig):
        known = known_counts(config.tokens, steps)
        image = _mar_image(config, known, head_steps, copies)
        share = copies * (len(known) - 1)
        network = replace(image, flops=image.flops // share, macs=image.macs // share)
        return {"network": network, "image": image}
    model, inputs = _with_inputs(config)
    network = count(model, *inputs)
    flops = steps * copies * network.flops
    return {"network": network, "image": Cost(network.parameters, flops, flops // 2)}


def _with_inputs(config: TransformerConfig) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network without memory, and the inputs of one evaluation for one image."""
    with torch.device("meta"):
        label = torch.empty(1, dtype=torch.long)
        inputs = torch.empty(1, *config.latent_shape), torch.empty(1), label
        return NETWORKS[type(config)](config).eval(), inputs


def _mar_image(config: MARConfig, known: list[int], head_steps: int, copies: int) -> Cost:
    with torch.device("meta"):
        mar = MAR(config).eval()
        network = _Method(mar, "condition")
        label = torch.empty(1, dtype=torch.long)
        one, t, z = (
            torch.empty(1, *shape) for shape in ((1, config.channels), (), (config.width,))
        )

    def iteration(shown: int) -> Fraction:
        with torch.device("meta"):
            visible = torch.empty(1, shown, config.channels)
            places = torch.empty(1, config.tokens, dtype=torch.long)
        places = places.split([shown, config.tokens - shown], dim=1)
        return Fraction(count(network, visible, *places, label).flops)

    # Attention is quadratic in the visible tokens and the rest linear: three counts are enough.
    at = sorted({0, config.tokens // 2, config.tokens - 1})
    counted = {shown: iteration(shown) for shown in at}
    transformer = sum(
        counted[x] * math.prod(Fraction(shown - other, x - other) for other in at if other != x)
        for shown in known[:-1]
        for x in at
    )
    head = config.tokens * head_steps * count(mar.head, one, t, z).flops
    flops = copies * (int(transformer) + head)
    return Cost(_parameters(network), flops, flops // 2)


def training_cost(config: GeneratorConfig) -> Cost:
    """Of one image's forward pass in training, its tokens cached; see :attr:`Cost.training`."""
    if not isinstance(config, MARConfig):
        model, inputs = _with_inputs(config)
        return count(model, *inputs)
    hidden = max(1, round(HIDDEN * config.tokens))
    rows, shown = hidden * config.repeats, config.tokens - hidden
    with torch.device("meta"):
        model = MAR(config).eval()
        inputs = (
            torch.empty(rows, 1, config.channels),
            torch.empty(rows),
            torch.empty(1, dtype=torch.long),
            torch.empty(1, shown, config.channels),
            torch.empty(1, shown, dtype=torch.long),
            torch.empty(1, hidden, dtype=torch.long),
        )
    return count(model, *inputs)


# ---- the clock ----


def _timed(fn: Callable[[], object]) -> float:
    start = time.perf_counter()
    fn()
    if torch.cuda.is_initialized():  # kernels run on after the call returns
        torch.cuda.synchronize()
    return time.perf_counter() - start


def throughput(fn: Callable[[], object], batch: int, seconds: float = 1.0) -> Throughput:
    """Images per second of ``fn()``, which handles ``batch`` images, on this machine now.

    One call warms up; then calls are timed, one by one, for ``seconds`` and at least three times.
    """
    _timed(fn)
    times = [_timed(fn) for _ in range(3)]
    while sum(times) < seconds:
        times.append(_timed(fn))
    low, median, high = statistics.quantiles((batch / t for t in times), n=4, method="inclusive")
    return Throughput(median, low, high)
