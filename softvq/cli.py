"""The command line: parses, calls, prints. torch is imported inside commands: help is instant."""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sized
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NoReturn

from softvq import __version__
from softvq.errors import UserError

if TYPE_CHECKING:
    from softvq.data import Store
    from softvq.tokenizer import Tokenizer

DATA = "folder of photos (a class is a first-level subfolder), or 'builtin'"
TOKENIZER = "directory of a trained tokenizer, or 'shipped' (default)"
MODEL = "directory that `softvq train generator` wrote, or 'shipped' (default)"
BATCH = 64


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend becomes one line on stderr."""
    try:
        args = build_parser().parse_args(argv)
        return args.run(args)
    except UserError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("softvq: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has gone, as in `softvq ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        # safetensors reports a full disk as an error of its own; the text is the same.
        if "No space left on device" in str(error):
            return _fail("disk full; free some space and repeat the command")
        if isinstance(error, OSError) and error.filename is not None:
            return _fail(f"{error.filename}: {error.strerror}")
        raise


def _fail(message: str) -> int:
    print(f"softvq: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


# ---- commands: arguments -> exit code ----


def demo(args: argparse.Namespace) -> int:
    from softvq.demo import run_demo

    return 0 if run_demo(Path(args.out), args.minutes) else 130


def train_tokenizer(args: argparse.Namespace) -> int:
    from softvq.recipe import TokenizerRecipe, load_recipe
    from softvq.train.tokenizer import train_tokenizer

    recipe = load_recipe(TokenizerRecipe, args.recipe, args.overrides)
    recipe.data.source = args.data or recipe.data.source
    recipe.init = args.init or recipe.init
    return 0 if train_tokenizer(recipe, Path(args.out)) else 130


def train_generator(args: argparse.Namespace) -> int:
    from softvq.recipe import GeneratorRecipe, load_recipe
    from softvq.train.generator import train_generator

    recipe = load_recipe(GeneratorRecipe, args.recipe, args.overrides)
    recipe.data.source = args.data or recipe.data.source
    recipe.tokenizer = args.tokenizer or recipe.tokenizer
    return 0 if train_generator(recipe, Path(args.out)) else 130


def train_probe(args: argparse.Namespace) -> int:
    from softvq.recipe import ProbeRecipe, load_recipe
    from softvq.train.probe import train_probe

    recipe = load_recipe(ProbeRecipe, args.recipe, args.overrides)
    recipe.data.source = args.data or recipe.data.source
    return 0 if train_probe(recipe, Path(args.out)) else 130


def encode(args: argparse.Namespace) -> int:
    from softvq.tokens import write_tokens

    tokenizer = _tokenizer(args.tokenizer)
    with _decoded(args.data, "all", tokenizer, args.out) as photos:
        write_tokens(args.out, tokenizer, photos)
        shape = f"{tokenizer.config.tokens} tokens of {tokenizer.config.channels} numbers"
        print(f"{_n(photos.names, 'photo')} as {shape} each in {args.out}")
    return 0


def decode(args: argparse.Namespace) -> int:
    import torch

    from softvq import images
    from softvq.tokens import fingerprint, read_tokens

    tokenizer = _tokenizer(args.tokenizer)
    tokens = read_tokens(args.tokens, fingerprint(tokenizer))
    paths = _png_paths(tokens.names, args.out)
    size = (tokens.index["height"], tokens.index["width"])
    device = _device()
    for first in range(0, len(tokens), BATCH):
        latents = tokenizer.denormalize(tokens.latents[first : first + BATCH].to(device))
        with torch.inference_mode():
            pictures = images.to_pil(tokenizer.decode(latents, size))
        for picture, path in zip(pictures, paths[first:], strict=False):
            images.save_png(picture, path)
    print(f"{_n(paths, 'picture')} in {args.out}")
    return 0


def reconstruct(args: argparse.Namespace) -> int:
    import numpy as np

    from softvq import images
    from softvq.data import fixed_batches

    tokenizer = _tokenizer(args.tokenizer)
    device = _device()
    with contextlib.ExitStack() as stack:
        if Path(args.data).is_file():
            try:
                photo = images.fit(images.load(args.data), _size(tokenizer))
            except images.BadImage as error:
                raise UserError(str(error)) from None
            names = [Path(args.data).name]
            batches = iter([images.to_tensor(np.asarray(photo))[None]])
        else:
            photos = stack.enter_context(_decoded(args.data, "all", tokenizer, args.out))
            names = photos.names
            batches = (pixels for pixels, _ in fixed_batches(photos, BATCH))
        paths = _png_paths(names, args.out)
        remaining = iter(paths)
        for pixels in batches:
            originals = images.to_uint8(pixels)
            rebuilt = images.to_uint8(tokenizer.reconstruct(pixels.to(device)))
            for original, copy in zip(originals, rebuilt, strict=True):
                pair = images.grid(np.stack([original, copy]), columns=2, scale=args.scale)
                images.save_png(pair, next(remaining))
    print(f"{_n(paths, 'picture')} (original | reconstruction) in {args.out}")
    return 0


def generate(args: argparse.Namespace) -> int:
    from softvq import images
    from softvq.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(args.model)
    pipeline.tokenizer.to(_device())
    pipeline.generator.to(_device())
    known = pipeline.classes
    options = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    if args.labels is not None:
        given = [label.strip() for label in args.labels.split(",")]
        labels = [int(x) if x.isdigit() and x not in known else x for x in given]
        pictures = pipeline(labels, **options)
        names = [known[x] if isinstance(x, int) else x for x in labels]
    elif known:
        names = [name for name in known for _ in range(args.per_class)]
        pictures = pipeline(names, **options)
    else:
        names = ["picture"] * args.per_class
        pictures = pipeline(count=args.per_class, **options)
    out = Path(args.out)
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        images.save_png(picture, out / f"{i:05d}-{re.sub('[^a-zA-Z0-9-]+', '_', name)}.png")
    columns = args.per_class if args.labels is None and known else 8
    images.save_png(images.grid(pictures, columns, scale=2), out / "grid.png")
    print(f"{_n(pictures, 'picture')} and grid.png in {out}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from softvq.evaluate.model import evaluate_model
    from softvq.evaluate.probe import Probe
    from softvq.pipeline import Pipeline, model_folder

    if args.generator and not args.probe:
        raise UserError("--generator is measured by a distance: give --probe too")
    tokenizer, probe, pipeline = _tokenizer(args.tokenizer), None, None
    if args.probe:
        folder = model_folder(args.probe)
        probe = Probe.from_pretrained(folder / "probe" if args.probe == "shipped" else folder)
    if args.generator:
        pipeline = Pipeline.from_pretrained(args.generator)
    config = tokenizer.config
    with _decoded(args.data, args.split, tokenizer) as photos:
        sampling = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed}
        figures = evaluate_model(tokenizer, photos, probe, pipeline, **sampling)
        result = {
            "images": len(photos),
            "skipped": len(photos.skipped),
            "split": args.split,
            "height": config.height,
            "width": config.width,
            "floats_per_image": config.tokens * config.channels,
        } | {name: round(value, 4) for name, value in figures.items()}
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:<18}{value}" for name, value in result.items()))
    return 0


# ---- what the commands share ----


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _tokenizer(name: str) -> "Tokenizer":
    from softvq.pipeline import load_tokenizer

    return load_tokenizer(name).to(_device())


def _size(tokenizer: "Tokenizer") -> tuple[int, int]:
    return tokenizer.config.height, tokenizer.config.width


@contextlib.contextmanager
def _decoded(
    source: str, split: str, tokenizer: "Tokenizer", out: str | None = None
) -> Iterator["Store"]:
    """The photos at the tokenizer's size, in a folder that is gone afterwards.

    Damaged photos are counted on stderr, and listed in ``out``/skipped.jsonl.
    """
    from softvq.data import open_store
    from softvq.io import write_atomically

    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".photos-", dir=out) as cache:
        photos = open_store(source, split, _size(tokenizer), cache, margin=1.0)
        if photos.skipped:
            listed = ""
            if out is not None:
                lines = "".join(json.dumps(item) + "\n" for item in photos.skipped)
                write_atomically(Path(out) / "skipped.jsonl", lines)
                listed = f", listed in {Path(out) / 'skipped.jsonl'}"
            print(f"skipped {_n(photos.skipped, 'damaged photo')}{listed}", file=sys.stderr)
        yield photos


def _n(things: Sized, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def _png_paths(names: list[str], out: str) -> list[Path]:
    """Where the picture of each name goes: under its own name, as PNG; never outside ``out``."""
    taken: set[PurePosixPath] = set()
    paths = []
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the name {name!r} points outside of {out}; rename the photo")
        target = path.with_suffix(".png")
        if target in taken:  # a.jpg and a.png
            target = path.with_name(path.name + ".png")
        taken.add(target)
        paths.append(Path(out, target))
    return paths


# ---- the parser ----


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all other errors are said."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="softvq",
        description="Photos to a few continuous tokens and back, and new photos from new tokens.",
        epilog="example:\n  softvq demo --out demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"softvq {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str, run, about: str, example: str, to: argparse._SubParsersAction = commands
    ) -> argparse.ArgumentParser:
        command = to.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "demo",
        demo,
        "show all of it on photos that are at hand, and write a report",
        "softvq demo --out demo",
    )
    command.add_argument("--out", required=True, help="folder for the report and the training run")
    command.add_argument(
        "--minutes", type=_positive, default=2.0, help="how long to fine-tune (default: 2)"
    )

    command = commands.add_parser(
        "train",
        help="train a tokenizer or a generator",
        description="Train a tokenizer or a generator.",
        epilog="example:\n  softvq train tokenizer --data photos --out runs/tokenizer",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = command.add_subparsers(metavar="MODEL", required=True)
    overrides = "recipe values to change, as key.subkey=value; they come last"
    resume = "; a stopped run goes on when its command is repeated"
    command = add(
        "tokenizer",
        train_tokenizer,
        "train a tokenizer on photos" + resume,
        "softvq train tokenizer --data photos --out runs/tokenizer train.images=200000",
        models,
    )
    recipe = "name of a shipped recipe, or a YAML file"
    command.add_argument("--recipe", default="small", help=f"{recipe} (default: small)")
    command.add_argument("--data", help=DATA)
    command.add_argument("--init", help="directory of a tokenizer to start from, or 'shipped'")
    command.add_argument("--out", required=True, help="folder of the run")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)

    command = add(
        "generator",
        train_generator,
        "train a generator on a tokenizer's tokens" + resume,
        "softvq train generator --tokenizer runs/tokenizer --data photos --out runs/generator",
        models,
    )
    command.add_argument(
        "--recipe", default="small-generator", help=f"{recipe} (default: small-generator)"
    )
    command.add_argument("--tokenizer", help=TOKENIZER)
    command.add_argument("--data", help=DATA)
    command.add_argument("--out", required=True, help="folder of the run and of the model")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)

    command = add(
        "probe",
        train_probe,
        "train the classifier on whose features distances are measured" + resume,
        "softvq train probe --data photos --out runs/probe",
        models,
    )
    command.add_argument("--recipe", default="probe", help=f"{recipe} (default: probe)")
    command.add_argument("--data", help=DATA)
    command.add_argument("--out", required=True, help="folder of the run")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=overrides)

    command = add(
        "encode",
        encode,
        "write the tokens of photos, with names and labels, to safetensors files",
        "softvq encode --data photos --out tokens",
    )
    command.add_argument("--tokenizer", default="shipped", help=TOKENIZER)
    command.add_argument("--data", required=True, help=DATA)
    command.add_argument("--out", required=True, help="folder for the tokens")

    command = add(
        "decode",
        decode,
        "turn a folder of tokens back into pictures",
        "softvq decode tokens --out pictures",
    )
    command.add_argument("tokens", metavar="TOKENS", help="folder that `softvq encode` wrote")
    command.add_argument("--tokenizer", default="shipped", help=TOKENIZER)
    command.add_argument("--out", required=True, help="folder for the pictures")

    command = add(
        "reconstruct",
        reconstruct,
        "write photos beside their reconstructions",
        "softvq reconstruct --data photo.jpg --out pictures",
    )
    command.add_argument("--tokenizer", default="shipped", help=TOKENIZER)
    command.add_argument("--data", required=True, help=f"a photo, or a {DATA}")
    command.add_argument(
        "--scale", type=_count, default=2, help="enlarge the pictures this many times (default: 2)"
    )
    command.add_argument("--out", required=True, help="folder for the pictures")

    command = add(
        "generate",
        generate,
        "draw new pictures",
        "softvq generate --labels church,parachute --guidance 2 --seed 7 --out pictures",
    )
    command.add_argument("--model", default="shipped", help=MODEL)
    which = command.add_mutually_exclusive_group()
    which.add_argument("--labels", help="class names or numbers, with commas; one picture for each")
    which.add_argument(
        "--per-class",
        type=_count,
        default=4,
        help="pictures of every class, or in all if the model has no classes (default: 4)",
    )
    _add_sampling(command)
    command.add_argument("--out", required=True, help="folder for the pictures")

    command = add(
        "evaluate",
        evaluate,
        "measure how well held-out photos survive: PSNR, SSIM, Frechet distances",
        "softvq evaluate --data photos --probe shipped --generator shipped",
    )
    command.add_argument("--tokenizer", default="shipped", help=TOKENIZER)
    command.add_argument("--data", required=True, help=DATA)
    command.add_argument(
        "--split",
        choices=("train", "val", "all"),
        default="val",
        help="which photos (default: val, the held-out ones)",
    )
    command.add_argument(
        "--probe",
        help="directory of a trained probe, or 'shipped': adds Frechet distances on its features",
    )
    command.add_argument(
        "--generator",
        help=f"{MODEL.removesuffix(' (default)')}: adds the distance of as many drawn pictures",
    )
    _add_sampling(command)
    command.add_argument("--json", action="store_true", help="print one line of JSON")
    return parser


def _add_sampling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=_count, default=50, help="sampling steps (default: 50)")
    command.add_argument(
        "--guidance", type=float, default=1.5, help="guidance scale, 1 for none (default: 1.5)"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="same seed, same pictures (default: 0)"
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value
