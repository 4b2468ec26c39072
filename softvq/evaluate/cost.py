"""What a model costs: parameters and operations by count, images per second by the clock.

Operations are counted on tensors that have shapes and no memory, so a model of any size is
counted in about a second. FLOPs are 2 x multiply-adds (MACs); papers print either, under either
name, so print both. Matrix products, convolutions and attention count; element-wise operations
do not.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from softvq.generator.transformer import SiT, SiTConfig
from softvq.tokenizer import Tokenizer, TokenizerConfig


@dataclass(frozen=True)
class Cost:
    """Of one call: ``parameters`` numbers, ``flops`` operations, ``macs`` multiply-adds."""

    parameters: int
    flops: int
    macs: int


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
    """Parameters of a model and operations of ``model(*inputs)``.

    Neither the model nor the inputs are changed, moved or read, and nothing is allocated or
    computed; both may be on the meta device. The model is counted in its present mode: call
    ``eval()`` first to leave out what only training does.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    # Fake tensors have a shape, a type and no memory. They claim to be on the CPU: on the meta
    # device itself autocast, and so every bottleneck, raises an error. MATH spells attention out
    # as two matrix products; the CPU's fused kernel is not in the counter's table and counts 0.
    with (
        FakeTensorMode(),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        state = {name: torch.empty(x.shape, dtype=x.dtype) for name, x in tensors.items()}
        functional_call(model, state, tuple(torch.empty(x.shape, dtype=x.dtype) for x in inputs))
    flops = counter.get_total_flops()
    return Cost(_parameters(model), flops, flops // 2)


def tokenizer_cost(config: TokenizerConfig) -> dict[str, Cost]:
    """Cost of ``encoder``, ``bottleneck`` and ``decoder`` for one image of the config's size.

    The encoder is ``Tokenizer.encode`` up to the bottleneck, without it; encoder and bottleneck
    together are ``encode``, the decoder is ``decode``.
    """
    with torch.device("meta"):
        tokenizer = Tokenizer(config).eval()
        image = torch.empty(1, 3, config.height, config.width)
        latents = torch.empty(1, config.tokens, config.channels)
        features = torch.empty(1, config.tokens, tokenizer.to_latent.out_features)
    decode = count(_Method(tokenizer, "decode"), latents)
    return {
        "encoder": count(nn.Sequential(tokenizer.encoder, tokenizer.to_latent), image),
        "bottleneck": count(tokenizer.bottleneck, features),
        "decoder": replace(
            decode, parameters=_parameters(tokenizer.from_latent, tokenizer.decoder)
        ),
    }


def generator_cost(config: SiTConfig, steps: int, guidance: float) -> dict[str, Cost]:
    """Cost of one ``network`` evaluation and of one ``image``: all of them, without the decoder.

    Euler's method makes one evaluation per step, two with guidance (a scale other than 1) on all
    of the time interval. Heun's makes 2 steps - 1.
    """
    with torch.device("meta"):
        network = SiT(config).eval()
        latents = torch.empty(1, config.tokens, config.channels)
        time_and_label = torch.empty(1), torch.empty(1, dtype=torch.long)
    one = count(network, latents, *time_and_label)
    evaluations = steps * (1 if guidance == 1 else 2)
    image = Cost(one.parameters, evaluations * one.flops, evaluations * one.macs)
    return {"network": one, "image": image}


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
