"""Damaged files by the thousand, the same from the same seed: each is read, or refused in a line.

    python -m helpers.fuzz 20000 [--seed 0] [--only images] [--at 1234]     from tests/

Good files of every kind that is read are damaged, as bytes or, where they are JSON, YAML or lines,
as values; then they are opened as a command would. Anything but success or a documented error is a
finding, printed with what repeats it. The exit code is 1 if there is one, or if the process ever
took more than a gigabyte.
"""

import argparse
import functools
import io
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from softvq import images
from softvq.errors import UserError
from softvq.generator.families import GENERATORS
from softvq.io import save_tensors
from softvq.models import describe, open_generator, open_probe, open_tokenizer
from softvq.npz import NpzImages
from softvq.pipeline import Pipeline
from softvq.probe import Probe, ProbeConfig
from softvq.recipe import KINDS, load_recipe, open_recipe, recipe_yaml
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokens import TokenIndex, read_tiles, read_tokens, shard_name

MOST_MEMORY = 1e9  # bytes
# Values that lengths, counts and offsets go wrong at.
EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
JUNK: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 2**31, 2**40, 10**30, 0.5, -2.5, 1e-300, 1e300, float("nan"),
    float("inf"), "", "a", "vit", "null", "a\nb", "\ud800", "\0", "../../x", "${x}", "${b.c}",
    "x" * 10_000, [], [1], [[]], {}, {"a": 1},
)  # fmt: skip
LINES = (
    "model.tokens=0", "train=", "=", "a.b", "train.images=[", "train.lr={a: 1}", "data=null",
    "model.width=${train.lr}", "train.images=1e400", "model..x=1", "a=!!python/tuple [1]",
    "model.[0]=1", "x\ny=1", "\x00=1", "train.seed=0x7fffffffffff", "data.source=???",
)  # fmt: skip


# ---- damage ----


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four faults: bytes changed, lost, doubled, zeroed or cut off, numbers at an edge.

    Half of the faults are in the first 200 bytes, where headers are.
    """
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        if not data:
            break
        most = min(len(data), 200) if rng.random() < 0.5 else len(data)
        at, length = int(rng.integers(most)), int(rng.integers(1, 40))
        kind = rng.integers(7)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(min(length, len(data) - at))
        elif kind == 2:
            data[at : at + length] = bytes(min(length, len(data) - at))
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = data[at : at + length]
        elif kind == 5:
            width = int(rng.choice([1, 2, 4]))
            value = EDGES[rng.integers(len(EDGES))] % 256**width
            order = "little" if rng.random() < 0.5 else "big"
            data[at : at + width] = value.to_bytes(width, order)
        else:
            del data[int(rng.integers(len(data))) :]
    return bytes(data)


def places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested lists and dictionaries."""
    keys = range(len(values)) if isinstance(values, list) else list(values)
    for key in keys:
        yield values, key
        if isinstance(values[key], dict | list):
            yield from places(values[key])


def mutate_values(values: Any, rng: np.random.Generator) -> Any:
    """One to three values of a tree exchanged for junk or for each other, lost, or new."""
    draw = random.Random(int(rng.integers(2**32)))
    for _ in range(draw.randint(1, 3)):
        known = list(places(values))
        if not known or draw.random() < 0.03:
            return draw.choice(JUNK)
        holder, key = draw.choice(known)
        fate = draw.random()
        if fate < 0.6:
            holder[key] = draw.choice(JUNK)
        elif fate < 0.75:
            other, there = draw.choice(known)
            holder[key] = json.loads(json.dumps(other[there]))
        elif fate < 0.9:
            del holder[key]
        elif isinstance(holder, dict):
            holder[str(draw.choice(JUNK))[:20]] = draw.choice(JUNK)
    return values


