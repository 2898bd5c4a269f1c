"""The stage `few_step_decoder`: a trained diffusion decoder learns to draw in a few steps, without guidance."""

from peft import LoraConfig

from ...checks import check_keys, check_sizes
from ..recipe_values import hints_of
from ..tasks.few_step_decoder import FewStepDecoderTask
from .diffusion_decoder import DiffusionDecoderStage

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Layers of a UNet that adapters go on."""


class FewStepDecoderStage(DiffusionDecoderStage):
    """
    The UNet of the diffusion decoder in `inputs.decoder` learns to do in four evaluations what it does in a hundred
    ([`~training.tasks.few_step_decoder.FewStepDecoderTask`]). Leaves a decoder. With `model.lora` adapters train on
    its attentions, which takes less memory; they are merged into what is left.
    """

    name = "few_step_decoder"
    inputs = ("encoder", "decoder")
    optional_inputs = ()
    task_keys = ("teacher_steps", "teacher_guidance_scale", "image_size")
    lora_keys = ("rank", "alpha")
    model_keys = (*task_keys, "feature_size", "frozen_dtype", "lora")
    types = {
        "model": {
            "feature_size": int,
            "lora": dict | None,
            **hints_of(FewStepDecoderTask.__init__, *task_keys),
        },
        "model.lora": dict.fromkeys(lora_keys, int),
    }

    def __init__(self, recipe):
        super().__init__(recipe)
        self.lora = recipe.model.get("lora")
        check_keys(self.lora or {}, self.lora_keys, f"section 'model.lora' of {self.recipe_name}")
        check_sizes(**(self.lora or {}))

    def task(self):
        return FewStepDecoderTask(self.vae, self.scheduler, **self._given(self.task_keys))

    def peft_config(self, model):
        if self.lora is None:
            return None
        rank = self.lora.get("rank", 64)
        return LoraConfig(r=rank, lora_alpha=self.lora.get("alpha", rank), target_modules=list(ATTENTION))
