"""What was measured, photo by photo -> figures, each with its interval.

Photos of one group count as one piece of evidence (``evaluate.intervals``). What cannot be
measured, for want of labels, regions or a defect-free class, is None.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from softvq.evaluate import intervals
from softvq.evaluate.intervals import Figure
from softvq.evaluate.judges import Judged
from softvq.evaluate.regions import smallest_surviving
from softvq.study.records import (
    ORIGINALS,
    Candidate,
    ClassFigures,
    Evidence,
    Figures,
    Measured,
    SizeBin,
    Subgroup,
    Verdict,
)

SURVIVES = 0.5  # of its contrast, with which a region is still there
BINS = 4  # of region sizes
WORST = 6  # photos that are named


@dataclass
class Reader:
    """The evidence, and how sure intervals are to be."""

    evidence: Evidence
    confidence: float

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array(self.evidence.labels, np.int64)

    @cached_property
    def groups(self) -> np.ndarray:
        return np.asarray(self.evidence.groups)

    @cached_property
    def defect(self) -> np.ndarray:
        """bool [N]; nothing is one if no class is known to be free of defects."""
        normal = set(self.evidence.facts.normal)
        known = bool(normal.intersection(self.evidence.classes))
        bad = [known and name not in normal for name in self.evidence.classes]
        return np.array(bad, bool)[self.labels] if bad else np.zeros(len(self.groups), bool)

    @cached_property
    def region_photos(self) -> np.ndarray:
        return np.array([region.photo for region in self.evidence.regions], np.int64)

    @property
    def tells_defects(self) -> bool:
        return self.evidence.judge in ("defects", "anomalies")

    def share(self, kept: np.ndarray, photos: np.ndarray) -> Figure | None:
        """The share that is true of ``kept``, each about the photo in ``photos`` (any index)."""
        return intervals.share(kept, self.groups[photos], self.confidence)

    def mean(self, values: np.ndarray, photos: np.ndarray) -> Figure | None:
        """The mean of ``values``, each about the photo in ``photos``; None if not finite."""
        figure = intervals.mean(values, self.groups[photos], self.confidence)
        return figure if figure and np.isfinite(figure.value) else None

    def lost(self, before: np.ndarray, after: np.ndarray, of: np.ndarray) -> Figure | None:
        """The share of ``before`` less that of ``after``, bool [N], of the photos ``of``."""
        if not of.any():
            return None
        return intervals.difference(before[of], after[of], self.groups[of], self.confidence)


def metrics_of(reader: Reader, measured: Measured) -> Figures:
    """All metrics of one candidate."""
    everything = np.ones(len(reader.groups), bool)
    contrast = _floats(measured.contrast)
    known = ~np.isnan(contrast)
    at = reader.region_photos[: len(contrast)]  # originals have none measured
    smallest = _smallest(reader, contrast)
    figures: Figures = {
        "psnr": reader.mean(np.array(measured.psnr), everything),
        "ssim": reader.mean(np.array(measured.ssim), _ssim_photos(reader, measured)),
        **_told(reader, measured.information, ""),
        **_told(reader, measured.dropin, "dropin_"),
        "contrast_kept": reader.mean(contrast, at) if len(at) else None,
        "regions_surviving": reader.share(contrast[known] >= SURVIVES, at[known]),
        "smallest_surviving": smallest and Figure(smallest[0]),
        "psnr_inside": reader.mean(np.array(measured.inside), at) if len(at) else None,
    }
    for name, value in measured.own.items():
        if isinstance(value, list):
            figures[name] = reader.mean(_floats(value), everything)
        else:
            figures[name] = None if value is None else Figure(value)
    return figures


def _told(reader: Reader, judged: Judged | None, prefix: str) -> Figures:
    """What judges tell: of defects their recall and alarms, of classes accuracy; and what is lost
    of it against the originals."""
    names: tuple[str, ...] = ("accuracy", "accuracy_lost")
    if reader.tells_defects:
        names = ("defect_recall", "false_alarms", "recall_lost", "alarms_added")
    original = reader.evidence.originals
    if judged is None or original is None:
        return dict.fromkeys((f"{prefix}{name}" for name in names), None)
    before, after = np.array(original.predicted), np.array(judged.predicted)
    if not reader.tells_defects:
        right = after == reader.labels
        everything = np.ones(len(right), bool)
        found = (
            reader.share(right, everything),
            reader.lost(before == reader.labels, right, everything),
        )
        return {f"{prefix}{name}": figure for name, figure in zip(names, found, strict=True)}
    bad, good = reader.defect, ~reader.defect
    alarm_before, alarm = before.astype(bool), after.astype(bool)
    figures = (
        reader.share(alarm[bad], bad),
        reader.share(alarm[good], good),
        reader.lost(alarm_before, alarm, bad),
        reader.lost(alarm, alarm_before, good),
    )
    return {f"{prefix}{name}": figure for name, figure in zip(names, figures, strict=True)}


def candidate_of(reader: Reader, measured: Measured) -> Candidate:
    """One candidate with its figures, before criteria and prices."""
    evidence, contrast = reader.evidence, _floats(measured.contrast)
    tokens = np.array(measured.tokens)
    smallest = _smallest(reader, contrast)
    varied = len(set(measured.tokens)) > 1
    return Candidate(
        name=measured.name,
        kind=measured.kind,
        role=measured.role,
        setting=measured.setting,
        tokens=float(tokens.mean()) if len(tokens) else None,
        floats=measured.floats,
        bytes=float(np.mean(measured.bytes)),
        metrics=metrics_of(reader, measured),
        verdict=Verdict(False, []),
        per_class=_per_class(reader, measured),
        by_class={
            name: float(tokens[reader.labels == i].mean())
            for i, name in enumerate(evidence.classes)
            if varied and (reader.labels == i).any()
        },
        by_size=_by_size(reader, contrast, np.array(measured.inside)),
        subgroups={
            column: {
                value: _subgroup(reader, measured, np.asarray(values) == value)
                for value in sorted(set(values))
            }
            for column, values in evidence.subgroups.items()
        },
        most_tokens=np.argsort(-tokens, kind="stable")[:WORST].tolist() if varied else [],
        worst=np.argsort(measured.psnr, kind="stable")[:WORST].tolist(),
        contrast=measured.contrast,
        smallest_in_file=smallest and smallest[1],
        confusion=_confusion(reader, measured.information),
        speed=measured.speed,
    )


def as_measured(evidence: Evidence) -> Measured:
    """The originals, as if they were a candidate that loses nothing."""
    count = len(evidence.names)
    return Measured(
        name=ORIGINALS, kind=ORIGINALS, role="reference", setting="", bytes=[0.0] * count,
        psnr=[math.nan] * count, ssim=[], information=evidence.originals,
        dropin=evidence.originals,
    )  # fmt: skip


def _ssim_photos(reader: Reader, measured: Measured) -> np.ndarray:
    """The photo that each piece is of whose SSIM was measured."""
    pieces = reader.evidence.tile.pieces
    photo = np.repeat(np.arange(len(pieces)), pieces)
    return photo[np.linspace(0, len(photo) - 1, len(measured.ssim)).astype(int)]


def _floats(values: list[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _smallest(reader: Reader, contrast: np.ndarray) -> tuple[float, float] | None:
    """The smallest surviving diameter, in pixels of the study and of the files."""
    regions = reader.evidence.regions
    if len(contrast) != len(regions):
        return None
    size = smallest_surviving(np.array([r.diameter for r in regions]), contrast, SURVIVES)
    if size is None:
        return None
    return size, max(region.original for region in regions if region.diameter == size)


def _by_size(reader: Reader, contrast: np.ndarray, inside: np.ndarray) -> list[SizeBin]:
    """The regions by diameter, in bins of equal counts, those without contrast left out."""
    diameters = np.array([region.diameter for region in reader.evidence.regions], np.float64)
    known = np.flatnonzero(~np.isnan(contrast))
    order = known[np.argsort(diameters[known], kind="stable")]
    return [
        SizeBin(
            low=float(diameters[some[0]]),
            high=float(diameters[some[-1]]),
            n=len(some),
            contrast=float(contrast[some].mean()),
            surviving=float((contrast[some] >= SURVIVES).mean()),
            psnr=float(inside[some].mean()),
        )
        for some in np.array_split(order, BINS)
        if len(some)
    ]


def _right(reader: Reader, judged: Judged) -> np.ndarray:
    """Which photos a judge is right about, bool [N]."""
    aim = reader.defect if reader.tells_defects else reader.labels
    return np.array(judged.predicted) == aim


def _per_class(reader: Reader, measured: Measured) -> dict[str, ClassFigures]:
    figures = {}
    for i, name in enumerate(reader.evidence.classes):
        of = reader.labels == i
        judged = measured.information
        figures[name] = ClassFigures(
            n=int(of.sum()),
            recall=reader.share(_right(reader, judged)[of], of) if judged else None,
            psnr=reader.mean(np.array(measured.psnr)[of], of),
        )
    return figures


def _confusion(reader: Reader, judged: Judged | None) -> list[list[int]] | None:
    """Photos by class (rows), and what they are taken for: a class, or sound and defective."""
    if judged is None or not reader.evidence.classes:
        return None
    columns = 2 if reader.tells_defects else len(reader.evidence.classes)
    counts = np.zeros((len(reader.evidence.classes), columns), np.int64)
    np.add.at(counts, (reader.labels, np.array(judged.predicted)), 1)
    return counts.tolist()


def _subgroup(reader: Reader, measured: Measured, of: np.ndarray) -> Subgroup:
    metrics: Figures = {"psnr": reader.mean(np.array(measured.psnr)[of], of)}
    if measured.information:
        flagged = np.array(measured.information.predicted).astype(bool)
        if reader.tells_defects:
            bad, good = of & reader.defect, of & ~reader.defect
            metrics["defect_recall"] = reader.share(flagged[bad], bad)
            metrics["false_alarms"] = reader.share(flagged[good], good)
        else:
            right = _right(reader, measured.information)
            metrics["accuracy"] = reader.share(right[of], of)
    return Subgroup(int(of.sum()), metrics)
