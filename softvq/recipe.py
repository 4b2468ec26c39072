"""Recipes: the whole configuration of a run, typed, from YAML and command-line overrides."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from softvq.errors import UserError
from softvq.io import unknown_key
from softvq.tokenizer.model import TokenizerConfig
from softvq.tokenizer.objective import ObjectiveConfig


@dataclass
class DataConfig:
    """Where photos come from and how they become training crops.

    source: a folder (class = first-level subfolder) or ``builtin``.
    margin: photos are stored at this many times the training size, room for random crops whose
        side is 1/margin .. 1 of the stored side; 1 means no crops.
    flip: mirror half of the crops.  fit: crop | stretch, how another aspect ratio is met.
    workers: processes that load photos beside the training process; 0 for none.
    """

    source: str = "builtin"
    margin: float = 1.25
    flip: bool = True
    fit: str = "crop"
    workers: int = 0


@dataclass
class TrainConfig:
    """How long and how to optimise. Every duration is counted in images seen.

    optimizer: adamw, or muon: Muon on the matrices inside transformer blocks, AdamW on the rest.
    lr, muon_lr: peak rates of AdamW and Muon.  schedule: cosine | linear, down to ``final_lr`` of
    the peak after ``warmup`` images of linear rise.
    ema_halflife: halflife of the weight average that is saved.  precision: auto | bf16 | fp32; auto
    is bf16 where the hardware multiplies it natively.
    """

    images: int = 100_000
    batch: int = 64
    optimizer: str = "muon"
    lr: float = 2e-3
    muon_lr: float = 0.02
    weight_decay: float = 0.0
    schedule: str = "linear"
    warmup: int = 1_000
    final_lr: float = 0.0
    clip: float = 1.0
    ema_halflife: int = 2_000
    precision: str = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 1_000
    evaluate_every: int = 20_000
    checkpoint_every: int = 10_000

    def __post_init__(self) -> None:
        positive = ("images", "batch", "clip", "log_every", "evaluate_every", "checkpoint_every")
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"train.{name} must be above 0, got {getattr(self, name)}")
        for name, known in (
            ("optimizer", ("adamw", "muon")),
            ("schedule", ("cosine", "linear")),
            ("precision", ("auto", "bf16", "fp32")),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"train.{name} '{getattr(self, name)}' is none of {', '.join(known)}"
                )


@dataclass
class TokenizerRecipe:
    """``softvq train tokenizer``. ``init``: a directory whose weights training starts from."""

    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: str | None = None


@dataclass
class SiTShape:
    """The part of ``SiTConfig`` that a recipe chooses; the rest follows from tokens and labels."""

    width: int = 256
    depth: int = 8
    heads: int = 4
    mlp_ratio: float = 4.0
    qk_norm: bool = False
    label_dropout: float = 0.1


@dataclass
class GeneratorRecipe:
    """``softvq train generator``. The tokenizer fixes tokens and channels, the data the classes.

    tokenizer: directory of a trained tokenizer, or ``shipped``.
    views: how many crops of each photo are encoded once and kept: the first is the whole photo,
        the second its mirror image, further ones are random crops, mirrored at random.
    time: uniform | lognormal, how training times are drawn.
    """

    tokenizer: str = "shipped"
    views: int = 2
    time: str = "lognormal"
    data: DataConfig = field(default_factory=DataConfig)
    model: SiTShape = field(default_factory=SiTShape)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class ProbeRecipe:
    """``softvq train probe``: the classifier whose features Frechet distances are measured on."""

    height: int = 64
    width: int = 64
    channels: int = 32
    label_smoothing: float = 0.1
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


Recipe = TypeVar("Recipe", TokenizerRecipe, GeneratorRecipe, ProbeRecipe)
SHIPPED = files("softvq") / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    names = [path.name for path in SHIPPED.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(kind: type[Recipe], name: str, overrides: list[str]) -> Recipe:
    """A typed recipe from a shipped name or a YAML file, with ``key.subkey=value`` overrides.

    Raises UserError for a missing file, an unknown key (naming the nearest known one), a value of
    the wrong type, or an override that is not key=value.
    """
    path = SHIPPED / f"{name}.yaml" if name in shipped_recipes() else Path(name)
    if not path.is_file():
        raise UserError(
            f"{name}: no such recipe file; shipped recipes: {', '.join(shipped_recipes())}"
        )
    for override in overrides:
        if "=" not in override:
            raise UserError(f"'{override}' is not an override of the form key.subkey=value")
    schema = OmegaConf.structured(kind)
    where = name
    try:
        recipe = OmegaConf.merge(schema, OmegaConf.create(path.read_text(encoding="utf-8")))
        for where in overrides:
            recipe = OmegaConf.merge(recipe, OmegaConf.from_dotlist([where]))
        return cast(Recipe, OmegaConf.to_object(recipe))
    except ConfigKeyError as error:
        raise unknown_key(str(error.full_key), leaves(schema), where) from None
    except YAMLError as error:
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error.msg or error).splitlines()[0]}") from None


def leaves(config: Any, prefix: str = "") -> list[str]:
    """Every key of a structured config, dotted: sections and values."""
    keys: list[str] = []
    for key in config:
        keys.append(prefix + key)
        if OmegaConf.is_config(config._get_node(key)) and config._get_node(key) is not None:
            child = config[key]
            if OmegaConf.is_dict(child):
                keys += leaves(child, f"{prefix}{key}.")
    return keys


def recipe_yaml(recipe: TokenizerRecipe | GeneratorRecipe | ProbeRecipe) -> str:
    """The whole recipe as YAML, every default written out."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))
