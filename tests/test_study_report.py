# ruff: noqa: RUF001, Japanese is written with full-width brackets
"""The study's report: what results.json says, in both languages, in one file."""

import base64
import csv
import html
import io
import json
import re
import shutil
import string
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softvq.errors import UserError
from softvq.study import texts
from softvq.study.gallery import around, enlarge, heat, range_of
from softvq.study.intervals import wilson
from softvq.study.reading import groups_needed
from softvq.study.report import write_reports
from softvq.study.texts import LANGUAGES, TEXTS, Count, Words

SIZE = 48
CLASSES = ["MT_Blowhole", "MT_Free <b>"]  # what a folder is called is nobody's markup
PHOTOS = 12
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def estimate(value, reach=0.03, n=PHOTOS, groups=9):
    return {"value": value, "low": value - reach, "high": value + reach, "n": n, "groups": groups}


def criteria(kept):
    """Defects kept must surely be at least 80%, and a metric is asked for that nobody measured."""
    figure = estimate(kept)
    return [
        {
            "metric": "defect_kept",
            "min": 0.8,
            "value": kept,
            "bound": figure["low"],
            "holds": figure["low"] >= 0.8,
            "why": None,
        }
    ]


def arm(name, kind, tokens, kept, **changes):
    """An arm whose figures all follow from the share of defects it keeps."""
    regions = [
        {
            "photo": i,
            "diameter": 3.0 + i,
            "contrast": kept - 0.01 * i,
            "box": [i, 2 * i, i + 5, 2 * i + 6],
        }
        for i in range(8)
    ]
    verdicts = criteria(kept)
    learned = kind in ("softvq", "kl", "vq", "ae")
    return {
        "name": name,
        "kind": kind,
        "learned": learned,
        "of": None if learned else "softvq-16x32",
        "held": ["channels"] if learned else [],
        "tokens": tokens if learned else None,
        "channels": 32 if learned else None,
        "floats": None if kind in ("jpeg", "webp") else 32 * tokens,
        "bytes": 64.0 * tokens,
        "setting": None if learned else "q=12-31",
        "fits": True,
        "images_seen": 12000 if learned else None,
        "stopped": None,
        "metrics": {
            "psnr": estimate(20 + 10 * kept, 0.4),
            "ssim": estimate(0.8 * kept),
            "accuracy": estimate(0.9 * kept),
            "accuracy_drop": estimate(0.9 - 0.9 * kept),
            "defect_recall": estimate(0.9 * kept),
            "defect_kept": estimate(kept),
            "contrast_kept": estimate(kept, n=8),
            "regions_surviving": estimate(kept, n=8),
            "psnr_inside": {**estimate(18 + 10 * kept), "low": None, "high": None},
            "smallest_surviving": {"study_px": 4.25, "original_px": 9.5} if kept > 0.5 else None,
            "kernel_distance": {"value": 0.01234},
            "scratches <i>": {"value": 2.5},
        },
        "per_class": {
            name: {"recall": estimate(kept), "psnr": estimate(30), "n": 6} for name in CLASSES
        },
        "confusion": [[5, 1], [0, 6]],
        "by_size": [
            {"low": 3.0 + i, "high": 4.0 + i, "n": 2, "contrast": kept, "surviving": kept}
            | {"psnr": 18 + 10 * kept}
            for i in range(4)
        ],
        "subgroups": {
            "line": {"A": {"n": 6, "psnr": estimate(29), "defect_kept": None, "accuracy": None}}
        },
        "worst": [3, 1, 4],
        "regions": regions,
        "robustness": {
            "noise": {
                "psnr": estimate(25),
                "accuracy": estimate(0.8),
                "defect_kept": estimate(0.7),
                "contrast_kept": None,
            }
        }
        if learned
        else {},
        "cost": {
            "parameters": 4.5e6,
            "encode_gflops": 0.4,
            "decode_gflops": 0.3,
            "generator_gflops": 3.6 * tokens,
        }
        if learned
        else None,
        "verdict": {"holds": all(v["holds"] for v in verdicts), "criteria": verdicts}
        if learned
        else None,
    } | changes  # fmt: skip


STOPPED = {"by": "softvq-8x32", "gap_db": 1.25, "rung": 0}


