"""Labels -> noise -> tokens -> images: a tokenizer and a generator that belong together."""

import copy
import json
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softvq import images
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.generator.families import draw, family_of
from softvq.generator.sampler import NoiseStreams
from softvq.io import check_finite, write_atomically
from softvq.layers import in_blocks
from softvq.models import INDEX, open_parts
from softvq.precision import PRECISIONS
from softvq.tokenizer.model import Tokenizer


class Pipeline:
    """Draws images. ``classes`` names the labels; without classes it is unconditional.

    >>> pipeline = Pipeline.from_pretrained("shipped")
    >>> pipeline(["grocery_tomato", 3], guidance=1.5, seed=0)                # two PIL images

    ``generator`` is a network of any of the families in ``softvq.generator.families``. Of a nested
    tokenizer it may draw the first tokens alone.

    Image i depends on seed, i, its label and the sampling options alone: neither on ``batch`` nor
    on the labels beside it (but for the sampler "dopri5", which chooses its steps for a batch).
    Noise comes from one stream per image, and on a CPU a network always sees the same number of
    images at a time, the last of them repeated where there are too few: matrix products of another
    shape round differently, by 1e-5 in float32, which now and then turns a pixel's level, and those
    of one shape treat all rows alike. The images are the same bytes on the same machine and
    software. On a GPU networks keep the batch as it is, and a level may turn with its size.

    ``precision`` = "auto" is that, and "exact" for a MAR, whose shapes change as it draws. "exact"
    is float64 on a CPU, where other shapes differ by 1e-14: about twice the time. "fp32" computes
    in float32 everywhere, in whatever shapes come, "bf16" in bfloat16 where that is safe.

    While it draws, the weights are changed in place: one pipeline serves one thread at a time.
    Raises UserError if tokenizer, generator and classes do not fit together, also if the generator
    learned the tokens of another tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, generator: Any, classes: list[str]):
        made = (tokenizer.config.tokens, tokenizer.config.channels)
        drawn = (generator.config.tokens, generator.config.channels)
        first = tokenizer.config.nested and drawn[0] <= made[0] and drawn[1] == made[1]
        if made != drawn and not first:
            raise UserError(
                f"the tokenizer has {made[0]} tokens x {made[1]} channels, the generator "
                f"{drawn[0]} x {drawn[1]}; give the pair that was trained together"
            )
        if len(classes) != generator.config.num_classes:
            raise UserError(
                f"{len(classes)} class names for {generator.config.num_classes} classes"
            )
        learned = generator.config.tokenizer
        if learned is not None and learned != fingerprint(tokenizer):
            raise UserError(
                "the generator learned the tokens of another tokenizer "
                f"(fingerprint {learned[:16]}, not {fingerprint(tokenizer)[:16]}); give the pair "
                "that was trained together"
            )
        self.tokenizer = tokenizer
        self.generator = generator
        self.classes = classes
        self.precision = "auto"  # or a key of PRECISIONS
        self.compiled = False

    def to(self, device: str | torch.device) -> Self:
        """Move both networks to a device, as :func:`softvq.device.pick_device` gives it."""
        self.tokenizer.to(device)
        self.generator.to(device)
        return self

    def compile(self) -> None:
        """Have torch compile both networks: minutes before the first images, and less for each."""
        self.generator.compile()
        self.tokenizer.decoder.compile()
        self.compiled = True

    def __call__(
        self,
        labels: Sequence[int | str] | None = None,
        count: int | None = None,
        seed: int = 0,
        batch: int = 64,
        start: int = 0,
        **options: Any,
    ) -> list[Image.Image]:
        """One picture per label; see :meth:`generate_latents` for the arguments."""
        return self.decode(
            self.generate_latents(labels, count, seed, batch, start, **options), batch
        )

    @torch.no_grad()
    def generate_latents(
        self,
        labels: Sequence[int | str] | None = None,
        count: int | None = None,
        seed: int = 0,
        batch: int = 64,
        start: int = 0,
        tokens: int | None = None,
        **options: Any,
    ) -> Tensor:
        """Denormalised latents in float64 [n, L, C] on the CPU, as :meth:`decode` reads them.

        labels   class names or numbers; an unconditional generator takes ``count`` = n instead
        seed     the images are number ``start``, start + 1, .. of this seed
        batch    how many images are computed at a time
        tokens   L: the first so many, of a nested tokenizer; by default all. A nested generator
                 draws no more than it must, any other all of them
        options  of the generator's family, as steps, guidance and sampler: see its ``sample`` in
                 ``softvq.generator.families``. A tensor [n] has one value for each image

        Raises UserError for an unknown label, labels where there are no classes (or none where
        there are), count or batch below 1, tokens that are not drawn, and options that the family
        lacks or refuses.
        """
        y, n = self.class_numbers(labels, count)
        if batch < 1:
            raise UserError(f"batch must be 1 or more, got {batch}")
        config = self.generator.config
        if tokens is not None:
            self.tokenizer.check_tokens(tokens)
            if tokens > config.tokens:
                raise UserError(f"this generator draws {config.tokens} tokens, not {tokens}")
        device = next(self.generator.parameters()).device
        counts = getattr(config, "counts", (config.tokens,))
        count = min(k for k in counts if k >= (tokens or config.tokens))
        if count < config.tokens:
            options["tokens"] = count
        precision, rows = self._computing(self.generator, count)
        drawn = [torch.empty(0, count, config.channels, dtype=torch.float64)]
        networks = [value for value in options.values() if isinstance(value, nn.Module)]
        with PRECISIONS[precision](self.generator, *networks):
            for first in range(0, n, batch):
                last = min(first + batch, n)
                streams = NoiseStreams(seed, range(start + first, start + last))
                some = None if y is None else y[first:last].to(device)
                own = {
                    name: value[first:last] if isinstance(value, Tensor) and value.ndim else value
                    for name, value in options.items()
                }
                found = draw(self.generator, streams, some, rows, **own)
                drawn.append(found.cpu().double())
        latents = check_finite(torch.cat(drawn)[:, :tokens], "the generator")
        device = next(self.tokenizer.parameters()).device
        return self.tokenizer.denormalize(latents.to(device)).cpu()

    def decode(self, latents: Tensor, batch: int = 64) -> list[Image.Image]:
        """Denormalised latents [n, L, C] -> n pictures."""
        return [Image.fromarray(pixels) for pixels in self.decode_uint8(latents, batch)]

    @torch.no_grad()
    def decode_uint8(self, latents: Tensor, batch: int = 64) -> np.ndarray:
        """Denormalised latents [n, L, C] -> pixels [n, H, W, 3]."""
        config = self.tokenizer.config
        pixels = np.empty((len(latents), config.height, config.width, 3), np.uint8)
        cells = config.height * config.width // config.patch**2
        precision, rows = self._computing(self.tokenizer, cells + config.tokens)
        with PRECISIONS[precision](self.tokenizer):
            for first in range(0, len(latents), batch):
                some = latents[first : first + batch].to(self.tokenizer.latent_mean)
                decoded = check_finite(in_blocks(self.tokenizer.decode, rows, some), "the decoder")
                pixels[first : first + batch] = images.to_uint8(decoded)
        return pixels

    def _computing(self, network: Any, tokens: int) -> tuple[str, int | None]:
        """A key of PRECISIONS, and how many images a network of ``tokens`` sees at a time, if that
        is fixed."""
        if self.precision != "auto":
            return self.precision, None
        if next(network.parameters()).device.type != "cpu":
            return "fp32", None
        if network is self.generator and not family_of(network).whole:
            return "exact", None
        # A power of two: threads then share the rows of the smallest products evenly as well.
        return "fp32", 2 ** max(0, math.ceil(math.log2(BLOCK / tokens)))

    @torch.no_grad()
    def rows_alike(self) -> bool:
        """Whether "auto" keeps its promise on this machine, asked of both networks: what they make
        of a sample is the same, bit for bit, in every place of a block."""
        config, device = self.generator.config, next(self.generator.parameters()).device
        draws = torch.Generator().manual_seed(0)

        def alike(network: Any, call: Callable[..., Tensor], tokens: int, *more: Any) -> bool:
            precision, rows = self._computing(network, tokens)
            if precision != "fp32" or not rows:
                return True
            x = torch.randn(rows, config.tokens, config.channels, generator=draws).to(device)
            given = [x, *(each.to(device).expand(rows) for each in more)]
            once = call(*given)
            same = partial(torch.allclose, rtol=0, atol=0, equal_nan=True)
            return all(same(call(x.roll(i, 0), *given[1:]).roll(-i, 0), once) for i in (1, -1))

        labels = [torch.zeros(1, dtype=torch.int64)] if self.classes else []
        own = self.tokenizer.config
        cells = own.height * own.width // own.patch**2
        drawn = alike(self.generator, self.generator, config.tokens, torch.tensor([0.5]), *labels)
        return drawn and alike(self.tokenizer, self.tokenizer.decode, cells + own.tokens)

    def class_numbers(
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
        network, config = self.generator, self.generator.config
        if half and config.tokenizer is not None:  # the file's weights are rounded, and their hash
            rounded = copy.deepcopy(self.tokenizer).half().float()
            network.config = replace(config, tokenizer=fingerprint(rounded))
        try:
            network.save_pretrained(directory / "generator", half=half)
        finally:
            network.config = config
        index = json.dumps({"classes": self.classes}, indent=2) + "\n"
        write_atomically(directory / INDEX, index)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path | None = None,
        *,
        tokenizer: str | Path | None = None,
        generator: str | Path | None = None,
        classes: Sequence[str] | None = None,
    ) -> Self:
        """Load what ``save_pretrained`` wrote, or the ``"shipped"`` pipeline, on the CPU.

        Or give a ``tokenizer`` and a ``generator``: a directory each, its own or a pipeline's, in
        our layout or the reference's. ``classes`` default to the names in a pipeline, and to "0",
        "1", .. for a generator that comes alone.

        Raises UserError for a missing or damaged file and for parts that do not fit together.
        """
        parts = open_parts(directory, tokenizer, generator, classes)
        return cls(parts.tokenizer, parts.generator, parts.classes)


BLOCK = 512  # tokens at least that a network on a CPU sees at a time: fewer take longer each
