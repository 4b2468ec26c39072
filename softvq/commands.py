"""What each command does: options -> outcome. It opens, calls one room, and says what came of it.

None in place of an outcome: it was stopped, and has said so.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softvq import options
from softvq.errors import UserError, check_there, first_started
from softvq.fields import table

if TYPE_CHECKING:
    from softvq.data import Store
    from softvq.evaluate.features import FeatureNetwork
    from softvq.pipeline import Pipeline
    from softvq.quality import Budget
    from softvq.tokenizer import Tokenizer


@dataclass
class Outcome:
    """What came of a command: lines for people, and the same as facts for ``--json``."""

    text: str
    facts: dict[str, Any] = field(default_factory=dict)


def demo(asked: options.Demo) -> Outcome | None:
    from softvq.demo import run_demo

    if asked.dry_run:
        return _planned("the built-in photos", 60 * (asked.minutes + 3))
    return Outcome("", {"out": asked.out}) if run_demo(Path(asked.out), asked.minutes) else None


def train_tokenizer(asked: options.TrainTokenizer) -> Outcome | None:
    from softvq.recipe import TokenizerRecipe, load_recipe
    from softvq.train.tokenizer import train_tokenizer

    recipe = load_recipe(TokenizerRecipe, asked.recipe, asked.overrides)
    recipe.data.source = asked.data or recipe.data.source
    recipe.init = asked.init or recipe.init
    recipe.trainable = "decoder" if asked.decoder_only else recipe.trainable
    return _planned_training(recipe, asked) or _trained(
        train_tokenizer(recipe, Path(asked.out)), recipe, asked
    )


def train_generator(asked: options.TrainGenerator) -> Outcome | None:
    from softvq.models import tokenizer_beside
    from softvq.recipe import GeneratorRecipe, load_recipe
    from softvq.train.generator import train_generator

    recipe = load_recipe(GeneratorRecipe, asked.recipe, asked.overrides)
    recipe.data.source = asked.data or recipe.data.source
    recipe.init = asked.init or recipe.init
    recipe.tokenizer = asked.tokenizer or tokenizer_beside(asked.init) or recipe.tokenizer
    return _planned_training(recipe, asked) or _trained(
        train_generator(recipe, Path(asked.out)), recipe, asked
    )


def train_probe(asked: options.TrainProbe) -> Outcome | None:
    from softvq.recipe import ProbeRecipe, load_recipe
    from softvq.train.probe import train_probe

    recipe = load_recipe(ProbeRecipe, asked.recipe, asked.overrides)
    recipe.data.source = asked.data or recipe.data.source
    return _planned_training(recipe, asked) or _trained(
        train_probe(recipe, Path(asked.out)), recipe, asked
    )


def shard(asked: options.Shard) -> Outcome:
    from softvq.data import find_photos
    from softvq.data.sharding import addresses_of, in_folder, write_shards

    if asked.dry_run:
        if in_folder(asked.data):
            return _planned(find_photos(asked.data, "all").summary())
        tars = asked.data.endswith(".tar")
        return _planned(_n(addresses_of(asked.data), "shard") if tars else asked.data)
    photos, left_out = write_shards(asked.data, asked.out, asked.each, asked.seed)
    text = f"{_n(photos.names, 'photo')} in {_n(photos.shards, 'shard')} of {asked.out}"
    if left_out:
        text += f"; {left_out:,} left out, listed in {Path(asked.out) / 'skipped.jsonl'}"
    text += f"\n{photos.summary()}\nnext: softvq encode --data {asked.out} --out tokens"
    facts = {
        "images": len(photos.names), "shards": len(photos.shards), "skipped": left_out,
        "classes": photos.classes, "out": asked.out,
    }  # fmt: skip
    return Outcome(text, facts)


def encode(asked: options.Encode) -> Outcome:
    from softvq.encoding import encode_folder, write_here
    from softvq.engines import RayEngine
    from softvq.tiles import Tiling
    from softvq.tokens import lengths_of

    tokenizer, budget = _tokenizer(asked), None
    if asked.tile is not None:
        side = None if asked.tile == "auto" else int(asked.tile)
        tiling = Tiling.of(tokenizer, side, asked.overlap)
    else:
        tiling = None
    budget = _budget(asked, tokenizer)
    if asked.dry_run:
        return _planned_photos(asked.data, asked.split, tokenizer)
    index, new = encode_folder(
        tokenizer,
        asked.data,
        asked.out,
        asked.split,
        asked.batch,
        found=_say_found,
        keep=budget,
        tiling=tiling,
        precision=asked.precision,
        engine=RayEngine(asked.workers) if asked.engine == "ray" else write_here,
    )
    _say_skipped(index.skipped, asked.out)
    lengths = lengths_of(asked.out)
    each = "each" if tiling is None else "for each tile"
    shape = f"{index.tokens} tokens of {index.channels} numbers"
    added = "" if new == index.count else f" ({new:,} of them new)"
    text = f"{_n(range(index.count), 'photo')} as {shape} {each} in {asked.out}{added}"
    facts = {
        "images": index.count, "new": new, "skipped": len(index.skipped),
        "height": index.height, "width": index.width,
        "floats_per_image": index.tokens * index.channels, "out": asked.out,
    }  # fmt: skip
    if lengths is not None:
        things = "photos" if tiling is None else "tiles"
        text = text.replace(shape, f"1 to {shape}")
        text += f"\nfor {index.target}: {lengths}"
        if lengths.unmet:
            text += f"\n{lengths.unmet:,} of {lengths.count:,} {things} miss it with all tokens"
        facts |= {"target": index.target, "tokens_mean": lengths.mean, "missed": lengths.unmet}
        facts["floats_per_image"] = lengths.mean * index.channels
    return Outcome(text, facts)


def decode(asked: options.Decode) -> Outcome | None:
    from softvq.fingerprint import fingerprint
    from softvq.tokens import TokenIndex, decode_folder, read_tokens

    tokenizer = _tokenizer(asked)
    if asked.dry_run and TokenIndex.read(Path(asked.tokens)).tiling is None:
        count = len(read_tokens(asked.tokens, fingerprint(tokenizer)))
        each = _seconds(lambda: tokenizer.reconstruct(_grey(tokenizer))) / TRIAL
        return _planned(f"{count:,} pictures of {_shape(tokenizer)}", count * each)
    if asked.npz:
        from softvq.generate import decode_tokens

        tokens = read_tokens(asked.tokens, fingerprint(tokenizer))
        return _npz_written(
            decode_tokens(tokenizer, tokens, asked.npz, overwrite=asked.overwrite),
            tokens,
            asked.npz,
        )
    assert asked.out is not None
    count = decode_folder(
        tokenizer, asked.tokens, asked.out, asked.overwrite, precision=asked.precision
    )
    pictures = range(count)
    return Outcome(f"{_n(pictures, 'picture')} in {asked.out}", _pictures(pictures, asked.out))


def reconstruct(asked: options.Reconstruct) -> Outcome:
    from softvq.coding import reconstruct_folder

    tokenizer = _tokenizer(asked)
    if asked.dry_run:
        return _planned_photos(asked.data, "all", tokenizer)
    count = reconstruct_folder(
        tokenizer, asked.data, asked.out, scale=asked.scale, overwrite=asked.overwrite,
        found=lambda photos: _say_found(photos, asked.out), tokens=_budget(asked, tokenizer),
        precision=asked.precision,
    )  # fmt: skip
    text = f"{_n(range(count), 'picture')} (original | reconstruction) in {asked.out}"
    return Outcome(text, _pictures(range(count), asked.out))


def generate(asked: options.Generate) -> Outcome | None:
    from softvq.generate import ask, generate, generate_folder

    pipeline = _pipeline(asked)
    pipeline.precision = asked.precision
    if asked.compile:
        pipeline.compile()
    out = asked.npz or asked.out
    assert out is not None
    request = ask(
        pipeline, asked.labels, asked.count, asked.per_class, asked.seed, bool(asked.npz), out
    )
    wanted: dict[str, Any] = {"seed": asked.seed, "batch": asked.batch}
    wanted |= _sampling(asked, pipeline.generator)
    if asked.dry_run:
        return _planned_drawing(pipeline, request.count, wanted)
    if asked.npz:
        beside: dict[str, Any] = {
            "decode_batch": asked.decode_batch or asked.batch,
            "latents": asked.latents,
            "overwrite": asked.overwrite,
        }
        count = None if request.labels else request.count
        finished = generate(pipeline, asked.npz, request.labels, count, **wanted, **beside)
        return _npz_written(finished, range(request.count), asked.npz)
    pipeline.to(_device())
    drawn = range(generate_folder(pipeline, out, request, overwrite=asked.overwrite, **wanted))
    return Outcome(f"{_n(drawn, 'picture')} and grid.png in {out}", _pictures(drawn, out))


def augment(asked: options.Augment) -> Outcome:
    from softvq.augment import augment

    pipeline = _pipeline(asked)
    pipeline.precision = asked.precision
    labels = list(asked.labels) if asked.labels else pipeline.classes
    sampling = _sampling(asked, pipeline.generator)
    if asked.dry_run:
        return _planned_drawing(pipeline, asked.per_class * len(labels), sampling)
    found = augment(
        pipeline.to(_device()), asked.data, asked.out, asked.per_class, labels, asked.seed,
        asked.batch, asked.overwrite, **sampling,
    )  # fmt: skip
    missing = asked.per_class * len(labels) - len(found.pictures)
    text = (
        f"{_n(found.pictures, 'picture')} in {asked.out}/train, {found.copies} near-copies left out"
    )
    if missing:
        text += f"; {missing} fewer than asked for: the generator repeats its photos"
    facts = {"out": asked.out, "images": len(found.pictures), "copies": found.copies}
    return Outcome(text, facts | {"missing": missing})


def evaluate_reconstruction(asked: options.EvaluateReconstruction) -> Outcome:
    from softvq.evaluate.trained import evaluate_reconstruction
    from softvq.quality import lengths_tried
    from softvq.tokenizer.lpips import LPIPS

    check_there(masks=asked.masks)
    tokenizer = _tokenizer(asked)
    network = _features(asked) if asked.features else None
    lpips = LPIPS.from_file(asked.lpips).to(_device()) if asked.lpips else None
    masks = Path(asked.masks) if asked.masks else None
    budget = _budget(asked, tokenizer)
    if asked.curve:
        tokenizer.check_tokens(1)
    if asked.dry_run:
        return _planned_photos(asked.data, asked.split, tokenizer)
    with _decoded(asked.data, asked.split, tokenizer) as photos:

        def measured(tokens: Any) -> dict[str, Any]:
            return evaluate_reconstruction(tokenizer, photos, network, lpips, masks, tokens)

        facts = _facts(photos, tokenizer) | {"split": asked.split}
        facts |= {"features": network.name} if network else {}
        if asked.curve:
            return _curve(facts, [measured(k) for k in lengths_tried(tokenizer.config.tokens)])
        figures = measured(budget)
    if budget is not None:
        facts["floats_per_image"] = figures["tokens"] * tokenizer.config.channels
    return _figures(facts | figures)


def evaluate_generation(asked: options.EvaluateGeneration) -> Outcome:
    from softvq.evaluate.statistics import open_statistics
    from softvq.evaluate.trained import evaluate_generation

    pipeline, network = _pipeline(asked), _features(asked)
    pipeline.to(_device())
    sampling = {"seed": asked.seed} | _sampling(asked, pipeline.generator)
    facts: dict[str, Any]
    if asked.dry_run:
        from softvq.data import find_photos

        count = len(find_photos(asked.data, asked.split).names) if asked.data else asked.images
        return _planned_drawing(pipeline, count, sampling)
    if asked.reference:
        reference, made_with = open_statistics(asked.reference)
        if made_with not in (None, network.name):
            raise UserError(
                f"{asked.reference}: statistics of {made_with}, not of {network.name}; give the "
                "--features that they were made with"
            )
        figures = evaluate_generation(
            pipeline, network, reference=reference, count=asked.images, **sampling
        )
        facts = {"images": asked.images, "reference": asked.reference}
    else:
        assert asked.data is not None
        with _decoded(asked.data, asked.split, pipeline.tokenizer) as photos:
            figures = evaluate_generation(pipeline, network, photos, **sampling)
            facts = _facts(photos, pipeline.tokenizer) | {"split": asked.split}
    return _figures(facts | {"features": network.name} | sampling | figures)


def evaluate_latents(asked: options.EvaluateLatents) -> Outcome:
    from softvq.evaluate.trained import evaluate_latents

    tokenizer = _tokenizer(asked)
    budget = _budget(asked, tokenizer)
    if asked.dry_run:
        return _planned_photos(asked.data, "all", tokenizer)
    with (
        _decoded(asked.data, "train", tokenizer) as train,
        _decoded(asked.data, "val", tokenizer) as held_out,
    ):
        figures = evaluate_latents(tokenizer, train, held_out, tokens=budget)
    config = tokenizer.config
    return _figures(
        {"tokens": asked.tokens or config.tokens, "channels": config.channels} | figures
    )


def evaluate_statistics(asked: options.EvaluateStatistics) -> Outcome:
    import numpy as np

    from softvq.coding import BATCH, originals
    from softvq.evaluate.features import FeatureSet
    from softvq.evaluate.statistics import is_ours, save_statistics
    from softvq.outputs import check_file
    from softvq.processes import share

    check_file(asked.out, is_ours, asked.overwrite)
    network, tokenizer = _features(asked), _tokenizer(asked)
    if asked.dry_run:
        return _planned_photos(asked.data, asked.split, tokenizer)
    with _decoded(asked.data, asked.split, tokenizer) as photos:
        mine = photos.some(np.arange(len(photos))[share(len(photos), BATCH)])
        found = FeatureSet.of(network, originals(mine), keep=False).merged()
        if first_started():
            save_statistics(asked.out, found.statistics, network.name)
        text = f"{network.name} of {_n(photos.names, 'photo')} in {asked.out}"
        return Outcome(text, {"images": len(photos), "features": network.name, "out": asked.out})


def cost(asked: options.Cost) -> Outcome:
    from softvq.evaluate import cost_table, figures, systems

    prices = figures.Prices(
        asked.price_per_hour or 0.0, asked.watts or 0.0, asked.price_per_kwh or 0.0, asked.currency
    )
    measured = asked.measure or any(prices[:3])
    named = [
        systems.open_system(name, asked.generator, asked.size, asked.tokens)
        for name in asked.recipes
    ]
    if asked.dry_run:
        timed = ", timed here, which takes as long as they do" if measured else ""
        return _planned(f"{_n(named, 'model')} counted{timed}")
    columns = [figures.figures(system, asked.steps, asked.guidance) for system in named]
    if measured:
        for system, column in zip(named, columns, strict=True):
            rates = figures.measure(system, asked.batch, asked.steps, asked.guidance, _device())
            column["measured"] = {task: rate._asdict() for task, rate in rates.items()}
            if any(prices[:3]):
                column["currency"] = prices.currency
                column["per_million"] = {
                    task: figures.per_million(rate, prices) for task, rate in rates.items()
                }
    baselines = [
        figures.figures(systems.dit_xl_2(pixels), asked.steps, asked.guidance)
        for pixels in systems.BASELINES.values()
    ]
    return Outcome(
        cost_table.table(columns, baselines), {"systems": columns, "baselines": baselines}
    )


def plan(asked: options.Plan) -> Outcome:
    from softvq import plan as paper
    from softvq.recipe import KINDS, kind_of, load_recipe

    kind = kind_of(asked.recipe)
    if kind == "probe":
        raise UserError(f"{asked.recipe}: a probe takes minutes; plan is for the others")
    recipe: Any = load_recipe(KINDS[kind], asked.recipe, asked.overrides)
    gpu, price = paper.GPUS[asked.gpu], asked.price_per_hour or 0.0
    numbers = sorted({1, asked.gpus, 10, 1000})
    parts = paper.work(recipe)
    runs = [paper.plan(recipe, parts, gpus, gpu, asked.utilisation) for gpus in numbers]
    text = (
        f"{paper.table(parts, runs, gpu, price, asked.currency)}\n\n"
        f"{recipe.train.images:,} images on {asked.gpu.upper()} at {asked.utilisation:.0%} "
        f"of its peak of {gpu.tflops:g} TFLOP/s (assumed); energy is of the GPUs alone"
    )
    facts = {
        "recipe": asked.recipe,
        "images": recipe.train.images,
        "networks": [asdict(part) for part in parts],
        "gpu": {"name": asked.gpu, **asdict(gpu)},
        "utilisation": asked.utilisation,
        "runs": [
            asdict(run)
            | {"kwh": paper.kilowatt_hours(run, gpu)}
            | ({"money": price * run.gpus * run.hours} if price else {})
            for run in runs
        ],
    }
    return Outcome(text, facts)


def study(asked: options.Study) -> Outcome | None:
    from softvq.study.settings import Known, Settings
    from softvq.study.study import decide_again, run_study

    out = Path(asked.out)
    if asked.resume_with is not None:
        decide_again(out, asked.resume_with, asked.lang)
        return Outcome("", {"out": asked.out})
    settings = Settings(**{f.name: getattr(asked, f.name) for f in fields(Settings)})
    known = Known(**{f.name: getattr(asked, f.name) for f in fields(Known)})
    if asked.dry_run:
        from softvq.data import find_photos

        return _planned(find_photos(settings.data, "all").summary(), asked.budget)
    finished = run_study(settings, known, out, asked.criteria, asked.lang)
    return Outcome("", {"out": asked.out}) if finished else None


def explain(asked: options.Explain) -> Outcome:
    from softvq.coding import precision_setting
    from softvq.explain import explain, open_photos, write_explanation, write_page
    from softvq.fingerprint import fingerprint
    from softvq.outputs import claimed, refuse_overlap

    tokenizer = _tokenizer(asked)
    if asked.dry_run:
        return _planned_photos(asked.data, "all", tokenizer)
    refuse_overlap(asked.data, asked.out)
    names = ("data", "photo", "images", "masks", "boxes", "metadata", "fit", "seed")
    settings = {name: getattr(asked, name) for name in names}
    settings["tokenizer"] = fingerprint(tokenizer)
    settings |= precision_setting(asked.precision, tokenizer)
    given = (asked.masks, asked.boxes, asked.metadata, asked.photo, asked.fit)
    with (
        claimed(asked.out, "explain", settings, asked.overwrite) as out,
        open_photos(asked.data, _size(tokenizer), *given, beside=asked.out) as photos,
    ):
        _say_found(photos.fitted)
        found, pictures = explain(
            tokenizer, photos, asked.images, seed=asked.seed, precision=asked.precision
        )
        page, record = out.expect(["index.html", "explanation.json"])
        write_explanation(found, record)
        write_page(found, pictures, page, asked.lang)
    checks, kinds = found.checks, ("place", "global", "wandering")
    counts = {kind: len(found.of_kind(kind)) for kind in kinds}
    text = (
        f"{len(found.tokens)} tokens explained on {_n(found.photos.measured, 'held-out photo')}: "
        + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        + f"\nremoved in the order of importance they hurt {checks.hurt:.2f} times as much as in "
        f"random order (control {checks.control_hurt:.2f}); swaps change what was predicted, "
        f"r = {checks.along:.2f} (control {checks.shuffled:z.2f})\nopen {page}"
    )
    facts = {"out": asked.out, "images": len(found.photos.measured), **counts}
    tests = ("hurt", "control_hurt", "along", "typical", "shuffled")
    return Outcome(text, facts | {name: getattr(checks, name) for name in tests})


def import_model(asked: options.Import) -> Outcome:
    from softvq.models import import_model

    kind = import_model(asked.source, Path(asked.target), asked.num_heads, asked.download)
    return Outcome(f"{kind} in {asked.target}")


def export_model(asked: options.Export) -> Outcome:
    if asked.format != "reference":
        return _exported(asked)
    from softvq.models import export_model

    return Outcome(
        f"{export_model(asked.source, Path(asked.target), asked.format)} in {asked.target}"
    )


def _exported(asked: options.Export) -> Outcome:
    from softvq.export.write import export

    assert asked.format != "reference"
    checks = export(
        asked.source, asked.target, asked.format, asked.int8, asked.steps, asked.guidance
    )
    lines = [*map(str, checks), f"in {asked.target}; on the target: softvq verify DIR"]
    return Outcome("\n".join(lines), {"out": asked.target, "checks": len(checks)})


def verify(asked: options.Verify) -> Outcome:
    from softvq.export.verify import Unusable, verify

    try:
        checks = verify(asked.directory)
    except Unusable as error:
        raise UserError(str(error)) from None
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install onnxruntime numpy") from None
    if wrong := [check for check in checks if not check.ok]:
        raise UserError(
            f"{asked.directory}: {len(wrong)} of {len(checks)} checks fail: "
            f"{'; '.join(f'{one.name}: {one.found}' for one in wrong[:3])}; export it again"
        )
    return Outcome("\n".join(map(str, checks)), {"checks": [asdict(check) for check in checks]})


def serve(asked: options.Serve) -> Outcome:
    with _needing("serve"):
        from softvq.serve.app import Settings
        from softvq.serve.limits import Limits
        from softvq.serve.run import serve

        settings = Settings(
            model=asked.model,
            plan=_plan(asked.plan),
            store=asked.store,
            precision=asked.precision,
            batch=asked.batch,
            wait=asked.wait / 1000,
            limits=Limits(
                bytes=asked.most_bytes, pixels=asked.most_pixels, rate=asked.rate or 0.0,
                queue=asked.queue,
            ),
            keys=asked.keys,
            retention=asked.retention,
        )  # fmt: skip
        serve(settings, asked.host, asked.port)
    return Outcome("")


def rollout_status(asked: options.RolloutStatus) -> Outcome:
    with _rollout(asked) as found:
        state = found.state()
        held = " (held)" if state.held else ""
        lines = [
            f"stage {state.stage}{held}, {state.comparisons} comparisons",
            *(f"  {one}" for one in state.evidence),
            "audit log:",
            *(
                f"  {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(c.at))}  {c.action}: "
                f"{c.before} -> {c.stage}, by {c.who}: {c.why}"
                for c in found.store.changes()
            ),
        ]
    return Outcome("\n".join(lines), asdict(state))


def rollout_promote(asked: options.RolloutPromote) -> Outcome:
    return _changed(asked, "promote")


def rollout_hold(asked: options.RolloutHold) -> Outcome:
    return _changed(asked, "hold")


def rollout_back(asked: options.RolloutBack) -> Outcome:
    return _changed(asked, "back")


def _changed(asked: options.Change, action: str) -> Outcome:
    import getpass

    with _rollout(asked) as found:
        state = getattr(found, action)(asked.who or getpass.getuser(), asked.why)
    return Outcome(f"stage {state.stage}{' (held)' if state.held else ''}", asdict(state))


@contextlib.contextmanager
def _rollout(asked: options.OfRollout) -> Iterator[Any]:
    with _needing("serve"):
        from softvq.serve.rollout import Rollout
        from softvq.serve.store import Store

        store = Store(asked.store)
        try:
            yield Rollout(store, _plan(asked.plan))
        finally:
            store.close()


def _plan(path: str | None) -> Any:
    from softvq.serve.plan import Plan, read_plan

    return Plan() if path is None else read_plan(path)


@contextlib.contextmanager
def _needing(extra: str) -> Iterator[None]:
    """What is not installed is named, with the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed; pip install 'softvq[{extra}]'") from None


