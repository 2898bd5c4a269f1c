"""The arguments that every sampling pipeline takes: as one object, and one check, and one error, for each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback


def as_number(value: Any) -> Any:
    """A number of numpy as one of Python, such as `np.int64(6)`; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class SamplingSettings:
    """
    How noise is denoised, by either of the two diffusion stages; fields are named as the stages' arguments.

    Args:
        num_inference_steps: denoising steps, at least 1.
        guidance_scale: strength of classifier-free guidance, at least 0.
        guidance_interval: `(low, high)` noise levels in [0, 1] between which guidance is applied.
        generator: one for all images, or one per image; for schedulers that draw noise at every step.
        callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; tensors it returns
            replace the pipeline's.
        callback_on_step_end_tensor_inputs: which tensors the callback gets; a callback class of diffusers says so
            itself.
    """

    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    generator: torch.Generator | Sequence[torch.Generator] | None = None
    callback_on_step_end: Callable[..., dict] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",)

    def __post_init__(self):
        interval = self.guidance_interval
        if isinstance(interval, (list, tuple)) and any(isinstance(level, np.generic) for level in interval):
            interval = tuple(as_number(level) for level in interval)
        settings = {
            "num_inference_steps": as_number(self.num_inference_steps),
            "guidance_scale": as_number(self.guidance_scale),
            "guidance_interval": interval,
        }
        if isinstance(self.callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            settings["callback_on_step_end_tensor_inputs"] = self.callback_on_step_end.tensor_inputs
        for name, value in settings.items():
            object.__setattr__(self, name, value)  # as a frozen dataclass allows

    def chosen(self, **choices: Any) -> "SamplingSettings":
        """These settings with a caller's choices in their place; `None` is no choice."""
        return replace(self, **{name: value for name, value in choices.items() if value is not None})

    def check(self, defaults: "SamplingSettings", prefix: str = "") -> None:
        """
        Raise a `ValueError` for the first of steps, scale and interval that breaks its contract. For the message:
        `defaults` has the pipeline's own steps and scale, `prefix` stands before the names.
        """
        check_num_inference_steps(
            self.num_inference_steps, defaults.num_inference_steps, f"{prefix}num_inference_steps"
        )
        check_guidance_scale(self.guidance_scale, defaults.guidance_scale, f"{prefix}guidance_scale")
        check_guidance_interval(self.guidance_interval, f"{prefix}guidance_interval")


def check_output_type(output_type: str, available: Sequence[str]) -> None:
    """Raise `ValueError` unless `output_type` is among `available`."""
    if output_type not in available:
        raise ValueError(
            f"`output_type` must be one of {', '.join(available)}. Got {output_type!r}. Use 'pil' for PIL images."
        )


def check_num_inference_steps(value: int, default: int, name: str = "num_inference_steps") -> None:
    """Raise `ValueError` unless `value` is an integer of at least 1. `name` is the argument's, for the message."""
    if type(value) is not int or value < 1:
        raise ValueError(
            f"`{name}` must be an integer of at least 1. Got {value!r}. This model's default is {default}."
        )


def check_guidance_scale(value: float, default: float, name: str = "guidance_scale") -> None:
    """Raise `ValueError` unless `value` is a finite number of at least 0."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"`{name}` must be a finite number of at least 0. Got {value!r}. This model's default is {default}; 1 "
            f"switches guidance off."
        )


def check_guidance_interval(interval: tuple[float, float], name: str = "guidance_interval") -> None:
    """Raise `ValueError` unless `interval` is a pair with 0 <= low <= high <= 1."""
    is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2
    is_pair = is_pair and all(isinstance(level, (int, float)) for level in interval)
    if not is_pair or not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(
            f"`{name}` must be two noise levels with 0 <= low <= high <= 1. Got {interval}. (0.0, 1.0) guides every "
            f"step."
        )


def check_num_images_per_prompt(value: int) -> None:
    """Raise `ValueError` unless `value` is an integer of at least 1."""
    if type(value) is not int or value < 1:
        raise ValueError(
            f"`num_images_per_prompt` must be an integer of at least 1. Got {value!r}. Use 1 for one image per prompt."
        )


def check_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, num_prompts: int, num_images_per_prompt: int
) -> None:
    """Raise `TypeError` or `ValueError` unless `generator` is `None`, one generator, or a list of one per image."""
    num_images = num_prompts * num_images_per_prompt
    generators = generator if isinstance(generator, (list, tuple)) else [generator]
    wrong = [item for item in generators if not isinstance(item, torch.Generator)]
    if generator is not None and wrong:
        raise TypeError(
            f"`generator` must be a torch.Generator, or a list of one per image. Got {wrong[0]!r}. Use "
            f"torch.Generator().manual_seed(0)."
        )
    if isinstance(generator, (list, tuple)) and len(generator) != num_images:
        raise ValueError(
            f"A list of generators must hold one per image. Got {len(generator)} for {num_images} images "
            f"({num_prompts} prompts x {num_images_per_prompt}). Pass one generator, or {num_images}."
        )


def check_latents(latents: torch.Tensor | None, expected: tuple[int, ...]) -> None:
    """Raise `ValueError` unless `latents` is `None` or a tensor of the shape `expected`."""
    if latents is not None and (not isinstance(latents, torch.Tensor) or tuple(latents.shape) != expected):
        received = list(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(
            f"`latents` must be a tensor of shape {list(expected)}. Got {received}. Leave it out to draw noise."
        )


def check_callback_tensors(names: Sequence[str], available: Sequence[str]) -> None:
    """Raise `ValueError` when a callback asks for a tensor that is not among `available`."""
    unknown = [name for name in names if name not in available]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be among {list(available)}. Got {unknown}. The callback can "
            f"read and replace the latents."
        )


__all__ = [
    "SamplingSettings",
    "as_number",
    "check_callback_tensors",
    "check_generators",
    "check_guidance_interval",
    "check_guidance_scale",
    "check_latents",
    "check_num_images_per_prompt",
    "check_num_inference_steps",
    "check_output_type",
]
