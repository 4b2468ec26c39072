"""Looking at the photos before anything is trained: what there is, what leaks, what is too little.

inspect_photos -> Inspection (both splits, groups, subgroups, facts) -> refuse | drop_leaks
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from softvq import images
from softvq.data import Store, find_photos, is_sharded, open_store, split_of
from softvq.errors import UserError, unknown_key
from softvq.evaluate.intervals import wilson
from softvq.study.metadata import Metadata, read_metadata
from softvq.study.photos.copies import (
    find_duplicates,
    find_leaks,
    find_near_duplicates,
    join_copies,
    sign,
)
from softvq.study.records import Facts, Leak, Remark, RemarkCode, Sizes, Skipped, SplitFacts, Splits

GROUP_COLUMNS = ("cluster", "group")
NORMAL_WORDS = {"ok", "good", "normal", "free", "pass", "正常", "良品"}
NEGATIONS = {"not", "no", "non"}

FEW_TRAIN = 200
FEW_VAL = 50
FEW_CLASS_VAL = 10
PROVABLE = 0.9  # what a perfect record on all defect groups should prove
IMBALANCE = 10  # largest class to smallest
REDUCED = 1.5  # photo pixels per study pixel
CROPPED = 0.1  # share of a photo cut off
MIXED = 2  # largest reduction to smallest


@dataclass(frozen=True)
class Inspection:
    """The photos of a study, and what was found out about them.

    ``train`` and ``val`` are stores of margin 1. The groups run parallel to their photos; photos
    of one group are one piece of evidence. ``subgroups`` holds, for a column of the metadata, the
    value of every held-out photo ('' without a row), ``train_subgroups`` of every training photo.
    ``facts`` list every leak found, while ``leaks`` are those still in ``val``, one per held-out
    photo.
    """

    train: Store
    val: Store
    train_groups: list[str]
    val_groups: list[str]
    subgroups: dict[str, list[str]]
    train_subgroups: dict[str, list[str]]
    facts: Facts
    leaks: list[Leak]


def inspect_photos(
    source: str | Path,
    size: tuple[int, int],
    cache: Path,
    metadata: Path | None = None,
    group: str | None = None,
    subgroup: Sequence[str] = (),
    normal: list[str] | None = None,
    progress: bool = True,
    fit: str = "crop",
) -> Inspection:
    """Decode the photos of ``source``, fitted to ``size`` = (H, W), and look at them.

    ``fit`` is crop or stretch, as in ``images.fit``.
    ``metadata`` is a CSV as in ``read_metadata``; by default SOURCE/manifest.csv, if it is there.
    ``group`` is a column of it, or 'stem': photos of one file stem, such as ok/1.jpg and
    defect/1.jpg, are one group. By default it is the column 'cluster' or 'group', if there is one;
    else every photo is its own group. ``normal`` are the classes without defects; by default those
    that have ok, good, normal, free, pass, 正常 or 良品 as a word of their name.

    Raises UserError as ``open_store`` and ``read_metadata`` do, for a column asked for that does
    not exist, and for a normal class that does not exist.
    """
    if is_sharded(source):
        raise UserError(f"{source}: shards; a study looks at photos in a folder: give that")
    classes = find_photos(source, "train").classes  # now: decoding may take long
    if unknown := [name for name in normal or [] if name not in classes]:
        raise unknown_key(unknown[0], classes, "normal classes")
    train = open_store(source, "train", size, cache, 1.0, fit, progress)
    val = open_store(source, "val", size, cache, 1.0, fit, progress)
    names, split = train.names + val.names, len(train)
    asked = bool(metadata or subgroup or group not in (None, "stem"))
    table, unused = _metadata(
        metadata or Path(source).expanduser() / "manifest.csv", train, val, asked
    )
    if group is None and table:
        group = next((column for column in GROUP_COLUMNS if column in table.columns), None)
    groups = _groups(names, table, group)

    if normal is None:
        normal = [name for name in train.classes if _sounds_normal(name)]

    signatures = sign(train, val, groups)
    leaks = find_leaks(signatures)
    near_count, near = find_near_duplicates(signatures)
    groups = join_copies(signatures)
    facts = Facts(
        splits=Splits(_counts(train, groups[:split], normal), _counts(val, groups[split:], normal)),
        sizes=_sizes(source, train, val, fit),
        normal=normal,
        group=group,
        metadata=table.table.name if table else None,
        metadata_unused=unused,
        unmatched=sum(not row for row in table.rows) if table else 0,
        grey=all((x == x[..., :1]).all() for store in (train, val) for x in store.images),
        blank=sum(not pixels for pixels in signatures.hashes),
        skipped=_skipped(source, train, val),
        duplicates=find_duplicates(signatures),
        near_duplicates=near,
        near_duplicates_count=near_count,
        leaks=leaks,
    )
    return Inspection(
        train=train,
        val=val,
        train_groups=groups[:split],
        val_groups=groups[split:],
        subgroups={c: table.column(c)[split:] for c in subgroup} if table else {},
        train_subgroups={c: table.column(c)[:split] for c in subgroup} if table else {},
        facts=replace(facts, remarks=_remarks(facts)),
        leaks=leaks,
    )


def refuse(inspection: Inspection) -> None:
    """Raises UserError, in one line, if held-out photos are in training too, or nearly."""
    if not inspection.leaks:
        return
    leak = inspection.leaks[0]
    detail = f", similarity {leak.similarity:.2f}" if leak.similarity else f" '{leak.group}'"
    mend = "move both to one side"
    if not _is_split(inspection.train, inspection.val):
        mend = "make folders train/ and val/ with both on one side"
    raise UserError(
        f"{len(inspection.leaks)} of the {len(inspection.val)} held-out photos are in training "
        f"too, or nearly: {leak.val} and {leak.train} ({leak.why}{detail}); {mend}, "
        "or leave them out with --drop-leaks"
    )


def drop_leaks(inspection: Inspection) -> Inspection:
    """Leave the leaking photos out of ``val``; the facts go on listing them, and count them.

    Raises UserError if no held-out photo would be left.
    """
    if not inspection.leaks:
        return inspection
    leaking, val = {leak.val for leak in inspection.leaks}, inspection.val
    keep = [i for i, name in enumerate(val.names) if name not in leaking]
    if not keep:
        raise UserError(
            f"all {len(val)} held-out photos are in training too, or nearly; hold out others"
        )
    names = [val.names[i] for i in keep]
    rest = replace(
        val,
        images=val.images[keep],
        labels=val.labels[keep],
        names=names,
        fingerprint=hashlib.sha256("\n".join([val.fingerprint, *names]).encode()).hexdigest(),
    )
    val_groups = [inspection.val_groups[i] for i in keep]
    counts = _counts(rest, val_groups, inspection.facts.normal)
    splits = replace(inspection.facts.splits, val=counts)
    facts = replace(inspection.facts, dropped=len(leaking), splits=splits)
    return replace(
        inspection,
        val=rest,
        val_groups=val_groups,
        subgroups={c: [v[i] for i in keep] for c, v in inspection.subgroups.items()},
        facts=replace(facts, remarks=_remarks(facts)),
        leaks=[],
    )


def _metadata(
    path: Path, train: Store, val: Store, asked: bool
) -> tuple[Metadata | None, str | None]:
    """The table, or why it is not used: one that nobody asked for may be about something else."""
    if not path.is_file():
        if asked:
            raise UserError(f"{path}: no such file; give the CSV that describes the photos")
        return None, None
    try:
        names = train.names + val.names
        return read_metadata(path, names, _is_split(train, val), bool(train.classes)), None
    except UserError as error:
        if asked:
            raise
        return None, str(error)


def _is_split(train: Store, val: Store) -> bool:
    """Whether the splits are folders, as train/ and val/, rather than drawn."""
    return all(map(split_of, train.names + val.names))


def _groups(names: list[str], table: Metadata | None, group: str | None) -> list[str]:
    """The group of every photo; one that the metadata does not group is its own."""
    if group == "stem" and not (table and "stem" in table.columns):
        return [Path(name).stem for name in names]
    if group is None or table is None:
        return names
    return [value or name for value, name in zip(table.column(group), names, strict=True)]


def _sounds_normal(name: str) -> bool:
    words = set(re.split(r"[\W_]+", name.lower()))
    return bool(words & NORMAL_WORDS) and not words & NEGATIONS


def _skipped(source: str | Path, train: Store, val: Store) -> list[Skipped]:
    """The damaged photos, with paths below the source."""
    root = Path(source).expanduser()
    return [
        Skipped(Path(item["path"]).relative_to(root).as_posix(), item["reason"])
        for item in train.skipped + val.skipped
    ]


def _sizes(source: str | Path, train: Store, val: Store, fit: str) -> Sizes:
    sides = []
    for split, store in (("train", train), ("val", val)):
        listing, used = find_photos(source, split), set(store.names)
        for i, name in enumerate(listing.names):
            if name in used:
                box = listing.boxes[i] if listing.boxes else None
                sides.append(_side_lengths(listing.paths[i], box))
    width, height = np.array(sides, np.float64).T
    study_height, study_width = train.size
    reduced = np.minimum(width / study_width, height / study_height)
    kept = np.ones(len(width))
    if fit == "crop":
        kept = reduced**2 * (study_width * study_height) / (width * height)
    return Sizes(
        width=[round(x) for x in _range(width)],
        height=[round(x) for x in _range(height)],
        reduced=_range(reduced),
        upscaled=float((reduced < 1).mean()),
        cropped=round(float(np.median(1 - kept)), 3),
    )


def _side_lengths(path: Path, box: tuple[int, int, int, int] | None) -> tuple[int, int]:
    """(width, height) of an upright photo, from its header, or of a built-in one's crop."""
    if box:
        return box[2] - box[0], box[3] - box[1]
    return images.upright_size(path)


