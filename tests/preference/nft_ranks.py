"""FlowNFT on one process and on two: `nft_ranks.py MODEL OUT`; weights and rewards of both are written to OUT."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tests.processes import fork_ranks, wait

from blip3o_hf.preference.flow_nft import FlowNFTConfig, FlowNFTTrainer

ROWS = [{"prompt": prompt} for prompt in ("a red circle", "two blue squares", "a green cross", "three circles")] * 2


def darkness(prompts, completions, **columns):
    return [1 - float(np.asarray(image).mean()) / 255 for image in completions]


def train(model: str, out: str, num_processes: int) -> None:
    torch.set_num_threads(1)
    arguments = FlowNFTConfig(
        f"{out}/run-{num_processes}",
        max_steps=3,
        num_generations=3,
        rollout_steps=3,
        per_device_train_batch_size=4 // num_processes,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = FlowNFTTrainer(model, darkness, arguments, train_dataset=ROWS)
    trainer.train()
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        found = {name: [entry[name] for entry in history if name in entry] for name in ("loss", "reward")}
        Path(out, f"{num_processes}.json").write_text(json.dumps(found))
        save_file(trainer.task.policies.weights(), Path(out, f"{num_processes}.safetensors"))
        save_file(trainer.task.policies.old, Path(out, f"old-{num_processes}.safetensors"))


if __name__ == "__main__":
    codes = [wait(fork_ranks(number, train, sys.argv[1], sys.argv[2], number)) for number in (1, 2)]
    sys.exit(max(max(each) for each in codes))
