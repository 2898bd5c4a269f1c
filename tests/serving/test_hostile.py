"""Requests that nobody should send are answered with one clear error, and the server goes on as before."""

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from openai import OpenAI
from tests.serving.hostile_requests import BODY_SECONDS, KEY, MAX_BODY, Hostile, hostile_requests

SEED = 20261129
SECRET = "the purple secret of another client"
INNER = re.compile(r"Traceback|File \"|site-packages|\.py\b|/work|/tmp|/usr|/home|0x[0-9a-f]{6}|<[a-z_.]+ object")


@pytest.fixture(scope="module")
def servers(make_server, listening):
    """One without a key, which fetches pictures, and one with a key; both with small limits."""
    limits = {"max_body": MAX_BODY, "body_seconds": BODY_SECONDS, "max_batch": 4}
    with ExitStack() as stack:
        yield [
            stack.enter_context(listening(make_server(**limits, **settings)))
            for settings in ({"allow_image_urls": True}, {"api_keys": (KEY,)})
        ]


def sent(address, request: Hostile) -> bytes:
    """All that comes back for a request."""
    with socket.create_connection(address, timeout=20) as connection:
        try:
            for part in request.parts:
                connection.sendall(part)
                time.sleep(request.pause)
            if request.is_left:
                return b""
            received = b""
            while part := connection.recv(65536):
                received += part
        except (ConnectionResetError, BrokenPipeError):  # it answered before it had read everything
            while not request.is_left and (part := _rest(connection)):
                received += part
    return received


def _rest(connection) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def fault(request: Hostile, received: bytes) -> str | None:
    """What is wrong with an answer, if anything is."""
    if request.is_left:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b" ")[1:2]
    if not status or not re.fullmatch(rb"4\d\d", status[0]):
        return f"the status is {status}"
    if SECRET.encode() in received or INNER.search(received.decode("utf-8", "replace")):
        return "it tells too much"
    if not request.is_http:
        return None if status[0] in (b"400", b"403", b"404") else f"the status is {status}"
    try:
        error = json.loads(body)
    except ValueError:
        return "it is no JSON"
    if list(error) != ["error"] or set(error["error"]) != {"message", "type", "param", "code"}:
        return "it has another form"
    message, kind = error["error"]["message"], error["error"]["type"]
    if not isinstance(message, str) or not 20 < len(message) < 1000 or not message.endswith("."):
        return "it is no message"
    expected = "authentication_error" if status[0] == b"401" else "invalid_request_error"
    return None if kind == expected else f"the type is {kind}"


def campaign(servers, seed: int, number: int) -> None:
    """Send so many hostile requests from eight clients at once, between two honest ones."""
    open_server, _ = servers
    with OpenAI(base_url=f"{open_server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:

        def honest():
            settings = {"seed": 1, "num_inference_steps": 2, "plan": False, "num_attempts": 1}
            drawn = client.images.generate(prompt=SECRET, extra_body=settings).data[0].b64_json
            messages = [{"role": "user", "content": f"what is {SECRET}?"}]
            said = client.chat.completions.create(model="blip3o-tiny", messages=messages, modalities=["text"])
            return drawn, said.choices[0].message.content

        before = honest()
        requests = list(hostile_requests(seed, number))
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda each: sent(servers[each.needs_key].address, each), requests))
        assert honest() == before
    faults = [
        f"{request.name}: {found}. {received[-300:]!r}"
        for request, received in zip(requests, answers, strict=True)
        if (found := fault(request, received)) is not None
    ]
    assert not faults, "\n".join(faults)
    for server in servers:
        counted = server.server.metrics.text().decode()
        assert 'status="500"' not in counted and 'status="504"' not in counted
        assert "blip3o_waiting_jobs 0.0" in counted


def test_hostile_requests_are_answered(servers):
    campaign(servers, SEED, 300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_more_hostile_requests_are_answered(servers, seed):
    campaign(servers, seed, 1000)
