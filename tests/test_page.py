"""The page in a real browser: a photo in, tokens dragged, two languages, two widths, no noise."""

import os
import shutil
import time
from pathlib import Path

import pytest
from test_serve import PLAN, photo, running

from softvq.serve.app import Settings
from softvq.serve.store import Store, Window
from softvq.tokenizer import Tokenizer, TokenizerConfig

playwright = pytest.importorskip("playwright.sync_api")  # the extra browser
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
if BROWSER is None:
    pytest.skip("no Chromium here", allow_module_level=True)
SHOTS = os.environ.get("SOFTVQ_SHOTS")  # a folder for pictures of the page, to look at


@pytest.fixture(params=["shipped", "nested"])
def model(request, tmp_path_factory) -> str:
    """The shipped pipeline, or an untrained nested tokenizer, which is its cosine transform."""
    if request.param == "shipped":
        return "shipped"
    folder = tmp_path_factory.mktemp("model")
    Tokenizer(
        TokenizerConfig(
            height=64, width=64, patch=16, tokens=16, channels=16, network="spectral", nested=True,
            bottleneck="ae", encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32,
            decoder_depth=1, decoder_heads=2, refine_width=8, refine_depth=1,
        )
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture
def url(tmp_path_factory, model):
    where = f"sqlite:///{tmp_path_factory.mktemp('page') / 'softvq.db'}"
    store = Store(where)
    said = {"en": ["the photos are darker than the reference"], "ja": ["写真が基準より暗い"]}
    store.add([
        Window(
            at=time.time() - 600 + i, alarm=i > 25, said=said,
            figures={"mmd": 0.4 + 0.02 * (i % 5) + (i > 25)},
        )
        for i in range(30)
    ])  # fmt: skip
    store.close()
    with running(Settings(model=model, plan=PLAN, store=where, precision="fp32")) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page(url, model, chromium, tmp_path):
    width = 1280 if model == "shipped" else 390
    page = chromium.new_page(viewport={"width": width, "height": 900}, locale="en-US")
    page.set_default_timeout(120_000)
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on(
        "request", lambda one: one.url.startswith((url, "data:", "blob:")) or noise.append(one.url)
    )
    page.goto(url)
    page.locator("#model", has_text="tokens").wait_for()
    (tmp_path / "photo.png").write_bytes(photo(5, 300, 400))
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#pictures:not([hidden])")
    assert "dB" in page.text_content("#psnr")
    assert page.text_content("#bytes") == ("4,096" if model == "shipped" else "512")
    assert "judged" in page.text_content("#rebuilt-says")
    drawn = page.evaluate(
        "['original', 'rebuilt', 'difference'].map(id => {"
        " const c = document.getElementById(id);"
        " return new Set(c.getContext('2d').getImageData(0, 0, c.width, c.height).data).size})"
    )
    assert min(drawn) > 20  # levels: none of them is blank
    assert page.text_content("#drift-says").startswith("Changed: the photos are darker")
    assert page.locator("#chart .alarm").count() == 4
    assert "now" in page.get_attribute("#stage-shadow", "class")
    if model == "shipped":
        page.click("#draw-more")
        page.locator("#drawn img").nth(3).wait_for()
    else:
        dragged(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    _shot(page, f"en-{width}")
    page.focus("#language")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.lang") == "ja"
    assert page.text_content("#drift-says") == "変化あり: 写真が基準より暗い"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    _shot(page, f"ja-{width}")
    # Everything can be reached with the Tab key alone.
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    wanted = {"tokens", "label", "draw-more"} if model == "shipped" else {"tokens"}
    assert {"file", "language", *wanted} <= reached
    page.close()
    assert noise == []


def dragged(page) -> None:
    """Fewer tokens, by the arrow keys: fewer bytes, and a picture less near."""
    before = float(page.text_content("#psnr").split()[0])
    page.focus("#tokens")
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    assert page.text_content("#count") == "4 of 16"
    page.locator("#bytes", has_text="128").wait_for()
    assert float(page.text_content("#psnr").split()[0]) < before - 1


def _shot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)
