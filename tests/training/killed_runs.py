"""
A run that is killed again and again; a script, because it forks after the imports, which take far longer than the run.

`python killed_runs.py RECIPE OUT NUM_PROCESSES NUM_KILLS` trains once without interruption to `OUT/whole`, and once to
`OUT/killed`, where all processes get SIGKILL at random moments and the run is resumed. Every other moment lies in the
writing of a checkpoint, and the last three after the last step, when the result is written. `OUT/kills.json` tells of
each kill the newest complete checkpoint and what else lay beside it.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import deepspeed.ops
import deepspeed.runtime.zero.muon.muon_optimizer
import torch
from tests.processes import fork_ranks, wait

import blip3o_hf.training.runs  # what the command imports late
import blip3o_hf.training.trainer  # noqa: F401
from blip3o_hf.cli import main
from blip3o_hf.training.checkpoints import COMPLETE
from blip3o_hf.training.recipes import load_recipe

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def start(recipe: str, folder: Path, num_processes: int) -> list[int]:
    """Process ids of a run that goes on from the newest checkpoint in `folder`, if there is one."""
    command = ["train", recipe, f"output_dir={folder}", "--threads=1"]
    if any((folder / "checkpoints").glob(f"*/{COMPLETE}")):
        command.append("--resume")
    return fork_ranks(num_processes, train, command)


def train(command: list[str]) -> None:
    if main(command) != 0:
        sys.exit("The command failed")


def end(children: list[int]) -> None:
    codes = wait(children)
    if any(codes):
        sys.exit(f"A run that was not killed ended with {codes}")


def unfinished(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").glob("checkpoint-*") if not (path / COMPLETE).exists()}


def kill(children: list[int], moments: random.Random) -> bool:
    """Kill all of them, one shortly after the other; whether they still ran."""
    for pid in moments.sample(children, len(children)):
        os.kill(pid, signal.SIGKILL)
        time.sleep(moments.uniform(0, 0.02))
    codes = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children}
    if not codes <= {0, -signal.SIGKILL}:
        sys.exit(f"A run ended with {codes} before it was killed")
    return codes != {0}


def until(condition) -> float:
    """Seconds until a condition holds."""
    began = time.monotonic()
    while not condition():
        time.sleep(0.001)
    return time.monotonic() - began


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()
    recipe, out, num_processes, num_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    last = f"checkpoints/checkpoint-{load_recipe(recipe).training['max_steps']}/{COMPLETE}"
    children = start(recipe, out / "whole", num_processes)
    to_first_save = until(lambda: unfinished(out / "whole"))
    save = until(lambda: not unfinished(out / "whole"))
    until((out / "whole" / last).exists)
    began = time.monotonic()
    end(children)
    after_last_step = time.monotonic() - began

    moments, kills, folder = random.Random(0), [], out / "killed"
    while len(kills) < num_kills:
        left, is_over = unfinished(folder), (folder / last).exists()
        children = start(recipe, folder, num_processes)
        if len(kills) >= num_kills - 3:
            until((folder / last).exists)
            time.sleep(moments.uniform(0, after_last_step) + (to_first_save if is_over else 0))
        elif len(kills) % 2:
            until(lambda left=left: unfinished(folder) - left)
            time.sleep(moments.uniform(0, save))
        else:
            time.sleep(moments.uniform(0, 1.5 * to_first_save))
        if kill(children, moments):
            steps = [int(path.parent.name.split("-")[1]) for path in folder.glob(f"checkpoints/*/{COMPLETE}")]
            partial = [path.name for path in folder.glob(".*")]
            kills.append({"step": max(steps, default=0), "left": sorted(unfinished(folder)) + partial})
    end(start(recipe, folder, num_processes))
    (out / "kills.json").write_text(json.dumps(kills))
