"""The one door for models: what lies in a directory or behind a name; open, describe, translate.

A name is a directory, one of SHIPPED for a model in the package, or with ``download`` a repository
ORGANISATION/NAME of the Hugging Face hub. ``LAYOUTS`` is the table of what is known: a new layout
is one entry, and nothing else in softvq asks how a model lies on the disk.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.generator.families import GENERATORS
from softvq.interop import diffusers, reference, reference_generators, teacher
from softvq.interop.diffusers import DiffusersTokenizer
from softvq.interop.dinov2 import initialise_encoder
from softvq.interop.hub import local_directory
from softvq.io import load_model, make_config, read_config, tensor_shapes
from softvq.outputs import check_folder
from softvq.probe import Probe, ProbeConfig
from softvq.tokenizer.alignment import EYES, EyeTeacher, Teacher
from softvq.tokenizer.config import TokenizerConfig
from softvq.tokenizer.model import Tokenizer
from softvq.tokens import Lengths, TokenIndex, lengths_of

__all__ = [
    "DiffusersTokenizer", "Parts", "Teacher", "describe", "export_model", "find", "import_model",
    "initialise_encoder", "model_folder", "open_generator", "open_parts", "open_probe",
    "open_teacher", "open_tokenizer", "read_shape", "recognise",
    "tokenizer_beside", "tokenizer_folder",
]  # fmt: skip

INDEX = "model_index.json"  # beside tokenizer/ and generator/ in a pipeline
# Pipelines in the package by name, and their folders. They have one tokenizer: the generator of few
# steps, and the one of many steps that it was made of and that new ones can be made of.
SHIPPED = {"shipped": "", "shipped-many-step": "many-step"}


@dataclass(frozen=True)
class Asked:
    """What a layout may need beside its folder.

    num_heads: attention heads, where the config does not say them.  size: height and width in
    pixels, where the model takes any.
    """

    num_heads: int | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """One way in which one kind of model lies in a folder.

    form: whose layout: softvq | reference | diffusers | transformers.
    kind: tokenizer | generator | probe | vision model.
    models: names of the classes it opens.
    recognises: tells it by the values of a folder's config.json.
    open: the model, strictly loaded, in evaluation mode, on the CPU.
    shape: its configuration, or what else says its shape, from the config alone where that is
        enough.
    needs: the fields of :class:`Asked` that it understands.
    """

    form: str
    kind: str
    models: tuple[str, ...]
    recognises: Callable[[dict[str, Any]], bool]
    open: Callable[[Path, Asked], Any]
    shape: Callable[[Path, Asked], Any]
    needs: tuple[str, ...] = ()


def own_layout(kind: str, net: Any, config: type) -> Layout:
    """The layout of a model of ours: config.json, which names its class, and model.safetensors."""

    def shape(folder: Path, asked: Asked) -> Any:
        values = read_config(folder)
        values.pop("model")
        return make_config(config, values, str(folder / "config.json"))

    return Layout(
        "softvq",
        kind,
        (net.__name__,),
        lambda values: values.get("model") == net.__name__,
        lambda folder, asked: load_model(net, config, folder),
        shape,
    )


OWN: dict[str, tuple[str, Any, type]] = {
    "Tokenizer": ("tokenizer", Tokenizer, TokenizerConfig),
    **{f.network.__name__: ("generator", f.network, f.config) for f in GENERATORS.values()},
    "Probe": ("probe", Probe, ProbeConfig),
}
LAYOUTS = [
    *(own_layout(*entry) for entry in OWN.values()),
    Layout(
        "reference",
        "tokenizer",
        ("Tokenizer",),
        reference.recognises,
        lambda folder, asked: reference.load_reference(folder, asked.num_heads),
        lambda folder, asked: reference.load_reference(folder, asked.num_heads).config,
        needs=("num_heads",),
    ),
    Layout(
        "reference",
        "generator",
        ("SiT", "DiT"),
        reference_generators.recognises,
        lambda folder, asked: reference_generators.load_reference(folder),
        lambda folder, asked: reference_generators.read_shape(folder)[1],
    ),
    Layout(
        "diffusers",
        "tokenizer",
        tuple(diffusers.AUTOENCODERS),
        diffusers.recognises,
        lambda folder, asked: diffusers.load_diffusers(folder, asked.size),
        lambda folder, asked: diffusers.load_diffusers(folder, asked.size),
        needs=("size",),
    ),
    Layout(
        "transformers",
        "vision model",
        ("vision transformer",),
        lambda values: "model_type" in values and "model" not in values,
        lambda folder, asked: teacher.open_teacher(folder),
        lambda folder, asked: teacher.open_teacher(folder),
    ),
]
# Where a part lies in a folder that holds several. In a pipeline of diffusers, whose tokenizer/ is
# of text, images become tokens in vae/.
PARTS = {"tokenizer": ("vae", "tokenizer"), "generator": ("generator",), "probe": ("probe",)}
NOT_GIVEN = {"num_heads": "num_heads is", "size": "its image size is"}


# ---- names and folders ----


def model_folder(name: str | Path) -> Path:
    """The folder that a name means; those of SHIPPED are inside the package. It may not exist."""
    if name not in SHIPPED:
        return Path(name)
    folder = Path(str(files("softvq") / "shipped" / SHIPPED[str(name)]))
    if not folder.is_dir():
        raise UserError("this installation of softvq has no shipped model; give a directory")
    return folder


def tokenizer_folder(name: str | Path, download: bool = False) -> Path:
    """Where the tokenizer behind a name lies. Raises UserError where there is no such folder."""
    return part(find("shipped" if name in SHIPPED else name, download), "tokenizer")


def find(name: str | Path, download: bool = False) -> Path:
    """The folder behind a name, which exists. Raises UserError where there is none."""
    return local_directory(model_folder(name), download)


def part(folder: Path, kind: str) -> Path:
    """Where a tokenizer, generator or probe lies in a folder: in a part of it, or itself."""
    return next((folder / name for name in PARTS[kind] if (folder / name).is_dir()), folder)


def tokenizer_beside(name: str | Path | None) -> str | None:
    """The name again, if it is that of a pipeline, whose tokenizer opens by it."""
    if name is None or not (
        name in SHIPPED or any((model_folder(name) / p).is_dir() for p in PARTS["tokenizer"])
    ):
        return None
    return str(name)


def recognise(folder: Path) -> Layout | None:
    """The layout of the single model in a folder, by its config.json; None for an unknown one.

    Raises UserError if there is no config.json, or a damaged one.
    """
    values = read_config(folder)
    return next((layout for layout in LAYOUTS if layout.recognises(values)), None)


def layout_of(folder: Path, kind: str, asked: Asked) -> Layout:
    """The layout of a folder that must hold one kind of model. Raises UserError."""
    layout = recognise(folder)
    if layout is None or layout.kind != kind:
        known = [name for each in LAYOUTS if each.kind == kind for name in each.models]
        held = read_config(folder).get("model") or (layout.kind if layout else "model of no kind")
        raise UserError(
            f"{folder}: holds a {held}, which is none of {', '.join(dict.fromkeys(known))}"
        )
    for name in (f.name for f in fields(Asked)):
        if getattr(asked, name) is not None and name not in layout.needs:
            raise UserError(f"{folder}: {NOT_GIVEN[name]} read from its config.json, not given")
    return layout


# ---- open ----


def open_tokenizer(
    name: str | Path,
    size: tuple[int, int] | None = None,
    *,
    num_heads: int | None = None,
    download: bool = False,
) -> Tokenizer:
    """The tokenizer of a directory, of a pipeline's directory, or ``"shipped"``, on the CPU.

    In the layout of softvq, of the reference, or, an AutoencoderKL or AutoencoderDC, of diffusers;
    a pipeline may be one of diffusers, whose tokens come from its ``vae``. ``size``: height and
    width in pixels of an autoencoder of diffusers, which takes any; None for its ``sample_size``.
    ``num_heads``: attention heads of a checkpoint of the reference, whose config does not say them;
    None takes those of the timm models it names. ``download``: fetch ORGANISATION/NAME from the
    Hugging Face hub if there is no such directory. Raises UserError.
    """
    folder = tokenizer_folder(name, download)
    asked = Asked(num_heads, size)
    found: Tokenizer = layout_of(folder, "tokenizer", asked).open(folder, asked)
    return found


def open_generator(name: str | Path, download: bool = False) -> Any:
    """The generator of a directory or of a pipeline's: SiT, DiT or MAR. Raises UserError."""
    folder = part(find(name, download), "generator")
    return layout_of(folder, "generator", Asked()).open(folder, Asked())


