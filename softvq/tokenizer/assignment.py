"""Tokens meet codewords: nearest codeword, soft mixture, entropy of the assignments.

A *score* says how near T tokens are to K codewords, in each of G codebooks at once:
``score(z [G, T, C], *keys) -> [G, T, K]``, larger is nearer. ``keys``, [G, K, ...] each, are the
codewords and whatever else the score reads. Everything here takes a few tokens at a time and never
stores the [T, K] matrix: at K = 8192 and 16,384 tokens that is 512 MiB, and several times that for
a gradient. ``benchmarks/soft_assignment.py`` measures it.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.processes import mean_of_all

Score = Callable[..., Tensor]


def cosine(z: Tensor, codewords: Tensor) -> Tensor:
    """z . c, the cosine where both are unit vectors."""
    return z @ codewords.mT


def squared_distance(z: Tensor, codewords: Tensor) -> Tensor:
    """|z - c|^2 through one matrix product; rounding can leave it a little below 0."""
    norms = z.square().sum(-1, keepdim=True) + codewords.square().sum(-1).unsqueeze(-2)
    return norms - 2 * z @ codewords.mT


def nearness(z: Tensor, codewords: Tensor) -> Tensor:
    """-|z - c|^2."""
    return -squared_distance(z, codewords)


def euclidean(z: Tensor, codewords: Tensor) -> Tensor:
    """-|z - c|. Its gradient where z is a codeword is 0."""
    return -squared_distance(z, codewords).clamp_min(1e-12).sqrt()


ASSIGNMENTS: dict[str, Score] = {"cosine": cosine, "euclidean": euclidean}


def tokens_at_once(z: Tensor, codewords: Tensor) -> int:
    """How many tokens of z [G, T, C] meet codewords [G, K, ...] together.

    On a CPU their scores take 1 MiB and stay in a core's cache; 16 MiB keep an accelerator busy.
    """
    scores = 2**18 if z.device.type == "cpu" else 2**22
    return max(1, scores // codewords[..., 0].numel())


class _Chunked(torch.autograd.Function):
    """``fn(z, *keys)`` of ``count`` tokens at a time, and computed once more for its gradient."""

    @staticmethod
    def forward(ctx: Any, fn: Score, count: int, z: Tensor, *keys: Tensor) -> Tensor:
        ctx.fn, ctx.count = fn, count
        ctx.save_for_backward(z, *keys)
        # Written into one result: small ones, kept, would pin the freed blocks between them, and
        # the process would grow by the whole matrix after all.
        first = fn(z[:, :count], *keys)
        out = first.new_empty(*z.shape[:2], *first.shape[2:])
        out[:, :count] = first
        for start in range(count, z.shape[1], count):
            out[:, start : start + count] = fn(z[:, start : start + count], *keys)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, *keys = ctx.saved_tensors
        of_z, *of_keys = ctx.needs_input_grad[2:]
        keys = [k.detach().requires_grad_(needed) for k, needed in zip(keys, of_keys, strict=True)]
        grad_z = torch.empty_like(z) if of_z else None
        for start in range(0, z.shape[1], ctx.count):
            part = slice(start, start + ctx.count)
            some = z[:, part].detach().requires_grad_(of_z)
            with torch.enable_grad():
                ctx.fn(some, *keys).backward(grads[0][:, part])  # into some.grad and each k.grad
            if grad_z is not None:
                grad_z[:, part] = some.grad
        return None, None, grad_z, *(k.grad for k in keys)


@cache
def _uncompiled() -> Callable[..., Tensor]:
    """``_Chunked.apply``, kept out of compiled graphs.

    Only where something is compiled: torch loads its compiler for it, seconds and 70 MB.
    """
    return torch.compiler.disable(_Chunked.apply)


def chunked(fn: Score, z: Tensor, *keys: Tensor) -> Tensor:
    """``fn(z [G, T, C], *keys) -> [G, T, ...]`` that treats each token alone, a few at a time.

    Gradients reach z and the keys, and nothing else that ``fn`` reads. An exported graph takes all
    tokens at once, because it does not know how many there will be.
    """
    count = tokens_at_once(z, keys[0])
    if torch.compiler.is_exporting() or z.shape[1] <= count:
        return fn(z, *keys)
    if torch.compiler.is_compiling():
        return _uncompiled()(fn, count, z, *keys)
    return _Chunked.apply(fn, count, z, *keys)


@torch.no_grad()
def nearest(score: Score, z: Tensor, *keys: Tensor) -> Tensor:
    """Index of the codeword of the largest score, int64 [G, T]."""
    return chunked(lambda z, *keys: score(z, *keys).argmax(-1), z, *keys)


@torch.no_grad()
def peak(score: Score, tau: float, z: Tensor, *keys: Tensor) -> Tensor:
    """The largest weight in each token's mixture, [G, T]."""
    return chunked(lambda z, *keys: (score(z, *keys) / tau).softmax(-1).amax(-1), z, *keys)