def monitor(asked: options.Monitor) -> Outcome:
    from softvq.serve.monitor import PAGE, monitor

    if asked.dry_run:
        from softvq.data import find_photos

        return _planned(find_photos(asked.data, "all").summary(), 1)
    found = monitor(
        asked.reference, asked.data, asked.out, asked.model, asked.judge, asked.tokens,
        asked.window, asked.stride, asked.false_alarms, asked.lang, asked.precision,
        asked.overwrite,
    )  # fmt: skip
    facts = {"windows": len(found.windows), "alarms": len(found.alarms), "out": asked.out}
    report = f"see {Path(asked.out) / PAGE}"
    if not found.alarms:
        return Outcome(f"no change in {len(found.windows)} windows; {report}", facts)
    first = found.alarms[0]
    return Outcome(
        f"{len(found.alarms)} of {len(found.windows)} windows have changed, first from "
        f"{first.first} to {first.last}: {'; '.join(first.said[asked.lang])}; {report}",
        facts | {"first": first.last, "said": first.said[asked.lang]},
    )


def info(asked: options.Info) -> Outcome:
    from softvq.models import describe

    found = describe(asked.directory)
    return Outcome(str(found), asdict(found))


def recipes(asked: options.Recipes) -> Outcome:
    from softvq import recipe as room

    if asked.recipe:
        found = room.open_recipe(asked.recipe)
        return Outcome(room.recipe_yaml(found).rstrip(), asdict(found))
    names = room.shipped_recipes()
    rows = [(name, f"{room.kind_of(name)}: {room.about_recipe(name)}") for name in names]
    return Outcome(table("recipes", rows), {"recipes": dict(rows)})


