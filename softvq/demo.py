"""``softvq demo``: the whole road on photos that are at hand, ending in a report.

Reconstruct held-out photos with the shipped model, generate with it, fine-tune the tokenizer for
a few minutes, measure before and after on the held-out photos, and write it all down.
"""

import os
import platform
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from softvq import __version__, images
from softvq.coding import BATCH, decode_all, encode_all, reconstruct_all
from softvq.data import BUILTIN, Store, open_store
from softvq.evaluate.cost import Cost, Throughput, generator_cost, throughput, tokenizer_cost
from softvq.evaluate.pixels import psnr_per_image, ssim_per_image
from softvq.generator.families import family_of
from softvq.models import model_folder
from softvq.outputs import Output, claimed
from softvq.pipeline import Pipeline
from softvq.precision import computing
from softvq.quality import lengths_tried
from softvq.recipe import TokenizerRecipe, load_recipe
from softvq.report import Figure, Report, Section, Table, embed, line_chart, write_report
from softvq.tokenizer import Tokenizer
from softvq.train.folder import metrics
from softvq.train.tokenizer import TRIAL, train_tokenizer, training_speed

REPORT = "report.html"
SAMPLES = 2  # pictures per class
STEPS: int | None = None  # of sampling; None for as many as is usual in the generator's family
GUIDANCE = 2.0
STRIPS = 2  # pictures shown from more and more tokens
DRAWN = 8  # images generated at a time in the speed measurement, which is slow
SHOWN = 128  # pixels that the report gives to a picture's side, about
GENTLE = 0.15  # learning rates of fine-tuning, as a share of the recipe's
TRAINING_SHARE = 0.85  # of the time asked for; the rest goes into evaluation and checkpoints


@dataclass
class Quality:
    """Reconstructions of the held-out crops, uint8 [N, H, W, 3], and their distances [N]."""

    pictures: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray


def run_demo(out: Path, minutes: float, model: str = "shipped") -> bool:
    """Write ``out/report.html``; returns False if training was stopped before its end.

    ``model``: directory of a pipeline. Repeating the call goes on with the training in ``out``, or
    finds it done. Raises UserError if ``out`` holds anything but a demo of the same model.
    """
    with claimed(out, "demo", {"model": str(model)}) as held:
        return _run(held, minutes, model)


def _run(held: Output, minutes: float, model: str) -> bool:
    out, (path,) = held.folder, held.expect([REPORT])
    pipeline = Pipeline.from_pretrained(model)
    config = pipeline.tokenizer.config
    size = (config.height, config.width)
    held_out = open_store("builtin", "val", size, out / "photos", margin=1.0)

    print(f"reconstructing {len(held_out)} held-out crops of the built-in photos")
    originals, before = measure(pipeline.tokenizer, held_out)
    print(f"generating {SAMPLES} pictures of each of {len(pipeline.classes)} classes")
    labels = [name for name in pipeline.classes for _ in range(SAMPLES)]
    samples = pipeline(labels, steps=sampling_steps(pipeline), guidance=GUIDANCE, seed=0)

    folder = out / "fine-tune"
    recipe = fine_tuning_recipe(folder, model_folder(model), minutes)
    print(f"fine-tuning the tokenizer on {recipe.train.images:,} crops of the built-in photos")
    if not train_tokenizer(recipe, folder):
        return False
    _, after = measure(Tokenizer.from_pretrained(folder), held_out)

    print("measuring speed")
    costs, speeds = measure_cost(pipeline, held_out)
    report = Report(
        title="softvq: photos to tokens and back",
        summary=(
            f"A {size[0]} x {size[1]} photo becomes {config.tokens} tokens of {config.channels} "
            "numbers, and a picture again. A second network draws new tokens, and so new pictures. "
            "Everything below was made on this machine, just now."
        ),
        facts=facts(pipeline, before, after),
        sections=[
            reconstruction_section(held_out, originals, before, after),
            *nested_section(pipeline.tokenizer, held_out, originals, before),
            sample_section(pipeline, samples),
            training_section(folder, before, after),
            compression_section(pipeline),
            cost_section(sampling_steps(pipeline), costs, speeds),
            limits_section(),
        ],
        footer=f"Written by softvq {__version__} (softvq demo). The file fetches nothing.",
    )
    write_report(report, path)
    print(f"report: {path.resolve()}")
    return True


