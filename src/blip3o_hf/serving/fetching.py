"""Pictures from other servers: https alone, from public addresses alone, also after a redirect."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urljoin, urlsplit

from .errors import ApiError

SECONDS = 10.0
MAX_REDIRECTS = 3
PORT = 443
OTHERS = [ipaddress.ip_network(name) for name in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "fec0::/10")]
"""Networks whose addresses hold others, which a gateway would ask, or are old private ones."""


class PinnedConnection(HTTPSConnection):
    """
    A connection to one address that was looked at before: a name could stand for another one the next time.

    Args:
        host: whose certificate must be shown.
        address: where it is.
    """

    def __init__(self, host: str, address: str):
        super().__init__(host, PORT, timeout=SECONDS)
        self.address = address
        self.secure: ssl.SSLSocket | None = None
        self.is_ended = False

    def connect(self) -> None:
        raw = socket.create_connection((self.address, PORT), SECONDS)
        context = ssl.create_default_context()
        self.sock = self.secure = context.wrap_socket(raw, server_hostname=self.host, do_handshake_on_connect=False)
        self.secure.do_handshake()

    def end(self) -> None:
        """From another thread: whoever reads finds the end."""
        self.is_ended = True
        if self.secure is not None:
            with suppress(OSError):  # it has ended itself
                socket.socket.shutdown(self.secure, socket.SHUT_RDWR)


def fetch(url: str, param: str, max_bytes: int) -> bytes:
    """
    What is at an address of the web.

    Args:
        url: `https://...`.
        param: field of the request, for errors.
        max_bytes: more is refused.

    Raises:
        ApiError: when it is not https, is or leads to an address that is not public, or does not answer with a file.
    """
    for _ in range(MAX_REDIRECTS + 1):
        parts = _https(url, param)
        host = parts.hostname or ""
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with _answer(host, public_address(host, param), path, param) as response:
            if response.status in (301, 302, 303, 307, 308):
                url = _joined(url, response.getheader("location") or "", param)
                continue
            if response.status != 200:
                raise _refused(param, f"its server answered {response.status}")
            return _content(response, param, max_bytes)
    raise _refused(param, f"it redirects more than {MAX_REDIRECTS} times")


def _content(response: HTTPResponse, param: str, max_bytes: int) -> bytes:
    data = bytearray()
    while part := response.read1(65536):
        data += part
        if len(data) > max_bytes:
            raise _refused(param, f"it has more than {max_bytes:,} bytes")
    return bytes(data)


def public_address(host: str, param: str) -> str:
    """
    An address of a name, all of whose addresses are public.

    Raises:
        ApiError: when it has none, or one of this machine or of a private network.
    """
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise _refused(param, "its host is not known") from error
    if not found or not all(_is_public(address) for address in found):
        raise _refused(param, "its host is not a public one")
    return found[0]


def _is_public(address: str) -> bool:
    value = ipaddress.ip_address(address.partition("%")[0])
    if value.version == 6:
        value = value.ipv4_mapped or value
    is_other = value.is_multicast or value.is_reserved or any(value in network for network in OTHERS)
    return value.is_global and not is_other


def _https(url: str, param: str):
    try:
        parts = urlsplit(url)
        is_right = parts.scheme == "https" and bool(parts.hostname) and parts.port in (None, PORT)
    except ValueError:
        is_right = False
    if not is_right or parts.username is not None or not url.isascii() or not url.isprintable() or " " in url:
        raise _refused(param, "only https addresses without a port or a password are fetched")
    return parts


def _joined(url: str, location: str, param: str) -> str:
    """Where a redirect leads."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise _refused(param, "it redirects to no address") from error


@contextmanager
def _answer(host: str, address: str, path: str, param: str) -> Generator[HTTPResponse]:
    connection = PinnedConnection(host, address)
    limit = threading.Timer(SECONDS, connection.end)  # a server that sends a byte now and then meets no other limit
    limit.start()
    try:
        connection.request("GET", path, headers={"User-Agent": "blip3o-hf", "Accept": "image/*"})
        yield connection.getresponse()
        if connection.is_ended:  # what was read may be a part
            raise _refused(param, f"it took more than {SECONDS:g} seconds")
    except (OSError, HTTPException) as error:
        raise _refused(param, f"its server does not answer ({type(error).__name__})") from error
    finally:
        limit.cancel()
        connection.close()


def _refused(param: str, reason: str) -> ApiError:
    return ApiError(
        400,
        f"`{param}` must be the address of a picture on a public server. It cannot be fetched: {reason}. Send a data "
        f"URL.",
        param,
        "invalid_image_url",
    )


__all__ = ["fetch", "public_address"]
