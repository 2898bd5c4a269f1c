"""What the tests of trainers that learn from rewards have in common: prompts, a reward, and what a run left."""

import numpy as np
from transformers import TrainerCallback

from blip3o_hf.preference.flow_dpo import FlowDPOConfig, FlowDPOTrainer
from blip3o_hf.preference.flow_grpo import FlowGRPOConfig, FlowGRPOTrainer
from blip3o_hf.preference.flow_nft import FlowNFTConfig, FlowNFTTrainer

KINDS = {
    "nft": (FlowNFTTrainer, FlowNFTConfig),
    "grpo": (FlowGRPOTrainer, FlowGRPOConfig),
    "dpo": (FlowDPOTrainer, FlowDPOConfig),
}
ROWS = [{"prompt": prompt, "tag": index} for index, prompt in enumerate(["a red circle", "two blue squares"] * 2)]


def darkness(prompts, completions, **columns):
    assert all(len(values) == len(prompts) for values in (completions, *columns.values()))
    return [1 - float(np.asarray(image).mean()) / 255 for image in completions]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


def weights(trainer):
    return {name: value.clone() for name, value in trainer.unwrapped_model.state_dict().items()}


def changed(trainer, before):
    """Names of what is no longer as it was."""
    return {name for name, value in weights(trainer).items() if not value.equal(before[name])}


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]
