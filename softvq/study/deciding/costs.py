"""What a candidate costs: defects that are missed, parts that are looked at twice, disks, machines.

Per 10,000 parts, with a share r of them defective, recall R and false alarms F of the information
judge, b bytes and s seconds (to encode and to decode) of each of n photos of a part:

    10,000 [ r (1 - R) missed + (1 - r) F alarm + n (b / 10^9 storage months + s / 3600 compute) ]
"""

import math

from softvq.evaluate.intervals import Figure
from softvq.study.records import Candidate, Cost, Prices

PARTS = 10_000


def cost_of(candidate: Candidate, prices: Prices) -> Cost:
    """The expected cost of 10,000 parts, and its interval.

    The interval adds what recall and alarms may each be off, as squares (Zou and Donner 2008).
    """
    recall = candidate.metrics.get("defect_recall")
    alarms = candidate.metrics.get("false_alarms")
    photos = PARTS * prices.photos_per_part
    miss = PARTS * prices.defect_rate * prices.missed_defect
    alarm = PARTS * (1 - prices.defect_rate) * prices.false_alarm
    missed = None if recall is None else miss * (1 - recall.value)
    looked = None if alarms is None else alarm * alarms.value
    storage = photos * candidate.bytes / 1e9 * prices.storage * prices.months
    speed = candidate.speed
    seconds = sum(1 / each for each in (speed.encode, speed.decode) if each)
    compute = photos * seconds / 3600 * prices.compute
    total = (missed or 0.0) + (looked or 0.0) + storage + compute
    # A lower recall makes it dearer, a higher share of alarms too.
    below = math.hypot(_reach(recall, "high", miss), _reach(alarms, "low", alarm))
    above = math.hypot(_reach(recall, "low", miss), _reach(alarms, "high", alarm))
    return Cost(
        Figure(total, max(0.0, total - below), total + above), missed, looked, storage, compute
    )


def _reach(figure: Figure | None, end: str, price: float) -> float:
    """What it costs if a share is at one end of its interval."""
    bound = None if figure is None else getattr(figure, end)
    return 0.0 if figure is None or bound is None else price * abs(figure.value - bound)


def payback(candidate: Cost, today: Cost, prices: Prices) -> float | None:
    """Months until what is paid once is earned against what photos are kept as today."""
    saved = (today.total.value - candidate.total.value) * prices.parts_per_month / PARTS
    if saved <= 0:
        return None
    return prices.integration / saved
