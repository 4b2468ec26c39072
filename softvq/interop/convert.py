"""What `softvq import` opens and `softvq export` writes: one entry for each family of models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from softvq.errors import UserError
from softvq.generator.families import load_generator
from softvq.interop import reference, reference_generators
from softvq.interop.hub import local_directory
from softvq.io import read_config
from softvq.tokenizer.model import Tokenizer

# Whether the values of a config.json are of the family, and what opens the directory it lies in,
# given that and ``num_heads``. What is opened can ``save_pretrained``.
IMPORTS: list[tuple[Callable[[dict[str, Any]], bool], Callable[[Path, int | None], Any]]] = [
    (reference.recognises, reference.load_reference),
    (reference_generators.recognises, lambda folder, num_heads: load_generator(folder)),
]
# By format and by our kind of model: what opens ours, and what writes theirs.
EXPORTS: dict[str, dict[str, tuple[Callable[[Path], Any], Callable[[Any, Path], None]]]] = {
    "reference": {"Tokenizer": (Tokenizer.from_pretrained, reference.export_reference)},
}


def import_model(
    source: str | Path, target: Path, num_heads: int | None = None, download: bool = False
) -> str:
    """Write a model of another implementation in our layout; returns what kind it is.

    ``source``: a directory, or with ``download`` a repository of the Hugging Face hub.
    ``num_heads``: attention heads, where the source does not say them. Raises UserError.
    """
    folder = local_directory(source, download)
    config = read_config(folder)
    if "model" in config:
        raise UserError(f"{source}: is in the layout of softvq already")
    opener = next((load for recognises, load in IMPORTS if recognises(config)), None)
    if opener is None:
        raise UserError(f"{source}: its config.json is of no model that can be imported")
    _refuse_to_overwrite(target)
    model = opener(folder, num_heads)
    model.save_pretrained(target)
    return type(model).__name__


def export_model(source: str | Path, target: Path, form: str = "reference") -> str:
    """Write a model of ours in another layout, one of EXPORTS; returns what kind it is.

    Raises UserError.
    """
    folder = local_directory(source)
    kind = read_config(folder).get("model", "model of another layout")
    if kind not in EXPORTS[form]:
        known = ", ".join(EXPORTS[form])
        raise UserError(f"{source}: holds a {kind}; the {form} format is written of: {known}")
    _refuse_to_overwrite(target)
    load, write = EXPORTS[form][kind]
    write(load(folder), target)
    return kind


def _refuse_to_overwrite(target: Path) -> None:
    if (target / "config.json").exists():
        raise UserError(f"{target}: holds a model already; give another folder")
