"""The tokenizers of a study: the shipped one, principal components, and one that is fine-tuned.

Each is measured at every token count from the same weights.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from softvq.coding import BATCH, batches, measure_latents, size_of
from softvq.data import Store
from softvq.device import pick_device
from softvq.errors import UserError
from softvq.layers import evaluating
from softvq.models import open_tokenizer
from softvq.options import Trained
from softvq.precision import computing
from softvq.quality import lengths_tried
from softvq.recipe import TokenizerRecipe, load_recipe, recipe_yaml
from softvq.study.settings import Settings
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokenizer.linear import amplitudes_of, fit_components
from softvq.train.folder import metrics, open_run
from softvq.train.loop import train
from softvq.train.tokenizer import TokenizerTask

SHIPPED, PCA, TUNED = "shipped", "pca", "tuned"
KINDS = (TUNED, "decoder", "kl", "vq", "ae", SHIPPED, PCA)  # of what can be recommended
COEFFICIENTS = 2  # that components are of, for each of a tokenizer's numbers
PRIOR = 50.0  # photos that all photographs count for, where components are fitted
GENTLE = 0.5  # learning rates of what is trained already, as a share of the recipe's
MARGIN = 1.15  # by which random crops may be smaller than a piece
WARM = 256  # photos of the first round, which tells how fast the second will be
FEWEST = 256  # photos of the second, at least


@cache
def base_recipe() -> TokenizerRecipe:
    return load_recipe(TokenizerRecipe, "nested", [])


def kind_of(trained: Trained) -> str:
    """What a model is called in tables: the plain fine-tuned one is ``tuned``."""
    return TUNED if trained == "softvq" else trained


def open_start(settings: Settings) -> Tokenizer:
    """The nested tokenizer that a study starts from. Raises UserError for any other.

    Where the package ships none yet, that of the recipe ``nested`` before training, which is the
    picture's cosine transform.
    """
    source = open_tokenizer(settings.init)
    if settings.init == "shipped" and not getattr(source.config, "nested", False):
        torch.manual_seed(0)
        source = Tokenizer(base_recipe().model).eval()
    config = source.config
    if not isinstance(config, TokenizerConfig) or not config.nested:
        raise UserError(f"{settings.init}: not nested; --init takes a tokenizer of recipe nested")
    if config.height != config.width:
        raise UserError(f"{settings.init}: reads {config.height} x {config.width}, not squares")
    return source


def counts_of(settings: Settings, config: TokenizerConfig) -> list[int]:
    """The token counts to measure. Raises UserError for more than the tokenizer has."""
    counts = sorted(set(settings.tokens or lengths_tried(config.tokens)))
    if counts[-1] > config.tokens:
        raise UserError(
            f"--tokens {counts[-1]}: {settings.init} keeps a picture as 1 to {config.tokens}"
        )
    return counts


# ---- principal components ----


def fit_pca(like: TokenizerConfig, photos: Store) -> Tokenizer:
    """A tokenizer of network linear with as many tokens and channels as ``like``."""
    floats = like.tokens * like.channels
    config = replace(
        TokenizerConfig(),
        network="linear",
        nested=True,
        bottleneck="ae",
        height=like.height,
        width=like.width,
        patch=like.patch,
        tokens=like.tokens,
        channels=like.channels,
        coefficients=COEFFICIENTS * floats,
    )
    tokenizer = Tokenizer(config).eval()
    with torch.inference_mode():
        found = [amplitudes_of(tokenizer.encoder, x) for x in batches(photos, photos.size)]
    fit_components(tokenizer.encoder, tokenizer.decoder, torch.cat(found), PRIOR)
    measure_latents(tokenizer, photos)
    return tokenizer


# ---- fine-tuning ----


@dataclass(frozen=True)
class Training:
    """One model to fine-tune, in ``folder``; ``seed`` of what is drawn at random."""

    trained: Trained
    folder: Path
    seed: int

    def run(self, start: Path, photos: Store, shown: Store, images: int, first: bool) -> bool:
        """Fine-tune for so many photos, in the ``first`` round or the other. False if stopped."""
        base, config = base_recipe(), open_tokenizer(start).config
        share = GENTLE if config.network == "spectral" else 1.0
        schedule = replace(
            base.train,
            images=images,
            # The first round raises the rate to its peak, from where the second lowers it.
            warmup=images if first else 0,
            lr=share * base.train.lr,
            muon_lr=share * base.train.muon_lr,
            seed=self.seed + (not first),
            ema_halflife=min(base.train.ema_halflife, max(1, images // 10)),
            log_every=max(base.train.batch, images // 20),
            evaluate_every=images,
            checkpoint_every=max(base.train.batch, images // 8),
        )
        recipe = replace(
            base,
            data=replace(base.data, margin=MARGIN),
            model=config,
            train=schedule,
            init=str(start),
            trainable="decoder" if self.trained == "decoder" else "all",
        )
        folder = self.round(first)
        with open_run(folder, recipe_yaml(recipe)):
            task = TokenizerTask(recipe)
            task.on(replace(photos, margin=MARGIN), shown)
            return train(task, recipe.train, folder)

    def round(self, first: bool) -> Path:
        return self.folder.with_name(f"{self.folder.name}-warm") if first else self.folder

    @property
    def speed(self) -> float:
        """Photos per second of the first round, without what it did once."""
        found = [line["images_per_second"] for line in metrics(self.round(True), "loss")]
        return float(sorted(found)[len(found) // 2])


def starting_point(trained: Trained, source: Tokenizer, seed: int) -> Tokenizer:
    """The source, or one with another bottleneck and what fits of its weights."""
    if trained == "softvq" or trained == "decoder":
        return source
    torch.manual_seed(seed)
    config = replace(source.config, bottleneck=trained, codebooks=1, codebook_axis="tokens")
    if trained == "vq":
        config = replace(config, codebook_size=4096, vq_update="ema")
    made, theirs = Tokenizer(config), source.state_dict()
    own = made.state_dict()
    with torch.no_grad():
        for name, tensor in own.items():
            if name in theirs and theirs[name].shape == tensor.shape:
                tensor.copy_(theirs[name])
    return made.eval()


# ---- rebuilding ----


@dataclass(frozen=True)
class Latents:
    """All tokens of M pieces, [M, L, C], and pieces per second of encoding."""

    latents: torch.Tensor
    speed: float


def pieces_store(pieces: np.ndarray) -> Store:
    """Pieces as a store, whose pictures are not resized."""
    height, width = pieces.shape[1:3]
    names = [str(i) for i in range(len(pieces))]
    labels = np.zeros(len(pieces), np.int64)
    return Store(pieces, labels, names, [], [], (height, width), 1.0, "pieces")


def encode(tokenizer: Tokenizer, pieces: Store) -> Latents:
    device = pick_device()
    tokenizer = tokenizer.to(device)
    found, spent = [], 0.0
    with evaluating(tokenizer), computing("auto", tokenizer):
        for some in batches(pieces, size_of(tokenizer), BATCH):
            started = time.perf_counter()
            found.append(tokenizer.encode(some.to(device)).latents.float().cpu())
            spent += time.perf_counter() - started
    return Latents(torch.cat(found), len(pieces) / max(spent, 1e-9))


def decode(tokenizer: Tokenizer, latents: torch.Tensor, count: int) -> Iterator[torch.Tensor]:
    """Pictures of the first ``count`` tokens, batch by batch, [b, 3, H, W] in [-1, 1]."""
    device = tokenizer.latent_mean.device
    with evaluating(tokenizer), computing("auto", tokenizer):
        for some in latents[:, :count].split(BATCH):
            yield tokenizer.decode(some.to(device)).float().clamp(-1, 1).cpu()


def folder_of(kind: str, out: Path) -> Path:
    """Where a model of the study lies."""
    return out / "models" / kind
