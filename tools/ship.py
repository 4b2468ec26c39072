"""Put finished runs into the package, in float16: what "shipped" stands for everywhere.

    python tools/ship.py GENERATOR_RUN TOKENIZER_RUN PROBE_RUN

Each part takes its weights, its recipe and its whole log along; of the photos' folder the recipe
keeps the name alone.
"""

import argparse
import shutil
from pathlib import Path

from softvq.io import write_atomically
from softvq.pipeline import Pipeline
from softvq.probe import Probe
from softvq.quality import PREDICTOR
from softvq.recipe import GeneratorRecipe, ProbeRecipe, TokenizerRecipe, load_recipe, recipe_yaml

SHIPPED = Path(__file__).parent.parent / "softvq" / "shipped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("generator", "tokenizer", "probe"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    Pipeline.from_pretrained(args.generator).save_pretrained(SHIPPED, half=True)
    Probe.from_pretrained(args.probe).save_pretrained(SHIPPED / "probe", half=True)
    for run, kind, part in (
        (args.tokenizer, TokenizerRecipe, "tokenizer"),
        (args.generator, GeneratorRecipe, "generator"),
        (args.probe, ProbeRecipe, "probe"),
    ):
        recipe = load_recipe(kind, str(run / "recipe.yaml"), [])
        recipe.data.source = Path(recipe.data.source).name
        if isinstance(recipe, GeneratorRecipe):
            recipe.tokenizer = "shipped"
        write_atomically(SHIPPED / part / "recipe.yaml", recipe_yaml(recipe))
        if (run / PREDICTOR).is_file():
            shutil.copyfile(run / PREDICTOR, SHIPPED / part / PREDICTOR)
        shutil.copyfile(run / "metrics.jsonl", SHIPPED / part / "metrics.jsonl")
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*.safetensors")) / 1e6
    print(f"{size:.1f} MB of weights in {SHIPPED}")


if __name__ == "__main__":
    main()
