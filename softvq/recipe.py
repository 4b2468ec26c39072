"""Recipes: the whole configuration of a run, typed, from YAML and command-line overrides."""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, make_dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from softvq.checks import MOST, check_fields
from softvq.errors import UserError, check_ranges, unknown_key
from softvq.fields import choices, field_help, shown, table
from softvq.generator.config import CONFIGS, FewStepConfig, HiddenAlignmentConfig, TimeLaw
from softvq.tokenizer.config import TokenizerConfig
from softvq.tokenizer.terms import AdversaryConfig, AlignmentConfig, ObjectiveConfig


@dataclass
class DataConfig:
    """Where photos come from and how they become training crops."""

    source: str = "builtin"
    """A folder of photos (a class is a first-level subfolder), or builtin."""
    margin: float = 1.25
    """Photos are stored at this many times the training size, room for random crops whose side is
    1/margin to 1 of the stored side; 1 for no crops."""
    flip: bool = True
    """Mirror half of the crops."""
    fit: Literal["crop", "stretch"] = "crop"
    """How photos of another aspect ratio are met."""
    workers: int = 0
    """Processes that load photos beside the training process."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        check_ranges(self, "data", margin=(1, 16), workers=(0, 256))


@dataclass
class TrainConfig:
    """How long and how to optimise. Every duration is counted in images seen."""

    images: int = 100_000
    """Images that the whole run sees. A larger number in the same folder goes on with the run, at
    the rate that a run of the new length would have there; all else must be the same."""
    batch: int = 64
    """Images in each step, of all processes together."""
    accumulate: int = 1
    """Passes that a process makes of its part of a step's images, whose gradients add up: for
    batches that do not fit. Averages over a batch (batch norm, entropy, LeCAM, how codebooks are
    used) are then those of a pass, over all processes."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share a model: each has it whole, or each a share of its weights and
    of its optimizer's state. An adversary is always whole."""
    recompute: bool = False
    """Keep of every block only its input, and compute it twice: less memory, a third more work."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """AdamW for everything, or Muon for the matrices inside blocks and AdamW for the rest."""
    lr: float = 2e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon."""
    layer_decay: float = 1.0
    """Factor by which rates fall with every block that lies deeper; below 1 for fine-tuning."""
    weight_decay: float = 0.0
    """Share of the weights, times the rate, that each step takes off."""
    schedule: Literal["cosine", "linear"] = "linear"
    """How rates fall to final_lr after the warmup."""
    warmup: int = 1_000
    """Images over which rates rise from 0 to their peak."""
    final_lr: float = 0.0
    """Rates at the end, as a share of their peak."""
    clip: float = 1.0
    """Largest norm of a step's gradients; larger ones are scaled down."""
    ema_halflife: int = 2_000
    """Images after which a weight counts half in the average that is saved."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of matrix products; auto is bf16 where the hardware multiplies it natively."""
    compile: bool = False
    """Have torch compile the network, block by block."""
    seed: int = 0
    """Seed of everything that is drawn at random."""
    log_every: int = 1_000
    """Images between two lines of metrics."""
    evaluate_every: int = 20_000
    """Images between two evaluations on held-out photos."""
    checkpoint_every: int = 10_000
    """Images between two checkpoints."""

    def __post_init__(self) -> None:
        ever = MOST
        check_fields(self, "train.")
        check_ranges(
            self, "train", images=(1, ever), batch=(1, 10**6),
            accumulate=(1, 10**6), lr=(0, 10), muon_lr=(0, 10),
            layer_decay=(1e-3, 1), weight_decay=(0, 100), warmup=(0, ever), final_lr=(0, 1),
            clip=(1e-6, 1e6), ema_halflife=(0, ever), seed=(0, ever), log_every=(1, ever),
            evaluate_every=(1, ever), checkpoint_every=(1, ever),
        )  # fmt: skip


@dataclass
class TokenizerRecipe:
    """``softvq train tokenizer``."""

    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init: str | None = None
    """Directory of a tokenizer whose weights training starts from, or shipped."""
    encoder_init: str | None = None
    """File or directory of DINOv2's weights that the encoder alone starts from."""
    trainable: Literal["all", "decoder"] = "all"
    """With decoder, tokens stay what they are, and generators of them valid."""
    lora_rank: int = 0
    """Train adapters of this rank in the blocks of the vit and nothing else (Hu et al. 2021),
    merged into the saved weights; 0 trains the weights themselves."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_ranges(self, "", lora_rank=(0, 4096))


@dataclass
class Shape:
    """The part of a generator's config that a recipe chooses: all but what FOLLOWS."""


# From the tokenizer and the data.
FOLLOWS = ("tokens", "channels", "num_classes", "rows", "tokenizer")


def shape_of(config: type) -> type[Shape]:
    """A dataclass of those fields of a generator's config."""
    chosen = [f for f in fields(config) if f.name not in FOLLOWS]
    specs: list[Any] = [
        (f.name, f.type) if f.default is MISSING else (f.name, f.type, field(default=f.default))
        for f in chosen
    ]
    name = config.__name__.removesuffix("Config") + "Shape"
    shape = make_dataclass(name, specs, bases=(Shape,))
    shape.described_by = config  # type: ignore[attr-defined]  # see field_help
    return shape


