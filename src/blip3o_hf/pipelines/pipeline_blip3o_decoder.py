"""Image features to pixels by diffusion: the paper's decoder, an SDXL-style UNet and VAE (paper section 5.1)."""

import functools
import inspect
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from ..checkpoints.decoder_files import CONFIG_FILES, decoder_weights, local_decoder
from ..checkpoints.loading import check_finite, load_complete
from ..checkpoints.tensor_checks import located
from ..checks import unknown_name
from ..models.plain_weights import plain_parts
from ..objectives.latent_flow import unscale_latents, vae_scale_factor
from .guidance import Denoiser, denoise_with_guidance
from .sampling_arguments import (
    SamplingSettings,
    as_number,
    check_callback_tensors,
    check_generators,
    check_latents,
    check_num_images_per_prompt,
    check_output_type,
)
from .sampling_runs import Blip3oSamplingRunsMixin, scheduler_of_run

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
NUM_INFERENCE_STEPS = 50
GUIDANCE_SCALE = 3.0
DEFAULT_SAMPLING = SamplingSettings(NUM_INFERENCE_STEPS, GUIDANCE_SCALE)
ORIGINAL_SIZE = (1024, 1024)  # the size condition of every image, whatever the size that is drawn
CROP = (0, 0)

_MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
DTYPE_ARGUMENTS = ("dtype", "torch_dtype")
# While one thread has a VAE in fp32 for its images, another must not take it back to fp16.
_UPCAST = threading.Lock()


