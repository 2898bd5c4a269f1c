"""What every request passes before it is read: the host, the key, and the limits of its body."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from starlette.responses import JSONResponse

from .errors import GONE, ApiError
from .guard import Receive, Scope, Send, refusal
from .metrics import Metrics

DISCARD_SECONDS = 1.0
"""For which the body of a refused request is read on."""
OPEN = ("/health", "/metrics")
"""Paths that need no key."""


class Gate:
    """
    ASGI middleware. The body of a request is read here, whole, so that no client can hold the rest of the server.

    Args:
        app: what answers.
        metrics: what is measured.
        paths: that are told apart in measurements.
        keys: one of which must come with a request; with none, everybody may ask, by the names in `hosts`.
        hosts: as [`hosts_of_machine`] has them.
        max_body: bytes.
        body_seconds: for all of them.
    """

    def __init__(
        self,
        app: Any,
        metrics: Metrics,
        paths: Iterable[str],
        keys: Sequence[str],
        hosts: Sequence[str],
        max_body: int,
        body_seconds: float,
    ):
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)
        self.digests = [_digest(key) for key in keys]
        self.hosts = hosts
        self.max_body = max_body
        self.body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        started, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            try:
                self._check(scope)
                body = await self._body(scope, receive)
            except ApiError as error:
                if error.status != 408:
                    await self._discard(receive)
                response = JSONResponse(error.body(), error.status, {**error.headers, "Connection": "close"})
                return await response(scope, receive, watched)
            if body is None:
                status = GONE
            else:
                await self.app(scope, _replayed(body, receive), watched)
        finally:
            path = next((path for path in self.paths if _is_at(scope["path"], path)), "other")
            self.metrics.answered(path, status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """
        Raises:
            ApiError: when this client may not ask.
        """
        if not self.digests:
            if (reason := refusal(scope["headers"], self.hosts)) is not None:
                raise ApiError(403, reason, code="host_not_allowed")
            return
        if scope["path"] in OPEN:
            return
        said = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = said.partition(b" ")
        given = hashlib.sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]  # all of them: no answer is faster
        if kind.lower() != b"bearer" or not any(matches):
            raise ApiError(
                401,
                "A request must have the header `Authorization: Bearer KEY` with a key of this server. It has "
                + ("another one." if said else "none.")
                + " Ask whoever runs the server.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; `None` when the client went away."""
        said = dict(scope["headers"]).get(b"content-length", b"0")
        if said.isdigit() and int(said) > self.max_body:
            raise self._too_large(int(said))
        body, end = bytearray(), time.monotonic() + self.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError as error:
                raise ApiError(
                    408,
                    f"A body must arrive within {self.body_seconds:g} seconds. After these, {len(body):,} bytes were "
                    f"there. Send it again.",
                    code="timeout",
                ) from error
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise self._too_large(len(body))
            if not message.get("more_body"):
                return bytes(body)

    async def _discard(self, receive: Receive) -> None:
        """Read on for a moment: where a connection closes with bytes unread, the answer may be lost on its way."""
        size, end = 0, time.monotonic() + DISCARD_SECONDS
        with suppress(asyncio.TimeoutError):
            while size <= self.max_body:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return

    def _too_large(self, size: int) -> ApiError:
        return ApiError(
            413,
            f"A body must have at most {self.max_body:,} bytes. This one has {size:,} or more. Send smaller pictures.",
            code="body_too_large",
        )


def _is_at(path: str, pattern: str) -> bool:
    """Whether a path is one of a pattern, whose end may be a name in braces."""
    fixed, brace, _ = pattern.partition("{")
    return path.startswith(fixed) and len(path) > len(fixed) if brace else path == pattern


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What an application receives: the body, and then what comes after it."""
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Any:
        return next(parts, None) or await receive()

    return again


__all__ = ["Gate"]
