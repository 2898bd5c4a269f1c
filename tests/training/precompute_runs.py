"""`precompute` in processes of its own: one that is killed, then two that go on; a script and what calls it.

`python precompute_runs.py MODEL OUT` forks them after the imports, which take far longer than the computation, and
writes what the runs were like to `OUT/summary.json`.
"""

import json
import os
import signal
import sys
from pathlib import Path

from tests.processes import fork, fork_ranks, run_script, wait


def in_processes(model: Path, out: Path) -> dict:
    """Run the script, which leaves a cache in `out`; what is known of its runs."""
    run_script("training/precompute_runs.py", model, out, timeout=300)
    return json.loads((out / "summary.json").read_text())


def compute(model: str, out: Path):
    """Fill the cache with 24 scenes and 3 for validation."""
    from blip3o_hf.shapes import recipe_data
    from blip3o_hf.training.precompute import precompute
    from blip3o_hf.training.recipes import Recipe

    recipe_data.HELD_OUT = 3
    recipe = Recipe(
        stage="generation",
        output_dir=str(out / "unused"),
        inputs={"model": model},
        model={"train": ["transformer"]},
        data={"length": 24, "seed": 1},
        training={"use_cpu": True, "report_to": "none"},
    )
    return precompute(recipe, out, batch_size=2, shard_size=4)


def compute_and_tell(model: str, out: Path) -> None:
    from accelerate import PartialState

    summary = compute(model, out)
    if PartialState().is_main_process:
        told = {"computed": summary.computed, "num_processes": PartialState().num_processes}
        (out / "summary.json").write_text(json.dumps(told))


def compute_until_killed(model: str, out: Path) -> None:
    """Ends as `kill -9` ends it, in the middle of writing a second file of targets."""
    from blip3o_hf.training import feature_cache

    save, count = feature_cache.save_file, [0]

    def save_or_die(tensors, path, *metadata):
        count[0] += 1
        save(tensors, path, *metadata)
        if count[0] == 5:  # after two indices and a file of each kind
            os.truncate(path, 100)
            os.kill(os.getpid(), signal.SIGKILL)

    feature_cache.save_file = save_or_die
    compute(model, out)


def main(model: str, out: Path) -> None:
    import torch

    import blip3o_hf.training.precompute  # noqa: F401

    torch.set_num_threads(1)
    out.mkdir(exist_ok=True)
    assert wait([fork(compute_until_killed, model, out)]) == [-signal.SIGKILL]
    assert list(out.glob(".*.safetensors")), "nothing was left half-written"
    assert wait(fork_ranks(2, compute_and_tell, model, out)) == [0, 0]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
