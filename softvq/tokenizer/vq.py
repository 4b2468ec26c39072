"""VQ: each token its nearest codeword."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softvq.layers import full_precision
from softvq.processes import processes, rows_of_all, sum_of_all
from softvq.tokenizer.assignment import entropy_gap, nearest, nearness
from softvq.tokenizer.base import Bottleneck, Tokens, codebook_stats
from softvq.tokenizer.config import TokenizerConfig

REVIVED = 0.1  # a codeword used by less than this share of the average is drawn anew


class VQ(Bottleneck):
    """Nearest codeword with a straight-through gradient (van den Oord et al. 2017).

    ``l2_norm`` makes z and the codewords unit vectors, as in VQGAN-LC and the released baseline.

    vq_update: how codewords learn. ``gradient``: from |sg(z) - c|^2. ``ema``: each is the moving
        average of the tokens that chose it (same paper, appendix A.1), and one that hardly any
        chooses is put on a random token of the batch. ``simvq``: by gradient, through one linear
        map of fixed random vectors, so that all of them move (Zhu et al. 2024).

    Loss: the codeword term unless ``ema``, commitment |z - sg(c)|^2, and the entropy term.
    """

    ema_count: Tensor
    ema_sum: Tensor

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.features = config.channels
        self.codewords = config.codebook_size
        self.l2_norm = config.l2_norm
        self.commitment = config.commitment
        self.entropy_weight = config.entropy_weight
        self.entropy_tau = config.entropy_tau
        self.update = config.vq_update
        self.ema_decay = config.ema_decay
        self.embedding = nn.Embedding(config.codebook_size, config.channels)
        self.embedding.weight.requires_grad_(self.update == "gradient")
        if self.update == "ema":
            self.register_buffer("ema_count", torch.zeros(config.codebook_size))
            self.register_buffer("ema_sum", torch.zeros(config.codebook_size, config.channels))
        if self.update == "simvq":
            self.basis = nn.Parameter(torch.empty(config.channels, config.channels))

    def init_weights(self) -> None:
        if self.update == "simvq":
            nn.init.normal_(self.embedding.weight, std=self.features**-0.5)
            nn.init.eye_(self.basis)
        else:
            bound = 1 / self.codewords
            nn.init.uniform_(self.embedding.weight, -bound, bound)

    @torch.no_grad()
    def follow(self, z: Tensor, indices: Tensor) -> None:
        """Move the codewords towards the tokens z [T, C] that chose them, indices [T]."""
        counts = sum_of_all(torch.bincount(indices, minlength=self.codewords).float())
        sums = sum_of_all(torch.zeros_like(self.ema_sum).index_add_(0, indices, z))
        self.ema_count.lerp_(counts, 1 - self.ema_decay)
        self.ema_sum.lerp_(sums, 1 - self.ema_decay)
        average = self.ema_count.mean()
        dead = self.ema_count < REVIVED * average
        if dead.any():
            count = z.shape[0] * processes()
            drawn = rows_of_all(z, torch.randint(count, dead.shape, device=z.device))
            self.ema_count.masked_fill_(dead, average)
            self.ema_sum.copy_(torch.where(dead[:, None], drawn * average, self.ema_sum))
        self.embedding.weight.copy_(self.ema_sum / self.ema_count[:, None])

    def codes(self) -> Tensor:
        """The codewords that tokens become, [K, C]."""
        codes = self.embedding.weight.float()
        if self.update == "simvq":
            codes = codes @ self.basis
        if self.update == "ema":
            codes = codes.clone()  # the gradient still needs what follow() overwrites
        return F.normalize(codes, dim=-1) if self.l2_norm else codes

    def forward(self, z: Tensor) -> Tokens:
        with full_precision(z):
            z = F.normalize(z.float(), dim=-1) if self.l2_norm else z.float()
            codes = self.codes()
            flat, codebook = z.flatten(0, 1)[None], codes[None]
            indices = nearest(nearness, flat, codebook).view(z.shape[:2])
            chosen = F.embedding(indices, codes)
            tokens = Tokens(z + (chosen - z).detach(), indices=indices)
            if self.training:
                if self.update == "ema" and z.requires_grad:  # not after a frozen encoder
                    self.follow(z.flatten(0, 1), indices.flatten())
                if self.update != "ema":
                    tokens.losses["codebook"] = F.mse_loss(chosen, z.detach())
                tokens.losses["commitment"] = self.commitment * F.mse_loss(z, chosen.detach())
                if self.entropy_weight:
                    gap = entropy_gap(nearness, self.entropy_tau, flat, codebook)
                    tokens.losses["entropy"] = self.entropy_weight * gap
                tokens.stats |= codebook_stats(indices, self.codewords)
            return tokens
