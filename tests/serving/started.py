"""Servers in processes of their own, for tests that ask them as their users do."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress

from tests.processes import ROOT


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
