"""A trained model's figures: of its reconstructions, its drawn pictures, its latents.

Pictures are measured as 8-bit files would hold them and are streamed: memory does not grow with
their number, but for the features that need every picture (see ``FeatureSet``). Processes that
torchrun started measure a part each, and all have the figures of the whole.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from softvq.coding import BATCH, encode, evenly, originals, round_trips
from softvq.data import Store, find_marks, read_masks
from softvq.errors import UserError
from softvq.evaluate.features import (
    FeatureNetwork,
    FeatureSet,
    frechet_distances,
    set_measures,
)
from softvq.evaluate.latents import (
    codebook_use,
    effective_rank,
    knn_accuracy,
    linear_probe,
    token_contributions,
)
from softvq.evaluate.pixels import eye_distance, lpips_per_image, psnr_per_image, ssim_per_image
from softvq.evaluate.statistics import Statistics
from softvq.images import to_uint8
from softvq.pipeline import Pipeline
from softvq.processes import gathered, share
from softvq.quality import Budget, Predicted, Target
from softvq.tokenizer import Tokenizer
from softvq.tokenizer.lpips import LPIPS
from softvq.tokenizer.perceptual import EyeDistance

NEIGHBOURS = 20
FEWEST = 6  # pictures that density and coverage need: more than their 5 neighbours


def evaluate_reconstruction(
    tokenizer: Tokenizer,
    photos: Store,
    network: FeatureNetwork | None = None,
    lpips: LPIPS | None = None,
    masks: Path | None = None,
    tokens: Budget = None,
) -> dict[str, float]:
    """Means over the photos: psnr_db, ssim, eye, lpips; with a network rfid or rfd (and rsfid).

    ``tokens``: how many of each photo, of a nested tokenizer, as in :mod:`softvq.coding`; adds
    their mean, and with a target ``missed``, how many photos do not meet it.

    ``masks``: a folder as in :func:`softvq.data.find_marks`; without, that of an MVTec folder. Adds
    each measure inside, over ``images_inside`` photos: those with a mask that is not empty.
    """
    values: dict[str, list[np.ndarray]] = {}
    real = FeatureSet(network, keep=False) if network else None
    rebuilt = FeatureSet(network, keep=False) if network else None
    marks = find_marks(photos.names, photos.root, masks)
    marked = masks is not None or any(marks)
    mine = share(len(photos), BATCH)
    photos, marks = photos.some(np.arange(len(photos))[mine]), marks[mine.start : mine.stop]
    done, kept, missed = 0, 0, 0
    eye = EyeDistance().to(tokenizer.device)
    target = tokens.target if isinstance(tokens, Predicted) else tokens
    for pixels, found, decoded in round_trips(tokenizer, photos, tokens=tokens):
        a, b = to_uint8(pixels), to_uint8(decoded)
        whole = len(a) * found.latents.shape[1]
        kept += whole if found.lengths is None else int(found.lengths.sum())
        if isinstance(target, Target):
            missed += int((~target.met(pixels.to(decoded.device), decoded)).sum())
        values.setdefault("eye", []).append(eye_distance(a, b, eye))
        regions: dict[str, np.ndarray | None] = {"": None}
        if marked:
            regions["_inside"] = read_masks(marks[done : done + len(a)], photos.size)
        for where, mask in regions.items():
            values.setdefault(f"psnr{where}_db", []).append(psnr_per_image(a, b, mask))
            values.setdefault(f"ssim{where}", []).append(ssim_per_image(a, b, mask=mask))
            if lpips:
                values.setdefault(f"lpips{where}", []).append(lpips_per_image(a, b, lpips, mask))
        if real and rebuilt:
            real.add(a)
            rebuilt.add(b)
        done += len(a)
    for name in sorted({name for names in gathered(list(values)) for name in names}):
        values[name] = [x for parts in gathered(values.get(name, [])) for x in parts]
    done, kept, missed = (sum(gathered(number)) for number in (done, kept, missed))
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    figures: dict[str, float] = {}
    if marked:
        figures["images_inside"] = int(np.isfinite(joined["ssim_inside"]).sum())
        if not figures["images_inside"]:
            place = masks or photos.root
            raise UserError(f"{place}: no mask for any photo; name each as its photo, with .png")
    figures |= {name: float(np.nanmean(x)) for name, x in joined.items()}
    if tokens is not None:
        figures["tokens"] = kept / done
    if isinstance(target, Target):
        figures["missed"] = missed
    if real and rebuilt:
        figures |= frechet_distances(real.merged().statistics, rebuilt.merged(), "r")
    return figures


def evaluate_generation(
    pipeline: Pipeline,
    network: FeatureNetwork,
    photos: Store | None = None,
    reference: dict[str, Statistics] | None = None,
    count: int | None = None,
    **sampling: Any,
) -> dict[str, float]:
    """Drawn pictures against photos, or against reference statistics: gfid or gfd, and more.

    Against photos as many pictures are drawn, with the photos' labels if they have any, and all
    measures are taken; against statistics ``count`` pictures, evenly over the classes, and only
    those that need no photo. ``sampling`` goes to ``Pipeline.generate_latents``. Raises UserError.
    """
    if (photos is None) == (reference is None):
        raise UserError("drawn pictures are measured against either photos or statistics")
    wanted = len(photos) if photos is not None else count or 0
    if wanted < FEWEST:
        raise UserError(f"{wanted} pictures are too few to measure; give {FEWEST} or more")
    names = pipeline.classes
    labels: list[str] | None = None
    if names and photos is not None and photos.classes:
        labels = [photos.classes[i] for i in photos.labels]
    elif names:
        labels = [names[i * len(names) // wanted] for i in range(wanted)]
    drawn = FeatureSet.of(network, _drawn(pipeline, labels, wanted, sampling)).merged()
    if photos is None:
        figures = frechet_distances(reference or {}, drawn, "g")
        if not figures:
            raise UserError("the statistics are not of this network's features")
        return figures | set_measures(None, drawn)
    mine = photos.some(np.arange(wanted)[share(wanted, BATCH)])
    real = FeatureSet.of(network, originals(mine)).merged()
    return frechet_distances(real.statistics, drawn, "g") | set_measures(real, drawn)


def _drawn(
    pipeline: Pipeline, labels: list[str] | None, count: int, sampling: dict[str, Any]
) -> Iterator[np.ndarray]:
    mine = share(count, BATCH)
    for first in mine[::BATCH]:
        last = min(first + BATCH, mine.stop)
        some = labels[first:last] if labels else None
        more = None if labels else last - first
        latents = pipeline.generate_latents(some, more, start=first, **sampling)
        yield pipeline.decode_uint8(latents)


@torch.no_grad()
def evaluate_latents(
    tokenizer: Tokenizer,
    train: Store,
    held_out: Store,
    limit: int = 10_000,
    probed: int = 128,
    tokens: Budget = None,
) -> dict[str, Any]:
    """What the normalised latents of the photos hold.

    ``tokens``: how many of each photo, of a nested tokenizer, as in :mod:`softvq.coding`; those
    that a photo lacks count as 0, their mean, and ``tokens_mean`` is how many it has.

    A linear probe (C = 1) and the 20 nearest neighbours are fitted on ``train`` and scored on
    ``held_out``, where photos have classes; rank and codebook use are those of ``train``;
    ``token_contributions_db``, a list, is over ``probed`` held-out photos. At most ``limit`` photos
    of each set are taken, evenly spread.
    """
    x, y, indices, mean = _encoded(tokenizer, train, limit, tokens)
    test, want, *_ = _encoded(tokenizer, held_out, limit, tokens)
    figures: dict[str, Any] = {"images_fitted": len(x), "images_scored": len(test)}
    if tokens is not None:
        figures["tokens_mean"] = mean
    if len(train.classes) > 1:
        figures["linear_probe_accuracy"] = linear_probe(x, y).accuracy(test, want)
        figures["knn_accuracy"] = knn_accuracy(x, y, test, want, min(NEIGHBOURS, len(x)))
    figures["effective_rank"] = effective_rank(x)
    if indices is not None:
        usage, perplexity = codebook_use(indices, tokenizer.bottleneck.codewords)
        figures |= {"codebook_usage": usage, "codebook_perplexity": perplexity}
    pictures = torch.stack(list(evenly(held_out, probed)[0]))
    figures["token_contributions_db"] = token_contributions(tokenizer, pictures, tokens)
    return figures


def _encoded(
    tokenizer: Tokenizer, photos: Store, limit: int, budget: Budget
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """Normalised latents [N, L C], labels [N], numbers of codewords of the tokens that there are
    where there are any, and the mean number of tokens."""
    latents, indices, kept = [], [], 0
    pictures, rows = evenly(photos, limit)
    most = budget if isinstance(budget, int) else tokenizer.config.tokens
    for tokens in encode(tokenizer, pictures, tokens=budget):
        z = tokenizer.normalize(tokens.latents).float()
        count = z.shape[1]
        lengths = tokens.lengths if tokens.lengths is not None else z.new_full((len(z),), count)
        present = torch.arange(count, device=z.device) < lengths[:, None]
        kept += int(present.sum())
        z = F.pad(z * present[..., None], (0, 0, 0, most - count))  # predicted, a batch has its own
        latents.append(z.flatten(1).cpu())
        if tokens.indices is not None:
            indices.append(tokenizer.bottleneck.number(tokens.indices)[present].cpu().flatten())
    labels = torch.from_numpy(photos.labels[rows])
    joined = torch.cat(indices) if indices else None
    return torch.cat(latents), labels, joined, kept / len(rows)
