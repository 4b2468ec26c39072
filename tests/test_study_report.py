"""The report: both languages say everything, nothing is fetched, and figures are the results'."""

import ast
import base64
import csv
import html
import io
import json
import re
import shutil
import string
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from softvq.cli import main
from softvq.errors import UserError
from softvq.study import telling
from softvq.study.records import RemarkCode
from softvq.study.telling.gallery import around, enlarge, heat, range_of
from softvq.study.telling.report import write_reports
from softvq.study.telling.words import LANGUAGES, Count, texts

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def study(studied, tmp_path_factory):
    """Results, the pages of both languages, and the folder, of a study with prices."""
    out = tmp_path_factory.mktemp("report") / "out"
    shutil.copytree(studied / "out", out)
    more = out.with_name("more.yaml")
    more.write_text("prices: {currency: EUR, missed_defect: 100, false_alarm: 2, storage: 1}\n")
    pages = {}
    for lang in LANGUAGES:
        again = ["study", "--out", str(out), "--resume-with", str(more), "--lang", lang]
        assert main(again) == 0
        pages[lang] = (out / "report.html").read_text(encoding="utf-8")
    return json.loads((out / "results.json").read_text()), pages, out


def fields(text):
    return {(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name is not None}


def test_both_languages_say_every_text_with_the_same_values():
    for key, text in texts().items():
        english, japanese = text["en"], text["ja"]
        assert set(text) == set(LANGUAGES), key
        assert english and (japanese or key == "between_sentences"), key
        assert {name for name, _ in fields(english)} == {name for name, _ in fields(japanese)}, key
        # An English noun must not stand behind a Japanese number.
        assert not any("|" in (spec or "") for _, spec in fields(japanese)), key


def test_sentences_end_as_sentences_and_japanese_is_japanese():
    for key, text in texts().items():
        english, japanese = text["en"], text["ja"]
        if english.endswith(".") and " " in english:
            assert japanese.endswith("。"), key
        assert not re.search(r"[、。]\s|  |[,;!?]", japanese) or key in ("colon",), key


def test_every_text_is_used():
    """By the code of the report: its key, or the family that its key is of."""
    literals, families = set(), set()
    for path in Path(telling.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.add(node.value)
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                families.add(node.values[0].value)
            name = getattr(getattr(node, "func", None), "attr", "")
            if name == "name" and isinstance(node.args[0], ast.Constant):
                families.add(node.args[0].value + ".")
    families |= {"metric.", "unit.", "header."}
    unused = [
        key
        for key in texts()
        if key not in literals and not any(key.startswith(family) for family in families if family)
    ]
    assert not unused


def test_every_text_asked_for_exists():
    """Read from the syntax tree: words("key"), and words(f"family.{name}") of some family."""
    for path in Path(telling.__file__).parent.glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            key = call.args[0]
            if name == "words" and isinstance(key, ast.Constant):
                assert key.value in texts(), (path.name, key.lineno, key.value)
            if name == "words" and isinstance(key, ast.JoinedStr):
                family = key.values[0].value
                assert any(known.startswith(family) for known in texts()), (path.name, family)
    for code in get_args(RemarkCode):
        assert f"remark.{code}" in texts()


def test_count_knows_thousands_and_its_noun():
    assert f"{Count(1):photo|photos}" == "1 photo"
    assert f"{Count(12345):photo|photos}" == "12,345 photos" and f"{Count(12345)}" == "12,345"


def text_of(page):
    """What a reader reads, without markup, style and pictures; addresses of names left out."""
    page = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    alts = "\n".join(re.findall(r'alt="([^"]*)"', page))
    return html.unescape(re.sub(r"<[^>]*>", "\n", page) + "\n" + alts)


def svgs(page):
    return [
        base64.b64decode(data).decode()
        for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    ]


def test_nothing_of_python_stands_for_what_is_lacking(study):
    text = text_of(study[1]["ja"])  # in English there are false alarms
    assert not re.findall(r"\b(?:None|nan|inf|True|False)\b|\w+\(\w+=|\{'", text)


def test_languages_do_not_mix(study):
    _, pages, _ = study
    assert '<html lang="ja">' in pages["ja"] and '<html lang="en">' in pages["en"]
    assert not JAPANESE.search(text_of(pages["en"]))
    left = re.sub(r"softvq [^。\uff09]*", "", text_of(pages["ja"]))
    runs = re.findall(r"[A-Za-z]{3,} [A-Za-z]{3,} [A-Za-z]{3,}", left)
    assert not [run for run in runs if "broken data" not in run], runs


def test_nothing_is_fetched_and_every_picture_is_inside(study):
    for page in study[1].values():
        visible = "".join([page, *svgs(page)])
        # An SVG's name spaces are names, not addresses that anyone opens.
        visible = re.sub(
            r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>|<!DOCTYPE.*?>',
            "",
            visible,
            flags=re.DOTALL,
        )
        assert not re.search(r"https?://|<script src|@import|url\(http|fetch\(", visible)
        addresses = re.findall(r"""\b(?:src|href)="([^"#][^"]*)""", page)
        assert addresses and all(address.startswith("data:") for address in addresses)
        for kind, data in re.findall(r"data:image/(png|jpeg);base64,([^\"]+)", page):
            assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()


def test_csv_has_the_same_numbers_unrounded(study):
    results, _, out = study
    rows = {row["name"]: row for row in csv.DictReader((out / "results.csv").open())}
    assert set(rows) == {each["name"] for each in results["candidates"]}
    for each in results["candidates"]:
        row = rows[each["name"]]
        assert float(row["psnr"]) == each["metrics"]["psnr"]["value"]
        assert float(row["cost"]) == each["cost"]["total"]["value"]


def test_error_map_is_black_where_nothing_differs():
    picture = heat(np.array([[0.0, 64.0, 255.0]]))
    assert picture[0, 0].max() <= 4 and picture[0, 1].min() > 100
    np.testing.assert_array_equal(picture[0, 1], picture[0, 2])


def test_crop_holds_the_defect_and_stays_in_the_photo():
    for box in ((0, 0, 3, 3), (40, 44, 48, 48), (10, 10, 40, 14), (0, 0, 48, 48)):
        left, top, right, bottom = around(box, (48, 48))
        assert 0 <= left <= box[0] and box[2] <= right <= 48
        assert 0 <= top <= box[1] and box[3] <= bottom <= 48
        assert right - left == bottom - top
    photo = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    part = np.asarray(enlarge(photo, (8, 12, 32, 36)))
    np.testing.assert_array_equal(part[3::6, 3::6], photo[12:36, 8:32])
    # Stretched alike: a reconstruction of half the contrast still has half of it.
    dull = (100 + photo // 8).astype(np.uint8)
    levels = range_of(dull, (0, 0, 48, 48))
    assert levels[1] - levels[0] == 48
    bright = np.asarray(enlarge(dull, (0, 0, 48, 48), levels), float)
    half = np.asarray(enlarge(116 + (dull - 116.0) / 2, (0, 0, 48, 48), levels), float)
    np.testing.assert_allclose(half.std() / bright.std(), 0.5, atol=0.01)


def test_bad_calls_name_cause_and_mend(tmp_path):
    with pytest.raises(UserError, match="unknown language 'fr'; known: en, ja"):
        write_reports(tmp_path, "fr")
    with pytest.raises(UserError, match="no results.json"):
        write_reports(tmp_path, "en")
    for content in (b"", b"[]", b"\xff", b'{"version": 3}', b"[" * 5000):
        (tmp_path / "results.json").write_bytes(content)
        with pytest.raises(UserError, match="results.json: damaged.*run softvq study again") as e:
            write_reports(tmp_path, "en")
        assert "\n" not in str(e.value)


PROBE = """<script>
window.addEventListener("load", () => parent.postMessage("probe" + JSON.stringify({
    errors: window.errors,
    images: document.images.length,
    broken: [...document.images].filter(i => i.naturalWidth == 0).length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    fetched: performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  }), "*"));
</script>"""
ERRORS = """<script>window.errors = [];
window.addEventListener("error", e => window.errors.push(e.message || e.target.tagName), true);
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_all(study, tmp_path, lang, width):
    _, pages, _ = study
    page = pages[lang].replace("<head>", "<head>" + ERRORS, 1).replace("</body>", PROBE + "</body>")
    # Headless Chromium has a window of at least 500 pixels; a frame in it may be narrower.
    (tmp_path / "inner.html").write_text(page, encoding="utf-8")
    (tmp_path / "outer.html").write_text(
        "<script>onmessage = event => document.body.append(event.data)</script>"
        f'<iframe src="inner.html" width="{width}" height="900" style="border:0"></iframe>',
        encoding="utf-8",
    )
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"),
        *("--virtual-time-budget=4000", "--dump-dom", (tmp_path / "outer.html").as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r"probe(\{.*?\})", dom)
    assert found, dom[-2000:]
    seen = json.loads(html.unescape(found[1]))
    assert seen.pop("images") > 20
    assert seen == {"errors": [], "broken": 0, "wide": 0, "fetched": []}
