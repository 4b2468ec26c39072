"""Marks: every way that masks and boxes lie in the world gives the same places."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softvq import images
from softvq.data import Marks, find_marks, find_photos, open_store, read_masks
from softvq.errors import SoftVQWarning, UserError
from softvq.evaluate.regions import find_regions

HEIGHT, WIDTH = 40, 60
SIDES = (14.0, 4.0, 22.0, 12.0)


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    images.save_png(Image.new("RGB", size, "grey"), path)


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    """MVTec's layout: training sees good alone, and numbers begin anew in every folder."""
    root = tmp_path / "bottle"
    for name in (
        *(f"train/good/{i:03d}.png" for i in range(4)),
        *(f"test/good/{i:03d}.png" for i in range(2)),
        *(f"test/broken/{i:03d}.png" for i in range(2)),
        "test/hole/000.png",
    ):
        photo(root / name)
    for name in ("broken/000", "broken/001", "hole/000"):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[4:12, 14:22] = True
        images.save_png(Image.fromarray(mask), root / f"ground_truth/{name}_mask.png")
    (root / "license.txt").write_text("...")
    return root


def test_mvtec_is_read_as_it_lies(mvtec: Path, tmp_path: Path):
    train, val = find_photos(mvtec, "train"), find_photos(mvtec, "val")
    assert train.classes == val.classes == ["broken", "good", "hole"]
    assert train.names == [f"train/good/{i:03d}.png" for i in range(4)]
    assert set(train.labels) == {1} and val.labels.tolist() == [0, 0, 1, 1, 2]
    assert "4 for training, 5 held out (test/)" in val.summary()
    assert "(training sees good alone)" in val.summary() and "ground_truth/" in val.summary()

    store = open_store(mvtec, "val", (20, 30), tmp_path / "c", 1.0, progress=False)
    marks = find_marks(store.names, store.root)
    assert [bool(one) for one in marks] == [True, True, False, False, True]
    inside = read_masks(marks, (20, 30))
    assert inside.sum((1, 2)).tolist() == [16, 16, 0, 0, 16] and inside[4, 2:6, 7:11].all()
    regions = find_regions(store, mvtec, classes={"broken", "hole"})
    assert [(r.photo, r.box) for r in regions] == [(i, (7, 2, 11, 6)) for i in (0, 1, 4)]
    taught = open_store(mvtec, "train", (20, 30), tmp_path / "c", 1.0, progress=False)
    assert find_regions(taught, mvtec, classes={"broken", "hole"}) == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/bad/a.png", "train/good/b.png", "valid/bad/c.png", "valid/bad/d.png"):
        photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def coco(path: Path, file: str, **changes) -> Path:
    x1, y1, x2, y2 = SIDES
    picture = {"id": 7, "file_name": file, "width": WIDTH, "height": HEIGHT}
    item = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}
    content = {
        "images": [picture],
        "annotations": [item],
        "categories": [{"id": 3, "name": "hole"}],
    } | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def written(kind: str, folder: Path) -> Path:
    """One box in valid/bad/c.png, as ``kind`` writes it."""
    x1, y1, x2, y2 = SIDES
    middle = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
    folder.mkdir()
    if kind == "csv":
        (folder / "b.csv").write_text("path,x1,y1,x2,y2,label\nvalid/bad/c.png,14,4,22,12,hole\n")
        return folder / "b.csv"
    if kind == "coco":
        return coco(folder / "b.json", "c.png")
    if kind == "coco folder":
        coco(folder / "instances_train2017.json", "a.png", annotations=[])
        coco(folder / "instances_val2017.json", "valid/bad/c.png")
        return folder
    if kind.startswith("yolo"):
        place = folder / "labels/valid/bad/c.txt" if kind == "yolo tree" else folder / "c.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        (place.parent / "classes.txt").write_text("crack\nhole\n")
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        polygon = [value for x, y in corners for value in (x / WIDTH, y / HEIGHT)]
        numbers = polygon if kind == "yolo polygon" else middle
        place.write_text("1 " + " ".join(map(str, numbers)) + "\n\n")
        return folder
    (folder / "c.xml").write_text(
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size><object>"
        "<name>hole</name><bndbox><xmin>15</xmin><ymin>5</ymin><xmax>22</xmax><ymax>12</ymax>"
        "</bndbox></object></annotation>"
    )
    return folder


