"""Training the domain classifier whose features distances are measured on."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from softvq.data import Store, fixed_batches
from softvq.errors import UserError
from softvq.probe import Probe, ProbeConfig
from softvq.recipe import ProbeRecipe, recipe_yaml
from softvq.train.folder import open_run
from softvq.train.loop import train
from softvq.train.photos import Batch, crop_batches, open_photos
from softvq.train.players import Player, Turn


class ProbeTask:
    """Photos -> crops -> class. See :class:`softvq.train.players.Task`."""

    name = "probe"

    def __init__(self, recipe: ProbeRecipe, train_photos: Store, held_out: Store):
        if len(set(train_photos.labels.tolist())) < 2:  # one, or MVTec's good alone
            raise UserError(
                f"{recipe.data.source}: a classifier needs training photos of 2 or more "
                "classes, one subfolder each"
            )
        self.recipe, self.train_photos, self.held_out = recipe, train_photos, held_out
        torch.manual_seed(recipe.train.seed)
        height, width = train_photos.size
        self.model = Probe(ProbeConfig(height, width, len(train_photos.classes), recipe.channels))
        self.players = [Player.model(self.model, self.loss, recipe.train)]

    def batches(self, start: int, rank: int, world: int) -> Iterable[Batch]:
        data, config = self.recipe.data, self.recipe.train
        return crop_batches(self.train_photos, data, config, start, rank, world)

    def loss(self, net: nn.Module, batch: Batch, made: None = None) -> Turn:
        batch = batch.to(next(net.parameters()).device)
        logits = net(batch.pixels).float()
        smoothing = self.recipe.label_smoothing
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
        return Turn(loss, {"accuracy": accuracy})

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
    with open_run(folder, recipe_yaml(recipe), recipe.data.source):
        size = recipe.height, recipe.width
        task = ProbeTask(recipe, *open_photos(recipe.data, size, folder / "photos"))
        return train(task, recipe.train, folder)