def damaged(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """A file damaged as bytes or, two times of three where it has them, as values."""
    suffix = Path(name).suffix
    if suffix not in (".json", ".yaml", ".lines") or rng.random() < 1 / 3:
        return mutate(content, rng)
    if suffix == ".lines":
        lines = content.decode().split("\n")
        for _ in range(rng.integers(1, 3)):
            lines.insert(0, LINES[rng.integers(len(LINES))])
        key = lines[-1].partition("=")[0]
        lines.append(f"{key}={JUNK[rng.integers(len(JUNK))]}")
        rng.shuffle(lines)
        return "\n".join(lines[: rng.integers(1, 4)]).encode("utf-8", "surrogatepass")
    if suffix == ".json":
        return json.dumps(mutate_values(json.loads(content), rng)).encode()
    text = yaml.safe_dump(mutate_values(yaml.safe_load(content), rng), allow_unicode=True)
    return text.encode("utf-8", "surrogatepass")


# ---- what is opened ----


@dataclass(frozen=True)
class Target:
    """Good files by path, and how a folder of them is used; it raises UserError or BadImage.

    fragile: the files that are damaged, all if none are named.
    """

    files: dict[str, bytes]
    use: Callable[[Path], object]
    fragile: tuple[str, ...] = ()


def files_in(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def small_tokenizer() -> Tokenizer:
    shape = {"height": 16, "width": 16, "patch": 8, "tokens": 2, "channels": 4, "codebook_size": 8}
    sizes = {f"{part}_{name}": value for part in ("encoder", "decoder")
             for name, value in (("width", 8), ("depth", 1), ("heads", 1))}  # fmt: skip
    return Tokenizer(TokenizerConfig(**shape, **sizes, layer_scale=None)).eval()


def image_seeds(height: int = 48, width: int = 64) -> dict[str, bytes]:
    """Good pictures of every format that is read, and of their odder kinds."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 255 / width, y * 255 / height, 128 + 60 * np.sin(x / 5) * np.cos(y / 7)])
    rgb = Image.fromarray(ramps.transpose(1, 2, 0).astype(np.uint8))
    deep = Image.fromarray((ramps[0] * 257).astype(np.uint16))
    real = Image.fromarray((ramps[0] / 255).astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict]] = {
        "rgb.jpg": (rgb, {"format": "JPEG", "exif": exif}),
        "progressive.jpg": (rgb, {"format": "JPEG", "progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {"format": "JPEG"}),
        "rgb.png": (rgb, {"format": "PNG", "exif": exif}),
        "palette.png": (rgb.quantize(16), {"format": "PNG", "transparency": bytes(range(16))}),
        "deep.png": (deep, {"format": "PNG"}),
        "bits.png": (rgb.convert("1"), {"format": "PNG"}),
        "animated.gif": (rgb.quantize(8), {"format": "GIF", "save_all": True}),
        "lossy.webp": (rgb, {"format": "WEBP"}),
        "alpha.webp": (rgb.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        "rgb.bmp": (rgb, {"format": "BMP"}),
        "plain.tif": (rgb, {"format": "TIFF", "exif": exif}),
        "deep.tif": (deep, {"format": "TIFF", "compression": "tiff_lzw"}),
        "float.tif": (real, {"format": "TIFF", "compression": "tiff_deflate"}),
        "jpeg.tif": (rgb, {"format": "TIFF", "compression": "jpeg"}),
        "fax.tif": (rgb.convert("1"), {"format": "TIFF", "compression": "group4"}),
    }
    seeds = {}
    for name, (image, options) in kinds.items():
        more = {"append_images": [image.rotate(90)]} if name == "animated.gif" else {}
        buffer = io.BytesIO()
        image.save(buffer, **options, **more)
        seeds[name] = buffer.getvalue()
    return seeds


def image_targets(scratch: Path) -> list[Target]:
    def load(folder: Path) -> None:
        image = images.load(next(folder.iterdir()))
        assert image.mode == "RGB" and np.asarray(image).ndim == 3

    return [Target({name: content}, load) for name, content in image_seeds().items()]


def config_targets(scratch: Path) -> list[Target]:
    """Folders of every kind of model, and a pipeline: config.json, weights, model_index.json."""

    def of(opened: Callable[[Path], object]) -> Callable[[Path], object]:
        def use(folder: Path) -> None:
            try:
                opened(folder)
            finally:
                describe(folder)

        return use

    torch.manual_seed(0)
    tokenizer = small_tokenizer()
    tokenizer.save_pretrained(scratch / "tokenizer")
    Probe(ProbeConfig(16, 16, 3, 8)).save_pretrained(scratch / "probe")
    found = [
        Target(files_in(scratch / "tokenizer"), of(open_tokenizer)),
        Target(files_in(scratch / "probe"), of(open_probe)),
    ]
    more = {"mar": {"head_width": 8, "head_depth": 1, "buffer": 1}}
    for name, family in GENERATORS.items():
        shape = {"width": 8, "depth": 1, "heads": 1} | more.get(name, {})
        generator = family.network(family.config(2, 4, 3, **shape)).eval()
        generator.save_pretrained(scratch / name)
        found.append(Target(files_in(scratch / name), of(open_generator)))
        if name == "sit":
            Pipeline(tokenizer, generator, ["a", "b", "c"]).save_pretrained(scratch / "pipeline")
            use = of(Pipeline.from_pretrained)
            found.append(Target(files_in(scratch / "pipeline"), use, ("model_index.json",)))
    return found


def recipe_targets(scratch: Path) -> list[Target]:
    """Recipes as files, and overrides, one in a line."""

    def override(kind: type, base: str) -> Callable[[Path], object]:
        def use(folder: Path) -> None:
            text = (folder / "some.lines").read_bytes().decode("utf-8", "surrogateescape")
            load_recipe(kind, base, text.split("\n"))

        return use

    def load(folder: Path) -> None:
        open_recipe(str(folder / "my.yaml"))

    found = []
    for kind, base in (("tokenizer", "tiny"), ("generator", "mar-tiny"), ("probe", "probe")):
        text = f"kind: {kind}\n{recipe_yaml(load_recipe(KINDS[kind], base))}"
        found.append(Target({"my.yaml": text.encode()}, load))
        lines = b"train.lr=1e-3\ndata.margin=1.5\ntrain.images=100\ndata.fit=crop"
        found.append(Target({"some.lines": lines}, override(KINDS[kind], base)))
    return found


def token_targets(scratch: Path) -> list[Target]:
    """Folders of tokens, their index and their files: as many each, by photo, and by tiles."""

    def use(folder: Path) -> None:
        try:
            tokens = read_tokens(folder)
            assert len(tokens) == len(tokens.latents) == len(tokens.labels)
            assert tokens.latents.isfinite().all()
        finally:
            describe(folder)

    def use_tiles(folder: Path) -> None:
        try:
            for _, tiled in read_tiles(folder, "x" * 64):
                assert len(tiled.latents) == tiled.tiling.count(*tiled.size)
        finally:
            describe(folder)

    common: dict[str, Any] = {
        "tokenizer": "x" * 64, "tokens": 2, "channels": 4, "height": 16, "width": 16,
        "classes": ["a", "b"], "skipped": [{"path": "c.png", "reason": "bad"}],
    }  # fmt: skip
    lengths = torch.tensor([1, 2, 1])
    some = {"latents": torch.randn(4, 4), "lengths": lengths, "met": lengths > 1}
    by_photo = TokenIndex(count=3, shards={shard_name(0): 3}, target="PSNR >= 9 dB", **common)
    by_tiles = TokenIndex(count=1, shards={shard_name(0): 1}, overlap=4, **common)
    tiles = {"latents": torch.randn(2, 2, 4), "size": torch.tensor([16, 20])}
    alike = TokenIndex(count=5, shards={shard_name(0): 3, shard_name(1): 2}, **common)
    found = []
    for name, index, held, reader in (
        ("alike", alike, {}, use),
        ("photo", by_photo, some, use),
        ("tiles", by_tiles, tiles, use_tiles),
    ):
        names = iter(f"{'ab'[i % 2]}/{i}.png" for i in range(5))
        for shard, count in index.shards.items():
            labels = {"labels": torch.arange(count) % 2}
            tensors = (held or {"latents": torch.randn(count, 2, 4)}) | labels
            listed = {"names": json.dumps(list(islice(names, count)))}
            save_tensors(tensors, scratch / name / shard, listed)
        index.write(scratch / name)
        found.append(Target(files_in(scratch / name), reader))
    return found


def npz_targets(scratch: Path) -> list[Target]:
    """Images half drawn, which are gone on with, and a finished file."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)

    def file(folder: Path) -> NpzImages:
        return NpzImages(folder / "x.npz", pixels.shape, 2, {"seed": 0}, np.arange(8))

    def write(half: NpzImages, blocks: list[int]) -> None:
        for block in blocks:
            place = half.blocks[block]
            half.write(block, pixels[place.start : place.stop])

    def use(folder: Path) -> None:
        half = file(folder)
        try:
            finished = half.begin()
            if not finished:
                write(half, half.missing())
                half.seal()
        finally:
            half.release()
        with np.load(folder / "x.npz") as found:
            assert found["arr_0"].shape == pixels.shape and len(found["arr_1"]) == 8
            assert not finished or (found["arr_0"] == pixels).all()

    half = file(scratch)
    half.begin()
    write(half, [0, 2])
    half.release()
    begun = files_in(scratch)
    write(half, [1, 3])
    half.seal()
    state = tuple(name for name in begun if not name.endswith("lock"))
    return [Target(begun, use, state), Target(files_in(scratch), use)]


# What is fuzzed, and its share of all.
TARGETS: dict[str, tuple[float, Callable[[Path], list[Target]]]] = {
    "images": (0.4, image_targets),
    "config": (0.2, config_targets),
    "recipes": (0.1, recipe_targets),
    "tokens": (0.15, token_targets),
    "npz": (0.15, npz_targets),
}


@functools.cache
def targets(kind: str) -> list[Target]:
    with tempfile.TemporaryDirectory() as scratch:
        return TARGETS[kind][1](Path(scratch))


# ---- the run ----


@dataclass
class Outcome:
    """What became of the mutants: how many of each kind, and the findings as text."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0


def try_one(kind: str, seed: int, at: int, folder: Path, outcome: Outcome) -> None:
    """Make and open mutant ``at`` of a kind: always the same for the same seed."""
    known = targets(kind)
    target = known[at % len(known)]
    rng = np.random.default_rng((seed, at))
    fragile = target.fragile or tuple(target.files)
    hit = fragile[rng.integers(len(fragile))]
    for name, content in target.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damaged(name, content, rng) if name == hit else content)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            target.use(folder)
        result = "opened"
    except (UserError, images.BadImage) as error:
        result = "refused"
        if len(str(error).splitlines()) != 1:
            outcome.findings.append(f"{kind} --at {at} --seed {seed}: {hit}: lines: {error!a}")
    except Exception as error:  # noqa: BLE001 - what is looked for
        result = "FAILED"
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        outcome.findings.append(f"{kind} --at {at} --seed {seed}: {hit}: {text[:300]!a}")
    outcome.counts[f"{kind} {result}"] += 1
    outcome.slowest = max(outcome.slowest, time.perf_counter() - start)
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def fuzz(count: int, seed: int = 0, only: str | None = None, at: int | None = None) -> Outcome:
    """Try ``count`` mutants, by their shares, or of one kind; or the one of number ``at``."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        for kind, (share, _) in TARGETS.items():
            if only in (None, kind):
                many = round(count * share) if only is None else count
                for i in range(many) if at is None else [at]:
                    try_one(kind, seed, i, Path(folder), outcome)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS)
    parser.add_argument("--at", type=int, help="repeat this mutant of --only")
    asked = parser.parse_args()
    outcome = fuzz(asked.count, asked.seed, asked.only, asked.at)
    unit = 1 if sys.platform == "darwin" else 1024
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    for name, many in sorted(outcome.counts.items()):
        print(f"{many:>7,} {name}")
    total = outcome.counts.total()
    print(f"{total:,} mutants, {len(outcome.findings)} findings, ", end="")
    print(f"slowest {outcome.slowest:.2f} s, peak memory {memory / 1e6:,.0f} MB")
    for finding in outcome.findings[:100]:
        print(finding)
    return int(bool(outcome.findings) or memory > MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
