"""From a prompt to image features: the first stages of `Blip3oPipeline`, and the transformer in them."""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..models.condition_cache import Blip3oConditionCache, Blip3oModulation
from ..models.modeling_blip3o import Blip3oForConditionalGeneration, has_noise
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .guidance import Denoiser, denoise_with_guidance
from .sampling_arguments import SamplingSettings, as_number
from .sampling_runs import scheduler_of_run

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object


MODULATED_ROWS = 64
"""Rows of a product of modulations: samples times steps."""


class FeatureDenoiser(Denoiser):
    """
    The transformer, as a velocity of features under a condition. What depends on conditions alone is computed once,
    when it is first needed.

    Args:
        model: whose transformer denoises.
        scheduler: with its timesteps set.
        condition (`[N, num_queries, hidden]`): from `encode_prompt`.
        null_condition (`[1 or N, num_queries, hidden]`, *optional*): what guidance leads away from; zeros without.
    """

    guides_below = True

    def __init__(
        self,
        model: Blip3oForConditionalGeneration,
        scheduler: SchedulerMixin,
        condition: torch.Tensor,
        null_condition: torch.Tensor | None = None,
    ):
        self.transformer = model.transformer
        objective = model.objective
        assert has_noise(objective)  # without, features are there in one pass
        self.objective = objective
        self.timesteps, self.sigmas = scheduler.timesteps, scheduler.sigmas.to(condition.device)
        self.r_timesteps = None
        if self.transformer.config.is_flow_map:
            _check_follows_maps(scheduler)
            self.r_timesteps = torch.cat([self.timesteps[1:], torch.zeros_like(self.timesteps[:1])])
        self._is_null_constant = null_condition is None
        self.null_condition = torch.zeros_like(condition[:1]) if null_condition is None else null_condition
        self.condition = condition

    def is_guided(self, scale: float) -> bool:
        if self.r_timesteps is not None and scale != 1:
            raise ValueError(
                f"A flow map is drawn without guidance: it learned what guidance does. Got guidance_scale={scale:g}. "
                f"Leave it out, or pass guidance_scale=1.0."
            )
        return super().is_guided(scale)

    def predict(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        return self._velocity(latents, index, "plain", self._plain_arguments())

    def predict_both(self, latents: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        velocities = self._velocity(torch.cat([latents, latents]), index, "guided", self._guided_arguments())
        null_velocity, conditional_velocity = velocities.chunk(2)
        return conditional_velocity, null_velocity

    def _velocity(self, latents: torch.Tensor, index: int, batch: str, condition: dict[str, Any]) -> torch.Tensor:
        if "condition_cache" in condition:
            condition = {**condition, "modulation": self._modulation(index, batch, condition["condition_cache"])}
        elif self.r_timesteps is not None:
            condition = {**condition, "r_timestep": self.r_timesteps[index]}
        # Caches of block outputs (`pipe.transformer.enable_cache`) tell batches of two sizes apart.
        is_cached = self.transformer.is_cache_enabled
        with self.transformer.cache_context(batch) if is_cached else contextlib.nullcontext():
            prediction = self.transformer(latents, self.timesteps[index], **condition).sample
        return self.objective.predicted_velocity(prediction, latents, self.sigmas[index])

    def _modulation(self, index: int, batch: str, cache: Blip3oConditionCache) -> Blip3oModulation:
        """What the noise level of a step does, computed for some steps at once: a product of few rows is slow."""
        known: dict[int, Blip3oModulation] = self.computed.get(f"{batch} modulations", {})
        if index not in known:
            end = index + max(1, MODULATED_ROWS // cache.batch_size)
            steps = self.timesteps[index:end].to(cache.pooled.device)
            to = None if self.r_timesteps is None else self.r_timesteps[index:end].to(cache.pooled.device)
            computed = self.transformer.precompute_modulations(steps, cache.pooled, to)
            known = dict(enumerate(computed, start=index))
            self.computed[f"{batch} modulations"] = known
        return known[index]

    def _plain_arguments(self) -> dict[str, Any]:
        """What the transformer attends to in every step without guidance, as its arguments."""
        if "plain" not in self.computed:
            if self._offloads_groups:  # which brings weights back in `forward` alone
                self.computed["plain"] = {"encoder_hidden_states": self.condition}
            else:
                self.computed["plain"] = {"condition_cache": self.transformer.precompute_condition(self.condition)}
        return self.computed["plain"]

    def _guided_arguments(self) -> dict[str, Any]:
        """The same with guidance: of a batch of twice the size, the null condition first."""
        if "guided" not in self.computed:
            repeats = len(self.condition) // len(self.null_condition)
            if self._offloads_groups:
                null = self.null_condition.repeat_interleave(repeats, dim=0)
                self.computed["guided"] = {"encoder_hidden_states": torch.cat([null, self.condition])}
            else:
                null = self.transformer.precompute_condition(self.null_condition)
                if self._is_null_constant:
                    null = null.as_constant(self.transformer.config.num_attention_heads)
                null = null.repeat_interleave(repeats)
                cache = self._plain_arguments()["condition_cache"]
                self.computed["guided"] = {"condition_cache": Blip3oConditionCache.cat([null, cache])}
        return self.computed["guided"]

    @property
    def _offloads_groups(self) -> bool:
        hooks = getattr(self.transformer, "_diffusers_hook", None)
        return hooks is not None and hooks.get_hook("group_offloading") is not None


def _check_follows_maps(scheduler: SchedulerMixin) -> None:
    """
    Raises:
        ValueError: when its steps are no Euler steps, which alone go where a flow map says.
    """
    is_ours = isinstance(scheduler, Blip3oFlowScheduler) and scheduler.config.solver == "euler"
    is_plain = type(scheduler) is FlowMatchEulerDiscreteScheduler and not scheduler.config.stochastic_sampling
    if not (is_ours or is_plain):
        raise ValueError(
            f"A flow map is sampled by Euler steps. Got {type(scheduler).__name__} with "
            f"solver={scheduler.config.get('solver')!r}. Set pipe.scheduler = "
            f"Blip3oFlowScheduler.from_config(pipe.scheduler.config, solver='euler')."
        )


class Blip3oDenoisingMixin(Base):
    """The stages of `Blip3oPipeline` between a prompt and image features."""

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        raw: bool = False,
        images: Sequence[Sequence[Image.Image]] | None = None,
        truncation: bool = False,
        prompts: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """
        Prompts to conditions `[number of prompts * num_images_per_prompt, num_queries, hidden]`.

        Args:
            prompt: one or several; `prompts` is another name of this argument.
            raw: leave out instruction and template.
            images: those of each prompt.
            truncation: cut captions that are too long.

        Raises:
            TypeError: when there is no prompt, or it is given twice.
        """
        given = [value for value in (prompt, prompts) if value is not None]
        if len(given) != 1:
            raise TypeError(
                f"`prompt` must be given once, and `prompts` is another name of it. Got {len(given)} values. Example: "
                f"pipe.encode_prompt('two red circles')."
            )
        texts = [given[0]] if isinstance(given[0], str) else given[0]
        self._load_offloaded_model()
        inputs = self.processor.encode_prompts(texts, images=images, raw=raw, truncation=truncation)
        condition = self.model.encode_condition(**inputs.to(self._execution_device))
        return condition.repeat_interleave(as_number(num_images_per_prompt), dim=0)

    def encode_negative_prompt(self, negative_prompts: Sequence[str] | None) -> torch.Tensor | None:
        """
        What guidance leads away from, `[len(negative_prompts), num_queries, hidden]`: their conditions, and zeros for
        empty ones; `None` where there are none.
        """
        negative_prompts = negative_prompts or ()
        distinct = [prompt for prompt in dict.fromkeys(negative_prompts) if prompt]
        if not distinct:
            return None
        encoded = self.encode_prompt(distinct)
        conditions = dict(zip(distinct, encoded, strict=True)) | {"": torch.zeros_like(encoded[0])}
        return torch.stack([conditions[prompt] for prompt in negative_prompts])

    def generate_features(
        self,
        condition: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        start_features: torch.Tensor | None = None,
        strength: float | None = None,
        null_condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Conditions `[N, num_queries, hidden]` to image features `[N, C, h, w]` on the target encoder's own scale: by
        `prepare_latents` and `denoise`, or in one pass where the model's objective has no noise. With `start_features`
        `[N, C, h, w]` the flow starts from these at the noise level `strength`. Guidance leads away from zeros, as the
        published model's does, or from `null_condition`.

        Raises:
            ValueError: when the features are not finite: no decoder could show them.
        """
        if self.model.objective.has_noise:
            if start_features is not None:
                start_features = self.model.normalize_features(start_features.to(self._execution_device))
            features = self.denoise(
                self.prepare_latents(condition.shape[0], generator, latents),
                condition,
                num_inference_steps,
                guidance_scale,
                guidance_interval,
                generator,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
                start_features,
                strength,
                null_condition,
            )
        else:
            self._load_offloaded_model()
            features = self.model.regress_features(condition)
        features = self.model.denormalize_features(features)
        if not features.is_meta and not features.isfinite().all():
            raise ValueError(
                f"Features must be finite numbers. In {features.dtype}, the model made NaN or infinity of this "
                f"condition. Load it with a dtype of wider range (torch.bfloat16 or torch.float32), or give a "
                f"condition that `encode_prompt` made."
            )
        return features

    def prepare_latents(
        self,
        num_images: int,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Noise to start from, `[num_images, C, h, w]`: drawn, or the caller's own."""
        if latents is None:
            generator = list(generator) if isinstance(generator, tuple) else generator
            shape = (num_images, *self.feature_shape)
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
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        start_features: torch.Tensor | None = None,
        strength: float | None = None,
        null_condition: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Flow from noise to (normalised) image features, sigma 1 to 0, with classifier-free guidance.

        Everything that depends only on the condition is computed once, in the first step.

        Args:
            latents (`[N, C, h, w]`): noise.
            condition (`[N, num_queries, hidden]`): from `encode_prompt`.
            generator: for schedulers that draw noise at every step.
            start_features (`[N, C, h, w]`, *optional*): normalised features to start from.
            strength: noise level in (0, 1] at which to start from them; of the steps, those at higher levels are left
                out.
            null_condition (`[1 or N, num_queries, hidden]`, *optional*): what guidance leads away from, from
                `encode_prompt`; zeros without, as in the reference.

        Returns:
            `torch.Tensor` `[N, C, h, w]`.
        """
        sampling = SamplingSettings(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        self._load_offloaded_model()
        condition = condition.to(latents.device, self.transformer.dtype)
        if null_condition is not None:
            null_condition = null_condition.to(condition)
        with scheduler_of_run(self.scheduler) as scheduler:
            scheduler.set_timesteps(sampling.num_inference_steps, device=latents.device)
            denoiser = FeatureDenoiser(self.model, scheduler, condition, null_condition)
            begin = 0
            if start_features is not None:
                order = getattr(scheduler, "order", 1)  # Heun's steps come in pairs
                begin = order * math.ceil(int((denoiser.sigmas > strength).sum()) / order)
                begin = min(begin, len(scheduler.timesteps) - 1)
                level = denoiser.sigmas[begin].to(latents)
                latents = self.model.objective.add_noise(start_features.to(latents), latents, level)
            return denoise_with_guidance(self, scheduler, latents, sampling, denoiser, begin=begin)

    @property
    def _shares_state(self) -> bool:
        return self.model.config.uses_transformer and self.transformer.is_cache_enabled


__all__ = ["Blip3oDenoisingMixin", "FeatureDenoiser"]