def open_probe(name: str | Path) -> Probe:
    """The probe of a directory, or ``"shipped"``. Raises UserError."""
    folder = part(find(name), "probe")
    found: Probe = layout_of(folder, "probe", Asked()).open(folder, Asked())
    return found


def open_teacher(name: str | Path, download: bool = False) -> Teacher:
    """The eye (EYES), or a vision transformer of transformers: DINOv2, CLIP.. UserError."""
    if name in EYES:
        return EyeTeacher(EYES[str(name)])
    return teacher.open_teacher(name, download)


def read_shape(name: str | Path, kind: str, size: tuple[int, int] | None = None) -> Any:
    """A tokenizer's or generator's configuration, without its weights where that can be.

    An autoencoder of diffusers is given itself, a :class:`DiffusersTokenizer`. Raises UserError.
    """
    here = "shipped" if kind == "tokenizer" and name in SHIPPED else name
    folder = part(model_folder(here), kind)
    asked = Asked(size=size)
    return layout_of(folder, kind, asked).shape(folder, asked)


@dataclass
class Parts:
    """What a pipeline is made of."""

    tokenizer: Tokenizer
    generator: Any
    classes: list[str]


def open_parts(
    directory: str | Path | None = None,
    tokenizer: str | Path | None = None,
    generator: str | Path | None = None,
    classes: Sequence[str] | None = None,
) -> Parts:
    """The parts of a pipeline; see ``Pipeline.from_pretrained``. Raises UserError."""
    given = [part is not None for part in (directory, tokenizer, generator)]
    if given not in ([True, False, False], [False, True, True]):
        raise UserError("give the directory of a pipeline, or a tokenizer and a generator")
    folder = model_folder(directory or generator or "")
    index = folder / INDEX
    if index.is_file():
        names = read_classes(index)
        network = open_generator(folder / "generator" if folder.is_dir() else folder)
    elif directory is None:
        network = open_generator(folder)
        names = [str(i) for i in range(network.config.num_classes)]
    elif (folder / "config.json").is_file() and (layout := recognise(folder)) is not None:
        lacks = "generator" if layout.kind == "tokenizer" else "tokenizer"
        raise UserError(f"{folder}: a {layout.kind} alone; give the directory of its {lacks} too")
    else:
        raise UserError(
            f"{folder}: no {INDEX} there; give the directory of a tokenizer and a generator, "
            "as `softvq train generator` writes it"
        )
    tokens = open_tokenizer(tokenizer or directory or folder)
    return Parts(tokens, network, names if classes is None else list(classes))