def classes(asked: options.Classes) -> Outcome:
    from softvq.data import find_photos
    from softvq.models import describe

    try:
        names = list(describe(asked.source).classes)
    except UserError:
        photos = find_photos(asked.source, "all")
        names = photos.classes
        print(photos.summary(), file=sys.stderr)
    rows = [f"{i:>4}  {name}" for i, name in enumerate(names)]
    return Outcome("\n".join(rows) or "no classes", {"classes": names})


# ---- what would be done ----

TRIAL = 8  # images that the time of a run is told from


def _planned(what: str, seconds: float | None = None) -> Outcome:
    """``seconds``: how long it takes, None where that is not known before."""
    facts = {"plan": what, "seconds": seconds}
    if seconds is None:
        return Outcome(f"{what}; nothing was done", facts)
    took = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
    took = took if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return Outcome(f"{what}\nabout {took} here; nothing was done", facts)


def _planned_photos(source: str, split: str, tokenizer: "Tokenizer") -> Outcome:
    """What a pass over photos would be."""
    from softvq.data import find_photos

    found, count = f"the photo {source}", 1
    if not Path(source).is_file():
        listing = find_photos(source, split)
        found, count = listing.summary(), len(listing.names)
    each = _seconds(lambda: tokenizer.reconstruct(_grey(tokenizer))) / TRIAL
    return _planned(f"{found}\n{count:,} of them ({split}) at {_shape(tokenizer)}", count * each)


