"""The fields of requests: each one checked, named in its error, and none unknown."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from ..checks import check_unicode
from .errors import ApiError, wrong


def parsed(body: bytes) -> dict[str, Any]:
    """
    The object that a body of JSON holds.

    Raises:
        ApiError: when it holds none.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(
            400,
            f"The body must be JSON. It is not: {str(error)[:80] or 'too deep'}. Check what is sent.",
            code="bad_json",
        ) from error
    if not isinstance(value, dict):
        raise ApiError(400, f"The body must be a JSON object. Got {value!r:.60}. Send fields by their names.")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def checked_text(param: str, text: str, max_length: int) -> str:
    """
    A text that a tokenizer can read.

    Raises:
        ApiError: when it is too long, or holds half a character.
    """
    if len(text) > max_length:
        raise ApiError(
            400,
            f"`{param}` must be at most {max_length:,} letters long. It has {len(text):,}. Make it shorter.",
            param,
            "invalid_value",
        )
    try:
        check_unicode([text], f"`{param}`")
    except ValueError as error:
        raise ApiError(400, str(error), param, "invalid_value") from error
    return text


class Fields:
    """
    The fields of one request, read one by one.

    Args:
        given: as they came; those of a form are texts.
        are_texts: whether numbers and truth come as texts.
    """

    def __init__(self, given: Mapping[str, Any], are_texts: bool = False):
        self.given = {name: value for name, value in given.items() if value is not None}
        self.are_texts = are_texts
        self._read: set[str] = set()

    def value(self, name: str) -> Any:
        self._read.add(name)
        return self.given.get(name)

    def text(self, name: str, max_length: int, required: bool = False) -> str | None:
        """A text that is not empty."""
        value = self.value(name)
        if value is None and not required:
            return None
        if not isinstance(value, str) or (required and not value.strip()):
            raise wrong(name, "a text", value, "Say something.")
        return checked_text(name, value, max_length)

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        value = self.value(name)
        if value is None:
            return default
        if self.are_texts and isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 20:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise wrong(name, f"a whole number from {low} to {high}", value, "Choose one.")
        return value

    def number(self, name: str, low: float, high: float) -> float | None:
        value = self.value(name)
        if value is None:
            return None
        if self.are_texts and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise wrong(name, f"a number from {low:g} to {high:g}", value, "Choose one.")
        return float(value)

    def truth(self, name: str) -> bool | None:
        value = self.value(name)
        if self.are_texts and isinstance(value, str):
            value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower(), value)
        if value is not None and not isinstance(value, bool):
            raise wrong(name, "true or false", value, "Choose one.")
        return value

    def choice(self, name: str, values: Iterable[str], default: str | None = None) -> str | None:
        value = self.value(name)
        values = list(values)
        if value is None:
            return default
        if value not in values:
            raise wrong(name, f"one of {', '.join(values)}", value, "Choose one, or leave it out.")
        return value

    def ignored(self, *names: str) -> None:
        """Fields that change nothing here, and that clients send."""
        self._read.update(names)

    def refused(self, name: str, reason: str) -> None:
        """
        Raises:
            ApiError: when this field is given.
        """
        if self.value(name) not in (None, [], {}, False):
            raise ApiError(
                400, f"`{name}` cannot be used here: {reason}. Leave it out.", name, "unsupported_parameter"
            )

    def finish(self) -> None:
        """
        Raises:
            ApiError: when there is a field that nobody read.
        """
        unknown = sorted(set(self.given) - self._read)
        if unknown:
            raise ApiError(
                400,
                f"A request has the fields that this path knows. Got {', '.join(map(repr, unknown))[:200]}. Known are "
                f"{', '.join(sorted(self._read))}.",
                unknown[0][:80],
                "unknown_parameter",
            )


__all__ = ["Fields", "checked_text", "parsed"]
