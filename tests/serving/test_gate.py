"""What every request passes first: the host or a key, and the limits of its body."""

import asyncio
import json
from itertools import chain

import pytest

from blip3o_hf.serving.gate import Gate
from blip3o_hf.serving.metrics import Metrics

PATHS = ["/v1/models", "/health", "/metrics"]


class Case:
    """One request through a gate: what the application behind it got, and what was sent back."""

    def __init__(self, keys=(), max_body=100, body_seconds=0.2):
        self.metrics, self.bodies, self.sent = Metrics(), [], []
        self.gate = Gate(self._app, self.metrics, PATHS, keys, ("localhost",), max_body, body_seconds)

    async def _app(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await send("life")
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(message["body"])
        self.after = await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    def ask(self, parts=({"type": "http.request", "body": b""},), path="/v1/models", kind="http", wait=0.0, **headers):
        """The status of the answer; the parts of the body come `wait` seconds one after another."""
        self.sent, left = [], chain(parts, [{"type": "http.disconnect"}])
        headers = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}

        async def receive():
            await asyncio.sleep(wait)
            return next(left)

        async def send(message):
            self.sent.append(message)

        lines = [(name.encode(), value.encode()) for name, value in headers.items()]
        asyncio.run(self.gate({"type": kind, "path": path, "headers": lines}, receive, send))
        return self.sent[0].get("status") if self.sent and isinstance(self.sent[0], dict) else None

    @property
    def error(self):
        return json.loads(self.sent[1]["body"])["error"]

    def header(self, name):
        return dict(self.sent[0]["headers"]).get(name)

    def counted(self, path, status):
        return self.metrics.registry.get_sample_value("blip3o_requests_total", {"path": path, "status": status})


def bodies(*parts):
    """Messages of a body in parts."""
    return [{"type": "http.request", "body": part, "more_body": True} for part in parts[:-1]] + [
        {"type": "http.request", "body": parts[-1]}
    ]


@pytest.mark.parametrize("said", ["Bearer one", "bearer one", "Bearer  one ", "Bearer two"])
def test_one_of_the_keys_is_enough_from_everywhere(said):
    case = Case(keys=("one", "two"))
    assert case.ask(authorization=said, host="evil.example", origin="http://elsewhere.example") == 204


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({}, "It has none."),
        ({"authorization": "Bearer three"}, "It has another one."),
        ({"authorization": "Bearer onetwo"}, "It has another one."),
        ({"authorization": "Bearer "}, "It has another one."),
        ({"authorization": "one"}, "It has another one."),
        ({"authorization": "Basic one"}, "It has another one."),
        ({"authorization": "Bearer é"}, "It has another one."),
        ({"x_api_key": "one"}, "It has none."),
    ],
)
def test_no_other_key_is(headers, text):
    case = Case(keys=("one", "two"))
    assert case.ask(**headers) == 401 and not case.bodies
    assert case.error["message"].startswith("A request must have the header `Authorization: Bearer KEY` with a key")
    assert text in case.error["message"] and "three" not in case.error["message"]
    assert (case.error["type"], case.error["code"]) == ("authentication_error", "invalid_api_key")
    assert case.header(b"www-authenticate") == b"Bearer" and case.header(b"connection") == b"close"


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_who_watches_the_server_needs_no_key(path):
    assert Case(keys=("one",)).ask(path=path) == 204


@pytest.mark.parametrize("path", ["/health/", "/Health", "//health", "/v1/models/../../health"])
def test_paths_like_the_open_ones_need_one(path):
    assert Case(keys=("one",)).ask(path=path) == 401


def test_without_keys_the_host_must_be_this_machine():
    case = Case()
    assert case.ask() == case.ask(host="127.0.0.1:8000", origin="http://127.0.0.1:8000") == 204
    assert case.ask(host="evil.example") == 403
    assert "The request was for the host 'evil.example'." in case.error["message"]
    assert (case.error["type"], case.error["code"]) == ("invalid_request_error", "host_not_allowed")
    assert case.ask(origin="http://evil.example", path="/health") == 403
    assert len(case.bodies) == 2


def test_a_body_comes_whole_and_then_what_comes_after_it():
    case = Case()
    assert case.ask(bodies(b"ab", b"", b"cd")) == 204
    assert case.bodies == [b"abcd"] and case.after["type"] == "http.disconnect"


@pytest.mark.parametrize("length", ["101", "1" * 20])
def test_a_body_that_says_it_is_too_large_is_refused(length):
    case = Case()
    assert case.ask(iter(()), content_length=length) == 413  # it would end in an error when read
    assert case.error["message"] == (
        f"A body must have at most 100 bytes. This one has {int(length):,} or more. Send smaller pictures."
    )
    assert case.error["code"] == "body_too_large" and case.header(b"connection") == b"close"


def test_a_body_that_grows_too_large_is_read_no_further():
    case, parts = Case(), iter(bodies(*[b"x" * 40] * 1000))
    assert case.ask(parts) == 413 and "This one has 120 or more." in case.error["message"]
    assert len(list(parts)) == 1000 - 6 and not case.bodies  # as much again is thrown away, so that the answer arrives
    assert Case().ask(bodies(b"x" * 60, b"x" * 40)) == 204


def test_a_slow_body_ends_in_time():
    case = Case(body_seconds=0.1)
    assert case.ask(bodies(*[b"x"] * 50), wait=0.03) == 408
    assert case.error["message"].startswith("A body must arrive within 0.1 seconds. After these, ")
    assert case.error["code"] == "timeout" and not case.bodies


def test_a_client_that_goes_away_gets_no_answer_and_is_no_failure():
    case = Case()
    assert case.ask([{"type": "http.request", "body": b"ab", "more_body": True}]) is None
    assert not case.bodies and case.counted("/v1/models", "499") == 1 and case.counted("/v1/models", "500") is None


def test_answers_are_counted_by_known_paths():
    case = Case()
    case.ask()
    case.ask(path="/v1/models/" + "x" * 1000)
    case.ask(path="/health", host="evil.example")
    counted = [case.counted(*labels) for labels in (("/v1/models", "204"), ("other", "204"), ("/health", "403"))]
    assert counted == [1, 1, 1]
    assert b"x" * 10 not in case.metrics.text()


def test_the_life_of_the_server_passes_and_sockets_do_not():
    case = Case(keys=("one",))
    case.ask(kind="lifespan")
    assert case.sent == ["life"]
    case.ask(kind="websocket")
    assert case.sent == [{"type": "websocket.close", "code": 1008}]
