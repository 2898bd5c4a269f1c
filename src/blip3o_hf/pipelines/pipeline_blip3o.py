"""Text to image with BLIP3-o: prompt to condition, condition to image features, features to pixels."""

import contextlib
import inspect
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, ModelMixin, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import get_parameter_dtype
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..data.images import as_input_image
from ..models.checkpoint_files import HUB_ARGUMENTS, checkpoint_files
from ..models.condition_cache import Blip3oConditionCache
from ..models.decoder_patch import Blip3oPatchDecoder
from ..models.loading import align, check_finite
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.original_layout import original_settings
from ..models.processing_blip3o import Blip3oProcessor, has_tokenizer
from ..objectives.feature_flow import add_noise
from ..objectives.latent_flow import unscale_latents
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .checking import BackboneChecker, Checker, check_num_attempts, draw_until_shown
from .lora import Blip3oLoraLoaderMixin
from .pipeline_blip3o_decoder import (
    DTYPE_ARGUMENTS,
    GUIDANCE_SCALE,
    NUM_INFERENCE_STEPS,
    Blip3oDecoderPipeline,
    as_dtype,
    feature_tokens,
    has_decoder,
)
from .planning import PLAN_TOKENS, spawn, write_plans
from .sampling_arguments import (
    check_callback_tensors,
    check_generators,
    check_guidance_interval,
    check_guidance_scale,
    check_latents,
    check_num_images_per_prompt,
    check_num_inference_steps,
)

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "features")
ORIGINAL_DECODER = "diffusion-decoder"
PACKAGE = "blip3o_hf"
# Arguments of `from_pretrained` that the parts of the diffusion decoder take, too.
_DECODER_ARGUMENTS = ("device_map", "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict")
# Arguments of `save_pretrained` that are for `push_to_hub`.
_PUSH_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "license")


def has_pipeline(source: str | os.PathLike, **kwargs) -> bool:
    """
    Whether [`Blip3oPipeline`] can be loaded: a published checkpoint, or a folder or repository with a
    `model_index.json`.

    Args:
        source: folder or Hub id.
        kwargs: arguments of `from_pretrained` that say where to look.
    """
    if original_settings(source, **kwargs) is not None:
        return True
    return checkpoint_files(source, **kwargs).path(Blip3oPipeline.config_name) is not None


