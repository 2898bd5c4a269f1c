"""The arguments that every sampling pipeline takes: as one object, and one check, and one error, for each."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

MAX_STEPS = 10_000
"""Ten times as many as a model learns noise levels."""
MAX_GUIDANCE_SCALE = 1000.0
"""From far smaller ones on, images have no meaning; from far larger ones on, features are no numbers."""
MAX_IMAGES_PER_PROMPT = 10_000


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
        Raise a `ValueError` for the first of steps, scale and interval that breaks its contract, and a `TypeError` for
        a callback that cannot be called. For the message: `defaults` has the pipeline's own steps and scale, `prefix`
        stands before the names.
        """
        check_num_inference_steps(
            self.num_inference_steps, defaults.num_inference_steps, f"{prefix}num_inference_steps"
        )
        check_guidance_scale(self.guidance_scale, defaults.guidance_scale, f"{prefix}guidance_scale")
        check_guidance_interval(self.guidance_interval, f"{prefix}guidance_interval")
        if self.callback_on_step_end is not None and not callable(self.callback_on_step_end):
            raise TypeError(
                f"`callback_on_step_end` must be a function. Got {self.callback_on_step_end!r:.60}. It is called as "
                f"callback(pipe, step, timestep, tensors)."
            )


def check_output_type(output_type: str, available: Sequence[str]) -> None:
    """Raise `ValueError` unless `output_type` is among `available`."""
    if output_type not in available:
        raise ValueError(
            f"`output_type` must be one of {', '.join(available)}. Got {output_type!r}. Use 'pil' for PIL images."
        )


def check_num_inference_steps(value: int, default: int, name: str = "num_inference_steps") -> None:
    """Raise `ValueError` unless `value` is an integer from 1 to [`MAX_STEPS`]. `name` is the argument's."""
    if type(value) is not int or value < 1:
        raise ValueError(
            f"`{name}` must be an integer of at least 1. Got {value!r}. This model's default is {default}."
        )
    if value > MAX_STEPS:
        raise ValueError(
            f"`{name}` must be at most {MAX_STEPS:,}. Got {value}. A good image takes tens of steps: pass "
            f"{name}=30, or on the command line `--steps 30`."
        )


def check_guidance_scale(value: float, default: float, name: str = "guidance_scale") -> None:
    """Raise `ValueError` unless `value` is a number from 0 to [`MAX_GUIDANCE_SCALE`]."""
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"`{name}` must be a finite number of at least 0. Got {value!r}. This model's default is {default}; 1 "
            f"switches guidance off."
        )
    if value > MAX_GUIDANCE_SCALE:
        raise ValueError(f"`{name}` must be at most {MAX_GUIDANCE_SCALE:,.0f}. Got {value!r}. Try 3.")


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
    """Raise `ValueError` unless `value` is an integer from 1 to [`MAX_IMAGES_PER_PROMPT`]."""
    if type(value) is not int or value < 1:
        raise ValueError(
            f"`num_images_per_prompt` must be an integer of at least 1. Got {value!r}. Use 1 for one image per prompt."
        )
    if value > MAX_IMAGES_PER_PROMPT:
        raise ValueError(
            f"`num_images_per_prompt` must be at most {MAX_IMAGES_PER_PROMPT:,}. Got {value}. Call the pipeline again "
            f"for more."
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
    """Raise `ValueError` unless `latents` is `None` or a tensor of finite numbers, of the shape `expected`."""
    if latents is not None and (not isinstance(latents, torch.Tensor) or tuple(latents.shape) != expected):
        received = list(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise ValueError(
            f"`latents` must be a tensor of shape {list(expected)}. Got {received}. Leave it out to draw noise."
        )
    check_finite_tensor(latents, "latents", "Leave it out to draw noise.")


def check_finite_tensor(tensor: torch.Tensor | None, name: str, way_out: str) -> None:
    """
    Raise `ValueError` unless a tensor holds finite numbers; `None` and tensors on the meta device hold none.

    Args:
        tensor: an argument of a pipeline, of any shape.
        name: the argument's.
        way_out: what to do, for the message.
    """
    if tensor is None or tensor.is_meta:
        return
    if not tensor.is_floating_point():
        raise ValueError(f"`{name}` must hold floating-point numbers. Got {tensor.dtype}. {way_out}")
    wrong = ~torch.isfinite(tensor)
    if wrong.any():
        raise ValueError(f"`{name}` must hold finite numbers. Got {tensor[wrong][0].item()} in it. {way_out}")


def check_callback_tensors(names: Sequence[str], available: Sequence[str]) -> None:
    """Raise `ValueError` when a callback asks for a tensor that is not among `available`."""
    is_list = isinstance(names, (list, tuple))
    unknown = [name for name in names if name not in available] if is_list else names
    if unknown or not is_list:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` must be among {list(available)}. Got {unknown}. The callback can "
            f"read and replace the latents."
        )


__all__ = [
    "SamplingSettings",
    "as_number",
    "check_callback_tensors",
    "check_finite_tensor",
    "check_generators",
    "check_guidance_interval",
    "check_guidance_scale",
    "check_latents",
    "check_num_images_per_prompt",
    "check_num_inference_steps",
    "check_output_type",
]
