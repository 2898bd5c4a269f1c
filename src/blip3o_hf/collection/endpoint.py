"""An OpenAI-compatible endpoint: requests that are made again, errors that say what it answered, a key that stays."""

import json
from collections.abc import Mapping, Sequence
from threading import Event
from time import sleep
from typing import Any

import httpx2

from .access import check_address, check_key

MAX_BYTES = 200_000_000
"""Of an answer."""
REJECTED = "rejected by the endpoint"
MAX_WAIT = 60.0
"""Seconds between two attempts at most."""
_AGAIN = (408, 409, 425, 429)
_REJECTED = (400, 413, 422)
_POLICIES = ("policy", "moderation", "safety", "content_filter")


class Refused(Exception):
    """The endpoint refuses one request for what it asks for; other requests may be answered."""


class Rejected(OSError):
    """
    The endpoint cannot answer one request as it is. Where it answered others, as `Endpoint.has_answered` says, the
    reason is in this request; else it may be in the settings of all.

    Args:
        message: of the error.
        reason: what the endpoint says.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def pause(seconds: float, stop: Event | None) -> bool:
    """Wait; whether `stop` was set before or in this time."""
    if stop is not None:
        return stop.wait(seconds)
    sleep(seconds)
    return False


class Endpoint:
    """
    What answers `POST base_url/...`.

    Args:
        base_url: such as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        key (*optional*): sent as a bearer token to this address alone; never in an error or a log.
        num_attempts: how often a request is made that gets 429, an error of the server, or no answer.
        timeout: seconds without an answer.

    Attributes:
        has_answered: whether a request was answered, so that address, key, model and settings are right.

    Raises:
        ValueError: when `base_url` is no address, or holds a password or a query, or no header can hold the key.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        num_attempts: int = 6,
        timeout: float = 600.0,
    ):
        check_address(base_url)
        if key is not None:
            check_key(key)
        self.base_url = base_url.rstrip("/")
        self.has_answered = False
        self.num_attempts = num_attempts
        self.timeout = timeout
        self._key = key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(headers=headers, timeout=timeout)

    def post(self, path: str, body: Mapping[str, Any], stop: Event | None = None) -> dict[str, Any]:
        """
        The answer to one request.

        Args:
            path: after `base_url`, such as `/images/generations`.
            body: sent as JSON.
            stop (*optional*): once it is set, no further attempt is made.

        Raises:
            Refused: when the endpoint refuses what is asked for.
            Rejected: when it cannot answer this request as it is.
            OSError: when it does not answer, or with an error.
        """
        for attempt in range(self.num_attempts):
            seconds = None
            try:
                status, content, seconds = self._send(path, body)
            except httpx2.RequestError as error:
                problem = f"did not answer ({type(error).__name__}: {self.without_key(str(error))[:200]})"
            else:
                if status == 200:
                    answer = self._parsed(path, content)
                    self.has_answered = True
                    return answer
                problem = f"answered {status}: {self._message(content)}"
                if status not in _AGAIN and status < 500:
                    raise self._final(path, status, content, problem)
            is_last = attempt + 1 == self.num_attempts
            if is_last or pause(min(MAX_WAIT, 2.0**attempt if seconds is None else seconds), stop):
                break
        raise OSError(
            f"{self.base_url}{path} must answer. It was asked {attempt + 1} times, and at last {problem}. "
            f"Start the same command again later: it goes on where it stopped."
        )

    def _send(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes, float | None]:
        with self._client.stream("POST", self.base_url + path, json=dict(body)) as response:
            content = bytearray()
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise OSError(
                        f"An answer holds at most {MAX_BYTES:,} bytes. That of {self.base_url}{path} is larger."
                    )
            return response.status_code, bytes(content), _seconds(response.headers.get("retry-after"))

    def _parsed(self, path: str, content: bytes) -> dict[str, Any]:
        answer = _json(content)
        if not isinstance(answer, dict):
            raise OSError(
                f"{self.base_url}{path} must answer in JSON. It answered {self.without_key(_text(content))!r:.120}. "
                f"Check --base-url; it often ends with /v1."
            )
        return answer

    def _final(self, path: str, status: int, content: bytes, problem: str) -> Exception:
        if is_refusal(status, _json(content)):
            return Refused(self._message(content))
        advice = {
            401: "Check the key in the variable that --key-env names",
            403: "Check the key, and what it may do",
            404: "Check --base-url, which often ends with /v1, and the model's name",
        }.get(status, "Check the model's name and the settings of the request")
        message = f"{self.base_url}{path} must answer. It {problem}. {advice}."
        return Rejected(message, self._message(content)) if status in _REJECTED else OSError(message)

    def _message(self, content: bytes) -> str:
        answer = _json(content)
        return self.without_key(error_message(answer) or " ".join(_text(content).split()) or "nothing")[:300]

    def without_key(self, text: str) -> str:
        """A text of the endpoint or about it, in which the key is not."""
        return text if self._key is None else text.replace(self._key, "[key]")

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **further: Any) -> tuple[str, bool]:
        """
        The text of a chat model's answer, and whether it was cut off.

        Args:
            model: name of the model.
            messages: in OpenAI's form.
            further: keys of the request, such as `max_tokens` and `response_format`.

        Raises:
            Refused, OSError: as [`post`]; `OSError` also when the answer has no text.
        """
        answer = self.post("/chat/completions", {"model": model, "messages": list(messages), **further})
        try:
            choice = answer["choices"][0]
            content = choice["message"]["content"]
        except (LookupError, TypeError) as error:
            raise OSError(
                f"A chat model must answer with choices and a message. {self.base_url} did not. Check --base-url."
            ) from error
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
        if not isinstance(content, str):
            refusal = choice["message"].get("refusal")
            raise Refused(self.without_key(unicode_text(str(refusal or "no text")))[:300])
        return unicode_text(content), choice.get("finish_reason") == "length"


def unicode_text(text: str) -> str:
    """
    A text with `?` in place of half a character, which JSON can hold and files in UTF-8 cannot.

    Example:
        >>> unicode_text("a \\ud83d b")
        'a ? b'
    """
    return text.encode("utf-8", "replace").decode()


def error_message(answer: Any) -> str:
    """What an error of the API says, on one line; empty where it is none."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return " ".join(unicode_text(str(message)).split()) if message else ""


def is_refusal(status: int, answer: Any) -> bool:
    """Whether an answer refuses the content of one request."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if status not in (400, 403, 422) or not isinstance(error, Mapping):
        return False
    named = f"{error.get('code') or ''} {error.get('type') or ''}".lower()
    return any(word in named for word in _POLICIES)


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _seconds(header: str | None) -> float | None:
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:  # a date
        return None
