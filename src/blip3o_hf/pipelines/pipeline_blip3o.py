"""Text to image with BLIP3-o: prompt to condition, condition to image features, features to pixels."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, ModelMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from ..checkpoints.loading import align, check_finite, named_errors, tensors_in
from ..checkpoints.lookup import checkpoint_files
from ..checkpoints.published_config import is_published
from ..checkpoints.settings import read_settings
from ..checkpoints.tensor_checks import check_floating_point
from ..models.decoder_patch import Blip3oPatchDecoder
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..models.transformer_next_dit import Blip3oTransformer2DModel
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .checking import Checker, draw_until_shown
from .decoders import Blip3oFeatureDecoder, DiffusionDecoder, check_decoder_parts, decoder_of_part
from .denoising import Blip3oDenoisingMixin
from .input_checks import Blip3oInputChecksMixin, check_attention_kwargs, check_vocabulary
from .lora import Blip3oLoraLoaderMixin
from .pipeline_blip3o_decoder import (
    DTYPE_ARGUMENTS,
    GUIDANCE_SCALE,
    NUM_INFERENCE_STEPS,
    Blip3oDecoderPipeline,
    as_dtype,
    check_part_names,
)
from .plans_and_attempts import Blip3oPlansAndAttemptsMixin
from .published_pipeline import load_published_parts
from .repository import Blip3oRepositoryMixin
from .sampling_arguments import SamplingSettings, as_number
from .sampling_runs import Blip3oSamplingRunsMixin

PARTS = ("model", "processor", "scheduler", "decoder", "unet", "vae", "decoder_scheduler")
FEATURE_OUTPUT_TYPES = ("features", "latent")
OUTPUT_TYPES = ("pil", "np", "pt", *FEATURE_OUTPUT_TYPES)


def has_pipeline(source: str | os.PathLike, **kwargs: Any) -> bool:
    """
    Whether [`Blip3oPipeline`] can be loaded: a published checkpoint, or a folder or repository with a
    `model_index.json`.

    Args:
        source: folder or Hub id.
        kwargs: arguments of `from_pretrained` that say where to look.
    """
    if is_published(source, **kwargs):
        return True
    return checkpoint_files(source, **kwargs).path(Blip3oPipeline.config_name) is not None


@dataclass
class Blip3oPipelineOutput(BaseOutput):
    """
    Args:
        images: list of PIL images, array `[N, H, W, 3]` in [0, 1], tensor `[N, 3, H, W]` in [0, 1]; `None` with
            `output_type="features"`, and the features with `"latent"`.
        image_features (`torch.Tensor` `[N, C, h, w]`): the generated image features.
        plans (`list[str]`, *optional*): what the backbone wrote before it drew, one text per image, with a plan.
        attempts (`list[int]`, *optional*): how often each image was drawn, where the pictures were looked at.
        scores (`list[float]`, *optional*): what the checker said of each, in [0, 1].
        accepted (`list[bool]`, *optional*): whether that was enough.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor | None
    image_features: torch.Tensor
    plans: list[str] | None = None
    attempts: list[int] | None = None
    scores: list[float] | None = None
    accepted: list[bool] | None = None


def _end_answers(model: Blip3oForConditionalGeneration, processor: Blip3oProcessor) -> None:
    """
    Let the model's answers end where the tokenizer says, when no file did: of a repository on the Hub, diffusers does
    not fetch the part's `generation_config.json`.
    """
    settings, tokenizer = model.generation_config, processor.tokenizer
    if settings.eos_token_id is None:
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id


