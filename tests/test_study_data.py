"""What is found out about a folder of photos before anything is trained."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from softvq.errors import UserError
from softvq.study.metadata import read_metadata
from softvq.study.photos import copies
from softvq.study.photos.inspect import (
    Inspection,
    _sounds_normal,
    drop_leaks,
    inspect_photos,
    refuse,
)
from softvq.study.records import Facts, Skipped, SplitFacts, read, write

SHARED = Path(__file__).parents[2] / "shared" / "data"
SIZE = (64, 64)


def texture(seed: int, size: tuple[int, int] = (96, 120), strength: float = 30) -> np.ndarray:
    """Random grain on a gradient that all have in common: float [H, W]."""
    grain = gaussian_filter(np.random.default_rng(seed).normal(size=size), 2, mode="wrap")
    return 120 + np.linspace(-40, 40, size[1]) + strength * grain / grain.std()


def save(path: Path, values: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB").save(path, **options)


def folder(
    root: Path, train: int = 6, val: int = 3, classes: tuple[str, ...] = ("ok", "ng")
) -> Path:
    for c, name in enumerate(classes):
        for i in range(train):
            save(root / f"train/{name}/t{i}.png", texture(1000 * c + i))
        for i in range(val):
            save(root / f"val/{name}/v{i}.png", texture(1000 * c + 500 + i))
    return root


def looked(root: Path, **options) -> Inspection:
    return inspect_photos(root, SIZE, root.parent / "cache", progress=False, **options)


def remarks(inspection: Inspection) -> dict[str, dict]:
    return {remark.code: remark.values for remark in inspection.facts.remarks}


def encoded(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def copied(path: Path, kind: str) -> bytes:
    """The bytes of a copy of a photo; an untouched one, or with something done to it."""
    if kind == "same bytes":
        return path.read_bytes()
    image = Image.open(path).convert("RGB")
    if kind == "brightened":
        image = image.point(lambda level: min(255, level * 1.05))
    if kind == "resized":
        image = image.resize(
            (image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.BICUBIC
        )
    return encoded(image, 70 if kind == "re-encoded" else 95)


KINDS = ("same bytes", "re-encoded", "brightened", "resized")


# Leaks


def test_clean_folder(tmp_path):
    inspection = looked(folder(tmp_path / "p"))
    assert inspection.leaks == inspection.facts.leaks == []
    assert inspection.facts.duplicates == inspection.facts.near_duplicates == []
    refuse(inspection)
    assert drop_leaks(inspection) is inspection


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copy_is_found_refused_and_dropped(tmp_path, kind):
    root = folder(tmp_path / "p")
    (root / "val/ng/copy.jpg").write_bytes(copied(root / "train/ok/t4.png", kind))
    inspection = looked(root)
    assert len(inspection.leaks) == 1
    leak = inspection.leaks[0]
    assert (leak.val, leak.train) == ("val/ng/copy.jpg", "train/ok/t4.png")
    assert leak.why == ("same pixels" if kind == "same bytes" else "near-duplicate")
    assert copies.NEARLY_SAME <= leak.similarity <= 1
    with pytest.raises(UserError) as caught:
        refuse(inspection)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("1 of the 7 held-out photos")
    for part in ("val/ng/copy.jpg and train/ok/t4.png", leak.why, "one side", "--drop-leaks"):
        assert part in message

    dropped = drop_leaks(inspection)
    refuse(dropped)
    clean = looked(folder(tmp_path / "q"))
    assert dropped.val.names == clean.val.names and dropped.val.classes == clean.val.classes
    np.testing.assert_array_equal(dropped.val.images, clean.val.images)
    np.testing.assert_array_equal(dropped.val.labels, clean.val.labels)
    assert dropped.val_groups == clean.val_groups
    assert dropped.val.fingerprint != inspection.val.fingerprint
    assert dropped.facts.leaks == [leak] and dropped.facts.dropped == 1
    assert dropped.facts.splits == clean.facts.splits
    assert inspection.facts.splits.val.photos == 7  # the original is left alone


def test_parts_in_one_fixture_are_not_copies_of_each_other(tmp_path):
    """What all photos share proves nothing, even if it is most of what there is to see."""
    fixture = texture(0, strength=40)
    for split, count in (("train", 30), ("val", 10)):
        for i in range(count):
            values = fixture + texture(1 + i + 100 * (split == "val"), strength=10) - 120
            save(tmp_path / f"p/{split}/{i}.png", values)
    inspection = looked(tmp_path / "p")
    assert np.corrcoef(inspection.train.images[..., 0].reshape(30, -1)).min() > 0.9
    assert not inspection.leaks and not inspection.facts.near_duplicates_count
    planted = {f"val/{kind}.jpg": f"train/{i}.png" for i, kind in enumerate(KINDS)}
    for name, original in planted.items():
        (tmp_path / "p" / name).write_bytes(copied(tmp_path / "p" / original, Path(name).stem))
    leaks = looked(tmp_path / "p").leaks
    assert {leak.val: leak.train for leak in leaks} == planted


def test_blank_and_smooth_photos_leak_nothing(tmp_path):
    root = folder(tmp_path / "p")
    for split in ("train", "val"):
        save(root / split / "ok/white.png", np.full((80, 80), 255))
    ramp = np.linspace(50, 200, 80)
    save(root / "train/ok/ramp.png", ramp + np.zeros((80, 1)))
    save(root / "val/ok/ramp.png", ramp * 0.9 + np.zeros((80, 1)))
    inspection = looked(root)
    assert inspection.leaks == [] and inspection.facts.duplicates == []
    assert remarks(inspection)["blank"]["n"] == 2


def test_two_photos_that_are_the_same(tmp_path):
    save(tmp_path / "p/train/a.png", texture(1))
    (tmp_path / "p/val").mkdir()
    (tmp_path / "p/val/b.jpg").write_bytes(copied(tmp_path / "p/train/a.png", "re-encoded"))
    inspection = looked(tmp_path / "p")
    assert [leak.why for leak in inspection.leaks] == ["near-duplicate"]
    with pytest.raises(UserError, match="all 1 held-out photos"):
        drop_leaks(inspection)


def test_duplicates_within_a_split(tmp_path):
    root = folder(tmp_path / "p")
    for name, kind in (("same.png", KINDS[0]), ("again.jpg", KINDS[1]), ("small.jpg", KINDS[3])):
        (root / "train/ng" / name).write_bytes(copied(root / "train/ok/t0.png", kind))
    inspection = looked(root)
    facts = inspection.facts
    assert inspection.leaks == []
    assert facts.duplicates == [["train/ng/same.png", "train/ok/t0.png"]]
    # Four alike make six pairs, of which the one of the same pixels is listed above.
    assert facts.near_duplicates_count == len(facts.near_duplicates) == 5
    values = [pair.similarity for pair in facts.near_duplicates]
    assert values == sorted(values, reverse=True) and min(values) >= copies.NEARLY_SAME
    pairs = {frozenset((pair.a, pair.b)) for pair in facts.near_duplicates}
    assert len(pairs) == 5 and frozenset(facts.duplicates[0]) not in pairs


def test_blocks_and_cuts_against_brute_force(monkeypatch):
    """Every pair compared one by one gives what the blocks give, whatever their size."""
    rng = np.random.default_rng(0)
    count, training = 40, 25
    vectors = np.repeat(rng.normal(size=(8, 20)), 5, axis=0)[rng.permutation(count)]
    vectors = vectors + rng.normal(size=vectors.shape) * 0.3
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [str(i // 2) for i in rng.permutation(count)]
    hashes = [bytes([i % 36]) for i in range(count)]
    names = [f"n{i:02d}" for i in range(count)]
    signatures = copies.Signatures(names, groups, training, hashes, vectors.astype(np.float32))

    pairs, leaks = {}, {}
    for i in range(count):
        for j in range(i + 1, count):
            alike = float(vectors[i] @ vectors[j])
            if (i < training) == (j < training):
                if alike >= 0.9 and groups[i] != groups[j] and hashes[i] != hashes[j]:
                    pairs[names[i], names[j]] = alike
            elif hashes[i] == hashes[j]:
                leaks[names[j]] = "same pixels"
            elif alike >= 0.9 and leaks.get(names[j]) != "same pixels":
                leaks[names[j]] = "near-duplicate"
            elif groups[i] == groups[j]:
                leaks.setdefault(names[j], "same group")
    assert set(leaks.values()) == {"same pixels", "near-duplicate", "same group"}
    for block, shown in ((1024, 50), (3, 50), (7, 4)):
        monkeypatch.setattr(copies, "BLOCK", block)
        monkeypatch.setattr(copies, "SHOWN", shown)
        assert {leak.val: leak.why for leak in copies.find_leaks(signatures)} == leaks
        number, found = copies.find_near_duplicates(signatures)
        assert number == len(pairs) > 4 and len(found) == min(number, shown)
        best = sorted(pairs.values(), reverse=True)[:shown]
        np.testing.assert_allclose([pair.similarity for pair in found], best, atol=6e-4)
        assert all((pair.a, pair.b) in pairs for pair in found)


@pytest.mark.parametrize(("name", "group"), [("mt_defect", None), ("deeppcb_tiles", "stem")])
def test_given_splits_are_clean_and_planted_copies_are_found(tmp_path, name, group):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name}")
    root = tmp_path / "p"
    root.mkdir()
    for part in ("train", "manifest.csv"):
        if (SHARED / name / part).exists():
            (root / part).symlink_to(SHARED / name / part)
    for path in (SHARED / name / "val").glob("*/*"):
        copy = root / path.relative_to(SHARED / name)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(path)

    inspection = looked(root, group=group)
    assert inspection.leaks == [] and inspection.facts.grey
    least = 20 if group is None else 30
    assert len(inspection.val) > len(set(inspection.val_groups)) >= least
    assert inspection.facts.normal == (["MT_Free"] if group is None else ["ok"])

    chosen = inspection.train.names[:: len(inspection.train) // 12]
    target = root / inspection.val.names[0]
    planted = {}
    for i, original in enumerate(chosen):
        for k, kind in enumerate(KINDS):
            copy = target.with_name(f"planted{i}_{k}.jpg")
            copy.write_bytes(copied(root / original, kind))
            planted[copy.relative_to(root).as_posix()] = original
    leaks = {leak.val: leak.train for leak in looked(root, group=group).leaks}
    assert leaks == planted


# Metadata and groups


def test_pairs_by_stem(tmp_path):
    root = folder(tmp_path / "p")
    inspection = looked(root, group="stem")
    assert inspection.val_groups == ["v0", "v1", "v2"] * 2
    assert inspection.facts.splits.val.groups == 3
    assert looked(root).val_groups == inspection.val.names  # each its own
    assert looked(root).facts.group is None and inspection.facts.group == "stem"

    save(root / "val/ok/t3.png", texture(9999))
    (leak,) = looked(root, group="stem").leaks
    assert leak.val == "val/ok/t3.png" and Path(leak.train).name == "t3.png"
    assert leak.why == "same group" and leak.group == "t3"
    with pytest.raises(UserError, match=r"\(same group 't3'\)"):
        refuse(looked(root, group="stem"))
    assert looked(root).leaks == []


def test_near_duplicates_of_one_group_are_declared_already(tmp_path):
    root = folder(tmp_path / "p")
    (root / "train/ng/t0x.jpg").write_bytes(copied(root / "train/ok/t0.png", "re-encoded"))
    assert looked(root).facts.near_duplicates_count == 1
    (root / "manifest.csv").write_text("name,group\nt0x,one\nt0.png,one\n")
    inspection = looked(root)
    assert inspection.facts.near_duplicates_count == 0 and inspection.facts.group == "group"
    # Both photos named t0 are meant by that row; those without a row stand alone.
    assert inspection.train_groups.count("one") == 3
    assert len(set(inspection.train_groups)) == len(inspection.train) - 2
    assert remarks(inspection)["unmatched"] == {"n": 16, "of": 19}


NAMES = ["train/ok/a.b.png", "train/ng/a.b.png", "val/ok/a.b.png", "val/ng/が.jpg"]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("path,x\ntrain/ok/a.b.png,1\n./val/ng/が,2\n", "1__2"),
        ("path,x\ntrain\\ng\\a.b.png,1\n", "_1__"),
        ("split,class,name,x\ntrain,ok,a.b,1\nval,ok,a.b.png,2\n", "1_2_"),
        ("class,name,x\nok,a.b,1\nng,が.jpg,2\n", "1_12"),
        ("split,name,x\ntrain,a.b,1\n", "11__"),
        ("name,x\n a.b ,1\nが,2\n", "1112"),
        ("name,x\na.b,1\na.b,1\n", "111_"),
        ("name,x\na.b\n", "___ "),
    ],
)
def test_rows_are_matched_by_the_columns_there_are(tmp_path, table, expected):
    path = tmp_path / "t.csv"
    path.write_text(table, encoding="utf-8-sig")
    values = read_metadata(path, NAMES, splits=True, classes=True).column("x")
    assert values == [c.strip("_ ") for c in expected]
    # The same name with its voicing mark apart, as some systems store it.
    apart = [name.replace("が", "か\u3099") for name in NAMES]
    assert read_metadata(path, apart, splits=True, classes=True).column("x") == values


def test_split_and_class_count_only_where_the_photos_have_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("split,class,name,x\ntrain,ok,a,1\n")
    assert read_metadata(path, ["ok/a.png", "ng/a.png"], False, True).column("x") == ["1", ""]
    assert read_metadata(path, ["a.png", "b.png"], False, False).column("x") == ["1", ""]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,x\nzzz,1\n", "no row fits a photo such as train/ok/a.b.png"),
        (b"file,x\na.b,1\n", "no column 'path' or 'name'"),
        (b"", "no column 'path' or 'name'"),
        (b"name,x\na.b,1\na.b,2\n", "two different rows for a.b"),
        ("name,x\nが,1\n".encode("cp932"), "not UTF-8"),
    ],
)
def test_unusable_metadata(tmp_path, content, message):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_metadata(path, NAMES, splits=True, classes=True)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_columns_asked_for(tmp_path):
    root = folder(tmp_path / "p")
    table = tmp_path / "t.csv"
    table.write_text("split,class,name,line,tray\nval,ng,v1,A,7\ntrain,ok,t0,B,7\n")
    inspection = looked(root, metadata=table, group="tray", subgroup=["line"])
    assert inspection.subgroups == {"line": ["", "A", "", "", "", ""]}
    assert inspection.val_groups[1] == "7" and len(set(inspection.val_groups)) == 6
    assert [leak.why for leak in inspection.leaks] == ["same group"]
    assert drop_leaks(inspection).subgroups == {"line": [""] * 5}
    for options in ({"group": "trai"}, {"subgroup": ["trai"]}):
        with pytest.raises(UserError, match="unknown key 'trai'; did you mean 'tray'"):
            looked(root, metadata=table, **options)
        with pytest.raises(UserError, match="manifest.csv: no such file"):
            looked(root, **options)
    with pytest.raises(UserError, match="no such file"):
        looked(root, metadata=tmp_path / "none.csv")

    (root / "manifest.csv").write_text("something,else\n1,2\n")  # not asked for: said, not fatal
    assert "no column 'path' or 'name'" in remarks(looked(root))["metadata_unused"]["reason"]
    assert looked(root, group="stem").facts.metadata is None


@pytest.mark.parametrize(
    ("name", "normal"),
    [
        ("ok", True),
        ("MT_Free", True),
        ("defect-free", True),
        ("Good Parts", True),
        ("良品", True),
        ("01_正常", True),
        ("不良品", False),
        ("not_ok", False),
        ("non-normal", False),
        ("book", False),
        ("abnormal", False),
        ("MT_Crack", False),
    ],
)
def test_classes_that_sound_normal(name, normal):
    assert _sounds_normal(name) == normal


# Facts


def test_facts_of_a_small_folder(tmp_path):
    root = folder(tmp_path / "p")
    (root / "val/ng/torn.jpg").write_bytes(encoded(Image.new("RGB", (64, 64)), 90)[:200])
    (root / "train/ng/empty.png").touch()
    turned = Image.Exif()
    turned[0x0112] = 6
    save(root / "val/ok/turned.jpg", texture(77, (50, 200)), exif=turned)
    inspection = looked(root)
    facts = inspection.facts
    write(facts, tmp_path / "data.json")
    assert read(Facts, tmp_path / "data.json", "") == facts
    assert facts.skipped == [
        Skipped("train/ng/empty.png", "empty file"),
        Skipped("val/ng/torn.jpg", facts.skipped[1].reason),
    ]
    assert facts.splits.train == SplitFacts(12, {"ng": 6, "ok": 6}, 12, 6)
    assert facts.splits.val == SplitFacts(7, {"ng": 3, "ok": 4}, 7, 3)
    # All are 120 x 96 but the turned one, which stands upright at 50 x 200 and is enlarged.
    assert facts.sizes.width == [50, 120, 120] and facts.sizes.height == [96, 96, 200]
    assert facts.sizes.reduced == [round(50 / 64, 3), 1.5, 1.5]
    assert facts.sizes.upscaled == pytest.approx(1 / 19)
    assert facts.sizes.cropped == pytest.approx(1 - 96 / 120)
    assert looked(root, fit="stretch").facts.sizes == replace(facts.sizes, cropped=0)
    assert facts.normal == ["ok"] and facts.grey and inspection.facts.grey

    said = remarks(inspection)
    z2 = 1.6448536269514722**2
    assert said["few_defect_groups"]["groups"] == 3
    assert said["few_defect_groups"]["least_provable"] == pytest.approx(3 / (3 + z2), abs=1e-3)
    assert said["few_train"]["n"] == 12 and said["few_val"]["n"] == 7
    classes = [r.values for r in facts.remarks if r.code == "few_class_val"]
    assert [(r["class"], r["n"]) for r in classes] == [("ng", 3), ("ok", 4)]
    assert said["upscaled"]["share"] == pytest.approx(1 / 19, abs=1e-3)
    assert said["reduced"]["factor"] == 1.5 and said["cropped"]["share"] == 0.2
    assert not {"imbalance", "no_normal", "no_classes", "mixed_sizes", "blank"} & set(said)


def test_remarks_about_classes(tmp_path):
    odd = folder(tmp_path / "odd" / "p", train=1, val=1, classes=("a", "b"))
    for i in range(10):
        save(odd / f"train/a/more{i}.png", texture(50 + i, (300, 300)))
    inspection = looked(odd)
    said = remarks(inspection)
    assert inspection.facts.normal == [] and "no_normal" in said and "few_defect_groups" not in said
    assert said["imbalance"]["ratio"] == 11
    assert said["mixed_sizes"] == {"low": 1.5, "high": 4.69}
    assert looked(odd, normal=["b"]).facts.splits.val.defect_groups == 1
    assert "no_defects" in remarks(looked(odd, normal=["a", "b"]))
    with pytest.raises(UserError, match="normal classes: unknown key 'c'"):
        looked(odd, normal=["c"])


def test_flat_colour_folder_with_a_drawn_split(tmp_path):
    for i in range(12):
        colour = np.stack([texture(i), texture(i) / 2, texture(i)], axis=-1)
        save(tmp_path / f"p/{i}.png", colour)
    inspection = looked(tmp_path / "p")
    assert not inspection.facts.grey and inspection.facts.splits.train.classes == {}
    assert "no_classes" in remarks(inspection) and inspection.leaks == []

    held_out = inspection.val.names[0]
    (tmp_path / "p/manifest.csv").write_text(
        f"name,cluster\n{held_out},c\n{inspection.train.names[0]},c\n"
    )
    leaking = looked(tmp_path / "p")
    assert leaking.facts.group == "cluster"
    with pytest.raises(UserError, match="make folders train/ and val/"):
        refuse(leaking)
