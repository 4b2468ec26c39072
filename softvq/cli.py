"""The command line: parses, calls, prints. torch is imported inside commands: help is instant."""

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from softvq import __version__
from softvq.errors import SoftVQWarning, UserError

if TYPE_CHECKING:
    from softvq.data import Store
    from softvq.evaluate.features import FeatureNetwork
    from softvq.tokenizer import Tokenizer

DATA = "folder of photos (a class is a first-level subfolder), or 'builtin'"
TOKENIZER = "directory of a trained tokenizer, or 'shipped' (default)"
MODEL = "directory that `softvq train generator` wrote, or 'shipped' (default)"
BATCH = 64


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. What the user can mend becomes one line on stderr."""
    warnings.formatwarning = _format_warning
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


_format_foreign = warnings.formatwarning


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Our own warnings as one line, as errors are; those of libraries stay as they are."""
    if not issubclass(category, SoftVQWarning):
        return _format_foreign(message, category, filename, lineno, line)
    return f"softvq: warning: {' '.join(str(message).split())}\n"


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
    recipe.trainable = "decoder" if args.decoder_only else recipe.trainable
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

    tokenizer = _tokenizer(args)
    with _decoded(args.data, "all", tokenizer, args.out) as photos:
        write_tokens(args.out, tokenizer, photos)
        shape = f"{tokenizer.config.tokens} tokens of {tokenizer.config.channels} numbers"
        print(f"{_n(photos.names, 'photo')} as {shape} each in {args.out}")
    return 0


def decode(args: argparse.Namespace) -> int:
    import torch

    from softvq import images
    from softvq.tokens import fingerprint, read_tokens

    tokenizer = _tokenizer(args)
    tokens = read_tokens(args.tokens, fingerprint(tokenizer))
    if args.npz:
        from softvq.generate import decode_tokens

        return _npz_written(decode_tokens(tokenizer, tokens, args.npz), tokens, args.npz)
    paths = images.png_paths(tokens.names, args.out)
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

    tokenizer = _tokenizer(args)
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
        paths = images.png_paths(names, args.out)
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
    from softvq.generate import choose_labels, generate
    from softvq.pipeline import Pipeline

    pipeline = Pipeline.from_pretrained(args.model)
    pipeline.precision = args.precision
    if args.compile:
        pipeline.compile()
    known = pipeline.classes
    how = args.labels if args.labels in ("balanced", "sampled") else "balanced"
    given: list[int | str] = list(range(len(known)))
    if named := args.labels not in (None, "balanced", "sampled"):
        words = [word.strip() for word in args.labels.split(",")]
        given = [int(x) if x.isdigit() and x not in known else x for x in words]
    each = args.per_class or (1 if named else 4)
    count = args.count or each * max(1, len(given))
    labels = choose_labels(given, count, how, args.seed) if given else []
    if rows := bool(known) and not (args.count or named):  # of the grid, one for each class
        labels.sort()
    options = {"seed": args.seed, "batch": args.batch} | _sampling(args, pipeline.generator)
    options |= {"labels": labels} if labels else {"count": count}
    if args.npz:
        beside = {"decode_batch": args.decode_batch or args.batch, "latents": args.latents}
        finished = generate(pipeline, args.npz, **options, **beside)
        return _npz_written(finished, range(count), args.npz)
    if args.latents or args.decode_batch:
        raise UserError("--latents and --decode-batch go with --npz")
    pipeline.tokenizer.to(_device())
    pipeline.generator.to(_device())
    pictures = pipeline(**options)
    names = [known[x] if isinstance(x, int) else x for x in labels] or ["picture"] * count
    out = Path(args.out)
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        images.save_png(picture, out / f"{i:05d}-{re.sub('[^a-zA-Z0-9-]+', '_', name)}.png")
    images.save_png(images.grid(pictures, each if rows else 8, scale=2), out / "grid.png")
    print(f"{_n(pictures, 'picture')} and grid.png in {out}")
    return 0


