"""Have the photos changed? Windows of what comes in, held against a reference, at a known rate of
false alarms.

Five figures look at a window, each sensitive to something else:

    mmd       squared maximum mean discrepancy of the tokens, Gaussian kernels of three widths
              (Gretton et al. 2012, unbiased)
    energy    energy distance of the tokens (Szekely & Rizzo 2013)
    channels  largest shift, in standard errors, of a channel's mean or spread over the photo
    rebuilt   shift of the log mean square error of the photo that the tokens give back
    health    largest shift of brightness, contrast, sharpness, colour; see softvq.serve.health
    judge     shift of the judge's score, where there is a judge

Thresholds come from permutations: windows drawn out of the reference, against what is left of it,
are what no change looks like. Each figure is divided by its own threshold, and the thresholds are
set together so that one of ``one_in`` such windows exceeds any of them.

A reference of a few windows' size knows its own rare photos alone, and those of a window come on
top: a figure a little above 1 is put to permutations of reference and window together, which is
exact for photos that are exchangeable, however few. What is above 1 then is an alarm, and its rate
is known whatever the photos are.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Self

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from softvq.errors import UserError
from softvq.io import replacing
from softvq.serve.health import NAMES

REFERENCE = "reference.safetensors"
LEAST = 5  # times as many photos in a reference as in a window
PERMUTATIONS = 40  # times one_in, so that 40 of them exceed
AGAIN = 10  # likewise, where a window is looked at again
SURE = 2.0  # times its threshold, from which a figure needs no second look
MOST = 200_000
WIDTHS = (0.5, 1.0, 2.0)  # of the kernels, times the median distance


@dataclass(frozen=True)
class Photo:
    """What is kept of one photo.

    tokens: normalised latents, float32 [k, C].  error: log10 of the mean square error of the
    rebuilt photo, in levels of 0..1.  health: float64 [8].  score: the judge's, NaN without one.
    name: for people.
    """

    tokens: np.ndarray
    error: float
    health: np.ndarray
    score: float
    name: str = ""


@dataclass(frozen=True)
class Photos:
    """Many: tokens float32 [n, D], scalars float64 [n, S] named by ``names``."""

    tokens: np.ndarray
    scalars: np.ndarray
    channels: int

    @classmethod
    def of(cls, photos: Sequence[Photo]) -> Self:
        tokens = np.stack([photo.tokens for photo in photos])
        scalars = np.stack([
            np.concatenate([
                photo.tokens.mean(0), np.log(photo.tokens.std(0) + 1e-6), [photo.error],
                photo.health, [photo.score],
            ])
            for photo in photos
        ])  # fmt: skip
        return cls(tokens.reshape(len(tokens), -1), scalars, tokens.shape[2])

    def parts(self) -> dict[str, slice]:
        """Which scalars belong to which figure."""
        c = self.channels
        h = 2 * c + 1 + len(NAMES)
        return {
            "channels": slice(0, 2 * c),
            "rebuilt": slice(2 * c, 2 * c + 1),
            "health": slice(2 * c + 1, h),
            "judge": slice(h, h + 1),
        }


FIGURES = ("mmd", "energy", "channels", "rebuilt", "health", "judge")


@dataclass(frozen=True)
class Verdict:
    """Of a window. figures: each divided by its threshold, so that more than 1 is an alarm.

    shifts: of every scalar, in standard errors, with its sign.  drivers: the photos of the window
    that stand out most, by their numbers, worst first.
    """

    figures: dict[str, float]
    shifts: np.ndarray
    drivers: list[int]

    @property
    def alarm(self) -> bool:
        return max(self.figures.values()) > 1


def check_reference(count: int, window: int) -> None:
    """Raises UserError for a reference of too few photos for windows of so many."""
    if count < LEAST * window:
        raise UserError(
            f"a reference of {count} photos for windows of {window}: give {LEAST * window} "
            f"photos or more, or windows of {count // LEAST} or fewer"
        )


class Detector:
    """A reference that windows of ``window`` photos are held against.

    ``one_in``: the false alarm that is put up with. The reference needs five times as many photos
    as a window; ten or more make the rate steadier. Raises UserError for fewer.
    """

    def __init__(
        self,
        reference: Photos,
        window: int,
        one_in: int = 1000,
        seed: int = 0,
        permutations: int = PERMUTATIONS,
    ):
        check_reference(len(reference.tokens), window)
        self.reference, self.window, self.one_in = reference, window, one_in
        self.mean, self.std = reference.scalars.mean(0), reference.scalars.std(0) + 1e-9
        self.known = np.isfinite(self.mean)
        self.squared = np.square(reference.tokens).sum(1)
        distance = self._distances(reference.tokens, self.squared)
        upper = distance[np.triu_indices(len(distance), 1)]
        self.median = float(np.median(upper)) or 1.0
        self.kernel, self.distance = self._kernel(distance), distance
        self.within = _off_diagonal(self.kernel), _off_diagonal(self.distance)
        self.thresholds = self._calibrate(np.random.default_rng(seed), permutations)

    def _distances(self, tokens: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Euclidean, of tokens [n, D] to the reference: float32 [n, m]."""
        product = tokens @ self.reference.tokens.T
        square = squared[:, None] + self.squared[None] - 2 * product
        return np.sqrt(np.maximum(square, 0))

    def _kernel(self, distance: np.ndarray) -> np.ndarray:
        square = np.square(distance / self.median)
        return np.mean([np.exp(-square / (2 * w * w)) for w in WIDTHS], axis=0)

    def _calibrate(self, random: np.random.Generator, permutations: int) -> np.ndarray:
        """Thresholds [6] that one of ``one_in`` windows of the reference exceeds."""
        count, n = len(self.reference.tokens), self.window
        draws, found = min(permutations * self.one_in, MOST), []
        for first in range(0, draws, 1000):
            some = min(1000, draws - first)
            order = np.argpartition(random.random((some, count), np.float32), n, axis=1)[:, :n]
            member = np.zeros((some, count), np.float32)
            np.put_along_axis(member, order, 1, axis=1)
            found.append(self._drawn(member))
        values = np.concatenate(found)
        return _joint(values, 1 / self.one_in)

    def _drawn(self, member: np.ndarray) -> np.ndarray:
        """Figures [p, 6] of windows out of the reference; ``member`` 0 or 1, float32 [p, m]."""
        n, rest = self.window, member.shape[1] - self.window
        figures = np.zeros((len(member), len(FIGURES)))
        for column, matrix, sign in ((0, self.kernel, 1.0), (1, self.distance, -1.0)):
            product = member @ matrix
            inside = np.einsum("ij,ij->i", product, member)
            touched, whole = product.sum(1), float(matrix.sum())
            diagonal = float(matrix[0, 0])
            own = (inside - n * diagonal) / (n * (n - 1))
            others = (whole - 2 * touched + inside - rest * diagonal) / (rest * (rest - 1))
            between = (touched - inside) / (n * rest)
            figures[:, column] = sign * (own + others - 2 * between)
        total = self.reference.scalars.sum(0)
        some = member.astype(np.float64) @ np.where(self.known, self.reference.scalars, 0)
        shift = (some / n - (np.where(self.known, total, 0) - some) / rest) / self.std
        shift = np.abs(shift) / np.sqrt(1 / n + 1 / rest)
        for name, part in self.reference.parts().items():
            figures[:, FIGURES.index(name)] = np.where(self.known[part], shift[:, part], 0).max(1)
        return figures

    def look(self, window: Photos) -> Verdict:
        """Hold a window against the reference. ValueError for another number of photos."""
        n, m = self.window, len(self.reference.tokens)
        if len(window.tokens) != n:
            raise ValueError(f"windows are of {n} photos, not {len(window.tokens)}")
        squared = np.square(window.tokens).sum(1)
        across = self._distances(window.tokens, squared)
        square = squared[:, None] + squared[None] - 2 * window.tokens @ window.tokens.T
        own = np.sqrt(np.maximum(square, 0))
        np.fill_diagonal(own, 0)
        kernel = self._kernel(across)
        mmd = _off_diagonal(self._kernel(own)) + self.within[0] - 2 * float(kernel.mean())
        energy = 2 * float(across.mean()) - _off_diagonal(own) - self.within[1]
        shifts = (window.scalars.mean(0) - self.mean) / self.std / np.sqrt(1 / n + 1 / m)
        shifts = np.where(self.known & np.isfinite(shifts), shifts, 0)
        values = {"mmd": mmd, "energy": energy}
        values |= {name: float(np.abs(shifts[p]).max()) for name, p in window.parts().items()}
        figures = self._by_threshold([values[name] for name in FIGURES])
        if 1 < max(figures.values()) < SURE:
            figures = self._again(window)
        return Verdict(figures, shifts, self._drivers(window, kernel))

    def _by_threshold(self, values: Sequence[float]) -> dict[str, float]:
        return {
            name: float(values[i] / self.thresholds[i])
            for i, name in enumerate(FIGURES)
            if self.thresholds[i] > 0
        }

    def _again(self, window: Photos) -> dict[str, float]:
        """The figures of a window among all windows of reference and window together."""
        own = self.reference
        both = Photos(
            np.concatenate([own.tokens, window.tokens]),
            np.concatenate([own.scalars, window.scalars]), own.channels,
        )  # fmt: skip
        pooled = Detector(both, self.window, self.one_in, permutations=AGAIN)
        member = np.zeros((1, len(both.tokens)), np.float32)
        member[:, len(own.tokens) :] = 1
        return pooled._by_threshold(pooled._drawn(member)[0].tolist())

    def _drivers(self, window: Photos, kernel: np.ndarray) -> list[int]:
        """Photos of the window, those first that stand furthest from the reference."""
        z = np.abs(window.scalars - self.mean) / self.std
        z = np.where(self.known & np.isfinite(z), z, 0).max(1)
        strange = -np.log(kernel.mean(1) + 1e-12)
        rank = strange.argsort().argsort() + z.argsort().argsort()
        return np.argsort(-rank, kind="stable").tolist()


