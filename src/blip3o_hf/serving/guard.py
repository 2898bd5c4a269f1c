"""Who may use the app's server: browsers that were sent to it, and no page of another site."""

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TUNNELS = ".gradio.live"


def hosts_of_machine(*names: str, share: bool = False) -> tuple[str, ...]:
    """
    The names under which browsers may ask for the app. Addresses made of numbers are always allowed.

    Args:
        names: further ones; one that begins with a dot stands for every name below it.
        share: whether the app has a public address from gradio's makers.
    """
    machine = socket.gethostname().lower()
    return ("localhost", machine, f"{machine}.local", *map(str.lower, names), *((TUNNELS,) if share else ()))


class HostGuard:
    """
    ASGI middleware that refuses a request for another host, and one that a page of another site sends.

    The app listens on the user's machine, where any page in the user's browser can reach it: directly, or after its
    own name came to point to this machine (DNS rebinding). The browser says which name it asks for (`Host`) and whose
    page it is that asks (`Origin`).

    Args:
        app: what to guard.
        hosts: names that are allowed, as [`hosts_of_machine`] has them.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], hosts: Iterable[str]):
        self.app = app
        self.hosts = tuple(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or (reason := self.reason(scope["headers"])) is None:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": reason.encode()})

    def reason(self, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request with these headers is refused; `None` where it is not."""
        return refusal(headers, self.hosts)


def refusal(headers: Iterable[tuple[bytes, bytes]], hosts: Iterable[str]) -> str | None:
    """
    Why a request is refused; `None` where it is not. For servers of any kind.

    Args:
        headers: of the request, names and values.
        hosts: names that are allowed, as [`hosts_of_machine`] has them.
    """
    said = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
    host = said.get("host", "")
    if not _allows(_name(host), hosts):
        return (
            f"This app answers requests for this machine. The request was for the host {host!r:.80}. "
            f"To allow it, start the app with --allow-host {_name(host)[:80] or 'NAME'}."
        )
    origin = said.get("origin")
    if origin is not None and _netloc(origin) != host.lower():
        return f"This app answers its own pages. The request came from a page of {origin!r:.80}."
    return None


def _allows(name: str, hosts: Iterable[str]) -> bool:
    """Whether a host may be asked for: one of the names, or an address made of numbers."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return any(name == host or (host.startswith(".") and name.endswith(host)) for host in hosts)
    return True


def _netloc(origin: str) -> str:
    """Of an `Origin` header: the host and the port."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # brackets that do not close
        return ""


def _name(host: str) -> str:
    """Of a `Host` header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:  # brackets that do not close
        return ""
