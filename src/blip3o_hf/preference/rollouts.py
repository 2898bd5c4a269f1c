"""Pictures that a policy draws while it learns: groups for each prompt, from noise that a resumed run draws again."""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..checks import check_sizes
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.planning import spawn


@dataclass(frozen=True)
class Rollout:
    """
    Groups of pictures, those of one prompt one after the other.

    Attributes:
        condition (`[N, num_queries, hidden]`): of each picture's prompt; a constant of the policy.
        features (`[N, C, h, w]`): drawn, normalised as the flow has them, float32.
        num_generations: pictures of a prompt.
    """

    condition: Tensor
    features: Tensor
    num_generations: int


class Rollouts:
    """
    Draws groups of pictures with the transformer of a pipeline, or with another one in its place.

    Args:
        pipe: with a flow; its scheduler draws, and its decoder makes pictures.
        num_generations: pictures of a prompt, at least 2.
        num_steps: of sampling; ten are enough to be judged.
        guidance_scale: 1 for none, as losses need that compare the velocities of the condition alone.

    Raises:
        ValueError: when the model has no flow: what is deterministic is no policy.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        num_generations: int = 8,
        num_steps: int = 10,
        guidance_scale: float = 1.0,
    ):
        check_sizes(2, num_generations=num_generations)
        check_sizes(num_steps=num_steps)
        if not pipe.model.objective.has_noise:
            raise ValueError(
                f"A policy draws differently from different noise. The objective {pipe.model.config.objective!r} has "
                f"none. Take a model with a flow."
            )
        self.pipe = pipe
        self.num_generations, self.num_steps, self.guidance_scale = num_generations, num_steps, guidance_scale

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        transformer: nn.Module | None = None,
    ) -> Rollout:
        """
        Args:
            prompts: one group each.
            generators: one for each prompt, on the CPU; each picture of its group gets one of its own from it, so that
                its noise does not depend on what else is drawn.
            transformer: what draws, in the place of the pipeline's.
        """
        pipe, size = self.pipe, self.num_generations
        generators = [own for each, _ in zip(generators, prompts, strict=True) for own in spawn(each, size)]
        condition = pipe.encode_prompt(list(prompts), truncation=True).repeat_interleave(size, dim=0)
        pipe.set_progress_bar_config(disable=True)
        with drawing_with(pipe, transformer):
            latents = pipe.prepare_latents(len(condition), generators)
            features = pipe.denoise(latents, condition, self.num_steps, self.guidance_scale)
        return Rollout(condition, features.float(), size)

    @torch.no_grad()
    def pictures(self, rollout: Rollout) -> list[Image.Image]:
        """What the decoder makes of drawn features."""
        pixels = self.pipe.decode_features(self.pipe.model.denormalize_features(rollout.features))
        return self.pipe.image_processor.postprocess(pixels, output_type="pil")


@contextlib.contextmanager
def drawing_with(pipe: Blip3oPipeline, transformer: nn.Module | None) -> Generator[None]:
    """Within the block, a pipeline's model draws with another transformer; `None` leaves its own."""
    own = pipe.model.transformer
    pipe.model.transformer = own if transformer is None else transformer
    try:
        yield
    finally:
        pipe.model.transformer = own


__all__ = ["Rollout", "Rollouts", "drawing_with"]
