"""The page of an explanation: one HTML file, in two languages, that needs nothing else.

Nothing is measured here. Texts are in words.yaml, looks and behaviour in templates/explain.html.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from softvq.explain.contributions import prefix_counts
from softvq.explain.directions import STEPS
from softvq.explain.explanation import Pictures
from softvq.explain.maps import Place
from softvq.explain.records import Explanation, Token
from softvq.io import write_atomically
from softvq.report import embed
from softvq.words import LANGUAGES, Language, Sentences

WORDS = Path(__file__).with_name("words.yaml")
HURT, ALONG = 1.5, 0.8  # what the tests of faithful.py must give, and a control must not
NOTHING_KNOWN = 0.2  # correlation that a network which knows nothing may have
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
NOTHING, SIGMA = "\N{EN DASH}", "\N{GREEK SMALL LETTER SIGMA}"
QUALITY, SMALL_QUALITY = 85, 80  # of JPEGs

Text = tuple[str, dict[str, Any]]  # a key and its values


@dataclass(frozen=True)
class Bars:
    """A bar for each token: its height in percent, and its number."""

    key: str
    filled: dict[str, Any]
    heights: list[tuple[float, str]]
    top: str


def write_page(
    found: Explanation, pictures: Pictures, path: str | Path, lang: Language = "en"
) -> None:
    """Write the HTML file; ``lang`` is the language that it opens in."""
    write_atomically(Path(path), render(found, pictures, Sentences(WORDS), lang))


def render(found: Explanation, pictures: Pictures, words: Sentences, lang: Language = "en") -> str:
    """The page as text."""

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("softvq"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("explain.html")
    return template.render(
        page=_page(found, pictures, words),
        lang=lang,
        languages=LANGUAGES,
        words=words,
        plain=lambda key, **values: words(key, lang, **values),
    )


def _page(found: Explanation, pictures: Pictures, words: Sentences) -> dict[str, Any]:
    """What the template reads."""
    facts = found.tokenizer
    counts = prefix_counts(facts.tokens)
    return {
        "version": found.version,
        "measured": len(found.photos.measured),
        "each": found.photos.each,
        "fitted": found.photos.fitted,
        "nested": facts.nested,
        "height": facts.height,
        "width": facts.width,
        "cells": list(pictures.acts.shape[2:]),
        "counts": counts,
        "order": found.order,
        "photos": [_thumbnail(photo) for photo in pictures.photos],
        "tokens": found.tokens,
        "summary": summary(found),
        "facts": _facts(found),
        "checks": _checks(found),
        "trust": _trust(found),
        "where": _where(found),
        "columns": _columns(found),
        "rows": [_row(i, token, found) for i, token in enumerate(found.tokens)],
        "bars": [bars for bars in _bars(found) if bars.key != "bars.class"],
        "class_bars": [bars for bars in _bars(found) if bars.key == "bars.class"],
        "prefixes": [(p.tokens, f"{p.psnr:.1f}", f"{p.eye:.2f}") for p in found.prefixes],
        "marks": _marks(found, pictures),
        "marks_found": _marks_found(found),
        "decision": _decision(found, pictures),
        "directions": _directions(found, pictures),
        "too_few": ", ".join(found.too_few),
        "mixture": _mixture(found),
        "words": _codewords(found, pictures),
        "clusters": [
            (c.codewords, f"{c.use:.0%}", ", ".join(map(str, c.members)))
            for c in found.mixture.clusters or []
        ],
        "edits": [
            (_jpeg(picture), f"edit.{edit.name}", {"kept": _signed(edit.consistency)})
            for edit, picture in zip(found.edits, pictures.edits, strict=True)
        ],
        "limits": [f"read.{i}" for i in range(1, 7)],
        "data": _data(found, pictures, words, counts),
    }


def _data(
    found: Explanation, pictures: Pictures, words: Sentences, counts: list[int]
) -> dict[str, Any]:
    """What the script reads."""
    order = list(range(len(found.tokens))) if found.tokenizer.nested else found.order
    rank = {token: place for place, token in enumerate(order)}
    return {
        "counts": counts,
        "cells": list(pictures.acts.shape[2:]),
        "small": list(pictures.moved.shape[3:5]),
        "acts": _base64(pictures.acts),
        "reads": _base64(pictures.reads),
        "scale": {
            name: np.round(scale, 6).tolist()
            for name, scale in zip(("acts", "reads"), pictures.scales.astype(float), strict=True)
        },
        "lost": np.round(pictures.lost.astype(float), 2).tolist(),
        "db": np.round(pictures.firsts_db.astype(float), 2).tolist(),
        "rank": [rank[i] for i in range(len(order))],
        "photos": [_jpeg(photo) for photo in pictures.photos],
        "firsts": [[_jpeg(picture) for picture in one] for one in pictures.firsts],
        "moved": [_sheet(one) for one in pictures.moved],
        "tokens": [_told(token, words) for token in found.tokens],
        "words": {
            "token": words.both("token.n", n="{n}"),
            "lost": words.both("panel.lost", db="{db}"),
            "kept": words.both("slide.kept", n="{n}", all="{all}", db="{db}"),
            "here": words.both("stage.here", tokens="{tokens}"),
        },
    }


# ---- sentences ----


def summary(found: Explanation) -> list[Text]:
    """What was found, in three sentences."""
    facts = found.tokenizer
    size = {"height": facts.height, "width": facts.width, "channels": facts.channels}
    said: list[Text] = [("summary", size | {"tokens": facts.tokens, "psnr": f"{found.psnr:.1f}"})]
    return [*said, *_where(found)[:1], _believed(found)]


def _facts(found: Explanation) -> list[tuple[str, str, dict[str, Any]]]:
    facts, checks = found.tokenizer, found.checks
    shown: list[tuple[str, str, dict[str, Any]]] = [
        (f"{facts.tokens}", "fact.tokens", {"channels": facts.channels})
    ]
    places, wide = found.of_kind("place"), found.of_kind("global")
    if len(places) >= len(wide):
        shown.append((f"{len(places)} / {facts.tokens}", "fact.places", {}))
    else:
        shown.append((f"{len(wide)} / {facts.tokens}", "fact.global", {}))
    shown.append(
        (f"{checks.hurt:.1f} {TIMES}", "fact.hurt", {"control": f"{checks.control_hurt:.1f}"})
    )
    control = {"control": _signed(checks.shuffled)}
    shown.append((f"{checks.along:.2f}", "fact.along", control))
    return shown


def _checks(found: Explanation) -> list[tuple[str, dict[str, Any], str, str]]:
    checks = found.checks
    rows: list[tuple[str, dict[str, Any], str, str]] = [
        (
            "trust.hurt",
            {"photos": checks.photos, "most": checks.removed[-1]},
            f"{checks.hurt:.2f} {TIMES}",
            f"{checks.control_hurt:.2f} {TIMES}",
        ),
        (
            "trust.db",
            {"most": checks.removed[-1], "chance": f"{checks.chance[-1]:.1f}"},
            f"{checks.stated[-1]:.1f} dB",
            f"{checks.control[-1]:.1f} dB",
        ),
        (
            "trust.along",
            {"swaps": checks.swaps},
            f"{checks.along:.2f}",
            _signed(checks.shuffled),
        ),
        ("trust.typical", {"swaps": checks.swaps}, f"{checks.typical:.2f}", NOTHING),
    ]
    for one in (one for one in found.directions if one.real):
        key = "trust.class" if one.measure == "balanced_accuracy" else "trust.number"
        name = _name(one.name, one.kind == "marked")
        rows.append((key, {"name": name}, _score(one.score, one.measure),
                     _score(one.control, one.measure)))  # fmt: skip
    return rows


def _name(name: str, marked: bool) -> str | Text:
    """What is sought: a class or column by its own name, marks by a word."""
    return ("directions.marked", {}) if marked else name


def _score(value: float, measure: str) -> str:
    return f"{value:.0%}" if measure == "balanced_accuracy" else f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{value:z.2f}".replace("-", MINUS)  # no minus before 0.00


def _believed(found: Explanation) -> Text:
    checks = found.checks
    true = checks.hurt >= HURT and checks.along >= ALONG
    void = checks.control_hurt < HURT and checks.shuffled < NOTHING_KNOWN
    return ("believed" if true and void else "doubted"), {}


def _trust(found: Explanation) -> list[Text]:
    checks = found.checks
    said = [_believed(found)]
    said.append(("trust.maps.good" if checks.typical >= 0.6 else "trust.maps.poor", {}))
    return said


def _where(found: Explanation) -> list[Text]:
    count = len(found.tokens)
    places, wide, wandering = (found.of_kind(k) for k in ("place", "global", "wandering"))
    if len(places) == count:
        area = np.mean([found.tokens[i].act.area for i in places])
        said: list[Text] = [("where.places", {"area": f"{area:.0%}"})]
    elif len(wide) == count:
        said = [("where.global", {})]
    else:
        said = [("where.mixed", {"places": len(places), "wide": len(wide),
                                 "wandering": len(wandering)})]  # fmt: skip
    sizes = [token.look.size for token in found.tokens]
    if max(sizes) > 2.5 * min(sizes):
        coarse, fine = int(np.argmax(sizes)), int(np.argmin(sizes))
        values = {"coarse": coarse + 1, "fine": fine + 1}
        shares = {"most": f"{sizes[coarse]:.0%}", "least": f"{sizes[fine]:.0%}"}
        said.append(("where.sizes", values | shares))
    overlap = np.mean([token.act.overlap for token in found.tokens])
    said.append(("where.overlap", {"share": f"{overlap:.0%}"}))
    return said


def place_of(place: Place) -> Text:
    """Where in the picture, of nine places."""
    row = ("top", "middle", "bottom")[min(2, int(3 * place.row))]
    column = ("left", "centre", "right")[min(2, int(3 * place.column))]
    return f"at.{row}.{column}", {}


def _told(token: Token, words: Sentences) -> dict[str, str]:
    """What is said of a token in the panel."""
    act, read = token.act, token.read
    values = {"at": place_of(act), "area": f"{act.area:.0%}"}
    said: list[Text] = [(f"token.{act.kind}", values)]
    same = read.kind == "place" and place_of(read) == place_of(act)
    if act.kind == "place" and same:
        said.append(("token.reads.same", {}))
    elif read.kind == "place":
        said.append(("token.reads", {"at": place_of(read), "area": f"{read.area:.0%}"}))
    else:
        said.append(("token.reads.all", {}))
    said.append(("token.size", {"size": f"{token.look.size:.0%}"}))
    said.append(("token.colour" if token.look.colour > 0.3 else "token.grey", {}))
    said.append(("token.lost", {"db": f"{token.lost_db:.1f}", "most": f"{token.lost_db_most:.1f}"}))
    return {
        lang: words("space", lang).join(words(key, lang, **filled) for key, filled in said)
        for lang in LANGUAGES
    }


def _columns(found: Explanation) -> list[str]:
    keys = ["token", "kind", "at", "area", "steady", "size", "colour", "lost", "eye"]
    inside = ["inside"] if found.tokens[0].lost_inside_db is not None else []
    return [f"column.{key}" for key in [*keys, *inside]]


def _row(number: int, token: Token, found: Explanation) -> list[str | Text]:
    act, inside = token.act, token.lost_inside_db
    margin = "" if token.lost_db_margin is None else f" ± {token.lost_db_margin:.2f}"
    cells: list[str | Text] = [
        str(number + 1),
        (f"kind.{act.kind}", {}),
        place_of(act) if act.kind == "place" else NOTHING,
        f"{act.area:.0%}",
        _signed(act.steadiness),
        f"{token.look.size:.0%}",
        f"{token.look.colour:.0%}",
        _signed(token.lost_db) + margin,
        _signed(token.lost_eye),
    ]
    return cells if inside is None else [*cells, _signed(inside)]


def _bars(found: Explanation) -> list[Bars]:
    losses: list[tuple[str, dict[str, Any], list[float]]] = [
        ("bars.all", {}, [token.lost_db for token in found.tokens])
    ]
    if found.tokens[0].lost_inside_db is not None:
        inside = [token.lost_inside_db or 0.0 for token in found.tokens]
        losses.append(("bars.inside", {}, inside))
    for one in found.by_class:
        losses.append(("bars.class", {"name": one.name, "photos": one.photos}, one.lost_db))
    bars = []
    for key, values, lost in losses:
        top = max(*lost, 0.01)
        heights = [
            (round(100 * (max(0.0, x) / top) ** 0.5, 1), f"{i + 1}: {_signed(x)} dB")
            for i, x in enumerate(lost)
        ]
        bars.append(Bars(key, values, heights, f"{top:.1f}"))
    return bars


def _marks(found: Explanation, pictures: Pictures) -> list[dict[str, Any]]:
    shown = []
    for mark, four in zip(found.marks, pictures.marks, strict=True):
        values = {
            "kept": f"{max(0.0, mark.kept):.0%}",  # the other way round is not kept
            "left": f"{mark.contrast_left:.0%}",
            "outside": _signed(mark.outside_db),
            "count": len(mark.tokens),
            "all": len(found.tokens),
        }
        key = mark.verdict if mark.removed or mark.verdict == "lost" else "stays"
        shown.append({
            "key": f"marks.{key}", "filled": values,
            "tokens": [] if mark.verdict == "lost" else mark.tokens,
            "pictures": [_jpeg(picture) for picture in four],
        })  # fmt: skip
    return shown


def _marks_found(found: Explanation) -> list[Text]:
    verdicts = [mark.verdict for mark in found.marks]
    counts = {name: verdicts.count(name) for name in ("few", "spread", "lost")}
    if not verdicts:
        return []
    said: list[Text] = [("marks.found", {"all": len(verdicts)} | counts)]
    if counts["spread"] > counts["few"] and len(found.of_kind("global")) > len(found.tokens) / 2:
        said.append(("marks.scale", {}))
    return said


def _decision(found: Explanation, pictures: Pictures) -> dict[str, Any] | None:
    decision = found.decision
    if decision is None or pictures.decided is None:
        return None
    photo, places = pictures.decided
    up = decision.score >= decision.reference
    sign = 1 if up else -1
    with_it = sum(x for x in decision.added if sign * x > 0)
    against = sum(x for x in decision.added if sign * x < 0)
    named = sum(decision.added[i] for i in decision.tokens[:5])
    where = Place(decision.area, decision.row, decision.column, 0, 0, "place")
    values = {
        "judge": _name(decision.name, decision.name == "marked"),
        "score": _signed(decision.score),
        "reference": _signed(decision.reference),
        "tokens": ", ".join(str(i + 1) for i in decision.tokens[:5]),
        "named": _signed(named),
        "with_it": _signed(with_it),
        "against": _signed(against),
        "at": place_of(where),
        "area": f"{decision.area:.0%}",
    }
    said: list[Text] = [("decision.up" if up else "decision.down", values)]
    said.append(("decision.where", values))
    for one in found.directions:
        if one.name == decision.name and one.measure == "balanced_accuracy":
            said.append(("decision.judge", {"score": _score(one.score, one.measure)}))
    return {
        "said": said,
        "tokens": decision.tokens,
        "photo": _jpeg(photo),
        "places": _jpeg(heated(photo, places if up else -places)),
    }


def heated(photo: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A photo uint8 [H, W, 3] in grey; orange where places [H, W] are above 0, blue below."""
    strength = np.clip(np.abs(places) / max(float(np.abs(places).max()), 1e-12), 0, 1)[..., None]
    grey = photo.mean(2, keepdims=True).repeat(3, 2) * 0.8 + 30
    tint = np.where(places[..., None] > 0, [235, 110, 20], [30, 110, 220])
    return np.clip((1 - 0.85 * strength) * grey + 0.85 * strength * tint, 0, 255).astype(np.uint8)


