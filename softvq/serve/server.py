"""What stands behind the routes: engine in batches, judge, roll-out, drift and store, as one."""

import asyncio
import logging
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from softvq import __version__, images
from softvq.errors import UserError
from softvq.serve import wire
from softvq.serve.batching import Batcher, Full
from softvq.serve.drift import Detector, Photo
from softvq.serve.engine import open_engine
from softvq.serve.health import health
from softvq.serve.judge import Judge, Nearness, Opinion
from softvq.serve.limits import Keys, Limits, Rate
from softvq.serve.metrics import Metrics
from softvq.serve.plan import STAGES, Plan
from softvq.serve.reference import open_reference
from softvq.serve.rollout import Rollout, State, part_hash
from softvq.serve.store import DEFAULT, Compared, Store
from softvq.serve.watch import Watch, log_error

log = logging.getLogger("softvq.serve")
DAY = 86400


@dataclass(frozen=True)
class Settings:
    """Everything that a server goes by; see the options of ``softvq serve``.

    batch: requests computed together.  wait: seconds that a request waits for others.
    retention: days that figures are kept.
    """

    model: str = "shipped"
    plan: Plan = field(default_factory=Plan)
    store: str = DEFAULT
    precision: str = "auto"
    batch: int = 16
    wait: float = 0.003
    limits: Limits = field(default_factory=Limits)
    keys: str | None = None
    retention: float = 90.0


class Refused(Exception):
    """An answer other than the one hoped for: a status and a reason in words."""

    def __init__(self, status: int, reason: str, after: float | None = None):
        super().__init__(reason)
        self.status, self.reason, self.after = status, reason, after


