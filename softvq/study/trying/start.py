"""Where every arm starts: the shipped tokenizer, cut or stretched to the arm's shape.

A site's few hundred photos and half an hour teach a trained tokenizer the site's world; they do not
teach one to see. What the arm shares with the shipped tokenizer (16 tokens x 32, SoftVQ) is taken
from it, so arms near its shape have a head start. Another bottleneck starts where the shipped one
is, as far as it can say the same: its input is fitted by least squares to the shipped latents.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from softvq import images
from softvq.coding import BATCH
from softvq.tokenizer import Tokenizer, TokenizerConfig

PIXELS = "decoder.to_pixels"  # rows are the pixels of a patch
FITTED = 512  # photos that another bottleneck is fitted on
RIDGE = 1e-6  # of the mean square of a feature
QUIET = -6.0  # log variance of a posterior that still says what it means


def starting_point(
    config: TokenizerConfig, source: Tokenizer, pictures: np.ndarray, seed: int
) -> Tokenizer:
    """A tokenizer of ``config`` with what fits of ``source``'s weights, and new ones elsewhere.

    Of tensors of another shape the common corner is copied; what reads or writes patches of another
    size is resampled. ``pictures``, uint8 [N, H, W, 3] of config's size, are what another
    bottleneck than the source's is fitted on.
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
    if config.bottleneck != source.config.bottleneck:
        chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), FITTED)).astype(int)
        fit_bottleneck(made, source, pictures[chosen])
    return made


@torch.no_grad()
def fit_bottleneck(made: Tokenizer, source: Tokenizer, pictures: np.ndarray) -> None:
    """Fit the input of ``made``'s bottleneck so that its latents are those of ``source``."""
    size = (source.config.height, source.config.width)
    features, latents = [], []
    for some in np.array_split(pictures, -(-len(pictures) // BATCH)):
        fitted = [np.asarray(images.fit(Image.fromarray(x), size, "stretch")) for x in some]
        seen = source.encoder(images.to_tensor(np.stack(fitted)))
        features.append(F.pad(seen, (0, 1), value=1.0).flatten(0, 1).double())
        latents.append(source.bottleneck(source.to_latent(seen)).latents.flatten(0, 1))
    x, z = torch.cat(features), torch.cat(latents)
    gram = x.T @ x
    gram += RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
    map_ = torch.linalg.solve(gram, x.T @ z.double()).T.float()
    fit_into(made.to_latent.weight, map_[:, :-1])
    fit_into(made.to_latent.bias, map_[:, -1])
    config, state = made.config, made.state_dict()
    if config.bottleneck == "kl":  # the second half of its features are log variances
        made.to_latent.weight[config.channels :] = 0
        made.to_latent.bias[config.channels :] = QUIET
    if config.bottleneck == "vq":
        drawn = z[torch.randint(len(z), (config.codebook_size,))]
        fit_into(state["bottleneck.embedding.weight"], drawn)
        fit_into(state["bottleneck.ema_sum"], drawn)
        state["bottleneck.ema_count"].fill_(1)


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
