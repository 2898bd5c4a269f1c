"""Processes for runs that need their own: a script forks them after its imports, which take longer than the runs.

The test run itself never forks: locks that its other threads hold would stay locked in the child for ever.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(command: list, timeout: float, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints that ends well within `timeout` seconds; whatever it started ends with it."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=output, stderr=output, cwd=cwd, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        printed = output.read()
    assert code is not None, f"It took longer than {timeout} s. {printed[-6000:]}"
    assert code == 0, f"It ended with {code}. {printed[-6000:]}"
    return printed


def run_script(name: str, *arguments, timeout: float, **environment: str) -> str:
    """Run a script below this folder, which imports from `tests`."""
    script = Path(__file__).parent / name
    return run([sys.executable, script, *arguments], timeout, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}", **environment)


def fork(function: Callable, *arguments, **environment: str) -> int:
    """The process id of a child that calls a function."""
    pid = os.fork()
    if pid:
        return pid
    os.environ |= environment
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def fork_ranks(num_processes: int, function: Callable, *arguments) -> list[int]:
    """Process ids of children that call a function as the ranks of one run."""
    if num_processes == 1:
        return [fork(function, *arguments)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = str(num_processes)
    together = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        fork(function, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in range(num_processes)
    ]


def wait(pids: list[int]) -> list[int]:
    """The exit codes of children; after one that failed the others are killed, for they would wait for it."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        pid, status = os.wait()
        codes[pid] = os.waitstatus_to_exitcode(status)
        if codes[pid]:
            for other in set(pids) - codes.keys():
                os.kill(other, signal.SIGKILL)
    return [codes[pid] for pid in pids]
