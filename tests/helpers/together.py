"""Trains small tasks on noise, in this process or in those of torchrun: see test_distributed.py.

python -m helpers.together FOLDER JOBS: jobs as JSON, one after the other in the same processes.
"""

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from softvq.recipe import GeneratorRecipe, TokenizerRecipe, load_recipe
from softvq.tokenizer import Tokenizer
from softvq.train import muon
from softvq.train.loop import train
from softvq.train.summary import trial_task

BATCH, STEPS = 12, 5  # `trial_task` makes 5 steps
SHORT = [
    f"train.batch={BATCH}", f"train.images={BATCH * STEPS}", "train.precision=fp32",
    f"train.log_every={BATCH}", f"train.evaluate_every={BATCH * STEPS}",
    f"train.checkpoint_every={BATCH}", "train.warmup=0",
]  # fmt: skip


@dataclass
class Job:
    """A run's folder, recipe and settings, and the image at which its last process is killed."""

    name: str
    settings: list[str] = field(default_factory=list)
    recipe: str = "tiny"
    kill: int | None = None

    def run(self, folder: Path) -> None:
        out = folder / self.name
        out.mkdir(parents=True, exist_ok=True)
        if self.recipe == "tiny":
            recipe = load_recipe(TokenizerRecipe, self.recipe, [*SHORT, *self.settings])
        else:
            tokenizer = folder / "tokenizer"
            if not tokenizer.is_dir() and PartialState().is_main_process:
                torch.manual_seed(0)
                shape = load_recipe(TokenizerRecipe, "tiny").model
                Tokenizer(shape).save_pretrained(tokenizer)
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            settings = [f"tokenizer={tokenizer}", *SHORT, *self.settings]
            recipe = load_recipe(GeneratorRecipe, self.recipe, settings)
        torch.manual_seed(0)  # of the noise
        task, _ = trial_task(recipe, ["a", "b"])
        state, loss = PartialState(), task.players[0].loss
        ids = out / f"ids-{state.process_index}.jsonl"

        def logged(net, batch, made):
            if self.recipe == "tiny":
                with ids.open("a") as file:
                    file.write(json.dumps([batch.seen, batch.rows.tolist()]) + "\n")
                if self.kill == batch.seen and state.is_last_process:
                    os.kill(os.getpid(), signal.SIGKILL)
            return loss(net, batch, made)

        task.players[0].loss = logged
        train(task, recipe.train, out)


def encoded(jobs: list[Job]) -> str:
    return json.dumps([asdict(job) for job in jobs])


if __name__ == "__main__":
    PartialState(cpu=True)
    muon.multiplies_bf16 = lambda device: False  # its last bits would be magnified
    for values in json.loads(sys.argv[2]):
        Job(**values).run(Path(sys.argv[1]))
