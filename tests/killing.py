"""Kill -9 a training run and start it again: for the resume tests of tokenizer and generator."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(code: str, folder: Path) -> subprocess.Popen:
    """Run Python code in a process of its own, with ``folder`` as its only argument."""
    log = folder.with_suffix(".log").open("a")
    # One thread each: the runs share the machine, and idle threads would spin against each other.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)


def finish(process: subprocess.Popen, folder: Path) -> None:
    """Wait for the process; it must end well."""
    assert process.wait(timeout=300) == 0, folder.with_suffix(".log").read_text()[-4000:]


def seen(folder: Path) -> int:
    """Images seen, by the last whole line of the run's metrics."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max(json.loads(line)["seen"] for line in lines if line.endswith("}"))
    except (OSError, ValueError):
        return 0


def kill_at(code: str, folder: Path, images: int) -> int:
    """Start the run, kill it when it has seen so many images, and return how many it had."""
    process = start(code, folder)
    while seen(folder) < images and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, folder.with_suffix(".log").read_text()[-4000:]
    return seen(folder)


def assert_kills_change_nothing(code: str, base: Path, kills: list[int], weights: str) -> None:
    """Kill a run at each of the given images seen, finish it, and compare it with an unkilled one.

    ``code`` trains in sys.argv[1], logging every step. The exported ``weights`` (a path inside the
    run's folder) and the last checkpoint (model, average and optimizer) must be the same bytes.
    """
    whole, killed = base / "whole", base / "killed"
    unkilled = start(code, whole)  # at the same time, to save a minute
    at = [kill_at(code, killed, images) for images in kills]
    finish(start(code, killed), killed)
    finish(unkilled, whole)
    assert all(there >= wanted for there, wanted in zip(at, kills, strict=True))
    assert at[-1] < seen(whole), "the last kill came after the end"
    last = max((whole / "checkpoints").glob("*.safetensors")).relative_to(whole)
    for file in (Path(weights), last):
        assert (whole / file).read_bytes() == (killed / file).read_bytes(), file
