"""The one thread that owns the model: a bounded queue, and requests that can be computed together."""

import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

from .errors import ApiError
from .metrics import Metrics

RETRY_SECONDS = 1
"""After which a client that found the queue full may ask again."""


class Job:
    """
    One request to the model.

    Attributes:
        future: the result, or the error.
        key: jobs with equal keys are computed together; a job without one alone.
        rows: how much of a batch it takes.
        kind: a word for measurements.
    """

    kind: ClassVar[str]
    key: Hashable | None = None
    rows: int = 1

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self._is_cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled.is_set()

    def cancel(self) -> None:
        """Nobody waits for the result any more: it is taken out of the queue, or stopped."""
        self._is_cancelled.set()
        self.future.cancel()

    @classmethod
    def run(cls, jobs: Sequence[Any]) -> list[Any]:
        """Results of jobs with equal keys, in their order."""
        raise NotImplementedError


class Engine:
    """
    Computes jobs in one thread, in the order in which they came; those with equal keys together. A job of more rows
    than a batch may have is computed alone.

    Args:
        metrics: what is measured.
        max_batch: rows that are computed together at most.
        max_waiting: jobs that wait at most; further ones are refused.
        batch_wait: seconds that the first job of a batch waits for others, so that requests sent together are drawn
            together.
    """

    def __init__(self, metrics: Metrics, max_batch: int = 8, max_waiting: int = 64, batch_wait: float = 0.01):
        self.metrics = metrics
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self.batch_wait = batch_wait
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """
        Put jobs into the queue, all or none.

        Raises:
            ApiError: 429 when it is full, 503 when the server stops.
        """
        with self._changed:
            if self._is_closed:
                raise ApiError(503, "The server must be running. It stops. Ask again later.", code="stopping")
            self._drop_cancelled()
            waiting = len(self._waiting)
            if waiting + len(jobs) > self.max_waiting:
                raise ApiError(
                    429,
                    f"At most {self.max_waiting} requests wait for the model. {waiting} do. Ask again later.",
                    code="queue_full",
                    headers={"Retry-After": str(RETRY_SECONDS)},
                )
            self._waiting.extend(jobs)
            self.metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def close(self) -> None:
        """Finish what was accepted, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)

    def _next_batch(self) -> list[Job] | None:
        """The first job that waits and those that can be computed with it, or none; `None` when there will be none."""
        with self._changed:
            self._drop_cancelled()
            while not self._waiting:
                if self._is_closed:
                    return None
                self._changed.wait()
            key = self._waiting[0].key
            if key is not None:
                end = time.monotonic() + self.batch_wait
                while (left := end - time.monotonic()) > 0 and self._rows(key) < self.max_batch:
                    self._changed.wait(left)
            self._drop_cancelled()
            if not self._waiting:
                return []
            first = self._waiting[0]
            batch, rest, rows = [], deque(), 0
            for job in self._waiting:
                is_first = not batch
                fits = job.key is not None and job.key == first.key and rows + job.rows <= self.max_batch
                if is_first or fits:
                    batch.append(job)
                    rows += job.rows
                else:
                    rest.append(job)
            self._waiting = rest
            self.metrics.waiting.set(len(rest))
            return batch

    def _drop_cancelled(self) -> None:
        """Nothing that a client has sent is kept for longer than it waits."""
        self._waiting = deque(job for job in self._waiting if not job.is_cancelled)

    def _rows(self, key: Hashable) -> int:
        return sum(job.rows for job in self._waiting if job.key == key)

    def _run(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        try:
            results = type(jobs[0]).run(jobs)
        except BaseException as error:  # whatever it is belongs to the one who asked, and the thread goes on
            if len(jobs) > 1:  # one of them may be at fault
                for job in jobs:
                    self._run([job])
                return
            jobs[0].future.set_exception(error)
        else:
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)
        self.metrics.ran(jobs[0].kind, sum(job.rows for job in jobs), time.perf_counter() - started)


__all__ = ["Engine", "Job"]
