"""One denoising loop with classifier-free guidance, for both diffusion stages: image features, and pixels of them."""

import inspect
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from .sampling_arguments import SamplingSettings


class Denoiser:
    """
    A network under a condition, as the denoising loop asks for it.

    Attributes:
        condition (`[N, ...]`): what it is told of each image; callbacks get it as `prompt_embeds`, and may replace it.
        computed: what was computed of the condition, by its name, until there is another one.
        guides_below: whether scales below 1 guide, too.
    """

    guides_below: ClassVar[bool] = False
    computed: dict[str, Any]

    @property
    def condition(self) -> torch.Tensor:
        return self._condition

    @condition.setter
    def condition(self, value: torch.Tensor) -> None:
        self._condition = value
        self.computed = {}

    def is_guided(self, scale: float) -> bool:
        """Whether a guidance scale asks for the null condition, too."""
        return scale != 1 if self.guides_below else scale > 1

    def predict(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        """What the network predicts of latents, at the step of this index in the scheduler's timesteps."""
        raise NotImplementedError

    def predict_both(self, latents: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same under the condition and under the null condition, in this order."""
        raise NotImplementedError

    def predict_guided(self, latents: torch.Tensor, index: int, scale: float) -> torch.Tensor:
        """Under classifier-free guidance: null + scale * (conditional - null)."""
        prediction, null_prediction = self.predict_both(latents, index)
        return null_prediction + scale * (prediction - null_prediction)

    def predict_at(self, latents: torch.Tensor, index: int, scale: float) -> torch.Tensor:
        """With guidance of that scale, where it asks for any."""
        return self.predict_guided(latents, index, scale) if self.is_guided(scale) else self.predict(latents, index)


def denoise_with_guidance(
    pipe: DiffusionPipeline,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    sampling: SamplingSettings,
    denoiser: Denoiser,
    begin: int = 0,
) -> torch.Tensor:
    """
    Follow a scheduler, whose timesteps are set, from a noise level down to 0.

    Args:
        pipe: has the progress bar, and what callbacks change; its callback is called with it.
        scheduler: this call's own.
        latents (`[N, ...]`): at the noise level of the first step.
        denoiser: predicts.
        begin: index of the first step.

    Returns:
        `torch.Tensor` `[N, ...]`.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    options = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        generator = sampling.generator
        options["generator"] = list(generator) if isinstance(generator, tuple) else generator
    timesteps = scheduler.timesteps[begin:]
    noise_levels = [timestep / scheduler.config.num_train_timesteps for timestep in timesteps.tolist()]
    low, high = sampling.guidance_interval
    with (
        pipe._sampling_stage(sampling.guidance_scale, len(timesteps)) as run,
        pipe.progress_bar(total=len(timesteps)) as progress,
    ):
        for step, timestep in enumerate(timesteps):
            if run.interrupt:
                break
            run.current_timestep = timestep
            scale = run.guidance_scale
            if denoiser.is_guided(scale) and low <= noise_levels[step] <= high:
                prediction = denoiser.predict_guided(latents, begin + step, scale)
            else:
                prediction = denoiser.predict(latents, begin + step)
            latents = scheduler.step(prediction, timestep, latents, **options)[0]
            if sampling.callback_on_step_end is not None:
                tensors = {"latents": latents, "prompt_embeds": denoiser.condition}
                tensors = {name: tensors[name] for name in sampling.callback_on_step_end_tensor_inputs}
                returned = sampling.callback_on_step_end(pipe, step, timestep, tensors) or {}
                latents = returned.get("latents", latents)
                if "prompt_embeds" in returned:
                    replace_condition(denoiser, returned["prompt_embeds"])
            progress.update()
    return latents


def replace_condition(denoiser: Denoiser, given: torch.Tensor) -> None:
    """
    Go on under a callback's condition. Its last row alone is what callbacks of diffusers leave of it when they switch
    guidance off, since their batch has the null condition, too; it changes nothing.

    Raises:
        ValueError: when it has another shape.
    """
    present = denoiser.condition
    if given is present or torch.equal(given, present) or torch.equal(given, present[-1:]):
        return
    if given.shape != present.shape:
        raise ValueError(
            f"`prompt_embeds` of a callback must keep their shape, {list(present.shape)}. Got {list(given.shape)}. "
            f"Return one row for each image."
        )
    denoiser.condition = given.to(present)


__all__ = ["Denoiser", "denoise_with_guidance"]
