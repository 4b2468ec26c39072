"""Whole systems by name: a tokenizer, and a generator of its tokens.

A system is named by a recipe, by a trained model's directory, or is one of the field's own,
DiT-XL/2 on the autoencoder of Stable Diffusion (Peebles & Xie 2022), which every other is measured
against. What they cost is counted in :mod:`softvq.evaluate.figures`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softvq import models
from softvq.errors import UserError
from softvq.evaluate.cost import GeneratorConfig
from softvq.generator.config import DiTConfig, SiTConfig
from softvq.models import DiffusersTokenizer
from softvq.recipe import (
    GeneratorRecipe,
    ProbeRecipe,
    TokenizerRecipe,
    open_recipe,
    shipped_recipes,
)
from softvq.tokenizer.config import TokenizerConfig

CLASSES = 1000  # of a generator whose data are not known; a label costs an addition


@dataclass(frozen=True)
class System:
    """``generator`` draws tokens of ``tokenizer``, whose size and tokens are in ``shape``.

    ``tokens``: the first so many of a nested tokenizer's; None for all.
    """

    name: str
    tokenizer: TokenizerConfig | DiffusersTokenizer
    generator: GeneratorConfig
    tokens: int | None = None

    @property
    def shape(self) -> Any:
        return _shape(self.tokenizer, self.tokens)


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
    name: str,
    generator: str | None = None,
    size: tuple[int, int] | None = None,
    tokens: int | None = None,
) -> System:
    """The system of a tokenizer's or generator's recipe or directory, of a pipeline, a baseline.

    A tokenizer alone is paired with ``generator``, a recipe or directory, or with SiT-XL/1, as
    published. ``size``: height and width in pixels for an autoencoder of diffusers, None for its
    ``sample_size``. Of others only the configuration is read. ``tokens``: the first so many of a
    nested tokenizer's; None for all. Raises UserError.
    """
    if name in BASELINES:
        return dit_xl_2(BASELINES[name])
    found = _open(name, size)
    if tokens is not None:
        if not (isinstance(found, TokenizerConfig) and found.nested):
            raise UserError(f"{name}: no nested tokenizer, which alone can be of fewer tokens")
        if tokens > found.tokens:
            raise UserError(f"{name}: has {found.tokens} tokens, not {tokens}")
    if isinstance(found, tuple):
        return System(name, *found)
    if isinstance(found, GeneratorRecipe):
        tokenizer = _tokenizer(found.tokenizer, size)
        return System(name, tokenizer, found.config(_shape(tokenizer), CLASSES))
    if not isinstance(found, TokenizerConfig | DiffusersTokenizer):
        raise UserError(f"{name}: a generator; give its tokenizer, and this as --generator")
    shape = _shape(found, tokens)
    if generator is None:
        sit = SiTConfig.sized("XL", shape.tokens, shape.channels, CLASSES)
        return System(f"{name} + SiT-XL/1", found, sit, tokens)
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
    return System(f"{name} + {generator}", found, made, tokens)


def _shape(tokenizer: TokenizerConfig | DiffusersTokenizer, tokens: int | None = None) -> Any:
    config = tokenizer if isinstance(tokenizer, TokenizerConfig) else tokenizer.config
    return config if tokens is None else replace(config, tokens=tokens)


def _open(name: str, size: tuple[int, int] | None) -> Any:
    """A tokenizer's config (or a DiffusersTokenizer), a generator's, both, a generator's recipe."""
    folder = models.model_folder(name)
    if folder.is_dir():
        return _shapes(name, folder, size)
    if name not in shipped_recipes() and not folder.is_file():
        known = ", ".join([*shipped_recipes(), *BASELINES])
        raise UserError(f"{name}: no such recipe or directory; there are {known}")
    recipe = open_recipe(name)
    if isinstance(recipe, ProbeRecipe):
        raise UserError(f"{name}: a recipe of neither a tokenizer nor a generator")
    return recipe.model if isinstance(recipe, TokenizerRecipe) else recipe


def _shapes(name: str, folder: Path, size: tuple[int, int] | None) -> Any:
    if (folder / models.INDEX).is_file() and (folder / "generator").is_dir():
        return models.read_shape(name, "tokenizer"), models.read_shape(name, "generator")
    inside = models.part(folder, "tokenizer")
    layout = models.recognise(inside)
    if layout is not None and layout.kind == "generator":
        return models.read_shape(folder, "generator")
    return models.read_shape(folder, "tokenizer", size)


def _tokenizer(name: str, size: tuple[int, int] | None) -> TokenizerConfig | DiffusersTokenizer:
    found = _open(name, size)
    found = found[0] if isinstance(found, tuple) else found
    if not isinstance(found, TokenizerConfig | DiffusersTokenizer):
        raise UserError(f"{name}: not a tokenizer")
    return found