def evaluate_reconstruction(args: argparse.Namespace) -> int:
    from softvq.evaluate.trained import evaluate_reconstruction
    from softvq.tokenizer.lpips import LPIPS

    tokenizer = _tokenizer(args)
    network = _features(args) if args.features else None
    lpips = LPIPS.from_file(args.lpips).to(_device()) if args.lpips else None
    masks = Path(args.masks) if args.masks else None
    with _decoded(args.data, args.split, tokenizer) as photos:
        figures = evaluate_reconstruction(tokenizer, photos, network, lpips, masks)
        facts = _facts(photos, tokenizer) | {"split": args.split}
    _print_figures(facts | ({"features": network.name} if network else {}) | figures, args.json)
    return 0


def evaluate_generation(args: argparse.Namespace) -> int:
    from softvq.evaluate.statistics import open_statistics
    from softvq.evaluate.trained import evaluate_generation
    from softvq.pipeline import Pipeline

    pipeline, network = Pipeline.from_pretrained(args.model), _features(args)
    pipeline.tokenizer.to(_device())
    pipeline.generator.to(_device())
    sampling = {"seed": args.seed} | _sampling(args, pipeline.generator)
    facts: dict[str, Any]
    if args.reference:
        reference, made_with = open_statistics(args.reference)
        if made_with not in (None, network.name):
            raise UserError(f"{args.reference}: of {made_with}, not of {network.name}")
        figures = evaluate_generation(
            pipeline, network, reference=reference, count=args.images, **sampling
        )
        facts = {"images": args.images, "reference": args.reference}
    else:
        with _decoded(args.data, args.split, pipeline.tokenizer) as photos:
            figures = evaluate_generation(pipeline, network, photos, **sampling)
            facts = _facts(photos, pipeline.tokenizer) | {"split": args.split}
    _print_figures(facts | {"features": network.name} | sampling | figures, args.json)
    return 0


def evaluate_latents(args: argparse.Namespace) -> int:
    from softvq.evaluate.trained import evaluate_latents

    tokenizer = _tokenizer(args)
    with (
        _decoded(args.data, "train", tokenizer) as train,
        _decoded(args.data, "val", tokenizer) as held_out,
    ):
        figures = evaluate_latents(tokenizer, train, held_out)
    config = tokenizer.config
    _print_figures({"tokens": config.tokens, "channels": config.channels} | figures, args.json)
    return 0


def evaluate_statistics(args: argparse.Namespace) -> int:
    from softvq import images
    from softvq.data import fixed_batches
    from softvq.evaluate.features import FeatureSet
    from softvq.evaluate.statistics import save_statistics

    network = _features(args)
    with _decoded(args.data, args.split, _tokenizer(args)) as photos:
        batches = (images.to_uint8(pixels) for pixels, _ in fixed_batches(photos, BATCH))
        gathered = FeatureSet.of(network, batches, keep=False)
        save_statistics(args.out, gathered.statistics, network.name)
        print(f"{network.name} of {_n(photos.names, 'photo')} in {args.out}")
    return 0


def cost(args: argparse.Namespace) -> int:
    from softvq.evaluate import systems

    prices = systems.Prices(args.price_per_hour, args.watts, args.price_per_kwh, args.currency)
    named = [systems.open_system(name, args.generator, args.size) for name in args.recipes]
    columns = [systems.figures(system, args.steps, args.guidance) for system in named]
    if args.measure or any(prices[:3]):
        for system, column in zip(named, columns, strict=True):
            rates = systems.measure(system, args.batch, args.steps, args.guidance, _device())
            column["measured"] = {task: rate._asdict() for task, rate in rates.items()}
            if any(prices[:3]):
                column["currency"] = prices.currency
                column["per_million"] = {
                    task: systems.per_million(rate, prices) for task, rate in rates.items()
                }
    baselines = [
        systems.figures(systems.dit_xl_2(pixels), args.steps, args.guidance)
        for pixels in systems.BASELINES.values()
    ]
    if args.json:
        print(json.dumps({"systems": columns, "baselines": baselines}))
    else:
        print(systems.table(columns, baselines))
    return 0


