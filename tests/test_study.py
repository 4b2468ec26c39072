"""The study from end to end, on tiles that are drawn here: half of them have a dark disk."""

import json
import os
import re
import shutil
from dataclasses import asdict

import numpy as np
import pytest
from helpers.artifacts import study
from helpers.pictures import SIDE, tiles
from killing import finish, start

from softvq.evaluate.cost import Throughput
from softvq.outputs import RECORD, Record
from softvq.study.photos.inspect import inspect_photos
from softvq.study.settings import Known, Settings
from softvq.study.study import TOLD, WORK, open_detector, run_study


def results(out):
    return json.loads((out / "results.json").read_text())


def test_a_leaking_split_is_refused(tmp_path, capsys):
    photos, masks = tiles(tmp_path)
    shutil.copy(photos / "train" / "hole" / "3.png", photos / "val" / "hole" / "copy.png")
    assert study(photos, masks, tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "val/hole/copy.png" in said and "train/hole/3.png" in said and "--drop-leaks" in said
    found = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [leak["val"] for leak in found["leaks"]] == ["val/hole/copy.png"]


def test_what_was_planted_is_reported(studied):
    found = results(studied / "out")["data"]
    assert [item["path"] for item in found["skipped"]] == ["train/good/bad.png"]
    assert [leak["val"] for leak in found["leaks"]] == ["val/good/again.png"]
    assert found["splits"]["val"]["photos"] == 16
    report = (studied / "out" / "report.html").read_text()
    assert "train/good/bad.png" in report and "val/good/again.png" in report


def test_every_file_is_claimed_and_the_user_s_stay(studied, tmp_path, capsys):
    """Also one that is put where a study that was stopped has not come to yet."""
    out, half = studied / "out", tmp_path / "half"
    files = {name for name in os.listdir(out) if not name.startswith(".")}
    assert files - {RECORD} == {*WORK, *TOLD} == set(Record.read(out).files)
    shutil.copytree(out, half, ignore=lambda folder, names: {*TOLD} & {*names})
    record = asdict(Record.read(out)) | {"files": WORK}
    (half / RECORD).write_text(json.dumps(record))
    (half / "report.html").write_text("theirs")
    assert study(studied / "photos", studied / "masks", half, "--drop-leaks") == 2
    assert "report.html: is there, and this command did not write it" in capsys.readouterr().err
    assert (half / "report.html").read_text() == "theirs"


def test_what_is_printed_is_the_study_s_own(studied):
    """The photos are described once, and no rung says what a training of its own would."""
    said = (studied / "said.txt").read_text()
    assert said.count("50 photos: 33 for training, 17 held out (val/); 2 classes") == 1, said
    for line in ("rung 1 of 2, arm 1 of 1: softvq-4x32", "recommended: ", "report: "):
        assert said.count(line) == 1, said
    assert "next:" not in said and "on held-out photos" not in said, said


def test_results_say_what_was_tried(studied):
    found = results(studied / "out")
    assert found["images"] == [128, 192]
    learned = [arm for arm in found["arms"] if arm["learned"]]
    assert [(arm["name"], arm["images_seen"]) for arm in learned] == [("softvq-4x32", 320)]
    assert [arm["kind"] for arm in found["arms"][1:]] == ["jpeg", "webp", "thumbnail", "pca"]
    assert set(learned[0]["robustness"]) == {"noise", "blur", "jpeg", "dark", "bright"}
    assert found["originals"]["defect_recall"]["value"] > 0.8  # a black disk is found
    rebuilt = np.load(studied / "out" / learned[0]["pictures"])
    originals = np.load(studied / "out" / "originals.npy")
    error = ((rebuilt / 255.0 - originals / 255.0) ** 2).mean((1, 2, 3))
    psnr = float((-10 * np.log10(error)).mean())
    assert learned[0]["metrics"]["psnr"]["value"] == pytest.approx(psnr, abs=1e-6)


def test_the_recommendation_follows_from_the_table(studied, tmp_path, monkeypatch):
    """The only arm is recommended if the ends of its own intervals meet the criteria, else none.

    Other criteria and another language train nothing.
    """
    monkeypatch.setattr("softvq.study.results.throughput", lambda *_: Throughput(1.0, 1.0, 1.0))
    out = tmp_path / "out"
    shutil.copytree(studied / "out", out)
    weights = out / "arms" / "softvq-4x32" / "rung-1" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    (arm,) = (arm for arm in results(out)["arms"] if arm["learned"])
    psnr = arm["metrics"]["psnr"]
    assert psnr["low"] < psnr["value"] < psnr["high"]
    for least, chosen, limit in (
        (psnr["low"], "softvq-4x32", None),
        ((psnr["low"] + psnr["value"]) / 2, None, "evidence"),
        ((psnr["value"] + psnr["high"]) / 2, None, None),
    ):
        criteria = tmp_path / "criteria.yaml"
        criteria.write_text(f"criteria: {{psnr: {{min: {least}}}}}\n")
        more = ("--drop-leaks", "--criteria", str(criteria), "--lang", "ja")
        assert study(studied / "photos", studied / "masks", out, *more) == 0
        found = results(out)["recommendation"]
        assert (found["arm"], found["limit"]) == (chosen, limit)
        assert found["failing"] == ({} if chosen else {"psnr": 1})
        page = (out / "report.html").read_text()
        assert 'lang="ja"' in page
        # No value of Python, and no record of ours, stands for what is lacking.
        text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)
        assert not re.findall(r"\b(?:None|nan|inf|True|False)\b|\w+\(\w+=|\{'", text)
    assert weights.stat().st_mtime_ns == before


