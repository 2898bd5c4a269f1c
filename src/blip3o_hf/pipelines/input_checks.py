"""Checks of `Blip3oPipeline` before it computes anything: one clear error for each argument."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image

from ..checks import check_unicode
from ..data.images import as_input_image
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from .decoders import DECODER_ARGUMENTS
from .sampling_arguments import (
    SamplingSettings,
    as_number,
    check_callback_tensors,
    check_finite_tensor,
    check_generators,
    check_latents,
    check_num_images_per_prompt,
    check_output_type,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object


def check_vocabulary(model: Blip3oForConditionalGeneration, processor: Blip3oProcessor) -> None:
    """Raise `ValueError` unless the model embeds every token of the processor's tokenizer."""
    largest = max(processor.tokenizer.get_vocab().values())
    size = model.get_input_embeddings().num_embeddings  # of a weight that an engine partitioned, too
    if largest >= size:
        raise ValueError(
            f"The model must embed every token of the processor's tokenizer. The tokenizer's largest id is "
            f"{largest}, and the model has {size} embeddings. Use the tokenizer that was saved with the model."
        )


def check_attention_kwargs(attention_kwargs: Mapping[str, Any] | None) -> float:
    """
    The factor on LoRA adapters that `attention_kwargs` of a call holds, 1 without.

    Raises:
        ValueError: when it holds anything else.
    """
    is_mapping = isinstance(attention_kwargs, Mapping)
    scale = as_number(attention_kwargs.get("scale", 1.0)) if is_mapping else 1.0
    is_number = isinstance(scale, (int, float)) and math.isfinite(scale)
    is_given = attention_kwargs is not None
    if not is_number or is_mapping != is_given or set(attention_kwargs or ()) - {"scale"}:
        raise ValueError(
            f"`attention_kwargs` takes only the key 'scale', a factor on LoRA adapters. Got "
            f"{attention_kwargs!r:.80}. Choose an attention implementation with `transformer.set_attention_backend`."
        )
    return scale


