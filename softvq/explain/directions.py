"""A linear direction in the tokens for a class, a mark or a number, and what it is worth.

Ridge regression on all numbers of all tokens, its penalty chosen by leave-one-out error, which has
a closed form (Allen 1974); a class is 1 against 0. The direction reads a property; to *show* it a
photo is moved along its pattern, the covariance of the tokens with the score (Haufe et al. 2014):
a direction also cancels what has nothing to do with the property, and looks like nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PENALTIES = torch.logspace(-4, 4, 17, dtype=torch.float64)  # of the mean eigenvalue
SHUFFLES = 19  # to beat all of them by luck has a chance of one in twenty
FEWEST_FITTED, FEWEST_HELD_OUT = 6, 3  # photos on either side of a yes or no


@dataclass(frozen=True)
class Target:
    """What is asked of photos: values [N], 0 or 1 for ``yes or no``; nan where it is not known."""

    name: str
    kind: Literal["class", "marked", "number"]
    fitted: Tensor
    held_out: Tensor

    @property
    def enough(self) -> bool:
        """Whether there are photos to learn it from and to test it on."""
        for values, fewest in ((self.fitted, FEWEST_FITTED), (self.held_out, FEWEST_HELD_OUT)):
            known = values[~values.isnan()]
            if self.kind == "number":
                if len(known) < 2 * fewest or known.std() < 1e-9:
                    return False
            elif min(int(known.sum()), len(known) - int(known.sum())) < fewest:
                return False
        return True


class Ridge:
    """Ridge regression on rows x [N, D], solved once for any number of targets.

    Where N < D it is solved in the N x N matrix of inner products.
    """

    def __init__(self, x: Tensor):
        self.centre = x.double().mean(0)
        self.x = x.double() - self.centre
        self.values, self.vectors = torch.linalg.eigh(self.x @ self.x.T)
        self.scale = self.values.clamp_min(0).mean().clamp_min(1e-12)

    def fit(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [D] and constant of y [N], with the penalty of the least leave-one-out error."""
        mean = y.double().mean()
        turned = self.vectors.T @ (y.double() - mean)
        best: tuple[float, Tensor] | None = None
        for penalty in PENALTIES * self.scale:
            kept = self.values.clamp_min(0) / (self.values.clamp_min(0) + penalty)
            leverage = self.vectors.square() @ kept + 1 / len(y)
            left = y.double() - mean - self.vectors @ (kept * turned)
            error = float((left / (1 - leverage).clamp_min(1e-9)).square().mean())
            if best is None or error < best[0]:
                best = error, self.vectors @ (turned / (self.values.clamp_min(0) + penalty))
        assert best is not None
        weights = self.x.T @ best[1]
        return weights, mean - weights @ self.centre


def r_squared(y: Tensor, guess: Tensor) -> float:
    """1 - mean squared error / variance."""
    y, guess = y.double(), guess.double()
    return float(1 - (y - guess).square().mean() / y.var(correction=0).clamp_min(1e-12))


def balanced_accuracy(y: Tensor, guess: Tensor, threshold: float = 0.5) -> float:
    """Mean of the shares of 1s above the threshold and of 0s below; chance is 0.5."""
    above = guess > threshold
    return float((above[y == 1].double().mean() + (~above[y == 0]).double().mean()) / 2)


@dataclass(frozen=True)
class Direction:
    """A direction for a target, tested on held-out photos.

    measure: balanced accuracy, of which chance is 0.5, or R2, of which it is 0.  score: on held-out
    photos.  control: the same of directions fitted to shuffled values, mean and largest of several.
    shares: what each token contributes to the score's variance over held-out photos; their sum is
    1, and a token that works against the others has less than 0.
    real: whether the score is above every control.
    weights [L, C], constant: score = weights . latents + constant.  pattern [L, C]: the move that
    raises the score by 1.  spread: the score's standard deviation over held-out photos.
    scores: of the held-out photos.
    """

    name: str
    kind: str
    fitted: int
    held_out: int
    measure: Literal["balanced_accuracy", "r_squared"]
    score: float
    control: float
    control_largest: float
    shares: list[float]
    weights: Tensor
    constant: float
    pattern: Tensor
    spread: float
    scores: Tensor

    @property
    def real(self) -> bool:
        return self.score > self.control_largest

    def of(self, latents: Tensor) -> Tensor:
        """The score of normalised latents [B, L, C]: [B]."""
        return (latents * self.weights).sum((-2, -1)) + self.constant

    @property
    def carriers(self) -> list[int]:
        """The tokens that carry four fifths of the positive shares, the largest first."""
        return carriers(self.shares)


def carriers(shares: Sequence[float], enough: float = 0.8) -> list[int]:
    """The fewest tokens whose shares sum to ``enough`` of all that are positive, largest first."""
    values = torch.tensor(shares).clamp_min(0)
    order = values.argsort(descending=True, stable=True)
    reached = values[order].cumsum(0) / values.sum().clamp_min(1e-12)
    return order[: int((reached < enough - 1e-6).sum()) + 1].tolist()


def find_direction(
    target: Target, fitted: Tensor, held_out: Tensor, seed: int = 0, ridge: Ridge | None = None
) -> Direction:
    """Fit on normalised latents [N, L, C] and test on others.

    ``ridge``: of ``fitted``, where it is there already; of use if every value is known.
    """
    known, asked = ~target.fitted.isnan(), ~target.held_out.isnan()
    y, want = target.fitted[known], target.held_out[asked]
    shape = fitted.shape[1:]
    if ridge is None or not known.all():
        ridge = Ridge(fitted[known].flatten(1))
    test = held_out.flatten(1).double()
    number = target.kind == "number"
    middle = float(y.double().mean()) if not number else 0.0

    def scored(values: Tensor) -> tuple[float, Tensor, Tensor]:
        weights, constant = ridge.fit(values)
        guess = test[asked] @ weights + constant
        if number:
            return r_squared(want, guess), weights, constant
        # Least squares puts the border of two classes where their sizes pull it: back to the middle
        # between what it gives for either.
        at = ridge.x @ weights + ridge.centre @ weights + constant
        border = (at[values == 1].mean() + at[values == 0].mean()) / 2 if middle else 0.5
        return balanced_accuracy(want, guess, float(border)), weights, constant

    score, weights, constant = scored(y)
    draws = torch.Generator().manual_seed(seed)
    controls = [scored(y[torch.randperm(len(y), generator=draws)])[0] for _ in range(SHUFFLES)]
    scores = test @ weights + constant
    moved = scores - scores.mean()
    parts = ((test - test.mean(0)) * weights).unflatten(1, shape).sum(2)  # [N, L]
    shares = (parts * moved[:, None]).mean(0) / moved.square().mean().clamp_min(1e-12)
    along = ridge.x @ weights
    pattern = ridge.x.T @ along / along.square().sum().clamp_min(1e-12)
    return Direction(
        name=target.name,
        kind=target.kind,
        fitted=len(y),
        held_out=len(want),
        measure="r_squared" if number else "balanced_accuracy",
        score=score,
        control=float(torch.tensor(controls).mean()),
        control_largest=max(controls),
        shares=shares.tolist(),
        weights=weights.view(shape).float(),
        constant=float(constant),
        pattern=pattern.view(shape).float(),
        spread=float(scores.std()),
        scores=scores.float(),
    )


STEPS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations of the score


def walk(direction: Direction, latents: Tensor) -> Tensor:
    """Latents of one photo [L, C], moved along the pattern: [len(STEPS), L, C]."""
    steps = torch.tensor(STEPS)[:, None, None] * direction.spread
    return latents + steps * direction.pattern