@dataclass
class Blip3oPipelineOutput(BaseOutput):
    """
    Args:
        images: list of PIL images, array `[N, H, W, 3]` in [0, 1], tensor `[N, 3, H, W]` in [0, 1], or `None` with
            `output_type="features"`.
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


class Blip3oPipeline(Blip3oLoraLoaderMixin, DiffusionPipeline):
    """
    Generates images from prompts (paper section 5.1).

    The stages are public methods in the order in which they run: `encode_prompt`, `prepare_latents`, `denoise`,
    `decode_features`.

    Args:
        model ([`Blip3oForConditionalGeneration`]): backbone, queries and transformer.
        processor ([`Blip3oProcessor`], *optional*): chat template, tokenizer and image processor. Without it,
            prompts cannot be read, and `condition` or `image_features` must be given.
        scheduler ([`Blip3oFlowScheduler`] or any flow-matching scheduler of diffusers): noise levels and steps.
        decoder ([`Blip3oPatchDecoder`], `AutoencoderKL`, *optional*): features to pixels in one pass.
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

    library: ClassVar[str] = PACKAGE
    """The name under which diffusers finds the classes of the parts; code that a repository carries sets another."""

    model_cpu_offload_seq = "model->decoder->unet->vae"
    # A list: diffusers adds it to one.
    _optional_components = ["processor", "decoder", "unet", "vae", "decoder_scheduler"]
    _callback_tensor_inputs = ("latents",)
    card_writer: ClassVar[Callable[[str | os.PathLike, str], None] | None] = None
    """Writes the card of a saved pipeline, given its folder and where it was loaded from; the package registers it."""
    pusher: ClassVar[Callable[..., str] | None] = None
    """Sends a saved pipeline to the Hub, as [`~hub.push.push_saved`]; the package registers it."""

    def __init__(
        self,
        model: Blip3oForConditionalGeneration,
        processor: Blip3oProcessor | None,
        scheduler: Blip3oFlowScheduler,
        decoder: Blip3oPatchDecoder | AutoencoderKL | None = None,
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
        present = [name for name, part in diffusion_decoder.items() if part is not None]
        if present and (len(present) < len(diffusion_decoder) or decoder is not None):
            received = [*present, "decoder"] if decoder is not None else present
            raise ValueError(
                f"A pipeline decodes by diffusion with `unet`, `vae` and `decoder_scheduler`, or in one pass with "
                f"`decoder`. Got {', '.join(received)}. Pass all three, or `decoder` alone."
            )
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
            self._check_vocabulary(model, processor)
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
            ValueError: when a part is incomplete or damaged, or has weights that are not finite.
        """
        kwargs |= {name: as_dtype(kwargs[name]) for name in DTYPE_ARGUMENTS if name in kwargs}
        kwargs["use_safetensors"] = True
        if original_settings(pretrained_model_name_or_path, **kwargs) is not None:
            return cls._from_original(pretrained_model_name_or_path, **kwargs)
        pipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        for name, part in pipeline.components.items():
            if isinstance(part, ModelMixin) and not hasattr(part, "_hf_hook"):
                absent = [key for key, parameter in part.named_parameters() if parameter.is_meta]
                if absent:
                    raise ValueError(
                        f"A checkpoint must hold every tensor of the model. {pretrained_model_name_or_path}/{name} "
                        f"lacks {len(absent)}, {absent[0]} among them. Save or download it again."
                    )
                align(part)
                check_finite(part, f"{pretrained_model_name_or_path}/{name}", str)
        return pipeline

    @classmethod
    def _from_original(cls, source: str | os.PathLike, **kwargs) -> "Blip3oPipeline":
        """`from_pretrained` of a published checkpoint."""
        names = inspect.signature(cls.__init__).parameters.keys() - {"self"}
        given = {"null_seed": None} | {name: kwargs.pop(name) for name in names & kwargs.keys()}
        where = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        variant = kwargs.pop("variant", None)
        kwargs.pop("use_safetensors")
        dtype = kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None)
        quantization = kwargs.pop("quantization_config", None)
        shared = {name: kwargs[name] for name in _DECODER_ARGUMENTS if name in kwargs}

        def settings(name: str, is_diffusers: bool) -> dict[str, Any]:
            """`dtype` and `quantization_config` of one part."""
            own_dtype = dtype.get(name, dtype.get("default")) if isinstance(dtype, dict) else dtype
            own_quantization = quantization and quantization._resolve_quant_config(is_diffusers, name)
            own = {"dtype": own_dtype, "quantization_config": own_quantization}
            return {key: value for key, value in own.items() if value is not None}

        if isinstance(kwargs.get("device_map"), dict):
            raise ValueError(
                "The `device_map` of a pipeline must be a string, such as 'balanced' or 'cuda'. Got a dictionary. "
                "Load Blip3oForConditionalGeneration with it, and pass `model=`."
            )
        files = checkpoint_files(source, **where)
        if "model" not in given:
            given["model"] = Blip3oForConditionalGeneration.from_pretrained(
                source, **where, **kwargs, **settings("model", is_diffusers=False)
            )
        if "processor" not in given:
            given["processor"] = None
            if has_tokenizer(files):
                given["processor"] = Blip3oProcessor.from_pretrained(source, **where)
            else:
                logger.warning(
                    f"{files} holds no tokenizer, so prompts cannot be read. Pass processor=..., or give `condition`."
                )
        given.setdefault("scheduler", Blip3oFlowScheduler())
        subfolder = "/".join(filter(None, (where.pop("subfolder", None), ORIGINAL_DECODER)))
        decoder_parts = {"unet": "unet", "vae": "vae", "scheduler": "decoder_scheduler"}
        own_parts = {part: given[name] for part, name in decoder_parts.items() if given.get(name) is not None}
        if "decoder" not in given and has_decoder(source, subfolder=subfolder, **where):
            decoder = Blip3oDecoderPipeline.from_pretrained(
                source,
                subfolder=subfolder,
                variant=variant,
                part_arguments={part: settings(part, is_diffusers=True) for part in ("unet", "vae")},
                **own_parts,
                **where,
                **shared,
            )
            given |= {name: getattr(decoder, part) for part, name in decoder_parts.items()}
        elif "decoder" not in given and len(own_parts) < len(decoder_parts):
            logger.warning(f"{files} holds no {ORIGINAL_DECODER}/, so only output_type='features' works.")
        pipeline = cls(**given)
        pipeline.register_to_config(_name_or_path=str(source))
        return pipeline

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """As in diffusers; a repository that carries code (`hub/standalone.py`) is opened with that of this class."""
        settings = super()._dict_from_json_file(json_file)
        class_name = settings.get("_class_name") if isinstance(settings, dict) else None
        if isinstance(class_name, list) and len(class_name) == 2:
            file, settings["_class_name"] = class_name
            for name, value in settings.items():
                if isinstance(value, list) and value[:1] == [f"{file}_part"]:
                    settings[name] = [cls.library, value[1]]
        elif not isinstance(class_name, str):
            raise ValueError(
                f"A {cls.config_name} names the class of its pipeline. {json_file} does not. Save or download it "
                f"again."
            )
        return settings

    @staticmethod
    def _check_vocabulary(model: Blip3oForConditionalGeneration, processor: Blip3oProcessor) -> None:
        largest = max(processor.tokenizer.get_vocab().values())
        size = model.get_input_embeddings().num_embeddings  # of a weight that an engine partitioned, too
        if largest >= size:
            raise ValueError(
                f"The model must embed every token of the processor's tokenizer. The tokenizer's largest id is "
                f"{largest}, and the model has {size} embeddings. Use the tokenizer that was saved with the model."
            )

    @property
    def transformer(self):
        """The diffusion transformer inside the model."""
        return self.model.transformer

    @property
    def decoder_pipeline(self) -> Blip3oDecoderPipeline | None:
        """The diffusion decoder as a pipeline of its own, on the same modules; `None` without one."""
        if self.unet is None:
            return None
        pipeline = Blip3oDecoderPipeline(unet=self.unet, vae=self.vae, scheduler=self.decoder_scheduler)
        pipeline.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return pipeline

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
            image_features (`[N, C, h, w]`, *optional*): features to decode; neither is read then. With `strength`, one
                for each image to make: features to start from.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"features"` to stop before the decoder.
            return_dict: whether to return a [`Blip3oPipelineOutput`] and not a tuple `(images, image_features)`.
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after every step; tensors it
                returns replace the pipeline's.
            callback_on_step_end_tensor_inputs: which tensors the callback gets; `latents` is the only one.
            null_features (`[1 or N, C, h, w]`, *optional*): features that guidance of the diffusion decoder leads
                away from; by default those of `prepare_null_features`.
            height, width: image size in pixels, by default the diffusion decoder's own.
            decoder_num_inference_steps, decoder_guidance_scale, decoder_guidance_interval: those of the diffusion
                decoder, as in [`Blip3oDecoderPipeline`]. These and the three above are for a diffusion decoder only.
            image (*optional*): what the prompt speaks of: one image, or several in a list. With several prompts, a
                list with one entry for each: an image, or a list of images.
            strength (*optional*): noise level in (0, 1] from which `image_features` are denoised. A small one keeps
                the image, 1 starts from noise alone.
            plan: let the backbone first write what it will draw, and draw that; of a prompt with images, what they
                will have become. What it wrote is in `plans`.
            num_attempts: how often an image is drawn at most. The model looks at what it drew and says whether it
                shows the plan, or without one the prompt; a rejected picture is drawn again with the next noise. Of
                several rejected ones the best is kept. With 1, nothing is looked at.
            checker: what looks in the model's place: given pictures and what each should show, it returns a number
                from 0 to 1 for each, accepted from 0.5 on.

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
            condition,
            image_features,
            output_type,
            callback_on_step_end_tensor_inputs,
            strength,
        )
        images = None if image is None else self.check_images(image, prompts)
        plan = self._wants_plan(plan, prompts)
        is_variation = strength is not None
        check = self._checker(
            num_attempts, checker, prompts, num_images_per_prompt, plan, images is not None, output_type, is_variation
        )
        inputs = prompts if condition is None else condition
        start_features = None
        if strength is not None:
            start_features, image_features = image_features, None
        num_images = len(image_features) if image_features is not None else len(inputs) * num_images_per_prompt
        self.check_decoder_inputs(
            num_images,
            image_features,
            null_features,
            height,
            width,
            decoder_num_inference_steps,
            decoder_guidance_scale,
            decoder_guidance_interval,
            generator,
        )
        decoding = (
            null_features,
            height,
            width,
            decoder_num_inference_steps,
            decoder_guidance_scale,
            decoder_guidance_interval,
        )
        if condition is None and image_features is None and not plan:
            condition = self.encode_prompt(prompts, images=images)

        def draw(numbers: list[int], attempt: int) -> tuple[torch.Tensor, torch.Tensor | None, list[str] | None]:
            own = [generator[number] for number in numbers] if isinstance(generator, (list, tuple)) else generator
            rows, plans = [number // num_images_per_prompt for number in numbers], None
            if plan:
                shown = None if images is None else [images[row] for row in rows]
                plans = self._sample_plans([prompts[row] for row in rows], shown, own)
                conditions = self.encode_prompt(plans, images=shown, truncation=True)
            else:
                conditions = condition.to(self._execution_device)[rows]
            features = self.generate_features(
                conditions,
                steps,
                scale,
                guidance_interval,
                own,
                latents if attempt == 0 else None,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
                None if start_features is None else start_features[numbers],
                strength,
            )
            pixels = None if output_type == "features" else self.decode_features(features, *decoding, own)
            return features, pixels, plans

        looked, plans, every = None, None, list(range(num_images))
        if image_features is not None:
            pixels = None if output_type == "features" else self.decode_features(image_features, *decoding, generator)
        elif check is None:
            image_features, pixels, plans = draw(every, 0)
        else:
            looked = draw_until_shown(draw, check, num_images, self._num_attempts(num_attempts))
            image_features, pixels, plans = looked.features, looked.pixels, looked.plans
        drawn = None if pixels is None else self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return drawn, image_features
        output = Blip3oPipelineOutput(images=drawn, image_features=image_features, plans=plans)
        if looked is not None:
            output.attempts, output.scores, output.accepted = looked.numbers, looked.scores, looked.accepted
        return output

    def _num_attempts(self, given: int | None) -> int:
        return self.config.default_num_attempts if given is None else given

    def _wants_plan(self, given: bool | None, prompts: Sequence[str] | None) -> bool:
        if prompts is None:
            if given:
                raise ValueError("`plan=True` is for prompts in words. Got no prompt. Leave it out.")
            return False
        plan = self.config.default_plan if given is None else given
        if plan:
            self.processor.encode_prompts(prompts)  # checks them
        return plan

    def _checker(
        self,
        num_attempts,
        checker,
        prompts,
        per_prompt: int,
        plan: bool,
        has_images: bool,
        output_type: str,
        is_variation: bool,
    ):
        """What looks at pictures: pixels, numbers of images and plans to scores; `None` where nothing does."""
        number = self._num_attempts(num_attempts)
        check_num_attempts(number)
        if checker is not None and not callable(checker):
            raise TypeError(
                f"`checker` must be a function of pictures and texts. Got {type(checker).__name__}. Leave it out to "
                f"let the model look."
            )
        reason = None
        if output_type == "features":
            reason = "only pictures can be looked at, and output_type is 'features'"
        elif prompts is None:
            reason = "there is no prompt to compare them with"
        elif has_images and not plan:
            reason = "an instruction does not say what the picture is to show; a plan does (plan=True)"
        elif is_variation:
            reason = "pictures that start from features are variations, and are not judged"
        elif checker is None and not self.model.config.has_vision:
            reason = "this backbone reads text only; pass a `checker`"
        if reason is not None:
            if num_attempts is not None and number > 1:
                raise ValueError(
                    f"A picture is looked at before it is drawn again. Got num_attempts={number}, but {reason}."
                )
            return None
        if number == 1 and checker is None:
            return None
        look = checker if checker is not None else BackboneChecker(self.model, self.processor)

        def check(pixels: torch.Tensor, numbers: list[int], plans: list[str] | None) -> Sequence[float]:
            texts = plans if plans is not None else [prompts[number // per_prompt] for number in numbers]
            return look(self.image_processor.postprocess(pixels, output_type="pil"), texts)

        return check

    def check_inputs(
        self,
        prompts,
        num_inference_steps,
        guidance_scale,
        guidance_interval,
        num_images_per_prompt,
        generator,
        latents,
        condition,
        image_features,
        output_type,
        callback_on_step_end_tensor_inputs,
        strength=None,
    ) -> None:
        """Raise one clear error for the first argument of `__call__` that breaks its contract."""
        inputs = {"prompt": prompts, "condition": condition, "image_features": image_features}
        if strength is not None:
            self._check_start(inputs.pop("image_features"), strength)
        given = [name for name, value in inputs.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"Exactly one of `prompt`, `condition` and `image_features` must be given. Got "
                f"{' and '.join(given) or 'none'}. Pass a prompt or its condition to generate, or features to decode."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}. Got {output_type!r}. "
                f"Use 'pil' for PIL images."
            )
        if output_type != "features" and self.decoder is None and self.unet is None:
            raise ValueError(
                "This pipeline has no decoder, so it makes image features and no pixels. Got "
                f"output_type={output_type!r}. Pass output_type='features', or load a repository with a decoder."
            )
        if image_features is not None and strength is None:
            return
        if condition is not None:
            expected = (self.model.config.num_queries, self.model.config.hidden_size)
            if not isinstance(condition, torch.Tensor) or condition.shape[1:] != expected or not len(condition):
                received = list(condition.shape) if isinstance(condition, torch.Tensor) else type(condition).__name__
                raise ValueError(
                    f"`condition` must be a tensor of shape [batch, {', '.join(map(str, expected))}]. Got {received}. "
                    f"`encode_prompt` makes it."
                )
        elif not isinstance(prompts, (list, tuple)) or not prompts:
            raise TypeError(
                f"`prompt` must be a string or a list of strings. Got {type(prompts).__name__} {prompts!r:.60}. "
                f"Example: pipe('two red circles')."
            )
        elif self.processor is None:
            raise ValueError(
                f"Only a processor can read a prompt. Got {prompts[0]!r:.60}, and this pipeline has none. Load it "
                f"with processor=Blip3oProcessor.from_pretrained(...), or pass `condition`."
            )
        check_num_inference_steps(num_inference_steps, self.config.default_num_inference_steps)
        check_guidance_scale(guidance_scale, self.config.default_guidance_scale)
        check_guidance_interval(guidance_interval)
        check_num_images_per_prompt(num_images_per_prompt)
        num_inputs = len(prompts if condition is None else condition)
        check_generators(generator, num_inputs, num_images_per_prompt)
        size = self.model.config.feature_size
        num_images = num_inputs * num_images_per_prompt
        check_latents(latents, (num_images, self.model.config.feature_dim, size, size))
        if strength is not None and len(image_features) != num_images:
            raise ValueError(
                f"`image_features` to start from must be one for each image to make. Got {len(image_features)} for "
                f"{num_images}. Repeat them with `repeat_interleave`."
            )
        check_callback_tensors(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    def _check_start(self, image_features, strength) -> None:
        config = self.model.config
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise ValueError(f"`strength` must be a noise level in (0, 1]. Got {strength!r}. 0.6 is a place to begin.")
        if not config.uses_transformer:
            raise ValueError(
                f"Only a flow starts from features. Got `strength` {strength}, and this model's objective is "
                f"{config.objective!r}. Leave it out."
            )
        expected = (config.feature_dim, config.feature_size, config.feature_size)
        if not isinstance(image_features, torch.Tensor) or tuple(image_features.shape[1:]) != expected:
            received = getattr(image_features, "shape", None)
            received = type(image_features).__name__ if received is None else list(received)
            raise ValueError(
                f"`strength` asks for `image_features` of shape [batch, {', '.join(map(str, expected))}] to start "
                f"from. Got {received}. `Blip3oReconstructionPipeline.encode_images` makes them."
            )

    def check_images(self, image, prompts: Sequence[str] | None) -> list[list[Image.Image]]:
        """
        The input images of each prompt, upright and in RGB.

        Raises:
            TypeError, ValueError: when there are no prompts, not one entry for each, or an image is none.
        """
        if prompts is None:
            raise ValueError("`image` is what a prompt speaks of. Got an image and no prompt. Say what to do with it.")
        self.model.check_vision()
        if len(prompts) == 1 and not (isinstance(image, (list, tuple)) and image and isinstance(image[0], list)):
            image = [image]
        if not isinstance(image, (list, tuple)) or len(image) != len(prompts):
            count = len(image) if isinstance(image, (list, tuple)) else 1
            raise ValueError(
                f"`image` must hold one entry for each prompt, an image or a list of images. Got {count} for "
                f"{len(prompts)} prompts. Repeat an image that belongs to several."
            )
        lists = [list(own) if isinstance(own, (list, tuple)) else [own] for own in image]
        if not all(lists):
            raise ValueError("Each prompt's list of images must hold one. Got an empty list. Leave `image` out.")
        return [[as_input_image(own) for own in images] for images in lists]

    def check_decoder_inputs(
        self,
        num_images,
        image_features,
        null_features,
        height,
        width,
        num_inference_steps,
        guidance_scale,
        guidance_interval,
        generator,
    ) -> None:
        """Raise one clear error for the first argument of `__call__` that the diffusion decoder cannot take."""
        decoder = self.decoder_pipeline
        if decoder is None:
            arguments = {
                "null_features": null_features,
                "height": height,
                "width": width,
                "decoder_num_inference_steps": num_inference_steps,
                "decoder_guidance_scale": guidance_scale,
                "decoder_guidance_interval": guidance_interval,
            }
            given = [name for name, value in arguments.items() if value is not None]
            if given:
                raise ValueError(
                    f"Only a diffusion decoder takes {', '.join(arguments)}. Got {', '.join(given)}, and this "
                    f"pipeline has none. Leave them out, or load a pipeline with `unet`, `vae` and "
                    f"`decoder_scheduler`."
                )
            return
        decoder.check_sampling(
            *decoder.image_size(height, width),
            *self._decoder_settings(num_inference_steps, guidance_scale, guidance_interval),
            prefix="decoder_",
            defaults=self._decoder_settings(None, None, None)[:2],
        )
        if image_features is None:
            size = self.model.config.feature_size
            image_features = torch.empty(num_images, self.model.config.feature_dim, size, size, device="meta")
        decoder.check_features(image_features, null_features)
        tokens, expected = feature_tokens(image_features).shape[1], self.model.config.feature_size**2
        if tokens != expected:
            raise ValueError(
                f"`image_features` must hold the model's {expected} tokens, as its null features do. Got "
                f"{list(image_features.shape)}. Features of another size are for `Blip3oDecoderPipeline`."
            )
        check_generators(generator, num_images, 1)

    def encode_prompt(
        self,
        prompts: Sequence[str],
        num_images_per_prompt: int = 1,
        raw: bool = False,
        images: Sequence[Sequence[Image.Image]] | None = None,
        truncation: bool = False,
    ) -> torch.Tensor:
        """
        Prompts to conditions `[len(prompts) * num_images_per_prompt, num_queries, hidden]`; `raw` prompts go without
        instruction and template, `images` are those of each prompt, `truncation` cuts captions that are too long.
        """
        self._load_offloaded_model()
        inputs = self.processor.encode_prompts(list(prompts), images=images, raw=raw, truncation=truncation)
        condition = self.model.encode_condition(**inputs.to(self._execution_device))
        return condition.repeat_interleave(num_images_per_prompt, dim=0)

    @torch.no_grad()
    def write_plans(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = PLAN_TOKENS,
        images: Sequence[Sequence[Image.Image]] | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> list[str]:
        """
        What the backbone writes when asked, by the processor's `plan_instruction`, what to draw for each prompt, given
        its images. Greedy, or sampled with a generator on the CPU for each prompt.
        """
        self._load_offloaded_model()
        top_p = self.config.plan_top_p
        return write_plans(
            self.model, self.processor, prompts, images, self._execution_device, generators, top_p, max_new_tokens
        )

    def _sample_plans(self, prompts: Sequence[str], images, generator) -> list[str]:
        """A plan for each image: sampled, or greedy, then written once for equal prompts."""
        if self.config.plan_top_p is not None:
            return self.write_plans(prompts, images=images, generators=spawn(generator, len(prompts)))
        if images is not None:
            return self.write_plans(prompts, images=images)
        distinct = list(dict.fromkeys(prompts))
        plans = dict(zip(distinct, self.write_plans(distinct), strict=True))
        return [plans[prompt] for prompt in prompts]

    def generate_features(
        self,
        condition: torch.Tensor,
        num_inference_steps: int,
        guidance_scale: float,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        generator=None,
        latents: torch.Tensor | None = None,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        start_features: torch.Tensor | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """
        Conditions `[N, num_queries, hidden]` to image features `[N, C, h, w]` on the target encoder's own scale: by
        `prepare_latents` and `denoise`, or by regression where that is the model's objective. With `start_features`
        `[N, C, h, w]` the flow starts from these at the noise level `strength`.
        """
        if self.model.config.uses_transformer:
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
            )
        else:
            self._load_offloaded_model()
            features = self.model.regress_features(condition)
        return self.model.denormalize_features(features)

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
        start_features: torch.Tensor | None = None,
        strength: float | None = None,
    ) -> torch.Tensor:
        """
        Flow from noise to (normalised) image features, sigma 1 to 0, with classifier-free guidance.

        Everything that depends only on the condition is computed once, before the first step.

        Args:
            latents (`[N, C, h, w]`): noise.
            condition (`[N, num_queries, hidden]`): from `encode_prompt`.
            start_features (`[N, C, h, w]`, *optional*): normalised features to start from.
            strength: noise level in (0, 1] at which to start from them; of the steps, those at higher levels are left
                out.

        Returns:
            `torch.Tensor` `[N, C, h, w]`.
        """
        self._load_offloaded_model()
        num_images = latents.shape[0]
        condition = condition.to(self.transformer.dtype)
        guided = None
        if self._transformer_offloads_groups:
            # Group offloading brings weights back in `forward` alone.
            positive = {"encoder_hidden_states": condition}
            if guidance_scale != 1.0:
                guided = {"encoder_hidden_states": torch.cat([torch.zeros_like(condition), condition])}
        else:
            cache = self.transformer.precompute_condition(condition)
            positive = {"condition_cache": cache}
            if guidance_scale != 1.0:
                null = self.transformer.precompute_condition(torch.zeros_like(condition[:1]))
                guided = {"condition_cache": Blip3oConditionCache.cat([null.repeat_interleave(num_images), cache])}

        self.scheduler.set_timesteps(num_inference_steps, device=latents.device)
        begin = 0
        if start_features is not None:
            order = getattr(self.scheduler, "order", 1)  # Heun's steps come in pairs
            begin = order * math.ceil(int((self.scheduler.sigmas > strength).sum()) / order)
            begin = min(begin, len(self.scheduler.timesteps) - 1)
            latents = add_noise(start_features.to(latents), latents, self.scheduler.sigmas[begin].to(latents))
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(begin)
        low, high = guidance_interval
        with self.progress_bar(total=len(self.scheduler.timesteps) - begin) as progress:
            for step, timestep in enumerate(self.scheduler.timesteps[begin:]):
                if guided is not None and low <= float(timestep) / 1000 <= high:
                    with self._cache_context("guided"):
                        velocities = self.transformer(torch.cat([latents, latents]), timestep, **guided).sample
                    null_velocity, velocity = velocities.chunk(2)
                    velocity = null_velocity + guidance_scale * (velocity - null_velocity)
                else:
                    with self._cache_context("plain"):
                        velocity = self.transformer(latents, timestep, **positive).sample
                latents = self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    tensors = {name: latents for name in callback_on_step_end_tensor_inputs}
                    latents = (callback_on_step_end(self, step, timestep, tensors) or {}).get("latents", latents)
                progress.update()
        return latents

    @torch.no_grad()
    def prepare_null_features(self, generator=None) -> torch.Tensor:
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
            self.null_features = self.generate_features(
                self.encode_prompt([self.config.null_prompt], raw=True),
                self.config.default_num_inference_steps,
                self.config.default_guidance_scale,
                generator=generator,
            )
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
        generator=None,
    ) -> torch.Tensor:
        """
        Image features `[N, C, h, w]` to images `[N, 3, H, W]` in [-1, 1] (1 is white).

        All arguments but the first are for a diffusion decoder; see [`Blip3oDecoderPipeline`].
        """
        decoder = self.decoder_pipeline
        if decoder is not None:
            steps, scale, interval = self._decoder_settings(num_inference_steps, guidance_scale, guidance_interval)
            if scale > 1 and null_features is None:
                null_features = self.prepare_null_features(generator)
            latents = decoder.prepare_latents(len(image_features), *decoder.image_size(height, width), generator)
            latents = decoder.denoise(latents, image_features, null_features, steps, scale, interval, generator)
            return decoder.decode_latents(latents)
        is_offloaded = hasattr(self.decoder, "_hf_hook") or hasattr(self.decoder, "_diffusers_hook")
        device = self._execution_device if is_offloaded else next(self.decoder.parameters()).device
        features = image_features.to(device, get_parameter_dtype(self.decoder))
        if self.model.config.objective == "latent_flow":
            config = self.decoder.config
            features = unscale_latents(features, config.scaling_factor, getattr(config, "shift_factor", None))
            return self.decoder.decode(features).sample
        return self.decoder(features).sample

    def _decoder_settings(self, num_inference_steps, guidance_scale, guidance_interval):
        """Steps, guidance scale and guidance interval of the diffusion decoder, with defaults for `None`."""
        return (
            self.config.default_decoder_num_inference_steps if num_inference_steps is None else num_inference_steps,
            self.config.default_decoder_guidance_scale if guidance_scale is None else guidance_scale,
            (0.0, 1.0) if guidance_interval is None else guidance_interval,
        )

    @property
    def _transformer_offloads_groups(self) -> bool:
        hooks = getattr(self.transformer, "_diffusers_hook", None)
        return hooks is not None and hooks.get_hook("group_offloading") is not None

    def _cache_context(self, name: str):
        """Caches of block outputs (`pipe.transformer.enable_cache`) tell batches of two sizes apart."""
        is_cached = self.transformer.is_cache_enabled
        return self.transformer.cache_context(name) if is_cached else contextlib.nullcontext()

    def _load_offloaded_model(self) -> None:
        """Bring the model to its device under CPU offloading, whose hook watches `forward` alone."""
        hook = getattr(self.model, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(self.model)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """
        Save every component to its subfolder, and at the root what transformers looks for: the model's config, its
        processor, and an index that points into `model/`. Weights are stored once. `model_index.json` names the
        parts that the pipeline has. A folder without a README.md gets a card; one that is there stays as it is.

        Args:
            save_directory: made if need be.
            safe_serialization: a pickle is not written.
            variant: in the names of all weights, such as `"fp16"`.
            push_to_hub: also push the folder with its card, under the checks of `blip3o-hf push`; with `repo_id` (by
                default the folder's name), `license`, `commit_message`, `private`, `token` and `create_pr` as in
                `push_to_hub`.
            kwargs: as in diffusers.

        Raises:
            ValueError: with `safe_serialization=False`, or when the folder must not be pushed.
        """
        if not safe_serialization:
            raise ValueError(
                "Pipelines are written as safetensors alone. Got safe_serialization=False. Leave the argument out."
            )
        push_arguments = {name: kwargs.pop(name) for name in _PUSH_ARGUMENTS if push_to_hub and name in kwargs}
        super().save_pretrained(save_directory, variant=variant, **kwargs)
        self.write_root(save_directory, variant)
        if self.card_writer is not None and not Path(save_directory, "README.md").exists():
            self.card_writer(save_directory, self.config.get("_name_or_path") or "")
        if push_to_hub:  # with the root, which diffusers knows nothing of
            repo_id = push_arguments.pop("repo_id", Path(save_directory).resolve().name)
            if self.pusher is None or push_arguments.get("create_pr"):
                self.push_to_hub(repo_id, variant=variant, **push_arguments)
            else:
                push_arguments.pop("create_pr", None)
                self.pusher(save_directory, repo_id, **push_arguments)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        license: str | None = None,
    ) -> str:
        """
        Push what `save_pretrained` writes, under the checks of `blip3o-hf push`: a licence and a complete card above
        all. A card that the repository has stays; else the one that `save_pretrained` writes goes up.

        Args:
            repo_id, commit_message, private, token, variant: as in diffusers.
            create_pr, subfolder: with either, diffusers sends the files by itself, with its own card and unchecked.
            safe_serialization: a pickle is not written.
            license: id of the Hub such as `"apache-2.0"`, for the card; needed where none states it.

        Returns:
            `str`: the url of the commit.

        Raises:
            ValueError: when no licence is stated, or something else is wrong with the card; nothing is sent.
            PushError: when the Hub did not take the files.
        """
        if self.pusher is None or create_pr or subfolder is not None:
            if license is not None:
                raise ValueError(
                    f"A licence is stated in a card that this package writes; here, diffusers writes it. Got "
                    f"license={license!r}. Leave it out, and `create_pr` and `subfolder` to have it stated."
                )
            return super().push_to_hub(
                repo_id, commit_message, private, token, create_pr, safe_serialization, variant, subfolder
            )
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, repo_id.rpartition("/")[2])
            self.save_pretrained(folder, safe_serialization, variant)
            return self.pusher(
                folder,
                repo_id,
                takes_card=True,
                license=license,
                private=private,
                commit_message=commit_message,
                token=token,
            )

    def write_root(self, folder: str | os.PathLike, variant: str | None = None) -> None:
        """What `save_pretrained` writes besides the components: the root of a folder that holds these already."""
        root = Path(folder)
        model_index = json.loads((root / self.config_name).read_text())
        model_index = {
            name: [PACKAGE, value[1]] if isinstance(value, list) and value[0] == self.library else value
            for name, value in model_index.items()
            if value != [None, None]
        }
        (root / self.config_name).write_text(json.dumps(model_index, indent=2, sort_keys=True) + "\n")
        if self.processor is not None:
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


__all__ = ["Blip3oPipeline", "Blip3oPipelineOutput", "has_pipeline"]