def test_results_and_photos_lie_apart(tmp_path, capsys):
    photos, masks = tiles(tmp_path, 2, 2)
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    for out in (photos, photos / "study", tmp_path):
        assert study(photos, masks, out) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(out) in said and "give a folder" in said
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "photos"]


def test_an_older_study_is_one_line(tmp_path, capsys):
    photos, masks = tiles(tmp_path, 2, 2)
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text('{"speed": {}, "rungs": []}')
    assert study(photos, masks, out) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "holds a study of an older softvq" in said[0]
    assert [path.name for path in out.iterdir()] == ["plan.json"]


def test_an_unknown_normal_class_is_refused_before_photos_are_decoded(tmp_path, capsys):
    photos, masks = tiles(tmp_path, 2, 2)
    assert study(photos, masks, tmp_path / "out", "--normal", "fine") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "fine" in said[0] and "good, hole" in said[0]
    assert not (tmp_path / "out" / "photos").exists()


def test_good_photos_alone_train_no_detector(tmp_path):
    """MVTec's folders: train/good, test/good, test/DEFECT. A detector would know no defect."""
    photos, _ = tiles(tmp_path, 3, 2)
    shutil.rmtree(photos / "train" / "hole")
    (photos / "val").rename(photos / "test")
    found = inspect_photos(photos, (SIDE, SIDE), tmp_path / "cache", progress=False)
    assert found.train.classes == ["good", "hole"] and set(found.train.labels) == {0}
    settings = Settings(str(photos), (SIDE, SIDE))
    assert open_detector(found, [], settings, tmp_path / "out") is None
    assert not (tmp_path / "out").exists()
    said = {remark.code: remark.values for remark in found.facts.remarks}
    assert said["one_class"] == {"class": "good"} and "imbalance" not in said


def test_another_study_in_the_folder_is_refused(studied, capsys):
    more = ("--drop-leaks", "--seed", "1")
    assert study(studied / "photos", studied / "masks", studied / "out", *more) == 2
    assert "seed" in capsys.readouterr().err


def test_a_broken_metric_is_said_before_training(tmp_path, capsys):
    photos, masks = tiles(tmp_path, 4, 4)
    criteria = tmp_path / "criteria.yaml"
    criteria.write_text('metrics: {holes: "command: false {originals} {rebuilt}"}\n')
    assert study(photos, masks, tmp_path / "out", "--criteria", str(criteria)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "metric command false: exit status 1" in said
    assert not (tmp_path / "out" / "arms").exists()


CODE = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_study import run
run(Path(sys.argv[1]))
"""


def run(out):
    """A study of three arms, in a process of its own, on the tiles beside ``out``."""
    settings = Settings(
        str(out.parent / "photos"),
        (SIDE, SIDE),
        tokens=(2, 4),
        bottlenecks=("softvq", "vq"),
        images=640,
    )
    assert run_study(settings, Known(masks=str(out.parent / "masks")), out)


@pytest.mark.slow
def test_kill_minus_9_changes_no_result(tmp_path):
    """Killed in the detector, in both rungs and while measuring, it ends with the same results."""
    import time

    tiles(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unkilled = start(CODE, whole)
    for sign in (
        "data.json",
        "arms/vq-2x32/rung-0/checkpoints",
        "arms/softvq-4x32/rung-1/metrics.jsonl",
        "originals.npy",
    ):
        process = start(CODE, killed)
        while not (killed / sign).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.5)
        process.kill()
        assert process.wait() == -9, (sign, (tmp_path / "killed.log").read_text()[-2000:])
    finish(start(CODE, killed), killed)
    finish(unkilled, whole)
    one, two = results(whole), results(killed)
    for found in (one, two):
        del found["times"], found["speeds"], found["command"]
    assert one == two
