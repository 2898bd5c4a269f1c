"""What a server of the packaged model gives: pictures in a second, waiting times, and memory over many requests.

The server is a process of its own, as `blip3o-hf serve` starts it. See README.md.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from kept import keep
from PIL import Image
from tqdm import tqdm

RESULTS = Path(__file__).parent / "results" / "serving.json"
PROMPTS = (
    "two red circles",
    "a blue square left of a green triangle",
    "three yellow crosses",
    "a purple circle and a white square on a black background",
    "a small green square",
)
START_SECONDS = 120
MEMORY_EVERY = 100
ROUNDING = 1
"""Levels of 255 by which a picture of a batch may differ from the same alone."""


@contextmanager
def running(max_batch: int, threads: int) -> Iterator[tuple[str, int]]:
    """Address and process number of a server, which is stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "blip3o_hf.cli", "serve", "--port", str(port)]
    command += ["--max-batch", str(max_batch), "--max-waiting", "4096"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while not is_ready(url):
            if process.poll() is not None or time.monotonic() > end:
                raise OSError(f"The server must start within {START_SECONDS} seconds. Run: {' '.join(command)}")
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health").status_code == 200
    except httpx2.RequestError:
        return False


class Load:
    """
    Clients that each ask for one picture after another.

    Args:
        url: of the server.
        settings: of every request, beside its prompt and seed.
    """

    def __init__(self, url: str, settings: dict[str, Any]):
        self.url, self.settings = url, settings
        self.seconds: list[float] = []
        self.pictures: dict[int, str] = {}
        self.statuses: dict[int, int] = {}

    def run(self, num_clients: int, numbers: range) -> float:
        """Ask for these pictures; the wall time of all."""
        started = time.perf_counter()
        asyncio.run(self._all(num_clients, iter(numbers), len(numbers)))
        return time.perf_counter() - started

    async def _all(self, num_clients: int, numbers: Iterator[int], total: int) -> None:
        limits = httpx2.Limits(max_connections=num_clients)
        with tqdm(total=total, desc=f"{num_clients} clients", leave=False) as progress:
            async with httpx2.AsyncClient(limits=limits, timeout=600) as client:
                await asyncio.gather(*(self._one(client, numbers, progress) for _ in range(num_clients)))

    async def _one(self, client: Any, numbers: Iterator[int], progress: Any) -> None:
        for number in numbers:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "seed": number % (4 * len(PROMPTS)), **self.settings}
            started = time.perf_counter()
            response = await client.post(f"{self.url}/v1/images/generations", json=body)
            self.seconds.append(time.perf_counter() - started)
            self.statuses[number] = response.status_code
            if response.status_code == 200:
                self.pictures[number] = response.json()["data"][0]["b64_json"]
            progress.update()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure_throughput(arguments: argparse.Namespace) -> None:
    """Pictures in a second and waiting times, by how many clients ask at once."""
    rows = []
    settings = {"num_inference_steps": arguments.steps, "num_attempts": 1}
    with running(arguments.max_batch, arguments.threads) as (url, _):
        Load(url, settings).run(arguments.max_batch, range(2 * arguments.max_batch))  # not counted
        for clients in arguments.clients:
            load = Load(url, settings)
            wall = load.run(clients, range(arguments.requests))
            rows.append(
                {
                    "clients": clients,
                    "pictures_per_s": len(load.pictures) / wall,
                    **{f"p{share}_s": percentile(load.seconds, share / 100) for share in (50, 95, 99)},
                    "lost": arguments.requests - len(load.pictures),
                }
            )
            print(rows[-1])
    chosen = {"steps": arguments.steps, "requests": arguments.requests, "max_batch": arguments.max_batch}
    keep(arguments, "throughput", {**chosen, "threads": arguments.threads, "rows": rows})


def measure_memory(arguments: argparse.Namespace) -> None:
    """Memory of the server over many requests, and whether each got its own picture."""
    settings = {"num_inference_steps": 1, "guidance_scale": 1.0, "plan": False, "num_attempts": 1}
    rows = []
    with running(arguments.max_batch, arguments.threads) as (url, process):
        alone = Load(url, settings)
        alone.run(1, range(4 * len(PROMPTS)))
        load = Load(url, settings)
        for start in range(0, arguments.requests, MEMORY_EVERY):
            load.run(arguments.clients[-1], range(start, min(start + MEMORY_EVERY, arguments.requests)))
            rows.append({"requests": len(load.statuses), "resident_mib": resident_mib(process)})
            print(rows[-1])
    expected = {number: pixels(picture) for number, picture in alone.pictures.items()}
    others = sum(
        int(np.abs(pixels(picture) - expected[number % len(expected)]).max()) > ROUNDING
        for number, picture in load.pictures.items()
    )
    found = {"requests": arguments.requests, "lost": arguments.requests - len(load.pictures), "others": others}
    print(found)
    keep(arguments, "memory", {**found, "clients": arguments.clients[-1], "rows": rows})


def pixels(picture: str) -> np.ndarray:
    """Of a picture in base64."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))).astype(int)


def resident_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def write_report(arguments: argparse.Namespace) -> None:
    """Print the tables."""
    results = {name: kept["value"] for name, kept in json.loads(arguments.output.read_text()).items()}
    if "throughput" in results:
        rows = results["throughput"]["rows"]
        print(
            "| clients | pictures/s | of one client | half wait | 95 % | 99 % |\n| --: | --: | --: | --: | --: | --: |"
        )
        for row in rows:
            waits = " | ".join(f"{row[f'p{share}_s']:.2f} s" for share in (50, 95, 99))
            gain = row["pictures_per_s"] / rows[0]["pictures_per_s"]
            print(f"| {row['clients']} | {row['pictures_per_s']:.1f} | {gain:.1f} | {waits} |")
    if "memory" in results:
        found = results["memory"]
        first, last = found["rows"][len(found["rows"]) // 4], found["rows"][-1]
        print(
            f"\n{found['requests']} requests: {found['lost']} lost, {found['others']} other than alone; "
            f"memory after {first['requests']}: {first['resident_mib']:.0f} MiB, after {last['requests']}: "
            f"{last['resident_mib']:.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    throughput = commands.add_parser("throughput", help="pictures in a second, waiting times")
    throughput.add_argument("--steps", type=int, default=10)
    throughput.add_argument("--requests", type=int, default=128, help="for each number of clients")
    throughput.set_defaults(run=measure_throughput)
    memory = commands.add_parser("memory", help="memory over many requests; lost or mixed up ones")
    memory.add_argument("--requests", type=int, default=5000)
    memory.set_defaults(run=measure_memory)
    for each in (throughput, memory):
        each.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
        each.add_argument("--max-batch", type=int, default=32)
        each.add_argument("--threads", type=int, default=2)
    report = commands.add_parser("report", help="tables of what was measured")
    report.set_defaults(run=write_report)
    for each in (throughput, memory, report):
        each.add_argument("--output", type=Path, default=RESULTS, help="the results")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
