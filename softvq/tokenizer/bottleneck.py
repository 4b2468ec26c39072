"""What stands between encoder and decoder: SoftVQ, VQ, KL and AE, with one signature.

Every bottleneck maps features z [B, L, F] to :class:`Tokens` whose latents are [B, L, C];
``F = bottleneck.features`` (2C for KL, C otherwise). They differ here and nowhere else.
All arithmetic is float32 whatever the autocast says: at tau = 0.07 a softmax in bfloat16 is
wrong by a quarter.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError

if TYPE_CHECKING:
    from softvq.tokenizer.model import TokenizerConfig


@dataclass
class Tokens:
    """What ``Tokenizer.encode`` returns.

    latents: [B, L, C], what the decoder reads.
    losses:  named scalars, already weighted, that training adds to its loss.
    stats:   named scalars for the log, detached.
    indices: [B, L] nearest codeword, where there is a codebook.
    posterior: (mean, logvar), each [B, L, C], where there is one (KL).
    """

    latents: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)
    indices: Tensor | None = None
    posterior: tuple[Tensor, Tensor] | None = None


def codebook_stats(indices: Tensor, size: int) -> dict[str, Tensor]:
    """Share of codewords that are some token's nearest, and perplexity, over one batch.

    indices [...] int64 in 0..size-1. A batch with fewer tokens than codewords cannot use them
    all: usage is bounded by tokens / size.
    """
    counts = torch.bincount(indices.flatten(), minlength=size).float()
    p = counts / counts.sum()
    perplexity = torch.exp(-(p * torch.log(p.clamp_min(1e-12))).sum())
    return {"codebook_usage": (counts > 0).float().mean(), "codebook_perplexity": perplexity}


def entropy_gap(logits: Tensor, eps: float = 1e-5) -> Tensor:
    """H(q) - H(E q) of soft assignments, logits [T, K] -> scalar (Chen et al. 2025, eq. 5).

    Small when each token is sure (first term) and the batch uses the whole codebook (second).
    The per-token entropy is logsumexp minus the expected logit, so no log-probabilities are kept.
    ``eps`` keeps the logarithm of a codeword that nothing uses finite.
    """
    # Logits in the thousands (a distance over 0.01) cancel badly in float32; their largest at 0
    # changes no probability.
    logits = logits - logits.detach().amax(dim=-1, keepdim=True)
    q = logits.softmax(dim=-1)
    sample = (torch.logsumexp(logits, dim=-1) - (q * logits).sum(dim=-1)).mean()
    mean = q.mean(dim=0)
    return sample + (mean * torch.log(mean + eps)).sum()


class Bottleneck(nn.Module):
    """What the four share: how many features they read, and a start of their own."""

    features: int

    def init_weights(self) -> None:
        """Initialise parameters of its own, if there are any."""


class SoftVQ(Bottleneck):
    """Each token is a soft mixture of codewords: softmax(z . c / tau) c (Chen et al. 2025).

    The token sequence is cut into ``codebooks`` contiguous segments, each with its own codebook
    of K codewords. As released: z and the codewords are L2-normalised, and the codewords are
    detached in the logits, so they learn only through the values. With ``gain`` the mixture,
    whose norm shrinks as more codewords share it, is rescaled by one learned factor.
    """

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        if config.tokens % config.codebooks:
            raise UserError(
                f"tokens {config.tokens} is not divisible by codebooks {config.codebooks}"
            )
        self.features = config.channels
        self.tau = config.tau
        self.l2_norm = config.l2_norm
        self.entropy_weight = config.entropy_weight
        self.entropy_tau = config.entropy_tau
        self.entropy_pooled = config.entropy_pooled
        self.embedding = nn.Parameter(
            torch.empty(config.codebooks, config.codebook_size, config.channels)
        )
        self.gain = nn.Parameter(torch.ones(())) if config.gain else None

    def init_weights(self) -> None:
        nn.init.normal_(self.embedding)
        if not self.l2_norm:
            nn.init.uniform_(
                self.embedding, -1 / self.embedding.shape[1], 1 / self.embedding.shape[1]
            )
        if self.gain is not None:
            with torch.no_grad():
                # Unit variance for typical input: mixtures of random unit vectors at this tau.
                z = F.normalize(torch.randn(256, self.features), dim=-1)
                c = F.normalize(self.embedding[0], dim=-1)
                self.gain.fill_(1 / ((z @ c.T / self.tau).softmax(-1) @ c).std())

    def forward(self, z: Tensor) -> Tokens:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codebooks, size, _ = self.embedding.shape
            keys = self.embedding.float()
            segments = z.unflatten(1, (codebooks, -1)).transpose(0, 1).flatten(1, 2)  # [G, T, C]
            if self.l2_norm:
                segments, keys = F.normalize(segments, dim=-1), F.normalize(keys, dim=-1)
            logits = segments @ keys.detach().transpose(1, 2)  # [G, T, K]
            weights = (logits / self.tau).softmax(dim=-1)
            mixed = weights @ keys
            latents = mixed.unflatten(1, (z.shape[0], -1)).transpose(0, 1).flatten(1, 2)
            if self.gain is not None:
                latents = latents * self.gain
            nearest = logits.argmax(dim=-1)
            tokens = Tokens(
                latents,
                indices=nearest.unflatten(1, (z.shape[0], -1)).transpose(0, 1).flatten(1, 2),
            )
            if self.training:
                groups = logits.flatten(0, 1)[None] if self.entropy_pooled else logits
                gaps = [entropy_gap(one / self.entropy_tau, eps=1e-6) for one in groups]
                gap = torch.stack(gaps).mean()
                tokens.losses["entropy"] = self.entropy_weight * gap
                offsets = torch.arange(codebooks, device=z.device)[:, None] * size
                tokens.stats |= codebook_stats(nearest + offsets, codebooks * size)
                cosine = F.cosine_similarity(segments.detach(), mixed.detach(), dim=-1)
                tokens.stats["soft_cosine"] = cosine.mean()
                tokens.stats["soft_peak"] = weights.detach().amax(dim=-1).mean()
            return tokens


class VQ(Bottleneck):
    """Nearest codeword with a straight-through gradient (van den Oord et al. 2017).

    Loss: |sg(z) - c|^2 + commitment |z - sg(c)|^2 + entropy term. L2-normalised as in VQGAN-LC
    and the released baseline.
    """

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.features = config.channels
        self.l2_norm = config.l2_norm
        self.commitment = config.commitment
        self.entropy_weight = config.entropy_weight
        self.entropy_tau = config.entropy_tau
        self.embedding = nn.Embedding(config.codebook_size, config.channels)

    def init_weights(self) -> None:
        bound = 1 / self.embedding.num_embeddings
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    def forward(self, z: Tensor) -> Tokens:
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = self.embedding.weight.float()
            if self.l2_norm:
                z, codes = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
            flat = z.flatten(0, 1)
            distance = (
                flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T
            )
            indices = distance.argmin(dim=1).view(z.shape[:2])
            chosen = F.embedding(indices, codes)
            tokens = Tokens(z + (chosen - z).detach(), indices=indices)
            if self.training:
                tokens.losses["codebook"] = F.mse_loss(chosen, z.detach())
                tokens.losses["commitment"] = self.commitment * F.mse_loss(z, chosen.detach())
                gap = entropy_gap(-distance / self.entropy_tau)
                tokens.losses["entropy"] = self.entropy_weight * gap
                tokens.stats |= codebook_stats(indices, codes.shape[0])
            return tokens


class KL(Bottleneck):
    """Diagonal Gaussian posterior (Kingma & Welling 2013): a sample in training, the mean after.

    Loss: kl_weight x KL(q || N(0, 1)) summed over tokens and channels, averaged over the batch.
    """

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.features = 2 * config.channels
        self.kl_weight = config.kl_weight

    def forward(self, z: Tensor) -> Tokens:
        with torch.autocast(z.device.type, enabled=False):
            mean, logvar = z.float().chunk(2, dim=-1)
            logvar = logvar.clamp(-30.0, 20.0)
            latents = mean
            if self.training:
                latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            tokens = Tokens(latents, posterior=(mean, logvar))
            if self.training:
                kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2)).mean()
                tokens.losses["kl"] = self.kl_weight * kl
                tokens.stats["kl"] = kl.detach()
            return tokens


class AE(Bottleneck):
    """No bottleneck but the width: the plain autoencoder."""

    def __init__(self, config: "TokenizerConfig"):
        super().__init__()
        self.features = config.channels

    def forward(self, z: Tensor) -> Tokens:
        return Tokens(z.float())


BOTTLENECKS: dict[str, type[Bottleneck]] = {"softvq": SoftVQ, "vq": VQ, "kl": KL, "ae": AE}
