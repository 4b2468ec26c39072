"""Training a tokenizer on photos."""

import copy
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from softvq import images
from softvq.coding import SKIPPED, measure_latents, reconstruct_all
from softvq.data import Store, find_photos, is_sharded
from softvq.data.stream import count_lost
from softvq.errors import UserError, first_started
from softvq.evaluate.pixels import psnr, ssim
from softvq.models import initialise_encoder, open_teacher, open_tokenizer
from softvq.precision import computing
from softvq.processes import joined, mean_of_all, ours, whole
from softvq.recipe import TokenizerRecipe, recipe_yaml
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokenizer.adversary import Adversary, adaptive_weight
from softvq.tokenizer.alignment import HEADS, Head, Teacher, negative_cosine
from softvq.tokenizer.bottleneck import Tokens
from softvq.tokenizer.objective import Objective
from softvq.tokenizer.terms import ObjectiveConfig
from softvq.train.features import FeatureCache
from softvq.train.folder import metrics, open_run
from softvq.train.loop import train
from softvq.train.optimizers import adamw
from softvq.train.photos import Batch, crop_batches, open_photos
from softvq.train.players import Player, Turn

SHOWN = 16  # pictures in a grid


class Autoencoding(nn.Module):
    """What is trained: a tokenizer, and with alignment the head that reads its latents.

    Masking of patches and noise on latents (see ObjectiveConfig) happen here, in training only. An
    encoder without a trainable parameter stays in evaluation mode and runs without gradient.
    """

    def __init__(self, tokenizer: Any, head: Head | None, config: ObjectiveConfig):
        super().__init__()
        self.tokenizer, self.head, self.config = tokenizer, head, config
        self.frozen = not any(p.requires_grad for p in tokenizer.encoder.parameters())

    def train(self, mode: bool = True) -> "Autoencoding":
        super().train(mode)
        if self.frozen:
            for part in encoding(self.tokenizer):
                part.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tokens, Tensor | None]:
        """Images [B, 3, H, W] -> reconstruction, Tokens, predicted features (None without head)."""
        keep = None
        if self.training and self.config.masking:
            keep = unmasked(images, self.tokenizer.config.patch, self.config.masking)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.tokenizer.encode(images, keep)
        predicted = self.head(tokens.latents) if self.head is not None else None
        latents = tokens.latents
        if self.training and self.config.latent_noise:
            latents = noised(latents, self.config.latent_noise)
        lengths = None
        if self.training and self.tokenizer.config.nested:
            lengths = prefixes(latents, self.config)
        return self.tokenizer.decode(latents, images.shape[-2:], lengths), tokens, predicted


