"""Distances between two sets of images, measured on features of some network.

Features are [images, dimensions], numpy or torch, of any float type; all arithmetic is float64
on the CPU; the results are Python floats. A figure means nothing without its features: say which
network, how many images and which preprocessing. ValueError for features that are not finite,
not two-dimensional, too few, or of two different dimensions.
"""

import warnings

import numpy as np
import torch
from torch import Tensor

from softvq.errors import SoftVQWarning
from softvq.evaluate.statistics import Statistics, as_features

Features = np.ndarray | Tensor

ROWS = 1024  # of a distance matrix that are held at a time


def _pair(a: Features, b: Features, least: int = 2) -> tuple[Tensor, Tensor]:
    x, y = as_features(a, least), as_features(b, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} dimensions do not compare")
    return x, y


def frechet_distance(features_a: Features | Statistics, features_b: Features | Statistics) -> float:
    """Frechet distance of the Gaussians fitted to two feature sets (FID: Heusel et al. 2017).

        |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2),    S with n - 1

    With S_a = A^T A and S_b = B^T B the last trace is the nuclear norm of A B^T, which needs no
    square root of a matrix product. From features, A is the centred set and the result is exact
    also where a covariance is singular; from :class:`Statistics` it is a root of the covariance,
    which then costs digits (1e-6).

    It falls with the number of images, so compare equal numbers only. Warns, and goes on, where a
    set has no more images than dimensions: its covariance is then singular and the distance
    mostly bias, but of use between equal numbers of images.
    """
    mean_a, root_a, images_a = _gaussian(features_a)
    mean_b, root_b, images_b = _gaussian(features_b)
    dimensions = len(mean_a)
    if dimensions != len(mean_b):
        raise ValueError(f"features of {dimensions} and of {len(mean_b)} dimensions do not compare")
    fewest = min(n for n in (images_a, images_b, dimensions + 1) if n is not None)
    if fewest <= dimensions:
        warnings.warn(
            f"Frechet distance of {fewest} images on {dimensions} feature dimensions: "
            "the covariance is singular, the distance is biased upwards",
            SoftVQWarning,
            stacklevel=2,
        )
    mean = (mean_a - mean_b).square().sum()
    trace = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = mean + root_a.square().sum() + root_b.square().sum() - 2 * trace
    return max(0.0, float(distance))  # rounding leaves about -1e-13 for equal sets


def _gaussian(of: Features | Statistics) -> tuple[Tensor, Tensor, int | None]:
    """Mean [D], a root R [at most D, D] of the covariance R^T R, and the number of images."""
    if isinstance(of, Statistics):
        values, vectors = torch.linalg.eigh(of.covariance)
        return of.mean, values.clamp_min(0).sqrt()[:, None] * vectors.T, of.count
    x = as_features(of)
    mean = x.mean(0)
    # R of A = Q R has A's singular values and is small however many images there are.
    root = torch.linalg.qr((x - mean) / (x.shape[0] - 1) ** 0.5, mode="r").R
    return mean, root, x.shape[0]


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """Sum of the kernel (x . y / D + 1)^3 over all pairs of rows."""
    return sum(float(((rows @ y.T / x.shape[1] + 1) ** 3).sum()) for rows in x.split(ROWS))


def _mmd(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy: an image is not paired with itself."""
    n, m = x.shape[0], y.shape[0]
    itself_x, itself_y = (float(((z.square().sum(1) / z.shape[1] + 1) ** 3).sum()) for z in (x, y))
    xx = (_kernel_sum(x, x) - itself_x) / (n * (n - 1))
    yy = (_kernel_sum(y, y) - itself_y) / (m * (m - 1))
    return xx + yy - 2 * _kernel_sum(x, y) / (n * m)


def kernel_distance(
    a: Features,
    b: Features,
    subsets: int | None = None,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Kernel distance (KID: Binkowski et al. 2018): mean and standard deviation over subsets.

    Unbiased for any number of images, so it can be negative, also for equal sets. ``subsets``
    None (default) takes all images at once, and the deviation is 0.0: the best estimate.
    Otherwise that many subsets of ``subset_size`` images are
    drawn, from a and then from b, by numpy's RandomState(seed) without replacement, as
    torch-fidelity does. The deviation is over the subsets, not that of the estimate.

    ValueError if a subset is larger than a set.
    """
    x, y = _pair(a, b)
    if subsets is None:
        return _mmd(x, y), 0.0
    if not 2 <= subset_size <= min(x.shape[0], y.shape[0]) or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {subset_size} out of {x.shape[0]} and {y.shape[0]} images"
        )
    random = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        of_x = random.choice(x.shape[0], subset_size, replace=False)
        of_y = random.choice(y.shape[0], subset_size, replace=False)
        values.append(_mmd(x[of_x], y[of_y]))
    return float(np.mean(values)), float(np.std(values))


