"""Put finished runs into the package, in float16: what "shipped" stands for everywhere.

    python tools/ship.py FEW_STEP_RUN GENERATOR_RUN TOKENIZER_RUN PROBE_RUN [--sharpened RUN ..] \
        [--first RUN]

Each part takes its weights, its recipe and its whole log along; of the photos' folder the recipe
keeps the name alone. The tokenizer's weights are those of the last run that sharpened its decoder;
--first is the run that the generator of many steps started from, of which that of few was made.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from softvq.io import write_atomically
from softvq.models import open_tokenizer
from softvq.pipeline import Pipeline
from softvq.probe import Probe
from softvq.quality import PREDICTOR
from softvq.recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe, load_recipe, recipe_yaml

SHIPPED = Path(__file__).parent.parent / "softvq" / "shipped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("few_step", "generator", "tokenizer", "probe"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--sharpened", type=Path, nargs="*", default=[])
    parser.add_argument("--first", type=Path)
    args = parser.parse_args()
    tokenizer = open_tokenizer([args.tokenizer, *args.sharpened][-1])
    for run, folder in ((args.generator, SHIPPED / "many-step"), (args.few_step, SHIPPED)):
        drawing = Pipeline.from_pretrained(run)
        Pipeline(tokenizer, drawing.generator, drawing.classes).save_pretrained(folder, half=True)
    shutil.rmtree(SHIPPED / "many-step" / "tokenizer")  # the same for both
    Probe.from_pretrained(args.probe).save_pretrained(SHIPPED / "probe", half=True)
    take(args.tokenizer, TokenizerRecipe, "tokenizer")
    take(args.few_step, GeneratorRecipe, "generator")
    take(args.generator, GeneratorRecipe, "many-step/generator")
    take(args.probe, ProbeRecipe, "probe")
    if args.first:
        take(args.first, GeneratorRecipe, "many-step/generator/first")
    for number, run in enumerate(args.sharpened, 1):
        take(run, TokenizerRecipe, f"tokenizer/sharpened-{number}")
    if (args.tokenizer / PREDICTOR).is_file():
        shutil.copyfile(args.tokenizer / PREDICTOR, SHIPPED / "tokenizer" / PREDICTOR)
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) / 1e6
    print(f"{size:.1f} MB of weights in {SHIPPED}")


def take(run: Path, kind: Any, part: str) -> None:
    """A run's recipe and its log."""
    recipe = load_recipe(kind, str(run / "recipe.yaml"), [])
    recipe.data.source = Path(recipe.data.source).name
    if isinstance(recipe, GeneratorRecipe):
        recipe.tokenizer = "shipped"
    if isinstance(recipe, GeneratorRecipe | TokenizerRecipe) and recipe.init:
        few = isinstance(recipe, GeneratorRecipe) and recipe.family == "flowmap"
        recipe.init = "shipped-many-step" if few else Path(recipe.init).name
    (SHIPPED / part).mkdir(exist_ok=True)
    write_atomically(SHIPPED / part / "recipe.yaml", recipe_yaml(recipe))
    shutil.copyfile(run / "metrics.jsonl", SHIPPED / part / "metrics.jsonl")


if __name__ == "__main__":
    main()