def _planned_drawing(pipeline: Any, count: int, wanted: dict[str, Any]) -> Outcome:
    """What drawing pictures would be."""
    labels = {"labels": [0] * TRIAL} if pipeline.classes else {"count": TRIAL}
    each = _seconds(lambda: pipeline(**wanted | labels)) / TRIAL
    what = f"{count:,} pictures of {_shape(pipeline.tokenizer)}, {len(pipeline.classes)} classes"
    return _planned(what, count * each)


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _grey(tokenizer: "Tokenizer") -> Any:
    import torch

    return torch.zeros(TRIAL, 3, *_size(tokenizer), device=_device())


def _shape(tokenizer: "Tokenizer") -> str:
    height, width = _size(tokenizer)
    return f"{height} x {width} pixels"


# ---- what the commands share ----


def _device() -> str:
    from softvq.device import pick_device

    return str(pick_device())


def _tokenizer(asked: options.OfTokenizer) -> "Tokenizer":
    from softvq.models import open_tokenizer

    return open_tokenizer(asked.tokenizer, asked.size).to(_device())


def _budget(asked: options.OfBudget, tokenizer: "Tokenizer") -> "Budget":
    """How many tokens of each photo. Raises UserError if the tokenizer cannot have so many."""
    from softvq.quality import Predicted, Predictor, Target, check_budget

    budget: Budget = asked.tokens
    if asked.psnr or asked.eye:
        budget = Target("psnr", asked.psnr) if asked.psnr else Target("eye", asked.eye or 0.0)
    check_budget(tokenizer, budget)
    if asked.predict and isinstance(budget, Target):
        from softvq.models import tokenizer_folder

        folder = tokenizer_folder(asked.tokenizer)
        budget = Predicted(budget, Predictor.load(folder, tokenizer))
    return budget


