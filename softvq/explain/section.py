"""What tokens mean, as one section of another report: a study's, of the tokenizer that it chose."""

import numpy as np
from PIL import Image

from softvq.explain.explanation import BRIEF, Pictures, explain
from softvq.explain.page import WORDS, place_of, summary
from softvq.explain.photos import Photos
from softvq.explain.records import Explanation
from softvq.report import Figure, Section, Strip, Table, embed
from softvq.tokenizer import Tokenizer
from softvq.words import Language, Sentences

SHOWN = 8  # tokens, the most important ones
QUALITY = 85  # of JPEGs


def brief(tokenizer: Tokenizer, photos: Photos) -> tuple[Explanation, Pictures]:
    """Explain the tokens on a few photos, in about a minute of two cores.

    Raises UserError where :func:`softvq.explain.explain` does.
    """
    return explain(tokenizer, photos, BRIEF.checked, precision="auto", effort=BRIEF)


def strongest(found: Explanation, pictures: Pictures) -> np.ndarray:
    """The first photo, bright where each of the most important tokens acts: uint8 [n, H, W, 3]."""
    photo = pictures.photos[0]
    return np.stack([lit(photo, pictures.acts[0, token]) for token in found.order[:SHOWN]])


def as_section(found: Explanation, maps: np.ndarray, lang: Language = "en") -> Section:
    """An explanation as a section: sentences, the maps of the ``strongest`` tokens, the tests."""
    words = Sentences(WORDS)

    def say(text: tuple[str, dict]) -> str:
        return words(text[0], lang, **text[1])

    figures = []
    for token, shown in zip(found.order, maps, strict=False):
        act, lost = found.tokens[token].act, found.tokens[token].lost_db
        where = say(place_of(act)) if act.kind == "place" else words(f"kind.{act.kind}", lang)
        caption = f"{words('token.n', lang, n=token + 1)}: {where}, {lost:.1f} dB"
        picture = embed(Image.fromarray(np.ascontiguousarray(shown)), QUALITY)
        figures.append(Figure(picture, caption, caption))
    checks = found.checks
    rows = [
        [words("trust.hurt", lang, photos=checks.photos, most=checks.removed[-1]),
         f"{checks.hurt:.2f}", f"{checks.control_hurt:.2f}"],
        [words("trust.along", lang, swaps=checks.swaps),
         f"{checks.along:.2f}", f"{checks.shuffled:.2f}"],
    ]  # fmt: skip
    header = [words(f"trust.{key}", lang) for key in ("test", "here", "control")]
    return Section(
        heading=words("title", lang),
        text=[say(text) for text in summary(found)],
        strips=[Strip(words("touch.map", lang), figures)],
        tables=[Table(header, rows, words("trust.what", lang))],
        notes=[words(f"read.{i}", lang) for i in range(1, 7)],
    )


def lit(photo: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """A photo uint8 [H, W, 3], dark where a map uint8 [h, w] is small."""
    height, width = photo.shape[:2]
    smooth = Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)
    light = 0.16 + 0.84 * np.asarray(smooth, np.float32)[..., None] / 255
    return (photo * light).round().astype(np.uint8)
