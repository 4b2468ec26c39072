"""The memory that ``softvq plan`` predicts beside what two training steps take on this CPU.

    python benchmarks/planned_memory.py

Each recipe in a process of its own, in float32, on noise: the largest resident set less that of the
process before anything of the recipe was there. Prints a Markdown table.
"""

import argparse
import copy
import resource
import subprocess
import sys

import torch

from softvq.plan import memory, work
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.train.photos import Batch
from softvq.train.tokenizer import TokenizerTask

ALONE = ["objective.lpips=0", "adversary.weight=0", "alignment.weight=0", "train.precision=fp32"]
RECIPES = {  # images at once, changes
    "softvq-s-64": (16, ALONE),
    "softvq-b-32": (8, ALONE),
    "small": (128, ["train.precision=fp32"]),
    "nested": (8, ["train.precision=fp32"]),
}


def resident() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measured(name: str) -> float:
    """Bytes that two steps take."""
    images, changes = RECIPES[name]
    recipe = load_recipe(TokenizerRecipe, name, changes)
    before = resident()
    task = TokenizerTask(recipe)
    model = task.model
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = task.players[0].optimizers(model.train())
    config, rows = recipe.model, torch.arange(images)
    for _ in range(2):
        pixels = torch.randn(images, 3, config.height, config.width).clamp(-1, 1)
        batch = Batch(pixels, rows, rows, torch.zeros(images, dtype=torch.bool), 10**9)
        task.loss(model, batch).loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    del average
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", choices=list(RECIPES), help="print the bytes of one recipe alone")
    args = parser.parse_args()
    if args.one:
        print(measured(args.one))
        return
    print("| recipe | images | planned, GB | measured, GB | planned / measured |")
    print("|---|---|---|---|---|")
    for name, (images, changes) in RECIPES.items():
        recipe = load_recipe(TokenizerRecipe, name, changes)
        planned = memory(recipe, work(recipe), images)
        said = subprocess.run(
            [sys.executable, __file__, "--one", name], check=True, capture_output=True, text=True
        )
        found = float(said.stdout)
        cells = f"{planned / 1e9:.2f} | {found / 1e9:.2f} | {planned / found:.2f}"
        print(f"| {name} | {images} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