def measure(tokenizer: Tokenizer, photos: Store) -> tuple[np.ndarray, Quality]:
    """Originals, uint8 [N, H, W, 3], and the quality of their reconstructions."""
    with computing("auto", tokenizer):  # as the commands do
        originals, rebuilt = reconstruct_all(tokenizer, photos)
    quality = Quality(
        rebuilt, psnr_per_image(originals, rebuilt), ssim_per_image(originals, rebuilt)
    )
    return originals, quality


# ---- fine-tuning ----


def fine_tuning_recipe(folder: Path, model: Path, minutes: float) -> TokenizerRecipe:
    """The recipe of the run in ``folder``, or a new one that takes about ``minutes`` here.

    The new one is that of the ``model``'s own tokenizer, where it has kept one.
    """
    if (folder / "recipe.yaml").is_file():
        return load_recipe(TokenizerRecipe, str(folder / "recipe.yaml"), [])
    start = model / "tokenizer"
    kept = start / "recipe.yaml"
    base = load_recipe(TokenizerRecipe, str(kept) if kept.is_file() else "nested", [])
    schedule = replace(base.train, lr=GENTLE * base.train.lr, muon_lr=GENTLE * base.train.muon_lr)
    recipe = replace(
        base,
        data=replace(base.data, source="builtin"),
        model=Tokenizer.from_pretrained(start).config,
        train=schedule,
        init=str(start),
    )
    print("measuring the speed of training")
    speed = training_speed(recipe)
    batches = max(TRIAL, round(TRAINING_SHARE * minutes * 60 * speed / schedule.batch))
    total = batches * schedule.batch
    schedule = replace(
        schedule,
        images=total,
        warmup=TRIAL * schedule.batch // 2,
        log_every=max(schedule.batch, total // 20),
        evaluate_every=total,  # which at 256 px takes as long as a third of the training
        checkpoint_every=max(schedule.batch, total // 5),
    )
    return replace(recipe, train=schedule)


# ---- cost ----


def measure_cost(
    pipeline: Pipeline, photos: Store
) -> tuple[dict[str, Cost], dict[str, Throughput]]:
    """Operations of one image and images per second, of encode, decode and generate."""
    tokenizer = pipeline.tokenizer
    parts = tokenizer_cost(tokenizer.config)
    steps = sampling_steps(pipeline)
    drawing = generator_cost(pipeline.generator.config, steps, GUIDANCE)["image"]
    costs = {
        "encode": add(parts["encoder"], parts["bottleneck"]),
        "decode": parts["decoder"],
        "generate": add(drawing, parts["decoder"]),
    }
    pixels = images.to_tensor(np.asarray(photos.images[:BATCH]))
    batch = pixels.shape[0]
    labels = [pipeline.classes[i % len(pipeline.classes)] for i in range(DRAWN)]
    with torch.inference_mode(), computing("auto", tokenizer):
        latents = tokenizer.encode(pixels).latents
        speeds = {
            "encode": throughput(lambda: tokenizer.encode(pixels), batch, seconds=2),
            "decode": throughput(lambda: tokenizer.decode(latents), batch, seconds=2),
        }
    draw = partial(pipeline, labels, steps=steps, guidance=GUIDANCE)
    speeds["generate"] = throughput(draw, DRAWN, seconds=2)
    return costs, speeds


def sampling_steps(pipeline: Pipeline) -> int:
    """That a generator draws in here."""
    network = pipeline.generator
    steps: int = STEPS or family_of(network).options["steps"] or network.config.tokens
    return steps


def add(a: Cost, b: Cost) -> Cost:
    """Cost of one thing after the other."""
    return Cost(a.parameters + b.parameters, a.flops + b.flops, a.macs + b.macs)


# ---- the report, section by section ----


def facts(pipeline: Pipeline, before: Quality, after: Quality) -> list[tuple[str, str]]:
    config = pipeline.tokenizer.config
    values = config.height * config.width * 3
    floats = config.tokens * config.channels
    millions = [
        sum(p.numel() for p in part.parameters()) / 1e6
        for part in (pipeline.tokenizer, pipeline.generator)
    ]
    return [
        (f"{values:,} → {floats}", "numbers per image, pixels to tokens"),
        (f"{before.psnr.mean():.1f} dB", "PSNR on held-out crops, as shipped"),
        (f"{after.psnr.mean():.1f} dB", "PSNR on held-out crops, fine-tuned here"),
        (f"{millions[0]:.1f} M + {millions[1]:.1f} M", "parameters, tokenizer + generator"),
    ]


def reconstruction_section(
    photos: Store, originals: np.ndarray, before: Quality, after: Quality
) -> Section:
    scale = max(1, SHOWN // originals.shape[1])
    tiles = []
    for label, name in enumerate(photos.classes):
        # The crop whose reconstruction is of median quality: neither the best nor the worst.
        members = np.flatnonzero(photos.labels == label)
        i = members[np.argsort(before.psnr[members])[len(members) // 2]]
        row = np.stack([originals[i], before.pictures[i], after.pictures[i]])
        tiles.append(
            Figure(
                embed(images.grid(row, columns=3, scale=scale)),
                f"{name}: {before.psnr[i]:.1f} dB as shipped, {after.psnr[i]:.1f} dB fine-tuned",
                f"Three pictures of {name}: original, reconstruction, after fine-tuning",
            )
        )
    return Section(
        "Photos through the tokens",
        [
            "Each row of three: the original, its reconstruction by the shipped tokenizer, and "
            "its reconstruction after the fine-tuning below. The crops are from the held-out "
            "right-hand quarter of each built-in photo; neither training nor fine-tuning saw them. "
            "Of each photo the crop of median quality is shown."
        ],
        tiles=tiles,
    )


def nested_section(
    tokenizer: Tokenizer, photos: Store, originals: np.ndarray, before: Quality
) -> list[Section]:
    """Pictures from the first 1, 2, 4, .. tokens, if the tokenizer is nested."""
    if not tokenizer.config.nested:
        return []
    counts = lengths_tried(tokenizer.config.tokens)
    figures = []
    for label, name in enumerate(photos.classes[:STRIPS]):
        members = np.flatnonzero(photos.labels == label)
        i = members[np.argsort(before.psnr[members])[len(members) // 2]]
        latents = encode_all(tokenizer, [originals[i]])
        row = [decode_all(tokenizer, latents[:, :k])[0] for k in counts]
        quality = [psnr_per_image(originals[i : i + 1], picture[None])[0] for picture in row]
        figures.append(
            Figure(
                embed(images.grid(np.stack([*row, originals[i]]), columns=4)),
                f"{name}: {', '.join(f'{k}' for k in counts)} tokens, and the original. "
                f"{' / '.join(f'{q:.1f}' for q in quality)} dB.",
                f"{name} from more and more tokens",
            )
        )
    return [
        Section(
            "As many tokens as a picture needs",
            [
                "The first tokens are a complete picture by themselves, later ones add what is "
                "finer: one encoding serves every number of tokens. Held-out crops as above."
            ],
            figures=figures,
        )
    ]


def sample_section(pipeline: Pipeline, samples: list[Image.Image]) -> Section:
    scale = max(1, SHOWN // samples[0].height)
    tiles = [
        Figure(
            embed(images.grid(samples[i * SAMPLES : (i + 1) * SAMPLES], columns=2, scale=scale)),
            name,
            f"{SAMPLES} generated pictures of the class {name}",
        )
        for i, name in enumerate(pipeline.classes)
    ]
    return Section(
        "New pictures, class by class",
        [
            "Drawn from noise by the generator and decoded by the shipped tokenizer: the first "
            f"{SAMPLES} of each class, not selected. {sampling_steps(pipeline)} steps, guidance "
            f"{GUIDANCE:g}, seed 0."
        ],
        tiles=tiles,
    )


def training_section(folder: Path, before: Quality, after: Quality) -> Section:
    steps = metrics(folder, "loss")
    seen = [line["seen"] for line in steps]
    checks = metrics(folder, "psnr")
    held_out_seen = [0] + [line["seen"] for line in checks]
    held_out_psnr = [float(before.psnr.mean())] + [line["psnr"] for line in checks]
    seconds = sum(
        (line["seen"] - start) / line["images_per_second"]
        for start, line in zip([0, *seen], steps, strict=False)
    )
    return Section(
        "Fine-tuning on this machine",
        [
            f"The shipped tokenizer, trained further on {seen[-1]:,} random crops of the "
            f"{len(BUILTIN)} built-in photos, without their right-hand quarters: "
            f"{seconds / 60:.1f} minutes at {seen[-1] / seconds:.0f} images/s. These are few and "
            "peculiar photos: the change shows what training does with them, not that the "
            "tokenizer has become better for others. The samples above are from the tokenizer as "
            "shipped."
        ],
        tables=[
            Table(
                ["", "PSNR, dB", "SSIM", "worst crop, dB"],
                [
                    [
                        name,
                        f"{quality.psnr.mean():.2f}",
                        f"{quality.ssim.mean():.3f}",
                        f"{quality.psnr.min():.2f}",
                    ]
                    for name, quality in (("as shipped", before), ("fine-tuned", after))
                ],
                f"Mean over the {len(before.psnr)} held-out crops. SSIM: Gaussian window of 11 "
                "pixels, windows inside the picture.",
            )
        ],
        figures=[
            Figure(
                line_chart(
                    {"loss": (seen, [line["loss"] for line in steps])},
                    "crops seen",
                    "training loss",
                ),
                "Training loss: the sum of the recipe's terms.",
                "Line chart of the training loss over crops seen",
            ),
            Figure(
                line_chart(
                    {
                        "training crops": (seen, [line["train_psnr"] for line in steps]),
                        "held-out crops": (held_out_seen, held_out_psnr),
                    },
                    "crops seen",
                    "PSNR, dB",
                ),
                "PSNR on the crops trained on, with the present weights, and on the held-out "
                "crops, with the averaged weights that are saved.",
                "Line chart of PSNR over crops seen, training and held-out",
            ),
        ],
    )


def compression_section(pipeline: Pipeline) -> Section:
    config = pipeline.tokenizer.config
    floats = config.tokens * config.channels
    values = config.height * config.width * 3
    kept = f"{config.tokens} x {config.channels}"
    rows = [
        ("pixels, 8 bits", f"{config.height} x {config.width} x 3", values, values),
        ("tokens, float32", kept, floats, 4 * floats),
        ("tokens, float16", kept, floats, 2 * floats),
    ]
    return Section(
        "What is kept of an image",
        tables=[
            Table(
                ["", "shape", "numbers", "bytes", "times fewer numbers", "times fewer bytes"],
                [
                    [
                        name,
                        shape,
                        f"{n:,}",
                        f"{size:,}",
                        f"{values / n:.1f}",
                        f"{values / size:.1f}",
                    ]
                    for name, shape, n, size in rows
                ],
                "One image. The tokens are continuous: counted in numbers they are a shorter "
                "sequence for a generator; they are not meant as a file format like JPEG.",
            )
        ],
    )


def cost_section(steps: int, costs: dict[str, Cost], speeds: dict[str, Throughput]) -> Section:
    machine = (
        f"{os.cpu_count()} CPU cores ({platform.machine()}, PyTorch threads: "
        f"{torch.get_num_threads()}), PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )
    return Section(
        "What it costs",
        tables=[
            Table(
                ["", "parameters, M", "GFLOPs/image", "GMACs/image", "images/s", "middle half"],
                [
                    [
                        name,
                        f"{cost.parameters / 1e6:.2f}",
                        f"{cost.flops / 1e9:.3f}",
                        f"{cost.macs / 1e9:.3f}",
                        f"{speeds[name].median:,.0f}",
                        f"{speeds[name].low:,.0f} to {speeds[name].high:,.0f}",
                    ]
                    for name, cost in costs.items()
                ],
                f"On {machine}. Encode and decode: batches of {BATCH}. Generate: float32, batches "
                f"of {DRAWN}, {steps} steps with guidance, and decoding. One MAC, a multiply-add, "
                "is two FLOPs. Images/s: median of repeated calls, and the range of their middle "
                "half.",
            )
        ],
    )


def limits_section() -> Section:
    return Section(
        "What to keep in mind",
        notes=[
            "The shipped model learned from six thousand photos that companies may use, too; "
            "whom they are owed to is in the package's NOTICE.",
            "It is a small model, trained for an hour, not for weeks. Fine texture, text and small "
            "faces are lost; pictures unlike its training photos are reconstructed worse.",
            "The held-out crops overlap each other, and come from the same photos as the training "
            "crops, though from another part of them. For your own photos measure on your own "
            "photos: softvq evaluate reconstruction --data FOLDER.",
            "Generated pictures show what the generator has learned of a few classes; they are far "
            "from the published models, which are hundreds of times larger.",
        ],
    )
