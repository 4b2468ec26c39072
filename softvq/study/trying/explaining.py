"""What the tokens mean of the model that a study fine-tuned first, on photos of its evidence.

OUT/tokens: index.html, a page to touch; explanation.json; strongest.npy, which the report shows.
"""

from pathlib import Path

import numpy as np

from softvq.data import Store
from softvq.errors import UserError
from softvq.explain import brief, strongest, write_explanation, write_page
from softvq.explain.photos import Photos
from softvq.study.judging.measure import Bench
from softvq.study.records import write_pictures
from softvq.tokenizer import Tokenizer
from softvq.words import Language

TOKENS = "tokens"  # in a study's folder
PAGE, EXPLANATION, STRONGEST = "index.html", "explanation.json", "strongest.npy"


def explain_tokens(tokenizer: Tokenizer, bench: Bench, out: Path, lang: Language = "en") -> None:
    """Explain them, if that was not done; where they cannot be, say so and leave the folder empty.

    The page opens in ``lang``.
    """
    folder = out / TOKENS
    folder.mkdir(exist_ok=True)
    if (folder / EXPLANATION).is_file():
        return
    print("explaining tokens")
    try:
        found, pictures = brief(tokenizer, photos_of(bench))
    except UserError as error:
        print(f"tokens are not explained: {error}")
        return
    write_page(found, pictures, folder / PAGE, lang)
    write_pictures(strongest(found, pictures), folder / STRONGEST)
    write_explanation(found, folder / EXPLANATION)


def photos_of(bench: Bench) -> Photos:
    """Pieces that tokenizers learned from, and those of the evidence with what is marked there."""
    material, pieces = bench.material, bench.material.pieces
    count, height, width = pieces.images.shape[:3]
    masks = np.zeros((count, height, width), bool)
    for region in material.regions:
        masks[region.photo] |= region.mask
    evidence = Store(
        images=pieces.images,
        labels=material.labels[pieces.photo],
        names=bench.piece_names,
        classes=bench.classes,
        skipped=[],
        size=(height, width),
        margin=1.0,
        fingerprint="evidence",
    )
    return Photos(material.learning, evidence, masks=masks if masks.any() else None)
