"""Pictures that a policy draws while it learns: groups for each prompt, from noise that a resumed run draws again."""

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ..checks import check_sizes, is_finite_number
from ..pipelines.denoising import FeatureDenoiser
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.planning import spawn
from ..pipelines.sampling_runs import scheduler_of_run
from ..schedulers.stochastic_step import stochastic_step

CONDITIONS_KEPT = 1024
"""Conditions of so many prompts are kept, those that were used last; one of the 8B takes 0.9 MB."""
DECODED_AT_ONCE = 16
"""Pictures; a diffusion decoder of 1024 pixels needs much memory for each."""


@dataclass(frozen=True)
class Rollout:
    """
    Groups of pictures, those of one prompt one after the other.

    Attributes:
        condition (`[N, num_queries, hidden]`): of each picture's prompt; a constant of the policy.
        features (`[N, C, h, w]`): drawn, normalised as the flow has them, float32.
        num_generations: pictures of a prompt.
        generators: of the pictures, for a decoder that draws noise, too.
    """

    condition: Tensor
    features: Tensor
    num_generations: int
    generators: tuple[torch.Generator, ...]


@dataclass(frozen=True)
class NoisySteps:
    """
    Which steps of a rollout are drawn with noise, and how; the others are Euler's.

    Attributes:
        first, last: numbers of the first of them, and of the one after them.
        noise_level, sde_type: as of [`~schedulers.stochastic_step.stochastic_step`].
        starts_alike: whether the pictures of a prompt start from one noise, that of the first of them.
    """

    first: int
    last: int
    noise_level: float
    sde_type: str
    starts_alike: bool = False


@dataclass(frozen=True)
class Trajectories(Rollout):
    """
    Groups of pictures, and their way through the steps with noise.

    Attributes:
        samples (`[W + 1, N, C, h, w]`): before each step with noise, and after the last.
        sigmas: noise levels of these.
    """

    samples: Tensor
    sigmas: tuple[float, ...]


