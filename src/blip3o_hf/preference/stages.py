"""The stages `nft`, `grpo` and `dpo` of recipes: a whole BLIP3-o learns from rewards or preferences."""

from dataclasses import fields
from typing import Any, ClassVar

from ..models.adapters import lora_config
from ..rewards.manager import RewardManager
from ..training.arguments import Blip3oTrainingArguments
from ..training.recipe_values import hints_of
from ..training.recipes import REWARDS
from ..training.stages.generation import GenerationStage
from .flow_dpo import FlowDPOTrainer
from .flow_grpo import FlowGRPOTrainer
from .flow_nft import FlowNFTTrainer
from .reward_trainer import FlowRewardTrainer


class PreferenceStage(GenerationStage):
    """
    Base: goes on from the whole BLIP3-o in `inputs.model`, whose transformer learns, or with `model.lora` adapters on
    it. `preference.rewards` names functions, `module:function`; what else is there are fields of the Trainer's config.
    """

    inputs = ("model",)
    optional_inputs = ("encoder", "decoder")
    model_keys = ("frozen_dtype", "max_length", "lora")
    lora_keys = ("rank", "alpha")
    data_keys = ()
    use = "prompts"
    trainer_class: ClassVar[type[FlowRewardTrainer]]

    def __init_subclass__(cls, **kwargs: Any):
        """Arguments, keys and types are those of the Trainer."""
        super().__init_subclass__(**kwargs)
        kind = cls.arguments_class = cls.trainer_class.task_class.config_class
        plain = {f.name for f in fields(Blip3oTrainingArguments)}
        added = [f.name for f in fields(kind) if f.name not in plain]
        cls.preference_keys = (REWARDS, *added)
        cls.types = {
            **GenerationStage.types,
            "model.lora": hints_of(lora_config, *cls.lora_keys),
            "preference": {REWARDS: list[str], **hints_of(kind, *added)},
        }

    def __init__(self, recipe):
        super().__init__(recipe)
        if self.needs_rewards and not self.recipe.preference.get(REWARDS):
            raise ValueError(
                f"Stage '{self.name}' learns from rewards. {self.recipe_name} names none. Put them under "
                f"'preference.rewards', as module:function."
            )
        if REWARDS in self.recipe.preference:
            RewardManager(self.recipe.preference[REWARDS], self.arguments.reward_weights)  # which finds them

    @property
    def needs_rewards(self) -> bool:
        """Whether the data alone do not say what is good."""
        return True

    def target_encoder(self):
        return self.folders.get("encoder")

    def peft_config(self, model):
        return None if self.lora is None else lora_config(model, train_queries=False, **self.lora)

    def datasets(self, task, processor):
        return self.data.prompts(), self.data.held_out_prompts()

    def make_trainer(self, model, task, **parts):
        """The Trainer makes the task of these rewards by itself."""
        real = self.data.held_out_pictures(processor=parts["processing_class"])
        return self.trainer_class(
            model, self.recipe.preference.get(REWARDS), self.arguments, real_dataset=real, **parts
        )


class NFTStage(PreferenceStage):
    """Learns from rewards by DiffusionNFT or advantage-weighted matching: [`~preference.flow_nft.FlowNFTTrainer`]."""

    name = "nft"
    trainer_class = FlowNFTTrainer


class GRPOStage(PreferenceStage):
    """Learns from rewards by Flow-GRPO: [`~preference.flow_grpo.FlowGRPOTrainer`]."""

    name = "grpo"
    trainer_class = FlowGRPOTrainer


class DPOStage(PreferenceStage):
    """
    Learns from preferences by Diffusion-DPO: [`~preference.flow_dpo.FlowDPOTrainer`]. Without `preference.rewards` the
    data have pairs: rows with `prompt`, `chosen` and `rejected`.
    """

    name = "dpo"
    trainer_class = FlowDPOTrainer

    @property
    def needs_rewards(self):
        return False


__all__ = ["DPOStage", "GRPOStage", "NFTStage", "PreferenceStage"]
