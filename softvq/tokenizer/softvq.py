"""SoftVQ: each token a soft mixture of codewords; GMMVQ: under a Gaussian mixture."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.errors import UserError
from softvq.layers import full_precision
from softvq.tokenizer.assignment import (
    ASSIGNMENTS,
    Score,
    cosine,
    entropy_gap,
    mixture,
    nearest,
    peak,
    squared_distance,
)
from softvq.tokenizer.base import Bottleneck, Tokens, codebook_stats
from softvq.tokenizer.config import TokenizerConfig


@dataclass
class Level:
    """One level of quantisation of T tokens in G codebooks, c = C / channel groups.

    target [G, T, c]: what all levels together should give.  residual: what this one quantises.
    keys: what its score reads.  index [G, T, 1]: the nearest codeword.  mixed: the sum so far.
    """

    target: Tensor
    residual: Tensor
    keys: tuple[Tensor, ...]
    index: Tensor
    mixed: Tensor


class SoftVQ(Bottleneck):
    """z' = sum_k q_k c_k with q = softmax(score(z, c) / tau) (Chen et al. 2025).

    assignment: ``cosine``, as released: score = z . c, and the codewords are detached in it, so
        that they learn only through the values; ``euclidean``, as in the paper: score = -|z - c|,
        and the codewords learn through both. ``l2_norm`` makes z and the codewords unit vectors.
    codebook_axis: G codebooks of K codewords each, for G contiguous segments of the ``tokens``
        (Chen et al. 2025), or of the ``channels`` of every token (product quantisation, Jegou et
        al. 2011).
    levels: residual quantisation. Level i softly quantises z - (z'_1 + ... + z'_{i-1}) with
        codebooks of its own, and z' is the sum. With ``l2_norm`` a residual is quantised by shape
        and keeps its size (gain-shape quantisation, Gersho & Gray 1992): codewords of length 1
        would overshoot it.
    gain: the mixture, whose norm shrinks as more codewords share it, is rescaled by one learned
        factor.

    Loss: entropy_weight x :func:`entropy_gap` at entropy_tau, averaged over codebooks and levels.
    Indices: [B, L], or [B, L, N] with N = levels x (channel groups), level by level.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.codebooks, self.axis = config.codebooks, config.codebook_axis
        cut = getattr(config, self.axis)
        if cut % self.codebooks:
            raise UserError(f"{self.axis} {cut} is not divisible by codebooks {self.codebooks}")
        self.features = config.channels
        self.tokens = config.tokens
        self.levels = config.levels
        self.tau = config.tau
        self.l2_norm = config.l2_norm
        self.entropy_weight = config.entropy_weight
        self.entropy_tau = config.entropy_tau
        self.entropy_pooled = config.entropy_pooled
        self.score: Score = ASSIGNMENTS[config.assignment]
        self.codewords = config.levels * config.codebooks * config.codebook_size
        width = config.channels // (self.codebooks if self.axis == "channels" else 1)
        self.embedding = nn.Parameter(
            torch.empty(config.levels * config.codebooks, config.codebook_size, width)
        )
        self.gain = nn.Parameter(torch.ones(())) if config.gain else None

    def init_weights(self) -> None:
        nn.init.normal_(self.embedding)
        if not self.l2_norm:
            bound = 1 / self.embedding.shape[1]
            nn.init.uniform_(self.embedding, -bound, bound)
        if self.gain is not None and not self.embedding.is_meta:
            with torch.no_grad():
                # Unit variance for typical input at this tau.
                z = torch.randn(max(1, 256 // self.tokens), self.tokens, self.features)
                self.gain.fill_(1 / self.eval()(z).latents.std())
            self.train()

    def split(self, z: Tensor) -> Tensor:
        """[B, L, C] -> [G, T, C / groups]: what each codebook quantises."""
        if self.axis == "tokens":
            return z.unflatten(1, (self.codebooks, -1)).transpose(0, 1).flatten(1, 2)
        return z.flatten(0, 1).unflatten(1, (self.codebooks, -1)).transpose(0, 1)

    def join(self, parts: Tensor, batch: int) -> Tensor:
        """The inverse of :meth:`split`, whatever the last dimension is."""
        if self.axis == "tokens":
            return parts.unflatten(1, (batch, -1)).transpose(0, 1).flatten(1, 2)
        return parts.transpose(0, 1).flatten(1).unflatten(0, (batch, -1))

    def number(self, indices: Tensor) -> Tensor:
        each = indices.unsqueeze(-1) if indices.ndim == 2 else indices
        length, count = each.shape[1:]
        book = torch.arange(count, device=each.device)
        if self.axis == "tokens":
            segment = torch.arange(length, device=each.device) * self.codebooks // length
            book = book * self.codebooks + segment[:, None]
        return (each + book * self.embedding.shape[1]).view(indices.shape)

    def keys(self, codewords: Tensor, level: int) -> tuple[Tensor, ...]:
        """What the score reads at a level, whose codewords are [G, K, C / groups]."""
        return (codewords.detach() if self.score is cosine else codewords,)

    def levels_of(self, z: Tensor, sure: bool = False) -> Iterator["Level"]:
        """Quantise z [B, L, C] level by level. ``sure``: by the nearest codeword, not a mixture."""
        target, codewords = self.split(z.float()), self.embedding.float()
        if self.l2_norm:
            target, codewords = F.normalize(target, dim=-1), F.normalize(codewords, dim=-1)
        mixed = torch.zeros_like(target)
        for level, values in enumerate(codewords.split(self.codebooks)):
            residual, size = target - mixed, 1.0
            if self.l2_norm and level:
                size = residual.norm(dim=-1, keepdim=True)
                residual = F.normalize(residual, dim=-1)
            keys = self.keys(values, level)
            index = nearest(self.score, residual, *keys).unsqueeze(-1)
            if sure:
                part = values.take_along_dim(index, dim=1)
            else:
                part = mixture(self.score, self.tau, residual, values, *keys)
            mixed = mixed + size * part
            yield Level(target, residual, keys, index, mixed)

    def weights(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """How much of every codeword is in z [B, L, C]: weights [B, L, N, K] of sum 1.

        Of N books, see ``Tokens.indices``. And the number, through all codebooks, of the first
        codeword of the book that each of them is of: int64 [L, N]. Takes B L N K floats.
        """
        found = []
        with full_precision(z):
            for level in self.levels_of(z):
                q = (self.score(level.residual, *level.keys) / self.tau).softmax(-1)
                if self.axis == "tokens":
                    found.append(self.join(q, z.shape[0]).unsqueeze(2))
                else:
                    found.append(q.transpose(0, 1).unflatten(0, (z.shape[0], -1)))
        shares = torch.cat(found, dim=-2)
        first = torch.zeros(1, *shares.shape[1:3], dtype=torch.int64, device=z.device)
        return shares, self.number(first)[0]

    def nearest_latents(self, z: Tensor) -> Tensor:
        """The latents of z [B, L, C] if every token were its nearest codewords, not a mixture."""
        with full_precision(z):
            *_, last = self.levels_of(z, sure=True)
            latents = self.join(last.mixed, z.shape[0])
            return latents if self.gain is None else latents * self.gain

    def forward(self, z: Tensor) -> Tokens:
        with full_precision(z):
            chosen, gaps, peaks = [], [], []
            for level in self.levels_of(z):
                residual, keys = level.residual, level.keys
                target, mixed = level.target, level.mixed
                chosen.append(self.join(level.index, z.shape[0]))
                if self.training:
                    peaks.append(peak(self.score, self.tau, residual, *keys))
                if self.training and self.entropy_weight:
                    gaps.append(
                        entropy_gap(
                            self.score, self.entropy_tau, residual, *keys,
                            pooled=self.entropy_pooled, eps=1e-6,
                        )
                    )  # fmt: skip
            latents = self.join(mixed, z.shape[0])
            if self.gain is not None:
                latents = latents * self.gain
            indices = torch.cat(chosen, dim=-1).squeeze(-1)
            tokens = Tokens(latents, indices=indices)
            if gaps:
                tokens.losses["entropy"] = self.entropy_weight * torch.stack(gaps).mean()
            if self.training:
                tokens.stats |= codebook_stats(self.number(indices), self.codewords)
                similarity = F.cosine_similarity(target.detach(), mixed.detach(), dim=-1)
                tokens.stats["soft_cosine"] = similarity.mean()
                tokens.stats["soft_peak"] = torch.stack(peaks).mean()
            return tokens


def log_joint(tau: float, z: Tensor, means: Tensor, logvar: Tensor, logits: Tensor) -> Tensor:
    """tau log pi_k N(z; c_k, s_k^2 I), but for a constant: a score, [G, T, K]."""
    prior = logits.log_softmax(-1) - 0.5 * z.shape[-1] * logvar
    distance = squared_distance(z, means) * (0.5 * torch.exp(-logvar)).unsqueeze(-2)
    return tau * (prior.unsqueeze(-2) - distance)


class GMMVQ(SoftVQ):
    """SoftVQ whose q are the responsibilities of a Gaussian mixture, with the codewords as means:

        q_k = pi_k N(z; c_k, s_k^2 I) / sum_j pi_j N(z; c_j, s_j^2 I),   z' = sum_k q_k c_k.

    The prior is that of GM-VQ (Yan et al. 2024), which draws one component where this takes the
    mean over all. Every codeword learns its own variance s^2 and weight pi. They start at s^2 = tau
    and equal weights, where, for unit vectors, q is that of the cosine assignment; from then on
    each codeword finds its own temperature. The entropy is taken of q^(tau / entropy_tau).
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__(config)
        self.score = partial(log_joint, config.tau)
        self.log_variance = nn.Parameter(torch.empty(self.embedding.shape[:2]))
        self.mixture_logits = nn.Parameter(torch.empty(self.embedding.shape[:2]))

    def init_weights(self) -> None:
        nn.init.constant_(self.log_variance, math.log(self.tau))
        nn.init.zeros_(self.mixture_logits)
        super().init_weights()

    def keys(self, codewords: Tensor, level: int) -> tuple[Tensor, ...]:
        these = slice(level * self.codebooks, (level + 1) * self.codebooks)
        return codewords, self.log_variance[these].float(), self.mixture_logits[these].float()
