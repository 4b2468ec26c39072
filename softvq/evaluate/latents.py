"""What latents hold: how well they are classified, how many directions and codewords they use.

Latents are [N, D], numpy or torch, one row per image (flatten [N, L, C] first); labels are integers
[N] from 0. Arithmetic is float64 on the CPU; results are Python floats.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.evaluate.pixels import psnr_per_image
from softvq.evaluate.statistics import as_features
from softvq.images import to_uint8
from softvq.io import check_finite
from softvq.quality import Budget, encode_within
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.bottleneck import codebook_stats

Array = np.ndarray | Tensor

ROWS = 1024  # images whose distances are held at a time


def _labelled(latents: Array, labels: Array, least: int = 1) -> tuple[Tensor, Tensor]:
    x, y = as_features(latents, least), torch.as_tensor(labels).cpu().long()
    if y.shape != x.shape[:1]:
        raise ValueError(f"{x.shape[0]} images and labels of shape {list(y.shape)}")
    if y.min() < 0:
        raise ValueError(f"labels count from 0, got {int(y.min())}")
    return x, y


@dataclass
class LinearProbe:
    """A multinomial logistic regression: weight [classes, D] and bias [classes], of mean 0."""

    weight: Tensor
    bias: Tensor

    def logits(self, latents: Array) -> Tensor:
        """[N, D] -> [N, classes], float64."""
        return as_features(latents, least=1) @ self.weight.T + self.bias

    def accuracy(self, latents: Array, labels: Array) -> float:
        """Share of rows whose largest logit is their label's."""
        _, y = _labelled(latents, labels)
        return float((self.logits(latents).argmax(dim=1) == y).double().mean())


def linear_probe(latents: Array, labels: Array, c: float = 1.0) -> LinearProbe:
    """Fit a linear classifier to its optimum: the minimum of

        c sum_i cross_entropy(W x_i + b, y_i) + |W|^2 / 2,

    scikit-learn's ``LogisticRegression(C=c)``: the bias is free, nothing is standardised, so give
    latents of unit scale (``Tokenizer.normalize``). Found by L-BFGS; the problem is convex, so
    there is one answer. ValueError for one class only, or c not above 0.
    """
    x, y = _labelled(latents, labels, least=2)
    classes = int(y.max()) + 1
    if classes < 2 or not c > 0:
        raise ValueError(f"a probe needs two classes and c above 0, got {classes} and {c}")
    # Centred columns are the same problem with another bias, and a far better conditioned one.
    centre = x.mean(0)
    x = x - centre
    # The optimum lies in the span of the rows: where there are fewer rows than columns, it is
    # sought in that many coordinates.
    axes = torch.linalg.qr(x.T).Q if x.shape[0] < x.shape[1] else torch.eye(x.shape[1]).to(x)
    x = x @ axes
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=5000,
        tolerance_grad=1e-9 * c * x.shape[0],
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = c * F.cross_entropy(F.linear(x, weight, bias), y, reduction="sum")
        loss = loss + weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(objective)
    w = weight.detach() @ axes.T
    b = bias.detach() - w @ centre
    return LinearProbe(w, b - b.mean())


def knn_accuracy(
    latents: Array, labels: Array, test_latents: Array, test_labels: Array, k: int = 20
) -> float:
    """Share of test images whose k nearest others (Euclidean) mostly have their label.

    A tie goes to the smallest label. ValueError unless 1 <= k <= the number of images.
    """
    x, y = _labelled(latents, labels)
    test, want = _labelled(test_latents, test_labels)
    if not 1 <= k <= x.shape[0]:
        raise ValueError(f"{k} neighbours of {x.shape[0]} images")
    if x.shape[1] != test.shape[1]:
        raise ValueError(f"latents of {x.shape[1]} and of {test.shape[1]} numbers do not compare")
    centre = x.mean(0)  # far from the origin cdist would lose digits
    votes = []
    for rows in (test - centre).split(ROWS):
        nearest = torch.cdist(rows, x - centre).topk(k, largest=False).indices
        votes.append(F.one_hot(y[nearest], int(y.max()) + 1).sum(dim=1).argmax(dim=1))
    return float((torch.cat(votes) == want).double().mean())


def effective_rank(latents: Array) -> float:
    """exp of the entropy of the singular values over their sum, centred (Roy & Vetterli 2007).

    Between 1 and the smaller of D and N - 1: how many directions the latents make use of.
    """
    x = as_features(latents)
    values = torch.linalg.svdvals(x - x.mean(0))
    p = values / values.sum()
    return float(torch.exp(-torch.xlogy(p, p).sum())) if values.sum() > 0 else 1.0


def codebook_use(indices: Array, codewords: int) -> tuple[float, float]:
    """Share of codewords that are some token's nearest, and perplexity, over a whole set.

    indices, of any shape, count through all codebooks (``Bottleneck.number``) from 0 to
    codewords - 1. Perplexity is exp of the entropy of use: ``codewords`` if all are used alike.
    """
    stats = codebook_stats(torch.as_tensor(indices).cpu().long(), codewords)
    return float(stats["codebook_usage"]), float(stats["codebook_perplexity"])


@torch.no_grad()
def token_contributions(
    tokenizer: Tokenizer, pictures: Tensor, tokens: Budget = None, batch: int = 64
) -> list[float]:
    """What each of the L tokens is worth: dB of PSNR lost when it is replaced by its mean, [L].

    pictures [N, 3, H, W] in [-1, 1]; the mean is over these pictures, as is the loss. Tokens lean
    on each other, so the losses do not add up. Costs L + 1 decodings of every picture. ``tokens``:
    how many of each picture, of a nested tokenizer; those that it lacks are worth nothing.
    """
    device = next(tokenizer.parameters()).device
    parts = pictures.split(batch)
    found = [encode_within(tokenizer, some.to(device), tokens) for some in parts]
    most = max(each.latents.shape[1] for each in found)
    latents = [F.pad(each.latents, (0, 0, 0, most - each.latents.shape[1])) for each in found]
    mean = torch.cat(latents).mean(dim=0)
    lost = torch.zeros(mean.shape[0], dtype=torch.float64)
    for some, z, each in zip(parts, latents, found, strict=True):
        originals, size = to_uint8(some), (some.shape[2], some.shape[3])
        fewer = {} if each.lengths is None else {"lengths": each.lengths}

        def quality(
            z: Tensor,
            originals: np.ndarray = originals,
            size: tuple = size,
            fewer: dict[str, Tensor] = fewer,
        ) -> float:
            rebuilt = check_finite(tokenizer.decode(z, size, **fewer), "the decoder")
            return psnr_per_image(originals, to_uint8(rebuilt)).sum()

        whole = quality(z)
        for i in range(len(lost)):
            without = z.clone()
            without[:, i] = mean[i]
            lost[i] += whole - quality(without)
    return (lost / len(pictures)).tolist()