def unmasked(images: Tensor, patch: int, most: float) -> Tensor:
    """Patches of images [B, 3, H, W] that the encoder reads, int64 [B, K].

    The share left out is drawn from U(0, ``most``) for the batch, the patches for each image.
    """
    count, _, height, width = images.shape
    patches = (height // patch) * (width // patch)
    kept = max(1, round(patches * (1 - most * torch.rand(()).item())))
    draws = ours(torch.rand(whole(count), patches, device=images.device))
    return draws.argsort(dim=1)[:, :kept]


def prefixes(latents: Tensor, config: ObjectiveConfig) -> Tensor:
    """How many tokens of latents [B, L, C] the decoder reads of each image, int64 [B] in 1..L."""
    count, most = latents.shape[:2]
    share = ours(torch.rand(whole(count), device=latents.device))
    drawn = most**share if config.prefix == "powers" else 0.5 + most * share
    entire = ours(torch.rand(whole(count), device=latents.device)) < config.whole
    return torch.where(entire, most, drawn.round().long().clamp(1, most))


def noised(latents: Tensor, strength: float) -> Tensor:
    """(1 - s) z + s e, with s ~ U(0, 1) for each image (Yang et al. 2025, "l-DeTok", Sec. 3.2).

    Latents [B, L, C]; the noise e has ``strength`` times their standard deviation in each channel,
    which no encoder can escape by growing its latents.
    """
    count, device = whole(latents.shape[0]), latents.device
    share = ours(torch.rand(count, 1, 1, device=device))
    here = latents.detach().float()
    mean = mean_of_all(here.mean((0, 1)))
    deviation = mean_of_all((here - mean).square().mean((0, 1))).sqrt().to(latents.dtype)
    noise = ours(torch.randn(count, *latents.shape[1:], dtype=latents.dtype, device=device))
    return latents.lerp(strength * deviation * noise, share.to(latents.dtype))


def encoding(tokenizer: Any) -> tuple[nn.Module, ...]:
    """The parts of a tokenizer that decide its tokens."""
    return tokenizer.encoder, tokenizer.to_latent, tokenizer.bottleneck


def with_adapters(tokenizer: Tokenizer, rank: int, trainable: str) -> Any:
    """The tokenizer with low-rank adapters in its blocks; all else is frozen. UserError."""
    try:
        from peft import LoraConfig, LoraModel
    except ImportError:
        raise UserError("lora_rank needs peft: pip install 'softvq[lora]'") from None
    part = "decoder" if trainable == "decoder" else "(encoder|decoder)"
    layers = rf"{part}\.blocks\..*\.(qkv|proj|fc1|fc2)"
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    return LoraModel(tokenizer, {"default": config}, "default")


class TokenizerTask:
    """Photos -> crops -> reconstruction. See :class:`softvq.train.players.Task`.

    It opens every file that the recipe names, which raises UserError, before it is given photos.
    ``features`` may be set to the teacher's, computed before.
    """

    name = "tokenizer"
    train_photos: Store
    held_out: Store

    def __init__(self, recipe: TokenizerRecipe):
        self.recipe = recipe
        check_combination(recipe)
        torch.manual_seed(recipe.train.seed)
        tokenizer = Tokenizer(recipe.model)
        if recipe.init:
            start_from(tokenizer, open_init(recipe))
        if recipe.encoder_init:
            initialise_encoder(tokenizer, recipe.encoder_init)
        if recipe.trainable == "decoder":
            for part in encoding(tokenizer):
                part.requires_grad_(False)
        if recipe.lora_rank:
            tokenizer = with_adapters(tokenizer, recipe.lora_rank, recipe.trainable)
        self.objective = Objective(recipe.objective)
        self.adversary = Adversary(recipe.adversary) if recipe.adversary.weight else None
        self.features: FeatureCache | None = None
        self.teacher: Teacher | None = None
        head = None
        if recipe.alignment.weight:
            self.teacher = open_teacher(recipe.alignment.teacher or "", recipe.alignment.download)
            head = HEADS[recipe.alignment.scheme](
                recipe.alignment.hidden,
                (recipe.model.tokens, recipe.model.channels),
                (self.teacher.patches, self.teacher.width),
            )
        self.model = Autoencoding(tokenizer, head, recipe.objective)
        self.players = [Player.model(self.model, self.loss, recipe.train)]
        if self.adversary is not None:
            self.players.append(adversary_player(self.adversary, self.adversary_loss, recipe))

    def on(self, train_photos: Store, held_out: Store) -> Self:
        """This task, with its photos."""
        self.train_photos, self.held_out = train_photos, held_out
        return self

    def batches(self, start: int, rank: int, world: int) -> Iterable[Batch]:
        data, config = self.recipe.data, self.recipe.train
        return crop_batches(self.train_photos, data, config, start, rank, world)

    def loss(self, net: nn.Module, batch: Batch, made: None = None) -> Turn:
        """The tokenizer's turn; it makes the reconstruction [B, 3, H, W]."""
        device = next(net.parameters()).device
        batch = batch.to(device)
        reconstruction, tokens, predicted = net(batch.pixels)
        terms = self.objective.to(device)(batch.pixels, reconstruction, batch.seen)
        if self.adversary is not None and batch.seen >= self.recipe.adversary.start:
            terms["adversarial"] = self.adversarial_term(terms, reconstruction)
        if predicted is not None:
            target = self.aim(batch)
            terms["alignment"] = self.recipe.alignment.weight * negative_cosine(predicted, target)
        terms |= tokens.losses
        total = torch.stack(list(terms.values())).sum()
        rebuilt = reconstruction.detach()
        mse = (rebuilt.float() - batch.pixels).square().mean((1, 2, 3))
        terms["train_psnr"] = (10 * torch.log10(4 / mse)).mean()
        return Turn(total, terms | tokens.stats, rebuilt)

    def adversary_loss(self, net: nn.Module, batch: Batch, made: Tensor) -> Turn | None:
        """The adversary's turn: photos against the reconstruction that the tokenizer made."""
        if batch.seen < self.recipe.adversary.start:
            return None
        return Turn(*net(batch.pixels.to(made.device), made))

    def adversarial_term(self, terms: dict[str, Tensor], reconstruction: Tensor) -> Tensor:
        """What the reconstruction loses by being told from photos; ``terms``: those of pixels."""
        assert self.adversary is not None
        loss = self.adversary.generator_loss(reconstruction)
        weight: Tensor | float = self.recipe.adversary.weight
        if self.recipe.adversary.adaptive:
            pixel = torch.stack(list(terms.values())).sum()
            weight = weight * adaptive_weight(pixel, loss, self.model.tokenizer.last_layer)
        return weight * loss

    def aim(self, batch: Batch) -> Tensor:
        """The teacher's features, as the head is to predict them."""
        assert self.teacher is not None and self.model.head is not None
        device = batch.pixels.device
        if self.features is not None:
            features = self.features(batch.rows, batch.mirrored).to(device)
        else:
            features = self.teacher.to(device)(batch.pixels)
        return self.model.head.target(features)

    def evaluate(self, model: Autoencoding, folder: Path, seen: int) -> dict[str, float]:
        with computing(self.recipe.train.precision, model):  # as it was trained
            originals, rebuilt = reconstruct_all(model.tokenizer, self.held_out)
        shown = np.linspace(0, len(originals) - 1, min(SHOWN, len(originals))).astype(int)
        rows = np.concatenate([originals[shown], rebuilt[shown]])
        scale = max(1, 128 // originals.shape[1])
        picture = images.grid(rows, columns=len(shown), scale=scale)
        images.save_png(picture, folder / f"reconstruction-{seen:012d}.png")
        return {"psnr": psnr(originals, rebuilt), "ssim": ssim(originals, rebuilt)}

    def export(self, model: Autoencoding, folder: Path) -> None:
        tokenizer = model.tokenizer
        if self.recipe.lora_rank:
            tokenizer = copy.deepcopy(tokenizer).merge_and_unload()
        if not model.frozen:
            with computing(self.recipe.train.precision, tokenizer):
                measure_latents(tokenizer, self.train_photos)
        tokenizer.save_pretrained(folder)


def adversary_player(
    adversary: Adversary, loss: Callable[..., Turn | None], recipe: TokenizerRecipe
) -> Player:
    """The adversary learns with AdamW, at a rate of its own."""
    lr, weight_decay = recipe.adversary.lr, recipe.train.weight_decay

    def optimizers(net: nn.Module) -> list[torch.optim.Optimizer]:
        return [adamw([(p, lr) for p in net.parameters() if p.requires_grad], weight_decay)]

    return Player("adversary", adversary, loss, optimizers, {"adversary.lr": lr})


def open_init(recipe: TokenizerRecipe) -> Tokenizer:
    """What a recipe starts from. Raises UserError for a tokenizer of another shape.

    Where the decoder alone is trained it may be another one, lighter or heavier.
    """
    trained = open_tokenizer(recipe.init or "")
    if not isinstance(trained.config, TokenizerConfig):
        raise UserError(f"{recipe.init}: of diffusers; init takes a tokenizer of softvq")
    ours, theirs = asdict(recipe.model), asdict(trained.config)
    free = "decoder" if recipe.trainable == "decoder" else "none of them"
    differ = [key for key in ours if ours[key] != theirs[key] and not key.startswith(free)]
    changes = [f"model.{key}={theirs[key]}" for key in differ]
    if changes:
        raise UserError(f"{recipe.init}: not of the recipe's shape; add {' '.join(changes)}")
    return trained


def start_from(tokenizer: Tokenizer, trained: Tokenizer) -> None:
    """Take a trained tokenizer's weights; of a decoder of another shape what lies before it."""
    state = trained.state_dict()
    if tokenizer.config != trained.config:
        own = tokenizer.state_dict()
        kept = {
            k for k, v in own.items() if not k.startswith("decoder.") and v.shape == state[k].shape
        }
        state = {name: state[name] if name in kept else own[name] for name in own}
    tokenizer.load_state_dict(state)


def check_combination(recipe: TokenizerRecipe) -> None:
    """Raises UserError for settings that exclude or need each other."""
    decoder_only = recipe.trainable == "decoder"
    if (decoder_only or recipe.lora_rank) and not recipe.init:
        setting = "trainable=decoder" if decoder_only else "lora_rank"
        raise UserError(f"{setting} is for a trained tokenizer: give --init")
    if recipe.init and recipe.encoder_init:
        raise UserError("init has an encoder of its own: give init or encoder_init, not both")
    if recipe.objective.masking and recipe.model.network != "vit":
        raise UserError("objective.masking leaves out patches of network vit only; set it to 0")
    if recipe.lora_rank and recipe.model.network != "vit":
        raise UserError("lora_rank adapts the blocks of network vit only; set it to 0")
    check_files(recipe)
    if not recipe.alignment.weight:
        return
    if decoder_only:
        raise UserError("alignment teaches the encoder, which is frozen; set alignment.weight=0")
    if recipe.alignment.cache and recipe.data.margin != 1:
        raise UserError("alignment.cache is for whole photos: set data.margin=1")


def check_files(recipe: TokenizerRecipe) -> None:
    """Raises UserError naming all networks of others that the recipe's terms read and lack."""
    objective, adversary, alignment = recipe.objective, recipe.adversary, recipe.alignment
    judged = adversary.weight and adversary.discriminator == "dino"
    terms = (
        (
            objective.lpips and not objective.lpips_vgg,
            "objective.lpips_vgg=FILE (VGG-16, as timm/vgg16.tv_in1k)",
            "objective.lpips=0",
        ),
        (
            judged and not adversary.dino,
            "adversary.dino=FILE (a DINO, as timm/vit_small_patch16_224.dino)",
            "adversary.weight=0",
        ),
        (
            alignment.weight and not alignment.teacher,
            "alignment.teacher=DIRECTORY (a vision transformer, as facebook/dinov2-large)",
            "alignment.weight=0",
        ),
    )
    lacking = [(file, without) for lacks, file, without in terms if lacks]
    if lacking:
        give, leave = (", ".join(words) for words in zip(*lacking, strict=True))
        raise UserError(f"the recipe reads networks of others: give {give}; or set {leave}")


def train_tokenizer(recipe: TokenizerRecipe, folder: Path, photos_in: Path | None = None) -> bool:
    """Run or continue a recipe in ``folder``. Returns False if it was stopped before its end.

    ``photos_in``: where decoded photos are kept, for runs that share them; ``folder``/photos.
    """
    task = TokenizerTask(recipe)  # now: decoding many photos takes hours
    size = (recipe.model.height, recipe.model.width)
    find_photos(recipe.data.source)  # before a folder is made for them
    with open_run(folder, recipe_yaml(recipe), recipe.data.source):
        cache = photos_in or folder / "photos"
        photos, held_out = open_photos(recipe.data, size, cache, say=photos_in is None)
        task.on(photos, held_out)
        if task.teacher is not None and recipe.alignment.cache:
            state = joined()
            with state.main_process_first():  # the others find the files that it wrote
                teacher = task.teacher.to(state.device)
                task.features = FeatureCache(folder / "teacher", teacher, photos, recipe.data.flip)
        finished = train(task, recipe.train, folder)
        lost = cache / SKIPPED
        if is_sharded(recipe.data.source) and first_started() and (count := count_lost(lost)):
            print(f"{count:,} photos could not be read, listed in {lost}", file=sys.stderr)
        return finished


TRIAL = 20  # optimizer steps of a speed measurement


def training_speed(recipe: TokenizerRecipe, photos_in: Path | None = None) -> float:
    """Images per second of training by a recipe here: a few steps in a folder that goes again.

    Raises KeyboardInterrupt if it was stopped, and UserError as training does.
    """
    count = TRIAL * recipe.train.batch
    schedule = replace(
        recipe.train,
        images=count,
        warmup=count // 2,
        log_every=count // 2,
        evaluate_every=count,
        checkpoint_every=count,
    )
    with tempfile.TemporaryDirectory() as scratch:
        if not train_tokenizer(replace(recipe, train=schedule), Path(scratch), photos_in):
            raise KeyboardInterrupt
        return metrics(Path(scratch), "images_per_second")[-1]["images_per_second"]
