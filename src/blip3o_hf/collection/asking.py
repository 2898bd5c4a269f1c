"""Many requests at a time to one endpoint: what was asked is never thrown away, whatever ends a run."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from threading import Event
from typing import Generic, TypeVar

from .endpoint import Endpoint, Rejected

MAX_REJECTED = 8
"""After so many rejected requests and none that was answered, the settings are wrong, and nothing more is asked."""

Request = TypeVar("Request")
Result = TypeVar("Result")


class Asking(Generic[Request, Result]):
    """
    Asks an endpoint in several threads.

    Args:
        endpoint: is asked; it says whether it has answered anything.
        ask: asks one request, and makes no further attempt once its event is set.
        requests: by their names.
        at_once: requests that wait for an answer at the same time.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        ask: Callable[[Request, Event], Result],
        requests: Iterable[tuple[str, Request]],
        at_once: int,
    ):
        self.endpoint = endpoint
        self.ask = ask
        self.at_once = at_once
        self._rest = iter(requests)
        self._stop = Event()
        self._waiting: dict[Future[Result], str] = {}
        self._rejected: dict[str, Rejected] = {}
        self._failed: BaseException | None = None

    def results(self) -> Generator[tuple[str, Result | Rejected]]:
        """
        The name of each request with its result, as they come. After an error or an interruption nothing more is
        asked, and what was already asked is still given before it is raised. A rejected request is a result once
        another one was answered, and else an error.

        Raises:
            OSError: the first one of an endpoint, with the name of the request.
        """
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                while self._send(pool):
                    for future in self._done():
                        yield from self._result(self._waiting.pop(future), future)
                    while self._rejected and self.endpoint.has_answered:
                        yield self._rejected.popitem()
            finally:
                self._stop.set()
        for name in sorted(self._rejected):
            self._fail(name, self._rejected[name])
        if self._failed is not None:
            raise self._failed

    def _send(self, pool: ThreadPoolExecutor) -> bool:
        """Ask as many as may wait; whether any does."""
        is_over = self._failed is not None or len(self._rejected) >= MAX_REJECTED
        for name, request in itertools.islice(self._rest, 0 if is_over else self.at_once - len(self._waiting)):
            self._waiting[pool.submit(self.ask, request, self._stop)] = name
        return bool(self._waiting)

    def _done(self) -> set[Future[Result]]:
        try:
            return wait(self._waiting, return_when=FIRST_COMPLETED).done
        except KeyboardInterrupt as interrupt:
            if self._stop.is_set():
                raise  # the second one: what comes now is not kept
            self._stop.set()
            self._failed = interrupt
            return set()

    def _result(self, name: str, future: Future[Result]) -> Iterator[tuple[str, Result]]:
        error = future.exception()
        if error is None:
            yield name, future.result()
        elif isinstance(error, Rejected):
            self._rejected[name] = error
        else:
            self._fail(name, error)

    def _fail(self, name: str, error: BaseException) -> None:
        if self._failed is None:
            self._failed = OSError(f"{error} It was asked for {name}.") if isinstance(error, OSError) else error
