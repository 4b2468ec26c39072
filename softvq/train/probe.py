"""Training the domain classifier whose features distances are measured on."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.data import Store, fixed_batches
from softvq.errors import UserError
from softvq.evaluate.probe import Probe, ProbeConfig
from softvq.recipe import ProbeRecipe, recipe_yaml
from softvq.train.loop import train
from softvq.train.photos import crop_batches, open_photos


class ProbeTask:
    """Photos -> crops -> class. See :class:`softvq.train.loop.Task`."""

    def __init__(self, recipe: ProbeRecipe, train_photos: Store, held_out: Store):
        if len(train_photos.classes) < 2:
            raise UserError(
                f"{recipe.data.source}: a classifier needs photos of 2 or more classes, "
                "one subfolder each"
            )
        self.recipe, self.train_photos, self.held_out = recipe, train_photos, held_out
        torch.manual_seed(recipe.train.seed)
        height, width = train_photos.size
        self.model = Probe(ProbeConfig(height, width, len(train_photos.classes), recipe.channels))

    def batches(self, start: int, rank: int, world: int) -> Iterable[tuple[Tensor, Tensor]]:
        data, config = self.recipe.data, self.recipe.train
        return crop_batches(self.train_photos, data, config, start, rank, world)

    def loss(
        self, net: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device = next(net.parameters()).device
        pixels, labels = (tensor.to(device) for tensor in batch)
        logits = net(pixels).float()
        smoothing = self.recipe.label_smoothing
        accuracy = (logits.argmax(1) == labels).float().mean()
        return F.cross_entropy(logits, labels, label_smoothing=smoothing), {"accuracy": accuracy}

    @torch.no_grad()
    def evaluate(self, model: Probe, folder: Path, seen: int) -> dict[str, float]:
        device = next(model.parameters()).device
        right = sum(
            (model(pixels.to(device)).argmax(1).cpu() == labels).sum().item()
            for pixels, labels in fixed_batches(self.held_out, 64)
        )
        return {"held_out_accuracy": right / len(self.held_out)}

    def export(self, model: Probe, folder: Path) -> None:
        model.save_pretrained(folder)


def train_probe(recipe: ProbeRecipe, folder: Path) -> bool:
    """Run or continue a recipe in ``folder``. Returns False if it was stopped before its end."""
    photos, held_out = open_photos(recipe.data, (recipe.height, recipe.width), folder / "photos")
    task = ProbeTask(recipe, photos, held_out)
    return train(task, recipe.train, folder, recipe_yaml(recipe))
