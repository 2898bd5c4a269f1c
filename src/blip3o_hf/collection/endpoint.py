"""An OpenAI-compatible endpoint: requests that are made again, errors that say what it answered, a key that stays."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from time import sleep
from typing import Any
from urllib.parse import urlsplit

import httpx2

MAX_BYTES = 200_000_000
"""Of an answer."""
MAX_WAIT = 60.0
"""Seconds between two attempts at most."""
_AGAIN = (408, 409, 425, 429)
_POLICIES = ("policy", "moderation", "safety", "content_filter")


class Refused(Exception):
    """The endpoint refuses one request for what it asks for; other requests may be answered."""


def read_key(variable: str | None) -> str | None:
    """
    A key from an environment variable; `None` where none is named.

    Raises:
        ValueError: when there is no such variable, or it holds no key; the message never holds a key.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        # What is not written as a variable may be the key itself.
        named = f"called {variable}" if re.fullmatch("[A-Z][A-Z0-9_]{,39}", variable) else "of the name that was given"
        raise ValueError(
            f"--key-env names an environment variable that holds the key. There is none {named}. Set it with "
            f"`export`; never write the key itself into a command."
        )
    _check_key(key)
    return key


def _check_key(key: str) -> None:
    """
    Raises:
        ValueError: when a header could not hold it, which libraries would say with the key in their error.
    """
    if not key or not key.isascii() or not key.isprintable() or any(letter in key for letter in " \"'\\"):
        raise ValueError(
            "A key must be printable ASCII without spaces and quotes. This one is not. Copy it again, and alone."
        )


def _check_address(base_url: str) -> None:
    """
    Raises:
        ValueError: when it is no address, or may hold a password; then it is not printed.
    """
    if any(letter in base_url for letter in "@?#"):
        raise ValueError(
            "--base-url must hold neither a password nor a query. This one does. Put the key into an environment "
            "variable and name it as --key-env."
        )
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(base_url)
    except (ValueError, httpx2.InvalidURL):
        is_address = False
    if not is_address:
        raise ValueError(f"--base-url must be an address such as http://localhost:8000/v1. Got {base_url[:80]!r}.")


class Endpoint:
    """
    What answers `POST base_url/...`.

    Args:
        base_url: such as `https://api.openai.com/v1` or `http://localhost:8000/v1`.
        key (*optional*): sent as a bearer token to this address alone; never in an error or a log.
        num_attempts: how often a request is made that gets 429, an error of the server, or no answer.
        timeout: seconds without an answer.

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
        _check_address(base_url)
        if key is not None:
            _check_key(key)
        self.base_url = base_url.rstrip("/")
        self.num_attempts = num_attempts
        self.timeout = timeout
        self._key = key
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._client = httpx2.Client(headers=headers, timeout=timeout)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """
        The answer to one request.

        Args:
            path: after `base_url`, such as `/images/generations`.
            body: sent as JSON.

        Raises:
            Refused: when the endpoint refuses what is asked for.
            OSError: when it does not answer, or with an error.
        """
        for attempt in range(self.num_attempts):
            pause = None
            try:
                status, content, pause = self._send(path, body)
            except httpx2.RequestError as error:
                problem = f"did not answer ({type(error).__name__}: {self.without_key(str(error))[:200]})"
            else:
                if status == 200:
                    return self._parsed(path, content)
                problem = f"answered {status}: {self._message(content)}"
                if status not in _AGAIN and status < 500:
                    raise self._final(path, status, content, problem)
            if attempt + 1 < self.num_attempts:
                sleep(min(MAX_WAIT, 2.0**attempt if pause is None else pause))
        raise OSError(
            f"{self.base_url}{path} must answer. It was asked {self.num_attempts} times, and at last {problem}. "
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
        return OSError(f"{self.base_url}{path} must answer. It {problem}. {advice}.")

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
            raise Refused(self.without_key(str(refusal or "no text"))[:300])
        return content, choice.get("finish_reason") == "length"


def error_message(answer: Any) -> str:
    """What an error of the API says, on one line; empty where it is none."""
    error = answer.get("error") if isinstance(answer, Mapping) else None
    message = error.get("message") if isinstance(error, Mapping) else error
    return " ".join(str(message).split()) if message else ""


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