def read_classes(index: Path) -> list[str]:
    """The class names in a pipeline's model_index.json. Raises UserError if it is damaged."""
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["classes"]
        if not isinstance(names, list):
            raise TypeError("classes must be a list")
        return [str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index}: damaged ({type(error).__name__}: {error})") from None


# ---- translate ----


def import_model(
    source: str | Path, target: Path, num_heads: int | None = None, download: bool = False
) -> str:
    """Write a model of the reference in our layout; returns what kind it is. Raises UserError.

    ``source``: a directory, or with ``download`` a repository of the Hugging Face hub.
    ``num_heads``: attention heads, where the source does not say them.
    """
    folder = find(source, download)
    layout = recognise(folder)
    if layout is not None and layout.form == "softvq":
        raise UserError(f"{source}: is in the layout of softvq already")
    if layout is None or layout.form == "transformers":
        raise UserError(f"{source}: its config.json is of no model that can be imported")
    if layout.form == "diffusers":
        raise UserError(f"{source}: opens as it is, wherever a tokenizer is asked for")
    asked = Asked(num_heads)
    layout_of(folder, layout.kind, asked)
    _refuse_to_overwrite(target)
    model = layout.open(folder, asked)
    model.save_pretrained(target)
    return type(model).__name__


# By format and by our kind of model: what writes it.
EXPORTS: dict[str, dict[str, Callable[[Any, Path], None]]] = {
    "reference": {"Tokenizer": reference.export_reference},
}


