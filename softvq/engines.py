"""Ray: workers on this machine or a cluster write the files of a folder of tokens.

Ray Data hands out the files one by one, starts a worker again that was lost, and gives its file to
another; a file is written whole or not at all, so that every photo is in one exactly once. With
``RAY_ADDRESS`` set that cluster is joined, whose machines must see the photos and the folder.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from softvq.device import pick_device
from softvq.encoding import Writing, write_here
from softvq.errors import UserError


class _Worker:
    """A process of Ray that encodes: with a GPU where there are any, or a core."""

    def __init__(self, writing: Any):
        import ray

        self.writing: Writing = ray.get(writing)
        self.writing.tokenizer.to(pick_device())

    def __call__(self, some: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [str(name) for name in some["name"]]
        write_here(self.writing, names, lambda count: None)
        return {"photos": np.array([len(self.writing.todo[name]) for name in names])}


@dataclass(frozen=True)
class RayEngine:
    """See :class:`softvq.encoding.Engine`. ``workers``: how many; None for one a GPU, or a core."""

    workers: int | None = None

    def __call__(self, writing: Writing, names: list[str], done: Callable[[int], object]) -> None:
        """Raises UserError without Ray, or where it cannot start."""
        if not names:
            return
        ray = _started()
        accelerated = pick_device().type == "cuda"
        each = {"num_gpus": 1} if accelerated else {"num_cpus": 1}
        there = ray.cluster_resources().get("GPU" if accelerated else "CPU", 1)
        workers = max(1, min(self.workers or int(there), len(names)))
        ray.data.DataContext.get_current().enable_progress_bars = False
        held = ray.put(writing)
        files = ray.data.from_items(
            [{"name": name} for name in names], override_num_blocks=len(names)
        )
        encoded = files.map_batches(
            _Worker,
            fn_constructor_args=(held,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            **each,
        )
        try:
            for row in encoded.iter_rows():
                done(int(row["photos"]))
        except ray.exceptions.RayError as error:
            cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
            raise UserError(f"a worker of Ray failed: {cause}") from None


def _started() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'softvq[ray]'") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError, ConnectionError) as error:
            raise UserError(f"Ray cannot start ({error})") from None
    return ray