def study(args: argparse.Namespace) -> int:
    from softvq.study.arms import Settings
    from softvq.study.study import Evidence, run_study

    settings = Settings(
        data=args.data,
        size=args.size,
        fit=args.fit,
        init=args.init,
        tokens=args.tokens,
        hold=args.hold,
        channels=args.channels,
        bottlenecks=args.bottlenecks,
        budget=args.budget,
        images=args.images,
        seed=args.seed,
    )
    evidence = Evidence(
        masks=args.masks,
        boxes=args.boxes,
        metadata=args.metadata,
        group=args.group,
        subgroups=args.subgroups,
        normal=args.normal,
        drop_leaks=args.drop_leaks,
    )
    finished = run_study(settings, evidence, Path(args.out), args.criteria, args.lang)
    return 0 if finished else 130


def import_model(args: argparse.Namespace) -> int:
    from softvq.interop.convert import import_model

    kind = import_model(args.source, Path(args.target), args.num_heads, args.download)
    print(f"{kind} in {args.target}")
    return 0


def export_model(args: argparse.Namespace) -> int:
    from softvq.interop.convert import export_model

    kind = export_model(args.source, Path(args.target), args.format)
    print(f"{kind} in {args.target}")
    return 0


# ---- what the commands share ----


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _tokenizer(args: argparse.Namespace) -> "Tokenizer":
    from softvq.pipeline import load_tokenizer

    return load_tokenizer(args.tokenizer, args.size).to(_device())


def _features(args: argparse.Namespace) -> "FeatureNetwork":
    from softvq.evaluate.features import load_network

    return load_network(args.features, args.preprocessing, _device())


def _sampling(args: argparse.Namespace, generator: Any) -> dict[str, Any]:
    """How to sample: as was asked for, and otherwise as the generator does by itself."""
    from softvq.generator.families import family_of

    names = ("steps", "guidance", "interval", "sampler", "temperature", "head_steps")
    asked = {name: getattr(args, name) for name in names}
    options = family_of(generator).options | {k: v for k, v in asked.items() if v is not None}
    return {name: value for name, value in options.items() if value is not None}


def _npz_written(finished: bool, pictures: Sized, path: str) -> int:
    if finished and os.environ.get("RANK", "0") == "0":
        print(f"{_n(pictures, 'picture')} in {path}")
    return 0 if finished else 130