def _off_diagonal(matrix: np.ndarray) -> float:
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1)))


def _joint(values: np.ndarray, rate: float) -> np.ndarray:
    """Thresholds [F], one quantile of each column of [p, F], that ``rate`` of the rows exceed."""
    ranks = values.argsort(0).argsort(0) / len(values)
    constant = values.max(0) == values.min(0)
    ranks[:, constant] = 0
    level = np.quantile(ranks.max(1), 1 - rate)
    thresholds = np.array([np.quantile(column, level) for column in values.T])
    return np.where(constant, 0, thresholds)


# ---- what changed, in words ----


@dataclass(frozen=True)
class Words:
    """One language of words.yaml. moved: of what falls and of what rises, by its name."""

    health: str
    tokens: str
    rebuilt: str
    judge: str
    none: str
    between: str
    moved: dict[str, tuple[str, str]]


@cache
def words() -> dict[str, Words]:
    """By language."""
    text = (files("softvq") / "serve" / "words.yaml").read_text(encoding="utf-8")
    return {language: Words(**said) for language, said in yaml.safe_load(text).items()}


def explain(verdict: Verdict, photos: Photos, language: str = "en") -> list[str]:
    """What a verdict means, a sentence for each finding, the largest first."""
    told, parts, figures = words()[language], photos.parts(), verdict.figures
    said: list[tuple[float, str]] = []
    if figures["health"] > 1:
        shifts = verdict.shifts[parts["health"]]
        large = np.flatnonzero(np.abs(shifts) > np.abs(shifts).max() / 2)
        most = sorted(large, key=lambda i: -abs(shifts[i]))[:3]
        what = told.between.join(told.moved[NAMES[i]][int(shifts[i] > 0)] for i in most)
        said.append((figures["health"], told.health.format(what=what)))
    for name, sentence in (("rebuilt", told.rebuilt), ("judge", told.judge)):
        if figures.get(name, 0) > 1:
            what = told.moved[name][int(verdict.shifts[parts[name]][0] > 0)]
            said.append((figures[name], sentence.format(what=what)))
    if moved := [name for name in FIGURES[:3] if figures.get(name, 0) > 1]:
        what = ", ".join(f"{name} {figures[name]:.1f}x" for name in moved)
        said.append((max(figures[name] for name in moved), told.tokens.format(what=what)))
    return [text for _, text in sorted(said, reverse=True)] or [told.none]


