"""What stands between encoder and decoder: SoftVQ, GMM, VQ, KL and AE, with one signature.

Every bottleneck maps features z [B, L, F] to :class:`Tokens` whose latents are [B, L, C];
``F = bottleneck.features`` (2C for KL, C otherwise). They differ in their own file and nowhere
else.
"""

from softvq.tokenizer.assignment import entropy_gap
from softvq.tokenizer.base import Bottleneck, Tokens, codebook_stats
from softvq.tokenizer.kl import AE, KL
from softvq.tokenizer.softvq import GMMVQ, SoftVQ
from softvq.tokenizer.vq import VQ

__all__ = [
    "AE", "BOTTLENECKS", "GMMVQ", "KL", "VQ", "Bottleneck", "SoftVQ", "Tokens",
    "codebook_stats", "entropy_gap",
]  # fmt: skip

BOTTLENECKS: dict[str, type[Bottleneck]] = {
    "softvq": SoftVQ,
    "gmm": GMMVQ,
    "vq": VQ,
    "kl": KL,
    "ae": AE,
}