def make_study(out, recommended="softvq-16x32", **changes):
    """A finished study: OUT/results.json, names.json and the pictures."""
    best = 0.95 if recommended else 0.82  # 0.82 - 0.03 is not 0.8
    arms = [
        arm("softvq-8x32", "softvq", 8, 0.4),
        arm("kl-8x32", "kl", 8, 0.3, stopped=STOPPED),
        arm("softvq-16x32", "softvq", 16, best),
        arm("softvq-32x32", "softvq", 32, best + 0.005),
        arm("jpeg-1024", "jpeg", 16, 0.2, fits=False),
        arm("pca-512", "pca", 16, 0.6),
    ]
    counts = {"photos": PHOTOS, "classes": dict.fromkeys(CLASSES, 6), "groups": 9}
    results = {
        "version": "0.3.0",
        "command": "softvq study --data photos --out study",
        "data": {
            "splits": {"train": counts, "val": counts},
            "sizes": {
                "width": [90, 96, 120],
                "height": [90, 96, 100],
                "reduced": [1.9, 2.0, 2.1],
                "upscaled": 0.0,
                "cropped": 0.0,
            },
            "grey": True,
            "group": "cluster",
            "skipped": [{"path": "val/bad.jpg", "reason": "damaged: broken data stream"}],
            "duplicates": [["train/a.jpg", "train/b.jpg"]],
            "near_duplicates": [{"a": "val/c.jpg", "b": "val/d.jpg", "similarity": 0.97}],
            "near_duplicates_count": 3,
            "leaks": [{"val": "val/e.jpg", "train": "train/e.jpg", "why": "same group"}],
            "dropped": 1,
            "remarks": [
                {"code": "few_defect_groups", "groups": 9, "least_provable": 0.769},
                {"code": "few_class_val", "class": CLASSES[0], "n": 6},
                {"code": "reduced", "factor": 2.0},
            ],
        },
        "settings": {
            "size": [SIZE, SIZE],
            "fit": "stretch",
            "tokens": [8, 16, 32],
            "hold": "channels",
            "bottlenecks": ["softvq", "kl"],
            "images": [4800, 7200],
            "seed": 0,
            "init": "shipped",
            "normal": [CLASSES[1]],
            "confidence": 0.9,
            "criteria": [{"metric": "defect_kept", "min": 0.8}],
        },
        "originals": {
            "accuracy": estimate(0.93),
            "defect_recall": estimate(0.91),
            "per_class": {name: {"recall": estimate(0.9), "n": 6} for name in CLASSES},
            "unmarked": 1,
            "confusion": [[6, 0], [2, 6]],
            "classes": CLASSES,
        },
        "arms": arms,
        "recommendation": {
            "arm": recommended,
            "failing": {"defect_kept": 2 if recommended else 4},
            "cheaper_failed": [{"arm": "softvq-8x32", "metrics": ["defect_kept"]}],
            "limit": None if recommended else "evidence",
        },
        "times": {
            "training": 612.0,
            "measuring": 80.0,
            "images_per_second": {"softvq-16x32": {"encode": 120.4, "decode": 99.6}},
        },
        "machine": {"system": "Linux", "threads": 2},
    } | changes  # fmt: skip
    names = [f"val/{CLASSES[i % 2]}/{i:04}.jpg" for i in range(PHOTOS)]
    originals = np.random.default_rng(0).integers(0, 256, (PHOTOS, SIZE, SIZE, 3), np.uint8)
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (out / "names.json").write_text(json.dumps({"names": names}), encoding="utf-8")
    np.save(out / "originals.npy", originals)
    for k, one in enumerate(arms):
        folder = out / "arms" / one["name"]
        folder.mkdir(parents=True)
        np.save(folder / "rebuilt.npy", originals // (k + 2))
    return results


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(results, {lang: the report's HTML}, folder)"""
    out = tmp_path_factory.mktemp("study")
    results = make_study(out)
    pages = {lang: write_reports(out, lang).read_text(encoding="utf-8") for lang in LANGUAGES}
    return results, pages, out


def fields(text):
    return {(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name is not None}


def test_both_languages_say_every_text_with_the_same_values():
    for key, (english, japanese) in TEXTS.items():
        assert english and (japanese or key == "between_sentences"), key
        assert {name for name, _ in fields(english)} == {name for name, _ in fields(japanese)}, key
        # An English noun must not stand behind a Japanese number.
        assert not any("|" in (spec or "") for _, spec in fields(japanese)), key


def test_sentences_end_as_sentences_and_japanese_is_japanese():
    for key, (english, japanese) in TEXTS.items():
        if english.endswith(".") and " " in english:
            assert japanese.endswith("。"), key
        assert not re.search(r"[、。]\s|  |[,;!?]", japanese) or key in ("colon",), key


def test_every_text_is_used():
    folder = Path(texts.__file__).parent
    source = "".join(
        (folder / f"{name}.py").read_text(encoding="utf-8")
        for name in ("report", "evidence", "gallery", "reading")
    ) + Path(texts.__file__).read_text(encoding="utf-8").partition("\nTEXTS")[0]  # fmt: skip
    literals = re.findall(r"""["']([\w.{}\[\]']+)["']""", source)
    known = [re.sub(r"\\{.*?\\}", r"[\\w ,]+", re.escape(text)) for text in literals]
    families = re.findall(r"""name\(\s*"(\w+)",""", source)
    for key in TEXTS:
        family, _, _ = key.partition(".")
        assert family in families or any(re.fullmatch(text, key) for text in known), key


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


def test_japanese_report_has_no_english_sentence(study):
    results, pages, _ = study
    left = text_of(pages["ja"]) + "\n".join(
        re.findall(r">([^<]+)</text>", "".join(svgs(pages["ja"])))
    )
    for given in (results["command"], "MT_Free <b>", "scratches <i>", "broken data stream"):
        left = left.replace(given, "")
    # Two English words in a row are a sentence that nobody translated.
    runs = re.findall(r"[A-Za-z]{2,}[ ,]+[A-Za-z]{2,}", left)
    assert not [run for run in runs if run != "softvq study"], runs
    assert '<html lang="ja">' in pages["ja"] and '<html lang="en">' in pages["en"]
    assert not JAPANESE.search(text_of(pages["en"]))


def test_nothing_is_fetched_and_every_picture_is_inside(study):
    _, pages, _ = study
    for page in pages.values():
        visible = "".join([page, *svgs(page)])
        # An SVG's name spaces are names, not addresses that anyone opens.
        visible = re.sub(
            r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>|<!DOCTYPE.*?>',
            "",
            visible,
            flags=re.DOTALL,
        )
        assert not re.search(r"https?://|<script|@import|url\(http", visible)
        addresses = re.findall(r"""\b(?:src|href)="([^"#][^"]*)""", page)
        assert addresses and all(address.startswith("data:") for address in addresses)
        # 3 worst cases of original and 2 arms with error maps; 8 defects of original and 3 arms.
        assert page.count("<img ") == 4 + 3 * 5 + 8 * 4
        for kind, data in re.findall(r"data:image/(png|jpeg);base64,([^\"]+)", page):
            assert Image.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()


def test_names_are_escaped(study):
    _, pages, _ = study
    for page in pages.values():
        assert "MT_Free &lt;b&gt;" in page and "<b>" not in page
        assert "scratches &lt;i&gt;" in page and "<i>" not in page


def rows_of(page):
    cells = [
        [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", page)
    ]
    return [row for row in cells if row]


@pytest.mark.parametrize("lang, marks", [("en", "✓✗"), ("ja", "○×")], ids=LANGUAGES)
def test_verdicts_are_those_of_the_results(study, lang, marks):
    results, pages, _ = study
    words = Words(lang)
    rows = {row[0].removeprefix("★ "): row for row in reversed(rows_of(pages[lang]))}
    for one in results["arms"]:
        verdict, kept = rows[one["name"]][1], rows[one["name"]][-2]
        if one["stopped"]:
            assert "softvq-8x32" in verdict and "1.2" in verdict
        elif one["learned"]:
            holds = one["verdict"]["holds"]
            assert verdict == words("verdict.pass" if holds else "verdict.fail")
        if one["learned"]:
            assert kept.startswith(marks[0] if one["verdict"]["holds"] else marks[1])
    stars = [row[0] for row in rows_of(pages[lang]) if row[0].startswith("★")]
    assert stars == ["★ softvq-16x32"]
    # value and the end that counts, as they are in results.json: 0.95 and 0.92
    assert rows["softvq-16x32"][-2] == f"{marks[0]} {words('bracket', value='95.0', more='92.0')}"


def test_the_first_page_answers(study):
    _, pages, _ = study
    english, japanese = text_of(pages["en"]), text_of(pages["ja"])
    assert "Recommended: softvq-16x32, that is 16 tokens and 1,024 bytes per photo" in english
    assert "推奨構成は「softvq-16x32」（画像1枚当たり16トークン、1,024バイト）です。" in japanese
    assert (
        "the next cheaper, softvq-8x32, in: Defects kept." in english
    )  # what is cheaper, and why not
    # the generator's 16 against 32 tokens; 1 - 0.92 of 100 defects; the classifier itself
    assert "needs 50% of the computation" in english and "up to 8 could be missed" in english
    assert "91% of the defects" in english and "6,912 → 512" in english
    assert "it takes 25% for defective" in english and "25%を欠陥ありと判定" in japanese
    assert "最大8件" in japanese and "50%" in japanese


@pytest.mark.parametrize("lang", LANGUAGES)
def test_too_little_evidence_is_said_with_the_evidence_needed(tmp_path, lang):
    make_study(tmp_path, recommended=None)
    text = text_of(write_reports(tmp_path, lang).read_text(encoding="utf-8"))
    kept = {"value": 0.825, "groups": 9}  # the best arm's, 0.82 + 0.005
    needed = groups_needed({"metric": "defect_kept", "min": 0.8}, kept, 0.9)
    assert f"{needed:,}" in text and "★ " not in text.replace("★ is", "")
    assert {"en": "evidence is too thin to tell", "ja": "合否を判定できない"}[lang] in text
    assert {"en": "Defects kept: 4", "ja": "欠陥保持率：4"}[lang] in text


def test_groups_needed_is_the_least_that_proves_it():
    for value, least, confidence in ((1.0, 0.9, 0.9), (0.97, 0.9, 0.9), (0.85, 0.8, 0.95)):
        criterion, figure = {"metric": "accuracy", "min": least}, {"value": value, "groups": 3}
        n = groups_needed(criterion, figure, confidence)
        assert wilson(value * n, n, confidence)[0] >= least - 1e-12
        assert wilson(value * (n - 1), n - 1, confidence)[0] < least
    # a mean's interval must halve: four times the groups
    criterion = {"metric": "psnr", "min": 29.0, "bound": 28.0}
    assert groups_needed(criterion, {"value": 30.0, "groups": 10}, 0.9) == 40


@pytest.mark.parametrize("lang", LANGUAGES)
def test_unlabelled_photos_without_masks(tmp_path, lang):
    results = make_study(tmp_path)
    bare = {"per_class": {}, "confusion": None, "by_size": [], "subgroups": {}, "regions": []}
    for one in results["arms"]:
        one["metrics"] = {
            m: figure if m in ("psnr", "ssim") else None for m, figure in one["metrics"].items()
        }
        one |= bare
        if one["verdict"]:
            nothing = {"value": None, "bound": None, "holds": False, "why": "not measured"}
            one["verdict"] = {
                "holds": False,
                "criteria": [{"metric": "defect_kept", "min": 0.8} | nothing],
            }
    results["originals"] |= dict.fromkeys(("accuracy", "defect_recall", "confusion"))
    results["recommendation"] |= {"arm": None, "failing": {"defect_kept": 4}}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    text = text_of(write_reports(tmp_path, lang).read_text(encoding="utf-8"))
    assert Words(lang)("brief.risk.nothing") in text
    assert Words(lang)("why.not measured") in text


def test_csv_has_the_same_numbers_unrounded(study):
    results, _, out = study
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [one["name"] for one in results["arms"]]
    for one in results["arms"]:
        row = rows[one["name"]]
        for end in ("low", "high", "n", "groups"):
            assert float(row[f"defect_kept_{end}"]) == one["metrics"]["defect_kept"][end]
        assert float(row["psnr"]) == one["metrics"]["psnr"]["value"]
        assert row["psnr_inside_low"] == "" and float(row["scratches <i>"]) == 2.5
        assert row["holds"] == ("" if one["verdict"] is None else str(one["verdict"]["holds"]))
    assert rows["kl-8x32"]["stopped_by"] == "softvq-8x32"
    assert rows["softvq-8x32"]["fails"] == "defect_kept"
    assert rows["softvq-16x32"]["smallest_surviving_study_px"] == "4.25"


def test_no_warning_about_glyphs_and_text_stays_text(study, tmp_path):
    _, pages, _ = study
    make_study(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_reports(tmp_path, "ja")
    charts = svgs(pages["ja"])
    assert len(charts) == 4
    assert all("画像1枚当たり" in chart and 'xml:lang="ja"' in chart for chart in charts)


def test_error_map_is_black_where_nothing_differs():
    picture = heat(np.array([[0.0, 64.0, 255.0]]))
    assert picture[0, 0].max() <= 4 and picture[0, 1].min() > 100
    np.testing.assert_array_equal(picture[0, 1], picture[0, 2])


def test_crop_holds_the_defect_and_stays_in_the_photo():
    for box in ([0, 0, 3, 3], [40, 44, 48, 48], [10, 10, 40, 14], [0, 0, 48, 48]):
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
    assert seen == {"errors": [], "images": 51, "broken": 0, "wide": 0, "fetched": []}