def _directions(found: Explanation, pictures: Pictures) -> list[dict[str, Any]]:
    shown = []
    for one, walk, ends in zip(found.directions, pictures.walks, pictures.examples, strict=True):
        half = len(ends) // 2
        values = {
            "score": _score(one.score, one.measure),
            "control": _score(one.control, one.measure),
            "largest": _score(one.control_largest, one.measure),
            "fitted": one.fitted,
            "held_out": one.held_out,
        }
        state = "real" if one.real else "none"
        shown.append({
            "name": one.name, "kind": one.kind, "real": one.real,
            "key": f"directions.{state}.{one.measure}", "filled": values, "tokens": one.carriers,
            "walk": [_jpeg(picture) for picture in walk],
            "steps": [f"{step:+g} {SIGMA}".replace("-", MINUS) if step else "0" for step in STEPS],
            "most": [(_jpeg(p), n) for p, n in zip(ends[:half], one.most, strict=True)],
            "least": [(_jpeg(p), n) for p, n in zip(ends[half:], one.least, strict=True)],
        })  # fmt: skip
    return shown


def _mixture(found: Explanation) -> list[Text]:
    mixed = found.mixture
    said: list[Text] = [(f"mixture.{mixed.family}", {})]
    if mixed.effective and mixed.used is not None and mixed.dead is not None:
        said.append((
            "mixture.codebook",
            {
                "codewords": f"{mixed.codewords:,}", "books": mixed.books,
                "effective": f"{np.mean(mixed.effective):.1f}", "used": f"{mixed.used:.1%}",
                "dead": f"{mixed.dead:.0%}",
            },
        ))  # fmt: skip
    if mixed.spread and mixed.nats:
        values = {"spread": f"{np.mean(mixed.spread):.3f}", "nats": f"{np.mean(mixed.nats):.1f}"}
        said.append(("mixture.gaussian", values))
    if mixed.family in ("softvq", "gmm", "kl"):
        how = "mixture.sure" if mixed.family != "kl" else "mixture.drawn"
        said.append((how, {"db": f"{mixed.sure_db:.1f}"}))
    return said


def _codewords(found: Explanation, pictures: Pictures) -> list[tuple[str, str, dict[str, Any]]]:
    if pictures.words is None or found.mixture.focus is None:
        return []
    choices = found.mixture.focus[found.order[0]]
    shown: list[tuple[str, str, dict[str, Any]]] = [(_jpeg(pictures.words[0]), "mixture.is", {})]
    for choice, picture in zip(choices, pictures.words[1:], strict=False):
        values = {"word": choice.codeword, "weight": f"{choice.weight:.0%}"}
        shown.append((_jpeg(picture), "mixture.word", values))
    return shown


# ---- pictures ----


def _jpeg(picture: np.ndarray) -> str:
    return embed(Image.fromarray(picture), QUALITY)


def _thumbnail(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((128, 128))
    return embed(image, SMALL_QUALITY)


def _sheet(moved: np.ndarray) -> str:
    """[L, 2, h, w, 3] as one picture: a row for each token, less and more side by side."""
    rows = moved.transpose(0, 2, 1, 3, 4)
    flat = rows.reshape(rows.shape[0] * rows.shape[1], -1, 3)
    return embed(Image.fromarray(np.ascontiguousarray(flat)), SMALL_QUALITY)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