class Rollouts:
    """
    Draws groups of pictures with a pipeline, whose model may hold any policy's weights meanwhile.

    Where the pipeline plans by default, each prompt gets a plan, and its whole group is drawn from that. A prompt is
    read alone, so that its condition does not depend on what else is drawn.

    Args:
        pipe: with a flow; its scheduler draws, and its decoder makes pictures.
        num_generations: pictures of a prompt, at least 2.
        num_steps: of sampling; ten are enough to be judged.
        guidance_scale: 1 for none, as losses need that compare the velocities of the condition alone.
        num_decoder_steps: of a diffusion decoder; by default its own.

    Raises:
        ValueError: when the model has no flow: what is deterministic is no policy.
    """

    def __init__(
        self,
        pipe: Blip3oPipeline,
        num_generations: int = 8,
        num_steps: int = 10,
        guidance_scale: float = 1.0,
        num_decoder_steps: int | None = None,
    ):
        check_sizes(2, num_generations=num_generations)
        check_sizes(num_steps=num_steps)
        if not is_finite_number(guidance_scale, 0):
            raise ValueError(f"`guidance_scale` must be above 0. Got {guidance_scale!r:.40}. 1 is for none.")
        if not pipe.model.objective.has_noise:
            raise ValueError(
                f"A policy draws differently from different noise. The objective {pipe.model.config.objective!r} has "
                f"none. Take a model with a flow."
            )
        self.pipe = pipe
        self.num_generations, self.num_steps, self.guidance_scale = num_generations, num_steps, guidance_scale
        self.num_decoder_steps = num_decoder_steps
        self._conditions: OrderedDict[str, Tensor] = OrderedDict()

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], num_generations: int | None = None
    ) -> Rollout:
        """
        Args:
            prompts: one group each.
            generators: one for each prompt, on the CPU; each picture of its group gets one of its own from it, so that
                its noise does not depend on what else is drawn.
            num_generations: other than usual.
        """
        size = self.num_generations if num_generations is None else num_generations
        condition, own = self._started(prompts, generators, size)
        pipe = self.pipe
        pipe.set_progress_bar_config(disable=True)
        with evaluating(pipe.model):
            latents = pipe.prepare_latents(len(condition), own)
            features = pipe.denoise(latents, condition, self.num_steps, self.guidance_scale, generator=own)
        return Rollout(condition, features.float(), size, tuple(own))

    @torch.no_grad()
    def trajectories(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], noisy: NoisySteps
    ) -> Trajectories:
        """
        The same with noise in some steps.

        Args:
            prompts, generators: as in a call.
            noisy: those steps; not the last one, after which nothing would be left of the noise.
        """
        condition, own = self._started(prompts, generators, self.num_generations)
        pipe, model = self.pipe, self.pipe.model
        kept: list[Tensor] = []
        with evaluating(model), scheduler_of_run(pipe.scheduler) as scheduler:
            latents = pipe.prepare_latents(len(condition), own).float()
            if noisy.starts_alike:
                latents = latents[:: self.num_generations].repeat_interleave(self.num_generations, dim=0)
            scheduler.set_timesteps(self.num_steps, device=latents.device)
            sigmas = scheduler.sigmas.tolist()
            denoiser = FeatureDenoiser(model, scheduler, condition)
            denoiser.timesteps = model.training_timestep(scheduler.sigmas[:-1].to(latents.device))
            for index, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
                is_noisy = noisy.first <= index < noisy.last
                if is_noisy or index == noisy.last:
                    kept.append(latents)
                velocity = denoiser.predict_at(latents.to(pipe.transformer.dtype), index, self.guidance_scale)
                level = noisy.noise_level if is_noisy else 0.0
                latents = stochastic_step(latents, velocity, sigma, following, level, noisy.sde_type, own).sample
        levels = tuple(sigmas[noisy.first : noisy.last + 1])
        return Trajectories(condition, latents, self.num_generations, tuple(own), torch.stack(kept), levels)

    def levels(self) -> Tensor:
        """Noise levels at which the network is asked while pictures are drawn, `[num_steps]`, on the CPU."""
        with scheduler_of_run(self.pipe.scheduler) as scheduler:
            scheduler.set_timesteps(self.num_steps)
            return scheduler.sigmas[:-1].float().cpu()

    @torch.no_grad()
    def pictures(self, rollout: Rollout) -> list[Image.Image]:
        """What the decoder makes of drawn features."""
        pipe, pictures = self.pipe, []
        features = pipe.model.denormalize_features(rollout.features)
        for first in range(0, len(features), DECODED_AT_ONCE):
            part = slice(first, first + DECODED_AT_ONCE)
            pixels = pipe.decode_features(
                features[part],
                num_inference_steps=self.num_decoder_steps,
                generator=list(rollout.generators[part]),
            )
            pictures += pipe.image_processor.postprocess(pixels, output_type="pil")
        return pictures

    def _started(
        self, prompts: Sequence[str], generators: Sequence[torch.Generator], size: int
    ) -> tuple[Tensor, list[torch.Generator]]:
        """Condition and generator of each picture."""
        pipe = self.pipe
        own = [child for each, _ in zip(generators, prompts, strict=True) for child in spawn(each, size)]
        texts = list(prompts)
        if pipe.config.default_plan:
            is_sampled = pipe.config.plan_top_p is not None
            texts = [
                pipe.write_plans([prompt], generators=spawn(each, 1) if is_sampled else None)[0]
                for prompt, each in zip(prompts, generators, strict=True)
            ]
        condition = torch.cat([self._condition(text) for text in texts])
        return condition.repeat_interleave(size, dim=0), own

    def _condition(self, text: str) -> Tensor:
        if text not in self._conditions:
            self._conditions[text] = self.pipe.encode_prompt([text], truncation=True)
            if len(self._conditions) > CONDITIONS_KEPT:
                self._conditions.popitem(last=False)
        self._conditions.move_to_end(text)
        return self._conditions[text]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Within the block, the model itself, and not its parts, is not in training: it drops no conditions."""
    was_training, model.training = model.training, False
    try:
        yield
    finally:
        model.training = was_training


__all__ = ["NoisySteps", "Rollout", "Rollouts", "Trajectories", "evaluating"]