class Blip3oInputChecksMixin(Base):
    """The checks of `Blip3oPipeline.__call__`."""

    _output_types: ClassVar[tuple[str, ...]]
    _callback_tensor_inputs: ClassVar[tuple[str, ...]]

    def check_inputs(
        self,
        prompts: Sequence[str] | None,
        sampling: SamplingSettings,
        num_images_per_prompt: int,
        latents: torch.Tensor | None,
        condition: torch.Tensor | None,
        image_features: torch.Tensor | None,
        output_type: str,
        strength: float | None = None,
    ) -> None:
        """
        Raise one clear error for the first argument of `__call__` that breaks its contract.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        inputs = {"prompt": prompts, "condition": condition, "image_features": image_features}
        if strength is not None:
            self._check_start(inputs.pop("image_features"), strength)
        given = [name for name, value in inputs.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"Exactly one of `prompt`, `condition` and `image_features` must be given. Got "
                f"{' and '.join(given) or 'none'}. Pass a prompt or its condition to generate, or features to decode."
            )
        check_output_type(output_type, self._output_types)
        if output_type not in ("features", "latent") and self.feature_decoder is None:
            raise ValueError(
                "This pipeline has no decoder, so it makes image features and no pixels. Got "
                f"output_type={output_type!r}. Pass output_type='features', or load a repository with a decoder."
            )
        if image_features is not None and strength is None:
            if not isinstance(image_features, torch.Tensor):
                raise TypeError(
                    f"`image_features` must be a tensor [N, {', '.join(map(str, self.feature_shape))}]. Got "
                    f"{type(image_features).__name__}. `output_type='features'` makes them."
                )
            if not len(image_features.shape) or not len(image_features):
                raise ValueError(
                    f"`image_features` must be those of one image at least. Got {list(image_features.shape)}. "
                    f"`output_type='features'` makes them."
                )
            check_finite_tensor(image_features, "image_features", "`output_type='features'` makes them.")
            return
        self._check_prompts(prompts, condition)
        sampling.check(self.default_sampling)
        check_num_images_per_prompt(num_images_per_prompt)
        num_inputs = len((prompts or ()) if condition is None else condition)
        check_generators(sampling.generator, num_inputs, num_images_per_prompt)
        num_images = num_inputs * num_images_per_prompt
        check_latents(latents, (num_images, *self.feature_shape))
        if image_features is not None and len(image_features) != num_images:
            raise ValueError(
                f"`image_features` to start from must be one for each image to make. Got {len(image_features)} for "
                f"{num_images}. Repeat them with `repeat_interleave`."
            )
        check_callback_tensors(sampling.callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

    def _check_prompts(self, prompts: Sequence[str] | None, condition: torch.Tensor | None) -> None:
        if condition is not None:
            expected = (self.model.config.num_queries, self.model.config.hidden_size)
            if not isinstance(condition, torch.Tensor) or condition.shape[1:] != expected or not len(condition):
                received = list(condition.shape) if isinstance(condition, torch.Tensor) else type(condition).__name__
                raise ValueError(
                    f"`condition` must be a tensor of shape [batch, {', '.join(map(str, expected))}]. Got {received}. "
                    f"`encode_prompt` makes it."
                )
            check_finite_tensor(condition, "condition", "`encode_prompt` makes it.")
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
        else:
            check_unicode(prompts, "`prompt`")

    def _check_start(self, image_features: Any, strength: Any) -> None:
        """Raise `ValueError` unless a flow can start from these features at this noise level."""
        if not isinstance(strength, (int, float)) or not 0 < strength <= 1:
            raise ValueError(f"`strength` must be a noise level in (0, 1]. Got {strength!r}. Try 0.6.")
        if not self.model.objective.has_noise:
            raise ValueError(
                f"Only a flow starts from features. Got `strength` {strength}, and this model's objective is "
                f"{self.model.config.objective!r}. Leave it out."
            )
        if not isinstance(image_features, torch.Tensor) or tuple(image_features.shape[1:]) != self.feature_shape:
            received = getattr(image_features, "shape", None)
            received = type(image_features).__name__ if received is None else list(received)
            raise ValueError(
                f"`strength` asks for `image_features` of shape [batch, {', '.join(map(str, self.feature_shape))}] to "
                f"start from. Got {received}. `Blip3oReconstructionPipeline.encode_images` makes them."
            )
        way_out = "`Blip3oReconstructionPipeline.encode_images` makes them."
        check_finite_tensor(image_features, "image_features", way_out)

    def check_negative_prompt(
        self,
        negative_prompt: str | Sequence[str] | None,
        prompts: Sequence[str] | None,
        condition: torch.Tensor | None,
        guidance_scale: float,
    ) -> list[str] | None:
        """
        The negative prompt of each prompt or condition; `None` where there are none.

        Raises:
            TypeError, ValueError: when it is no text, not one for each, or guidance could not use it.
        """
        if negative_prompt is None:
            return None
        num_inputs = len(condition) if condition is not None else len(prompts or ())
        texts = [negative_prompt] * (num_inputs or 1) if isinstance(negative_prompt, str) else negative_prompt
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise TypeError(
                f"`negative_prompt` must be a string or a list of strings. Got {type(texts).__name__} {texts!r:.60}. "
                f"Example: negative_prompt='a blue square'."
            )
        check_unicode(texts, "`negative_prompt`")
        if not any(texts):
            return None
        reasons = {
            "only features are decoded": num_inputs == 0,
            "this pipeline has no processor to read it": self.processor is None,
            f"the objective {self.model.config.objective!r} has no guidance": not self.model.objective.has_noise,
            f"guidance_scale={guidance_scale} switches guidance off": guidance_scale == 1,
        }
        reason = next((reason for reason, holds in reasons.items() if holds), None)
        if reason is not None:
            raise ValueError(
                f"`negative_prompt` is what guidance leads away from. Got {texts[0]!r:.60}, but {reason}. "
                f"Leave it out."
            )
        if len(texts) != num_inputs:
            raise ValueError(
                f"`negative_prompt` must be one for all, or one for each prompt. Got {len(texts)} for {num_inputs}. "
                f"Give an empty one to those that have none."
            )
        return list(texts)

    def check_images(self, image: Any, prompts: Sequence[str] | None) -> list[list[Image.Image]]:
        """
        The input images of each prompt, upright and in RGB.

        Raises:
            TypeError, ValueError: when there are no prompts, not one entry for each, or something else than images is
                given.
        """
        if prompts is None:
            raise ValueError("`image` needs a prompt. Got an image and no prompt. Say what to do with the image.")
        self.model.check_vision()
        if len(prompts) == 1 and not (isinstance(image, (list, tuple)) and image and isinstance(image[0], list)):
            image = [image]
        if not isinstance(image, (list, tuple)) or len(image) != len(prompts):
            count = len(image) if isinstance(image, (list, tuple)) else 1
            raise ValueError(
                f"`image` must hold one entry for each prompt, an image or a list of images. Got {count} for "
                f"{len(prompts)} prompts. Repeat an image that belongs to several."
            )
        lists = [list(entry) if isinstance(entry, (list, tuple)) else [entry] for entry in image]
        if not all(lists):
            raise ValueError("Each prompt's list of images must hold one. Got an empty list. Leave `image` out.")
        return [[as_input_image(picture) for picture in pictures] for pictures in lists]

    def check_decoder_inputs(self, features: torch.Tensor, decoding: dict[str, Any], generator=None) -> None:
        """
        Raise one clear error for the first argument of `__call__` that the decoder cannot take.

        Args:
            features (`[N, C, h, w]`): given ones, or on the meta device those that will be generated.
            decoding: arguments of `decode_features`, by name.
            generator: of the call.
        """
        decoder = self.feature_decoder
        taken = () if decoder is None else decoder.settings
        refused = {name: called for name, called in DECODER_ARGUMENTS.items() if name not in taken}
        given = [called for name, called in refused.items() if decoding[name] is not None]
        if given:
            raise ValueError(
                f"Only a diffusion decoder takes {', '.join(refused.values())}. Got {', '.join(given)}, and this "
                f"pipeline has none. Leave them out, or load a pipeline with `unet`, `vae` and "
                f"`decoder_scheduler`."
            )
        if decoder is not None:
            decoder.check_inputs(features, **decoder.taken({**decoding, "generator": generator}))


__all__ = ["Blip3oInputChecksMixin", "check_attention_kwargs", "check_vocabulary"]
