"""What a job gives, for as long as its client waits: whole, or part by part."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .answers import event_of
from .engine import Engine, Job
from .errors import GONE, ApiError

LOGGER = logging.getLogger(__name__)
END = object()
"""After the last part of a job."""


class Parts:
    """What the model's thread puts, and the server's loop gets."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, part: Any) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, part)

    async def get(self) -> Any:
        return await self._queue.get()


class Waiter:
    """
    Puts jobs into the queue, and takes them out when nobody waits any more.

    Args:
        engine: that computes them.
        seconds: that a client waits at most.
    """

    def __init__(self, engine: Engine, seconds: float):
        self.engine = engine
        self.seconds = seconds

    async def result(self, request: Request, job: Job) -> Any:
        """
        What a job gives.

        Raises:
            ApiError: when the model refuses what it was given, the queue is full, or it takes too long.
        """
        self.engine.submit(job)
        return await self._while_there(request, job, asyncio.wrap_future(job.future))

    async def stream(
        self,
        request: Request,
        job: Job,
        parts: Parts,
        told: Callable[[AsyncIterator[Any]], AsyncIterator[bytes]],
    ) -> Response:
        """
        Events of a job.

        Args:
            request: of the client.
            job: puts its parts into `parts`.
            parts: empty so far.
            told: makes events of the parts and, after them, of the result.

        Raises:
            ApiError: as `result`, for what is wrong before the first part. Later errors are events.
        """
        job.future.add_done_callback(lambda _: parts.put(END))
        self.engine.submit(job)
        first = await self._while_there(request, job, parts.get())
        if first is END:
            await self._while_there(request, job, asyncio.wrap_future(job.future))  # raises what is wrong
        end = time.monotonic() + self.seconds

        async def given() -> AsyncIterator[Any]:
            part = first
            while part is not END:
                yield part
                part = await asyncio.wait_for(parts.get(), max(0.0, end - time.monotonic()))
            yield job.future.result()

        async def sent() -> AsyncIterator[bytes]:
            try:
                async for event in told(given()):
                    yield event
            except Exception as error:  # the status is sent already
                is_said = isinstance(error, (ValueError, TypeError))
                if not is_said and not isinstance(error, asyncio.TimeoutError):
                    LOGGER.exception("a stream failed")
                message = str(error) if is_said else "The answer could not be ended."
                yield event_of({"type": "error", **ApiError(500, message).body()}, is_named=False)
            finally:
                job.cancel()

        return StreamingResponse(sent(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def _while_there(self, request: Request, job: Job, waiting: Awaitable[Any]) -> Any:
        waited = asyncio.ensure_future(waiting)
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            done, _ = await asyncio.wait({waited, gone}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            if waited in done:
                return waited.result()
        except (ValueError, TypeError) as error:  # what the model says of what it was given
            raise ApiError(400, str(error), code="invalid_request") from error
        finally:
            gone.cancel()
            if not waited.done():
                job.cancel()
                waited.cancel()
        if gone in done:
            raise ApiError(GONE, "The client went away.")
        raise ApiError(
            504,
            f"An answer takes at most {self.seconds:g} seconds. This one took longer. Ask for fewer pictures or "
            f"steps.",
            code="timeout",
        )


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


__all__ = ["Parts", "Waiter"]