# ---- a reference as a file ----


def save_reference(photos: Photos, folder: str | Path, tokenizer: str) -> None:
    """Write ``reference.safetensors``; ``tokenizer``: fingerprint of whose tokens they are."""
    tensors = {"tokens": photos.tokens.astype(np.float32), "scalars": photos.scalars}
    about = {"tokenizer": tokenizer, "channels": json.dumps(photos.channels)}
    with replacing(Path(folder) / REFERENCE) as partial:
        save_file(tensors, partial, about)


def load_reference(folder: str | Path, tokenizer: str) -> Photos:
    """Raises UserError for a missing or damaged file, and for the tokens of another tokenizer."""
    path = Path(folder) / REFERENCE
    try:
        with safe_open(path, "np") as file:
            about = file.metadata() or {}
            tokens, scalars = file.get_tensor("tokens"), file.get_tensor("scalars")
        photos = Photos(tokens, scalars, int(json.loads(about["channels"])))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `softvq monitor` writes one") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, it is made again") from None
    if about.get("tokenizer") != tokenizer:
        raise UserError(f"{path}: of another tokenizer; delete it, and give the photos again")
    return photos


def rolling(photos: Iterable[Photo], window: int, stride: int) -> Iterable[list[Photo]]:
    """Every window of ``window`` photos in a row, ``stride`` photos apart."""
    held: list[Photo] = []
    fresh = 0
    for photo in photos:
        held.append(photo)
        fresh += 1
        if len(held) > window:
            held.pop(0)
        if len(held) == window and fresh >= stride:
            fresh = 0
            yield list(held)
