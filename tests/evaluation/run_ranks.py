"""Two ranks that draw one run: `run_ranks.py MODEL PROMPTS FOLDER`."""

import sys

from tests.evaluation.test_runs import started
from tests.processes import fork_ranks, wait

from blip3o_hf import Blip3oPipeline


def draw(model: str, prompts: str, folder: str) -> None:
    from accelerate import PartialState

    PartialState(cpu=True)
    started(prompts, Blip3oPipeline.from_pretrained(model), folder).run()


if __name__ == "__main__":
    sys.exit(max(wait(fork_ranks(2, draw, *sys.argv[1:]))))
