"""Tasks: what is learned from records, and what is written of it, for the Trainer."""

from ...checks import find_class
from .base import Task
from .decoder import DecoderTask
from .diffusion_decoder import DiffusionDecoderTask
from .few_step_decoder import FewStepDecoderTask
from .flow_map import FlowMapTask
from .generation import GenerationTask
from .joint import JointTask, PairedDataset
from .understanding import UnderstandingTask

TASKS = {
    "generation": "blip3o_hf.training.tasks.generation:GenerationTask",
    "joint": "blip3o_hf.training.tasks.joint:JointTask",
    "understanding": "blip3o_hf.training.tasks.understanding:UnderstandingTask",
    "decoder": "blip3o_hf.training.tasks.decoder:DecoderTask",
    "flow_map": "blip3o_hf.training.tasks.flow_map:FlowMapTask",
}
"""Tasks that a name is enough for; others are passed as objects."""


def build_task(task: "str | Task") -> Task:
    """
    Args:
        task: a key of [`TASKS`], `module:Class` for your own, or an object.

    Raises:
        ValueError: when there is no task of that name.
    """
    return task if isinstance(task, Task) else find_class(task, TASKS, "the argument `task`")()


__all__ = [
    "TASKS",
    "DecoderTask",
    "DiffusionDecoderTask",
    "FewStepDecoderTask",
    "FlowMapTask",
    "GenerationTask",
    "JointTask",
    "PairedDataset",
    "Task",
    "UnderstandingTask",
    "build_task",
]
