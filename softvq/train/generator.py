"""Training a generator on the tokens of photos, encoded once."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from softvq import images
from softvq.data import Positions, find_photos
from softvq.encoding import Views, write_tokens
from softvq.errors import UserError
from softvq.fingerprint import fingerprint
from softvq.generator.config import HiddenAlignmentConfig
from softvq.generator.families import GENERATORS
from softvq.generator.flowmap import FlowMap, check_teacher
from softvq.generator.objective import Frozen, Learning
from softvq.generator.transformer import TokenTransformer
from softvq.layers import LabelEmbedder
from softvq.models import INDEX, model_folder, open_generator, open_tokenizer, read_classes
from softvq.models import open_teacher as open_vision_model
from softvq.options import BATCH
from softvq.pipeline import Pipeline
from softvq.processes import joined
from softvq.recipe import GeneratorRecipe, recipe_yaml
from softvq.tokenizer import Tokenizer, TokenizerConfig
from softvq.tokenizer.alignment import Teacher, negative_cosine
from softvq.tokens import TokenSet, read_tokens
from softvq.train.features import stored_features
from softvq.train.folder import open_run
from softvq.train.loop import train
from softvq.train.photos import open_photos
from softvq.train.players import Player, Turn
from softvq.train.summaries import summaries

ROWS, COLUMNS = 10, 4  # of the picture of samples: classes, and images of each
HELD_OUT = 4096  # tokens that the validation loss is measured on


class Aim:
    """What alignment aims at: a teacher's features of the pictures that the tokens were made of.

    They are computed for every batch or, with a ``cache`` folder, once: see ``stored_features``.
    """

    def __init__(self, teacher: Teacher, views: Views, cache: Path | None = None):
        self.teacher, self.views = teacher, views
        self.stored: np.ndarray | None = None
        if cache is not None:
            pictures = DataLoader(views, batch_size=BATCH)
            self.stored = stored_features(cache, teacher, views.made_of, len(views), pictures)

    def __getitem__(self, entry: int) -> Tensor:
        """An entry's features [N, D] if they are stored, and its picture [3, H, W] if not."""
        return self.views[entry] if self.stored is None else torch.tensor(self.stored[entry])

    def features(self, items: Tensor) -> Tensor:
        """A batch of items -> features [B, N, D] on their device."""
        return self.teacher.to(items.device)(items) if self.stored is None else items.float()


@dataclass
class TokenBatch:
    """Tokens [B, L, C], unit-scale, labels int64 [B] and, with an aim, its items [B, ...].

    ``seen``: images that the run had seen before.
    """

    latents: Tensor
    labels: Tensor
    seen: int
    aimed_at: Tensor | None = None


class Entries(Dataset[tuple[Tensor, ...]]):
    """Tokens [L, C], label and, with an aim, its item; addressed by (entry, position)."""

    def __init__(self, tokens: TokenSet, aim: Aim | None):
        self.tokens, self.aim = tokens, aim

    def __getitem__(self, at: tuple[int, int]) -> tuple[Tensor, ...]:
        entry, _ = at
        item = self.tokens.latents[entry], self.tokens.labels[entry]
        return item if self.aim is None else (*item, self.aim[entry])


def make_model(
    recipe: GeneratorRecipe,
    tokenizer: TokenizerConfig,
    classes: int,
    teacher: Teacher | None,
    start: Any = None,
) -> Learning:
    """A network of the recipe, new or from ``start``, and all that learns beside it. UserError."""
    torch.manual_seed(recipe.train.seed)
    family = GENERATORS[recipe.family]
    net, loss = family.network(recipe.config(tokenizer, classes)), None
    if isinstance(net, FlowMap):
        taught = recipe.few_step.velocity == "teacher"
        follows = Frozen(start) if taught and start is not None else None
        loss = partial(family.loss, objective=recipe.few_step, teacher=follows)
    elif recipe.contrast:
        loss = partial(family.loss, contrast=recipe.contrast)
    if isinstance(net, FlowMap) and not isinstance(start, FlowMap | None):
        net.start_from(start)
    elif start is not None:
        grows = isinstance(net, TokenTransformer) and net.config.nested
        net.load_state_dict(start.state_dict(), strict=not grows)
    if teacher is None:
        return Learning(net, recipe.time, loss=loss)
    features = (teacher.patches, teacher.width)
    return Learning(net, recipe.time, recipe.alignment, features, loss)


