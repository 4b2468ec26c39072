"""Processes that train together train what one process trains, also after a kill."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.together import BATCH, STEPS, Job, encoded

from softvq.data import Positions
from softvq.errors import UserError
from softvq.io import load_tensors
from softvq.processes import ours, reading, whole
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.train.loop import train
from softvq.train.summary import trial_task

TESTS = Path(__file__).parent
ADVERSARY = [
    "adversary.weight=0.2", "adversary.width=8", "adversary.depth=2", "adversary.adaptive=true",
    "adversary.augment=0.5", "adversary.consistency=1", "adversary.lecam=0.001",
]  # fmt: skip
SOFT = ["model.gain=false", "model.entropy_weight=0.01", "train.optimizer=muon"]
SHARDED = "train.parallel=fsdp"
MEASURED = ("latent_mean", "latent_std")  # by an evaluation, for export alone


def launch(folder: Path, jobs: list[Job], processes: int, check: bool = True) -> int:
    """Run the jobs in processes of torchrun, or in one without; the exit status."""
    many = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    launcher = many if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "helpers.together", str(folder), encoded(jobs)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    log = folder.parent / f"{folder.name}-{processes}.log"
    with log.open("w") as file:
        status = subprocess.run(
            command, cwd=TESTS, env=env, stdout=file, stderr=file, timeout=600
        ).returncode
    assert not (check and status), log.read_text()[-4000:]
    return status


def last_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's newest checkpoint, of either kind."""
    note = max((folder / "checkpoints").glob("*.json"))
    if note.with_suffix(".safetensors").is_file():
        return load_tensors(note.with_suffix(".safetensors"))
    reader = dcp.HuggingFaceStorageReader(str(note.with_suffix("")))
    found = reader.read_metadata().state_dict_metadata
    state = {k: torch.zeros(v.size, dtype=v.properties.dtype) for k, v in found.items()}
    with warnings.catch_warnings(action="ignore"):
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def assert_equal_runs(one: Path, other: Path) -> None:
    """Curves and last checkpoints, but for the order in which sums are rounded."""
    curves = [[json.loads(line) for line in (run / "metrics.jsonl").open()] for run in (one, other)]
    assert len(curves[0]) == len(curves[1]) == STEPS + 1
    for here, there in zip(*curves, strict=True):
        for name in here.keys() - {"images_per_second", "codebook_usage", "codebook_perplexity"}:
            assert there[name] == pytest.approx(here[name], rel=1e-3, abs=1e-5), name
    start, end = last_state(one), last_state(other)
    assert start.keys() == end.keys()
    for name, tensor in start.items():
        # Keys' biases have no gradient but rounding, which AdamW magnifies.
        if name.startswith("optimizer.") or name.endswith((*MEASURED, "qkv.bias")):
            continue
        error = (end[name].float() - tensor.float()).norm()
        assert error <= 2e-3 * tensor.float().norm() + 1e-6, name


def compare(folder: Path, jobs: list[Job], processes: int) -> None:
    launch(folder / "one", jobs, 1)
    launch(folder / "many", jobs, processes)
    for job in jobs:
        assert_equal_runs(folder / "one" / job.name, folder / "many" / job.name)


def test_two_processes_equal_one_sharded_with_adversary(tmp_path):
    """Entropy over all tokens, batch norm over all pictures, LeCAM, augmentation, Muon."""
    compare(tmp_path, [Job("soft", [*SOFT, *ADVERSARY, SHARDED])], 2)


JOBS = [
    Job("adversary", [*SOFT, *ADVERSARY]),
    # With another seed one bias has no gradient but rounding, which AdamW magnifies.
    Job(
        "pieces",
        ["model.gain=false", "train.accumulate=2", "train.recompute=true", "train.seed=1", SHARDED],
    ),
    Job("vq", ["model.bottleneck=vq", "model.vq_update=ema"]),
    Job("kl", ["model.bottleneck=kl", "train.recompute=true"]),
    Job("aligned", ["alignment.weight=0.1", "alignment.teacher=eye-7x7"]),
    Job("sit", [], "tiny-generator"),
    Job("sit-sharded", [SHARDED], "tiny-generator"),
]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_equal_one(tmp_path, processes):
    compare(tmp_path, [job for job in JOBS if processes == 2 or job.name != "pieces"], processes)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path, how):
    settings = [*SOFT, *ADVERSARY, f"train.parallel={how}"]
    launch(tmp_path / "one", [Job("run", settings)], 1)
    kills = [(2, 2 * BATCH), (3, 3 * BATCH), (1, 4 * BATCH)]
    for processes, at in kills:
        assert launch(tmp_path / "killed", [Job("run", settings, kill=at)], processes, check=False)
    launch(tmp_path / "killed", [Job("run", settings)], 2)
    assert_equal_runs(tmp_path / "one" / "run", tmp_path / "killed" / "run")
    read: dict[int, set[int]] = {}  # at each step, by the processes that made it last
    for path in (tmp_path / "killed" / "run").glob("ids-*.jsonl"):
        for line in path.open():
            seen, rows = json.loads(line)
            read.setdefault(seen, set()).update(rows)
    wanted = list(Positions(BATCH, BATCH, BATCH * STEPS))
    assert [read[seen] for seen in sorted(read)] == [{row for row, _ in some} for some in wanted]


def test_one_process_in_pieces_with_recomputation_equals_one_pass(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "pieces"]
    changes = ["model.bottleneck=kl", "train.precision=fp32", "train.optimizer=adamw"]
    for folder, more in zip(
        folders, ([], ["train.accumulate=4", "train.recompute=true"]), strict=True
    ):
        short = ["train.batch=8", "train.images=24", "train.checkpoint_every=24"]
        recipe = load_recipe(TokenizerRecipe, "tiny", [*changes, *short, *more])
        torch.manual_seed(0)
        task, _ = trial_task(recipe, [])
        assert train(task, recipe.train, folder)
    one, other = (last_state(folder) for folder in folders)
    for name in one:
        if not name.startswith("optimizer.") and not name.endswith((*MEASURED, "qkv.bias")):
            torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=2e-5)


def test_draws_of_parts_are_rows_of_the_whole_batch():
    torch.manual_seed(3)
    batch = torch.rand(2, 12)
    for part in range(4):
        torch.manual_seed(3)
        with reading(part, 4):
            rows = ours(torch.rand(2, whole(3)), dim=1)
        assert torch.equal(rows, batch[:, 3 * part : 3 * part + 3])
    assert whole(3) == 3 and ours(batch) is batch


def test_pieces_of_a_batch_come_in_its_order():
    (batch,) = Positions(23, 12, 12)
    pieces = [
        piece for rank in range(2) for piece in Positions(23, 12, 12, rank=rank, world=2, pieces=3)
    ]
    assert [item for piece in pieces for item in piece] == batch and len(pieces) == 6
    with pytest.raises(UserError, match="train.accumulate"):
        Positions(23, 12, 12, world=2, pieces=4)
