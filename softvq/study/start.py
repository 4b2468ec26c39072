"""Where every arm starts: the shipped tokenizer, cut or stretched to the arm's shape.

A site's few hundred photos and half an hour teach a trained tokenizer the site's world; they do not
teach one to see. What the arm shares with the shipped tokenizer (16 tokens x 32, SoftVQ) is taken
from it, so arms near its shape have a head start.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.tokenizer import Tokenizer, TokenizerConfig

PIXELS = "decoder.to_pixels"  # rows are the pixels of a patch


def starting_point(config: TokenizerConfig, source: Tokenizer, seed: int) -> Tokenizer:
    """A tokenizer of ``config`` with what fits of ``source``'s weights, and new ones elsewhere.

    Of tensors of another shape the common corner is copied; what reads or writes patches of another
    size is resampled.
    """
    torch.manual_seed(seed)
    made = Tokenizer(config)
    theirs = source.state_dict()
    patches = source.config.patch, config.patch
    state = made.state_dict()
    with torch.no_grad():
        for name, own in state.items():
            if name in theirs and theirs[name].ndim == own.ndim:
                fit_into(own, resampled(name, theirs[name], *patches))
    return made


def resampled(name: str, tensor: Tensor, before: int, after: int) -> Tensor:
    """A tensor that reads or writes patches of one side, for patches of another."""
    if before == after:
        return tensor
    if name.startswith(PIXELS):
        rows = tensor.view(3, before, before, -1).permute(3, 0, 1, 2)
        wider = F.interpolate(rows, (after, after), mode="bilinear")
        return wider.permute(1, 2, 3, 0).reshape(3 * after * after, *tensor.shape[1:])
    if name.startswith("encoder.patch_embed") and tensor.ndim == 4 and tensor.shape[1] == 3:
        side = tensor.shape[2] * after // before
        wider = F.interpolate(tensor, (side, side), mode="bilinear")
        return wider * (before / after) ** 2  # as many pixels more, the same sum
    return tensor


def fit_into(own: Tensor, given: Tensor) -> None:
    """Copy the corner that both have."""
    corner = tuple(slice(0, min(a, b)) for a, b in zip(own.shape, given.shape, strict=True))
    own[corner] = given[corner]