class Server:
    """What the routes share, alive between the start and the stop of the application."""

    def __init__(self, settings: Settings):
        self.settings, self.plan = settings, settings.plan
        self.metrics, self.keys = Metrics(), Keys(settings.keys)
        self.rate = Rate(settings.limits.rate)
        self.engine = open_engine(settings.model, settings.precision)
        self.about = self.engine.about
        self.tokens = self.plan.tokens or self.about.tokens
        try:
            wire.check_tokens(self.tokens, self.about)
        except wire.BadRequest as error:
            raise UserError(f"plan: {error}") from None
        self.judge, self.near = Judge(self.plan.judge), Nearness()
        self.store = Store(settings.store)
        self.rollout = Rollout(self.store, self.plan)
        self.looked, self.known = 0.0, self.rollout.state(measured=False)
        self.watch = Watch(self.store, self.plan.drift, self._detector(), self.metrics)
        self.pool = ThreadPoolExecutor(2, "softvq-photos")
        self.ready = False
        self.considered = 0
        self.behind: set[asyncio.Task] = set()

    def _detector(self) -> Detector | None:
        drifting = self.plan.drift
        if drifting.reference is None:
            return None
        reference = open_reference(
            drifting.reference, self.engine, self.judge, self.tokens, self.settings.batch
        )
        return Detector(reference, drifting.window, drifting.one_in)

    async def start(self) -> None:
        limits = self.settings.limits
        self.batcher = Batcher(
            {
                "encode": lambda kind, items: self.engine.encode(np.stack(items)),
                "decode": lambda kind, items: self.engine.decode(np.stack(items)),
                "generate": lambda kind, items: self.engine.generate(
                    [label for label, _ in items], [seed for _, seed in items]
                ),
                "judge": lambda kind, items: self.judge(np.stack(items)),
                "near": lambda kind, items: self.near(*map(np.stack, zip(*items, strict=True))),
            },
            self.settings.batch,
            self.settings.wait,
            limits.queue,
            self.metrics,
        )
        height, width = self.about.size
        await self.encode(np.zeros((height, width, 3), np.uint8))  # the first is slow
        self.cleaner = asyncio.create_task(self._clean())
        self.ready = True
        log.info("ready: %s", self.about.runs)

    async def stop(self) -> None:
        self.ready = False
        self.cleaner.cancel()
        if self.behind:
            await asyncio.wait(self.behind, timeout=10)
        await self.batcher.close()
        self.pool.shutdown()
        self.watch.close()
        self.engine.close()
        self.store.close()

    async def _clean(self) -> None:
        while True:
            await asyncio.to_thread(self.store.forget, self.settings.retention)
            await asyncio.sleep(DAY / 24)

    # ---- what routes are made of ----

    async def photo(self, data: bytes) -> np.ndarray:
        """The photo in a request, as it stands: uint8 [H, W, 3]. Raises Refused."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.pool, self._decode, data)
        except images.BadImage as error:
            too_large = "bomb" in error.reason
            raise Refused(413 if too_large else 422, f"photo: {error.reason}") from None

    def _decode(self, data: bytes) -> np.ndarray:
        return np.asarray(images.decode(data, max_pixels=self.settings.limits.pixels))

    def fit(self, photo: np.ndarray) -> np.ndarray:
        if photo.shape[:2] == self.about.size:
            return photo
        return np.asarray(images.fit(Image.fromarray(photo), self.about.size))

    async def fitted(self, photo: np.ndarray) -> np.ndarray:
        return await asyncio.get_running_loop().run_in_executor(self.pool, self.fit, photo)

    async def encode(self, fitted: np.ndarray) -> np.ndarray:
        return await self.batcher(("encode",), fitted)

    async def decode(self, latents: np.ndarray) -> np.ndarray:
        return await self.batcher(("decode", len(latents)), latents)

    async def judged(self, photo: np.ndarray) -> Opinion:
        return await self.batcher(("judge",), photo)

    def later(self, work: Awaitable[None]) -> None:
        """Beside the answer, which does not wait for it; left out while others wait."""
        if self.batcher.busy or len(self.behind) > self.settings.limits.queue:
            self.metrics.unseen.inc()
            work.close()  # type: ignore[attr-defined]
            return
        task = asyncio.ensure_future(work)
        self.behind.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task) -> None:
        self.behind.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("beside an answer: %s", type(error).__name__)

    async def watched(
        self, photo: np.ndarray, fitted: np.ndarray, latents: np.ndarray, part: str | None = None,
        rebuilt: np.ndarray | None = None, opinion: Opinion | None = None,
    ) -> None:  # fmt: skip
        """Note a photo for the record, and for drift."""
        try:
            kept = latents[: self.tokens]
            rebuilt = await self.decode(kept) if rebuilt is None else rebuilt
            opinion = opinion or await self.judged(fitted)
            seen = Photo(kept, log_error(rebuilt, fitted), health(fitted).vector(), opinion.score)
            await asyncio.get_running_loop().run_in_executor(
                self.pool, self.watch.saw, seen, part and part_hash(part)
            )
        except Full:
            self.metrics.unseen.inc()

    def state(self) -> State:
        """The stage, as it was at most a second ago: another process may change it."""
        if time.monotonic() - self.looked > 1:
            self.looked, self.known = time.monotonic(), self.rollout.state(measured=False)
        return self.known

    async def verdict(self, photo: np.ndarray, data: bytes, part: str) -> dict[str, Any]:
        """By the path that the roll-out says; what the other one says is compared."""
        state = self.state()
        self.metrics.stage.set(STAGES.index(state.stage))  # type: ignore[arg-type]
        by_tokens = self.rollout.answers_by_tokens(part, state.stage)
        both = self.rollout.compares(data, state.stage)
        fitted = await self.fitted(photo)
        if not by_tokens:
            answer = await self.judged(fitted)
            if both:
                self.later(self.compared(photo, fitted, part, state.change, answer))
        else:
            latents = await self.encode(fitted)
            rebuilt = await self.decode(latents[: self.tokens])
            answer = await self.judged(rebuilt)
            if both:
                self.later(
                    self.compared(photo, fitted, part, state.change, None, answer, rebuilt, latents)
                )
        return {
            "verdict": answer.verdict, "score": round(answer.score, 4),
            "path": "tokens" if by_tokens else "today", "stage": state.stage,
        }  # fmt: skip

    async def compared(
        self, photo: np.ndarray, fitted: np.ndarray, part: str, change: int,
        today: Opinion | None = None, tokens: Opinion | None = None,
        rebuilt: np.ndarray | None = None, latents: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Take the path that the answer did not, and write down how the two compare."""
        try:
            latents = await self.encode(fitted) if latents is None else latents
            if rebuilt is None:
                rebuilt = await self.decode(latents[: self.tokens])
            today = today or await self.judged(fitted)
            tokens = tokens or await self.judged(rebuilt)
            psnr, distance = await self.batcher(("near",), (fitted, rebuilt))
        except Full:
            self.metrics.unseen.inc()
            return
        self.watch.put(
            Compared(
                at=time.time(), change=change, part=part_hash(part), today=today.verdict,
                tokens=tokens.verdict, psnr=psnr, eye_distance=distance,
            )
        )  # fmt: skip
        await self.watched(photo, fitted, latents, part, rebuilt, today)
        self.considered += 1
        if self.considered % 20 == 0:
            await asyncio.get_running_loop().run_in_executor(self.pool, self._consider)

    def _consider(self) -> None:
        self.watch.flush()
        before = self.rollout.state(measured=False)
        after = self.rollout.consider()
        if after.change != before.change:
            self.looked = 0.0
            log.warning("roll-out: %s -> %s", before.stage, after.stage)

    def status(self) -> dict[str, Any]:
        """What the page shows beside pictures."""
        state, about = self.rollout.state(), self.about
        windows = self.store.windows()
        return {
            "version": __version__,
            "model": {
                "tokens": about.tokens, "channels": about.channels, "height": about.size[0],
                "width": about.size[1], "nested": about.nested, "runs": about.runs,
                "tokenizer": about.tokenizer[:16], "classes": about.classes,
            },
            "rollout": {
                "stage": state.stage, "held": state.held, "since": state.since,
                "comparisons": state.comparisons, "least": self.plan.least,
                "tokens": self.tokens, "evidence": [asdict(one) for one in state.evidence],
            },
            "drift": {
                "watched": self.watch.detector is not None, "one_in": self.plan.drift.one_in,
                "windows": [
                    {"at": w.at, "alarm": w.alarm, "figures": w.figures, "said": w.said}
                    for w in windows
                ],
            },
        }  # fmt: skip
