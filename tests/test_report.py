"""The report: one file that fetches nothing, and shows what it was given."""

import base64
import functools
import io
import re

import pytest
from PIL import Image

import softvq.train.tokenizer as training
from softvq import demo
from softvq.data import BUILTIN
from softvq.errors import UserError
from softvq.evaluate.cost import throughput
from softvq.report import (
    Figure,
    Point,
    Report,
    Section,
    Table,
    embed,
    line_chart,
    scatter_chart,
    write_report,
)


def write(tmp_path, **section):
    path = tmp_path / "report.html"
    sections = [Section("A heading", **section)]
    write_report(Report("A title", "A summary", [("1", "one")], sections, "A footer"), path)
    return path.read_text(encoding="utf-8")


def assert_self_contained(html):
    """Every address in the file is inside the file."""
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|<script|<link(?! rel=\"icon\")", html)


def test_everything_given_is_shown_and_nothing_is_fetched(tmp_path):
    picture = Image.new("RGB", (4, 4), "red")
    html = write(
        tmp_path,
        text=["A paragraph"],
        tiles=[Figure(embed(picture), "A caption", "An alternative")],
        figures=[Figure(line_chart({"loss": ([1, 2], [3, 4])}, "x", "y"), "A chart", "A line")],
        tables=[Table(["name", "size, mm"], [["a cell", "7"]], "A table")],
        notes=["A note"],
    )
    for text in ("A title", "A summary", "A footer", "A heading", "A paragraph", "A caption"):
        assert text in html
    for text in ("An alternative", "A chart", "A table", "size, mm", "a cell", "A note"):
        assert text in html
    assert_self_contained(html)


def test_text_is_escaped(tmp_path):
    html = write(tmp_path, text=["<script>alert(1)</script>"], notes=["a < b & c"])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html and "a &lt; b &amp; c" in html


def test_embedded_picture_is_the_picture():
    picture = Image.effect_noise((9, 5), 50).convert("RGB")
    uri = embed(picture)
    assert uri.startswith("data:image/png;base64,")
    again = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert again.tobytes() == picture.tobytes()


def test_a_photo_may_be_embedded_as_jpeg():
    picture = Image.effect_noise((64, 64), 50).convert("RGB")
    uri = embed(picture, quality=90)
    assert uri.startswith("data:image/jpeg;base64,") and len(uri) < len(embed(picture))
    assert Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size == (64, 64)


def test_scatter_chart_joins_what_no_cheaper_point_equals():
    points = [Point(8, 20.0, 19.0, 21.0), Point(16, 20.0), Point(32, 30.0, hollow=True)]
    draw = functools.partial(scatter_chart, {"a": points}, "bytes", "欠陥", lang="ja")
    svgs = [
        base64.b64decode(draw(frontier).split(",")[1]).decode()
        for frontier in (("frontier", points), ("frontier", [points[0], points[2]]), ("", []))
    ]
    joined, without_dominated, none = ("stroke-dasharray: 5" in svg for svg in svgs)
    assert joined and without_dominated and not none
    line = re.compile(r'<path d="([^"]*)"[^>]*stroke-dasharray: 5')
    assert line.search(svgs[0])[1] == line.search(svgs[1])[1]
    assert "欠陥</text>" in svgs[0] and '<svg xml:lang="ja"' in svgs[0]


def test_line_chart_is_svg_with_its_labels():
    uri = line_chart({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "crops seen", "loss")
    svg = base64.b64decode(uri.split(",")[1]).decode()
    assert uri.startswith("data:image/svg+xml;base64,") and "crops seen" in svg


@pytest.fixture(scope="module")
def pipeline_folder(tmp_path_factory):
    """An untrained pipeline of 32 x 32 pixels and two classes."""
    import torch
    from contract import small

    from softvq import Pipeline, SiT, SiTConfig, Tokenizer

    torch.manual_seed(0)
    shape = SiTConfig(tokens=8, channels=16, num_classes=2, width=32, depth=1, heads=2)
    folder = tmp_path_factory.mktemp("pipeline")
    Pipeline(Tokenizer(small(gain=True)), SiT(shape), ["first", "second"]).save_pretrained(folder)
    return folder


def test_demo_takes_no_folder_that_holds_anything_else(pipeline_folder, tmp_path):
    (tmp_path / "report.html").write_text("theirs")
    with pytest.raises(UserError, match=r"softvq did not write \(report\.html\)"):
        demo.run_demo(tmp_path, minutes=1, model=str(pipeline_folder))
    assert (tmp_path / "report.html").read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_demo_reports_and_repeats(pipeline_folder, tmp_path, monkeypatch, capsys):
    for module in (demo, training):
        monkeypatch.setattr(module, "TRIAL", 4)
    monkeypatch.setattr(demo, "STEPS", 3)
    monkeypatch.setattr(demo, "throughput", lambda fn, batch, seconds: throughput(fn, batch, 0))
    assert demo.run_demo(tmp_path, minutes=1e-3, model=str(pipeline_folder))
    path = tmp_path / "report.html"
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {path}"
    html = path.read_text(encoding="utf-8")
    assert_self_contained(html)
    assert html.count("<img ") == len(BUILTIN) + 2 + 2  # photos, classes, charts
    assert "3,072 → 128" in html and "first" in html and "second" in html

    journal = (tmp_path / "fine-tune" / "metrics.jsonl").read_text(encoding="utf-8")
    seen = [line["seen"] for line in demo.metrics(tmp_path / "fine-tune", "loss")]
    assert seen[-1] == 4 * 8  # the shortest run: as many steps as the measurement took
    with pytest.raises(UserError, match="another model"):
        demo.run_demo(tmp_path, minutes=1, model="shipped")
    path.unlink()
    assert demo.run_demo(tmp_path, minutes=5, model=str(pipeline_folder))  # the run is done
    assert path.is_file()
    assert (tmp_path / "fine-tune" / "metrics.jsonl").read_text(encoding="utf-8") == journal