class PixelDenoiser(Denoiser):
    """
    The UNet, as what its scheduler steps along: the noise in latents under image features, or their velocity.

    Args:
        unet, vae_scale_factor: of the pipeline.
        scheduler: with its timesteps set.
        latents (`[N, latent channels, H, W]`): those that it will denoise first, for their size and precision.
        image_features (`[N, C, h, w]` or `[N, h * w, C]`): one row per image.
        null_features (`[1 or N, ...]`, *optional*): what guidance leads away from; needed with guidance.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae_scale_factor: int,
        scheduler: SchedulerMixin,
        latents: torch.Tensor,
        image_features: torch.Tensor,
        null_features: torch.Tensor | None,
    ):
        self.unet = unet
        self.scheduler = scheduler
        self.condition = feature_tokens(image_features).to(latents.device, unet.dtype)
        self.null_condition = None
        if null_features is not None:
            self.null_condition = feature_tokens(null_features).to(self.condition).expand_as(self.condition)
        size = [side * vae_scale_factor for side in latents.shape[-2:]]
        self.time_ids = image_conditions(*size).to(latents.device).repeat(len(latents), 1)

    def predict(self, latents: torch.Tensor, index: int) -> torch.Tensor:
        return self._prediction(latents, index, self.condition, self.time_ids)

    def predict_both(self, latents: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.null_condition is None:
            raise ValueError(
                "Guidance needs `null_features`. A callback switched it on, and there are none. Pass those of "
                "`Blip3oPipeline.prepare_null_features()`."
            )
        if "guided" not in self.computed:
            both = torch.cat([self.condition, self.null_condition])
            self.computed["guided"] = both, self.time_ids.repeat(2, 1)
        both = self._prediction(torch.cat([latents, latents]), index, *self.computed["guided"])
        prediction, null_prediction = both.chunk(2)
        return prediction, null_prediction

    def _prediction(
        self, latents: torch.Tensor, index: int, tokens: torch.Tensor, time_ids: torch.Tensor
    ) -> torch.Tensor:
        timestep = self.scheduler.timesteps[index]
        scaled = self.scheduler.scale_model_input(latents, timestep)
        return predict_from_features(self.unet, scaled, timestep, tokens, time_ids)


class Blip3oDecoderPipeline(Blip3oSamplingRunsMixin, DiffusionPipeline):
    """
    Draws images from image features, generated ones or those of the target encoder (paper section 5.1: the diffusion
    decoder follows Emu2).

    The UNet attends to all feature tokens; their mean and the image size condition every block through the time
    embedding. The stages are public methods in the order in which they run: `prepare_latents`, `denoise`,
    `decode_latents`.

    Args:
        unet ([`~diffusers.UNet2DConditionModel`]): with `addition_embed_type="text_time"` and a
            `cross_attention_dim` equal to the features' channels (1792 at full size).
        vae ([`~diffusers.AutoencoderKL`]): latents to pixels. For large batches, `pipe.vae.enable_slicing()` decodes
            image by image.
        scheduler ([`~diffusers.EulerDiscreteScheduler`] or any diffusion scheduler of diffusers): noise levels and
            steps.

    Raises:
        ValueError: when the UNet takes no mean feature and no image size.

    Example:

    ```python
    >>> from blip3o_hf import Blip3oDecoderPipeline

    >>> decoder = Blip3oDecoderPipeline.from_pretrained("diffusion-decoder")  # doctest: +SKIP
    >>> image = decoder(features, null_features).images[0]  # doctest: +SKIP

    ```
    """

    model_cpu_offload_seq = "unet->vae"
    _callback_tensor_inputs = ("latents", "prompt_embeds")

    def __init__(self, unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler: EulerDiscreteScheduler):
        super().__init__()
        if unet.config.addition_embed_type != "text_time":
            raise ValueError(
                f"The decoder's UNet must take the mean feature and the image size: addition_embed_type='text_time'. "
                f"Got addition_embed_type={unet.config.addition_embed_type!r}. Use the UNet of a BLIP3-o decoder."
            )
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler)
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        subfolder: str | None = None,
        variant: str | None = None,
        part_arguments: dict[str, dict[str, Any]] | None = None,
        **kwargs,
    ) -> "Blip3oDecoderPipeline":
        """
        Load a decoder that `save_pretrained` wrote, or the `diffusion-decoder` folder of a published checkpoint.

        Needed are the folders `unet`, `vae` and `scheduler`; a `model_index.json` is not read, and other folders are
        left alone. Weights are read from safetensors files alone.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            subfolder: where in it the decoder lies.
            variant: which weight files to read, such as `"bf16"` for `diffusion_pytorch_model.bf16.safetensors`. By
                default those without a variant; where a part has none of these, `bf16`, then `fp16`, then the first
                in alphabetical order. The variant says nothing about the precision in memory: pass `dtype`.
            part_arguments: arguments for one part alone, such as `{"unet": {"quantization_config": ...}}`.
            unet, vae, scheduler: parts to use instead of those in the folder.
            kwargs: passed on to the `from_pretrained` of UNet and VAE (`device_map`, ...). `dtype` is one for both, or
                one for each: `{"unet": ..., "vae": ..., "default": ...}`; `quantization_config` may be a
                `PipelineQuantizationConfig`.

        Raises:
            ValueError: when a part is missing, incomplete or damaged, has weights that are no numbers, or has them in
                pickle files only; when arguments are given for a part that there is not.
        """
        check_part_names(kwargs, CONFIG_FILES)
        _check_parts(part_arguments or {}, _MODELS, "argument `part_arguments`")
        components = {name: kwargs.pop(name) for name in CONFIG_FILES if name in kwargs}
        missing = [name for name in CONFIG_FILES if name not in components]
        folder = local_decoder(pretrained_model_name_or_path, subfolder, missing, variant, **kwargs)
        kwargs |= {name: as_dtype(kwargs[name]) for name in DTYPE_ARGUMENTS if name in kwargs}
        kwargs["use_safetensors"] = True
        for name in missing:
            if name in _MODELS:
                arguments = part_settings(kwargs, name) | (part_arguments or {}).get(name, {})
                components[name] = _load_model(_MODELS[name], folder / name, variant, arguments)
            else:
                components[name] = load_scheduler(folder)
        pipeline = cls(**components)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @functools.wraps(DiffusionPipeline.save_pretrained, assigned=())
    def save_pretrained(self, *args, **kwargs) -> None:
        """
        As in diffusers. Other variants in the folder stay.

        Raises:
            ValueError: when a part carries adapters.
        """
        given = inspect.signature(super().save_pretrained).bind(*args, **kwargs).arguments
        with plain_parts(self.components, given["save_directory"], given.get("variant")):
            super().save_pretrained(*args, **kwargs)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, in height and in width (8 for SDXL)."""
        return vae_scale_factor(self.vae)

    @torch.no_grad()
    def __call__(
        self,
        image_features: torch.Tensor,
        null_features: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = NUM_INFERENCE_STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ):
        """
        Args:
            image_features (`[B, C, h, w]` or `[B, h * w, C]`): features to draw, on the target encoder's own scale;
                tokens in row-major order.
            null_features (`[1 or B, C, h, w]` or `[1 or B, h * w, C]`): features of the null prompt, from which
                guidance leads away: those of [`Blip3oPipeline.prepare_null_features`]. Needed with guidance only.
            height, width: image size in pixels, multiples of `vae_scale_factor`; by default the UNet's own (1024 at
                full size).
            num_inference_steps: denoising steps, at least 1.
            guidance_scale: strength of classifier-free guidance, at least 0; up to 1 there is none.
            guidance_interval: `(low, high)` noise levels between which guidance is applied, as fractions of the
                scheduler's training timesteps: 1 is pure noise, 0 the image.
            num_images_per_prompt: images per row of features; those of one row come one after the other.
            generator: one generator for all images, or one per image. With one per image, a batch gives the same
                images as its rows alone.
            latents (`[N, latent channels, height / vae_scale_factor, width / vae_scale_factor]`, *optional*): noise
                to start from, standard normal.
            output_type: `"pil"`, `"np"` (`[N, H, W, 3]` in [0, 1]), `"pt"` (`[N, 3, H, W]` in [0, 1]), or `"latent"`
                to stop before the VAE.
            return_dict: whether to return an [`~diffusers.ImagePipelineOutput`] and not a tuple `(images,)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; tensors it
                returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: which tensors the callback gets: `latents`, and as `prompt_embeds` the
                feature tokens. It may also set `pipe._interrupt` and `pipe._guidance_scale`.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or a tuple.

        Raises:
            TypeError, ValueError: on bad input, before anything is computed.
        """
        height, width = self.image_size(as_number(height), as_number(width))
        num_images_per_prompt = as_number(num_images_per_prompt)
        sampling = SamplingSettings(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        self.check_inputs(
            image_features, null_features, height, width, sampling, num_images_per_prompt, latents, output_type
        )
        image_features = image_features.repeat_interleave(num_images_per_prompt, dim=0)
        if null_features is not None and len(null_features) > 1:
            null_features = null_features.repeat_interleave(num_images_per_prompt, dim=0)
        latents = self.prepare_latents(len(image_features), height, width, generator, latents)
        latents = self.denoise(latents, image_features, null_features, **vars(sampling))
        images = latents
        if output_type != "latent":
            images = self.image_processor.postprocess(self.decode_latents(latents), output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def image_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels, with the UNet's own size for what is left out."""
        latent_sizes = self.unet.config.sample_size
        if latent_sizes is None or isinstance(latent_sizes, int):
            latent_sizes = (latent_sizes, latent_sizes)
        sizes = []
        for name, given, latent_size in zip(("height", "width"), (height, width), latent_sizes, strict=True):
            if given is None and latent_size is None:
                raise ValueError(
                    f"`{name}` must be given when the UNet's config names no `sample_size`. Got None. Pass it in "
                    f"pixels, such as {name}=1024."
                )
            sizes.append(latent_size * self.vae_scale_factor if given is None else given)
        return sizes[0], sizes[1]

    def check_inputs(
        self,
        image_features: torch.Tensor,
        null_features: torch.Tensor | None,
        height: int,
        width: int,
        sampling: SamplingSettings,
        num_images_per_prompt: int,
        latents: torch.Tensor | None,
        output_type: str,
    ) -> None:
        """Raise one clear error for the first argument of `__call__` that breaks its contract."""
        check_output_type(output_type, OUTPUT_TYPES)
        self.check_sampling(height, width, sampling)
        self.check_features(image_features, null_features)
        if sampling.guidance_scale > 1 and null_features is None:
            raise ValueError(
                f"Guidance needs `null_features`, the features that the model generates for its null prompt. Got "
                f"guidance_scale={sampling.guidance_scale} and no null features. Pass those of "
                f"`Blip3oPipeline.prepare_null_features()`, or guidance_scale=1."
            )
        check_num_images_per_prompt(num_images_per_prompt)
        check_generators(sampling.generator, len(image_features), num_images_per_prompt)
        check_latents(latents, self._latents_shape(len(image_features) * num_images_per_prompt, height, width))
        check_callback_tensors(sampling.callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    def check_sampling(
        self,
        height: int,
        width: int,
        sampling: SamplingSettings,
        defaults: SamplingSettings = DEFAULT_SAMPLING,
        prefix: str = "",
    ) -> None:
        """
        Raise a `ValueError` for the first of these that breaks its contract; `defaults` and `prefix` are for the
        message, as of [`~pipelines.sampling_arguments.SamplingSettings.check`].
        """
        for name, value in (("height", height), ("width", width)):
            if type(value) is not int or value < 1 or value % self.vae_scale_factor:
                raise ValueError(
                    f"`{name}` must be a positive multiple of {self.vae_scale_factor} pixels, the side of a latent. "
                    f"Got {value!r}. Leave it out for the decoder's own size."
                )
        sampling.check(defaults, prefix)

    def check_features(self, image_features: torch.Tensor, null_features: torch.Tensor | None = None) -> None:
        """
        Check features against the UNet, and null features against them.

        Raises:
            TypeError: when one is no tensor.
            ValueError: when one has the wrong shape.
        """
        for name, features in (("image_features", image_features), ("null_features", null_features)):
            if features is None and name == "null_features":
                continue
            if not isinstance(features, torch.Tensor):
                raise TypeError(
                    f"`{name}` must be a tensor [batch, channels, height, width] or [batch, tokens, channels]. Got "
                    f"{type(features).__name__}. `Blip3oPipeline(..., output_type='features')` makes features."
                )
            if features.ndim not in (3, 4) or len(features) == 0:
                raise ValueError(
                    f"`{name}` must have shape [batch, channels, height, width] or [batch, tokens, channels]. Got "
                    f"{list(features.shape)}. Add the batch dimension of a single image with `[None]`."
                )
            self.check_channels(feature_tokens(features).shape[-1])
        if null_features is None:
            return
        expected, received = (feature_tokens(features).shape for features in (image_features, null_features))
        if received[0] not in (1, expected[0]) or received[1:] != expected[1:]:
            raise ValueError(
                f"`null_features` must hold one row of {expected[1]} tokens, or one per row of `image_features` "
                f"({expected[0]}). Got {received[0]} of {received[1]} tokens. Generate them with the same model."
            )

    def check_channels(self, channels: int) -> None:
        """Raise a `ValueError` when the UNet does not attend to features of so many channels."""
        width = self.unet.config.cross_attention_dim
        widths = {width} if isinstance(width, int) else set(width)
        if widths != {channels}:
            raise ValueError(
                f"The UNet's `cross_attention_dim` must equal the features' channels. It is "
                f"{', '.join(map(str, sorted(widths)))}, the features have {channels}. Use the decoder that was "
                f"trained for this model's features."
            )

    def prepare_latents(
        self, num_images: int, height: int, width: int, generator=None, latents: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Standard normal noise to start from, in the UNet's precision: drawn, or the caller's own.

        Returns:
            `torch.Tensor` `[num_images, latent channels, height / vae_scale_factor, width / vae_scale_factor]`.
        """
        if latents is None:
            generator = list(generator) if isinstance(generator, tuple) else generator
            shape = self._latents_shape(num_images, height, width)
            latents = randn_tensor(shape, generator, self._execution_device, self.unet.dtype)
        return latents.to(self._execution_device, self.unet.dtype)

    def denoise(
        self,
        latents: torch.Tensor,
        image_features: torch.Tensor,
        null_features: torch.Tensor | None = None,
        num_inference_steps: int = NUM_INFERENCE_STEPS,
        guidance_scale: float = GUIDANCE_SCALE,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator=None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """
        Diffuse noise to the latents of images, with classifier-free guidance above a scale of 1.

        Args:
            latents (`[N, latent channels, H, W]`): standard normal noise; the scheduler's first noise level scales it.
            image_features (`[N, C, h, w]` or `[N, h * w, C]`): one row per image.
            null_features (`[1 or N, ...]`): needed with guidance.
            generator: for schedulers that draw noise at every step.

        Returns:
            `torch.Tensor` `[N, latent channels, H, W]`.
        """
        sampling = SamplingSettings(
            num_inference_steps,
            guidance_scale,
            guidance_interval,
            generator,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        with scheduler_of_run(self.scheduler) as scheduler:
            scheduler.set_timesteps(sampling.num_inference_steps, device=latents.device)
            denoiser = PixelDenoiser(
                self.unet, self.vae_scale_factor, scheduler, latents, image_features, null_features
            )
            latents = latents * scheduler.init_noise_sigma
            return denoise_with_guidance(self, scheduler, latents, sampling, denoiser)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """
        Latents to images `[N, 3, H, W]` in [-1, 1] (1 is white).

        The VAE runs in its own precision, as in the reference, but in fp32 when it is kept in fp16 and its config
        says that this overflows (`force_upcast`).
        """
        if not self.vae.config.force_upcast:
            return self._decode_latents(latents)
        with _UPCAST:
            overflows = self.vae.dtype == torch.float16
            if overflows:
                self.vae.to(dtype=torch.float32)
            try:
                return self._decode_latents(latents)
            finally:
                if overflows:
                    self.vae.to(dtype=torch.float16)

    def _decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        latents = latents.to(self._execution_device, self.vae.dtype)
        return self.vae.decode(unscale_latents(latents, config.scaling_factor, config.shift_factor)).sample

    def _latents_shape(self, num_images: int, height: int, width: int) -> tuple[int, int, int, int]:
        factor = self.vae_scale_factor
        return num_images, self.unet.config.in_channels, height // factor, width // factor


def image_conditions(height: int, width: int) -> torch.Tensor:
    """What SDXL calls time ids, `[1, 6]`: the original size and the crop, the same for every image, and its size."""
    return torch.tensor([[*ORIGINAL_SIZE, *CROP, height, width]])


def predict_from_features(
    unet: torch.nn.Module,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    tokens: torch.Tensor,
    time_ids: torch.Tensor,
) -> torch.Tensor:
    """
    What the decoder's UNet predicts of latents: it attends to all feature tokens, and their mean and the image size
    condition its blocks.

    Args:
        latents (`[N, latent channels, h, w]`): scaled as the UNet expects them.
        timestep: one, or one for each of the latents.
        tokens (`[N, L, C]`): features.
        time_ids (`[N, 6]`): see `image_conditions`.
    """
    conditions = {"text_embeds": tokens.mean(dim=1), "time_ids": time_ids}
    return unet(latents, timestep, encoder_hidden_states=tokens, added_cond_kwargs=conditions).sample


def feature_tokens(features: torch.Tensor) -> torch.Tensor:
    """Features `[B, C, h, w]` as tokens `[B, h * w, C]`, row-major: index = w * row + column. Tokens stay tokens."""
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def as_dtype(dtype: Any) -> Any:
    """
    What diffusers takes as `dtype`, of that and the names that transformers takes, too: `"bfloat16"` or `"auto"`;
    alone, or in a dictionary by parts.

    Raises:
        ValueError: when a name is not the name of a floating-point type.
    """
    if isinstance(dtype, dict):
        return {part: as_dtype(value) for part, value in dtype.items()}
    if not isinstance(dtype, str):
        return dtype
    if dtype == "auto":
        return None
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(
            f"`dtype` must be a floating-point type of PyTorch, or its name. Got {dtype!r}. Use torch.bfloat16 or "
            f"'bfloat16'."
        )
    return named


def check_part_names(arguments: Mapping[str, Any], parts: Collection[str]) -> None:
    """
    Check the parts for which a pipeline's `from_pretrained` is given arguments: a dictionary as `dtype`, and a
    `PipelineQuantizationConfig`.

    Raises:
        ValueError: naming the first part that the pipeline does not have, the nearest that it has, and all of them.
    """
    for name in DTYPE_ARGUMENTS:
        if isinstance(arguments.get(name), Mapping):
            _check_parts(arguments[name], (*parts, "default"), f"argument `{name}`")
    quantization = arguments.get("quantization_config")
    for attribute in ("quant_mapping", "components_to_quantize"):
        _check_parts(getattr(quantization, attribute, None) or (), parts, f"`{attribute}` of `quantization_config`")


def _check_parts(names: Iterable[str], parts: Collection[str], origin: str) -> None:
    for name in names:
        if name not in parts:
            raise ValueError(unknown_name("part", name, parts, origin))


def part_settings(settings: Mapping[str, Any], part: str, is_diffusers: bool = True) -> dict[str, Any]:
    """
    Arguments of `from_pretrained` for one part, of those for a pipeline: of a `dtype` for each part (a dictionary,
    whose `default` is for all others) and of a `PipelineQuantizationConfig` what is for this one.
    """
    settings = dict(settings)
    for name in DTYPE_ARGUMENTS:
        if isinstance(settings.get(name), Mapping):
            settings[name] = settings[name].get(part, settings[name].get("default"))
            if settings[name] is None:
                del settings[name]
    quantization = settings.get("quantization_config")
    if hasattr(quantization, "_resolve_quant_config"):
        settings["quantization_config"] = quantization._resolve_quant_config(is_diffusers, part)
        if settings["quantization_config"] is None:
            del settings["quantization_config"]
    return settings


def _load_model(model_class: Any, folder: Path, variant: str | None, kwargs: dict) -> torch.nn.Module:
    """The UNet or VAE in `folder`, whole and of finite numbers."""
    variant, tensors = decoder_weights(folder, variant)
    model, _ = load_complete(model_class.from_pretrained, folder, variant=variant, **kwargs)
    check_finite(model, folder, partial(located, tensors))
    return model


def load_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler in `folder`, of the class that its config names."""
    name = EulerDiscreteScheduler.load_config(folder, subfolder="scheduler").get("_class_name")
    scheduler_class = getattr(diffusers, str(name), None)
    if not isinstance(scheduler_class, type) or not issubclass(scheduler_class, SchedulerMixin):
        raise ValueError(
            f"The decoder's scheduler must be one of diffusers. {folder}/scheduler/{CONFIG_FILES['scheduler']} names "
            f"{name!r}. Pass your own: from_pretrained(folder, scheduler=...)."
        )
    return scheduler_class.from_pretrained(folder, subfolder="scheduler")


__all__ = [
    "DTYPE_ARGUMENTS",
    "Blip3oDecoderPipeline",
    "as_dtype",
    "check_part_names",
    "feature_tokens",
    "image_conditions",
    "load_scheduler",
    "part_settings",
    "predict_from_features",
]
