"""Sampling at scale: images by the ten thousand into one file, by any number of processes.

Start a call once per process, as ``torchrun`` and ``accelerate launch`` do: each draws its share of
the file's blocks, see :mod:`softvq.npz`. A block is always the same images, computed in the same
batches, so that the file is the same bytes whatever the number of processes, and whether or not a
run was killed and repeated.
"""

import dataclasses
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from softvq import images
from softvq.coding import BATCH, check_size
from softvq.encoding import claim_index
from softvq.errors import SoftVQWarning, UserError
from softvq.fingerprint import digest, fingerprint
from softvq.generator.families import family_of
from softvq.io import check_finite, save_tensors, sweep
from softvq.npz import NpzImages, check_room
from softvq.outputs import claimed
from softvq.pipeline import Pipeline
from softvq.processes import joined
from softvq.tokenizer.model import Tokenizer
from softvq.tokens import TokenIndex, TokenSet, shard_name

SHOWN = 1000  # images at most on the sheet of a folder
MOST_STEPS = 100_000
SMALLEST = 4096  # bytes that a file takes on most disks


@dataclass
class Request:
    """Which images to draw: one of ``labels`` each, or ``count`` without classes.

    ``columns`` of the sheet that shows them.
    """

    labels: list[int | str] | None
    count: int
    columns: int = 8


