"""What is made of the photos that pass: a record, and an alarm when they have changed."""

import json
import logging
import smtplib
import threading
import time
import urllib.request
from collections import deque
from dataclasses import dataclass
from email.message import EmailMessage

import numpy as np

from softvq.serve import drift
from softvq.serve.drift import Detector, Photo, Photos, Verdict
from softvq.serve.health import NAMES
from softvq.serve.metrics import Metrics
from softvq.serve.plan import DriftPlan
from softvq.serve.store import Seen, Store, Window

log = logging.getLogger("softvq.serve")


@dataclass(frozen=True)
class Alarm:
    """A window that differs: when, by how much, in words of each language."""

    at: float
    figures: dict[str, float]
    said: dict[str, list[str]]

    def text(self, language: str = "en") -> str:
        return "; ".join(self.said[language])


class Watch:
    """Rolling windows over the photos that a server sees.

    Rows are gathered and written every ``FLUSH`` seconds, by a thread of its own: a slow disk slows
    no answer. Without a detector photos are recorded, and nothing is judged.
    """

    FLUSH = 1.0
    ROWS = 5000  # that wait to be written; more are left out, and counted

    def __init__(self, store: Store, plan: DriftPlan, detector: Detector | None, metrics: Metrics):
        self.store, self.plan, self.detector, self.metrics = store, plan, detector, metrics
        size = detector.window if detector else 1
        self.recent: deque[Photo] = deque(maxlen=size)
        self.fresh = 0
        self.rows: deque = deque(maxlen=self.ROWS)
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.writer = threading.Thread(target=self._write, name="softvq-store", daemon=True)
        self.writer.start()

    def saw(self, photo: Photo, part: str | None) -> Verdict | None:
        """Note a photo; the verdict of the window that it completes, if it completes one."""
        self.put(
            Seen(
                at=time.time(), part=part, tokens=len(photo.tokens),
                token_mean=float(photo.tokens.mean()), token_std=float(photo.tokens.std()),
                error=photo.error,
                health=dict(zip(NAMES, photo.health.round(5).tolist(), strict=True)),
            )
        )  # fmt: skip
        if self.detector is None:
            return None
        with self.lock:
            self.recent.append(photo)
            self.fresh += 1
            if len(self.recent) < self.detector.window or self.fresh < self.plan.stride:
                return None
            self.fresh = 0
            window = Photos.of(list(self.recent))
        verdict = self.detector.look(window)
        said = {language: drift.explain(verdict, window, language) for language in drift.words()}
        for name, value in verdict.figures.items():
            self.metrics.drift.labels(name).set(value)
        figures = {name: round(value, 4) for name, value in verdict.figures.items()}
        self.put(Window(at=time.time(), alarm=verdict.alarm, figures=figures, said=said))
        if verdict.alarm:
            self.metrics.alarms.inc()
            alarm = Alarm(time.time(), figures, said)
            log.warning("drift: %s", alarm.text())
            threading.Thread(target=tell, args=(self.plan, alarm), daemon=True).start()
        return verdict

    def put(self, row: object) -> None:
        """Have a row written soon."""
        if len(self.rows) == self.ROWS:
            self.metrics.unseen.inc()
        self.rows.append(row)

    def _write(self) -> None:
        while not self.stopping.wait(self.FLUSH):
            self.flush()

    def flush(self) -> None:
        """Write what waits; what the database refuses is lost, and said."""
        rows = [self.rows.popleft() for _ in range(len(self.rows))]
        if not rows:
            return
        try:
            self.store.add(rows)
        # Photos are answered whether or not a database is there to write it down.
        except Exception as error:  # noqa: BLE001
            self.metrics.unseen.inc(len(rows))
            log.error("store: %s", " ".join(str(error).split())[:200])

    def close(self) -> None:
        self.stopping.set()
        self.writer.join()
        self.flush()


def tell(plan: DriftPlan, alarm: Alarm) -> None:
    """Post an alarm to the plan's webhook and mail it; who cannot be reached is logged."""
    if plan.webhook:
        body = json.dumps({"at": alarm.at, "figures": alarm.figures, "said": alarm.said})
        request = urllib.request.Request(
            plan.webhook, body.encode(), {"Content-Type": "application/json"}
        )
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except (OSError, ValueError) as error:
            log.error("webhook: %s", type(error).__name__)
    if plan.email:
        message = EmailMessage()
        message["Subject"] = "softvq: the photos have changed / 写真が変わりました"
        message["From"] = message["To"] = plan.email
        message.set_content("\n".join(alarm.said["en"] + alarm.said["ja"]))
        host, _, port = plan.smtp.partition(":")
        try:
            with smtplib.SMTP(host, int(port or 25), timeout=10) as server:
                server.send_message(message)
        except (OSError, ValueError, smtplib.SMTPException) as error:
            log.error("e-mail: %s", type(error).__name__)


def log_error(rebuilt: np.ndarray, photo: np.ndarray) -> float:
    """log10 of the mean square error of uint8 pictures, in levels of 0..1."""
    difference = (rebuilt.astype(np.float32) - photo.astype(np.float32)) / 255
    return float(np.log10(np.square(difference).mean() + 1e-8))
