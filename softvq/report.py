"""A self-contained HTML report: pictures and charts are inside the file, nothing is fetched.

A Report is sections, a section is text, figures and tables; the template decides their looks.
"""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from softvq.io import write_atomically

COLOURS = ("#0b6bcb", "#d4631b", "#3a8f3a")


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
class Section:
    """A heading, paragraphs, small figures side by side (``tiles``), large ones, tables, notes."""

    heading: str
    text: list[str] = field(default_factory=list)
    tiles: list[Figure] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Report:
    """``facts`` are (value, what it is) pairs, shown large at the top."""

    title: str
    summary: str
    facts: list[tuple[str, str]]
    sections: list[Section]
    footer: str


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


def embed(image: Image.Image) -> str:
    """A picture as a PNG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def line_chart(
    series: dict[str, tuple[list[float], list[float]]], x_label: str, y_label: str
) -> str:
    """Named (xs, ys) lines as an SVG data URI. A series of few points also shows its points."""
    # Figure without pyplot: no window system, no global state.
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import FuncFormatter

    canvas = Canvas(figsize=(5.6, 3.4), layout="constrained")
    axes = canvas.add_subplot()
    for colour, (name, (xs, ys)) in zip(COLOURS, series.items(), strict=False):
        marker = "o" if len(xs) <= 12 else ""
        axes.plot(xs, ys, color=colour, label=name, linewidth=1.8, marker=marker, markersize=4)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg")
    return _data_uri("image/svg+xml", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
