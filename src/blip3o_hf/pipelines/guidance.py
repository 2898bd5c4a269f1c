"""One denoising loop with classifier-free guidance, for both diffusion stages: image features, and pixels of them."""

import inspect
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline

from .sampling_arguments import SamplingSettings


def denoise_with_guidance(
    pipe: DiffusionPipeline,
    latents: torch.Tensor,
    sampling: SamplingSettings,
    predict: Callable[[torch.Tensor, int], torch.Tensor],
    predict_both: Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] | None,
    begin: int = 0,
) -> torch.Tensor:
    """
    Follow `pipe.scheduler`, whose timesteps are set, from a noise level down to 0.

    With classifier-free guidance a prediction is null + scale * (conditional - null).

    Args:
        pipe: has the scheduler and the progress bar; its callback is called with it.
        latents (`[N, ...]`): at the noise level of the first step.
        predict: what the network predicts from latents under their condition, at the step of this index in the
            scheduler's timesteps.
        predict_both: the same under the condition and under the null condition, in this order; `None` where there is
            no guidance.
        begin: index of the first step.

    Returns:
        `torch.Tensor` `[N, ...]`.
    """
    scheduler = pipe.scheduler
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    options = {"return_dict": False}
    if "generator" in inspect.signature(scheduler.step).parameters:
        generator = sampling.generator
        options["generator"] = list(generator) if isinstance(generator, tuple) else generator
    timesteps = scheduler.timesteps[begin:]
    noise_levels = [timestep / scheduler.config.num_train_timesteps for timestep in timesteps.tolist()]
    low, high = sampling.guidance_interval
    with pipe.progress_bar(total=len(timesteps)) as progress:
        for step, timestep in enumerate(timesteps):
            if predict_both is not None and low <= noise_levels[step] <= high:
                prediction, null_prediction = predict_both(latents, begin + step)
                prediction = null_prediction + sampling.guidance_scale * (prediction - null_prediction)
            else:
                prediction = predict(latents, begin + step)
            latents = scheduler.step(prediction, timestep, latents, **options)[0]
            if sampling.callback_on_step_end is not None:
                tensors = {name: latents for name in sampling.callback_on_step_end_tensor_inputs}
                returned = sampling.callback_on_step_end(pipe, step, timestep, tensors)
                latents = (returned or {}).get("latents", latents)
            progress.update()
    return latents


__all__ = ["denoise_with_guidance"]
