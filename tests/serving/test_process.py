"""A server as it runs in production: asked by several clients, told to stop, and left by clients."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "a circle", "num_inference_steps": 200, "guidance_scale": 3, "plan": False, "num_attempts": 1}


@pytest.fixture
def process(tmp_path):
    """`blip3o-hf serve`, once it answers, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    environment.pop("BLIP3O_API_KEY", None)
    command = [sys.executable, "-m", "blip3o_hf.cli", "serve", "--port", str(port)]
    with open(tmp_path / "log", "w") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not _answers(port):
            assert running.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.2)
        yield running, f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_answers_all_that_it_accepted(process, tmp_path):
    running, url = process
    answered, refused = [], []

    async def client(number, until):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
            for turn in range(1000):
                extra = {"seed": 100 * number + turn, "num_inference_steps": 20}
                try:
                    answer = await client.images.generate(prompt="two red circles", extra_body=extra)
                except openai.APIConnectionError as error:
                    assert until.is_set()
                    return refused.append(error)
                else:
                    answered.append(answer.data[0].seed)

    async def load():
        until = asyncio.Event()
        clients = [asyncio.ensure_future(client(number, until)) for number in range(8)]
        while len(answered) < 16:
            await asyncio.sleep(0.05)
        until.set()
        running.send_signal(signal.SIGTERM)
        await asyncio.gather(*clients)

    asyncio.run(load())
    assert running.wait(30) == 0
    log = (tmp_path / "log").read_text()
    assert [type(error.__cause__).__name__ for error in refused] == ["ConnectError"] * 8  # nothing was sent
    # What the server's log counts as answered has arrived, and it answered nothing with an error.
    accepted = log.count('"POST /v1/images/generations HTTP/1.1" ')
    assert accepted == log.count('"POST /v1/images/generations HTTP/1.1" 200') == len(answered) >= 16
    assert len(set(answered)) == len(answered)
    assert "Traceback" not in log and "two red circles" not in log


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_without_clients_stops_at_once(process, number):
    running, _ = process
    running.send_signal(number)
    assert running.wait(10) == 0


def drawing(live, **fields):
    """A connection on which a long drawing was asked for."""
    body = json.dumps({**LONG, **fields}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(live.address)
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"n": 10}, {"stream": True, "partial_images": 1}])
def test_a_client_that_hangs_up_frees_the_model(fields, make_server, listening, fast):
    with listening(make_server()) as live, openai.OpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
        client.images.generate(prompt="a", extra_body=fast)

        def seconds(waits):
            before = live.measured("blip3o_batch_seconds_sum", kind="draw")
            connection = drawing(live, **fields)
            if waits:
                while connection.recv(65536):
                    if live.measured("blip3o_batch_seconds_sum", kind="draw") > before:
                        break
            else:
                time.sleep(0.2)
                connection.close()
            connection.close()
            client.images.generate(prompt="a", extra_body=fast)
            return live.measured("blip3o_batch_seconds_sum", kind="draw") - before

        whole, left = seconds(True), seconds(False)
        assert left < whole / 2
        assert live.measured("blip3o_waiting_jobs") == 0
