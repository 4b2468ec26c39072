"""Photos streamed from shards beside photos decoded once: the same crops, their speed and memory.

    python benchmarks/streaming.py --out DIR [--photos 20000] [--batch 64] [--rounds 2]

Draws photos of 320 px (waves and noise, JPEG), shards them with ``softvq shard`` and decodes them
into a store. Then, in a process of its own each, reads all crops of 256 px from the shards, for the
seconds until the first batch and memory in the first minute and at the most; and some from both in
turns, for photos a second of the loader alone and behind a network (the recipe ``nested``). At last
one shard is cut short and one deleted, and what training says is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE, STORED = 256, 320


def draw(folder: Path, first: int, count: int) -> None:
    """Photos ``first`` to ``first + count``, in 10 classes."""
    y, x = np.mgrid[:STORED, :STORED] / STORED
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        waves = sum(
            np.sin(2 * np.pi * (a * x + b * y + c))[..., None] * rng.normal(size=3)
            for a, b, c in rng.uniform(-9, 9, (6, 3))
        )
        pixels = 128 + 30 * waves + rng.normal(0, 6, (STORED, STORED, 3))
        path = folder / f"class{i % 10}" / f"{i:06d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def memory() -> float:
    """Resident memory of this process in MB, without the pages of files that it has mapped."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    return int(fields["RssAnon"].split()[0]) / 1000


def read(kind: str, source: Path, cache: Path, batch: int, images: int, network: bool) -> None:
    """One pass in this process; prints its figures as JSON."""
    start = time.perf_counter()
    import torch

    from softvq.data import open_store, stream_store
    from softvq.recipe import DataConfig, TokenizerRecipe, TrainConfig, load_recipe
    from softvq.train.photos import crop_batches
    from softvq.train.tokenizer import TokenizerTask

    loaded = time.perf_counter()
    size = (SIZE, SIZE)
    if kind == "shards":
        photos = stream_store(source, "train", size, 1.25, lost=cache / "lost.jsonl")
    else:
        photos = open_store(source, "train", size, cache, 1.25)
    step = None
    if network:
        task = TokenizerTask(load_recipe(TokenizerRecipe, "nested"))
        player = task.players[0]
        optimizers = player.optimizers(player.module)

        def step(some: object) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                player.loss(player.module.train(), some, None).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

    config = TrainConfig(images=images, batch=batch)
    found, peaks, sums = 0, [], 0.0
    begun, first, reading = time.perf_counter(), 0.0, time.perf_counter()
    for some in crop_batches(photos, DataConfig(), config, 0, 0, 1):
        first = first or time.perf_counter() - begun
        found += len(some.pixels)
        sums += float(some.pixels.double().sum())
        if step is not None:
            step(some)
        peaks.append((time.perf_counter() - reading, memory()))
    took = time.perf_counter() - reading
    early = [m for at, m in peaks if at <= 60]
    print(json.dumps({
        "rate": found / took, "first": first + begun - loaded, "imports": loaded - start,
        "minute": max(early), "most": max(m for _, m in peaks), "sum": sums, "took": took,
    }))  # fmt: skip


def run(*arguments: object) -> dict:
    command = [sys.executable, __file__, "--read", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sys.stderr.write(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        kind, source, cache, batch, images, network = sys.argv[2:]
        read(kind, Path(source), Path(cache), int(batch), int(images), network == "True")
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, help="directory for photos and shards")
    parser.add_argument("--photos", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, choices=(1, 2))
    parser.add_argument(
        "--alone", type=int, default=4096, help="photos that the loader alone reads"
    )
    parser.add_argument(
        "--behind", type=int, default=192, help="photos that a network sees; 0: none"
    )
    args = parser.parse_args()
    photos, shards, cache = args.out / "photos", args.out / "shards", args.out / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    if not photos.is_dir():
        for k in range(10):
            (photos / f"class{k}").mkdir(parents=True)
        each = 500
        starts = range(0, args.photos, each)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(draw, [photos] * len(starts), starts, [each] * len(starts)))
    subprocess.run(
        [sys.executable, "-m", "softvq", "shard", "--data", photos, "--out", shards, "--quiet"],
        check=True,
    )
    ways = {"store": photos, "shards": shards}
    run("store", photos, cache, args.batch, args.batch, False)  # decodes
    whole = run("shards", shards, cache, args.batch, args.photos * 9 // 10, False)
    print(
        f"first batch after {whole['first']:.2f} s (imports before that {whole['imports']:.1f} s); "
        f"memory {whole['minute']:.0f} MB in the first minute, {whole['most']:.0f} MB at most in "
        f"{whole['took']:.0f} s\n\n| photos/s | decoded store | shards | ratio | same pixels |\n"
        "|---|---|---|---|---|",
        flush=True,
    )
    for network, images in ((False, args.alone), (True, args.behind)):
        if not images:
            continue
        rounds = [
            {kind: run(kind, ways[kind], cache, args.batch, images, network) for kind in order}
            for order in (["store", "shards"], ["shards", "store"])[: args.rounds]
        ]
        store, shard = (np.median([one[k]["rate"] for one in rounds]) for k in ways)
        ratio = np.median([one["shards"]["rate"] / one["store"]["rate"] for one in rounds])
        same = all(abs(one["shards"]["sum"] - one["store"]["sum"]) < 1e-3 for one in rounds)
        title = "behind the network of `nested`" if network else "the loader alone"
        print(f"| {title} | {store:.1f} | {shard:.1f} | {ratio:.2f} | {same} |", flush=True)
    tars = sorted(shards.glob("train-*.tar"))
    kept = [tars[0].read_bytes(), tars[1].read_bytes()]
    try:
        tars[0].write_bytes(kept[0][: len(kept[0]) // 2])
        tars[1].unlink()
        hurt = run("shards", shards, cache, args.batch, 4000, False)
        print(f"with one shard cut in half and one deleted: {hurt['rate']:.1f} photos/s")
    finally:
        for path, data in zip(tars, kept, strict=False):
            path.write_bytes(data)


if __name__ == "__main__":
    main()
