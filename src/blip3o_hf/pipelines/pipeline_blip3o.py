"""Text to image with BLIP3-o: prompt to condition, condition to image features, features to pixels."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..models.condition_cache import Blip3oConditionCache
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..objectives.latent_flow import unscale_latents
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .registration import register_with_diffusers

OUTPUT_TYPES = ("pil", "np", "pt", "features")


@dataclass
class Blip3oPipelineOutput(BaseOutput):
    """
    Args:
        images: list of PIL images, array `[N, H, W, 3]` in [0, 1], tensor `[N, 3, H, W]` in [0, 1], or `None` with
            `output_type="features"`.
        image_features (`torch.Tensor` `[N, C, h, w]`): the generated image features.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | None
    image_features: torch.Tensor


class Blip3oPipeline(DiffusionPipeline):
    """
    Generates images from prompts (paper section 5.1).

    The stages are public methods in the order in which they run: `encode_prompt`, `prepare_latents`, `denoise`,
    `decode_features`.

    Args:
        model ([`Blip3oForConditionalGeneration`]): backbone, queries and transformer.
        processor ([`Blip3oProcessor`]): chat template, tokenizer and image processor.
        scheduler ([`Blip3oFlowScheduler`] or any flow-matching scheduler of diffusers): noise levels and steps.
        decoder ([`Blip3oPatchDecoder`], `AutoencoderKL`, *optional*): features to pixels. Without it only
            `output_type="features"` works.
        default_num_inference_steps, default_guidance_scale: what `__call__` uses when not told otherwise.

    Example:

    ```python
    >>> import torch
    >>> from blip3o_hf import Blip3oPipeline, packaged_model_path

    >>> pipe = Blip3oPipeline.from_pretrained(packaged_model_path("blip3o-tiny"))
    >>> image = pipe("two red circles", generator=torch.Generator().manual_seed(0)).images[0]
    >>> image.size
    (64, 64)

    ```
    """

    model_cpu_offload_seq = "model->decoder"
    _optional_components = ["decoder"]  # a list: diffusers adds it to one
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        model: Blip3oForConditionalGeneration,
        processor: Blip3oProcessor,
        scheduler: Blip3oFlowScheduler,
        decoder: Any = None,
        default_num_inference_steps: int = 30,
        default_guidance_scale: float = 3.0,
    ):
        super().__init__()
        self.register_modules(model=model, processor=processor, scheduler=scheduler, decoder=decoder)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
        )
        self.image_processor = VaeImageProcessor()

    @property
    def transformer(self):
        """The diffusion transformer inside the model."""
        return self.model.transformer

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ):
        """
        Args:
            prompt: one prompt or several.
            num_inference_steps: denoising steps, at least 1.
            guidance_scale: strength of classifier-free guidance, at least 0; 1 samples the plain condition.
            guidance_interval: `(low, high)` noise levels sigma in [0, 1] between which guidance is applied.
            num_images_per_prompt: images per prompt; the images of one prompt come one after the other.
            generator: one generator for all images, or one per image. With one per image, a batch gives the same
                images as its prompts alone.
            latents (`[N, C, h, w]`, *optional*): noise to start from, standard normal.
            image_features (`[N, C, h, w]`, *optional*): features to decode; no prompt is read then.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"features"` to stop before the decoder.
            return_dict: whether to return a [`Blip3oPipelineOutput`] and not a tuple `(images, image_features)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; tensors it
                returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: which tensors the callback gets; `latents` is the only one.

        Returns:
            [`Blip3oPipelineOutput`] or a tuple.

        Raises:
            TypeError, ValueError: on bad input, before anything is computed.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        steps = self.config.default_num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        self.check_inputs(
            prompts,
            steps,
            scale,
            guidance_interval,
            num_images_per_prompt,
            generator,
            latents,
            image_features,
            output_type,
            callback_on_step_end_tensor_inputs,
        )
        if image_features is None:
            condition = self.encode_prompt(prompts, num_images_per_prompt)
            if self.model.config.uses_transformer:
                latents = self.prepare_latents(condition.shape[0], generator, latents)
                features = self.denoise(
                    latents,
                    condition,
                    steps,
                    scale,
                    guidance_interval,
                    generator,
                    callback_on_step_end,
                    callback_on_step_end_tensor_inputs,
                )
            else:
                features = self.model.regress_features(condition)
            image_features = self.model.denormalize_features(features)

        images = None
        if output_type != "features":
            images = self.image_processor.postprocess(self.decode_features(image_features), output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, image_features
        return Blip3oPipelineOutput(images=images, image_features=image_features)

    def check_inputs(
        self,
        prompts,
        num_inference_steps,
        guidance_scale,
        guidance_interval,
        num_images_per_prompt,
        generator,
        latents,
        image_features,
        output_type,
        callback_on_step_end_tensor_inputs,
    ) -> None:
        """Raise one clear error for the first argument of `__call__` that breaks its contract."""
        if (prompts is None) == (image_features is None):
            received = "neither" if prompts is None else "both"
            raise ValueError(
                f"Exactly one of `prompt` and `image_features` must be given. Got {received}. "
                f"Pass a prompt to generate, or features to decode."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}. Got {output_type!r}. "
                f"Use 'pil' for PIL images."
            )
        if output_type != "features" and self.decoder is None:
            raise ValueError(
                "This pipeline has no decoder, so it makes image features and no pixels. Got "
                f"output_type={output_type!r}. Pass output_type='features', or load a repository with a decoder."
            )
        if prompts is None:
            return
        if not isinstance(prompts, (list, tuple)) or not prompts:
            raise TypeError(
                f"`prompt` must be a string or a list of strings. Got {type(prompts).__name__} {prompts!r:.60}. "
                f"Example: pipe('two red circles')."
            )
        if (
            isinstance(num_inference_steps, bool)
            or not isinstance(num_inference_steps, int)
            or num_inference_steps < 1
        ):
            raise ValueError(
                f"`num_inference_steps` must be an integer of at least 1. Got {num_inference_steps!r}. "
                f"This model's default is {self.config.default_num_inference_steps}."
            )
        if not isinstance(guidance_scale, (int, float)) or not math.isfinite(guidance_scale) or guidance_scale < 0:
            raise ValueError(
                f"`guidance_scale` must be a finite number of at least 0. Got {guidance_scale!r}. "
                f"This model's default is {self.config.default_guidance_scale}; 1 switches guidance off."
            )
        is_pair = isinstance(guidance_interval, (list, tuple)) and len(guidance_interval) == 2
        if not is_pair or not 0.0 <= guidance_interval[0] <= guidance_interval[1] <= 1.0:
            raise ValueError(
                f"`guidance_interval` must be two noise levels with 0 <= low <= high <= 1. Got {guidance_interval}. "
                f"(0.0, 1.0) guides every step."
            )
        if type(num_images_per_prompt) is not int or num_images_per_prompt < 1:
            raise ValueError(
                f"`num_images_per_prompt` must be an integer of at least 1. Got {num_images_per_prompt!r}. "
                f"Use 1 for one image per prompt."
            )
        num_images = len(prompts) * num_images_per_prompt
        if isinstance(generator, (list, tuple)) and len(generator) != num_images:
            raise ValueError(
                f"A list of generators must hold one per image. Got {len(generator)} for {num_images} images "
                f"({len(prompts)} prompts x {num_images_per_prompt}). Pass one generator, or {num_images}."
            )
        size = self.model.config.feature_size
        expected = (num_images, self.model.config.feature_dim, size, size)
        if latents is not None and (not isinstance(latents, torch.Tensor) or tuple(latents.shape) != expected):
            received = list(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
            raise ValueError(
                f"`latents` must be a tensor of shape {list(expected)}. Got {received}. Leave it out to draw noise."
            )
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {list(self._callback_tensor_inputs)}. Got "
                f"{unknown}. The callback can read and replace the latents."
            )

    def encode_prompt(self, prompts: Sequence[str], num_images_per_prompt: int = 1) -> torch.Tensor:
        """Prompts to conditions `[len(prompts) * num_images_per_prompt, num_queries, hidden]`."""
        inputs = self.processor.encode_prompts(list(prompts)).to(self._execution_device)
        condition = self.model.encode_condition(**inputs)
        return condition.repeat_interleave(num_images_per_prompt, dim=0)

    def prepare_latents(self, num_images: int, generator=None, latents: torch.Tensor | None = None) -> torch.Tensor:
        """Noise to start from, `[num_images, C, h, w]`: drawn, or the caller's own."""
        if latents is None:
            size = self.model.config.feature_size
            shape = (num_images, self.model.config.feature_dim, size, size)
            generator = list(generator) if isinstance(generator, tuple) else generator
            latents = randn_tensor(shape, generator, self._execution_device, self.transformer.dtype)
        latents = latents.to(self._execution_device, self.transformer.dtype)
        return latents * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def denoise(
        self,
        latents: torch.Tensor,
        condition: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator=None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """
        Flow from noise to (normalised) image features, sigma 1 to 0, with classifier-free guidance.

        Everything that depends only on the condition is computed once, before the first step.

        Args:
            latents (`[N, C, h, w]`): noise.
            condition (`[N, num_queries, hidden]`): from `encode_prompt`.

        Returns:
            `torch.Tensor` `[N, C, h, w]`.
        """
        num_images = latents.shape[0]
        condition = condition.to(self.transformer.dtype)
        positive = self.transformer.precompute_condition(condition)
        guided = None
        if guidance_scale != 1.0:
            null = self.transformer.precompute_condition(torch.zeros_like(condition[:1]))
            guided = Blip3oConditionCache.cat([null.repeat_interleave(num_images), positive])

        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)
        low, high = guidance_interval
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps):
                if guided is not None and low <= float(timestep) / 1000 <= high:
                    null_velocity, velocity = self.transformer(
                        torch.cat([latents, latents]), timestep, condition_cache=guided
                    ).sample.chunk(2)
                    velocity = null_velocity + guidance_scale * (velocity - null_velocity)
                else:
                    velocity = self.transformer(latents, timestep, condition_cache=positive).sample
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {name: latents for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, step, timestep, tensors) or {}).get("latents", latents)
                progress.update()
        return latents

    def decode_features(self, image_features: torch.Tensor) -> torch.Tensor:
        """Image features `[N, C, h, w]` to images `[N, 3, H, W]` in [-1, 1] (1 is white)."""
        parameter = next(self.decoder.parameters())
        features = image_features.to(parameter.device, parameter.dtype)
        if self.model.config.objective == "latent_flow":
            config = self.decoder.config
            features = unscale_latents(features, config.scaling_factor, getattr(config, "shift_factor", None))
            return self.decoder.decode(features).sample
        return self.decoder(features).sample

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        **kwargs,
    ) -> None:
        """
        Save every component to its subfolder, and at the root what transformers looks for: the model's config, its
        processor, and an index that points into `model/`. Weights are stored once.
        """
        super().save_pretrained(save_directory, safe_serialization=safe_serialization, variant=variant, **kwargs)
        root = Path(save_directory)
        self.processor.save_pretrained(root)
        for name in ("config.json", "generation_config.json"):
            if (root / "model" / name).is_file():
                (root / name).write_bytes((root / "model" / name).read_bytes())
        weight_map: dict[str, str] = {}
        total_size = 0
        stem = f"model.{variant}" if variant else "model"
        shards = (root / "model").glob(f"{stem}-*.safetensors")
        for path in sorted([*shards, *(root / "model").glob(f"{stem}.safetensors")]):
            total_size += path.stat().st_size
            with safe_open(path, "pt") as weights:
                weight_map.update(dict.fromkeys(weights.keys(), f"model/{path.name}"))
        suffix = f".{variant}.json" if variant else ".json"
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        (root / SAFE_WEIGHTS_INDEX_NAME).with_suffix(suffix).write_text(json.dumps(index, indent=2) + "\n")


register_with_diffusers(Blip3oPipeline)

__all__ = ["Blip3oPipeline", "Blip3oPipelineOutput"]