class GeneratorTask:
    """Tokens -> what the network predicts of them. See :class:`softvq.train.players.Task`."""

    name = "generator"

    def __init__(
        self,
        recipe: GeneratorRecipe,
        tokenizer: Tokenizer,
        tokens: TokenSet,
        held_out: TokenSet,
        aim: Aim | None = None,
        start: Any = None,
    ):
        if tokens.lengths is not None or held_out.lengths is not None:
            raise UserError(
                f"a generator draws one number of tokens, and these have what {tokens.index.target}"
                " takes; encode without --psnr and --eye"
            )
        self.recipe, self.tokenizer, self.aim = recipe, tokenizer, aim
        self.tokens, self.held_out = tokens, held_out
        teacher = aim.teacher if aim else None
        self.model = make_model(recipe, tokenizer.config, len(tokens.classes), teacher, start)
        net: Any = self.model.net
        net.config = replace(net.config, tokenizer=tokens.index.tokenizer)
        self.players = [Player.model(self.model, self.loss, recipe.train)]

    def batches(self, start: int, rank: int, world: int) -> Iterator[TokenBatch]:
        config, workers = self.recipe.train, self.recipe.data.workers
        order = Positions(
            len(self.tokens), config.batch, config.images, start, config.seed, rank, world,
            config.accumulate,
        )  # fmt: skip
        loader = DataLoader(
            Entries(self.tokens, self.aim),
            batch_sampler=order,
            num_workers=workers if self.aim else 0,  # tokens lie in memory
        )
        for step, (latents, labels, *aimed_at) in enumerate(loader):
            seen = start + step // config.accumulate * config.batch
            yield TokenBatch(latents, labels, seen, *aimed_at)

    def loss(self, net: nn.Module, batch: TokenBatch, made: None = None) -> Turn:
        device = next(net.parameters()).device
        losses, predicted = net(batch.latents.to(device), batch.labels.to(device))
        loss = losses.mean()
        if self.aim is None or self.model.head is None or batch.aimed_at is None:
            return Turn(loss)
        if batch.seen >= (self.recipe.alignment.images or self.recipe.train.images):
            return Turn(loss + 0 * predicted.sum())  # several processes wait for every gradient
        target = self.model.head.target(self.aim.features(batch.aimed_at.to(device)))
        alignment = self.recipe.alignment.weight * negative_cosine(predicted, target)
        terms = {"generation": loss.detach(), "alignment": alignment.detach()}
        return Turn(loss + alignment, terms)

    def evaluate(self, model: Learning, folder: Path, seen: int) -> dict[str, float]:
        pipeline = Pipeline(self.tokenizer, model.net, self.tokens.classes)
        self.tokenizer.to(next(model.parameters()).device)
        if rows := min(ROWS, len(pipeline.classes)):
            shown = np.linspace(0, len(pipeline.classes) - 1, rows).astype(int)
            pictures = pipeline(shown.repeat(COLUMNS).tolist())
        else:
            pictures = pipeline(count=ROWS * COLUMNS)
        scale = max(1, 128 // pictures[0].height)
        sheet = images.grid(pictures, columns=COLUMNS if rows else ROWS, scale=scale)
        images.save_png(sheet, folder / f"samples-{seen:012d}.png")
        return {"validation_loss": self.validation_loss(model)}

    @torch.no_grad()
    def validation_loss(self, model: Learning) -> float:
        """Loss on held-out tokens, without label dropout; times and noise are always the same."""
        device = next(model.parameters()).device
        draws = torch.Generator().manual_seed(0)
        held_out = (self.held_out.latents, self.held_out.labels)
        batches = zip(*(tensor[:HELD_OUT].split(256) for tensor in held_out), strict=True)
        losses = [model.loss(x0.to(device), y.to(device), draws) for x0, y in batches]
        return torch.cat(losses).mean().item()

    def export(self, model: Learning, folder: Path) -> None:
        Pipeline(self.tokenizer, model.net, self.tokens.classes).save_pretrained(folder)


def first_tokens(tokens: TokenSet, count: int | None) -> TokenSet:
    """The first ``count`` tokens of every photo; None for all."""
    return replace(tokens, latents=tokens.latents[:, :count].contiguous())


def with_summary(tokens: TokenSet, summary: Tensor) -> TokenSet:
    """Further tokens [N, S, C] after those of every photo."""
    return replace(tokens, latents=torch.cat([tokens.latents, summary], dim=1))


def open_teacher(alignment: HiddenAlignmentConfig) -> Teacher | None:
    """The teacher that a recipe names, or None if it aligns with none. Raises UserError."""
    if not alignment.weight:
        return None
    if not alignment.teacher:
        raise UserError(
            "the recipe reads a vision transformer, as facebook/dinov2-large: give "
            "alignment.teacher=DIRECTORY, or set alignment.weight=0"
        )
    return open_vision_model(alignment.teacher, alignment.download)


def set_classes(generator: Any, known: list[str], classes: list[str]) -> None:
    """Make a generator of ``known`` classes one of others, in place: what it knows of a name stays,
    and a new one begins as the null class, which is what all have in common. Raises UserError if it
    has not as many classes as ``known``."""
    table = generator.y_embedder.embedding_table.weight.data
    null = generator.config.num_classes
    if len(known) != null:
        raise UserError(f"{INDEX}: {len(known)} class names for {null} classes")
    rows = [known.index(name) if name in known else null for name in classes]
    generator.y_embedder = LabelEmbedder(len(classes), table.shape[1])
    generator.y_embedder.embedding_table.weight.data = table[[*rows, null]]
    generator.config = replace(generator.config, num_classes=len(classes))


def open_start(recipe: GeneratorRecipe, tokenizer: Tokenizer, classes: list[str]) -> Any:
    """The generator that a recipe starts from, or None; ``recipe.model`` takes its shape.

    Of photos of other classes it learns these: see ``set_classes``. Raises UserError if it is of
    another family or of other tokens, if it is a teacher of other classes, if it names no classes
    and has another number of them, and if a teacher is wanted and there is none.
    """
    taught = recipe.family == "flowmap" and recipe.few_step.velocity == "teacher"
    if recipe.init is None:
        if taught:
            raise UserError(
                "a few-step generator learns from a trained SiT: give --init MODEL, or set "
                "few_step.velocity=data"
            )
        return None
    start = open_generator(recipe.init)
    index = model_folder(recipe.init) / INDEX
    if index.is_file() and (known := read_classes(index)) != classes:
        if taught and not isinstance(start, FlowMap):
            raise UserError(
                f"{recipe.init}: draws {', '.join(known[:5])}, and the photos are of "
                f"{', '.join(classes[:5]) or 'no classes'}; give photos of its classes, or train a "
                f"SiT on these first: --recipe nested-generator --init {recipe.init}"
            )
        set_classes(start, known, classes)
    drafts = recipe.family != "flowmap" and getattr(recipe.model, "nested", False)
    for name, value in asdict(start.config).items():
        if hasattr(recipe.model, name) and name != "label_dropout":
            setattr(recipe.model, name, value)
    if drafts:
        recipe.model.nested = True  # type: ignore[attr-defined]
    config = recipe.config(tokenizer.config, len(classes))
    if taught or (recipe.family == "flowmap" and not isinstance(start, FlowMap)):
        check_teacher(start, config)
    else:
        named = ("tokenizer", "label_dropout", "nested")  # any learns to draw the first alone
        own, wanted = (
            {k: v for k, v in asdict(some).items() if k not in named}
            for some in (start.config, config)
        )
        if type(start.config) is not type(config) or own != wanted:
            raise UserError(
                f"{recipe.init}: a {type(start).__name__} of {start.config.num_classes} classes on "
                f"{start.config.tokens} x {start.config.channels} tokens, and a {recipe.family} of "
                f"{len(classes)} on {config.tokens} x {config.channels} is to start from it"
            )
    learned = start.config.tokenizer
    if learned is not None and learned != fingerprint(tokenizer):
        raise UserError(f"{recipe.init}: learned the tokens of another tokenizer; give its own")
    return start


def train_generator(recipe: GeneratorRecipe, folder: Path) -> bool:
    """Run or continue a recipe in ``folder``. Returns False if it was stopped before its end.

    Beside what every run writes: photos/ (decoded), tokens/ (encoded, see ``softvq.tokens``),
    teacher/ (its features, with alignment.cache), summaries/ (with model.summary), and a pipeline:
    tokenizer/, generator/ and model_index.json.
    """
    tokenizer = open_tokenizer(recipe.tokenizer)
    if recipe.tokens is not None:
        tokenizer.check_tokens(recipe.tokens)
    if getattr(recipe.model, "nested", False):
        tokenizer.check_tokens(1)  # of one that keeps any first tokens
    teacher = open_teacher(recipe.alignment)
    with torch.device("meta"):  # what does not fit is said before hours of encoding
        make_model(recipe, tokenizer.config, 0, teacher)
    size = (tokenizer.config.height, tokenizer.config.width)
    photos_found = find_photos(recipe.data.source)  # and that there are some
    start = open_start(recipe, tokenizer, photos_found.classes)
    with open_run(folder, recipe_yaml(recipe), recipe.data.source):
        photos, held_out = open_photos(recipe.data, size, folder / "photos")
        state = joined()
        tokenizer.to(state.device)
        tokens, aim = folder / "tokens", None
        crops = recipe.views, recipe.data.flip, recipe.train.seed
        views = Views(photos, *crops)
        with state.main_process_first():  # the others find the files that it wrote
            write_tokens(tokens / "train", tokenizer, photos, *crops)
            write_tokens(tokens / "val", tokenizer, held_out)
            if teacher is not None:
                cache = folder / "teacher" if recipe.alignment.cache else None
                aim = Aim(teacher.to(state.device), views, cache)
            further = getattr(recipe.model, "summary", 0), tokenizer.config.channels
            if further[0]:
                seen = views, Views(held_out, 1, recipe.data.flip, recipe.train.seed)
                added = summaries(folder / "summaries", further, *seen, state.device)
        made_by = fingerprint(tokenizer)
        kept, kept_out = (
            first_tokens(read_tokens(tokens / split, made_by), recipe.tokens)
            for split in ("train", "val")
        )
        if further[0]:
            kept, kept_out = map(with_summary, (kept, kept_out), added)
        task = GeneratorTask(recipe, tokenizer, kept, kept_out, aim, start)
        return train(task, recipe.train, folder)
