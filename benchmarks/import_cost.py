"""What `import blip3o_hf` costs, in fresh processes, alone and after the libraries that it registers with.

See README.md.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

GOAL = 50.0
CASES = {
    "nothing": "pass",
    "import transformers": "import transformers",
    "import diffusers": "import diffusers",
    "from transformers import pipeline": "from transformers import pipeline",
    "from diffusers import DiffusionPipeline": "from diffusers import DiffusionPipeline",
}
"""What a program has imported before, by name."""
LIGHT = ("nothing", "import transformers", "import diffusers")
"""Where the goal holds: the modules that hold the registries are not imported yet, so nothing is registered."""
TIMED = "from time import perf_counter as now; begun = now(); import blip3o_hf; print(1000 * (now() - begun))"


def run(code: str) -> tuple[float, str]:
    """Milliseconds of a fresh process from its start to its end, and what it printed."""
    source = Path(__file__).resolve().parents[1] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    elapsed = 1000 * (time.perf_counter() - begun)
    if result.returncode:
        raise SystemExit(f"`{code}` must run. It ended with {result.returncode}: {result.stderr[-2000:]}")
    return elapsed, result.stdout


def measure(names: list[str], repeats: int) -> dict[str, dict[str, list[float]]]:
    """
    Milliseconds of every case in every round; the cases take turns, after a round that is not counted.

    Returns:
        by case: `without` and `with` our import, of whole processes, and `statement`, of our import statement alone.
    """
    times = {name: {"without": [], "with": [], "statement": []} for name in names}
    for number in range(repeats + 1):
        for name in names:
            before = CASES[name]
            without, _ = run(before)
            with_ours, printed = run(f"{before}; {TIMED}")
            if number:
                for key, value in (("without", without), ("with", with_ours), ("statement", float(printed))):
                    times[name][key].append(value)
    return times


def in_words(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="counted processes of each case (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help="by name")
    parser.add_argument("--output", type=Path, help="all times and the settings, as JSON")
    arguments = parser.parse_args()

    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in ("torch", "transformers", "diffusers")}
    settings = {"repeats": arguments.repeats, "processors": os.cpu_count(), "versions": versions}
    times = measure(arguments.cases, arguments.repeats)
    print(f"{arguments.repeats} processes of each kind in turn, median (least to most) in ms; {os.cpu_count()} cores")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print()
    print("| imported before | process without ours | process with ours | our import alone |")
    print("| --- | --: | --: | --: |")
    for name, own in times.items():
        print(f"| {name} | {' | '.join(in_words(own[key]) for key in ('without', 'with', 'statement'))} |")
    print()
    for name in times:
        if name in LIGHT:
            cost = statistics.median(times[name]["statement"])
            verdict = "reached" if cost < GOAL else "missed"
            print(f"goal of {GOAL:.0f} ms after {name}: {verdict}, {cost:.1f} ms")
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({**settings, "milliseconds": times}, indent=2) + "\n")


if __name__ == "__main__":
    main()
