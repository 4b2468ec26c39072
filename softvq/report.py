"""A self-contained HTML report: pictures and charts are inside the file, nothing is fetched.

A Report is sections, a section is text, figures and tables; the template decides their looks.
"""

import base64
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from softvq.io import write_atomically

COLOURS = (
    *("#0b6bcb", "#d4631b", "#3a8f3a", "#8a3fb0"),
    *("#6b7280", "#b08900", "#0f8f8f", "#c2185b"),
)
MARKERS = "osD^XPv*"


@dataclass
class Figure:
    """A picture as a data URI, what is seen on it, and what it stands for where it is not seen."""

    image: str
    caption: str
    alt: str


@dataclass
class Table:
    """Columns of text. Units belong into the header; numbers are formatted by the caller."""

    header: list[str]
    rows: list[list[str]]
    caption: str


@dataclass
class Strip:
    """One thing in several small pictures, side by side as far as there is room."""

    caption: str
    figures: list[Figure]


@dataclass
class Slider:
    """A number that the reader moves, from a quarter of ``value`` to four times it."""

    key: str
    label: str
    value: float


@dataclass
class WhatIfRow:
    """What each price is multiplied with to give a cost; ``holds``: whether it can be chosen."""

    name: str
    holds: bool
    missed: float
    alarms: float
    storage: float
    compute: float


@dataclass
class WhatIf:
    """A table of costs that follows sliders, in the file itself: the cheapest that can be chosen
    has a star.  header: of name, cost and whether it can be chosen."""

    sliders: list[Slider]
    rows: list[WhatIfRow]
    header: list[str]
    currency: str

    @property
    def data(self) -> list[dict[str, Any]]:
        """The rows, for the script."""
        return [vars(row) for row in self.rows]


@dataclass
class Section:
    """A heading, paragraphs, ``points`` (what, what about it), small figures side by side
    (``tiles``, and ``strips`` of them), large ones, tables, notes.

    ``whatif``: costs that follow sliders.  ``page``: begins a new page where the report is printed.
    """

    heading: str
    text: list[str] = field(default_factory=list)
    points: list[tuple[str, str]] = field(default_factory=list)
    tiles: list[Figure] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whatif: WhatIf | None = None
    page: bool = False


@dataclass
class Report:
    """``facts`` are (value, what it is) pairs, shown large at the top; ``lang`` is 'en', 'ja'."""

    title: str
    summary: str
    facts: list[tuple[str, str]]
    sections: list[Section]
    footer: str
    lang: str = "en"


def write_report(report: Report, path: str | Path) -> None:
    """Render the report into one HTML file, written atomically."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("softvq"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(report=report)
    write_atomically(Path(path), html)


def embed(image: Image.Image, quality: int | None = None) -> str:
    """A picture as a data URI: a PNG, or a JPEG of a ``quality`` (1 to 95), colours unreduced."""
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, format="PNG", optimize=True)
        return _data_uri("image/png", buffer.getvalue())
    image.save(buffer, format="JPEG", quality=quality, subsampling=0, optimize=True)
    return _data_uri("image/jpeg", buffer.getvalue())


def line_chart(
    series: dict[str, tuple[list[float], list[float]]], x_label: str, y_label: str
) -> str:
    """Named (xs, ys) lines as an SVG data URI. A series of few points also shows its points."""
    canvas, axes = _axes(x_label, y_label)
    for colour, (name, (xs, ys)) in zip(COLOURS, series.items(), strict=False):
        marker = "o" if len(xs) <= 12 else ""
        axes.plot(xs, ys, color=colour, label=name, linewidth=1.8, marker=marker, markersize=4)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _svg(canvas)


@dataclass
class Point:
    """``low``, ``high``: ends of the error bar, None for no bar. ``hollow``: not filled."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""
    hollow: bool = False


def scatter_chart(
    series: dict[str, list[Point]],
    x_label: str,
    y_label: str,
    frontier: tuple[str, list[Point]] = ("", []),
    lang: str = "en",
) -> str:
    """Named points over a logarithmic x-axis as an SVG data URI.

    ``frontier`` is the name of a line, and the points of which it joins those that no cheaper one
    (of smaller x) equals.
    """
    canvas, axes = _axes(x_label, y_label, logarithmic=True)
    axes.minorticks_off()
    name, points = frontier
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    if len(best) > 1:
        xs, ys = [p.x for p in best], [p.y for p in best]
        axes.plot(xs, ys, color="#9aa3af", linewidth=1.4, linestyle="--", label=name, zorder=1)
    for colour, marker, (name, points) in zip(COLOURS, MARKERS, series.items(), strict=False):
        # A legend shows the filled mark even where every point of a series is hollow.
        axes.plot([], [], marker, color=colour, label=name, markersize=6)
        for p in points:
            if p.low is not None and p.high is not None:
                axes.vlines(p.x, p.low, p.high, color=colour, alpha=0.55, linewidth=1.4)
            face = "white" if p.hollow else colour
            axes.plot(p.x, p.y, marker, color=colour, markerfacecolor=face, markersize=6)
            offset = {"textcoords": "offset points", "xytext": (5, 4)}
            axes.annotate(p.label, (p.x, p.y), color=colour, fontsize=8, **offset)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    return _svg(canvas, lang)


def _axes(x_label: str, y_label: str, logarithmic: bool = False) -> tuple[Any, Any]:
    # Figure without pyplot: no window system, no global state.
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter

    canvas = Canvas(figsize=(5.6, 3.4), layout="constrained")
    axes = canvas.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if logarithmic:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def _svg(canvas: Any, lang: str = "en") -> str:
    """Text stays text, drawn with the fonts of whoever reads it: matplotlib's own font, by which
    it measures and about which it would warn, has no Japanese."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.savefig(buffer, format="svg")
    svg = buffer.getvalue().replace("<svg ", f'<svg xml:lang="{lang}" ', 1)
    return _data_uri("image/svg+xml", svg.encode())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
