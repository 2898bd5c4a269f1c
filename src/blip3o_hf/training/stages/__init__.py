"""Stages as data: what each one builds, what trains and what is frozen, which loss applies, what it leaves behind."""

from ...names import check_keys
from ..recipes import Recipe
from .alignment import AlignmentStage
from .base import Stage
from .decoder import DecoderStage
from .diffusion_decoder import DiffusionDecoderStage
from .encoder import EncoderStage
from .generation import GenerationStage
from .joint import JointStage
from .understanding import UnderstandingStage
from .vae import VaeStage

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        EncoderStage,
        VaeStage,
        DecoderStage,
        DiffusionDecoderStage,
        UnderstandingStage,
        AlignmentStage,
        GenerationStage,
        JointStage,
    )
}


def build_stage(recipe: Recipe) -> Stage:
    """
    Raises:
        ValueError: when the recipe names an unknown stage.
    """
    check_keys([recipe.stage], STAGES, f"key 'stage' of {recipe.source or 'the recipe'}")
    return STAGES[recipe.stage](recipe)


__all__ = [
    "STAGES",
    "AlignmentStage",
    "DecoderStage",
    "DiffusionDecoderStage",
    "EncoderStage",
    "GenerationStage",
    "JointStage",
    "Stage",
    "UnderstandingStage",
    "VaeStage",
    "build_stage",
]
