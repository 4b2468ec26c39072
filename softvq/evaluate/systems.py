"""Whole systems side by side: a tokenizer, a generator of its tokens, and what both cost.

A system is named by a recipe, by a trained model's directory, or is one of the field's own,
DiT-XL/2 on the autoencoder of Stable Diffusion (Peebles & Xie 2022), which every other is measured
against. Costs are counted; images per second are measured where asked, and only they have prices.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.evaluate.cost import (
    NETWORKS,
    Cost,
    GeneratorConfig,
    Throughput,
    generator_cost,
    sampling_steps,
    throughput,
    tokenizer_cost,
    training_cost,
)
from softvq.generator.families import family_of
from softvq.generator.mar import MARConfig
from softvq.generator.transformer import DiTConfig, SiTConfig
from softvq.interop import diffusers, reference
from softvq.interop.diffusers import DiffusersTokenizer
from softvq.io import make_config, read_config
from softvq.pipeline import Pipeline, model_folder
from softvq.recipe import (
    GeneratorRecipe,
    TokenizerRecipe,
    load_recipe,
    recipe_layers,
    shipped_recipes,
)
from softvq.tokenizer import Tokenizer, TokenizerConfig

CLASSES = 1000  # of a generator whose data are not known; a label costs an addition
CONFIGS = {kind.__name__: config for config, kind in NETWORKS.items()}


@dataclass(frozen=True)
class System:
    """``generator`` draws tokens of ``tokenizer``, whose size and tokens are in ``shape``."""

    name: str
    tokenizer: TokenizerConfig | DiffusersTokenizer
    generator: GeneratorConfig

    @property
    def shape(self) -> Any:
        return _shape(self.tokenizer)


def dit_xl_2(pixels: int) -> System:
    """DiT-XL/2 on 32 x 32 x 4 latents (256 px) or 64 x 64 x 4 (512 px) of the f8 autoencoder."""
    cells = (pixels // 8) ** 2
    tokenizer = TokenizerConfig(
        height=pixels,
        width=pixels,
        network="cnn",
        patch=8,
        tokens=cells,
        channels=4,
        bottleneck="kl",
        encoder_width=128,
        encoder_depth=2,
        decoder_width=128,
        decoder_depth=3,
    )
    generator = DiTConfig.sized("XL", cells, 4, CLASSES, patch=2)
    return System(f"DiT-XL/2 {pixels} px", tokenizer, generator)


BASELINES = {f"dit-xl-2-{pixels}": pixels for pixels in (256, 512)}


def open_system(
    name: str, generator: str | None = None, size: tuple[int, int] | None = None
) -> System:
    """The system of a tokenizer's or generator's recipe or directory, of a pipeline, a baseline.

    A tokenizer alone is paired with ``generator``, a recipe or directory, or with SiT-XL/1, as
    published. ``size``: height and width in pixels for an autoencoder of diffusers, None for its
    ``sample_size``. Of others only the configuration is read. Raises UserError.
    """
    if name in BASELINES:
        return dit_xl_2(BASELINES[name])
    found = _open(name, size)
    if isinstance(found, tuple):
        return System(name, *found)
    if isinstance(found, GeneratorRecipe):
        tokenizer = _tokenizer(found.tokenizer, size)
        return System(name, tokenizer, found.config(_shape(tokenizer), CLASSES))
    if not isinstance(found, TokenizerConfig | DiffusersTokenizer):
        raise UserError(f"{name}: a generator; give its tokenizer, and this as --generator")
    shape = _shape(found)
    if generator is None:
        sit = SiTConfig.sized("XL", shape.tokens, shape.channels, CLASSES)
        return System(f"{name} + SiT-XL/1", found, sit)
    paired = _open(generator, None)
    if isinstance(paired, tuple):
        paired = paired[1]
    if isinstance(paired, TokenizerConfig | DiffusersTokenizer):
        raise UserError(f"{generator}: a tokenizer; --generator takes a generator's recipe")
    made = paired.config(shape, CLASSES) if isinstance(paired, GeneratorRecipe) else paired
    if (made.tokens, made.channels) != (shape.tokens, shape.channels):
        raise UserError(
            f"{generator}: draws {made.tokens} x {made.channels} tokens, {name} makes "
            f"{shape.tokens} x {shape.channels}"
        )
    return System(f"{name} + {generator}", found, made)


def _shape(tokenizer: TokenizerConfig | DiffusersTokenizer) -> Any:
    return tokenizer if isinstance(tokenizer, TokenizerConfig) else tokenizer.config


def _open(name: str, size: tuple[int, int] | None) -> Any:
    """A tokenizer's config (or a DiffusersTokenizer), a generator's, both, a generator's recipe."""
    folder = model_folder(name)
    if (folder / "vae").is_dir():  # in a pipeline of diffusers, whose tokenizer/ is of text
        return _config(folder / "vae", size)
    if (folder / "model_index.json").is_file():
        return _config(folder / "tokenizer", size), _config(folder / "generator")
    if folder.is_dir():
        return _config(folder, size)
    if name not in shipped_recipes() and not folder.is_file():
        known = ", ".join([*shipped_recipes(), *BASELINES])
        raise UserError(f"{name}: no such recipe or directory; there are {known}")
    if not any("model" in layer for _, layer in recipe_layers(name)):
        raise UserError(f"{name}: a recipe of neither a tokenizer nor a generator")
    try:
        return load_recipe(TokenizerRecipe, name, []).model
    except UserError as error:
        try:
            return load_recipe(GeneratorRecipe, name, [])
        except UserError:
            raise error from None


