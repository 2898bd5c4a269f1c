"""Servers for tests that ask them as their users do: in processes of their own, and in a thread."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import uvicorn
from tests.processes import ROOT

from blip3o_hf.serving.server import Server


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def started(*arguments, health: str, seconds: float, **environment: str) -> Generator[subprocess.Popen]:
    """
    `python ARGUMENTS` until the block ends, once it answers at `health`; whatever it started ends with it.

    Args:
        arguments: of this interpreter.
        health: address that answers when the server does.
        seconds: within which it must.
        environment: further variables.
    """
    variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=os.environ | variables | environment,
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            if not _answers(process, health, seconds):
                output.seek(0)
                raise AssertionError(f"It does not answer after {seconds} s. {output.read()[-6000:]}")
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(process: subprocess.Popen, health: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            return urllib.request.urlopen(health, timeout=5).status == 200
        time.sleep(0.5)
    return False


@dataclass(frozen=True)
class Running:
    """
    A server that answers.

    Args:
        server: of the package.
        url: where it listens.
    """

    server: Server
    url: str

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def measured(self, name: str, **labels: str) -> float:
        """A number of `/metrics`."""
        return self.server.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def running(server: Server) -> Iterator[Running]:
    """A server that listens on a free port of this machine until the end of the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server.app(), log_level="critical", lifespan="on", timeout_graceful_shutdown=10)
    uvicorn_server = uvicorn.Server(config)
    thread = threading.Thread(target=uvicorn_server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not uvicorn_server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(server, f"http://127.0.0.1:{listening.getsockname()[1]}")
    finally:
        uvicorn_server.should_exit = True
        thread.join()
