"""Batches: a step's rows, made from the seed and the step's number alone, ahead of time in other processes."""

import multiprocessing
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zigzag.training.config import Stage, TrainingConfig
from zigzag.training.documents import Document, Documents
from zigzag.training.pieces import Ids, Pieces

AHEAD = 3  # batches that each process works ahead


class Batch(NamedTuple):
    """ids [rows, length + 1] int16; kinds [rows, length + 1] uint8."""

    ids: Ids
    kinds: NDArray[np.uint8]


class Batches:
    """Makes the batch of any step; can be sent to another process."""

    def __init__(self, pieces: Pieces, config: TrainingConfig) -> None:
        self.config, self.documents = config, Documents(pieces, config)

    def batch(self, stage: Stage, step: int) -> Batch:
        """The rows of a step; their shares by task are those of the stage's mix, as nearly as whole rows allow."""
        rng = np.random.default_rng((self.config.seed, step))
        names, shares = list(stage.mix), np.array(list(stage.mix.values()))
        places = (np.arange(stage.rows) + rng.random()) / stage.rows
        tasks = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], places, side="right")
        rows = [self.row(rng, names[task], stage.length + 1) for task in tasks]
        return Batch(np.stack([row.ids for row in rows]), np.stack([row.kinds for row in rows]))

    def row(self, rng: np.random.Generator, task: str, length: int) -> Document:
        """Documents of one task until nothing fits; then text fills the row."""
        done: list[Document] = []
        room = length
        sums = self.documents.sums(rng)
        while room and task != "text":
            document = next(sums) if task == "sums" else self.documents.makers[task](rng, room)
            if document is None or len(document.ids) > room:
                break
            done.append(document)
            room -= len(document.ids)
        if room:
            done.append(self.documents.text(rng, room))
        return Document(np.concatenate([d.ids for d in done]), np.concatenate([d.kinds for d in done]))


def ahead(batches: Batches, plan: list[tuple[Stage, int]], workers: int) -> Generator[Batch, None, None]:
    """The batches of (stage, step) in `plan`, in order; `workers` processes make them ahead, or with 0 none does."""
    if workers == 0:
        yield from (batches.batch(stage, step) for stage, step in plan)
        return
    # spawn: a process forked from one that uses a GPU or threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(batches,)) as pool:
        waiting: deque[Future[Batch]] = deque()
        coming = iter(plan)
        try:
            for stage, step in coming:
                waiting.append(pool.submit(_make, stage, step))
                if len(waiting) >= AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_batches: Batches | None = None  # of a worker process


def _start(batches: Batches) -> None:
    global _batches
    _batches = batches


def _make(stage: Stage, step: int) -> Batch:
    if _batches is None:
        raise RuntimeError("_start must run in a worker process before _make does")
    return _batches.batch(stage, step)