SHAPES = {name: shape_of(config) for name, config in CONFIGS.items()}


@dataclass
class GeneratorRecipe:
    """``softvq train generator``. The tokenizer fixes tokens and channels, the data the classes."""

    family: str = "sit"
    """Which generator: sit, dit, mar or flowmap. It decides which keys model has."""
    tokenizer: str = "shipped"
    """Directory of a trained tokenizer, or shipped."""
    views: int = 2
    """Crops of each photo that are encoded once and kept: the whole photo, its mirror image, and
    then random crops, mirrored at random."""
    tokens: int | None = None
    """Learn the first so many tokens of a nested tokenizer alone: a draft of its pictures, by a
    network that works on fewer; by default all."""
    init: str | None = None
    """Directory of a generator whose weights training starts from, or shipped; model is shaped as
    it. A flowmap starts from a SiT."""
    time: TimeLaw | None = None
    """How training times are drawn; by default as is usual in the family."""
    contrast: float = 0.0
    """Of a sit or a dit: how much predictions are pushed away from those of another sample of the
    batch (contrastive flow matching; the paper's weight is 0.05)."""
    data: DataConfig = field(default_factory=DataConfig)
    model: Shape = field(default_factory=Shape)
    alignment: HiddenAlignmentConfig = field(default_factory=HiddenAlignmentConfig)
    few_step: FewStepConfig = field(default_factory=FewStepConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "", views=(1, 10_000), contrast=(0, 0.99))
        if self.contrast and self.family not in ("sit", "dit"):
            raise UserError(f"contrast is for a sit or a dit, not for a {self.family}; set it to 0")
        if self.tokens is not None:
            check_ranges(self, "", tokens=(1, 1 << 16))
        self.time = self.time or CONFIGS[self.family].time_law

    def config(self, tokenizer: Any, classes: int) -> Any:
        """The config of the network for a tokenizer, given the tokenizer's. Raises UserError."""
        values = asdict(self.model)
        if values.get("patch"):
            values["rows"], columns = tokenizer.grid
            if values["rows"] * columns != tokenizer.tokens:
                raise UserError(
                    f"model.patch cuts maps of tokens, and the tokenizer's {tokenizer.tokens} are "
                    "a sequence; set model.patch=null"
                )
        shape = (self.tokens or tokenizer.tokens, tokenizer.channels, classes)
        return CONFIGS[self.family](*shape, **values)


@dataclass
class ProbeRecipe:
    """``softvq train probe``: the classifier whose features Frechet distances are measured on."""

    height: int = 64
    """Height of the photos that it sees, in pixels."""
    width: int = 64
    """Width of the photos that it sees, in pixels."""
    channels: int = 32
    """Channels of its first stage."""
    label_smoothing: float = 0.1
    """Share of each target that is spread over all classes."""
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        sides = (16, 4096)
        check_ranges(
            self, "", height=sides, width=sides, channels=(8, 4096), label_smoothing=(0, 1)
        )