def export_model(source: str | Path, target: Path, form: str = "reference") -> str:
    """Write a model of ours in another layout, one of EXPORTS; returns what kind it is.

    Of a pipeline, as ``"shipped"``, its tokenizer is written. Raises UserError.
    """
    folder = part(find(source), "tokenizer")
    layout = recognise(folder)
    own = layout is not None and layout.form == "softvq"
    kind = layout.models[0] if layout is not None and own else "model of another layout"
    if kind not in EXPORTS[form]:
        known = ", ".join(EXPORTS[form])
        raise UserError(f"{source}: holds a {kind}; the {form} format is written of: {known}")
    _refuse_to_overwrite(target)
    EXPORTS[form][kind](open_tokenizer(folder), target)
    return kind


def _refuse_to_overwrite(target: Path) -> None:
    if (target / "config.json").exists():
        raise UserError(f"{target}: holds a model already; give another folder")
    check_folder(target, "")


# ---- describe ----


@dataclass(frozen=True)
class Description:
    """What lies in a directory; None, or empty, is what is not known or not said there.

    kind: tokenizer | generator | probe | vision model | pipeline | tokens | study | run.
    layout: softvq | reference | diffusers | transformers.  model: the network's class.
    size: height and width in pixels.  tokens, channels: of a photo.  parameters: numbers that
    training fits.  precision: of the weights on disk.  images: seen in training.
    state: of the training run that wrote it: finished, or where it stopped.
    data: fingerprint of the photos it was trained on.
    tokenizer: its fingerprint, or that of the tokenizer whose tokens it learned or holds.
    classes: names.  count: photos in a folder of tokens.  parts: of a pipeline.
    overlap: of the tiles that photos were cut into.  target, lengths: where each photo, or tile,
    has its own number of tokens.
    """

    directory: str
    kind: str
    layout: str = "softvq"
    model: str | None = None
    size: tuple[int, int] | None = None
    tokens: int | None = None
    channels: int | None = None
    parameters: int | None = None
    precision: str | None = None
    images: int | None = None
    state: str | None = None
    data: str | None = None
    tokenizer: str | None = None
    classes: tuple[str, ...] = ()
    count: int | None = None
    overlap: int | None = None
    target: str | None = None
    lengths: Lengths | None = None
    parts: tuple["Description", ...] = field(default=())

    def lines(self) -> list[str]:
        """Readable lines, what is not known left out."""
        most = "up to " if self.target else ""
        shape = f"{most}{self.tokens} tokens x {self.channels} channels" if self.tokens else None
        what = "pixels" if self.overlap is None else "tiles of pixels"
        unmet = self.lengths and self.lengths.unmet
        shown = [f"{c}" for c in self.classes[:10]]
        more = [f"and {len(self.classes) - 10} more"] if len(self.classes) > 10 else []
        rows = {
            "model": self.model and f"{self.model} ({self.kind}, layout of {self.layout})",
            what: self.size and f"{self.size[0]} x {self.size[1]}",
            "overlap of tiles": self.overlap and f"{self.overlap} pixels",
            "shape": shape,
            "target": self.target,
            "tokens of each": self.lengths,
            "target missed with all tokens": unmet and f"{unmet:,}",
            "parameters": self.parameters and f"{self.parameters:,}",
            "weights": self.precision,
            "photos": self.count and f"{self.count:,}",
            "images seen": self.images and f"{self.images:,}",
            "training": self.state,
            "classes": shown and f"{len(self.classes)}: " + ", ".join(shown + more),
            "photos' fingerprint": self.data and self.data[:16],
            "tokenizer's fingerprint": self.tokenizer and self.tokenizer[:16],
        }
        lines = [f"{self.directory}: {self.kind}"]
        lines += [f"  {name}: {value}" for name, value in rows.items() if value]
        for each in self.parts:
            lines += [f"  {line}" for line in each.lines()]
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())


