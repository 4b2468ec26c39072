"""Everything about a tokenizer's tokens on somebody's photos: Explanation and Pictures.

tokens of training photos   -> how each varies; directions are fitted
held-out photos             -> what is lost without each; where each acts; directions tested
the same, weights shuffled  -> what a test says of a network that knows nothing
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from softvq import __version__, images
from softvq.coding import evenly
from softvq.errors import UserError
from softvq.explain.contributions import (
    Errors,
    errors_without_each,
    prefix_counts,
    prefixes,
    removals,
    with_first,
)
from softvq.explain.decision import Decision, Judge, decide
from softvq.explain.directions import Direction, Ridge, find_direction, walk
from softvq.explain.edits import edits
from softvq.explain.faithful import ORDERS, Checks, check, deletion_counts, swap_pairs
from softvq.explain.maps import Look, coarse, influence, look, places, reading
from softvq.explain.marked import Mark, find_carriers
from softvq.explain.mixtures import SHOWN, codeword_latents, mixture
from softvq.explain.photos import CLASSES, Photos, targets_of
from softvq.explain.records import (
    ClassLoss,
    DirectionFacts,
    Explanation,
    PhotoFacts,
    Token,
    TokenizerFacts,
)
from softvq.explain.variation import AT_ONCE, Variation, latents_of, mean_square, pictures_of
from softvq.fingerprint import fingerprint
from softvq.precision import computing
from softvq.tokenizer import Tokenizer

MOST_TOKENS = 256
EXAMPLES = 4  # photos at either end of a direction
MOVED = 2.0  # standard deviations, in the pictures of less and more
THUMBNAIL = 96  # pixels of small pictures


@dataclass(frozen=True)
class Effort:
    """What is looked at; photos are spread evenly. 100 of 256 pixels and 64 tokens take two cores
    less than three minutes.

    fitted: training photos whose tokens are read, and held-out ones for directions.
    removed: tokens from all photos together; beyond, most photos lose every second, third, .. one.
    checked: photos that every token is removed from, and then tokens in several orders.
    mapped: of those, photos with maps, which the eye looks at without each token.
    probed: moves of a token that a map is a mean of.  swapped: swaps that maps are tested by.
    marked: photos whose marks are looked for.  mixed: photos whose codewords are looked at.
    """

    fitted: int = 1000
    removed: int = 1280
    checked: int = 12
    mapped: int = 4
    probed: int = 2
    swapped: int = 30
    marked: int = 8
    mixed: int = 16


FULL = Effort()
BRIEF = Effort(fitted=200, removed=0, checked=8, mapped=2, probed=1, swapped=12, marked=2, mixed=8)


@dataclass
class Pictures:
    """What the page shows, uint8. P mapped photos, L tokens, K prefix counts.

    photos [P, H, W, 3].  firsts [P, K, H, W, 3]: from the first so many tokens.
    acts, reads [P, L, h, w]: each map over its own largest value, 0 to 255.
    scales [2, P, L]: those largest values, of acts and of reads.
    moved [P, L, 2, h, w, 3]: less and more of what a token does most.
    lost [P, L]: dB without each token.  firsts_db [P, K].
    walks: per direction [5, H, W, 3].  examples: per direction, most then least [2 n, h, w, 3].
    words [n, H, W, 3]: the strongest token of the first photo, as it is and then each of the
    codewords that it mixes alone.
    edits [8, H, W, 3].  marks: per mark [4, H, W, 3].  decided: photo and map [H, W], or None.
    """

    photos: np.ndarray
    firsts: np.ndarray
    firsts_db: np.ndarray
    acts: np.ndarray
    reads: np.ndarray
    scales: np.ndarray
    moved: np.ndarray
    lost: np.ndarray
    edits: np.ndarray
    walks: list[np.ndarray] = field(default_factory=list)
    examples: list[np.ndarray] = field(default_factory=list)
    words: np.ndarray | None = None
    marks: list[np.ndarray] = field(default_factory=list)
    decided: tuple[np.ndarray, np.ndarray] | None = None


def explain(
    tokenizer: Tokenizer,
    photos: Photos,
    count: int = 100,
    judge: tuple[str, Judge] | None = None,
    seed: int = 0,
    progress: bool = True,
    precision: str = "fp32",
    effort: Effort = FULL,
) -> tuple[Explanation, Pictures]:
    """Find out what each token of a tokenizer means on photos.

    ``count``: held-out photos that tokens are removed from, evenly spread.  ``judge``: a name, and
    what makes a score of normalised latents [B, L, C]; by default the best direction that was
    found, of marks before classes.  ``precision``: a key of PRECISIONS, or "auto", see
    :mod:`softvq.precision`.  ``effort``: FULL, BRIEF (a third of the time), or one's own.

    Raises UserError for a tokenizer with more than 256 tokens, and for fewer than 4 training photos
    or 2 held-out ones.
    """
    _check(tokenizer, photos)
    modes = [(part, part.training) for part in tokenizer.modules()]
    asked = [(weight, weight.requires_grad) for weight in tokenizer.parameters()]
    tokenizer.eval().requires_grad_(False)
    try:
        facts = _facts(tokenizer)  # its fingerprint is that of the weights as they are
        with _Bar(progress) as bar, computing(precision, tokenizer):
            return _Work(tokenizer, photos, count, judge, seed, bar, effort).run(facts)
    finally:
        for part, training in modes:
            part.training = training
        for weight, needed in asked:
            weight.requires_grad_(needed)


def _check(tokenizer: Tokenizer, photos: Photos) -> None:
    if not isinstance(tokenizer, Tokenizer):
        raise UserError("tokens are explained of tokenizers of softvq, not of other autoencoders")
    if tokenizer.config.tokens > MOST_TOKENS:
        raise UserError(
            f"this tokenizer has {tokenizer.config.tokens} tokens, too many to explain one by one; "
            f"give one of {MOST_TOKENS} or fewer"
        )
    if len(photos.fitted) < 4 or len(photos.held_out) < 2:
        raise UserError(
            f"{len(photos.fitted)} training photos and {len(photos.held_out)} held-out ones; to "
            "see how tokens vary takes 4 and 2 or more"
        )


class _Bar:
    """Pictures encoded, decoded or looked at, of those to come, and the step that they are for."""

    def __init__(self, shown: bool):
        self.bar = tqdm(total=0, unit=" pictures", disable=not shown)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def expect(self, total: int) -> None:
        self.bar.reset(total)

    @contextmanager
    def stage(self, what: str) -> Iterator[Any]:
        self.bar.set_description(what)
        yield self.bar.update

    def finish(self) -> None:
        self.bar.set_description("done")
        self.bar.update(self.bar.total - self.bar.n)


class _Work:
    """One run: what its steps share."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        photos: Photos,
        count: int,
        judge: tuple[str, Judge] | None,
        seed: int,
        bar: _Bar,
        effort: Effort,
    ):
        self.tokenizer, self.photos, self.judge = tokenizer, photos, judge
        self.seed, self.bar, self.effort = seed, bar, effort
        held_out = photos.held_out
        chosen = np.linspace(0, len(held_out) - 1, min(count, len(held_out))).astype(int)
        self.rows = _with_marks(chosen, photos.masks)
        self.names = [held_out.names[i] for i in self.rows]
        self.pictures = images.to_tensor(np.asarray(held_out.images[self.rows]))
        self.labels = held_out.labels[self.rows]
        self.masks = None if photos.masks is None else photos.masks[self.rows]
        if photos.focus:
            self.names.insert(0, photos.focus[0])
            self.pictures = torch.cat([photos.focus[1][None], self.pictures])
            self.labels = np.concatenate([[-1], self.labels])
            if self.masks is not None:
                self.masks = np.concatenate([np.zeros_like(self.masks[:1]), self.masks])

    def run(self, facts: TokenizerFacts) -> tuple[Explanation, Pictures]:
        tokenizer, bar = self.tokenizer, self.bar
        count, measured = tokenizer.config.tokens, len(self.pictures)
        effort = self.effort
        mapped, checked = min(effort.mapped, measured), min(effort.checked, measured)
        marked = 0 if self.masks is None else min(effort.marked, int(self.masks.any((1, 2)).sum()))
        deletions = len(deletion_counts(count))
        self.shown = shown = self._shown(mapped)
        spread = np.linspace(0, measured - 1, checked).astype(int).tolist()
        self.checked = list(dict.fromkeys([*shown, *spread]))[:checked]
        self.removed = removals(measured, count, effort.removed, self.checked)
        counts = prefix_counts(count)
        fitted, self.fitted_rows = evenly(self.photos.fitted, effort.fitted)
        held_out, self.test_rows = evenly(self.photos.held_out, effort.fitted)
        bar.expect(
            len(self.fitted_rows)
            + len(self.test_rows)
            + 3 * measured
            + int(self.removed.sum())
            + mapped * (count * (effort.probed + 6) + 2 * len(counts))
            + checked * (deletions * (ORDERS + 2) + count)
            + 3 * effort.swapped
            + marked * 2 * count
        )
        with bar.stage("reading photos") as done:
            self.fitted = _encoded(tokenizer, fitted, done)
            self.test = _encoded(tokenizer, held_out, done)
            self.variation = Variation.of(self.fitted)
            self.latents = _encoded(tokenizer, self.pictures, done)
        mean = self.variation.mean
        with bar.stage("what each token is worth") as done:
            self.errors = errors_without_each(
                tokenizer, self.pictures, self.latents, mean, self.masks, self.removed, shown, done
            )
            order = self.errors.lost.nanmean(0).argsort(descending=True).tolist()
            self.firsts = torch.stack(
                [with_first(tokenizer, self.latents[shown], mean, order, k) for k in counts], dim=1
            )
            kept = prefixes(self.pictures[shown], self.firsts, counts)
            done(2 * len(counts) * mapped)
        acts, reads = self._maps(shown)
        moved, looks = self._moved(shown)
        checks = self._checks(acts)
        with bar.stage("what directions mean"):
            directions, too_few = self._directions()
        with bar.stage("what tokens are made of"):
            some = list(dict.fromkeys([*shown, *range(measured)]))[: effort.mixed]
            mixed = mixture(tokenizer, self.pictures[some])
        with bar.stage("mixing two photos"):
            pair = (shown[0], self._unlike(shown[0]))
            edited, edit_pictures = edits(
                tokenizer, self.latents[pair[0]], self.latents[pair[1]], order, self.variation
            )
        marks, mark_pictures = self._marks(marked)
        decision, decided = self._decision(directions, shown[0])
        small_acts = torch.stack([coarse(maps) for maps in acts])
        small_reads = torch.stack([coarse(maps) for maps in reads])
        explanation = Explanation(
            version=__version__,
            tokenizer=facts,
            photos=PhotoFacts(
                fitted=len(self.fitted),
                held_out=len(self.test),
                measured=self.names,
                each=int(self.removed.sum(0).min()),
                mapped=shown,
                classes=self.photos.held_out.classes,
            ),
            psnr=float(-10 * self.errors.full.log10().mean()),
            tokens=_tokens(small_acts, small_reads, looks, self.errors),
            order=order,
            prefixes=kept,
            directions=[self._told(direction) for direction in directions],
            too_few=too_few,
            mixture=mixed,
            edit_photos=[self.names[i] for i in pair],
            edits=edited,
            checks=checks,
            by_class=self._by_class(),
            marks=marks,
            decision=decision,
        )
        with bar.stage("drawing the page"):
            pictures = self._pictures(shown, small_acts, small_reads, moved, edit_pictures)
            z = self.latents[shown[0]]
            pictures.walks = [
                images.to_uint8(pictures_of(tokenizer, walk(direction, z)))
                for direction in directions
            ]
            pictures.examples = [self._examples(direction) for direction in directions]
            pictures.marks = [images.to_uint8(four) for four in mark_pictures]
            pictures.decided = decided
            if mixed.focus:
                words = [choice.codeword for choice in mixed.focus[order[0]][:SHOWN]]
                both = torch.cat([z[None], codeword_latents(tokenizer, z, order[0], words)])
                pictures.words = images.to_uint8(pictures_of(tokenizer, both))
        bar.finish()
        return explanation, pictures

    # ---- steps ----

    def _shown(self, count: int) -> list[int]:
        """Rows of the photos with maps: the one given or the best marked one, then others."""
        first = 0 if self.photos.focus else len(self.pictures) // 2
        if not self.photos.focus and self.masks is not None and self.masks.any():
            first = int(self.masks.sum((1, 2)).argmax())
        others = [int(i) for i in np.linspace(0, len(self.pictures) - 1, count) if i != first]
        return list(dict.fromkeys([first, *others]))[:count]

    def _unlike(self, row: int) -> int:
        """The measured photo whose tokens are farthest from those of ``row``."""
        return int((self.latents - self.latents[row]).square().sum((1, 2)).argmax())

    def _maps(self, shown: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        moves = self.variation.moves(self.effort.probed, self.seed)
        acts, reads = [], []
        count = len(self.variation.mean)
        with self.bar.stage("where tokens act") as done:
            for row in shown:
                maps = []
                for some in torch.arange(count).split(max(1, AT_ONCE // self.effort.probed)):
                    tokens = some.tolist()
                    maps.append(influence(self.tokenizer, self.latents[row], moves, tokens))
                    done(len(moves) * len(tokens))
                acts.append(torch.cat(maps))
                reads.append(reading(self.tokenizer, self.pictures[row], self.variation))
                done(2 * count)
        return acts, reads

    def _moved(self, shown: list[int]) -> tuple[np.ndarray, list[Look]]:
        """Small pictures of less and more of each token, [P, L, 2, h, w, 3], and what changes."""
        main = MOVED * self.variation.main
        small, changes = [], []
        with self.bar.stage("less and more of each token") as done:
            for row in shown:
                step = torch.diag_embed(torch.ones(len(main)))[..., None] * main
                z = self.latents[row]
                both = torch.stack([z - step, z + step], dim=1).flatten(0, 1)
                pictures = pictures_of(self.tokenizer, both)
                thumbnails = _small(images.to_uint8(pictures))
                small.append(thumbnails.reshape(len(z), 2, *thumbnails.shape[1:]))
                changes.append(pictures[1::2] - pictures[::2])
                done(len(both))
        looks = [look(torch.stack([c[token] for c in changes])) for token in range(len(main))]
        return np.stack(small), looks

    def _checks(self, acts: list[Tensor]) -> Checks:
        shown = self.shown
        place = {row: i for i, row in enumerate(shown)}
        photos, tokens = self.latents.shape[:2]
        with self.bar.stage("testing what was said") as done:
            return check(
                self.tokenizer,
                self.pictures,
                self.latents,
                self.variation.mean,
                self.errors,
                self.checked,
                swap_pairs(shown, photos, tokens, self.effort.swapped, self.seed),
                lambda photo, token: acts[place[photo]][token],
                self.seed,
                done,
            )

    def _directions(self) -> tuple[list[Direction], list[str]]:
        targets = targets_of(self.photos, self.fitted_rows, self.test_rows)
        enough = [target for target in targets if target.enough]
        ridge = Ridge(self.fitted.flatten(1)) if enough else None
        found = [
            find_direction(target, self.fitted, self.test, self.seed, ridge) for target in enough
        ]
        return found, [target.name for target in targets if not target.enough]

    def _told(self, direction: Direction) -> DirectionFacts:
        least, most = self._ends(direction)
        names = self.photos.held_out.names
        return DirectionFacts(
            name=direction.name,
            kind=direction.kind,
            fitted=direction.fitted,
            held_out=direction.held_out,
            measure=direction.measure,
            score=direction.score,
            control=direction.control,
            control_largest=direction.control_largest,
            real=direction.real,
            shares=direction.shares,
            carriers=direction.carriers,
            most=[names[i] for i in most],
            least=[names[i] for i in least],
        )

    def _ends(self, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the held-out photos of the least and of the highest score."""
        ranked = self.test_rows[direction.scores.argsort().numpy()]
        count = min(EXAMPLES, len(ranked) // 2)
        return ranked[:count], ranked[::-1][:count]

    def _examples(self, direction: Direction) -> np.ndarray:
        least, most = self._ends(direction)
        rows = np.concatenate([most, least])
        return _small(np.asarray(self.photos.held_out.images[rows]))

    def _by_class(self) -> list[ClassLoss]:
        classes = self.photos.held_out.classes
        lost, found = self.errors.lost, []
        for label, name in enumerate(classes):
            mine = torch.from_numpy(self.labels == label)
            mean = lost[mine].nanmean(0)
            if len(classes) <= CLASSES and not mean.isnan().any():
                found.append(ClassLoss(name, int(mine.sum()), mean.tolist()))
        return found

    def _marks(self, count: int) -> tuple[list[Mark], list[Tensor]]:
        marks: list[Mark] = []
        pictures: list[Tensor] = []
        if self.masks is None or not count:
            return marks, pictures
        there = np.flatnonzero(self.masks.any((1, 2)))
        chosen = there[np.linspace(0, len(there) - 1, count).astype(int)]
        with self.bar.stage("which tokens carry the marks") as done:
            for row in chosen:
                mark, four = find_carriers(
                    self.tokenizer, self.pictures[row], self.masks[row], int(row)
                )
                marks.append(mark)
                pictures.append(four)
                done(2 * self.tokenizer.config.tokens)
        return marks, pictures

    def _decision(
        self, directions: list[Direction], row: int
    ) -> tuple[Decision | None, tuple[np.ndarray, np.ndarray] | None]:
        """Explain the photo in focus to the judge, beside the average of those without."""
        chosen = self._judge(directions, row)
        if chosen is None:
            return None, None
        name, judge, baseline = chosen
        picture, latents = self.pictures[row], self.latents[row]
        reference = pictures_of(self.tokenizer, baseline[None])[0]
        found, places = decide(self.tokenizer, name, judge, picture, latents, reference, baseline)
        return found, (images.to_uint8(picture), places.numpy())

    def _judge(self, directions: list[Direction], row: int) -> tuple[str, Judge, Tensor] | None:
        """Its name, itself, and the latents of the average photo that it finds nothing in."""
        if self.judge is not None:
            name, judge = self.judge
            with torch.no_grad():
                low = judge(self.fitted).argsort()[: max(1, len(self.fitted) // 2)]
            return name, judge, self.fitted[low.cpu()].mean(0)
        real = [d for d in directions if d.real and d.kind != "number"]
        label = self.labels[row]
        classes = self.photos.held_out.classes
        own = classes[label] if classes and label >= 0 else None
        real.sort(key=lambda d: (d.kind != "marked", d.name != own, -d.score))
        if not real:
            return None
        best = real[0]
        # The average of the lower half of the training photos by this score.
        low = best.of(self.fitted).argsort()[: max(1, len(self.fitted) // 2)]
        return best.name, best.of, self.fitted[low].mean(0)

    def _pictures(
        self, shown: list[int], acts: Tensor, reads: Tensor, moved: np.ndarray, edited: Tensor
    ) -> Pictures:
        errors = mean_square(self.firsts, self.pictures[shown][:, None]).mean((2, 3))
        return Pictures(
            photos=images.to_uint8(self.pictures[shown]),
            firsts=images.to_uint8(self.firsts),
            firsts_db=(-10 * errors.clamp_min(1e-8).log10()).numpy(),
            acts=_levels(acts),
            reads=_levels(reads),
            scales=torch.stack([m.amax((-2, -1)) for m in (acts, reads)]).numpy(),
            moved=moved,
            lost=self.errors.lost[shown].numpy(),
            edits=images.to_uint8(edited),
        )


def _with_marks(chosen: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """The chosen rows; if none of them is marked, some that are come first."""
    if masks is None or masks[chosen].any():
        return chosen
    marked = np.flatnonzero(masks.any((1, 2)))[: max(1, len(chosen) // 2)]
    return np.unique(np.concatenate([marked, chosen[len(marked) :]]))


def _encoded(
    tokenizer: Tokenizer,
    pictures: Iterable[Tensor],
    done: Callable[[int], object] = lambda count: None,
) -> Tensor:
    parts = []
    left = iter(pictures)
    while some := list(islice(left, AT_ONCE)):
        parts.append(latents_of(tokenizer, torch.stack(some)))
        done(len(some))
    return torch.cat(parts)


def _facts(tokenizer: Tokenizer) -> TokenizerFacts:
    config = tokenizer.config
    return TokenizerFacts(
        config.network,
        config.bottleneck,
        config.nested,
        config.tokens,
        config.channels,
        config.height,
        config.width,
        fingerprint(tokenizer),
    )


def _tokens(acts: Tensor, reads: Tensor, looks: list[Look], errors: Errors) -> list[Token]:
    lost, inside, margin = errors.lost, errors.lost_inside, errors.margin.tolist()
    eye = errors.eye.nanmean(0)
    within = None if inside is None else inside.nanmean(0).tolist()
    within = None if within is None or any(map(math.isnan, within)) else within
    known = lost.nan_to_num(-torch.inf)  # of the photos that lost this token
    most = known.topk(max(1, int((~lost.isnan()).sum(0).min()) // 10), dim=0).values.mean(0)
    return [
        Token(
            act,
            read,
            looks[i],
            float(lost[:, i].nanmean()),
            None if math.isnan(margin[i]) else margin[i],
            float(most[i]),
            float(eye[i]),
            within[i] if within else None,
        )
        for i, (act, read) in enumerate(zip(places(acts), places(reads), strict=True))
    ]


def _levels(maps: Tensor) -> np.ndarray:
    """Maps [..., h, w], each over its largest value, as uint8."""
    top = maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)
    return (255 * maps / top).round().to(torch.uint8).numpy()


def _small(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3], the longer side THUMBNAIL pixels or fewer."""
    from PIL import Image

    height, width = pictures.shape[1:3]
    scale = min(1.0, THUMBNAIL / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return np.stack([np.asarray(images.fit(Image.fromarray(p), size)) for p in pictures])
