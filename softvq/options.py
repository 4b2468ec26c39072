"""Every option of every command: its name, type, choices, default and a sentence of help, once.

A command is a dataclass. Its keyword-only fields are flags (``decode_batch``: ``--decode-batch``),
its positional fields arguments; the docstring under a field is its help, that of the class the
command's, with examples. Needs no torch, so that ``softvq --help`` is instant.
:mod:`softvq.parser` makes a command line of it; :mod:`softvq.cli` says which class is which
command.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from softvq.errors import UserError

BATCH = 64
MOST = 2**31 - 1
DATA = "a folder of photos (a class is a first-level subfolder), or 'builtin'"


# ---- how values are written ----


@dataclass(frozen=True)
class Value:
    """How an option's value is written: ``name`` in the help; ``read`` makes it of ``words`` words.

    ``read`` raises UserError with the end of a sentence that begins with the option's name.
    ``write`` is its inverse, for a default in the help.
    """

    name: str
    read: Callable[..., Any]
    words: int = 1
    write: Callable[[Any], str] | None = None


def text(word: str) -> str:
    """What names a file, a class or a column: any text but an empty one."""
    if not word.strip():
        raise UserError("must not be empty")
    if "\0" in word:
        raise UserError("must not hold a zero byte")
    try:
        word.encode("utf-8", "surrogateescape")  # as the system encodes the names of files
    except UnicodeEncodeError:
        raise UserError(f"{word!a} is not a text that names anything") from None
    return word


def count(word: str) -> int:
    """A whole number of 1 or more."""
    return _whole(word, 1)


def seed(word: str) -> int:
    """A whole number of 0 or more."""
    return _whole(word, 0)


def _whole(word: str, least: int) -> int:
    if not (word.isascii() and word.isdigit()) or int(word[:20]) < least:
        raise UserError(f"'{word}' is not a whole number of {least} or more")
    if len(word) > 20 or int(word) > MOST:
        raise UserError(f"'{word}' is too large; the most is {MOST:,}")
    return int(word)


def words(word: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(part.strip() for part in word.split(",") if part.strip())
    if not found:
        raise UserError(f"'{word}' names nothing; give one or more, with commas between them")
    return found


def counts(word: str) -> tuple[int, ...]:
    """Whole numbers of 1 or more with commas between them."""
    return tuple(count(part) for part in words(word))


def among(*known: str) -> Callable[[str], tuple[str, ...]]:
    """Reads some of the ``known`` names, with commas between them."""

    def read(word: str) -> tuple[str, ...]:
        found = words(word)
        for name in found:
            if name not in known:
                raise UserError(f"'{name}' is none of {', '.join(known)}")
        return found

    return read


def duration(word: str) -> float:
    """Seconds: 90s, 30m, 2h, or a bare number of minutes."""
    units = {"s": 1, "m": 60, "h": 3600}
    unit = word[-1:] if word[-1:] in units else "m"
    return positive(word.removesuffix(unit)) * units[unit]


def pixels(word: str) -> tuple[int, int]:
    """HEIGHTxWIDTH, or one number for both."""
    height, _, width = word.partition("x")
    return count(height), count(width or height)


def number(word: str) -> float:
    """Any number but infinity and NaN."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"'{word}' is not a number")
    return value


def positive(word: str) -> float:
    """A number above 0."""
    try:
        value = number(word)
    except UserError:
        value = 0.0
    if value <= 0:
        raise UserError(f"'{word}' is not a number above 0")
    return value


def tile(word: str) -> int | Literal["auto"]:
    """auto, or pixels of a side."""
    return "auto" if word == "auto" else count(word)


def interval(low: str, high: str) -> tuple[float, float]:
    """Two times, 0 <= low < high <= 1."""
    times = number(low), number(high)
    if not 0 <= times[0] < times[1] <= 1:
        raise UserError(f"{low} {high} is not an interval of times, 0 <= LOW < HIGH <= 1")
    return times


Sampler = Literal[
    "euler", "heun", "dopri5", "ddim", "dpm_solver", "euler_maruyama", "ddpm", "flow_map",
    "consistency",
]  # fmt: skip
Fit = Literal["crop", "stretch"]
Scale = Literal["auto", "fit", "native"]
Trained = Literal["softvq", "decoder", "kl", "vq", "ae"]
GPUName = Literal["a100", "h100", "h200", "l40s", "rtx4090"]