def describe(name: str | Path) -> Description:
    """What lies behind a name: a model of any layout, a pipeline, a training run, tokens, a study.

    Raises UserError if it is nothing that softvq knows, or damaged.
    """
    folder = find(name)
    if (folder / INDEX).is_file() and (folder / "generator").is_dir():
        folders = {"tokenizer": tokenizer_folder(name), "generator": folder / "generator"}
        inside = tuple(replace(describe(place), directory=part) for part, place in folders.items())
        return Description(
            str(folder),
            "pipeline",
            size=inside[0].size,
            tokens=inside[0].tokens,
            channels=inside[0].channels,
            classes=tuple(read_classes(folder / INDEX)),
            parts=inside,
            **run_of(folder),
        )
    if (folder / "vae").is_dir():
        return describe(folder / "vae")
    if (folder / "config.json").is_file():
        return replace(_describe_model(folder), **run_of(folder))
    if (folder / "results.json").is_file() or (folder / "plan.json").is_file():
        return Description(str(folder), "study")
    if "shards" in _json(folder / "index.json"):
        index = TokenIndex.read(folder)
        return Description(
            str(folder), "tokens", size=(index.height, index.width), tokens=index.tokens,
            channels=index.channels, data=index.photos, tokenizer=index.tokenizer,
            classes=tuple(index.classes), count=index.count, overlap=index.overlap,
            target=index.target, lengths=lengths_of(folder),
        )  # fmt: skip
    if (folder / "recipe.yaml").is_file():
        return Description(str(folder), "run", **run_of(folder))
    raise UserError(
        f"{folder}: no model, training run, tokens or study of softvq there; give a folder that "
        "`softvq train`, `encode`, `import` or `study` wrote"
    )


def _describe_model(folder: Path) -> Description:
    layout, values = recognise(folder), read_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    held = {k: v for path in weights for k, v in tensor_shapes(path).items()}
    precisions = {str(v.dtype).removeprefix("torch.") for v in held.values()}
    found = Description(
        str(folder),
        layout.kind if layout else "model",
        layout.form if layout else "softvq" if "model" in values else "unknown",
        model=str(values.get("model") or values.get("_class_name") or values.get("model_type")),
        parameters=sum(v.numel() for v in held.values()),
        precision=", ".join(sorted(precisions)) or None,
    )
    if layout is None or layout.form == "transformers":
        return found
    if layout.form == "diffusers":
        config: Any = diffusers.describe(values)
        learned = None
    else:
        foreign = layout.kind == "tokenizer" and layout.form != "softvq"
        # With any number of heads the tensors are the same, but not what they compute.
        net = layout.open(folder, Asked(num_heads=1 if foreign else None))
        config = net.config
        learned = getattr(config, "tokenizer", None)
        if layout.kind == "tokenizer":
            learned = None if foreign else fingerprint(net)
        found = replace(
            found, model=type(net).__name__, parameters=sum(p.numel() for p in net.parameters())
        )
    height, width = getattr(config, "height", None), getattr(config, "width", None)
    return replace(
        found,
        size=(height, width) if height and width and layout.kind != "generator" else None,
        tokens=getattr(config, "tokens", None),
        channels=getattr(config, "channels", None) if layout.kind != "probe" else None,
        tokenizer=learned,
    )


def run_of(folder: Path) -> dict[str, Any]:
    """What a training run's folder says of it: the fields images, state and data, if it is one."""
    if not (folder / "recipe.yaml").is_file():
        return {}
    seen = max([_seen(line) for line in _text(folder / "metrics.jsonl").splitlines()], default=0)
    kept = [_json(path).get("seen") for path in (folder / "checkpoints").glob("*.json")]
    resumes = max((n for n in kept if isinstance(n, int)), default=0)
    wanted = _wanted(folder / "recipe.yaml")
    goes_on = "the same command goes on from there"
    if wanted and seen >= wanted:
        state = "finished"
    elif resumes:
        state = f"stopped; resumable at {resumes:,} of {wanted or 0:,} images: {goes_on}"
    else:
        state = "stopped before its first checkpoint: the same command starts again"
    photos = [_json(path).get("fingerprint") for path in (folder / "photos").glob("train-*.json")]
    photos.append(_json(folder / "tokens" / "train" / "index.json").get("photos"))
    data = next((found for found in photos if isinstance(found, str)), None)
    return {"images": max(seen, resumes) or None, "state": state, "data": data}


def _wanted(recipe: Path) -> int | None:
    """``train.images`` of a run's recipe."""
    from omegaconf import OmegaConf

    try:
        found = OmegaConf.select(OmegaConf.create(_text(recipe)), "train.images")
    except Exception:  # noqa: BLE001 - YAML has errors of its own, and so has OmegaConf
        return None
    return found if isinstance(found, int) else None


def _seen(line: str) -> int:
    try:
        seen = json.loads(line)["seen"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return seen if isinstance(seen, int) else 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _json(path: Path) -> dict[str, Any]:
    """The values of a JSON file; none if it is missing or damaged."""
    try:
        values = json.loads(_text(path))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
