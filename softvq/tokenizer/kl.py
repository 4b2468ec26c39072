"""KL, the Gaussian posterior of a VAE, and AE, no bottleneck at all."""

from torch import Tensor

from softvq.layers import full_precision
from softvq.tokenizer.base import Bottleneck, Tokens
from softvq.tokenizer.config import TokenizerConfig


class KL(Bottleneck):
    """Diagonal Gaussian posterior (Kingma & Welling 2013): a sample in training, the mean after.

    Loss: kl_weight x KL(q || N(0, 1)) summed over tokens and channels, averaged over the batch.
    With ``free_bits``, a channel whose divergence, averaged over tokens and batch, is below so many
    nats costs that many and gets no gradient (Kingma et al. 2016): it need not fall silent.
    """

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.features = 2 * config.channels
        self.kl_weight = config.kl_weight
        self.free_bits = config.free_bits

    def forward(self, z: Tensor) -> Tokens:
        with full_precision(z):
            mean, logvar = z.float().chunk(2, dim=-1)
            logvar = logvar.clamp(-30.0, 20.0)
            tokens = Tokens(mean, posterior=(mean, logvar))
            if self.training:
                tokens.latents = tokens.sample()
                kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar)
                cost = kl.sum(dim=(1, 2)).mean()
                tokens.stats["kl"] = cost.detach()
                if self.free_bits:
                    cost = kl.mean(dim=(0, 1)).clamp_min(self.free_bits).sum() * z.shape[1]
                tokens.losses["kl"] = self.kl_weight * cost
            return tokens


class AE(Bottleneck):
    """No bottleneck but the width: the plain autoencoder."""

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.features = config.channels

    def forward(self, z: Tensor) -> Tokens:
        return Tokens(z.float())
