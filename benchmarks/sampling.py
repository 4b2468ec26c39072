"""What each sampler costs and gives: Frechet distance against network evaluations, one model.

    python benchmarks/sampling.py --model DIR --data FOLDER --out DIR [--count 2000]

Draws --count pictures, evenly over the classes, with every sampler and several numbers of steps,
without guidance, with it, and with it between times 0 and 0.7, and measures them against all
photos of --data (features of the shipped probe). Network evaluations are counted by a hook: a
guided step makes two for each picture. Of a MAR, steps and evaluations are those of the head, for
one token. Writes sampling.json (an arm that is in it is not drawn
again), sampling.md and sampling.png.

    python benchmarks/sampling.py --model DIR --pipeline

prints images/s of the whole pipeline, as users run it, of the default sampler and of 250 steps of
Euler-Maruyama with four evaluations a step, which is what doubling a batch for guidance twice makes
of it. The two take turns.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from torch import Tensor, nn

from softvq import images
from softvq.data import fixed_batches, open_store
from softvq.evaluate.features import (
    FeatureSet,
    frechet_distances,
    load_network,
    set_measures,
)
from softvq.generator.families import family_of
from softvq.generator.guidance import Guided
from softvq.io import write_atomically
from softvq.pipeline import Pipeline

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH = 128
STEPS = {
    "euler": (5, 10, 20, 40),
    "heun": (5, 10, 20),
    "ddim": (5, 10, 20, 40),
    "dpm_solver": (5, 10, 20, 40),
    "euler_maruyama": (20, 40, 250),
    "ddpm": (20, 40, 250),
}
GUIDANCE = {
    "1.5": {"guidance": 1.5},
    "none": {"guidance": 1.0},
    "1.5 on 0..0.7": {"guidance": 1.5, "interval": (0.0, 0.7)},
}


class Evaluations:
    """Counts a network's evaluations: one for each row of each call."""

    def __init__(self, net: nn.Module):
        self.rows = 0
        getattr(net, "head", net).register_forward_pre_hook(self.count)

    def count(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.rows += arguments[0].shape[0]


def table(done: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| guidance | sampler | steps | evaluations | FD | precision | recall | images/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(done.values(), key=lambda arm: (arm["guided"], arm["sampler"], arm["steps"])):
        lines.append(
            f"| {arm['guided']} | {arm['sampler']} | {arm['steps']} | {arm['evaluations']:.0f} | "
            f"{arm['fd']:.2f} | {arm['precision']:.3f} | {arm['recall']:.3f} | "
            f"{arm['images_per_second']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def draw_figure(done: dict[str, dict[str, Any]], path: Path) -> None:
    """FD against evaluations, one panel for each kind of guidance."""
    kinds = [kind for kind in GUIDANCE if any(arm["guided"] == kind for arm in done.values())]
    figure, panels = plt.subplots(
        1, len(kinds), figsize=(4.5 * len(kinds), 4), sharey=True, squeeze=False
    )
    for panel, kind in zip(panels[0], kinds, strict=True):
        for sampler in STEPS:
            arms = [a for a in done.values() if (a["guided"], a["sampler"]) == (kind, sampler)]
            arms.sort(key=lambda arm: arm["evaluations"])
            panel.plot(
                [a["evaluations"] for a in arms], [a["fd"] for a in arms], "o-", label=sampler
            )
        panel.set(xscale="log", yscale="log", title=f"guidance {kind}")
        panel.set_xlabel("network evaluations per image")
        panel.grid(alpha=0.3, which="both")
    panels[0][0].set_ylabel("Frechet distance (shipped probe)")
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def compare(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline.from_pretrained(args.model)
    pipeline.precision = args.precision
    evaluations = Evaluations(pipeline.generator)
    masked = "head_steps" in family_of(pipeline.generator).options
    steps_of, tokens = ("head_steps", pipeline.generator.config.tokens) if masked else ("steps", 1)
    probe = load_network("shipped")
    config = pipeline.tokenizer.config
    photos = open_store(args.data, "all", (config.height, config.width), out / "photos", 1.0)
    real = FeatureSet.of(probe, (images.to_uint8(x) for x, _ in fixed_batches(photos, BATCH)))
    names = pipeline.classes
    labels = [names[i % len(names)] for i in range(args.count)]
    path = out / "sampling.json"
    done = json.loads(path.read_text()) if path.is_file() else {}
    wanted = [
        (kind, sampler, steps)
        for kind in (args.guidance.split(",") if args.guidance else GUIDANCE)
        for sampler in (args.samplers.split(",") if args.samplers else STEPS)
        for steps in STEPS[sampler]
        if steps < 250 or kind in ("1.5", "none")
    ]
    for kind, sampler, steps in wanted:
        key = f"{kind}|{sampler}|{steps}|{args.count}"
        if key in done:
            continue
        evaluations.rows, started = 0, time.perf_counter()
        latents = pipeline.generate_latents(
            labels, seed=0, batch=BATCH, sampler=sampler, **{steps_of: steps}, **GUIDANCE[kind]
        )
        pictures = pipeline.decode_uint8(latents, BATCH)
        seconds = time.perf_counter() - started
        drawn = FeatureSet.of(probe, [pictures])
        figures = frechet_distances(real.statistics, drawn) | set_measures(real, drawn)
        done[key] = {
            "guided": kind, "sampler": sampler, "steps": steps, "count": args.count,
            "evaluations": evaluations.rows / args.count / tokens,
            "fd": figures["fd"], "precision": figures["precision"], "recall": figures["recall"],
            "images_per_second": args.count / seconds,
        }  # fmt: skip
        print(json.dumps(done[key]), flush=True)
        write_atomically(path, json.dumps(done, indent=1) + "\n")
        write_atomically(out / "sampling.md", table(done))
        draw_figure(done, out / "sampling.png")


class DoubledTwice(nn.Module):
    """Guidance as the reference implementation runs it: rows that are thrown away, doubled again.

    A batch that already holds a null copy of every picture is doubled once more: four evaluations
    for each picture and step, and the same pictures.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net, self.config = net, net.config

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.net(x.repeat(2, 1, 1), t.repeat(2), y.repeat(2))[: x.shape[0]]


def race(args: argparse.Namespace) -> None:
    pipeline = Pipeline.from_pretrained(args.model)
    net, family = pipeline.generator, family_of(pipeline.generator)
    names = pipeline.classes
    labels = [names[i % len(names)] for i in range(args.race)]
    y, _ = pipeline.class_numbers(labels, None)
    evaluations = Evaluations(net)

    def default() -> None:
        pipeline(labels, batch=args.race)

    def doubled() -> None:
        from softvq.generator.sampler import SAMPLERS, NoiseStreams
        from softvq.pipeline import PRECISIONS

        with PRECISIONS[pipeline.precision](net):
            streams = NoiseStreams(0, range(args.race))
            weight = next(net.parameters())

            def noise(step: int) -> Tensor:
                return streams.draw(*net.config.latent_shape).to(weight)

            sampler, process = SAMPLERS["euler_maruyama"], net.config.process
            guided = Guided(DoubledTwice(net), 1.5, process=process)
            x = sampler(guided, noise(0), sampler.grid(250, process), y, process, noise)
        pipeline.decode(pipeline.tokenizer.denormalize(x.double()), args.race)

    rates: dict[str, list[float]] = {"default": [], "250 steps, doubled twice": []}
    print(f"default options: {family.options}")
    for _ in range(args.rounds):
        for name, job in zip(rates, (default, doubled), strict=True):
            evaluations.rows, started = 0, time.perf_counter()
            job()
            rates[name].append(args.race / (time.perf_counter() - started))
            cost = evaluations.rows / args.race
            print(
                f"{name}: {rates[name][-1]:.2f} images/s, {cost:.0f} evaluations each", flush=True
            )
    slow, fast = (float(np.median(rates[name])) for name in reversed(rates))
    print(f"ratio of the medians: {fast / slow:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shipped-many-step", help="directory of a pipeline")
    parser.add_argument("--data", help="folder of photos to measure against")
    parser.add_argument("--out", help="directory for the figures")
    parser.add_argument("--count", type=int, default=2000, help="pictures of each arm")
    parser.add_argument("--precision", default="fp32", help="exact, fp32 or bf16")
    parser.add_argument("--guidance", help=f"some of {', '.join(GUIDANCE)}")
    parser.add_argument("--samplers", help=f"some of {', '.join(STEPS)}")
    parser.add_argument("--pipeline", action="store_true", help="time the whole pipeline instead")
    parser.add_argument("--race", type=int, default=32, help="pictures of a round of --pipeline")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --pipeline")
    args = parser.parse_args()
    race(args) if args.pipeline else compare(args)


if __name__ == "__main__":
    main()
