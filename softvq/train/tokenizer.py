"""Training a tokenizer on photos."""

import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from softvq import images
from softvq.data import Crops, Store, fixed_batches
from softvq.errors import UserError
from softvq.evaluate.pixels import psnr, ssim
from softvq.pipeline import load_tokenizer
from softvq.recipe import TokenizerRecipe, recipe_yaml
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.objective import objective
from softvq.train.loop import train
from softvq.train.photos import crop_batches, open_photos

SHOWN = 16  # pictures in a grid
STATISTICS = 2048  # photos that latent mean and std are computed from


class TokenizerTask:
    """Photos -> crops -> reconstruction. See :class:`softvq.train.loop.Task`."""

    def __init__(self, recipe: TokenizerRecipe, train_photos: Store, held_out: Store):
        self.recipe, self.train_photos, self.held_out = recipe, train_photos, held_out
        torch.manual_seed(recipe.train.seed)
        self.model = Tokenizer(recipe.model)
        if recipe.init:
            trained = load_tokenizer(recipe.init)
            ours, theirs = asdict(recipe.model), asdict(trained.config)
            changes = [f"model.{key}={theirs[key]}" for key in ours if ours[key] != theirs[key]]
            if changes:
                raise UserError(
                    f"{recipe.init}: not of the recipe's shape; add {' '.join(changes)}"
                )
            self.model.load_state_dict(trained.state_dict())

    def batches(self, start: int, rank: int, world: int) -> Iterable[tuple[Tensor, Tensor]]:
        data, config = self.recipe.data, self.recipe.train
        return crop_batches(self.train_photos, data, config, start, rank, world)

    def loss(
        self, net: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = batch[0].to(next(net.parameters()).device)
        reconstruction, tokens = net(pixels)
        total, terms = objective(self.recipe.objective, pixels, reconstruction, tokens)
        mse = (reconstruction.float() - pixels).square().mean((1, 2, 3))
        terms["train_psnr"] = (10 * torch.log10(4 / mse)).mean()
        return total, terms | tokens.stats

    def evaluate(self, model: Tokenizer, folder: Path, seen: int) -> dict[str, float]:
        originals, rebuilt = reconstruct_all(model, self.held_out)
        shown = np.linspace(0, len(originals) - 1, min(SHOWN, len(originals))).astype(int)
        rows = np.concatenate([originals[shown], rebuilt[shown]])
        scale = max(1, 128 // originals.shape[1])
        picture = images.grid(rows, columns=len(shown), scale=scale)
        images.save_png(picture, folder / f"reconstruction-{seen:012d}.png")
        return {"psnr": psnr(originals, rebuilt), "ssim": ssim(originals, rebuilt)}

    def export(self, model: Tokenizer, folder: Path) -> None:
        measure_latents(model, self.train_photos)
        model.save_pretrained(folder)


@torch.no_grad()
def measure_latents(model: Tokenizer, photos: Store, limit: int = STATISTICS) -> None:
    """Set the model's latent mean and std per channel from up to ``limit`` whole photos."""
    device = next(model.parameters()).device
    whole = Crops(photos, augment=False)
    chosen = np.linspace(0, len(photos) - 1, min(limit, len(photos))).astype(int)
    parts = []
    for some in np.array_split(chosen, math.ceil(len(chosen) / 64)):
        pixels = torch.stack([whole[i, 0][0] for i in some]).to(device)
        parts.append(model.encode(pixels).latents.double().flatten(0, 1))
    latents = torch.cat(parts)
    model.latent_mean.copy_(latents.mean(0))
    # A channel that never moves must not be divided by zero.
    model.latent_std.copy_(latents.std(0, correction=0).clamp_min(1e-6))


def reconstruct_all(model: Tokenizer, photos: Store) -> tuple[np.ndarray, np.ndarray]:
    """Whole photos and their reconstructions, uint8 [N, H, W, 3] each."""
    device = next(model.parameters()).device
    originals, rebuilt = [], []
    for pixels, _ in fixed_batches(photos, 64):
        originals.append(images.to_uint8(pixels))
        rebuilt.append(images.to_uint8(model.reconstruct(pixels.to(device))))
    return np.concatenate(originals), np.concatenate(rebuilt)


def train_tokenizer(recipe: TokenizerRecipe, folder: Path) -> bool:
    """Run or continue a recipe in ``folder``. Returns False if it was stopped before its end."""
    size = (recipe.model.height, recipe.model.width)
    photos, held_out = open_photos(recipe.data, size, folder)
    task = TokenizerTask(recipe, photos, held_out)
    return train(task, recipe.train, folder, recipe_yaml(recipe))
