"""Trainers of rewards on one process and on several: `reward_ranks.py MODEL OUT CASES...`.

The processes of cases, which commas separate, are forked after the imports, which take far longer. What a case learned
on N processes is written to OUT as `CASE-N.safetensors` and `CASE-N.json`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tests.preference.runs import KINDS
from tests.processes import fork_ranks, wait

from blip3o_hf.models.adapters import lora_config
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration

ROWS = [{"prompt": prompt} for prompt in ("a red circle", "two blue squares", "a green cross", "three circles")] * 2
ZERO_2 = Path(__file__).parents[2] / "recipes" / "deepspeed" / "zero2.json"
CASES = {
    "nft": {"scale_rewards": "batch"},
    "grpo": {"num_iterations": 2, "beta": 1e-3, "sde_window_size": 1, "window_schedule": "random"},
    "dpo": {"num_iterations": 2},
}


def darkness(prompts, completions, **columns):
    return [1 - float(np.asarray(image).mean()) / 255 for image in completions]


def adapters(model: str) -> LoraConfig:
    """On the model in this folder, for the engine's cases."""
    config = Blip3oForConditionalGeneration.from_pretrained(model, subfolder="model").config
    return lora_config(config, rank=2, train_queries=False)


def train(model: str, out: str, case: str, num_processes: int) -> None:
    """One process of a case: a kind, and `-zero2` for DeepSpeed's engine and `-lora` for adapters."""
    torch.set_num_threads(1)
    kind, *options = case.split("-")
    trainer_class, config_class = KINDS[kind]
    is_sharded = "zero2" in options and num_processes > 1
    arguments = config_class(
        f"{out}/run-{case}-{num_processes}",
        max_steps=3,
        num_generations=3,
        rollout_steps=3,
        per_device_train_batch_size=4 // num_processes,
        learning_rate=1e-3,
        adam_epsilon=1e-3,  # otherwise Adam blows up the rounding of gradients that are nearly zero
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        deepspeed=str(ZERO_2) if is_sharded else None,
        **CASES[kind],
    )
    settings = {"peft_config": adapters(model)} if "lora" in options else {}
    trainer = trainer_class(model, darkness, arguments, train_dataset=ROWS, **settings)
    trainer.train()
    if trainer.is_world_process_zero():
        history, policies = trainer.state.log_history, trainer.task.policies
        found = {name: [entry[name] for entry in history if name in entry] for name in ("loss", "reward", "kl")}
        found["engine"] = type(trainer.model_wrapped).__name__
        Path(out, f"{case}-{num_processes}.json").write_text(json.dumps(found))
        old = {f"old.{name}": value for name, value in (policies.old or {}).items()}
        save_file({**policies.weights(), **old}, Path(out, f"{case}-{num_processes}.safetensors"))


def train_all(model: str, out: str, cases: str, num_processes: int) -> None:
    """One process of several cases, one after the other."""
    for case in cases.split(","):
        train(model, out, case, num_processes)


if __name__ == "__main__":
    if any("zero2" in case for case in sys.argv[3:]):
        import deepspeed.ops

        # Otherwise the first run compiles a C++ extension that gloo does not need.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for names in sys.argv[3:]:
        for number in (1, 2):
            codes = wait(fork_ranks(number, train_all, sys.argv[1], sys.argv[2], names, number))
            if any(codes):
                sys.exit(f"{names}: the processes ended with {codes}")