def _pipeline(asked: options.OfModel) -> "Pipeline":
    from softvq.pipeline import Pipeline

    if asked.tokenizer is None:
        return Pipeline.from_pretrained(asked.model)
    return Pipeline.from_pretrained(tokenizer=asked.tokenizer, generator=asked.model)


def _features(asked: options.OfFeatures) -> "FeatureNetwork":
    from softvq.evaluate.features import load_network

    assert asked.features is not None
    return load_network(asked.features, asked.preprocessing, _device())


def _sampling(asked: options.OfSampling, generator: Any) -> dict[str, Any]:
    """How to sample: as was asked for, and otherwise as the generator does by itself."""
    from softvq.generator.families import family_of

    names = [f.name for f in fields(options.OfSampling) if f.name != "seed"]
    given = {name: getattr(asked, name) for name in names}
    wanted = family_of(generator).options | {k: v for k, v in given.items() if v is not None}
    return {name: value for name, value in wanted.items() if value is not None}


def _planned_training(recipe: Any, asked: options.Training) -> Outcome | None:
    from softvq.train.summary import plan

    if not asked.dry_run:
        return None
    found = plan(recipe)
    return Outcome(str(found), asdict(found))


def _trained(finished: bool, recipe: Any, asked: options.Training) -> Outcome | None:
    from softvq.train.summary import result

    if not finished:
        return None
    found = result(recipe, Path(asked.out))
    facts = {"images": found.images, "out": asked.out} | found.figures
    return Outcome(str(found), facts)


