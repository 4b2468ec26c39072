"""softvq.outputs: results never replace a file that softvq did not write."""

import json
import os

import pytest

from softvq.errors import UserError
from softvq.io import locked
from softvq.outputs import LOCK, RECORD, check_file, check_folder, claimed, refuse_overlap


def write(folder, files, command="decode", overwrite=False, **settings):
    with claimed(folder, command, settings, overwrite) as out:
        for path in out.expect(files):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"ours {settings}")


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_new_an_empty_and_a_written_folder_are_taken(tmp_path):
    write(tmp_path / "new", ["a", "b/c"])
    write(tmp_path / "new", ["a", "b/c"])
    assert names(tmp_path / "new") == ["a", "b/c", RECORD]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").touch()
    write(tmp_path / "empty", ["a"])


def test_a_folder_of_anything_else_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "photo.png").write_text("theirs")
    with pytest.raises(UserError, match=r"holds files that softvq did not write \(photo\.png\)"):
        write(tmp_path, ["photo.png"])
    assert names(tmp_path) == ["photo.png"] and (tmp_path / "photo.png").read_text() == "theirs"
    with pytest.raises(UserError, match="is a file; give a folder"):
        write(tmp_path / "photo.png", ["a"])
    (tmp_path / RECORD).write_text('{"command": 1')  # no record of ours
    with pytest.raises(UserError, match="softvq did not write"):
        write(tmp_path, ["a"])


def test_a_file_put_into_our_folder_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    write(out, ["a"])
    (out / "b").write_text("theirs")
    with pytest.raises(UserError, match="is there, and this command did not write it"):
        write(out, ["a", "b"])
    with pytest.raises(UserError, match="is there, and this command did not write it"):
        write(out, ["a", "b"], overwrite=True, seed=1)
    assert (out / "b").read_text() == "theirs" and (out / "a").is_file()


def test_a_run_that_was_cut_short_before_its_first_file_goes_on(tmp_path):
    out = tmp_path / "out"
    for beside in ("", "photos"):  # what the run keeps beside the files that it names
        with pytest.raises(KeyboardInterrupt), claimed(out, "demo", {}) as held:
            held.expect(["report.html"])
            if beside:
                (out / beside).mkdir()
            raise KeyboardInterrupt
        assert out.exists() == bool(beside)
    write(out, ["report.html"], "demo")
    assert (out / "report.html").is_file()


def test_what_long_work_writes_at_its_end_is_not_taken_from_a_user(tmp_path):
    out = tmp_path / "out"

    def study(finish=True, put=False):
        with claimed(out, "study", {}) as held:
            (work,) = held.expect(["plan"], later=["report"])
            work.write_text("ours")
            if put:
                (out / "report").write_text("theirs")
            if finish:
                held.expect(["plan", "report"])[1].write_text("ours")

    with pytest.raises(UserError, match="report: is there, and this command did not write it"):
        study(put=True)
    with pytest.raises(UserError, match="report: is there, and this command did not write it"):
        study(finish=False)  # at once, not at the end
    assert (out / "report").read_text() == "theirs"
    (out / "report").unlink()
    study()
    study(finish=False)
    assert (out / "report").read_text() == "ours"
    study()
    assert names(out) == ["plan", "report", RECORD]


def test_two_sets_are_never_mixed(tmp_path):
    write(tmp_path / "out", ["1-dog", "2-dog"], seed=0)
    with pytest.raises(UserError, match=r"other settings \(another seed\).*--overwrite"):
        write(tmp_path / "out", ["1-cat"], seed=1)
    assert names(tmp_path / "out") == ["1-dog", "2-dog", RECORD]
    write(tmp_path / "out", ["1-cat"], overwrite=True, seed=1)
    assert names(tmp_path / "out") == ["1-cat", RECORD]
    with pytest.raises(UserError, match="holds what `softvq decode` wrote"):
        write(tmp_path / "out", ["1-cat"], "generate", overwrite=True, seed=1)


def test_what_fails_leaves_a_folder_as_it_was(tmp_path):
    for folder in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(ZeroDivisionError), claimed(folder, "decode", {}) as out:
            out.expect(["a"])
            raise ZeroDivisionError
        assert not folder.exists()
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "half", "decode", {}) as out:
        out.expect(["a", "b"])[0].write_text("ours")
        raise ZeroDivisionError
    write(tmp_path / "half", ["a", "b"])  # the same command goes on
    assert names(tmp_path / "half") == ["a", "b", RECORD]


def test_no_file_lands_outside(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "a").write_text("theirs")
    out = tmp_path / "out"
    write(out, ["x"])
    (out / "dog").symlink_to(theirs)
    for name in ("../theirs/a", "dog/a", str(theirs / "a")):
        with pytest.raises(UserError, match="not inside of"):
            write(out, [name])
    (out / RECORD).write_text(
        json.dumps({"command": "decode", "settings": {}, "files": ["../theirs/a", "dog/a"]})
    )
    write(out, ["x2"])  # a forged record deletes nothing elsewhere
    assert (theirs / "a").read_text() == "theirs"


def test_one_run_at_a_time_and_leftovers_are_swept(tmp_path):
    write(tmp_path, ["b/c"])
    (tmp_path / "b" / ".0011.partial").touch()
    with locked(tmp_path / LOCK), pytest.raises(UserError, match="another run is writing there"):
        write(tmp_path, ["b/c"])
    assert (tmp_path / "b" / ".0011.partial").is_file()
    write(tmp_path, ["b/c"])
    assert sorted(os.listdir(tmp_path)) == ["b", RECORD] and os.listdir(tmp_path / "b") == ["c"]


def test_a_record_of_another_name(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    check_folder(tmp_path, "recipe.yaml")
    with pytest.raises(UserError, match="did not write"):
        check_folder(tmp_path, "index.json")


def test_single_files(tmp_path):
    path = tmp_path / "a.npz"
    check_file(path, lambda p: False)
    path.touch()
    with pytest.raises(UserError, match="softvq did not write it"):
        check_file(path, lambda p: False, overwrite=True)
    with pytest.raises(UserError, match="give another file, or --overwrite"):
        check_file(path, lambda p: True)
    check_file(path, lambda p: True, overwrite=True)
    with pytest.raises(UserError, match="is a folder"):
        check_file(tmp_path, lambda p: True)


def test_results_among_photos_are_refused(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    monkeypatch.chdir(photos)
    (tmp_path / "link").symlink_to(photos)
    for out in (".", "runs/a", photos, tmp_path / "link", tmp_path / "link" / "x"):
        with pytest.raises(UserError, match="lies in the photos' folder"):
            refuse_overlap(photos, out)
    with pytest.raises(UserError, match="a folder of its own"):
        refuse_overlap(photos, tmp_path)
    refuse_overlap(photos, tmp_path / "out")
    refuse_overlap("builtin", ".")