def ask(
    pipeline: Pipeline,
    labels: Sequence[str] = ("balanced",),
    count: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
    npz: bool = False,
    out: str | Path = ".",
) -> Request:
    """What a command line asks for: 4 images of each class, unless it says otherwise.

    labels   ("balanced",) or ("sampled",), see :func:`choose_labels`; or names and numbers of
             classes, in turn: one image of each
    count, per_class   all images, or those of each class
    npz, out   where they go: into one file, of which a block takes as many bytes as pixels, or as
               PNG files, of which the smallest take a hundredth, or a block of the disk

    Raises UserError for labels that there are not, and if that many images have no room.
    """
    check_seed(seed)
    known = pipeline.classes
    named = tuple(labels) not in (("balanced",), ("sampled",))
    how = "balanced" if named else labels[0]
    given: list[int | str] = list(range(len(known)))
    if named:
        given = [int(x) if x.isascii() and x.isdigit() and x not in known else x for x in labels]
        pipeline.class_numbers(given, None)
    each = per_class or (1 if named else 4)
    total = count or each * max(1, len(given))
    config = pipeline.tokenizer.config
    pixels = 3 * config.height * config.width
    # Before a list of as many labels.
    check_room(out, total * (pixels if npz else max(SMALLEST, pixels // 100)))
    if not given:
        return Request(None, total)
    chosen = choose_labels(given, total, how, seed)
    if rows := not (count or named):  # of the sheet, one for each class
        chosen.sort(key=given.index)
    return Request(chosen, total, each if rows else 8)


def keep_promise(pipeline: Pipeline) -> None:
    """Turn to "exact" where "auto" would draw other pictures in other batches, and warn of it."""
    if pipeline.precision == "auto" and not pipeline.rows_alike():
        warnings.warn(
            "this machine rounds differently in different places of a batch; drawing in float64, "
            "in twice the time, so that pictures do not depend on it (--precision fp32 does not)",
            SoftVQWarning,
            stacklevel=2,
        )
        pipeline.precision = "exact"


def check_seed(seed: int) -> None:
    """Raises UserError for a number that seeds nothing."""
    if not 0 <= seed < 1 << 63:
        raise UserError(f"seed {seed}: give 0 or more, and less than 2^63; another draws others")


def choose_labels(
    labels: Sequence[int | str], count: int, how: str = "balanced", seed: int = 0
) -> list[int | str]:
    """One of ``labels`` for each of ``count`` images; image i's does not depend on ``count``.

    how: "balanced", all of them in turn, again and again; or "sampled", each drawn at random, all
    alike, from a stream of ``seed`` that is none of the noise's.
    """
    if how == "balanced":
        return list(islice(cycle(labels), count))
    check_seed(seed)
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    return [labels[i] for i in stream.integers(len(labels), size=count)]


def generate(
    pipeline: Pipeline,
    path: str | Path,
    labels: Sequence[int | str] | None = None,
    count: int | None = None,
    seed: int = 0,
    batch: int = BATCH,
    decode_batch: int = BATCH,
    latents: str | Path | None = None,
    progress: bool = True,
    overwrite: bool = False,
    **options: Any,
) -> bool:
    """Draw images 0, 1, .. of ``seed`` into the .npz file ``path``, on the devices there are.

    labels, count   as for ``Pipeline.generate_latents``, and so are the ``options``
    batch           how many images the generator draws at a time; ``decode_batch``, the decoder
    latents         folder to keep the normalised latents in, as ``softvq.tokens`` reads them. It
                    asks for the tokenizer's encoder alone: another decoder of it may render them
    overwrite       replace, at the end, a file that this wrote with other settings

    Repeating the call goes on where a stopped one was. Returns False if Ctrl-C stopped it. Raises
    UserError if ``path`` or ``latents`` hold other images or the disk is too full, where the
    pipeline does, and if an image is not finite.
    """
    if min(batch, decode_batch) < 1:
        raise UserError(f"batches must be 1 or more, got {batch} and {decode_batch}")
    check_drawing(seed, options)
    numbers, total = pipeline.class_numbers(labels, count)
    state = joined()
    pipeline.tokenizer.to(state.device)
    pipeline.generator.to(state.device)
    keep_promise(pipeline)
    config = pipeline.tokenizer.config
    if not Path(path).exists() and labels is None:
        check_room(path, 3 * total * config.height * config.width)  # before a list of its blocks
    sampling = family_of(pipeline.generator).options | options
    settings = {
        "tokenizer": digest(pipeline.tokenizer),
        "generator": digest(pipeline.generator),
        "labels": None if numbers is None else _hash(numbers.tolist()),
        "seed": seed,
        "batch": batch,
        "decode_batch": decode_batch,
        "latents": latents is not None,
        "precision": pipeline.precision,
        "compile": pipeline.compiled,
        "device": state.device.type,
    } | {k: digest(v) if isinstance(v, nn.Module) else v for k, v in sampling.items()}
    file = NpzImages(
        path,
        (total, config.height, config.width, 3),
        batch * -(-decode_batch // batch),  # whole batches of the generator, at least one decoder's
        settings,
        None if numbers is None else numbers.numpy(),
        overwrite,
    )
    kept = None if latents is None else Path(latents)
    tokens = options.get("tokens") or pipeline.generator.config.tokens

    def claim() -> None:
        if kept is not None:
            index = TokenIndex(
                tokenizer=fingerprint(pipeline.tokenizer),
                drawn_with=file.settings,
                tokens=tokens,
                channels=config.channels,
                height=config.height,
                width=config.width,
                classes=pipeline.classes,
                count=total,
                shards={shard_name(i): len(place) for i, place in enumerate(file.blocks)},
            )
            claim_index(kept, index)
            sweep(kept)

    def render(block: int) -> np.ndarray:
        place = file.blocks[block]
        some = None if numbers is None else numbers[place.start : place.stop].tolist()
        drawn = pipeline.generate_latents(
            some, len(place) if some is None else None, seed, batch, place.start, **options
        )
        if kept is not None:
            _keep(kept / shard_name(block), pipeline, drawn, some or [0] * len(place), place)
        return pipeline.decode_uint8(drawn, decode_batch)

    floats = total * tokens * config.channels if kept else 0
    return write_images(file, render, claim, 4 * floats, progress)


def generate_folder(
    pipeline: Pipeline,
    out: str | Path,
    request: Request,
    seed: int = 0,
    batch: int = BATCH,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> int:
    """Draw images into PNG files, 00000-dog.png and on, and grid.png, a sheet of the first ones.

    ``options``: as for ``Pipeline.generate_latents``. Returns how many images there are. The same
    call again draws the same; another one is refused where there are images already, unless
    ``overwrite``. Raises UserError where the pipeline does, and ``softvq.outputs.claimed``.
    """
    check_drawing(seed, options)
    keep_promise(pipeline)
    numbers, total = pipeline.class_numbers(
        request.labels, None if request.labels else request.count
    )
    settings = {
        "model": digest(pipeline.generator),
        "tokenizer": digest(pipeline.tokenizer),
        "labels": None if numbers is None else _hash(numbers.tolist()),
        "count": total,
        "seed": seed,
        "precision": pipeline.precision,
    } | {k: digest(v) if isinstance(v, nn.Module) else v for k, v in options.items()}
    names = ["picture"] * total
    if numbers is not None:
        names = [re.sub("[^a-zA-Z0-9-]+", "_", pipeline.classes[x]) for x in numbers.tolist()]
    files = [f"{i:05d}-{name}.png" for i, name in enumerate(names)]
    shown: list[np.ndarray] = []
    with (
        claimed(out, "generate", settings, overwrite) as output,
        tqdm(total=total, desc="images", unit="img", disable=not progress) as bar,
    ):
        paths = output.expect([*files, "grid.png"])
        for first in range(0, total, batch):
            place = range(first, min(first + batch, total))
            some = None if request.labels is None else request.labels[first : place.stop]
            drawn = pipeline.generate_latents(
                some, len(place) if some is None else None, seed, batch, first,
                **{k: v[first : place.stop] if _each(v) else v for k, v in options.items()},
            )  # fmt: skip
            pictures = pipeline.decode_uint8(drawn, batch)
            for picture, i in zip(pictures, place, strict=True):
                images.save_png(Image.fromarray(picture), paths[i])
            shown += list(pictures[: SHOWN - len(shown)])
            bar.update(len(place))
        images.save_png(images.grid(np.stack(shown), request.columns, scale=2), paths[-1])
    return total


def _each(value: object) -> bool:
    """Whether an option has a value for each image."""
    return isinstance(value, Tensor) and value.ndim > 0


def check_drawing(seed: int, options: dict[str, Any]) -> None:
    """Raises UserError for a seed or a number of steps that cannot be meant."""
    check_seed(seed)
    for name in ("steps", "head_steps"):
        steps = options.get(name)
        if isinstance(steps, int) and not 1 <= steps <= MOST_STEPS:
            raise UserError(f"{name} {steps}: give 1 to {MOST_STEPS:,}")


def _keep(path: Path, pipeline: Pipeline, drawn: Tensor, labels: list[int], place: range) -> None:
    """Write a block's latents; an image is named by its class, if there are any, and number."""
    folders = [re.sub("[^a-zA-Z0-9-]+", "_", name) + "/" for name in pipeline.classes] or [""]
    names = [f"{folders[label]}{i:06d}.png" for label, i in zip(labels, place, strict=True)]
    tokenizer = pipeline.tokenizer
    normalised = tokenizer.normalize(drawn.to(tokenizer.latent_mean.device)).float()
    save_tensors(
        {"latents": normalised, "labels": torch.tensor(labels)}, path, {"names": json.dumps(names)}
    )


@torch.no_grad()
def decode_tokens(
    tokenizer: Tokenizer,
    tokens: TokenSet,
    path: str | Path,
    batch: int = BATCH,
    progress: bool = True,
    overwrite: bool = False,
) -> bool:
    """Decode all ``tokens`` into the .npz file ``path``; the rest is as for :func:`generate`."""
    state = joined()
    tokenizer.to(state.device)
    size = (tokens.index.height, tokens.index.width)
    check_size(tokenizer, size)
    index = _hash(dataclasses.asdict(tokens.index))
    settings = {"tokenizer": digest(tokenizer), "tokens": index, "batch": batch}
    file = NpzImages(
        path,
        (len(tokens), *size, 3),
        batch,
        settings | {"device": state.device.type},
        tokens.labels.numpy() if tokens.classes else None,
        overwrite,
    )

    def render(block: int) -> np.ndarray:
        place = file.blocks[block]
        latents = tokens.latents[place.start : place.stop].to(state.device)
        fewer = {}
        if tokens.lengths is not None:
            fewer["lengths"] = tokens.lengths[place.start : place.stop].to(state.device)
        pixels = tokenizer.decode(tokenizer.denormalize(latents), size, **fewer)
        return images.to_uint8(check_finite(pixels, "the decoder"))

    return write_images(file, render, progress=progress)


def write_images(
    file: NpzImages,
    render: Callable[[int], np.ndarray],
    claim: Callable[[], None] = lambda: None,
    beside: int = 0,
    progress: bool = True,
) -> bool:
    """Fill ``file`` with what ``render`` makes of each missing block, and seal it.

    ``claim`` is called once there is something to do, in the first process before the others; it
    may raise UserError. ``beside``: bytes that ``render`` writes elsewhere. Returns False if Ctrl-C
    stopped it.
    """
    state = joined()
    with state.main_process_first():  # the others find what it made
        if file.begin(state.is_main_process, beside):
            return True
    try:
        with state.main_process_first():
            claim()
        missing = file.missing()
        state.wait_for_everyone()  # all have read what is missing before one of them changes it
        _write_blocks(file, missing[state.process_index :: state.num_processes], render, progress)
        state.wait_for_everyone()
        if state.is_main_process:
            file.seal()
    except KeyboardInterrupt:
        if state.is_main_process:
            text = f"stopped at {file.images_done():,} of {file.shape[0]:,} images"
            print(f"{text}; the same command goes on from here", file=sys.stderr)
        return False
    except UserError:
        if state.is_main_process:
            file.discard_if_empty()
        raise
    finally:
        file.release()
    return True


def _write_blocks(
    file: NpzImages, blocks: list[int], render: Callable[[int], np.ndarray], progress: bool
) -> None:
    """Render this process's share. The disk's time for a block passes while the next is drawn."""
    with (
        ThreadPoolExecutor(1) as writer,
        tqdm(
            total=file.shape[0], initial=file.images_done(), desc="images", unit="img",
            smoothing=0.05, mininterval=1 if sys.stderr.isatty() else 30,
            disable=not (progress and joined().is_main_process),
        ) as bar,
    ):  # fmt: skip
        writing: Future[None] | None = None
        for block in blocks:
            pictures = render(block)
            if writing is not None:
                writing.result()
            writing = writer.submit(file.write, block, pictures)
            bar.update(file.images_done() - bar.n)  # of all processes
        if writing is not None:
            writing.result()
        bar.update(file.images_done() - bar.n)


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