def _npz_written(finished: bool, pictures: Sized, path: str) -> Outcome | None:
    text = f"{_n(pictures, 'picture')} in {path}"
    return Outcome(text, _pictures(pictures, path)) if finished else None


def _pictures(pictures: Sized, out: str | None) -> dict[str, Any]:
    return {"pictures": len(pictures), "out": out}


def _facts(photos: "Store", tokenizer: "Tokenizer") -> dict[str, Any]:
    """What a figure is of."""
    height, width = photos.size
    floats = tokenizer.config.tokens * tokenizer.config.channels
    counts = {"images": len(photos), "skipped": len(photos.skipped)}
    return counts | {"height": height, "width": width, "floats_per_image": floats}


def _figures(figures: dict[str, Any]) -> Outcome:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    lines = []
    for name, value in rounded.items():
        shown = " ".join(f"{x:.3f}" for x in value) if isinstance(value, list) else value
        lines.append(f"{name:<23}{shown}")
    return Outcome("\n".join(lines), rounded)


def _size(tokenizer: "Tokenizer") -> tuple[int, int]:
    return tokenizer.config.height, tokenizer.config.width


def _curve(facts: dict[str, Any], rows: list[dict[str, Any]]) -> Outcome:
    """Figures of several numbers of tokens, as a table."""
    names = ["tokens", *(name for name in rows[0] if name != "tokens")]
    cells = [names, *([f"{row[name]:.4g}" for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    table = "\n".join("  ".join(map(str.rjust, line, widths)).rstrip() for line in cells)
    return Outcome(f"{_figures(facts).text}\n{table}", facts | {"curve": rows})


@contextlib.contextmanager
def _decoded(source: str, split: str, tokenizer: "Tokenizer") -> Iterator["Store"]:
    """The photos at the tokenizer's size; what was found is said on stderr."""
    from softvq.data import temporary_store
    from softvq.processes import joined

    joined()
    with temporary_store(source, split, _size(tokenizer)) as photos:
        if first_started():
            _say_found(photos)
        yield photos


def _say_found(photos: "Store", out: str | None = None) -> None:
    """Which photos, split and classes there are; how many are damaged, listed in ``out``."""
    print(photos.summary, file=sys.stderr)
    _say_skipped(photos.skipped, out)


def _say_skipped(skipped: Sized, out: str | None = None) -> None:
    if skipped and first_started():
        listed = f", listed in {Path(out) / 'skipped.jsonl'}" if out else ""
        print(f"skipped {_n(skipped, 'damaged photo')}{listed}", file=sys.stderr)


def _n(things: Sized, noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"
