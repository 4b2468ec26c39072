# ruff: noqa: RUF001, Japanese is written with full-width brackets
"""The study's report: what results.json says, in both languages, in one file."""

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
import warnings
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from softvq.errors import UserError
from softvq.evaluate.baselines import BASELINES
from softvq.evaluate.corruptions import CORRUPTIONS
from softvq.evaluate.intervals import Figure, wilson
from softvq.study import telling
from softvq.study.judging.criteria import METRICS, outcome, recommend, verdict
from softvq.study.records import (
    ORIGINALS,
    ArmCost,
    ArmResult,
    BaselineResult,
    ClassFigures,
    Criterion,
    Facts,
    Judgement,
    Leak,
    LeakReason,
    Machine,
    Originals,
    Outcome,
    Pair,
    RegionFigures,
    Remark,
    RemarkCode,
    Results,
    SizeBin,
    Sizes,
    Skipped,
    Speed,
    SplitFacts,
    Splits,
    Stop,
    Subgroup,
    read,
    write,
    write_pictures,
)
from softvq.study.settings import Bottleneck, Settings
from softvq.study.telling.gallery import around, enlarge, heat, range_of
from softvq.study.telling.report import render, write_reports
from softvq.study.telling.view import groups_needed
from softvq.study.telling.words import LANGUAGES, Count, Words, texts

SIZE = 48
CLASSES = ["MT_Blowhole", "MT_Free <b>"]  # what a folder is called is nobody's markup
PHOTOS = 12
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def estimate(value, reach=0.03, n=PHOTOS, groups=9):
    return Figure(value, value - reach, value + reach, n, groups)


CRITERIA = [Criterion("defect_kept", "min", 0.8)]
SETTINGS = Settings("photos", (SIZE, SIZE), tokens=(8, 16, 32), bottlenecks=("softvq", "kl"))


def judged(kept):
    """Figures that all follow from the share of defects that is kept."""
    metrics = {
        "psnr": estimate(20 + 10 * kept, 0.4),
        "ssim": estimate(0.8 * kept),
        "accuracy": estimate(0.9 * kept),
        "accuracy_drop": estimate(0.9 - 0.9 * kept),
        "defect_recall": estimate(0.9 * kept),
        "defect_kept": estimate(kept),
        "contrast_kept": estimate(kept, n=8),
        "regions_surviving": estimate(kept, n=8),
        "psnr_inside": Figure(18 + 10 * kept, None, None, PHOTOS, 9),
        "smallest_surviving": Figure(4.25) if kept > 0.5 else None,
        "kernel_distance": Figure(0.01234),
        "scratches <i>": Figure(2.5),
    }
    return Judgement(
        metrics=metrics,
        smallest_in_file=9.5 if kept > 0.5 else None,
        per_class={name: ClassFigures(6, estimate(kept), estimate(30)) for name in CLASSES},
        confusion=[[5, 1], [0, 6]],
        by_size=[SizeBin(3.0 + i, 4.0 + i, 2, kept, kept, 18 + 10 * kept) for i in range(4)],
        subgroups={
            "line": {
                "A": Subgroup(6, {"psnr": estimate(29), "defect_kept": None, "accuracy": None})
            }
        },
        worst=[3, 1, 4],
        regions=[
            RegionFigures(i, (i, 2 * i, i + 5, 2 * i + 6), 3.0 + i, kept - 0.01 * i)
            for i in range(8)
        ],
    )


def arm(kind, tokens, kept, stopped=None):
    found = judged(kept)
    spoilt = {
        "psnr": estimate(25),
        "accuracy": estimate(0.8),
        "defect_kept": estimate(0.7),
        "contrast_kept": None,
    }
    return ArmResult(
        name=f"{kind}-{tokens}x32",
        kind=kind,
        bytes=64.0 * tokens,
        held=("channels",),
        pictures=f"arms/{kind}-{tokens}x32/rebuilt-1.npy",
        tokens=tokens,
        channels=32,
        floats=32 * tokens,
        rungs=2,
        images_seen=12000,
        stopped=stopped,
        cost=ArmCost(4_500_000, 0.4, 0.3, 3.6 * tokens),
        robustness={"noise": spoilt},
        verdict=verdict(found.metrics, CRITERIA),
        **vars(found),
    )


def baseline(name, kind, floats, kept, fits=True):
    return BaselineResult(
        name=name,
        kind=kind,
        bytes=1024.0,
        held=("channels",),
        pictures=f"arms/{name}/rebuilt.npy",
        of="softvq-16x32",
        setting="q=12-31",
        floats=floats,
        fits=fits,
        **vars(judged(kept)),
    )


STOPPED = Stop("softvq-8x32", 1.25, 0)


