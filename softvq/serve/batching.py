"""Batches across requests: what waits for the same computation is computed together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from softvq.serve.metrics import Metrics


class Full(Exception):
    """The queue takes no more: the client is asked to come again."""


@dataclass
class Waiting:
    """A request: what kind of work on what, and who is told the result."""

    kind: tuple
    item: Any
    told: asyncio.Future
    since: float


class Batcher:
    """One thread that computes, and a queue in front of it.

    works:  by the first part of a kind, a function (kind, items) -> results, one for each item.
    most:   items of one batch.  wait: seconds that the first waits for others while nothing else
            is computed.  queue: items that may wait.

    While a batch is computed the next one gathers, so that under load nobody waits for ``wait``.
    """

    def __init__(
        self,
        works: dict[str, Callable[[tuple, Sequence[Any]], Any]],
        most: int,
        wait: float,
        queue: int,
        metrics: Metrics,
    ):
        self.works, self.most, self.wait, self.queue = works, most, wait, queue
        self.metrics = metrics
        self.waiting: deque[Waiting] = deque()
        self.arrived = asyncio.Event()
        self.closing = False
        self.thread = ThreadPoolExecutor(1, "softvq-engine")
        self.task = asyncio.create_task(self._serve())

    async def __call__(self, kind: tuple, item: Any) -> Any:
        """The result of one item. Raises Full, and what its computation raises."""
        if self.closing or len(self.waiting) >= self.queue:
            raise Full
        told = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(kind, item, told, time.perf_counter()))
        self.arrived.set()
        return await told

    @property
    def busy(self) -> bool:
        """Whether somebody waits: what is not urgent is left out then."""
        return len(self.waiting) > self.most

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self.waiting:
                if self.closing:
                    return
                self.arrived.clear()
                await self.arrived.wait()
            kind = self.waiting[0].kind
            if self.wait and self._alike(kind) < self.most and not self.closing:
                left = self.waiting[0].since + self.wait - time.perf_counter()
                if left > 0:
                    await asyncio.sleep(left)
            batch = self._take()
            if not batch:
                continue
            now = time.perf_counter()
            self.metrics.batches.labels(kind[0]).observe(len(batch))
            self.metrics.waits.observe(now - batch[0].since)
            try:
                work, items = self.works[kind[0]], [one.item for one in batch]
                results = await loop.run_in_executor(self.thread, work, kind, items)
            # Whatever it is, those who wait must hear of it, and the next batch be served.
            except Exception as error:  # noqa: BLE001
                for one in batch:
                    if not one.told.done():
                        one.told.set_exception(error)
                continue
            for one, result in zip(batch, results, strict=True):
                if not one.told.done():
                    one.told.set_result(result)

    def _alike(self, kind: tuple) -> int:
        return sum(one.kind == kind for one in self.waiting)

    def _take(self) -> list[Waiting]:
        """The first and those like it, at most ``most``; who has gone is left out."""
        kept: deque[Waiting] = deque()
        batch: list[Waiting] = []
        kind = self.waiting[0].kind
        for one in self.waiting:
            if one.told.done():
                continue
            if one.kind == kind and len(batch) < self.most:
                batch.append(one)
            else:
                kept.append(one)
        self.waiting = kept
        return batch

    async def close(self) -> None:
        """Take nothing new, finish what was accepted."""
        self.closing = True
        self.arrived.set()
        await self.task
        self.thread.shutdown()
