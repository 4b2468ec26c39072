"""The study from end to end, on tiles that are drawn here: half of them have a dark disk."""

import json
import os
import shutil
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import yaml
from helpers.artifacts import nested_tokenizer, study
from helpers.pictures import SIDE, tiles
from killing import finish, start
from PIL import Image

from softvq.cli import main
from softvq.coding import reconstruct_all
from softvq.evaluate.regions import Region
from softvq.fingerprint import fingerprint
from softvq.models import open_tokenizer
from softvq.outputs import RECORD, Record
from softvq.precision import computing
from softvq.study import study as planning
from softvq.study.photos.inspect import inspect_photos
from softvq.study.photos.pieces import choose_tile, cut, divide
from softvq.study.settings import Known, Settings
from softvq.study.study import TOLD, WORK, run_study


def results(out):
    return json.loads((out / "results.json").read_text())


def test_a_leaking_split_is_refused(tmp_path, capsys):
    photos, _ = tiles(tmp_path)
    nested_tokenizer(tmp_path)
    shutil.copy(photos / "train" / "hole" / "3.png", photos / "val" / "hole" / "copy.png")
    assert study(tmp_path, tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "val/hole/copy.png" in said and "train/hole/3.png" in said and "--drop-leaks" in said
    found = json.loads((tmp_path / "out" / "data.json").read_text())
    assert [leak["val"] for leak in found["leaks"]] == ["val/hole/copy.png"]


def test_what_was_planted_is_reported(studied):
    found = results(studied / "out")["evidence"]["facts"]
    assert [item["path"] for item in found["skipped"]] == ["train/good/bad.png"]
    assert [leak["val"] for leak in found["leaks"]] == ["val/good/again.png"]
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
    assert study(studied, half, "--drop-leaks") == 2
    assert "report.html: is there, and this command did not write it" in capsys.readouterr().err
    assert (half / "report.html").read_text() == "theirs"


def test_what_is_printed_is_the_study_s_own(studied):
    said = (studied / "said.txt").read_text()
    for line in ("judging the originals", "fine-tuning tuned, 1 of 1", "recommended: ", "report: "):
        assert said.count(line) == 1, said
    assert "next:" not in said and "on held-out photos" not in said, said


def test_tokens_are_explained_on_a_page_and_in_the_report(studied):
    out = studied / "out"
    found = json.loads((out / "tokens" / "explanation.json").read_text())
    assert len(found["tokens"]) == len(found["order"]) == 8
    assert found["tokenizer"]["fingerprint"] == fingerprint(open_tokenizer(out / "models/tuned"))
    evidence = results(out)["evidence"]["names"]
    assert set(found["photos"]["measured"]) <= set(evidence)
    assert "tokens/index.html" in (out / "report.html").read_text()
    assert (out / "tokens" / "index.html").is_file()


def test_evidence_and_what_tokenizers_learn_from_are_apart(studied):
    evidence = results(studied / "out")["evidence"]
    aside = [n for n, held in zip(evidence["names"], evidence["held_out"], strict=True) if not held]
    assert sum(evidence["held_out"]) == 32 and len(aside) == 32
    assert all(name.startswith("train/") for name in aside)
    assert evidence["learning"] == 64 - len(aside)
    assert sum("hole" in name for name in aside) == 16  # an even share of every class


def test_everything_was_tried_and_measured(studied):
    found = results(studied / "out")
    names = [c["name"] for c in found["candidates"] if c["role"] == "candidate"]
    fixed = [f"{kind}-{k}" for kind in ("tuned", "pca", "shipped") for k in (1, 8)]
    assert set(fixed) < set(names) and all(n.endswith("dB") for n in set(names) - set(fixed))
    kinds = {c["kind"] for c in found["candidates"] if c["role"] == "reference"}
    assert {"jpeg", "webp", "thumbnail"} <= kinds
    assert found["images"] == {"tuned": 48}  # of 64, the first quarter measures the speed
    assert found["originals"]["metrics"]["defect_recall"]["value"] > 0.8  # a black disk is found
    by_name = {c["name"]: c for c in found["candidates"]}
    assert by_name["tuned-8"]["tokens"] == 8 and by_name["tuned-8"]["bytes"] == 8 * 32
    assert (
        by_name["tuned-8"]["metrics"]["psnr"]["value"]
        > by_name["tuned-1"]["metrics"]["psnr"]["value"]
    )


def test_figures_are_those_of_the_exported_tokenizer(studied):
    out = studied / "out"
    tokenizer = open_tokenizer(out / "models" / "pca")
    pieces = np.load(out / "pieces.npy")
    store = torch.from_numpy(pieces).permute(0, 3, 1, 2) / 127.5 - 1
    with computing("auto", tokenizer):  # as encode and decode do by default
        _, rebuilt = reconstruct_all(tokenizer, store)
    error = ((rebuilt / 255.0 - pieces / 255.0) ** 2).mean((1, 2, 3))
    psnr = float((-10 * np.log10(error)).mean())
    by_name = {c["name"]: c for c in results(out)["candidates"]}
    assert by_name["pca-8"]["metrics"]["psnr"]["value"] == pytest.approx(psnr, abs=1e-4)


def test_principal_components_go_where_every_tokenizer_goes(studied, tmp_path, capsys):
    model, photos = str(studied / "out" / "models" / "pca"), str(tiles(tmp_path)[0])
    tokens, pictures = str(tmp_path / "tokens"), str(tmp_path / "pictures")
    some = ["--tokenizer", model]
    assert main(["encode", *some, "--data", photos, "--out", tokens, "--tokens", "4"]) == 0
    assert main(["decode", tokens, *some, "--out", pictures]) == 0
    assert main(["evaluate", "reconstruction", *some, "--data", photos]) == 0
    train = ["train", "generator", "--recipe", "tiny-generator", *some, "--data", photos]
    assert main([*train, "--out", str(tmp_path / "g"), "train.images=32", "train.batch=16"]) == 0


def test_other_criteria_and_prices_decide_anew_and_train_nothing(studied, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(studied / "out", out)
    weights = out / "models" / "tuned" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    by_name = {c["name"]: c for c in results(out)["candidates"]}
    best = max(
        by_name.values(), key=lambda c: (c["role"] == "candidate") * c["metrics"]["psnr"]["low"]
    )
    psnr = best["metrics"]["psnr"]
    more = tmp_path / "more.yaml"
    again = ["study", "--out", str(out), "--resume-with", str(more), "--lang", "ja"]
    for least in (0.0, 100.0, (psnr["low"] + psnr["value"]) / 2):
        more.write_text(f"criteria: {{psnr: {{min: {least}}}}}\n")
        assert main(again) == 0
        found = results(out)["recommendation"]
        assert (found["name"] is None) == (least > psnr["low"])
    more.write_text("prices: {currency: JPY, missed_defect: 50000, false_alarm: 300, storage: 3}\n")
    assert main(again) == 0
    found = results(out)
    assert found["prices"]["currency"] == "JPY" and found["candidates"][0]["cost"]
    assert "JPY" in (out / "report.html").read_text()
    more.write_text("metrics: {new: 'math:sqrt'}\n")
    assert main(again) == 2
    assert "was not measured" in capsys.readouterr().err
    assert weights.stat().st_mtime_ns == before


def test_the_roll_out_has_its_stages(studied):
    plan = yaml.safe_load((studied / "out" / "rollout.yaml").read_text())
    found = results(studied / "out")["recommendation"]
    assert plan["candidate"] == found["leading"] and plan["decided"] == (found["name"] is not None)
    names = [stage["name"] for stage in plan["stages"]]
    assert names == (["shadow", "canary", "full"] if plan["decided"] else ["shadow"])
    assert plan["roll_back_if_not"]["psnr_at_least"] > 5


def test_measuring_keeps_to_its_share_of_the_budget(tmp_path, monkeypatch):
    """On a slow machine fewer token counts are measured, and what was planned stays planned."""
    counts = [1, 2, 4, 8, 16, 32, 64]
    settings = Settings(str(tiles(tmp_path, 2, 2)[0]), budget=1200.0)
    for seconds, left in ((5.0, []), (20.0, [2, 16]), (40.0, [2, 4, 8, 16, 32])):
        out = tmp_path / str(seconds)
        out.mkdir()
        monkeypatch.setattr(planning, "seconds_of_one", lambda start, bench, s=seconds: s)
        planned = planning.plan_counts(settings, None, counts, None, out)
        assert [count for count in counts if count not in planned] == left
        assert len(planned) == 2 or seconds * (3 * len(planned) + 8) <= 0.4 * 1200
        monkeypatch.setattr(planning, "seconds_of_one", None)
        assert planning.plan_counts(settings, None, counts, None, out) == planned
    (tmp_path / "asked").mkdir()
    asked = replace(settings, tokens=(1, 8))
    assert planning.plan_counts(asked, None, [1, 8], None, tmp_path / "asked") == [1, 8]


def test_results_and_photos_lie_apart(tmp_path, capsys):
    photos, _ = tiles(tmp_path, 2, 2)
    nested_tokenizer(tmp_path)
    before = {path: path.read_bytes() for path in photos.rglob("*.png")}
    for out in (photos, photos / "study", tmp_path):
        assert study(tmp_path, out) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert str(out) in said and "give a folder" in said
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before


def test_an_older_study_is_one_line(tmp_path, capsys):
    tiles(tmp_path, 2, 2)
    nested_tokenizer(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text('{"speed": {}, "rungs": []}')
    assert study(tmp_path, out) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "holds a study of an older softvq" in said[0]
    assert [path.name for path in out.iterdir()] == ["plan.json"]


def test_what_cannot_be_asked_is_said_before_photos_are_decoded(tmp_path, capsys):
    tiles(tmp_path, 2, 2)
    nested_tokenizer(tmp_path)
    for more, word in ((["--normal", "fine"], "good, hole"),):
        assert study(tmp_path, tmp_path / "out", *more) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and word in said[0]
        assert not (tmp_path / "out" / "photos").exists()
    places = ["--data", str(tmp_path / "photos"), "--out", str(tmp_path / "no")]
    assert main(["study", *places, "--init", str(tmp_path / "init"), "--tokens", "9"]) == 2
    assert "1 to 8" in capsys.readouterr().err
    assert main(["study", "--out", str(tmp_path / "no"), "--resume-with", "x.yaml"]) == 2
    assert main(["study", "--out", str(tmp_path / "no")]) == 2


def test_another_study_in_the_folder_is_refused(studied, capsys):
    assert study(studied, studied / "out", "--drop-leaks", "--seed", "1") == 2
    assert "seed" in capsys.readouterr().err


def test_a_broken_metric_is_said_before_training(tmp_path, capsys):
    tiles(tmp_path, 4, 4)
    nested_tokenizer(tmp_path)
    criteria = tmp_path / "criteria.yaml"
    criteria.write_text('metrics: {holes: "command: false {originals} {rebuilt}"}\n')
    assert study(tmp_path, tmp_path / "out", "--criteria", str(criteria)) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "metric command false: exit status 1" in said
    assert not (tmp_path / "out" / "models").exists()


# ---- pieces ----


def test_tiles_cover_a_photo_once_or_more():
    photo = np.arange(70 * 90 * 3).reshape(70, 90, 3)
    covered = np.zeros((70, 90), int)
    for top, left, tile in cut(photo, 32):
        np.testing.assert_array_equal(tile, photo[top : top + 32, left : left + 32])
        covered[top : top + 32, left : left + 32] += 1
    assert covered.min() == 1
    ((top, left, small),) = cut(photo[:20, :32], 32)
    assert (top, left) == (0, 0)
    np.testing.assert_array_equal(small[20:32], photo[8:20, :32][::-1])


def test_a_native_study_counts_its_tiles(tmp_path):
    tiles(tmp_path, 12, 10)
    nested_tokenizer(tmp_path)
    for path in (tmp_path / "photos").rglob("*.png"):
        Image.open(path).resize((64, 40), Image.Resampling.BICUBIC).save(path)
    for path in (tmp_path / "masks").rglob("*.png"):
        Image.open(path).resize((64, 40), Image.Resampling.NEAREST).save(path)
    assert study(tmp_path, tmp_path / "out", "--tile", "native", "--train", "softvq") == 0
    found = results(tmp_path / "out")
    assert set(found["evidence"]["tile"]["pieces"]) == {4}
    by_name = {c["name"]: c for c in found["candidates"]}
    assert by_name["tuned-8"]["tokens"] == 4 * 8
    sizes = [region["diameter"] for region in found["evidence"]["regions"]]
    assert max(sizes) == max(region["original"] for region in found["evidence"]["regions"]) > 9


def test_auto_goes_by_what_is_marked(tmp_path):
    photos, _ = tiles(tmp_path, 4, 4)
    for path in photos.rglob("*.png"):
        Image.open(path).resize((96, 96)).save(path)
    found = inspect_photos(photos, (SIDE, SIDE), tmp_path / "cache", progress=False, fit="stretch")
    settings = Settings(str(photos))
    small, large = (
        Region(0, np.ones((SIDE, SIDE), bool), diameter, 3 * diameter) for diameter in (4.0, 12.0)
    )
    assert choose_tile(settings, found, [large] * 8 + [small])[:2] == (True, "small")
    assert choose_tile(settings, found, [large] * 20 + [small])[:2] == (False, "large")
    assert choose_tile(settings, found, [])[:2] == (False, "unmarked")
    asked = Settings(str(photos), tile="native")
    assert choose_tile(asked, found, [])[:2] == (True, "asked")
    parts = divide(found, 0)
    assert set(parts.learning) | set(parts.set_aside) == set(range(8))
    assert len(parts.set_aside) == 4 and len(parts.held_out) == 8


CODE = """
import sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_study import run
run(Path(sys.argv[1]))
"""


def run(out):
    """A study in a process of its own, on the tiles beside ``out``."""
    settings = Settings(
        str(out.parent / "photos"), init=str(out.parent / "init"), tokens=(1, 8), images=640
    )
    assert run_study(settings, Known(masks=str(out.parent / "masks")), out)


@pytest.mark.slow
def test_kill_minus_9_changes_no_result(tmp_path):
    """Killed while it looks, measures, trains and measures again, it ends with the same results."""
    tiles(tmp_path)
    nested_tokenizer(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    unkilled = start(CODE, whole)
    for sign in (
        "data.json",
        "measures/shipped-1.json",
        "models/tuned/checkpoints",
        "measures/tuned-1.json",
    ):
        process = start(CODE, killed)
        while not (killed / sign).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.2)
        process.kill()
        assert process.wait() in (-9, 0), (sign, (tmp_path / "killed.log").read_text()[-2000:])
    finish(start(CODE, killed), killed)
    finish(unkilled, whole)
    one, two = results(whole), results(killed)
    for found in (one, two):
        del found["times"], found["command"]
        for candidate in (*found["candidates"], found["originals"]):
            del candidate["speed"]
    assert one == two
