"""What a whole system costs: counted on paper, measured by the clock, and priced.

Costs are counted; images per second are measured where asked, and only they have prices.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from softvq.evaluate.cost import (
    NETWORKS,
    Cost,
    Throughput,
    generator_cost,
    sampling_steps,
    throughput,
    tokenizer_cost,
    training_cost,
)
from softvq.evaluate.systems import System
from softvq.generator.config import MARConfig
from softvq.generator.families import family_of
from softvq.pipeline import Pipeline
from softvq.tokenizer import Tokenizer, TokenizerConfig


class Prices(NamedTuple):
    """Of a machine-hour and of a kilowatt-hour, in ``currency``; ``watts`` that it draws."""

    per_hour: float = 0.0
    watts: float = 0.0
    per_kwh: float = 0.0
    currency: str = "EUR"


def figures(system: System, steps: int | None, guidance: float) -> dict[str, Any]:
    """Everything that is counted, for one image: see :mod:`softvq.evaluate.cost`.

    ``parts``: encoder, bottleneck, decoder, network (one evaluation), image (all evaluations and
    the decoder): parameters, flops, macs. ``training``: flops of a step, bytes of activations;
    without the losses' own networks, and with a generator's tokens cached. ``steps``: as many of
    those asked for as the generator can make; None for what is usual.
    """
    shape, generator = system.shape, system.generator
    coding = tokenizer_cost(system.tokenizer, system.tokens)
    drawing = generator_cost(generator, steps, guidance)
    network, decoder = drawing["image"], coding["decoder"]
    image = Cost(
        network.parameters + decoder.parameters,
        network.flops + decoder.flops,
        network.macs + decoder.macs,
    )
    learning = training_cost(generator) if isinstance(generator, MARConfig) else drawing["network"]
    parts = coding | {"network": drawing["network"], "image": image}
    return {
        "name": system.name,
        "height": shape.height,
        "width": shape.width,
        "tokens": shape.tokens,
        "channels": shape.channels,
        "steps": sampling_steps(generator, steps),
        "guidance": guidance,
        "parts": {
            name: {"parameters": part.parameters, "flops": part.flops, "macs": part.macs}
            for name, part in parts.items()
        },
        "training": {
            "tokenizer": {
                "flops": sum(part.training for part in coding.values()),
                "activations": sum(part.activations for part in coding.values()),
            },
            "generator": {"flops": learning.training, "activations": learning.activations},
        },
    }


def measure(
    system: System, batch: int, steps: int | None, guidance: float, device: str
) -> dict[str, Throughput]:
    """Images per second on this machine: encode, decode, generate, train_tokenizer and _generator.

    New models with random weights, but for an autoencoder of diffusers; bf16 autocast on a GPU,
    float32 on a CPU; ``generate`` is the pipeline as it is. Training is a
    forward and a backward pass, without the optimizer and the losses' networks; a generator's
    tokens are cached.
    """
    torch.manual_seed(0)
    config = system.shape
    if isinstance(system.tokenizer, TokenizerConfig):
        tokenizer = Tokenizer(system.tokenizer).eval().to(device)
    else:
        tokenizer = system.tokenizer.to(device)
    network: Any = NETWORKS[type(system.generator)](system.generator).eval().to(device)
    family = family_of(network)
    classes = [str(i) for i in range(system.generator.num_classes)]
    pipeline = Pipeline(tokenizer, network, classes)
    drawn: tuple[list[int] | None, int | None] = ([0] * batch, None) if classes else (None, batch)
    steps = sampling_steps(system.generator, steps)
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "batch": batch}
    pixels = torch.rand(batch, 3, config.height, config.width, device=device) * 2 - 1
    tokens = torch.randn(batch, config.tokens, config.channels, device=device)
    labels = torch.zeros(batch, dtype=torch.long, device=device) if classes else None

    def train(loss: torch.Tensor, model: nn.Module) -> None:
        loss.backward()
        model.zero_grad()

    encode = partial(tokenizer.encode, pixels)
    if system.tokens is not None:
        encode = partial(encode, tokens=system.tokens)
    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        with torch.inference_mode():
            latents = encode().latents
            rates = {
                "encode": throughput(encode, batch),
                "decode": throughput(lambda: tokenizer.decode(latents), batch),
            }
        rates["generate"] = throughput(lambda: pipeline(*drawn, **options), batch)
        rates["train_tokenizer"] = throughput(
            lambda: train(F.mse_loss(tokenizer(pixels)[0].float(), pixels), tokenizer), batch
        )
        loss = partial(family.loss, network, tokens, labels, system.generator, family.time)
        rates["train_generator"] = throughput(lambda: train(loss().mean(), network), batch)
    return rates


def per_million(rate: Throughput, prices: Prices) -> dict[str, float]:
    """Hours, kWh and money for a million images at the median rate."""
    hours = 1e6 / rate.median / 3600
    kwh = hours * prices.watts / 1000
    return {"hours": hours, "kwh": kwh, "money": hours * prices.per_hour + kwh * prices.per_kwh}
