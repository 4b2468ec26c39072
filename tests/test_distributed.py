"""Two processes on one machine train what one process trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = [
    "train.images=1280",
    "train.log_every=1280",
    "train.evaluate_every=1280",
    # In float32 throughout: Muon orthogonalises in bfloat16, which magnifies the last bits by which
    # sums over two halves differ.
    "train.precision=fp32",
    "train.optimizer=adamw",
]


def run(folder: Path, *launcher: str) -> list[dict[str, float]]:
    """Train the tiny tokenizer in ``folder``; the lines of its metrics."""
    command = [
        sys.executable, *launcher, "-m", "softvq", "train", "tokenizer",
        "--recipe", "tiny", "--out", str(folder), *SETTINGS,
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=300)
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    one = run(tmp_path / "one")
    two = run(tmp_path / "two", "-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert len(one) == len(two) == 2  # only the first process writes
    assert two[-1]["psnr"] == pytest.approx(one[-1]["psnr"], abs=0.02)