def make_study(out, recommended="softvq-16x32", **changes):
    """A finished study: OUT/results.json and the pictures. ``changes``: of the results."""
    best = 0.95 if recommended else 0.82  # 0.82 - 0.03 is not 0.8
    learned = [
        arm("softvq", 8, 0.4),
        arm("kl", 8, 0.3, stopped=STOPPED),
        arm("softvq", 16, best),
        arm("softvq", 32, best + 0.005),
    ]
    baselines = [
        baseline("jpeg-1024", "jpeg", None, 0.2, fits=False),
        baseline("pca-512", "pca", 512, 0.6),
    ]
    counts = SplitFacts(PHOTOS, dict.fromkeys(CLASSES, 6), 9, 4)
    results = Results(
        version="0.3.0",
        command="softvq study --data photos --out study",
        settings=SETTINGS,
        images=[4800, 7200],
        confidence=0.9,
        criteria=CRITERIA,
        data=Facts(
            splits=Splits(counts, counts),
            sizes=Sizes([90, 96, 120], [90, 96, 100], [1.9, 2.0, 2.1], 0.0, 0.0),
            normal=[CLASSES[1]],
            group="cluster",
            grey=True,
            skipped=[Skipped("val/bad.jpg", "damaged: broken data stream")],
            duplicates=[["train/a.jpg", "train/b.jpg"]],
            near_duplicates=[Pair("val/c.jpg", "val/d.jpg", 0.97)],
            near_duplicates_count=3,
            leaks=[Leak("val/e.jpg", "train/e.jpg", "same group", group="e")],
            dropped=1,
            remarks=[
                Remark("few_defect_groups", {"groups": 9, "least_provable": 0.769}),
                Remark("few_class_val", {"class": CLASSES[0], "n": 6}),
                Remark("reduced", {"factor": 2.0}),
            ],
        ),
        originals=Originals(
            names=[f"val/{CLASSES[i % 2]}/{i:04}.jpg" for i in range(PHOTOS)],
            classes=CLASSES,
            accuracy=estimate(0.93),
            defect_recall=estimate(0.91),
            per_class={name: ClassFigures(6, estimate(0.9)) for name in CLASSES},
            confusion=[[6, 0], [2, 6]],
            unmarked=1,
        ),
        arms=[*learned, *baselines],
        recommendation=recommend(learned),
        times={"training": 612.0, "measuring": 80.0},
        speeds={"softvq-16x32": Speed(120.4, 99.6)},
        machine=Machine("Linux", 2, "3.11", "2.13"),
    )
    assert results.recommendation.arm == recommended
    results = replace(results, **changes)
    originals = np.random.default_rng(0).integers(0, 256, (PHOTOS, SIZE, SIZE, 3), np.uint8)
    write(results, out / "results.json")
    write_pictures(originals, out / ORIGINALS)
    for k, one in enumerate(results.arms):
        write_pictures(originals // (k + 2), out / one.pictures)
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


def spread(results):
    """The same study with a remark, a reason and a name of every kind that there is."""
    values = {name: 1 for code in get_args(RemarkCode) for name in fields_of(f"remark.{code}")}
    reasons = [key.removeprefix("reason.") for key in texts() if key.startswith("reason.")]
    arm, *_ = results.learned
    kinds = [replace(arm, name=f"{kind}-4x32", kind=kind) for kind in get_args(Bottleneck)]
    known = [
        replace(one, metrics=dict.fromkeys([*METRICS, "kernel_distance"], estimate(0.5)))
        for one in kinds
    ]
    stages = ("data", "speed", "training", "measuring")
    data = replace(
        results.data,
        remarks=[Remark(code, values) for code in get_args(RemarkCode)],
        skipped=[Skipped("a.png", reason) for reason in reasons],
        leaks=[Leak("a", "b", why) for why in get_args(LeakReason)],
        dropped=0,
        group="stem",
    )
    return replace(
        results,
        data=data,
        arms=[
            *(replace(one, held=("channels", "floats")) for one in known),
            *(baseline(kind, kind, 128, 0.2) for kind in BASELINES),
            *results.arms,
        ],
        criteria=[*CRITERIA, Criterion("ssim", "max", 1.0), Criterion("accuracy_drop", "max", 0.1)],
        settings=replace(results.settings, fit="crop", init="none"),
        times=dict.fromkeys(stages, 3.0),
    )


def fields_of(key):
    return [name for name, _ in fields(texts()[key]["en"])]


def clean(results):
    """The same study where nothing was stopped, asked for, skipped, leaking or to compare with."""
    facts = Facts(results.data.splits, results.data.sizes, [])
    only = [
        replace(one, metrics=one.metrics | {"smallest_surviving": None})
        for one in results.learned
        if one.name == "softvq-16x32"
    ]
    return replace(results, data=facts, arms=only, criteria=[], recommendation=recommend(only))


def test_every_text_is_used(tmp_path):
    """Reports of studies of every kind ask for every text; a family has what the code may name."""
    used = set()
    every = {name: {"psnr": estimate(20)} for name in CORRUPTIONS}
    for i, make in enumerate((lambda r: r, spread, bare, clean, lambda r: r)):
        out = tmp_path / str(i)
        results = make(make_study(out, None if i == 4 else "softvq-16x32"))
        arms = [
            replace(one, robustness=every) if isinstance(one, ArmResult) else one
            for one in results.arms
        ]
        for one in arms:
            write_pictures(np.zeros((PHOTOS, SIZE, SIZE, 3), np.uint8), out / one.pictures)
        words = Words("en")
        render(replace(results, arms=arms), out, words)
        used |= words.asked
    assert set(texts()) - used == set()


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


def test_japanese_report_has_no_english_sentence(study):
    results, pages, _ = study
    left = text_of(pages["ja"]) + "\n".join(
        re.findall(r">([^<]+)</text>", "".join(svgs(pages["ja"])))
    )
    for given in (results.command, "MT_Free <b>", "scratches <i>", "broken data stream"):
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
    for one in results.arms:
        said, kept = rows[one.name][1], rows[one.name][-2]
        if isinstance(one, BaselineResult):
            continue
        if one.stopped:
            assert "softvq-8x32" in said and "1.2" in said
        else:
            assert said == words("verdict.pass" if one.verdict.holds else "verdict.fail")
        assert kept.startswith(marks[0] if one.verdict.holds else marks[1])
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
    kept = estimate(0.825)  # the best arm's, 0.82 + 0.005
    needed = groups_needed(outcome(CRITERIA[0], kept), kept, 0.9)
    assert f"{needed:,}" in text and "★ " not in text.replace("★ is", "")
    assert {"en": "evidence is too thin to tell", "ja": "合否を判定できない"}[lang] in text
    assert {"en": "Defects kept: 4", "ja": "欠陥保持率：4"}[lang] in text


def test_groups_needed_is_the_least_that_proves_it():
    for value, least, confidence in ((1.0, 0.9, 0.9), (0.97, 0.9, 0.9), (0.85, 0.8, 0.95)):
        figure = Figure(value, 0.0, 1.0, 3, 3)
        n = groups_needed(Outcome("accuracy", "min", least), figure, confidence)
        assert wilson(value * n, n, confidence)[0] >= least - 1e-12
        assert wilson(value * (n - 1), n - 1, confidence)[0] < least
    # a mean's interval must halve: four times the groups
    mean = Outcome("psnr", "min", 29.0, value=30.0, bound=28.0)
    assert groups_needed(mean, Figure(30.0, 28.0, 32.0, 10, 10), 0.9) == 40


def bare(results):
    """The same study of photos without classes and masks."""
    nothing = {"per_class": {}, "confusion": None, "by_size": [], "subgroups": {}, "regions": []}
    arms = []
    for one in results.arms:
        metrics = {m: f if m in ("psnr", "ssim") else None for m, f in one.metrics.items()}
        changes = nothing | {"metrics": metrics}
        if isinstance(one, ArmResult):
            changes["verdict"] = verdict(metrics, CRITERIA)
        arms.append(replace(one, **changes))
    originals = replace(results.originals, accuracy=None, defect_recall=None, confusion=None)
    learned = [one for one in arms if isinstance(one, ArmResult)]
    return replace(results, arms=arms, originals=originals, recommendation=recommend(learned))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_unlabelled_photos_without_masks(tmp_path, lang):
    write(bare(make_study(tmp_path)), tmp_path / "results.json")
    text = text_of(write_reports(tmp_path, lang).read_text(encoding="utf-8"))
    assert Words(lang)("brief.risk.nothing") in text
    assert Words(lang)("why.not measured") in text


def test_csv_has_the_same_numbers_unrounded(study):
    results, _, out = study
    with open(out / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [one.name for one in results.arms]
    for one in results.arms:
        row, kept = rows[one.name], one.metrics["defect_kept"]
        for end in ("low", "high", "n", "groups"):
            assert float(row[f"defect_kept_{end}"]) == getattr(kept, end)
        assert float(row["psnr"]) == one.metrics["psnr"].value
        assert row["psnr_inside_low"] == "" and float(row["scratches <i>"]) == 2.5
        assert row["learned"] == str(isinstance(one, ArmResult))
        assert row["holds"] == (str(one.verdict.holds) if row["learned"] == "True" else "")
    assert rows["kl-8x32"]["stopped_by"] == "softvq-8x32"
    assert rows["softvq-8x32"]["fails"] == "defect_kept"
    assert rows["softvq-16x32"]["smallest_surviving"] == "4.25"
    assert rows["softvq-16x32"]["smallest_surviving_in_file"] == "9.5"


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
    make_study(tmp_path)
    (tmp_path / ORIGINALS).write_bytes(b"no array")
    with pytest.raises(UserError, match="originals.npy: damaged"):
        write_reports(tmp_path, "en")


def test_results_are_the_same_when_read(tmp_path):
    results = make_study(tmp_path)
    assert read(Results, tmp_path / "results.json", "") == results
    with pytest.raises(ValueError, match="JSON compliant"):  # never a figure that is not finite
        write(replace(results, confidence=float("nan")), tmp_path / "results.json")
    assert read(Results, tmp_path / "results.json", "") == results


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
