"""``softvq monitor``: have the photos of a folder changed since the reference? Without a server.

The folder's photos are taken in the order of their names, or of the names of its subfolders: a
subfolder for each day is the usual form.

    OUT/softvq.json            who wrote the folder
    OUT/reference.safetensors  the reference, so that the next run reads no photo of it again
    OUT/drift.json             every window: figures, alarm, what changed, which photos drove it
    OUT/drift.html             the same for people, with those photos; ja or en
"""

import base64
import io
import json
import warnings
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from softvq import images
from softvq.errors import SoftVQWarning, UserError
from softvq.io import write_atomically
from softvq.outputs import claimed, refuse_overlap
from softvq.serve import drift
from softvq.serve.drift import (
    REFERENCE,
    Detector,
    Photos,
    check_reference,
    rolling,
    save_reference,
)
from softvq.serve.engine import open_engine
from softvq.serve.judge import Judge
from softvq.serve.reference import observe, open_reference, photos_of, readable

SHOWN = 8  # photos of an alarm
THUMBNAIL = 128  # pixels
RESULT, PAGE = "drift.json", "drift.html"


@dataclass(frozen=True)
class WindowFound:
    """A window: the names of its first and last photo, figures (1 is the threshold), what changed
    in words, and the photos that drove it."""

    first: str
    last: str
    figures: dict[str, float]
    alarm: bool
    said: dict[str, list[str]]
    drivers: list[str]


@dataclass(frozen=True)
class Found:
    """What came of it. thresholds: of each figure, in its own units."""

    photos: int
    reference: int
    window: int
    one_in: int
    thresholds: dict[str, float]
    windows: list[WindowFound]

    @property
    def alarms(self) -> list[WindowFound]:
        return [window for window in self.windows if window.alarm]


def monitor(
    reference: str,
    data: str,
    out: str | Path,
    model: str = "shipped",
    judge: str | None = None,
    tokens: int | None = None,
    window: int = 100,
    stride: int = 20,
    one_in: int = 1000,
    language: str = "en",
    precision: str = "auto",
    overwrite: bool = False,
) -> Found:
    """Hold every window of the photos in ``data`` against ``reference``; write OUT.

    Raises UserError for too few photos, and where ``softvq.outputs.claimed`` does.
    """
    refuse_overlap(data, out)
    refuse_overlap(reference, out)
    engine = open_engine(model, precision)
    count = tokens or engine.about.tokens
    if not 1 <= count <= engine.about.tokens or (
        count != engine.about.tokens and not engine.about.nested
    ):
        raise UserError(f"this model keeps a photo as {engine.about.tokens} tokens, not {count}")
    opinion = Judge(judge) if judge else None
    names, read = photos_of(data)
    if len(names) < window:
        raise UserError(f"{data}: {len(names)} photos, and windows of {window}; give --window")
    if not (Path(reference).expanduser() / REFERENCE).is_file():  # before all are read
        check_reference(len(photos_of(reference)[0]), window)
    settings = {
        "reference": str(reference), "data": str(data), "tokenizer": engine.about.tokenizer,
        "tokens": count, "window": window, "stride": stride, "one_in": one_in,
    }  # fmt: skip
    with claimed(out, "monitor", settings, overwrite) as output:
        folder = output.folder
        where = str(folder) if (folder / REFERENCE).is_file() else reference
        baseline = open_reference(where, engine, opinion, count)
        detector = Detector(baseline, window, one_in)
        result, page, _ = output.expect([RESULT, PAGE, REFERENCE])
        save_reference(baseline, folder, engine.about.tokenizer)
        if len(baseline.tokens) < 2 * drift.LEAST * window:
            warnings.warn(
                f"a reference of {len(baseline.tokens)} photos is small for windows of {window}: "
                f"the rate of false alarms is sure to a factor of about 3; "
                f"{2 * drift.LEAST * window} photos or more make it steadier",
                SoftVQWarning,
                stacklevel=2,
            )
        order = {name: i for i, name in enumerate(names)}
        bar = tqdm(readable(data, names, read), total=len(names), desc="watching", unit="img")
        found: list[WindowFound] = []
        worst: WindowFound | None = None
        for some in rolling(observe(bar, engine, opinion, count), window, stride):
            verdict = detector.look(Photos.of(some))
            one = WindowFound(
                some[0].name,
                some[-1].name,
                {name: round(value, 4) for name, value in verdict.figures.items()},
                verdict.alarm,
                {word: drift.explain(verdict, Photos.of(some), word) for word in drift.words()}
                if verdict.alarm
                else {},
                [some[i].name for i in verdict.drivers[:SHOWN]] if verdict.alarm else [],
            )
            found.append(one)
            if one.alarm and (
                worst is None or max(one.figures.values()) > max(worst.figures.values())
            ):
                worst = one
        thresholds = dict(zip(drift.FIGURES, detector.thresholds.round(6).tolist(), strict=True))
        told = Found(len(names), len(baseline.tokens), window, one_in, thresholds, found)
        write_atomically(result, json.dumps(asdict(told), indent=1, ensure_ascii=False) + "\n")
        pictures = [_thumbnail(read(order[name])) for name in worst.drivers] if worst else []
        write_atomically(page, _html(told, worst, pictures, language))
    return told


def _thumbnail(photo: np.ndarray) -> str:
    picture = Image.fromarray(photo)
    picture.thumbnail((THUMBNAIL, THUMBNAIL), images.RESAMPLE)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return base64.b64encode(out.getvalue()).decode()


def _html(found: Found, worst: WindowFound | None, pictures: list[str], language: str) -> str:
    from jinja2 import Environment, select_autoescape

    source = (files("softvq") / "templates" / "drift.html").read_text(encoding="utf-8")
    template = Environment(autoescape=select_autoescape(default=True)).from_string(source)
    return template.render(found=found, worst=worst, pictures=pictures, ja=language == "ja")
