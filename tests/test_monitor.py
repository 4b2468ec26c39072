"""softvq monitor: folders by date, what changed in words and pictures, nothing replaced."""

import json

import numpy as np
import pytest
import torch
from contract import small
from PIL import Image

from softvq.cli import main
from softvq.errors import UserError
from softvq.serve.monitor import monitor
from softvq.tokenizer import Tokenizer


def write(folder, count: int, seed: int, light: float = 1.0) -> None:
    """Soft patterns of one kind, 48 x 40 pixels."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        coarse = random.integers(60, 180, (5, 5, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((48, 40), Image.Resampling.BICUBIC)
        picture.point(lambda level: min(255, int(level * light))).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write(folder / "good", 120, 0)
    write(folder / "dates" / "2026-11-01", 30, 1)
    write(folder / "dates" / "2026-11-02", 30, 2, light=0.7)
    return folder


def test_a_change_is_found_on_its_day_and_told(photos, tmp_path, capsys):
    torch.manual_seed(0)
    model, out = tmp_path / "model", tmp_path / "drift"
    quick = {"network": "spectral", "nested": True, "refine_width": 8, "refine_depth": 1}
    Tokenizer(small(height=64, width=64, patch=8, tokens=16, **quick)).save_pretrained(model)
    command = [
        "monitor", "--reference", str(photos / "good"), "--data", str(photos / "dates"),
        "--model", str(model), "--out", str(out), "--window", "20", "--stride", "10",
        "--false-alarms", "200", "--precision", "fp32",
    ]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "have changed" in said and "darker" in said
    found = json.loads((out / "drift.json").read_text(encoding="utf-8"))
    alarms = [window for window in found["windows"] if window["alarm"]]
    assert alarms and all(window["last"].startswith("2026-11-02") for window in alarms)
    assert not any(w["alarm"] for w in found["windows"] if w["last"].startswith("2026-11-01"))
    worst = max(alarms, key=lambda window: max(window["figures"].values()))
    assert all(name.startswith("2026-11-02") for name in worst["drivers"][:4])
    page = (out / "drift.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 8 and "http" not in page.replace("http-equiv", "")
    before = (out / "reference.safetensors").stat().st_mtime_ns
    assert main([*command, "--lang", "ja"]) == 0  # the reference is not read again
    assert "暗い" in (out / "drift.html").read_text(encoding="utf-8")
    assert before
    assert main([*command[:-4], "--false-alarms", "100"]) == 2
    assert "another one_in" in capsys.readouterr().err


def test_what_cannot_be_watched_is_one_line(photos, tmp_path):
    asked = {"reference": str(photos / "good"), "data": str(photos / "dates")}
    for change, said in (
        ({"window": 100}, "60 photos, and windows of 100"),
        ({"window": 60}, "a reference of 120 photos for windows of 60"),
        ({"tokens": 300}, "as 64 tokens, not 300"),
        ({"data": str(tmp_path / "none")}, "none"),
    ):
        with pytest.raises(UserError, match=said):
            monitor(**(asked | change), out=tmp_path / "out", precision="fp32")
        assert not (tmp_path / "out").exists()