def mixture(score: Score, tau: float, z: Tensor, values: Tensor, *keys: Tensor) -> Tensor:
    """sum_k softmax_k(score / tau) values_k, [G, T, C].

    For dot products this is attention with the codebook as keys and values, one head per codebook.
    On a CPU torch has the fused kernel for four dimensions only; given three it stores the matrix.
    """
    if score is cosine:
        query, key, value = z[None], keys[0][None], values[None]
        return F.scaled_dot_product_attention(query, key, value, scale=1 / tau)[0]

    def mix(z: Tensor, values: Tensor, *keys: Tensor) -> Tensor:
        return (score(z, *keys) / tau).softmax(-1) @ values

    return chunked(mix, z, values, *keys)


def entropy_gap(
    score: Score, tau: float, z: Tensor, *keys: Tensor, pooled: bool = False, eps: float = 1e-5
) -> Tensor:
    """H(q) - H(E q) of q = softmax(score / tau), a scalar (Chen et al. 2025, eq. 5).

    Small when each token is sure (first term, a mean over tokens) and the batch uses the whole
    codebook (second). A mean over the codebooks; ``pooled`` averages q over them too, as if
    codeword k of each were the same one. ``eps`` keeps the logarithm of an unused codeword finite.

    The first term is, token by token, logsumexp minus the expected logit. The second,
    f(m) = sum_k m_k log(m_k + eps) of the mean m = E q, has the gradient E[<f'(m), dq>]: m is found
    first, and then that term too is a sum over tokens, with f'(m) a constant.
    """

    def logits(z: Tensor, *keys: Tensor) -> Tensor:
        # In the thousands (a distance over 0.01) they cancel badly in float32; their largest at 0
        # changes no probability.
        x = score(z, *keys) / tau
        return x - x.detach().amax(dim=-1, keepdim=True)

    with torch.no_grad():
        mean = torch.zeros_like(keys[0][..., 0])
        for some in z.split(tokens_at_once(z, keys[0]), dim=1):
            mean += logits(some, *keys).softmax(-1).sum(dim=1) / z.shape[1]
        mean = mean_of_all(mean)
        if pooled:
            mean = mean.mean(dim=0, keepdim=True)
        slope = torch.log(mean + eps) + mean / (mean + eps)

    def term(z: Tensor, *keys: Tensor) -> Tensor:
        x = logits(z, *keys)
        q = x.softmax(-1)
        # x is 0 at the largest q, so logsumexp x = -log max q. Its gradient is q, which cancels
        # that of the x that q is multiplied with: only the gradient of q itself remains.
        log_sum = -q.detach().amax(-1).log()
        return log_sum + (q * (slope.unsqueeze(-2) - x.detach())).sum(-1)

    # E<f'(m), q> exceeds f(m) by sum_k m_k^2 / (m_k + eps).
    return chunked(term, z, *keys).mean() - (mean.square() / (mean + eps)).sum(-1).mean()