def inception_score(
    logits: Features, splits: int = 10, seed: int | None = None
) -> tuple[float, float]:
    """Inception score (Salimans et al. 2016): mean and standard deviation over splits.

        exp(mean over images of KL(p(y | image) || p(y))),    p(y) the mean of a split

    logits [images, classes] of a classifier, before the softmax. Splits are contiguous, image
    i N / splits to (i + 1) N / splits; ``seed`` permutes the images first (numpy's RandomState;
    torch-fidelity uses 2020), which images generated class by class need. Between 1 and classes.

    ValueError for more splits than images.
    """
    x = as_features(logits, least=1)
    n = x.shape[0]
    if not 1 <= splits <= n:
        raise ValueError(f"{splits} splits of {n} images")
    if seed is not None:
        x = x[np.random.RandomState(seed).permutation(n)]
    scores = []
    for i in range(splits):
        log_p = x[i * n // splits : (i + 1) * n // splits].log_softmax(dim=1)
        p = log_p.exp()
        mean = p.mean(0)
        # KL = sum p log p - sum mean log mean, and xlogy counts 0 log 0 as 0.
        divergence = (p * log_p).sum(1).mean() - torch.xlogy(mean, mean).sum()
        scores.append(float(divergence.exp()))
    return float(np.mean(scores)), float(np.std(scores))


def _radii(x: Tensor, k: int) -> Tensor:
    """Distance of every row of x [N, D] to its k-th nearest other row, [N]."""
    # The nearest row of all is the row itself, so the k-th other is the (k + 1)-th.
    parts = [torch.cdist(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(ROWS)]
    return torch.cat(parts)


def _covered(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of points [N, D] inside the union of balls around centres [M, D]."""
    inside = [(torch.cdist(rows, centres) <= radii).any(dim=1) for rows in points.split(ROWS)]
    return float(torch.cat(inside).double().mean())


def _manifolds(real: Features, generated: Features, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    x, y = _pair(real, generated, least=k + 1)
    # Features far from the origin would cost cdist digits: it subtracts their squared norms.
    centre = x.mean(0)
    return x - centre, y - centre


def precision_recall(real: Features, generated: Features, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019), each in 0..1.

    A set's manifold is the union of balls around its points that reach to their k-th nearest
    other point, boundary included. Precision is the share of generated images on the real
    manifold, recall the share of real images on the generated one.

    ValueError for k < 1 or a set of no more than k images.
    """
    x, y = _manifolds(real, generated, k)
    return _covered(y, x, _radii(x, k)), _covered(x, y, _radii(y, k))


def density_coverage(real: Features, generated: Features, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, eqs. 5 and 6).

    Density is how many real balls a generated image lies in, over k: 1 is expected of equal
    distributions, and unlike precision one outlier's wide ball does not raise it much; it may
    exceed 1. Coverage, in 0..1, is the share of real balls that hold a generated image; for equal
    distributions of many images each it is about 1 - 2^-k.

    ValueError for k < 1 or a set of no more than k images.
    """
    x, y = _manifolds(real, generated, k)
    radii = _radii(x, k)
    hits, covered = 0.0, 0
    for rows, reach in zip(x.split(ROWS), radii.split(ROWS), strict=True):
        inside = torch.cdist(rows, y) <= reach[:, None]
        hits += float(inside.sum())
        covered += int(inside.any(dim=1).sum())
    return hits / (k * y.shape[0]), covered / x.shape[0]
