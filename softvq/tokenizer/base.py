"""What every bottleneck shares: its signature, what it returns, and statistics of a codebook."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from softvq.processes import ours, sum_of_all, whole


@dataclass
class Tokens:
    """What ``Tokenizer.encode`` returns.

    latents: [B, L, C], what the decoder reads.
    losses:  named scalars, already weighted, that training adds to its loss.
    stats:   named scalars for the log, detached.
    indices: nearest codewords, where there is a codebook: int64 [B, L], or [B, L, N] where each
        token has N of them (``Bottleneck.number`` tells those of different codebooks apart).
    posterior: (mean, logvar), each [B, L, C], where there is one (KL).
    lengths: how many of the tokens each image keeps, int64 [B], where they may differ.
    met: whether each image meets the target that its length was searched for, bool [B].
    """

    latents: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None
    posterior: tuple[Tensor, Tensor] | None = None
    lengths: Tensor | None = None
    met: Tensor | None = None

    def sample(self) -> Tensor:
        """A draw from the posterior, [B, L, C]; the latents themselves where there is none."""
        if self.posterior is None:
            return self.latents
        mean, logvar = self.posterior
        shape = whole(mean.shape[0]), *mean.shape[1:]
        noise = ours(torch.randn(shape, dtype=mean.dtype, device=mean.device))
        return mean + torch.exp(0.5 * logvar) * noise


def codebook_stats(indices: Tensor, size: int) -> dict[str, Tensor]:
    """Share of codewords that are some token's nearest, and perplexity, over one batch.

    indices [...] int64 in 0..size-1. A batch with fewer tokens than codewords cannot use them
    all: usage is bounded by tokens / size.
    """
    counts = sum_of_all(torch.bincount(indices.flatten(), minlength=size).float())
    p = counts / counts.sum()
    perplexity = torch.exp(-(p * torch.log(p.clamp_min(1e-12))).sum())
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": perplexity}


class Bottleneck(nn.Module):
    """Features [B, L, features] to :class:`Tokens`, in float32 whatever the autocast says.

    At tau = 0.07 a softmax in bfloat16 is wrong by a quarter.

    features: how many numbers per token it reads.  codewords: how many it has in all codebooks.
    """

    features: int
    codewords: int = 0

    def init_weights(self) -> None:
        """Initialise parameters of its own, if there are any."""

    def number(self, indices: Tensor) -> Tensor:
        """``Tokens.indices`` [B, L] or [B, L, N], counted through all codebooks: 0..codewords-1."""
        return indices
