"""An archive to tokens by one worker of Ray and by two, one of which is killed.

    python benchmarks/archive.py --shards DIR --out DIR [--tokenizer MODEL] [--rounds 1]

Encodes the shards of ``softvq shard`` in one process and by Ray, and checks that every photo is in
the tokens exactly once and that the tokens are equal; then prints photos a second of one worker and
of two, from the first file on, and of two processes without Ray, which is what the machine can do.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from softvq.data import find_photos
from softvq.encoding import encode_folder
from softvq.engines import RayEngine
from softvq.models import open_tokenizer
from softvq.tokens import read_tokens


class Watch(threading.Thread):
    """Notes when the first file is there, and kills a worker once ``kill_at`` files are."""

    def __init__(self, folder: Path, kill_at: int | None = None):
        super().__init__(daemon=True)
        self.folder, self.kill_at, self.first, self.killed = folder, kill_at, 0.0, 0
        self.start()

    def run(self) -> None:
        while not self.first or (self.kill_at and not self.killed):
            there = len(list(self.folder.glob("tokens-*")))
            if there and not self.first:
                self.first = time.perf_counter()
            if self.kill_at and there >= self.kill_at:
                found = subprocess.run(["pgrep", "-f", "ray::.*_Worker"], capture_output=True)
                self.killed = int(found.stdout.split()[0])
                os.kill(self.killed, signal.SIGKILL)
            time.sleep(0.02)


def encode(args: argparse.Namespace, name: str, engine: RayEngine, kill_at: int | None = None):
    """The tokens, and photos a second from the first file on, when others are nearly done."""
    out = args.out / name
    shutil.rmtree(out, ignore_errors=True)
    watch = Watch(out, kill_at)
    index, _ = encode_folder(open_tokenizer(args.tokenizer), args.shards, out, engine=engine)
    rate = (index.count - engine.workers * 1024) / (time.perf_counter() - watch.first)
    return read_tokens(out), rate, watch.killed


def alone(args: argparse.Namespace, processes: int) -> float:
    """Photos a second of processes of one thread that torchrun starts, from the first file on."""
    out = args.out / f"torchrun-{processes}"
    shutil.rmtree(out, ignore_errors=True)
    watch = Watch(out)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), "-m", "softvq", "encode",
               "--quiet",
               "--precision", "fp32", "--tokenizer", args.tokenizer, "--data", args.shards,
               "--out", out]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    done = time.perf_counter()
    count = len(find_photos(args.shards, "all").names)
    return (count - processes * 1024) / (done - watch.first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tokenizer", default="shipped")
    parser.add_argument("--rounds", type=int, default=1, help="0: no rates but one process's")
    args = parser.parse_args()
    names = find_photos(args.shards, "all").names
    rates: dict[str, list[float]] = {"one process": [alone(args, 1)]}
    tokens = {}
    for _ in range(args.rounds):
        rates.setdefault("two processes", []).append(alone(args, 2))
        for workers, title in ((1, "Ray, one worker"), (2, "Ray, two workers")):
            tokens[title], rate, _ = encode(args, f"ray-{workers}", RayEngine(workers))
            rates.setdefault(title, []).append(rate)
    tokens["Ray, one of two killed"], _, killed = encode(
        args, "ray-killed", RayEngine(2), kill_at=3
    )
    wanted = read_tokens(args.out / "torchrun-1")
    for title, found in tokens.items():
        row = {name: i for i, name in enumerate(found.names)}
        error = (found.latents[[row[name] for name in wanted.names]] - wanted.latents).abs().max()
        once = sorted(found.names) == sorted(names)
        print(f"{title}: every photo exactly once: {once}; tokens differ by {error:.1e} at most")
    print(f"killed: process {killed}\n\n| encoded by | photos/s | times one |\n|---|---|---|")
    for title, values in rates.items():
        base = rates["Ray, one worker" if title.startswith("Ray") else "one process"]
        print(f"| {title} | {np.median(values):.0f} | {np.median(values) / np.median(base):.2f} |")
    print(f"\n{torch.get_num_threads()} threads, {len(names):,} photos")


if __name__ == "__main__":
    main()
