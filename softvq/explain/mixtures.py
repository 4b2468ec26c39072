"""What a token is made of, in each of the families: a mixture, a codeword, a Gaussian.

SoftVQ and GMM mix codewords with weights; VQ takes one codeword; KL has a mean and a spread; AE is
what it is. What they share is the price of being sure: how many dB a picture loses if every token
is put on its nearest codeword (SoftVQ, GMM), or drawn from its Gaussian (KL); 0 for VQ and AE.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.explain.contributions import decibels
from softvq.explain.variation import mean_square
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.base import Tokens
from softvq.tokenizer.softvq import SoftVQ
from softvq.tokenizer.vq import VQ

ALIVE = 0.01  # of the average use: a codeword with less is as good as dead
SHOWN = 5  # codewords of a token, and of a cluster
CLUSTERS = 8
CHUNK = 4  # photos whose weights of all codewords are held at a time


@dataclass(frozen=True)
class Choice:
    """A codeword that a token uses: its number through all codebooks, and its weight."""

    codeword: int
    weight: float


@dataclass(frozen=True)
class Cluster:
    """Codewords that are alike: how many, their share of all use, and the most used of them."""

    codewords: int
    use: float
    members: list[int]


@dataclass(frozen=True)
class Mixture:
    """Of one tokenizer over the photos; None where a family has no such thing.

    family: softvq | gmm | vq | kl | ae.  codewords: in all codebooks.  books: of a token.
    effective: exp of the entropy of a token's weights, per token [L]: how many codewords it mixes.
    used: share of the codewords that are some token's nearest.  dead: share with less than ALIVE of
    the average use.
    spread: KL: standard deviation of a token's Gaussian, mean over channels and photos [L].
    nats: KL: divergence from the prior, per token [L].
    sure_db: dB lost if tokens are sure (see the module).
    focus: of one photo, the codewords of every token (of its first book) with their weights.
    clusters: of the codewords of the first book, by k-means, those that are used most first.
    """

    family: str
    codewords: int = 0
    books: int = 0
    effective: list[float] | None = None
    used: float | None = None
    dead: float | None = None
    spread: list[float] | None = None
    nats: list[float] | None = None
    sure_db: float = 0.0
    focus: list[list[Choice]] | None = None
    clusters: list[Cluster] | None = None


@torch.no_grad()
def features_of(tokenizer: Tokenizer, pictures: Tensor) -> Tensor:
    """What the bottleneck reads, [B, L, F]."""
    return tokenizer.to_latent(tokenizer.encoder(pictures.to(tokenizer.device)))


@torch.no_grad()
def mixture(tokenizer: Tokenizer, pictures: Tensor, focus: int = 0) -> Mixture:
    """Of pictures [N, 3, H, W]; ``focus``: number of the photo whose choices are listed."""
    bottleneck, family = tokenizer.bottleneck, tokenizer.config.bottleneck
    if isinstance(bottleneck, SoftVQ):
        return _soft(tokenizer, bottleneck, pictures, focus)
    found = [bottleneck(features_of(tokenizer, some)) for some in pictures.split(16)]
    if isinstance(bottleneck, VQ):
        indices = torch.cat([tokens.indices for tokens in found if tokens.indices is not None])
        use = torch.bincount(indices.flatten(), minlength=bottleneck.codewords).double()
        return Mixture(
            family,
            codewords=bottleneck.codewords,
            books=1,
            effective=[1.0] * indices.shape[1],
            used=float((use > 0).double().mean()),
            dead=dead_share(use),
            focus=[[Choice(int(index), 1.0)] for index in indices[focus]],
            clusters=clusters(bottleneck.codes().detach(), use),
        )
    if found[0].posterior is None:
        return Mixture(family)
    mean, logvar = (torch.cat([t.posterior[k] for t in found if t.posterior]) for k in (0, 1))
    nats = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
    torch.manual_seed(0)
    drawn = Tokens(mean, posterior=(mean, logvar)).sample()
    return Mixture(
        family,
        spread=(0.5 * logvar).exp().mean((0, 2)).tolist(),
        nats=nats.sum(2).mean(0).tolist(),
        sure_db=_lost(tokenizer, pictures, mean, drawn),
    )


def _soft(tokenizer: Tokenizer, bottleneck: SoftVQ, pictures: Tensor, focus: int) -> Mixture:
    entropies, nearest, mixed, sure = [], [], [], []
    per_book = bottleneck.embedding.shape[1]
    use = torch.zeros(bottleneck.codewords, dtype=torch.float64)
    chosen: list[list[Choice]] = []
    for first, some in enumerate(pictures.split(CHUNK)):
        z = features_of(tokenizer, some)
        weights, numbers = bottleneck.weights(z)
        entropies.append(-torch.xlogy(weights, weights).sum(-1).mean(2))
        books = (numbers // per_book).expand(weights.shape[:-1])
        for book in range(bottleneck.codewords // per_book):
            part = weights[books == book].double().sum(0).cpu()
            use[book * per_book : (book + 1) * per_book] += part
        tokens = bottleneck(z)
        assert tokens.indices is not None
        nearest.append(bottleneck.number(tokens.indices).cpu())
        mixed.append(tokens.latents)
        sure.append(bottleneck.nearest_latents(z))
        if focus // CHUNK == first:
            top = weights[focus % CHUNK, :, 0].topk(min(SHOWN, per_book))
            start = numbers.expand(weights.shape[:-1])[focus % CHUNK, :, 0]
            chosen = [
                [Choice(int(b) + int(k), float(w)) for w, k in zip(ws, ks, strict=True)]
                for ws, ks, b in zip(top.values, top.indices, start, strict=True)
            ]
    all_nearest = torch.cat(nearest).flatten()
    words = bottleneck.embedding[0].detach().float()
    if bottleneck.l2_norm:
        words = F.normalize(words, dim=-1)
    counts = torch.bincount(all_nearest, minlength=bottleneck.codewords)
    return Mixture(
        tokenizer.config.bottleneck,
        codewords=bottleneck.codewords,
        books=weights.shape[2],
        effective=torch.cat(entropies).mean(0).exp().tolist(),
        used=float((counts > 0).double().mean()),
        dead=dead_share(use),
        sure_db=_lost(tokenizer, pictures, torch.cat(mixed), torch.cat(sure)),
        focus=chosen,
        clusters=clusters(words, use[:per_book]),
    )


def _lost(tokenizer: Tokenizer, pictures: Tensor, latents: Tensor, changed: Tensor) -> float:
    """dB of PSNR that changed latents (not normalised) lose, mean over the pictures."""
    errors = []
    for some, before, after in zip(
        pictures.split(16), latents.split(16), changed.split(16), strict=True
    ):
        pair = [tokenizer.decode(z).float().clamp(-1, 1).cpu() for z in (before, after)]
        errors.append(torch.stack([mean_square(p, some).mean((1, 2)) for p in pair]))
    before, after = torch.cat(errors, dim=1)
    return float(decibels(after, before).mean())


def dead_share(use: Tensor) -> float:
    """Share of codewords with less than ALIVE of the average use."""
    return float((use < ALIVE * use.mean()).double().mean())


def clusters(words: Tensor, use: Tensor, most: int = CLUSTERS) -> list[Cluster]:
    """k-means of codewords [K, C], weighted by nothing; clusters that are used most come first."""
    from scipy.cluster.vq import kmeans2  # takes a moment

    alive = (use >= ALIVE * use.mean()).nonzero().flatten()
    if len(alive) < 2:
        return []
    count = min(most, len(alive))
    _, label = kmeans2(words[alive].cpu().numpy(), count, minit="++", seed=0)
    shares = use / use.sum()
    found: list[Cluster] = []
    for k in np.unique(label):
        members = alive[torch.from_numpy(label == k)]
        members = members[shares[members].argsort(descending=True)]
        found.append(Cluster(len(members), float(shares[members].sum()), members[:SHOWN].tolist()))
    return sorted(found, key=lambda c: -c.use)


@torch.no_grad()
def codeword_latents(tokenizer: Tokenizer, latents: Tensor, token: int, words: list[int]) -> Tensor:
    """Normalised latents of one photo [L, C] with a token that is one codeword alone: [n, L, C].

    words: numbers through all codebooks, of books that the token reads. Of a token with several
    books (channels, levels) the part of that book is put on the codeword. Codewords of length 1 say
    a direction, and take the length of what they replace.
    """
    bottleneck = tokenizer.bottleneck
    found = tokenizer.denormalize(latents.expand(len(words), -1, -1)).clone()
    for row, number in zip(found, words, strict=True):
        if isinstance(bottleneck, SoftVQ):
            book, k = divmod(number, bottleneck.embedding.shape[1])
            word = bottleneck.embedding[book, k].float()
            group = book % bottleneck.codebooks if bottleneck.axis == "channels" else 0
            part = row[token, group * len(word) : (group + 1) * len(word)]
            part.copy_(F.normalize(word, dim=0) * part.norm() if bottleneck.l2_norm else word)
        elif isinstance(bottleneck, VQ):
            row[token] = bottleneck.codes()[number]
    return tokenizer.normalize(found).cpu()