def _facts(photos: "Store", tokenizer: "Tokenizer") -> dict[str, Any]:
    """What a figure is of."""
    height, width = photos.size
    floats = tokenizer.config.tokens * tokenizer.config.channels
    counts = {"images": len(photos), "skipped": len(photos.skipped)}
    return counts | {"height": height, "width": width, "floats_per_image": floats}


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    if as_json:
        print(json.dumps(rounded))
        return
    for name, value in rounded.items():
        shown = " ".join(f"{x:.3f}" for x in value) if isinstance(value, list) else value
        print(f"{name:<23}{shown}")


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
    command.add_argument(
        "--decoder-only",
        action="store_true",
        help="leave the tokens of --init as they are: generators of them stay valid",
    )
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
    _add_tokenizer(command)
    command.add_argument("--data", required=True, help=DATA)
    command.add_argument("--out", required=True, help="folder for the tokens")

    command = add(
        "decode",
        decode,
        "turn a folder of tokens back into pictures",
        "softvq decode tokens --out pictures",
    )
    command.add_argument(
        "tokens", metavar="TOKENS", help="folder that `softvq encode` or `generate` wrote"
    )
    _add_tokenizer(command)
    _add_pictures(command)

    command = add(
        "reconstruct",
        reconstruct,
        "write photos beside their reconstructions",
        "softvq reconstruct --data photo.jpg --out pictures",
    )
    _add_tokenizer(command)
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
    command.add_argument(
        "--labels",
        help="class names or numbers, with commas, taken in turn; 'balanced' (default), all "
        "classes in turn; or 'sampled', drawn at random",
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument("--count", type=_count, help="pictures in all")
    which.add_argument(
        "--per-class",
        type=_count,
        help="pictures of every class, or in all if the model has none (default: 4, and 1 of each "
        "of --labels)",
    )
    _add_sampling(command)
    command.add_argument(
        "--batch", type=_count, default=BATCH, help=f"pictures drawn at a time (default: {BATCH})"
    )
    command.add_argument(
        "--decode-batch", type=_count, help="pictures decoded at a time (default: as --batch)"
    )
    command.add_argument(
        "--precision",
        choices=("exact", "fp32", "bf16"),
        default="exact",
        help="exact (default): the same pictures whatever the batch, in float64 on a CPU, in "
        "float32 on a GPU",
    )
    command.add_argument("--compile", action="store_true", help="have torch compile the networks")
    _add_pictures(command)
    command.add_argument(
        "--latents", metavar="DIR", help="with --npz: keep the tokens, for `softvq decode`"
    )

    command = commands.add_parser(
        "evaluate",
        help="measure reconstructions, drawn pictures, or the tokens themselves",
        description="Measure reconstructions, drawn pictures, or the tokens themselves.",
        epilog="example:\n  softvq evaluate reconstruction --data photos --features shipped",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    measures = command.add_subparsers(metavar="WHAT", required=True)
    command = add(
        "reconstruction",
        evaluate_reconstruction,
        "measure how well held-out photos survive: PSNR, SSIM, LPIPS, rFID",
        "softvq evaluate reconstruction --data photos --features shipped",
        measures,
    )
    _add_tokenizer(command)
    command.add_argument("--data", required=True, help=DATA)
    _add_split(command)
    _add_features(command, required=False)
    command.add_argument("--lpips", metavar="FILE", help="VGG-16's ImageNet weights: adds LPIPS")
    command.add_argument(
        "--masks", metavar="DIR", help="pictures named as the photos: adds figures inside of them"
    )
    command.add_argument("--json", action="store_true", help="print one line of JSON")

    command = add(
        "generation",
        evaluate_generation,
        "measure drawn pictures against photos: FID, KID, precision and recall, and more",
        "softvq evaluate generation --data photos --features shipped",
        measures,
    )
    command.add_argument("--model", default="shipped", help=MODEL)
    against = command.add_mutually_exclusive_group(required=True)
    against.add_argument("--data", help=f"{DATA}; as many pictures are drawn")
    against.add_argument(
        "--reference", metavar="FILE", help=".npz of a set's statistics, ours or published"
    )
    _add_split(command)
    command.add_argument(
        "--images",
        type=_count,
        default=50_000,
        help="pictures to draw, with --reference (default: 50000)",
    )
    _add_features(command)
    _add_sampling(command)
    command.add_argument("--json", action="store_true", help="print one line of JSON")

    command = add(
        "latents",
        evaluate_latents,
        "measure the tokens: linear probe, nearest neighbours, rank, codebook, each one's worth",
        "softvq evaluate latents --data photos",
        measures,
    )
    _add_tokenizer(command)
    command.add_argument("--data", required=True, help=DATA)
    command.add_argument("--json", action="store_true", help="print one line of JSON")

    command = add(
        "statistics",
        evaluate_statistics,
        "save the features' statistics of photos, as a reference for generated pictures",
        "softvq evaluate statistics --data photos --features shipped --out reference.npz",
        measures,
    )
    _add_tokenizer(command)
    command.add_argument("--data", required=True, help=DATA)
    _add_split(command)
    _add_features(command)
    command.add_argument("--out", required=True, help="the .npz file")

    command = add(
        "cost",
        cost,
        "count what models cost, beside DiT-XL/2 with the autoencoder of Stable Diffusion",
        "softvq cost softvq-l-64 softvq-l-32-512",
    )
    command.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="recipe of a tokenizer or generator, directory of a trained model or of an "
        "autoencoder of diffusers, 'shipped', dit-xl-2-256 or dit-xl-2-512",
    )
    _add_size(command)
    command.add_argument(
        "--generator", help="recipe or directory for tokenizers given alone (default: SiT-XL/1)"
    )
    command.add_argument(
        "--steps",
        type=_count,
        default=50,
        help="sampling steps (default: 50); a MAR makes at most one for each token",
    )
    command.add_argument(
        "--guidance", type=float, default=1.5, help="guidance scale, 1 for none (default: 1.5)"
    )
    command.add_argument(
        "--measure",
        action="store_true",
        help="time the models here too: minutes, for large ones without a GPU much longer",
    )
    command.add_argument(
        "--batch", type=_count, default=8, help="images at a time, when measuring (default: 8)"
    )
    command.add_argument(
        "--price-per-hour", type=_positive, default=0.0, help="of this machine; measures"
    )
    command.add_argument("--watts", type=_positive, default=0.0, help="it draws; measures")
    command.add_argument("--price-per-kwh", type=_positive, default=0.0, help="with --watts")
    command.add_argument("--currency", default="EUR", help="of the prices (default: EUR)")
    command.add_argument("--json", action="store_true", help="print one line of JSON")

    command = add(
        "study",
        study,
        "find out how far tokens can be cut on your photos, what it saves and what is lost"
        + resume,
        "softvq study --data photos --masks masks --out study --budget 60m",
    )
    command.add_argument("--data", required=True, help=DATA)
    command.add_argument("--out", required=True, help="folder of the study and its report")
    command.add_argument(
        "--budget", type=_duration, default=3600.0, help="time for all of it, as 30m (default: 60m)"
    )
    command.add_argument(
        "--tokens", type=_counts, default=(8, 16, 32, 64), help="to try (default: 8,16,32,64)"
    )
    command.add_argument(
        "--hold",
        choices=("channels", "floats", "both"),
        default="channels",
        help="what stays the same while tokens are cut: the numbers of a token (default), those of "
        "a photo, or both in turn",
    )
    command.add_argument(
        "--channels", type=_count, default=32, help="numbers of a token (default: 32)"
    )
    command.add_argument(
        "--bottlenecks",
        type=_words,
        default=("softvq", "kl", "vq"),
        help="to try, of softvq, kl, vq, ae (default: softvq,kl,vq)",
    )
    command.add_argument(
        "--size",
        type=_pixels,
        default=(64, 64),
        help="pixels that photos are reduced to, one number (default: 64)",
    )
    command.add_argument(
        "--fit",
        choices=("stretch", "crop"),
        default="stretch",
        help="how a photo that is not square is met: squeezed, so that nothing is cut off "
        "(default), or cropped",
    )
    command.add_argument(
        "--init",
        default="shipped",
        help="directory of the tokenizer that every arm starts from, cut or stretched to its "
        "shape, or 'none' (default: shipped)",
    )
    what = command.add_mutually_exclusive_group()
    what.add_argument("--masks", metavar="DIR", help="PNGs named as the photos, not black inside")
    what.add_argument("--boxes", metavar="CSV", help="of what matters: name, x1, y1, x2, y2")
    command.add_argument(
        "--metadata", metavar="CSV", help="of the photos (default: manifest.csv in --data)"
    )
    command.add_argument(
        "--group",
        metavar="COLUMN",
        help="photos of one part or scene, one piece of evidence: a column of --metadata (default: "
        "cluster or group), or 'stem', the file's name without its ending",
    )
    command.add_argument(
        "--subgroups", type=_words, default=(), help="columns to report figures by, with commas"
    )
    command.add_argument(
        "--normal",
        type=_words,
        help="classes without a defect (default: those named ok, good, normal, free, 良品, ..)",
    )
    command.add_argument(
        "--drop-leaks",
        action="store_true",
        help="leave out held-out photos that are in training too; without it they are refused",
    )
    command.add_argument("--criteria", metavar="YAML", help="what must hold; see the manual")
    command.add_argument(
        "--images",
        type=_count,
        help="photos that every arm sees at first, in place of --budget: the same on any machine",
    )
    command.add_argument("--seed", type=int, default=0, help="(default: 0)")
    command.add_argument("--lang", choices=("en", "ja"), default="en", help="of the report")

    command = add(
        "import",
        import_model,
        "turn a checkpoint of the reference implementation into a model of softvq",
        "softvq import SoftVQVAE/softvq-l-64 models/softvq-l-64 --download",
    )
    command.add_argument(
        "source",
        metavar="SRC",
        help="its directory; with --download also ORGANISATION/NAME on the Hugging Face hub",
    )
    command.add_argument("target", metavar="DST", help="folder for the model")
    command.add_argument(
        "--num-heads",
        type=_count,
        help="attention heads, which its config does not say (default: as the timm model it names)",
    )
    command.add_argument(
        "--download", action="store_true", help="fetch SRC from the hub if it is no directory here"
    )

    command = add(
        "export",
        export_model,
        "write a model of softvq in another layout",
        "softvq export runs/tokenizer exported --format reference",
    )
    command.add_argument("source", metavar="SRC", help="directory of the model")
    command.add_argument("target", metavar="DST", help="folder for what is written")
    command.add_argument(
        "--format",
        choices=("reference",),
        default="reference",
        help="whose layout (default: reference, that of the reference implementation)",
    )
    return parser


def _add_tokenizer(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tokenizer",
        default="shipped",
        help=f"{TOKENIZER}, or of an AutoencoderKL or AutoencoderDC of diffusers",
    )
    _add_size(command)


def _add_size(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--size",
        type=_pixels,
        help="HEIGHTxWIDTH or one number, in pixels, for an autoencoder of diffusers (default: its "
        "sample_size)",
    )


def _add_split(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--split",
        choices=("train", "val", "all"),
        default="val",
        help="which photos (default: val, the held-out ones)",
    )


def _add_features(command: argparse.ArgumentParser, required: bool = True) -> None:
    command.add_argument(
        "--features",
        required=required,
        help="what distances are measured on: 'shipped' or a directory of a trained probe, of a "
        "vision model of transformers, or the weight file of the FID Inception network",
    )
    command.add_argument(
        "--preprocessing",
        choices=("tf", "pytorch"),
        default="tf",
        help="Inception's resize: TensorFlow's (default), or that of pytorch-fid",
    )


def _add_pictures(command: argparse.ArgumentParser) -> None:
    where = command.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", metavar="DIR", help="folder for the pictures, as PNG files")
    where.add_argument(
        "--npz",
        metavar="FILE",
        help="one array of all pictures, and their labels; a stopped command goes on when "
        "repeated, and torchrun may start it in several processes",
    )


def _add_sampling(command: argparse.ArgumentParser) -> None:
    own = "default: the generator's own"
    command.add_argument("--steps", type=_count, help=f"sampling steps ({own})")
    command.add_argument("--guidance", type=float, help=f"guidance scale, 1 for none ({own})")
    command.add_argument(
        "--interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="times, 0 data and 1 noise, between which guidance acts (default: 0 1)",
    )
    command.add_argument("--sampler", help=f"euler, heun, euler_maruyama, ddim, .. ({own})")
    command.add_argument("--temperature", type=float, help="of a MAR's tokens (default: 1)")
    command.add_argument(
        "--head-steps", type=_count, help=f"sampling steps of a MAR's head ({own})"
    )
    command.add_argument(
        "--seed", type=int, default=0, help="same seed, same pictures (default: 0)"
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(word) for word in _words(text))


def _duration(text: str) -> float:
    """Seconds: 90s, 30m, 2h, or a bare number of minutes."""
    units = {"s": 1, "m": 60, "h": 3600}
    unit = text[-1:] if text[-1:] in units else "m"
    return _positive(text.removesuffix(unit)) * units[unit]


def _pixels(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return _count(height), _count(width or height)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return value