Recipe = TypeVar("Recipe", TokenizerRecipe, GeneratorRecipe, ProbeRecipe)
KINDS: dict[str, Any] = {
    "tokenizer": TokenizerRecipe,
    "generator": GeneratorRecipe,
    "probe": ProbeRecipe,
}
SHIPPED = files("softvq") / "recipes"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    names = [path.name for path in SHIPPED.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def recipe_layers(name: str) -> list[tuple[str, DictConfig]]:
    """A recipe and those it is based on, the most basic first, each after its name or path.

    ``base: NAME`` in a recipe names the one whose values it changes: a shipped recipe or a YAML
    file, relative to the file that says so. ``kind`` says what it trains, see :func:`recipe_kind`.
    """
    layers: list[tuple[str, DictConfig]] = []
    folder = Path()
    while name:
        shipped = name in shipped_recipes()
        path = SHIPPED / f"{name}.yaml" if shipped else folder / name
        where = name if shipped else os.path.normpath(str(path))
        if where in [seen for seen, _ in layers]:
            raise UserError(f"{where}: is in the end its own base")
        if not path.is_file():
            raise UserError(
                f"{where}: no such recipe file; shipped recipes: {', '.join(shipped_recipes())}"
            )
        try:
            layer = OmegaConf.create(path.read_text(encoding="utf-8"))
            base = layer.get("base") if isinstance(layer, DictConfig) else None
        except UnicodeDecodeError:
            raise UserError(f"{where}: not a recipe; give a YAML file, which is text") from None
        except (YAMLError, OmegaConfBaseException, RecursionError) as error:
            raise UserError(f"{where}: not valid YAML ({_short(error)})") from None
        except AssertionError:  # what OmegaConf says of a file that is a lone number
            layer = None
        if not isinstance(layer, DictConfig):
            raise UserError(f"{where}: not a recipe, which has keys and values")
        layers.insert(0, (where, layer))
        layer.pop("base", None)
        name, folder = str(base or ""), Path(str(path)).parent
    return layers


def recipe_kind(layers: list[tuple[str, DictConfig]]) -> str | None:
    """What a recipe trains, of KINDS: the last ``kind`` that a layer says, and is rid of."""
    said = None
    for where, layer in layers:
        try:
            said = layer.pop("kind", said)
        except OmegaConfBaseException as error:  # as an interpolation of what is not there
            raise UserError(f"{where}: {_short(error)}") from None
        if said is not None and str(said) not in KINDS:
            raise UserError(f"{where}: kind '{said}' is none of {', '.join(KINDS)}")
    return said


def load_recipe(kind: type[Recipe], name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A typed recipe from a shipped name or a YAML file, with ``key.subkey=value`` overrides.

    Raises UserError for a missing file, a recipe of another kind, an unknown key (naming the
    nearest known one), a value of the wrong type, or an override that is not key=value.
    """
    layers = recipe_layers(name)
    said = recipe_kind(layers)
    if said is not None and KINDS[said] is not kind:
        raise UserError(f"{name}: is the recipe of a {said}; `softvq train {said}` takes it")
    layers += [(override, _override(override)) for override in overrides]
    schema = OmegaConf.structured(kind)
    where = name
    try:
        if kind is GeneratorRecipe:
            family = schema.family
            for where, layer in layers:  # noqa: B007 - the handlers below say it
                family = str(layer.get("family", family))
            if family not in SHAPES:
                raise UserError(f"{where}: family '{family}' is none of {', '.join(SHAPES)}")
            schema.model = OmegaConf.structured(SHAPES[family])
        recipe = schema
        for where, layer in layers:  # noqa: B007
            recipe = OmegaConf.merge(recipe, layer)
        where = name
        if missing := sorted(OmegaConf.missing_keys(recipe)):
            raise UserError(f"{name}: lacks {', '.join(missing)}")
        return cast(Recipe, OmegaConf.to_object(recipe))
    except ConfigKeyError as error:
        raise unknown_key(str(error.full_key), leaves(schema), where) from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {_short(error)}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply to be a recipe") from None


def _override(text: str) -> DictConfig:
    """What key.subkey=value says."""
    key, equals, _ = text.partition("=")
    if not equals or not key:
        raise UserError(f"{text!a} is not an override of the form key.subkey=value")
    try:
        text.encode("utf-8")
        found = OmegaConf.from_dotlist([text])
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        raise UserError(f"{text!a}: not valid ({_short(error)})") from None
    if not isinstance(found, DictConfig):
        raise UserError(f"{text!a} is not an override of the form key.subkey=value")
    return found


def _short(error: Exception) -> str:
    """The first line of an error: OmegaConf's go on with where in its own structures it was."""
    text = str(getattr(error, "msg", None) or error)
    if isinstance(error, YAMLError):
        return " ".join(text.split())
    text, key = text.splitlines()[0], getattr(error, "full_key", None)
    if choice := re.fullmatch(r"Invalid value '(.*)', expected one of \[(.*)\]", text):
        return f"{key} '{choice[1]}' is none of {choice[2].replace(chr(39), '')}"
    if re.match(r"Merge error: \w+ is not a subclass of", text):
        return "is a section; give one of its keys a value, section.key=value"
    return f"{key}: {text}" if key else text


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


def kind_of(name: str) -> str:
    """What a recipe trains, of KINDS: as it says, or else the first kind that it can be of."""
    if said := recipe_kind(recipe_layers(name)):
        return said
    faults = []
    for kind, recipe in KINDS.items():
        try:
            load_recipe(recipe, name)
            return kind
        except UserError as error:
            faults.append(error)
    raise faults[0]


def open_recipe(name: str) -> Any:
    """A recipe of whatever kind. Raises UserError."""
    return load_recipe(KINDS[kind_of(name)], name)


def about_recipe(name: str) -> str:
    """The first sentence of the comment that a shipped recipe begins with."""
    lines = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.lstrip("# ") for line in comment).split(". ")[0].rstrip(".") + "."


def recipe_help(name: str) -> str:
    """Every key of a shipped recipe with its value there and what it is, by section."""
    rows: dict[str, list[tuple[str, str]]] = {}

    def walk(part: Any, prefix: str) -> None:
        kind: Any = type(part)
        said, hints = field_help(kind), get_type_hints(kind)
        for key, value in vars(part).items():
            if is_dataclass(value):
                walk(value, f"{key}.")
            else:
                known = choices(hints[key])
                text = f"{said[key]} {f'One of {known}.' if known else ''}".strip()
                row = (f"{prefix}{key}={shown(value)}", text)
                rows.setdefault(prefix.rstrip("."), []).append(row)

    walk(open_recipe(name), "")
    title = f"keys of the recipe '{name}' and their values there"
    return "\n\n".join(table(section or title, some) for section, some in rows.items())


tokenizer_keys = partial(recipe_help, "nested")
generator_keys = partial(recipe_help, "nested-generator")
probe_keys = partial(recipe_help, "probe")
