"""Errors of the server, each one an answer in OpenAI's form."""

from collections.abc import Mapping
from typing import Any

TYPES = {401: "authentication_error", 429: "rate_limit_error"}
"""Names of OpenAI's errors by status; other statuses from 500 on are the server's, the rest the request's."""

GONE = 499
"""Status of a request whose client went away; nobody sees it but the measurements."""


class ApiError(Exception):
    """
    What a client did wrong, or what the server cannot do now.

    Args:
        status: of HTTP.
        message: what the contract is, what came, and the way out.
        param: the field of the request that is wrong.
        code: a word that programs can compare.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        param = None if self.param is None else _encodable(self.param)
        return {"error": {"message": _encodable(self.message), "type": kind, "param": param, "code": self.code}}


def _encodable(text: str) -> str:
    """A text with half characters, which names of fields may hold, as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def wrong(param: str, contract: str, received: Any, way_out: str) -> ApiError:
    """A field that breaks its contract."""
    return ApiError(400, f"`{param}` must be {contract}. Got {received!r:.80}. {way_out}", param, "invalid_value")


__all__ = ["GONE", "ApiError", "wrong"]
