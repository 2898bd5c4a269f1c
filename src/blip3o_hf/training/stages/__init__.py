"""Stages: how a recipe becomes a model, a task, data and a Trainer."""

from .base import Stage
from .decoder import DecoderStage
from .diffusion_decoder import DiffusionDecoderStage
from .generation import GenerationStage
from .joint import JointStage
from .understanding import UnderstandingStage

__all__ = [
    "DecoderStage",
    "DiffusionDecoderStage",
    "GenerationStage",
    "JointStage",
    "Stage",
    "UnderstandingStage",
]
