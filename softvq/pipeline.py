"""Labels -> noise -> tokens -> images: a tokenizer and a generator that belong together."""

import json
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor, nn

from softvq import images
from softvq.errors import UserError
from softvq.generator.guidance import Guided
from softvq.generator.sampler import SAMPLERS, NoiseStreams, time_grid
from softvq.generator.transformer import SiT
from softvq.io import write_atomically
from softvq.tokenizer import Tokenizer

LAST_SDE_STEP = 0.04  # as in the reference; see ``time_grid``


def model_folder(name: str | Path) -> Path:
    """The folder of a saved pipeline; ``"shipped"`` is the one inside the package."""
    if name != "shipped":
        return Path(name)
    folder = Path(str(files("softvq") / "shipped"))
    if not folder.is_dir():
        raise UserError("this installation of softvq has no shipped model; give a directory")
    return folder


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a directory, of a pipeline's directory, or ``"shipped"``. UserError."""
    folder = model_folder(name)
    inside = folder / "tokenizer"
    return Tokenizer.from_pretrained(inside if inside.is_dir() else folder)


class Pipeline:
    """Draws images. ``classes`` names the labels; without classes it is unconditional.

    >>> pipeline = Pipeline.from_pretrained("shipped")
    >>> pipeline(["church", 3], steps=50, guidance=1.5, seed=0)      # two PIL images

    Image i depends on seed, i, its label and the sampling options alone: neither on ``batch`` nor
    on the labels beside it. Noise comes from one stream per image, and on a CPU networks run in
    float64: matrix products of another batch size round differently, by 1e-5 in float32, which now
    and then turns a pixel's level, and by 1e-14 in float64, which does not. That costs about twice
    the time. The images are the same bytes on the same machine and software. On a GPU, where
    float64 can be 64 times slower, networks keep float32, and a level may turn with the batch size.

    While it draws, the weights are changed in place: one pipeline serves one thread at a time.
    Raises UserError if tokenizer, generator and classes do not fit together.
    """

    def __init__(self, tokenizer: Tokenizer, generator: SiT, classes: list[str]):
        made = (tokenizer.config.tokens, tokenizer.config.channels)
        drawn = (generator.config.tokens, generator.config.channels)
        if made != drawn:
            raise UserError(
                f"the tokenizer has {made[0]} tokens x {made[1]} channels, the generator "
                f"{drawn[0]} x {drawn[1]}; give the pair that was trained together"
            )
        if len(classes) != generator.config.num_classes:
            raise UserError(
                f"{len(classes)} class names for {generator.config.num_classes} classes"
            )
        self.tokenizer = tokenizer
        self.generator = generator
        self.classes = classes

    def __call__(
        self,
        labels: Sequence[int | str] | None = None,
        count: int | None = None,
        steps: int = 50,
        guidance: float = 1.5,
        interval: tuple[float, float] = (0.0, 1.0),
        sampler: str = "euler",
        seed: int = 0,
        batch: int = 64,
    ) -> list[Image.Image]:
        """One picture per label; see :meth:`generate_latents` for the arguments and the cost."""
        latents = self.generate_latents(
            labels, count, steps, guidance, interval, sampler, seed, batch
        )
        return self.decode(latents, batch)

    @torch.no_grad()
    def generate_latents(
        self,
        labels: Sequence[int | str] | None = None,
        count: int | None = None,
        steps: int = 50,
        guidance: float = 1.5,
        interval: tuple[float, float] = (0.0, 1.0),
        sampler: str = "euler",
        seed: int = 0,
        batch: int = 64,
    ) -> Tensor:
        """Denormalised latents in float64 [n, L, C] on the CPU, as :meth:`decode` reads them.

        labels    class names or numbers; an unconditional generator takes ``count`` = n instead
        steps     of the sampler: "euler", "heun" or "euler_maruyama"
        guidance  1 for none; an unconditional generator has nothing to guide by and ignores it
        interval  times, 0 data and 1 noise, between which guidance acts
        batch     how many images are computed at a time

        Costs n x steps network evaluations, twice that where guidance acts; Heun n x (2 steps - 1)
        and twice that. Raises UserError for an unknown label or sampler, labels where there are
        no classes (or none where there are), and steps, count or batch below 1.
        """
        y, n = self._labels(labels, count)
        if sampler not in SAMPLERS:
            raise UserError(f"sampler '{sampler}' is none of {', '.join(SAMPLERS)}")
        if steps < 1 or batch < 1:
            raise UserError(f"steps and batch must be 1 or more, got {steps} and {batch}")
        config = self.generator.config
        guided = Guided(self.generator, guidance if y is not None else 1.0, interval)
        times = time_grid(steps, LAST_SDE_STEP if sampler == "euler_maruyama" else None)
        device = next(self.generator.parameters()).device
        drawn = [torch.empty(0, config.tokens, config.channels, dtype=torch.float64)]
        with exact(self.generator):
            dtype = next(self.generator.parameters()).dtype
            for first in range(0, n, batch):
                indices = range(first, min(first + batch, n))
                streams = NoiseStreams(seed, indices)

                def noise(step: int, streams: NoiseStreams = streams) -> Tensor:
                    return streams.draw(config.tokens, config.channels).to(device, dtype)

                start = noise(0)
                some = None if y is None else y[first : indices.stop].to(device)
                x = SAMPLERS[sampler](guided, start, times, some, noise=noise)
                drawn.append(x.cpu().double())
        device = next(self.tokenizer.parameters()).device
        return self.tokenizer.denormalize(torch.cat(drawn).to(device)).cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 64) -> list[Image.Image]:
        """Denormalised latents [n, L, C] -> n pictures."""
        pictures: list[Image.Image] = []
        device = next(self.tokenizer.parameters()).device
        with exact(self.tokenizer):
            for some in latents.split(batch):
                some = some.to(device, self.tokenizer.latent_mean.dtype)
                pictures += images.to_pil(self.tokenizer.decode(some))
        return pictures

    def _labels(
        self, labels: Sequence[int | str] | None, count: int | None
    ) -> tuple[Tensor | None, int]:
        """Class numbers int64 [n], None if unconditional, and n. Raises UserError."""
        if not self.classes:
            if labels is not None or count is None or count < 1:
                raise UserError("this generator has no classes: give a count of 1 or more")
            return None, count
        if labels is None or count is not None or isinstance(labels, str):
            raise UserError(f"give a list of labels; the classes are {self._known()}")
        numbers = {name: i for i, name in enumerate(self.classes)}
        found = []
        for label in labels:
            number = numbers.get(label) if isinstance(label, str) else operator.index(label)
            if number is None or not 0 <= number < len(self.classes):
                raise UserError(f"unknown label {label!r}; the classes are {self._known()}")
            found.append(number)
        return torch.tensor(found, dtype=torch.int64), len(found)

    def _known(self) -> str:
        """The classes for an error message: numbers and names, not all of a thousand."""
        shown = ", ".join(f"{i} {name}" for i, name in enumerate(self.classes[:20]))
        more = len(self.classes) - 20
        return f"{shown}, and {more} more" if more > 0 else shown

    def save_pretrained(self, directory: str | Path, half: bool = False) -> None:
        """Write tokenizer/, generator/ and model_index.json; ``half`` stores float16 weights."""
        directory = Path(directory)
        self.tokenizer.save_pretrained(directory / "tokenizer", half=half)
        self.generator.save_pretrained(directory / "generator", half=half)
        index = json.dumps({"classes": self.classes}, indent=2) + "\n"
        write_atomically(directory / "model_index.json", index)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Load what ``save_pretrained`` wrote, or the ``"shipped"`` pipeline, on the CPU.

        Raises UserError for a missing or damaged file and for parts that do not fit together.
        """
        directory = model_folder(directory)
        path = directory / "model_index.json"
        try:
            classes = json.loads(path.read_text(encoding="utf-8"))["classes"]
        except OSError:
            raise UserError(
                f"{directory}: no model_index.json there; give the directory of a tokenizer and "
                "a generator, as `softvq train generator` writes it"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error})") from None
        tokenizer = Tokenizer.from_pretrained(directory / "tokenizer")
        return cls(tokenizer, SiT.from_pretrained(directory / "generator"), classes)


@contextmanager
def exact(module: nn.Module) -> Iterator[None]:
    """On a CPU, hold the weights in float64, and put them back as they were, bit for bit."""
    parameter = next(module.parameters())
    dtype = parameter.dtype
    module.to(torch.float64 if parameter.device.type == "cpu" else dtype)
    try:
        yield
    finally:
        module.to(dtype)
