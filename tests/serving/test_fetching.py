"""Pictures from the web come by https from public addresses alone, wherever a name or a redirect leads."""

import contextlib
import socket
import ssl
import threading
import time

import pytest

from blip3o_hf.serving import fetching
from blip3o_hf.serving.errors import ApiError
from blip3o_hf.serving.fetching import fetch, public_address

PUBLIC = "93.184.215.14"


@pytest.fixture
def web(monkeypatch):
    """`web(names, answers)`: addresses of hosts, and what is answered at a path; gives the requests that were sent."""
    requests = []

    def make(names, answers):
        def found(host, port, **_):
            if host not in names:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names[host]]

        def connect(connection):
            ours, theirs = socket.socketpair()
            theirs.settimeout(5)
            connection.sock = ours
            threading.Thread(target=answer, args=(connection, theirs), daemon=True).start()

        def answer(connection, theirs):
            request = theirs.recv(65536).decode()
            path = request.split()[1]
            requests.append((connection.address, connection.host, path))
            with theirs:
                theirs.sendall(answers[path])

        monkeypatch.setattr(socket, "getaddrinfo", found)
        monkeypatch.setattr(fetching.PinnedConnection, "connect", connect)
        return requests

    return make


def response(body=b"", status="200 OK", **headers):
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{key}: {headers[key]}" for key in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


def refused(url, reason, max_bytes=1000):
    with pytest.raises(ApiError) as caught:
        fetch(url, "url", max_bytes)
    error = caught.value
    assert (error.status, error.param, error.code) == (400, "url", "invalid_image_url")
    assert error.message == (
        f"`url` must be the address of a picture on a public server. It cannot be fetched: {reason}. Send a data URL."
    )


def test_a_file_is_fetched_from_the_address_that_was_looked_at(web):
    requests = web({"a.example": [PUBLIC, "93.184.215.15"]}, {"/b/c.png?d=e": response(b"picture")})
    assert fetch("https://a.example/b/c.png?d=e#f", "url", 7) == b"picture"
    assert requests == [(PUBLIC, "a.example", "/b/c.png?d=e")]


def test_a_redirect_is_followed_to_another_public_host(web):
    answers = {
        "/": response(status="302 Found", Location="/next"),
        "/next": response(status="301 Moved", Location="//b.example/last"),
        "/last": response(b"picture", Connection="close"),
    }
    requests = web({"a.example": [PUBLIC], "b.example": ["1.1.1.1"]}, answers)
    assert fetch("https://a.example", "url", 1000) == b"picture"
    assert [request[:2] for request in requests] == [(PUBLIC, "a.example")] * 2 + [("1.1.1.1", "b.example")]


ADDRESS = "only https addresses without a port or a password are fetched"


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/",
        "ftp://a.example/",
        "file:///etc/passwd",
        "gopher://a.example/",
        "a.example",
        "//a.example/",
        "https://",
        "https:///a",
        "https://a.example:8443/",
        "https://a.example:99999/",
        "https://a.example:x/",
        "https://user@a.example/",
        "https://user:password@a.example/",
        "https://:password@a.example/",
        "https://[::1/",
        "https://a.example/\r\nHost: b.example",
        "https://a.example/a b",
        "https://a.éxample/",
        "https://a.example/\x00",
        "",
    ],
)
def test_only_plain_https_is_asked(url, web):
    requests = web({"a.example": [PUBLIC]}, {})
    refused(url, ADDRESS)
    assert not requests


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "198.18.0.1",
        "192.0.2.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a00:1::1",
        "2002:808:808::1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)
def test_an_address_that_is_not_public_is_not_asked(address, web):
    requests = web({"a.example": [PUBLIC, address], "b.example": [address]}, {})
    for host in ("a.example", "b.example"):  # also one of several
        refused(f"https://{host}/", "its host is not a public one")
    assert not requests


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_a_public_address_is_asked(address, web):
    web({"a.example": [address]}, {})
    assert public_address("a.example", "url") == address