@pytest.mark.parametrize(
    "kind", ["csv", "coco", "coco folder", "yolo", "yolo tree", "yolo polygon", "voc"]
)
def test_every_way_to_write_a_box_gives_the_same(root: Path, kind: str):
    names = find_photos(root, "val").names
    first, second = find_marks(names, root, boxes=written(kind, root.parent / "boxes"))
    (box,) = first.boxes
    assert first.photo == "valid/bad/c.png" and first.size == (HEIGHT, WIDTH)
    assert box[:4] == pytest.approx(SIDES) and box.label == "hole"
    assert second == Marks("valid/bad/d.png")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": 3}, "not COCO's JSON"),
        ({"annotations": [{"image_id": 9}]}, "not COCO's JSON \\(lacks 9\\)"),
        ({"annotations": [{"image_id": 7, "bbox": [1, 2, "x", 4]}]}, "not COCO's JSON"),
        ({"annotations": [{"image_id": 7, "bbox": [1, 2, 1e999, 4]}]}, "not finite"),
        ({"images": [{"id": 7, "file_name": "z.png"}]}, "fits no photo such as train/bad/a.png"),
        (
            {"images": [{"id": 7, "file_name": "c.png", "width": 40, "height": 60}]},
            "boxes for valid/bad/c.png at 40 x 60 pixels, but the photo has 60 x 40",
        ),
    ],
)
def test_bad_coco_gets_one_line(root: Path, change: dict, message: str):
    path = coco(root.parent / "b.json", "c.png", **change)
    with pytest.raises(UserError, match=message) as caught:
        find_marks(find_photos(root, "val").names, root, boxes=path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("c.txt", "0 0.5 0.5 0.1", "not YOLO's"),
        ("c.txt", "0 a b c d", "not YOLO's"),
        ("c.txt", "0 nan 0.5 0.1 0.1", "not finite"),
        ("z.txt", "0 0.5 0.5 0.1 0.1", "fits no photo"),
        ("c.xml", "<annotation><object/></annotation>", "not Pascal VOC's XML"),
        ("c.xml", "<a", "not Pascal VOC's XML"),
        ("c.xml", "<svg/>", "not <annotation>"),
        ("c.json", "[" * 100_000, "not COCO's JSON"),
        ("c.md", "", "no .txt \\(YOLO\\), .xml"),
    ],
)
def test_bad_folders_of_boxes_get_one_line(root: Path, name: str, text: str, message: str):
    folder = root.parent / "boxes"
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        find_marks(find_photos(root, "val").names, root, boxes=folder)
    assert "\n" not in str(caught.value)


def test_a_name_that_may_be_several_photos_is_refused_until_a_path_says_which(root: Path):
    photo(root / "train/bad/c.png")
    names = find_photos(root, "val").names
    with pytest.raises(UserError, match="c.png may be train/bad/c.png or valid/bad/c.png"):
        find_marks(names, root, boxes=coco(root.parent / "b.json", "c.png"))
    for name in ("bad/c.png", "../x/valid/bad/c.png"):
        path = coco(root.parent / f"instances_val_{len(name)}.json", name)
        assert [bool(one) for one in find_marks(names, root, boxes=path)] == [True, False]


def test_boxes_outside_and_of_no_photo_are_counted(root: Path):
    table = root.parent / "b.csv"
    table.write_text("name,x1,y1,x2,y2\nc,14,4,22,12\nc,9000,9000,9010,9010\nd,55,30,70,50\n")
    with pytest.warns(
        SoftVQWarning, match="photo, left out: 1 \\(9000, .* in valid/bad/c.png, 60 x"
    ):
        marks = find_marks(find_photos(root, "val").names, root, boxes=table)
    assert [len(one.boxes) for one in marks] == [1, 1]
    pictures = [{"id": i, "file_name": name} for i, name in enumerate(("c.png", "gone.png"))]
    items = [{"image_id": 0, "bbox": [1, 1, 5, 5]}]
    path = coco(root.parent / "b.json", "", images=pictures, annotations=items)
    with pytest.warns(SoftVQWarning, match="annotations of no photo in .*, left out: 1"):
        find_marks(find_photos(root, "val").names, root, boxes=path)


@pytest.mark.parametrize("size, fine", [((120, 80), True), ((31, 20), True), ((10, 3000), False)])
def test_masks_have_their_photos_proportions(root: Path, size: tuple[int, int], fine: bool):
    images.save_png(Image.new("1", size, 1), root.parent / "masks/valid/bad/c.png")
    marks = find_marks(["valid/bad/c.png"], root, masks=root.parent / "masks")
    if fine:
        assert read_masks(marks, (20, 30)).all()
    else:
        with pytest.raises(UserError, match=r"10 x 3000 .*its photo 60 x 40"):
            read_masks(marks, (20, 30))


def test_held_out_photos_alone_may_be_marked(root: Path, tmp_path: Path):
    images.save_png(Image.new("1", (WIDTH, HEIGHT), 1), tmp_path / "masks/valid/bad/c.png")
    for given in ({"boxes": written("csv", tmp_path / "b")}, {"masks": tmp_path / "masks"}):
        train, val = (
            open_store(root, split, (20, 30), tmp_path / "c", 1.0, progress=False)
            for split in ("train", "val")
        )
        with pytest.warns(SoftVQWarning, match="marks held-out photos alone") as caught:
            assert find_regions(train, root, **given, classes={"bad"}) == []
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(find_regions(val, root, **given, classes={"bad"})) == 1


def test_no_such_masks(root: Path):
    with pytest.raises(UserError, match="no such folder"):
        find_marks(["valid/bad/c.png"], root, masks=root / "none")
    with pytest.raises(UserError, match="cannot be read"):
        find_marks(["valid/bad/c.png"], root, boxes=root / "none.json")
