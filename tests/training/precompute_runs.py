"""Runs of `precompute` in processes of their own: one, two, and one that is killed; also a script, see below.

`python precompute_runs.py MODEL OUT` forks them after the imports, which take far longer than the computation, and
writes what each run was like to `OUT/NAME.json`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
DATA = {"length": 24, "seed": 1}


def in_processes(model: Path, out: Path) -> tuple[Path, dict[str, dict]]:
    """Run the script; the folder with a cache for each name, and what is known of each run."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, str(model), str(out)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-6000:]
    return out, {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


def compute(model: str, out: Path, name: str) -> None:
    from accelerate import PartialState

    from blip3o_hf.training import precompute as module
    from blip3o_hf.training.recipes import Recipe
    from blip3o_hf.training.stages import generation

    generation.VALIDATION_RECORDS = 3
    recipe = Recipe(
        stage="generation",
        output_dir=str(out / "unused"),
        inputs={"model": model},
        model={"train": ["transformer"]},
        data=DATA,
        training={"use_cpu": True, "report_to": "none"},
    )
    summary = module.precompute(recipe, out / name, batch_size=2, shard_size=4)
    if PartialState().is_main_process:
        told = {"computed": summary.computed, "ranks": PartialState().num_processes}
        path = out / f"{name}.json"
        earlier = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**earlier, **told}))


def compute_until_killed(model: str, out: Path, name: str) -> None:
    """Ends as `kill -9` ends it, in the middle of writing the fourth file."""
    from blip3o_hf.training import feature_cache

    save, count = feature_cache.save_file, [0]

    def save_or_die(tensors, path, *metadata):
        count[0] += 1
        save(tensors, path, *metadata)
        if count[0] == 5:
            os.truncate(path, 100)
            os.kill(os.getpid(), signal.SIGKILL)

    feature_cache.save_file = save_or_die
    compute(model, out, name)


def fork(function, *arguments, **environment) -> int:
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


def wait(*pids: int) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main(model: str, out: Path) -> None:
    import torch

    import blip3o_hf.training.precompute  # noqa: F401

    torch.set_num_threads(1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    assert wait(fork(compute, model, out, "one")) == [0]
    ranks = [fork(compute, model, out, "two", RANK=str(rank), LOCAL_RANK=str(rank), **together) for rank in range(2)]
    assert wait(*ranks) == [0, 0]
    (code,) = wait(fork(compute_until_killed, model, out, "killed"))
    assert list((out / "killed").glob(".*.safetensors")), "nothing was left half-written"
    (out / "killed.json").write_text(json.dumps({"signal": -code}))
    assert wait(fork(compute, model, out, "killed")) == [0]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
