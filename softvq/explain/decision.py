"""Why a judge that reads tokens said what it said of one photo: which tokens, and which places.

Integrated gradients (Sundararajan et al. 2017) from a reference to the photo, over the tokens and,
through the encoder, over the pixels. Both are complete: they sum to the score's difference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from softvq.explain.directions import carriers
from softvq.tokenizer import Tokenizer

Judge = Callable[[Tensor], Tensor]  # normalised latents [B, L, C] -> scores [B], differentiable
STEPS = 24  # of the midpoint rule
SMOOTH = 1 / 32  # of the picture's longer side: width of the Gaussian that places are shown with


@dataclass(frozen=True)
class Decision:
    """A score, the reference's, and what each token added: they sum to the difference, but for
    ``rest``, the error of the integral.

    tokens: those that moved the score most, towards where it went.
    row, column: centre of the pixels that moved it there, as shares from the top left.
    area: share of the picture that holds four fifths of what they moved.
    """

    name: str
    score: float
    reference: float
    added: list[float]
    rest: float
    tokens: list[int]
    row: float
    column: float
    area: float


def token_shares(judge: Judge, latents: Tensor, reference: Tensor) -> Tensor:
    """What every token of latents [L, C] adds to the score beside the reference [L, C]: [L]."""
    share = _path(judge, latents, reference)
    return share.sum(-1)


def pixel_shares(tokenizer: Tokenizer, judge: Judge, picture: Tensor, reference: Tensor) -> Tensor:
    """What every pixel of a picture [3, H, W] adds beside a reference picture: [H, W]."""

    def score(pixels: Tensor) -> Tensor:
        return judge(tokenizer.normalize(tokenizer.encode(pixels.to(tokenizer.device)).latents))

    return _path(score, picture, reference).sum(0)


def _path(score: Judge, end: Tensor, start: Tensor) -> Tensor:
    """Integrated gradients of ``score`` along the straight way, of the shape of ``end``."""
    slopes = torch.zeros_like(end)
    for step in range(STEPS):
        at = (start + (end - start) * ((step + 0.5) / STEPS)).detach()[None].requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(score(at).sum(), at)
        slopes += slope[0] / STEPS
    return (end - start) * slopes


def blurred(shares: Tensor) -> Tensor:
    """Shares of pixels [H, W], spread over their neighbourhood; the sum stays."""
    from scipy.ndimage import gaussian_filter  # takes a moment

    width = SMOOTH * max(shares.shape)
    return torch.from_numpy(gaussian_filter(shares.double().numpy(), width, mode="constant"))


def decide(
    tokenizer: Tokenizer,
    name: str,
    judge: Judge,
    picture: Tensor,
    latents: Tensor,
    reference_picture: Tensor,
    reference: Tensor,
) -> tuple[Decision, Tensor]:
    """Explain the score of a photo, and the map [H, W] of what its places added (blurred).

    latents, reference: normalised [L, C], the photo's and what it is compared with (the average
    good part).  judge: any, of a study or one's own.
    """
    with torch.no_grad():
        score, base = judge(torch.stack([latents, reference])).tolist()
    added = token_shares(judge, latents, reference)
    sign = 1.0 if score >= base else -1.0
    places = sign * blurred(pixel_shares(tokenizer, judge, picture, reference_picture).cpu())
    towards = places.clamp_min(0)
    total = towards.sum().clamp_min(1e-12)
    height, width = towards.shape
    rows = (torch.arange(height) + 0.5) / height
    columns = (torch.arange(width) + 0.5) / width
    ordered = towards.flatten().sort(descending=True).values.cumsum(0)
    found = Decision(
        name=name,
        score=score,
        reference=base,
        added=added.tolist(),
        rest=float(score - base - added.sum()),
        tokens=carriers((sign * added).tolist()),
        row=float((towards.sum(1) * rows).sum() / total),
        column=float((towards.sum(0) * columns).sum() / total),
        area=float((ordered < 0.8 * total).double().mean()),
    )
    return found, (sign * places).float()