Name = Annotated[str, Value("NAME", text)]
File = Annotated[str, Value("FILE", text)]
Folder = Annotated[str, Value("FOLDER", text)]
Count = Annotated[int, Value("N", count)]
Counts = Annotated[tuple[int, ...], Value("N,N,..", counts)]
Words = Annotated[tuple[str, ...], Value("NAME,NAME,..", words)]
Trainings = Annotated[tuple[Trained, ...], Value("NAME,NAME,..", among(*get_args(Trained)))]
Duration = Annotated[float, Value("TIME", duration, write=lambda s: f"{s / 60:g}m")]
Pixels = Annotated[tuple[int, int], Value("PIXELS", pixels, write=lambda x: f"{x[0]}x{x[1]}")]
Number = Annotated[float, Value("NUMBER", number)]
Positive = Annotated[float, Value("NUMBER", positive)]
Seed = Annotated[int, Value("N", seed)]
Whole = Annotated[int, Value("N", seed)]
Tile = Annotated[int | str, Value("auto|N", tile)]
Interval = Annotated[tuple[float, float], Value("LOW HIGH", interval, words=2)]


# ---- what commands share ----


@dataclass(kw_only=True)
class Long:
    """What every command takes that may run for long."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks run; auto is the accelerator if there is one."""
    json: bool = False
    """Print the result as one line of JSON, and everything else on stderr."""
    quiet: bool = False
    """Print errors, warnings and, with --json, the result; nothing else."""
    dry_run: bool = False
    """Print what would be done (photos, classes, split, size, time), and do nothing."""


@dataclass(kw_only=True)
class OfTokenizer:
    """Of a command that opens a tokenizer."""

    tokenizer: Folder = "shipped"
    """Directory of a trained tokenizer or of an autoencoder of diffusers (AutoencoderKL,
    AutoencoderDC), or 'shipped'."""
    size: Pixels | None = None
    """Pixels of an autoencoder of diffusers, HEIGHTxWIDTH or one number; by default its
    sample_size."""


@dataclass(kw_only=True)
class OfBudget(OfTokenizer):
    """Of a command that can keep the first tokens of a nested tokenizer alone."""

    tokens: Count | None = None
    """Keep the first so many tokens of each photo, of a nested tokenizer; by default all."""
    psnr: Positive | None = None
    """In place of --tokens: keep of each photo the fewest tokens that rebuild it at so many dB."""
    eye: Positive | None = None
    """In place of --tokens: keep of each photo the fewest tokens that rebuild it within this
    distance to the eye; 1 is that of a 256 px photo's 26 x 26 thumbnail."""
    predict: bool = False
    """With --psnr or --eye: predict how many tokens that takes in place of searching, in one pass;
    some photos then miss. Needs the lengths.safetensors beside the tokenizer."""

    def __post_init__(self) -> None:
        one_of(self, "tokens", "psnr", "eye")
        if self.predict and not (self.psnr or self.eye):
            raise UserError("--predict goes with --psnr or --eye")


@dataclass(kw_only=True)
class OfPrecision:
    """Of a command whose networks may compute in bfloat16."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """How the networks compute: bf16 is faster where the hardware has it, and tokens differ by
    about 1%; auto is bf16 there, and fp32 elsewhere."""


@dataclass(kw_only=True)
class OfPhotos:
    """Of a command that reads photos."""

    data: Folder
    """A folder of photos (a class is a first-level subfolder), or 'builtin'."""


@dataclass(kw_only=True)
class OfSplit(OfPhotos):
    """Of a command that measures photos."""

    split: Literal["train", "val", "all"] = "val"
    """Which of the photos; val are the held-out ones."""


@dataclass(kw_only=True)
class OfFeatures:
    """Of a command that can measure distances."""

    features: Folder | None = "eye"
    """What distances are measured on: 'eye', the network in the package; 'shipped', the small
    probe in it; a directory of a trained probe or of a vision model of transformers; or the weight
    file of the FID Inception network."""
    preprocessing: Literal["tf", "pytorch"] = "tf"
    """Inception's resize: TensorFlow's, or that of pytorch-fid."""


@dataclass(kw_only=True)
class OfModel:
    """Of a command that draws pictures."""

    model: Folder = "shipped"
    """Directory that `softvq train generator` wrote, 'shipped', which draws in few steps, or
    'shipped-many-step'; with --tokenizer that of a generator alone, as `softvq import` writes
    it."""
    tokenizer: Folder | None = None
    """Directory of the tokenizer that decodes what a generator alone draws."""


@dataclass(kw_only=True)
class OfSampling:
    """How pictures are drawn. What is not given is as the generator does it by itself."""

    steps: Count | None = None
    """Sampling steps: by default 20, of a few-step generator 2, of a MAR as many as tokens."""
    guidance: Number | None = None
    """Guidance scale; 1 is none."""
    interval: Interval | None = None
    """Times between which guidance acts, 0 data and 1 noise; by default all of them."""
    sampler: Sampler | None = None
    """The rule for a step; see the manual."""
    temperature: Number | None = None
    """Temperature of a MAR's tokens; 1 by default."""
    head_steps: Count | None = None
    """Sampling steps of a MAR's head."""
    tokens: Count | None = None
    """Keep the first so many tokens of each picture, of a nested tokenizer: a coarser one."""
    seed: Seed = 0
    """The same seed draws the same pictures."""


