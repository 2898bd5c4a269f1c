"""The stage `flow_map`: a trained flow becomes a model of few steps."""

from ..recipe_values import hints_of
from ..tasks.flow_map import FlowMapTask
from .generation import GenerationStage


class FlowMapStage(GenerationStage):
    """
    The transformer of the BLIP3-o in `inputs.model` learns to do in one to four evaluations, without guidance, what it
    does in many with guidance ([`~training.tasks.flow_map.FlowMapTask`]). Leaves a BLIP3-o.
    """

    name = "flow_map"
    inputs = ("model",)
    optional_inputs = ("encoder", "decoder")
    task_keys = ("targets", "teacher_steps", "teacher_guidance_scale")
    model_keys = (*task_keys, "frozen_dtype", "max_length", "max_input_pixels")
    types = {
        **GenerationStage.types,
        "model": {**GenerationStage.types["model"], **hints_of(FlowMapTask.__init__, *task_keys)},
    }

    def task(self):
        return FlowMapTask(**self._given(self.task_keys))

    def target_encoder(self):
        return super().target_encoder() if self.task().needs_encoder(self.arguments) else self.folders.get("encoder")