def _config(folder: Path, size: tuple[int, int] | None = None) -> Any:
    values = read_config(folder)
    if diffusers.recognises(values):
        return diffusers.load_diffusers(folder, size)
    if reference.recognises(values):
        return Tokenizer.from_pretrained(folder).config
    kind = values.pop("model", None)
    configs = CONFIGS | {"Tokenizer": TokenizerConfig}
    if kind not in configs:
        raise UserError(f"{folder}: holds a {kind}, none of {', '.join(configs)}")
    return make_config(configs[kind], values, str(folder / "config.json"))


def _tokenizer(name: str, size: tuple[int, int] | None) -> TokenizerConfig | DiffusersTokenizer:
    found = _open(name, size)
    found = found[0] if isinstance(found, tuple) else found
    if not isinstance(found, TokenizerConfig | DiffusersTokenizer):
        raise UserError(f"{name}: not a tokenizer")
    return found


# ---- figures ----


class Prices(NamedTuple):
    """Of a machine-hour and of a kilowatt-hour, in ``currency``; ``watts`` that it draws."""

    per_hour: float = 0.0
    watts: float = 0.0
    per_kwh: float = 0.0
    currency: str = "EUR"


def figures(system: System, steps: int, guidance: float) -> dict[str, Any]:
    """Everything that is counted, for one image: see :mod:`softvq.evaluate.cost`.

    ``parts``: encoder, bottleneck, decoder, network (one evaluation), image (all evaluations and
    the decoder): parameters, flops, macs. ``training``: flops of a step, bytes of activations;
    without the losses' own networks, and with a generator's tokens cached. ``steps``: as many of
    those asked for as the generator can make.
    """
    shape, generator = system.shape, system.generator
    coding = tokenizer_cost(system.tokenizer)
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
    system: System, batch: int, steps: int, guidance: float, device: str
) -> dict[str, Throughput]:
    """Images per second on this machine: encode, decode, generate, train_tokenizer and _generator.

    New models with random weights, but for an autoencoder of diffusers; bf16 autocast on a GPU,
    float32 on a CPU, where ``generate``, the pipeline as it is, computes in float64. Training is a
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

    with torch.autocast(device, torch.bfloat16, enabled=device != "cpu"):
        with torch.inference_mode():
            latents = tokenizer.encode(pixels).latents
            rates = {
                "encode": throughput(lambda: tokenizer.encode(pixels), batch),
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


# ---- the table ----


def table(systems: list[dict[str, Any]], baselines: list[dict[str, Any]]) -> str:
    """Rows are quantities, columns systems and then the baselines, as lines of text."""
    columns = systems + baselines
    rows = [["", *(c["name"] for c in columns)]]

    def row(name: str, value: Any) -> None:
        rows.append([name, *(value(c) for c in columns)])

    def operations(part: str) -> Any:
        return lambda c: f"{_short(c['parts'][part]['flops'])} / {_short(c['parts'][part]['macs'])}"

    row("pixels", lambda c: f"{c['height']} x {c['width']}")
    row("tokens x channels", lambda c: f"{c['tokens']} x {c['channels']}")
    for part in ("encoder", "bottleneck", "decoder", "network"):
        row(f"M parameters, {part}", lambda c, p=part: f"{c['parts'][p]['parameters'] / 1e6:.1f}")
    for part in ("encoder", "bottleneck", "decoder"):
        row(f"GFLOPs / GMACs, {part}", operations(part))
    row("  one network evaluation", operations("network"))
    row(f"  one image, guidance {systems[0]['guidance']:g}", operations("image"))
    row("    in steps", lambda c: str(c["steps"]))
    for model in ("tokenizer", "generator"):
        row(
            f"training GFLOPs per image, {model}",
            lambda c, m=model: _short(c["training"][m]["flops"]),
        )
    for model in ("tokenizer", "generator"):
        row(
            f"  activations, MB per image, {model}",
            lambda c, m=model: f"{c['training'][m]['activations'] / 1e6:,.1f}",
        )
    for part, what in (("network", "evaluation"), ("image", "image")):
        row(f"x fewer FLOPs than DiT-XL/2, {what}", lambda c, p=part: _ratio(c, baselines, p))
    if any("measured" in c for c in columns):
        for task in ("encode", "decode", "generate", "train_tokenizer", "train_generator"):
            row(
                f"images/s, {task.replace('_', ' ')} (quartiles)",
                lambda c, t=task: (
                    "{median:.3g} ({low:.3g}..{high:.3g})".format(**c["measured"][t])
                    if "measured" in c
                    else "-"
                ),
            )
            if any("per_million" in c for c in columns):
                row("  per million", lambda c, t=task: _price(c, t))
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in rows
    )


def _short(operations: int) -> str:
    value = operations / 1e9
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _ratio(column: dict[str, Any], baselines: list[dict[str, Any]], part: str) -> str:
    for baseline in baselines:
        if (baseline["height"], baseline["width"]) == (column["height"], column["width"]):
            return f"{baseline['parts'][part]['flops'] / column['parts'][part]['flops']:.1f}"
    return "-"


def _price(column: dict[str, Any], task: str) -> str:
    if "per_million" not in column:
        return "-"
    price = column["per_million"][task]
    return f"{price['money']:,.2f} {column['currency']}, {price['kwh']:,.2f} kWh"