@dataclass(kw_only=True)
class ToPictures:
    """Where pictures go."""

    out: Folder | None = None
    """Folder for the pictures, as PNG files."""
    npz: File | None = None
    """In place of --out: one array of all pictures, and their labels; a stopped command goes on
    when repeated, and torchrun may start it in several processes."""
    overwrite: bool = False
    """Replace what this command wrote there before with other settings."""

    def __post_init__(self) -> None:
        one_of(self, "out", "npz", required=True)


@dataclass(kw_only=True)
class Training(Long):
    """Of a command that trains."""

    overrides: Annotated[tuple[str, ...], Value("KEY=VALUE", text)] = field(
        kw_only=False, default=()
    )
    """Values of the recipe to change, as key.subkey=value; they come last."""
    data: Folder | None = None
    """A folder of photos (a class is a first-level subfolder), or 'builtin'; by default the
    recipe's data.source."""
    out: Folder
    """Folder of the run; a stopped run goes on when its command is repeated."""


def one_of(options: Any, *names: str, required: bool = False) -> None:
    """Raises UserError if more than one of the options is given, or none and one is required."""
    flags = [f"--{name.replace('_', '-')}" for name in names]
    given = [flag for flag, name in zip(flags, names, strict=True) if getattr(options, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; give one of them")
    if required and not given:
        raise UserError(f"give {' or '.join(flags)}")


# ---- the commands ----


@dataclass(kw_only=True)
class Demo(Long):
    """Show all of it on photos that are at hand, and write a report.

    softvq demo --out demo
    """

    out: Folder
    """Folder for the report and the training run."""
    minutes: Positive = 2.0
    """How long to fine-tune."""


@dataclass(kw_only=True)
class TrainTokenizer(Training):
    """Train a tokenizer on photos; a stopped run goes on when its command is repeated.

    softvq train tokenizer --data photos --out runs/tokenizer train.images=200000
    softvq train tokenizer --init shipped --data photos --out runs/tuned train.images=20000
    """

    recipe: File = "nested"
    """Name of a shipped recipe (see `softvq recipes`), or a YAML file."""
    init: Folder | None = None
    """Directory of a tokenizer to start from, or 'shipped'."""
    decoder_only: bool = False
    """Leave the tokens of --init as they are: generators of them stay valid."""


@dataclass(kw_only=True)
class TrainGenerator(Training):
    """Train a generator on a tokenizer's tokens; a stopped run goes on when repeated.

    softvq train generator --tokenizer runs/tokenizer --data photos --out runs/generator
    softvq train generator --recipe few-step --init runs/generator --data photos --out runs/few
    """

    recipe: File = "nested-generator"
    """Name of a shipped recipe (see `softvq recipes`), or a YAML file."""
    tokenizer: Folder | None = None
    """Directory of a trained tokenizer, or 'shipped'; by default --init's, or the recipe's."""
    init: Folder | None = None
    """Directory of a generator to start from, or 'shipped-many-step'; it learns classes that it
    does not know. With --recipe few-step: the SiT that becomes one of few steps."""


@dataclass(kw_only=True)
class TrainProbe(Training):
    """Train the classifier on whose features distances are measured; a stopped run goes on.

    softvq train probe --data photos --out runs/probe
    """

    recipe: File = "probe"
    """Name of a shipped recipe (see `softvq recipes`), or a YAML file."""


@dataclass(kw_only=True)
class Encode(OfPrecision, OfBudget, OfPhotos, Long):
    """Write the tokens of photos, with names and labels, to safetensors files.

    softvq encode --data photos --out tokens
    softvq encode --tokenizer runs/nested --data photos --out tokens --psnr 28
    softvq encode --data large --out tokens --tile auto
    """

    out: Folder
    """Folder for the tokens; photos that are new since are added to those in it."""
    split: Literal["train", "val", "all"] = "all"
    """Which photos."""
    batch: Count = BATCH
    """Photos encoded at a time."""
    tile: Tile | None = None
    """Keep photos at their own size, cut into tiles of so many pixels a side; auto: as large as the
    tokenizer's own."""
    overlap: Whole | None = None
    """With --tile: pixels that tiles overlap by at least, where they are blended; by default an
    eighth of a tile."""
    engine: Literal["local", "ray"] = "local"
    """Who encodes: this process, or those that torchrun started; or workers of Ray."""
    workers: Count | None = None
    """With --engine ray: how many; by default one for each GPU, or for each core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.engine == "local":
            raise UserError("--workers goes with --engine ray")
        if self.overlap is not None and self.tile is None:
            raise UserError("--overlap goes with --tile")


@dataclass(kw_only=True)
class Shard(Long):
    """Copy photos into tar files, as WebDataset has them, that training and encoding stream.

    softvq shard --data photos --out shards
    softvq shard --data 's3://bucket/photos-{0000..0127}.tar' --out shards
    softvq shard --data hf:ethz/food101 --out shards
    """

    data: Annotated[str, Value("SOURCE", text)]
    """A folder of photos (a class is a first-level subfolder), or 'builtin'; hf:NAME, a data set of
    Hugging Face in a folder or on the hub; or tar files that are there, which are only listed."""
    out: Folder
    """Folder for the shards."""
    each: Count = 1000
    """Photos in each tar file."""
    seed: Whole = 0
    """Draws which photo lies in which file."""


@dataclass(kw_only=True)
class Decode(OfPrecision, ToPictures, OfTokenizer, Long):
    """Turn a folder of tokens back into pictures.

    softvq decode tokens --out pictures
    """

    tokens: Folder = field(kw_only=False)
    """Folder that `softvq encode` or `softvq generate` wrote."""


@dataclass(kw_only=True)
class Reconstruct(OfPrecision, OfBudget, Long):
    """Write photos beside their reconstructions.

    softvq reconstruct --data photo.jpg --out pictures
    """

    data: Folder
    """A photo, or a folder of photos (a class is a first-level subfolder), or 'builtin'."""
    out: Folder
    """Folder for the pictures."""
    scale: Count = 2
    """Enlarge the pictures this many times."""
    overwrite: bool = False
    """Delete what this command wrote there before with other settings."""


@dataclass(kw_only=True)
class Generate(ToPictures, OfSampling, OfModel, Long):
    """Draw new pictures.

    softvq generate --labels grocery_tomato,caltech_sunflower --guidance 2 --seed 7 --out pictures
    """

    labels: Words = ("balanced",)
    """Class names or numbers, with commas, taken in turn; or 'balanced', all classes in turn; or
    'sampled', drawn at random."""
    count: Count | None = None
    """Pictures in all."""
    per_class: Count | None = None
    """Pictures of every class, or in all if the model has none; by default 4, and 1 of each of
    --labels."""
    batch: Count = BATCH
    """Pictures drawn at a time."""
    decode_batch: Count | None = None
    """With --npz: pictures decoded at a time; by default as --batch."""
    precision: Literal["auto", "exact", "fp32", "bf16"] = "auto"
    """How the networks compute. auto draws the same pictures whatever the batch, on a CPU in
    float32 and a fixed number of pictures at a time; so does exact, in float64, in twice the
    time."""
    compile: bool = False
    """Have torch compile the networks."""
    latents: Folder | None = None
    """With --npz: a folder to keep the tokens in, for `softvq decode`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "count", "per_class")
        if not self.npz and (self.latents or self.decode_batch):
            raise UserError("--latents and --decode-batch go with --npz")


@dataclass(kw_only=True)
class Augment(OfPhotos, OfSampling, OfModel, Long):
    """Draw more pictures to train on, of each class or defect; near-copies of photos are left out.

    softvq augment --data photos --out photos-drawn --labels grocery_tomato --per-class 20
    """

    out: Folder
    """Folder for train/CLASS/drawn-00000.png and on, and drawn.csv, which says what each is."""
    labels: Words | None = None
    """Class names, with commas; by default all of the generator's."""
    per_class: Count = 100
    """Pictures of every class."""
    batch: Count = BATCH
    """Pictures drawn at a time."""
    precision: Literal["auto", "exact", "fp32", "bf16"] = "auto"
    """As of `softvq generate`."""
    overwrite: bool = False
    """Replace what this command wrote there before with other settings."""


@dataclass(kw_only=True)
class EvaluateReconstruction(OfBudget, OfSplit, OfFeatures, Long):
    """Measure how well held-out photos survive: PSNR, SSIM, LPIPS and distances of features.

    softvq evaluate reconstruction --data photos --features eye
    """

    features: Folder | None = None
    """What distances are measured on, as for `evaluate generation`; by default none is."""
    lpips: File | None = None
    """File of VGG-16's ImageNet weights, which adds LPIPS."""
    masks: Folder | None = None
    """Folder of pictures named as the photos, which adds figures inside of what is not black."""
    curve: bool = False
    """Measure 1, 2, 4, .. and all tokens of a nested tokenizer, as a table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "curve", "tokens", "psnr", "eye")


@dataclass(kw_only=True)
class EvaluateGeneration(OfFeatures, OfSampling, OfModel, Long):
    """Measure drawn pictures against photos: Frechet and kernel distance, precision, recall.

    softvq evaluate generation --data photos
    """

    data: Folder | None = None
    """A folder of photos (a class is a first-level subfolder), or 'builtin'; as many pictures are
    drawn."""
    reference: File | None = None
    """In place of --data: an .npz file of a set's statistics, ours or published."""
    split: Literal["train", "val", "all"] = "val"
    """Which of the photos; val are the held-out ones."""
    images: Count = 50_000
    """Pictures to draw, with --reference."""

    def __post_init__(self) -> None:
        one_of(self, "data", "reference", required=True)


@dataclass(kw_only=True)
class EvaluateLatents(OfBudget, OfPhotos, Long):
    """Measure the tokens: linear probe, nearest neighbours, rank, codebook, each one's worth.

    softvq evaluate latents --data photos
    """


@dataclass(kw_only=True)
class EvaluateStatistics(OfSplit, OfTokenizer, OfFeatures, Long):
    """Save the features' statistics of photos, as a reference for generated pictures.

    softvq evaluate statistics --data photos --out reference.npz
    """

    out: File
    """The .npz file to write."""
    overwrite: bool = False
    """Replace the file, if this command wrote it."""


@dataclass(kw_only=True)
class Cost(Long):
    """Count what models cost, beside DiT-XL/2 with the autoencoder of Stable Diffusion.

    softvq cost softvq-l-64 softvq-l-32-512
    """

    recipes: Annotated[tuple[str, ...], Value("RECIPE", text)] = field(kw_only=False)
    """Recipe of a tokenizer or generator, directory of a trained model or of an autoencoder of
    diffusers, 'shipped', dit-xl-2-256 or dit-xl-2-512."""
    size: Pixels | None = None
    """Pixels of an autoencoder of diffusers, HEIGHTxWIDTH or one number; by default its
    sample_size."""
    tokens: Count | None = None
    """Encode and decode the first so many tokens, of a nested tokenizer; by default all."""
    generator: Folder | None = None
    """Recipe or directory of a generator for tokenizers given alone; by default SiT-XL/1."""
    steps: Count | None = None
    """Sampling steps: by default 50, of a few-step generator 2; a MAR makes at most one for each
    token."""
    guidance: Number = 1.5
    """Guidance scale; 1 is none."""
    measure: bool = False
    """Time the models here too: minutes, for large ones without a GPU much longer."""
    batch: Count = 8
    """Images at a time, when measuring."""
    price_per_hour: Positive | None = None
    """What an hour of this machine costs; adds what a million images cost, and measures."""
    watts: Positive | None = None
    """What this machine draws; adds the energy of a million images, and measures."""
    price_per_kwh: Positive | None = None
    """What a kilowatt-hour costs; it goes with --watts."""
    currency: Name = "EUR"
    """Currency of the prices."""

    def __post_init__(self) -> None:
        if self.price_per_kwh and not self.watts:
            raise UserError("--price-per-kwh goes with --watts")


@dataclass(kw_only=True)
class Plan:
    """What a training run takes on paper: memory, time, energy and money on so many GPUs.

    softvq plan --recipe softvq-l-64 --gpus 8 --gpu h100 --price-per-hour 2.5
    """

    overrides: Annotated[tuple[str, ...], Value("KEY=VALUE", text)] = field(
        kw_only=False, default=()
    )
    """Values of the recipe to change, as key.subkey=value."""
    recipe: Annotated[str, Value("RECIPE", text)] = "softvq-l-64"
    """Recipe of a tokenizer or a generator."""
    gpus: Count = 8
    """How many GPUs; 1, 10 and 1,000 stand beside them."""
    gpu: GPUName = "h100"
    """Which GPUs."""
    utilisation: Positive = 0.35
    """Share of their peak that training reaches; an assumption, unless you have measured it."""
    price_per_hour: Positive | None = None
    """What an hour of one of them costs."""
    currency: Name = "EUR"
    """Currency of the price."""
    json: bool = False
    """Print the result as one line of JSON."""


@dataclass(kw_only=True)
class Study(Long):
    """Find out how few tokens your photos need, what that saves and what is lost.

    A stopped study goes on when its command is repeated.

    softvq study --data photos --masks masks --out study
    softvq study --out study --resume-with prices.yaml
    """

    out: Folder
    """Folder of the study and its report."""
    data: Folder | None = None
    """A folder of photos (a class is a first-level subfolder), or 'builtin'."""
    resume_with: File | None = None
    """YAML file of other criteria or prices, by which a finished study in --out decides anew;
    nothing is trained or measured."""
    criteria: File | None = None
    """YAML file of what must hold, and of prices; see the manual."""
    budget: Duration = 1200.0
    """Time for all of it, as 90s, 30m or 2h."""
    masks: Folder | None = None
    """Folder of PNG files named as the photos, not black inside what matters."""
    boxes: File | None = None
    """In place of --masks: a CSV of boxes around what matters: name, x1, y1, x2, y2."""
    metadata: File | None = None
    """CSV of facts about the photos; by default manifest.csv in --data."""
    group: Name | None = None
    """Column of --metadata: photos of one part or scene, one piece of evidence; or 'stem', the
    file's name without its ending; by default the column cluster or group."""
    subgroups: Words = ()
    """Columns to report figures by."""
    normal: Words | None = None
    """Classes without a defect; by default those named ok, good, normal, free, 良品 and such."""
    drop_leaks: bool = False
    """Leave out held-out photos that are in training too; without it they are refused."""
    tokens: Counts | None = None
    """Numbers of tokens to measure; by default 1, 2, 4, .. and all that --init has."""
    tile: Scale = "auto"
    """Whether photos are fitted to the tokenizer's size, or cut into tiles at their native scale;
    auto goes by the sizes of what is marked."""
    fit: Fit = "stretch"
    """How a photo that is not square is fitted: squeezed, so that nothing is lost, or cropped."""
    init: Folder = "shipped"
    """Directory of the nested tokenizer that is fine-tuned."""
    train: Trainings = ("softvq",)
    """What is fine-tuned, of softvq, decoder (tokens stay as they are), kl, vq and ae; each takes
    its share of the time."""
    seeds: Count = 1
    """How often the fine-tuning is repeated with another seed; each takes its share of the time."""
    images: Count | None = None
    """In place of --budget: photos seen in fine-tuning, the same on any machine."""
    seed: Seed = 0
    """Seed of everything that is drawn at random."""
    lang: Literal["en", "ja"] = "en"
    """Language of the report."""

    def __post_init__(self) -> None:
        one_of(self, "masks", "boxes")
        one_of(self, "data", "resume_with", required=True)


@dataclass(kw_only=True)
class Explain(OfPhotos, OfTokenizer, OfPrecision, Long):
    """Say what each token means on your photos, and test it: a page to touch, and all figures.

    softvq explain --data photos --masks masks --out tokens-explained --lang ja
    """

    out: Folder
    """Folder for index.html and explanation.json."""
    photo: File | None = None
    """A photo to put in focus; by default the held-out one with the largest mark."""
    images: Count = 100
    """Held-out photos that tokens are removed from."""
    masks: Folder | None = None
    """Folder of PNG files named as the photos, not black inside what matters."""
    boxes: File | None = None
    """In place of --masks: boxes around what matters, as for `softvq study`."""
    metadata: File | None = None
    """CSV of facts about the photos, a direction in the tokens is sought for each column."""
    fit: Literal["stretch", "crop"] = "stretch"
    """How a photo of other proportions is met: squeezed, so that nothing is cut off, or cropped."""
    seed: Seed = 0
    """Seed of everything that is drawn at random."""
    lang: Literal["en", "ja"] = "en"
    """Language that the page opens in; it holds both."""
    overwrite: bool = False
    """Replace what this command wrote there before with other settings."""

    def __post_init__(self) -> None:
        one_of(self, "masks", "boxes")


@dataclass(kw_only=True)
class Import:
    """Turn a checkpoint of the reference implementation into a model of softvq.

    softvq import SoftVQVAE/softvq-l-64 models/softvq-l-64 --download
    """

    source: Annotated[str, Value("SRC", text)] = field(kw_only=False)
    """Its directory; with --download also ORGANISATION/NAME on the Hugging Face hub."""
    target: Annotated[str, Value("DST", text)] = field(kw_only=False)
    """Folder for the model."""
    num_heads: Count | None = None
    """Attention heads, which its config does not say; by default as the timm model it names."""
    download: bool = False
    """Fetch SRC from the hub if it is no directory here."""


@dataclass(kw_only=True)
class Export:
    """Write a model of softvq in another layout.

    softvq export runs/tokenizer exported --format reference
    """

    source: Annotated[str, Value("SRC", text)] = field(kw_only=False)
    """Directory of the model."""
    target: Annotated[str, Value("DST", text)] = field(kw_only=False)
    """Folder for what is written."""
    format: Literal["reference", "onnx", "torch"] = "reference"
    """Whose layout: that of the reference implementation; ONNX, for onnxruntime and others; or
    programs of torch.export. The last two prove themselves with `softvq verify`."""
    int8: bool = False
    """With onnx: weights of linear layers as 8-bit integers."""
    steps: Count = 4
    """With onnx and torch: sampling steps of the generator, where the model has one."""
    guidance: Number = 1.5
    """With onnx and torch: its guidance scale; 1 is none. A few-step generator takes it as an
    input, and this is what a server asks of it."""

    def __post_init__(self) -> None:
        if self.int8 and self.format != "onnx":
            raise UserError("--int8 goes with --format onnx")


@dataclass(kw_only=True)
class Verify:
    """Check that an exported model computes on this machine what softvq computed.

    It needs onnxruntime and numpy; so does the verify.py that lies in the export.

    softvq verify exported
    """

    directory: Folder = field(kw_only=False)
    """Folder that `softvq export` wrote."""
    json: bool = False
    """Print it as one line of JSON."""


@dataclass(kw_only=True)
class Serve(OfPrecision):
    """Serve photos to tokens and back over HTTP, with a page at / and a staged roll-out.

    Stopped with Ctrl-C or SIGTERM it finishes what it accepted.

    softvq serve --model shipped
    softvq serve --model exported --plan rollout.yaml --store sqlite:///softvq.db --keys keys.txt
    """

    model: Folder = "shipped"
    """Directory of a tokenizer, of a pipeline or of an ONNX export, or 'shipped'."""
    plan: File | None = None
    """YAML file of the roll-out; without one the server stays in shadow."""
    store: Annotated[str, Value("URL", text)] = "sqlite:///softvq.db"
    """Database for what the server saw, figures only: sqlite:///FILE, or another of SQLAlchemy."""
    host: Name = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all."""
    port: Count = 8765
    """Port to listen at."""
    keys: File | None = None
    """File of API keys, a name and a key in each line; without one everybody may ask."""
    batch: Count = 16
    """Requests computed together, at most."""
    wait: Annotated[float, Value("MS", positive)] = 3.0
    """Milliseconds that a request waits for others."""
    queue: Count = 256
    """Requests that may wait; more are answered 429."""
    rate: Positive | None = None
    """Requests a second of one key, or of one address without keys; more are answered 429."""
    most_bytes: Count = 20_000_000
    """Bytes of a request; more are answered 413."""
    most_pixels: Count = 50_000_000
    """Pixels of a photo; more are answered 413."""
    retention: Positive = 90.0
    """Days that figures are kept; the audit log is kept for ever."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks run; auto is the accelerator if there is one."""


@dataclass(kw_only=True)
class OfRollout:
    """Of a command about a roll-out."""

    store: Annotated[str, Value("URL", text)] = "sqlite:///softvq.db"
    """The server's database."""
    plan: File | None = None
    """The server's YAML file of the roll-out."""
    json: bool = False
    """Print it as one line of JSON."""


@dataclass(kw_only=True)
class Change(OfRollout):
    """Of a command that changes the stage."""

    why: Name = "asked for"
    """The reason, for the audit log."""
    who: Name | None = None
    """Who asks, for the audit log; by default the user of this session."""


@dataclass(kw_only=True)
class RolloutStatus(OfRollout):
    """Say which stage a roll-out is in, what live photos say of its criteria, and its audit log.

    softvq rollout status --plan rollout.yaml
    """


@dataclass(kw_only=True)
class RolloutPromote(Change):
    """Go to the next stage: shadow, canary, full; only where the criteria hold on live photos.

    softvq rollout promote --plan rollout.yaml --why "two quiet weeks"
    """


@dataclass(kw_only=True)
class RolloutHold(Change):
    """Stay in this stage until somebody promotes; a breach still falls back.

    softvq rollout hold --plan rollout.yaml --why "a new camera comes on Monday"
    """


@dataclass(kw_only=True)
class RolloutBack(Change):
    """Go back to the stage before, and stay there.

    softvq rollout back --plan rollout.yaml --why "the line was rebuilt"
    """


@dataclass(kw_only=True)
class Monitor(OfPrecision, Long):
    """Tell whether photos have changed since a reference, window by window, at a known rate.

    The photos are taken in the order of their names: a subfolder for each day is the usual form.

    softvq monitor --reference study --data photos-by-date --out drift
    """

    reference: Folder
    """Folder of photos that nothing is wrong with, or of a study, or of an earlier run of this
    command."""
    data: Folder
    """Folder of photos to look at."""
    out: Folder
    """Folder for drift.json and drift.html."""
    model: Folder = "shipped"
    """Directory of a tokenizer or of an ONNX export, or 'shipped'."""
    judge: Folder | None = None
    """Directory of a probe, or 'shipped', whose scores are watched too."""
    tokens: Count | None = None
    """Tokens of each photo that are looked at, of a nested tokenizer; by default all."""
    window: Count = 100
    """Photos that are judged together; the reference needs five times as many."""
    stride: Count = 20
    """Photos between windows."""
    false_alarms: Count = 1000
    """One false alarm in so many windows."""
    lang: Literal["en", "ja"] = "en"
    """Language of drift.html."""
    overwrite: bool = False
    """Replace what this command wrote there before with other settings."""

    def __post_init__(self) -> None:
        if self.window < 20 or not 10 <= self.false_alarms <= 5000:
            raise UserError("--window is at least 20, and --false-alarms 10 to 5000")


@dataclass(kw_only=True)
class Info:
    """Say what lies in a directory: a model, a training run, tokens or a study.

    softvq info shipped
    """

    directory: Folder = field(kw_only=False)
    """Directory of a model, of a run, of tokens or of a study, or 'shipped'."""
    json: bool = False
    """Print it as one line of JSON."""


@dataclass(kw_only=True)
class Recipes:
    """List the recipes that come with softvq, or show one with all its values.

    softvq recipes
    softvq recipes small > mine.yaml
    """

    recipe: Annotated[str | None, Value("RECIPE", text)] = field(kw_only=False, default=None)
    """Name of a shipped recipe, or a YAML file: print it with every default written out."""
    json: bool = False
    """Print it as one line of JSON."""


@dataclass(kw_only=True)
class Classes:
    """List the classes that a model draws, or those of a folder of photos.

    softvq classes shipped
    softvq classes photos
    """

    source: Annotated[str, Value("MODEL|DATA", text)] = field(kw_only=False)
    """Directory of a model or of tokens, 'shipped', a folder of photos, or 'builtin'."""
    json: bool = False
    """Print it as one line of JSON."""


@dataclass(kw_only=True)
class Completion:
    """Print what makes a shell complete the commands and options of softvq.

    softvq completion bash > ~/.local/share/bash-completion/completions/softvq
    """

    shell: Literal["bash", "zsh", "fish", "powershell"] = field(kw_only=False, default="bash")
    """Which shell."""