def _range(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in (values.min(), np.median(values), values.max())]


def _counts(store: Store, groups: list[str], normal: list[str]) -> SplitFacts:
    labels = [store.classes[label] for label in store.labels] if store.classes else []
    defects = {g for g, label in zip(groups, labels, strict=False) if label not in normal}
    return SplitFacts(
        photos=len(store),
        classes={name: labels.count(name) for name in store.classes},
        groups=len(set(groups)),
        defect_groups=len(defects),
    )


def _remarks(facts: Facts) -> list[Remark]:
    """What is too little or odd."""
    remarks: list[Remark] = []

    def remark(code: RemarkCode, **values: int | float | str) -> None:
        remarks.append(Remark(code, values))

    train, val = facts.splits.train, facts.splits.val
    if train.photos < FEW_TRAIN:
        remark("few_train", n=train.photos)
    if val.photos < FEW_VAL:
        remark("few_val", n=val.photos)
    for name, n in val.classes.items():
        if n < FEW_CLASS_VAL:
            remark("few_class_val", **{"class": name}, n=n)
    if not train.classes:
        remark("no_classes")
    elif not facts.normal:
        remark("no_normal")
    elif len(facts.normal) == len(train.classes):
        remark("no_defects")
    else:
        groups = val.defect_groups
        least, _ = wilson(groups, groups)
        if least < PROVABLE:
            remark("few_defect_groups", groups=groups, least_provable=round(least, 3))
    counts = train.classes.values()
    taught = [name for name, n in train.classes.items() if n]
    if len(taught) == 1:
        remark("one_class", **{"class": taught[0]})
    elif counts and max(counts) > IMBALANCE * min(counts):
        remark("imbalance", ratio=round(max(counts) / max(min(counts), 1), 1))

    sizes = facts.sizes
    low, middle, high = sizes.reduced
    if sizes.upscaled:
        remark("upscaled", share=round(sizes.upscaled, 3))
    if middle >= REDUCED:
        remark("reduced", factor=round(middle, 2))
    if high > MIXED * low:
        remark("mixed_sizes", low=round(low, 2), high=round(high, 2))
    if sizes.cropped >= CROPPED:
        remark("cropped", share=sizes.cropped)
    if facts.blank:
        remark("blank", n=facts.blank)
    if facts.metadata_unused:
        remark("metadata_unused", reason=facts.metadata_unused)
    if facts.unmatched:
        remark("unmatched", n=facts.unmatched, of=train.photos + val.photos)
    return remarks
