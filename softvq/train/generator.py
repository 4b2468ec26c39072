"""Training a generator on the tokens of photos, encoded once."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn

from softvq import images
from softvq.data import Positions
from softvq.errors import UserError
from softvq.generator.path import TIMES, Linear, training_loss
from softvq.generator.transformer import SiT, SiTConfig
from softvq.pipeline import Pipeline, load_tokenizer
from softvq.recipe import GeneratorRecipe, recipe_yaml
from softvq.tokenizer import Tokenizer
from softvq.tokens import TokenSet, fingerprint, read_tokens, write_tokens
from softvq.train.loop import claim, train
from softvq.train.photos import open_photos

PATH = Linear()
ROWS, COLUMNS = 10, 4  # of the picture of samples: classes, and images of each
HELD_OUT = 4096  # tokens that the validation loss is measured on


class GeneratorTask:
    """Tokens -> velocity. See :class:`softvq.train.loop.Task`."""

    def __init__(
        self, recipe: GeneratorRecipe, tokenizer: Tokenizer, tokens: TokenSet, held_out: TokenSet
    ):
        if recipe.time not in TIMES:
            raise UserError(f"time '{recipe.time}' is none of {', '.join(TIMES)}")
        self.recipe, self.tokenizer = recipe, tokenizer
        self.tokens, self.held_out = tokens, held_out
        self.config = SiTConfig(
            tokens=tokens.latents.shape[1],
            channels=tokens.latents.shape[2],
            num_classes=len(tokens.classes),
            **asdict(recipe.model),
        )
        torch.manual_seed(recipe.train.seed)
        self.model = SiT(self.config)

    def batches(self, start: int, rank: int, world: int) -> Iterable[tuple[Tensor, Tensor]]:
        config = self.recipe.train
        order = Positions(
            len(self.tokens), config.batch, config.images, start, config.seed, rank, world
        )
        for items in order:
            at = [entry for entry, _ in items]
            yield self.tokens.latents[at], self.tokens.labels[at]

    def loss(
        self, net: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(net.parameters()).device
        x0, y = (tensor.to(device) for tensor in batch)
        return training_loss(net, PATH, x0, y, self.config, self.recipe.time).mean(), {}

    def evaluate(self, model: SiT, folder: Path, seen: int) -> dict[str, float]:
        pipeline = Pipeline(self.tokenizer, model, self.tokens.classes)
        self.tokenizer.to(next(model.parameters()).device)
        if rows := min(ROWS, len(pipeline.classes)):
            shown = np.linspace(0, len(pipeline.classes) - 1, rows).astype(int)
            pictures = pipeline(shown.repeat(COLUMNS).tolist())
        else:
            pictures = pipeline(count=ROWS * COLUMNS)
        scale = max(1, 128 // pictures[0].height)
        sheet = images.grid(pictures, columns=COLUMNS if rows else ROWS, scale=scale)
        images.save_png(sheet, folder / f"samples-{seen:012d}.png")
        return {"validation_loss": self.validation_loss(model)}

    @torch.no_grad()
    def validation_loss(self, model: SiT) -> float:
        """Loss on held-out tokens, without label dropout; times and noise are always the same."""
        device = next(model.parameters()).device
        config = replace(self.config, label_dropout=0.0)
        draws = torch.Generator().manual_seed(0)
        losses = []
        for x0, y in zip(
            self.held_out.latents[:HELD_OUT].split(256),
            self.held_out.labels[:HELD_OUT].split(256),
            strict=True,
        ):
            x0, y = x0.to(device), y.to(device)
            losses.append(training_loss(model, PATH, x0, y, config, self.recipe.time, draws))
        return torch.cat(losses).mean().item()

    def export(self, model: SiT, folder: Path) -> None:
        Pipeline(self.tokenizer, model, self.tokens.classes).save_pretrained(folder)


def train_generator(recipe: GeneratorRecipe, folder: Path) -> bool:
    """Run or continue a recipe in ``folder``. Returns False if it was stopped before its end.

    Beside what every run writes: photos/ (decoded), tokens/ (encoded, see ``softvq.tokens``), and
    a pipeline: tokenizer/, generator/ and model_index.json.
    """
    tokenizer = load_tokenizer(recipe.tokenizer)
    size = (tokenizer.config.height, tokenizer.config.width)
    photos, held_out = open_photos(recipe.data, size, folder)
    claim(folder, recipe_yaml(recipe))  # a changed recipe is refused before hours of encoding
    state = PartialState(cpu=not torch.accelerator.is_available())
    tokenizer.to(state.device)
    tokens = folder / "tokens"
    with state.main_process_first():  # the others find the files that it wrote
        write_tokens(
            tokens / "train", tokenizer, photos, recipe.views, recipe.data.flip, recipe.train.seed
        )
        write_tokens(tokens / "val", tokenizer, held_out)
    made_by = fingerprint(tokenizer)
    task = GeneratorTask(
        recipe,
        tokenizer,
        read_tokens(tokens / "train", made_by),
        read_tokens(tokens / "val", made_by),
    )
    return train(task, recipe.train, folder, recipe_yaml(recipe))