@pytest.mark.parametrize("host", ["nowhere.example", ".example", "a..example", "a" * 64 + ".example"])
def test_an_unknown_host_is_refused(host, web):
    web({}, {})
    refused(f"https://{host}/", "its host is not known")


def test_numbers_that_name_this_machine_are_refused():
    """Without a name to look up: what the system's own resolver makes of them."""
    for host in ("127.0.0.1", "[::1]", "2130706433", "0x7f.1", "127.1", "0"):
        refused(f"https://{host}/", "its host is not a public one")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://a.example/", ADDRESS),
        ("https://a.example:22/", ADDRESS),
        ("file:///etc/passwd", ADDRESS),
        ("https://private.example/", "its host is not a public one"),
        ("//private.example/", "its host is not a public one"),
        ("https://nowhere.example/", "its host is not known"),
        ("https://[::1", "it redirects to no address"),
        ("//[", "it redirects to no address"),
        ("/", "it redirects more than 3 times"),
        ("", "it redirects more than 3 times"),
    ],
)
def test_a_redirect_leads_nowhere_else(location, reason, web):
    names = {"a.example": [PUBLIC], "private.example": ["192.168.0.1"]}
    requests = web(names, {"/": response(status="302 Found", Location=location)})
    refused("https://a.example/", reason)
    assert len(requests) == (4 if reason.startswith("it redirects more") else 1)
    assert {host for _, host, _ in requests} == {"a.example"}


@pytest.mark.parametrize("status", ["404 Not Found", "204 No Content", "401 Unauthorized", "500 Error", "304 Same"])
def test_what_is_no_file_is_refused(status, web):
    web({"a.example": [PUBLIC]}, {"/": response(status=status)})
    refused("https://a.example/", f"its server answered {status[:3]}")


def test_a_large_file_is_refused_whatever_it_says(web):
    large = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 2000
    web({"a.example": [PUBLIC]}, {"/": large, "/said": response(b"x" * 1001)})
    for path in ("", "/said"):
        refused(f"https://a.example{path}", "it has more than 1,000 bytes")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "RemoteDisconnected"),
        (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "HTTPException"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "IncompleteRead"),
    ],
)
def test_a_server_that_speaks_something_else_is_refused(answer, error, web):
    web({"a.example": [PUBLIC]}, {"/": answer})
    refused("https://a.example/", f"its server does not answer ({error})")


@pytest.mark.parametrize("rest", [b"a: ", b"Content-Length: 500\r\n\r\n"], ids=["head", "body"])
def test_a_server_that_sends_a_byte_now_and_then_does_not_hold_the_thread(rest, monkeypatch):
    monkeypatch.setattr(fetching, "SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (PUBLIC, 443))])
    ours, theirs = socket.socketpair()
    ours.settimeout(5)  # of each byte, which comes before

    def connect(connection):
        connection.sock = connection.secure = ours
        threading.Thread(target=trickle, daemon=True).start()

    def trickle():
        with contextlib.suppress(OSError):  # the other side has ended
            theirs.send(b"HTTP/1.1 200 OK\r\n")
            for number in rest + b"x" * 200:
                theirs.send(bytes([number]))
                time.sleep(0.02)

    monkeypatch.setattr(fetching.PinnedConnection, "connect", connect)
    begun = time.monotonic()
    refused("https://a.example/", "it took more than 0.3 seconds")
    assert time.monotonic() - begun < 3
    theirs.close()


def test_the_certificate_must_be_that_of_the_host(monkeypatch):
    seen = {}

    class Context:
        def wrap_socket(self, raw, server_hostname, do_handshake_on_connect):
            seen.update(host=server_hostname, raw=raw)
            raise ssl.SSLCertVerificationError("no")

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (PUBLIC, 443))])
    monkeypatch.setattr(socket, "create_connection", lambda address, seconds: (address, seconds))
    monkeypatch.setattr(ssl, "create_default_context", Context)
    refused("https://a.example/", "its server does not answer (SSLCertVerificationError)")
    assert seen == {"host": "a.example", "raw": ((PUBLIC, 443), 10.0)}
