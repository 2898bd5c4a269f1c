"""A page of another site cannot drive the app, neither by its address nor by a name that came to point to it."""

import asyncio
import socket
import urllib.error
import urllib.request

import pytest

from blip3o_hf.serving.guard import HostGuard, hosts_of_machine


def answers(headers, kind="http", **names):
    """What the server sends for a request with these headers, and whether the app behind the guard saw it."""
    sent, seen = [], []

    async def app(scope, receive, send):
        seen.append(scope)

    async def send(message):
        sent.append(message)

    guard = HostGuard(app, hosts_of_machine("127.0.0.1", "shapes.example.org", ".models.example.net", **names))
    scope = {"type": kind, "headers": [(key.encode(), value.encode()) for key, value in headers.items()]}
    asyncio.run(guard(scope, None, send))
    return sent, bool(seen)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:7860"},
        {"host": "localhost:7860", "origin": "http://localhost:7860"},
        {"host": "LOCALHOST"},
        {"host": "[::1]:7860", "origin": "http://[::1]:7860"},
        {"host": "192.168.1.7:7860"},
        {"host": socket.gethostname()},
        {"host": "shapes.example.org", "origin": "https://shapes.example.org"},
        {"host": "a.b.models.example.net"},
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_the_apps_own_pages_are_answered(headers, kind):
    assert answers(headers, kind) == ([], True)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"host": "evil.example"}, "The request was for the host 'evil.example'. To allow it, start the app with "),
        ({"host": "evil.example:7860", "origin": "http://evil.example:7860"}, "--allow-host evil.example."),
        ({"host": "localhost.evil.example"}, "for the host 'localhost.evil.example'"),
        ({"host": "models.example.net.evil.example"}, "for the host"),
        ({"host": "x.gradio.live"}, "for the host 'x.gradio.live'"),
        ({}, "for the host ''"),
        ({"host": "[::1"}, "for the host"),
        ({"host": "127.0.0.1:7860", "origin": "http://evil.example"}, "from a page of 'http://evil.example'"),
        ({"host": "127.0.0.1:7860", "origin": "null"}, "from a page of 'null'"),
        ({"host": "127.0.0.1:7860", "origin": "http://["}, "from a page of 'http://['"),
        ({"host": "localhost:7860", "origin": "http://localhost:3000"}, "from a page of 'http://localhost:3000'"),
    ],
)
def test_other_hosts_and_pages_of_other_sites_are_refused(headers, reason):
    (start, body), seen = answers(headers)
    assert start["status"] == 403 and reason in body["body"].decode() and not seen
    assert answers(headers, "websocket") == ([{"type": "websocket.close", "code": 1008}], False)


def test_a_shared_app_is_answered_at_its_public_address():
    assert answers({"host": "x.gradio.live"}, share=True) == ([], True)


def test_what_is_no_request_passes():
    assert answers({}, "lifespan") == ([], True)


def test_the_served_page_is_guarded(pipeline):
    """By a request as another site's page would send it, once its name points here."""
    gradio = pytest.importorskip("gradio", minversion="6")
    from blip3o_hf.app.page import build_page, serve

    page = build_page(pipeline)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launch = page.launch
    page.launch = lambda **settings: launch(**settings, prevent_thread_lock=True, quiet=True)
    try:
        serve(page, "127.0.0.1", port)
        url = f"http://127.0.0.1:{port}/config"
        assert urllib.request.urlopen(url).status == 200
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(urllib.request.Request(url, headers=headers))
    finally:
        gradio.close_all()