class Blip3oPipeline(
    Blip3oRepositoryMixin,
    Blip3oInputChecksMixin,
    Blip3oPlansAndAttemptsMixin,
    Blip3oDenoisingMixin,
    Blip3oSamplingRunsMixin,
    Blip3oLoraLoaderMixin,
    DiffusionPipeline,
):
    """
    Generates images from prompts (paper section 5.1).

    The stages are public methods in the order in which they run: `encode_prompt`, `prepare_latents`, `denoise`,
    `decode_features`.

    Args:
        model ([`Blip3oForConditionalGeneration`]): backbone, queries and transformer.
        processor ([`Blip3oProcessor`], *optional*): chat template, tokenizer and image processor. Without it,
            prompts cannot be read, and `condition` or `image_features` must be given.
        scheduler ([`Blip3oFlowScheduler`] or any flow-matching scheduler of diffusers): noise levels and steps.
        decoder ([`Blip3oPatchDecoder`], `AutoencoderKL`, *optional*): features to pixels in one pass; or your own
            module that is a [`~pipelines.decoders.Blip3oFeatureDecoder`].
        unet, vae, decoder_scheduler (*optional*): features to pixels by diffusion, the parts of a
            [`Blip3oDecoderPipeline`]. Without these three and without `decoder` only `output_type="features"` works.
        default_num_inference_steps, default_guidance_scale: what `__call__` uses when not told otherwise.
        default_decoder_num_inference_steps, default_decoder_guidance_scale: the same for the diffusion decoder.
        null_prompt, null_seed: the raw text, outside any template, and the seed of the noise from which the features
            are generated that guidance of the diffusion decoder leads away from; see `prepare_null_features`. A
            `null_seed` of `None` is the reference's way: the noise is drawn by the first call that needs it.
        default_plan: whether the backbone writes what it will draw before it draws, when not told otherwise.
        default_num_attempts: how often an image is drawn at most until the model sees in it what was asked for.
        plan_top_p: share in (0, 1] of the likeliest words that plans are sampled from; greedy with `None`, so that all
            images of a prompt have one plan.

    Raises:
        ValueError: when parts of the diffusion decoder are missing, stand beside `decoder`, or were made for other
            features.

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

    model_cpu_offload_seq = "model->decoder->unet->vae"
    # A list: diffusers adds it to one.
    _optional_components = ["processor", "decoder", "unet", "vae", "decoder_scheduler"]
    _callback_tensor_inputs = ("latents", "prompt_embeds")
    _output_types = OUTPUT_TYPES

    def __init__(
        self,
        model: Blip3oForConditionalGeneration,
        processor: Blip3oProcessor | None,
        scheduler: Blip3oFlowScheduler,
        decoder: Blip3oPatchDecoder | AutoencoderKL | Blip3oFeatureDecoder | None = None,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | None = None,
        decoder_scheduler: EulerDiscreteScheduler | None = None,
        default_num_inference_steps: int = 30,
        default_guidance_scale: float = 3.0,
        default_decoder_num_inference_steps: int = NUM_INFERENCE_STEPS,
        default_decoder_guidance_scale: float = GUIDANCE_SCALE,
        null_prompt: str = " ",
        null_seed: int | None = 0,
        default_plan: bool = False,
        default_num_attempts: int = 1,
        plan_top_p: float | None = None,
    ):
        super().__init__()
        diffusion_decoder = {"unet": unet, "vae": vae, "decoder_scheduler": decoder_scheduler}
        check_decoder_parts(decoder, **diffusion_decoder)
        if processor is not None:
            _end_answers(model, processor)
        self.register_modules(
            model=model, processor=processor, scheduler=scheduler, decoder=decoder, **diffusion_decoder
        )
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_guidance_scale=default_guidance_scale,
            default_decoder_num_inference_steps=default_decoder_num_inference_steps,
            default_decoder_guidance_scale=default_decoder_guidance_scale,
            null_prompt=null_prompt,
            null_seed=null_seed,
            default_plan=default_plan,
            default_num_attempts=default_num_attempts,
            plan_top_p=plan_top_p,
        )
        if processor is not None:
            check_vocabulary(model, processor)
        self.image_processor = VaeImageProcessor()
        self.null_features: torch.Tensor | None = None
        if self.decoder_pipeline is not None:
            self.decoder_pipeline.check_channels(model.config.feature_dim)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "Blip3oPipeline":
        """
        As in diffusers, and from a published checkpoint as it is: model, tokenizer and `diffusion-decoder/` of one
        repository, with the settings of the reference (docs/parity.md).

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            kwargs: as in diffusers: parts to use instead of those in the repository (`model=`, `processor=`,
                `scheduler=`, `unet=`, `vae=`, `decoder_scheduler=`), `dtype` (one, or one per part:
                `{"model": ..., "unet": ..., "default": ...}`), `variant` (of the diffusion decoder's files),
                `quantization_config` (a `PipelineQuantizationConfig`), `device_map`, and the settings of
                [`Blip3oPipeline`]. Of a published checkpoint, the model also gets all arguments of its own
                `from_pretrained`, such as `attn_implementation`.

        Raises:
            ValueError: when a part is incomplete or damaged, or has weights that are not finite; when a `dtype` or a
                quantisation is given for a part that there is not.
        """
        check_part_names(kwargs, PARTS)
        pretrained_model_name_or_path = os.path.expanduser(pretrained_model_name_or_path)
        kwargs |= {name: as_dtype(kwargs[name]) for name in DTYPE_ARGUMENTS if name in kwargs}
        kwargs["use_safetensors"] = True
        if is_published(pretrained_model_name_or_path, **kwargs):
            names = inspect.signature(cls.__init__).parameters.keys() - {"self"}
            pipeline = cls(**load_published_parts(pretrained_model_name_or_path, names, **kwargs))
            pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
            return pipeline
        for settings in Path(pretrained_model_name_or_path).glob("*/*config.json"):  # of a folder on this machine
            read_settings(settings)  # of which diffusers takes a list for the name of a repository
        with named_errors(pretrained_model_name_or_path):
            pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name, part in pipeline.components.items():
            if isinstance(part, ModelMixin) and not hasattr(part, "_hf_hook"):
                absent = [key for key, parameter in part.named_parameters() if parameter.is_meta]
                if absent:
                    raise ValueError(
                        f"A checkpoint must hold every tensor of the model. {pretrained_model_name_or_path}/{name} "
                        f"lacks {len(absent)}, {absent[0]} among them. Save or download it again."
                    )
                folder = part.config.get("_name_or_path") or ""
                if os.path.isdir(folder) and not getattr(part, "is_quantized", False):
                    check_floating_point(tensors_in(Path(folder)), folder)
                align(part)
                check_finite(part, f"{pretrained_model_name_or_path}/{name}", str)
        return pipeline

    @property
    def transformer(self) -> Blip3oTransformer2DModel:
        """The diffusion transformer inside the model."""
        return self.model.transformer

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the features of one image."""
        config = self.model.config
        return config.feature_dim, config.feature_size, config.feature_size

    @property
    def default_sampling(self) -> SamplingSettings:
        """What denoises features where a call does not choose."""
        return SamplingSettings(self.config.default_num_inference_steps, self.config.default_guidance_scale)

    @property
    def decoder_pipeline(self) -> Blip3oDecoderPipeline | None:
        """
        The diffusion decoder as a separate pipeline on the same modules; `None` if there is no diffusion decoder.
        """
        if self.unet is None:
            return None
        pipeline = Blip3oDecoderPipeline(unet=self.unet, vae=self.vae, scheduler=self.decoder_scheduler)
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        pipeline._sampling_runs = self._runs  # an interrupt is for both stages
        return pipeline

    @property
    def feature_decoder(self) -> Blip3oFeatureDecoder | None:
        """What makes pixels from features, by diffusion or in one pass; `None` without a decoder."""
        if self.decoder is not None:
            return decoder_of_part(self.decoder, self.model.objective, lambda: self._execution_device)
        pipeline = self.decoder_pipeline
        if pipeline is None:
            return None
        config = self.config
        defaults = SamplingSettings(config.default_decoder_num_inference_steps, config.default_decoder_guidance_scale)
        return DiffusionDecoder(pipeline, defaults, self.prepare_null_features, self.model.config)

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
        condition: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        null_features: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        decoder_num_inference_steps: int | None = None,
        decoder_guidance_scale: float | None = None,
        decoder_guidance_interval: tuple[float, float] | None = None,
        image: Image.Image | Sequence | None = None,
        strength: float | None = None,
        plan: bool | None = None,
        num_attempts: int | None = None,
        checker: Checker | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        attention_kwargs: dict[str, Any] | None = None,
    ):
        """
        Args:
            prompt: one prompt or several; with images, what to do with them.
            num_inference_steps: denoising steps, at least 1.
            guidance_scale: strength of classifier-free guidance, at least 0; 1 samples the plain condition.
            guidance_interval: `(low, high)` noise levels sigma in [0, 1] between which guidance is applied.
            num_images_per_prompt: images per prompt; the images of one prompt come one after the other.
            generator: one generator for all images, or one per image. With one per image, a batch gives the same
                images as its prompts alone. It draws the noise of the features first, then that of the null features
                where `null_seed` is `None` and no call drew it yet, then that of the diffusion decoder.
            latents (`[N, C, h, w]`, *optional*): noise to start from, standard normal.
            condition (`[B, num_queries, hidden]`, *optional*): what `encode_prompt` returns; no prompt is read then.
            image_features (`[N, C, h, w]`, *optional*): features to decode; no prompt and no condition are read then.
                With `strength`, one for each image to make: features to start from.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"features"` to stop before the decoder; `"latent"` is another
                word for that, with which `images` are the features, too.
            return_dict: whether to return a [`Blip3oPipelineOutput`] and not a tuple `(images, image_features)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; tensors it
                returns replace the pipeline's. It may also set `pipe._interrupt` and `pipe._guidance_scale`.
            callback_on_step_end_tensor_inputs: which tensors the callback gets: `latents`, and as `prompt_embeds` the
                condition.
            null_features (`[1 or N, C, h, w]`, *optional*): features that guidance of the diffusion decoder leads
                away from; by default those of `prepare_null_features`.
            height, width: image size in pixels, by default the diffusion decoder's own.
            decoder_num_inference_steps, decoder_guidance_scale, decoder_guidance_interval: those of the diffusion
                decoder, as in [`Blip3oDecoderPipeline`]. These and the three above are for a diffusion decoder only.
            image (*optional*): the input images of the prompt: one image, or several in a list. With several prompts,
                a list with one entry for each: an image, or a list of images.
            strength (*optional*): noise level in (0, 1] from which `image_features` are denoised. A small one keeps
                the image, 1 starts from noise alone.
            plan: let the backbone first write what it will draw, and draw that; for a prompt with images, the plan
                describes the picture after the edit. What it wrote is in `plans`.
            num_attempts: how often an image is drawn at most. The model looks at what it drew and says whether it
                shows the plan, or without one the prompt; a rejected picture is drawn again with the next noise. Of
                several rejected ones the best is kept. With 1, nothing is looked at.
            checker: a function that checks the pictures instead of the model: given pictures and what each should
                show, it returns a number from 0 to 1 for each; a picture is accepted from 0.5 on.
            negative_prompt: what guidance leads away from: one prompt for all images, or one for each prompt. This
                goes beyond the paper: its model is guided away from zeros, and so it is here without one, or with an
                empty one.
            attention_kwargs: `{"scale": ...}`, a factor on the active LoRA adapters, for this call.

        Returns:
            [`Blip3oPipelineOutput`] or a tuple.

        Raises:
            TypeError, ValueError: on bad input, before anything is computed.
        """
        prompts: Any = [prompt] if isinstance(prompt, str) else prompt
        num_images_per_prompt, strength = as_number(num_images_per_prompt), as_number(strength)
        sampling = replace(
            self.default_sampling.chosen(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale),
            guidance_interval=guidance_interval,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        decoding: dict[str, Any] = {
            "null_features": null_features,
            "height": as_number(height),
            "width": as_number(width),
            "num_inference_steps": as_number(decoder_num_inference_steps),
            "guidance_scale": as_number(decoder_guidance_scale),
            "guidance_interval": decoder_guidance_interval,
        }
        self.check_inputs(
            prompts, sampling, num_images_per_prompt, latents, condition, image_features, output_type, strength
        )
        lora_scale = check_attention_kwargs(attention_kwargs)
        negative_prompts = self.check_negative_prompt(negative_prompt, prompts, condition, sampling.guidance_scale)
        images = None if image is None else self.check_images(image, prompts)
        plan = self._wants_plan(plan, prompts)
        check = self._picture_check(
            num_attempts,
            checker,
            prompts,
            num_images_per_prompt,
            plan=plan,
            has_images=images is not None,
            output_type=output_type,
            is_variation=strength is not None,
        )
        start_features = None
        if strength is not None:
            start_features, image_features = image_features, None
        if image_features is None:
            num_images = len(prompts if condition is None else condition) * num_images_per_prompt
            self.check_decoder_inputs(torch.empty(num_images, *self.feature_shape, device="meta"), decoding, generator)
        else:
            self.check_decoder_inputs(image_features, decoding, generator)

        def pixels_of(features: torch.Tensor, generator: Any) -> torch.Tensor | None:
            if output_type in FEATURE_OUTPUT_TYPES:
                return None
            return self.decode_features(features, **decoding, generator=generator)

        def draw(numbers: list[int], attempt: int) -> tuple[torch.Tensor, Any, list[str] | None]:
            """Features, pixels and plans of the images of these numbers."""
            drawing = sampling
            if isinstance(generator, (list, tuple)):
                drawing = replace(sampling, generator=[generator[number] for number in numbers])
            rows, plans = [number // num_images_per_prompt for number in numbers], None
            if plan:
                shown = None if images is None else [images[row] for row in rows]
                plans = self._sample_plans([prompts[row] for row in rows], shown, drawing.generator)
                conditions = self.encode_prompt(plans, images=shown, truncation=True)
            else:
                assert condition is not None
                conditions = condition.to(self._execution_device)[rows]
            features = self.generate_features(
                conditions,
                **vars(drawing),
                latents=latents if attempt == 0 else None,
                start_features=None if start_features is None else start_features[numbers],
                strength=strength,
                null_condition=None if null_condition is None else null_condition[rows],
            )
            return features, pixels_of(features, drawing.generator), plans

        kept, plans = None, None
        with self._sampling_run(self._shares_state or lora_scale != 1) as run, self._scaled_lora(lora_scale):
            if condition is None and image_features is None and not plan:
                condition = self.encode_prompt(prompts, images=images)
            null_condition = self.encode_negative_prompt(negative_prompts)
            if image_features is not None:
                pixels = pixels_of(image_features, generator)
            elif check is None:
                image_features, pixels, plans = draw(list(range(num_images)), 0)
            else:
                number = self._num_attempts(num_attempts)
                kept = draw_until_shown(draw, check, num_images, number, lambda: run.was_interrupted)
                image_features, pixels, plans = kept.features, kept.pixels, kept.plans
        drawn = image_features if output_type == "latent" else None
        if pixels is not None:
            drawn = self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return drawn, image_features
        output = Blip3oPipelineOutput(images=drawn, image_features=image_features, plans=plans)
        if kept is not None:
            output.attempts, output.scores, output.accepted = kept.numbers, kept.scores, kept.accepted
        return output

    @torch.no_grad()
    def prepare_null_features(
        self, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> torch.Tensor:
        """
        Features of the null prompt, `[1, C, h, w]`, that guidance of the diffusion decoder leads away from.

        They are generated once per pipeline and kept in `null_features`, always from the `null_prompt`, `null_seed`
        and default steps and guidance of the config. With a `null_seed`, their noise comes from a generator of their
        own: they depend on no other call, and take no random number from one. With `null_seed=None`, as in the
        reference, `generator` draws it (the first of a list; PyTorch's global one without any), so that all later
        images depend on the state it had. After a change of weights, set `null_features = None`.

        Raises:
            ValueError: when the pipeline has no processor to read the null prompt.
        """
        if self.null_features is None:
            if self.processor is None:
                raise ValueError(
                    "Guidance of the diffusion decoder needs features of the null prompt, which only a processor can "
                    "read. This pipeline has none. Pass `null_features`, or decoder_guidance_scale=1."
                )
            if self.config.null_seed is not None:
                generator = torch.Generator().manual_seed(self.config.null_seed)
            elif isinstance(generator, (list, tuple)):
                generator = generator[0]
            with self._sampling_run(self._shares_state) as run:
                features = self.generate_features(
                    self.encode_prompt([self.config.null_prompt], raw=True),
                    self.config.default_num_inference_steps,
                    self.config.default_guidance_scale,
                    generator=generator,
                )
            if run.was_interrupted:
                return features  # and not kept, since steps are missing
            self.null_features = features
        return self.null_features

    def decode_features(
        self,
        image_features: torch.Tensor,
        null_features: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """
        Image features `[N, C, h, w]` to images `[N, 3, H, W]` in [-1, 1] (1 is white).

        All arguments but the first are for a diffusion decoder, see [`Blip3oDecoderPipeline`], or for your own decoder
        if it takes them.

        Raises:
            ValueError: when the pipeline has no decoder.
        """
        decoder = self.feature_decoder
        if decoder is None:
            raise ValueError(
                "Image features become pixels in a decoder. This pipeline has none. Load one with "
                "`decoder=`, or with `unet=`, `vae=` and `decoder_scheduler=`, or keep the features."
            )
        settings = {
            "null_features": null_features,
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "generator": generator,
        }
        return decoder.decode(image_features, **decoder.taken(settings))

    def _load_offloaded_model(self) -> None:
        """Bring the model to its device under CPU offloading, whose hook watches `forward` alone."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)


__all__ = ["Blip3oPipeline", "Blip3oPipelineOutput", "has_pipeline"]
