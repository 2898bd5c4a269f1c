"""The address of an endpoint and the key to it: checked before a library does, whose errors would show a key."""

import os
import re
from urllib.parse import urlsplit

import httpx2


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
    check_key(key)
    return key


def check_key(key: str) -> None:
    """
    Raises:
        ValueError: when a header could not hold it, which libraries would say with the key in their error.
    """
    if not key or not key.isascii() or not key.isprintable() or any(letter in key for letter in " \"'\\"):
        raise ValueError(
            "A key must be printable ASCII without spaces and quotes. This one is not. Copy it again, and alone."
        )


def check_address(base_url: str, option: str = "--base-url") -> None:
    """
    Args:
        option: what the address is called in errors.

    Raises:
        ValueError: when it is no address, or may hold a password; then it is not printed.
    """
    if any(letter in base_url for letter in "@?#"):
        raise ValueError(
            f"{option} must hold neither a password nor a query. This one does. Put the key into an environment "
            "variable and name it as --key-env."
        )
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(base_url)
    except (ValueError, httpx2.InvalidURL):
        is_address = False
    if not is_address:
        raise ValueError(f"{option} must be an address such as http://localhost:8000/v1. Got {base_url[:80]!r}.")
