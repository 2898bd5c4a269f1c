"""`transformers.pipeline("text-to-image")`: the task that transformers does not have."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from diffusers.image_processor import VaeImageProcessor
from transformers import Pipeline
from transformers.utils import logging

from ..checks import check_keys
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .pipeline_blip3o import FEATURE_OUTPUT_TYPES, OUTPUT_TYPES, Blip3oPipeline, has_pipeline
from .planning import plan_conversations, spawn
from .sampling_arguments import as_number

logger = logging.get_logger(__name__)

SAMPLING_ARGUMENTS = (
    "num_inference_steps",
    "guidance_scale",
    "guidance_interval",
    "num_images_per_prompt",
    "plan",
    "num_attempts",
    "checker",
    "height",
    "width",
    "decoder_num_inference_steps",
    "decoder_guidance_scale",
    "decoder_guidance_interval",
    "negative_prompt",
    "attention_kwargs",
)
"""What a call takes and hands to [`Blip3oPipeline`], beside `seed`, `generator` and `output_type`."""


class Blip3oTextToImagePipeline(Pipeline):
    """
    Text to image as a pipeline of transformers, around a [`Blip3oPipeline`] of the same repository.

    Args:
        model ([`Blip3oForConditionalGeneration`]): backbone, queries and transformer.
        processor ([`Blip3oProcessor`]): what reads prompts.
        drawing ([`Blip3oPipeline`], *optional*): what draws; by default the pipeline in the repository the model came
            from. A repository without one makes image features and no pixels.
        kwargs: as of [`~transformers.Pipeline`], and any argument of a call, as its default.

    Example:

    ```python
    >>> from transformers import pipeline
    >>> from blip3o_hf import packaged_model_path

    >>> draw = pipeline("text-to-image", model=packaged_model_path("blip3o-tiny"))
    >>> draw("two red circles", seed=0)["image"].size
    (64, 64)

    ```
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False

    def __init__(self, model, processor=None, *, drawing: Blip3oPipeline | None = None, **kwargs):
        kwargs.pop("local_files_only", None)  # transformers hands it on, after the model was loaded by it
        if not isinstance(model, Blip3oForConditionalGeneration):
            raise TypeError(
                f"This pipeline draws with a BLIP3-o. Got {type(model).__name__}. Pass the folder or Hub id of one."
            )
        super().__init__(model=model, processor=processor, **kwargs)
        self.drawing = drawing or open_pipeline(model, processor)
        self.drawing.set_progress_bar_config(disable=True)
        if not hasattr(model, "hf_device_map"):
            self.drawing.to(self.device)

    # The library gives these methods the arguments that `_sanitize_parameters` returns for each of them.

    def __call__(self, prompts: str | Iterable[str], **kwargs):  # ty: ignore[incompatible-method-override]
        """
        Args:
            prompts: one prompt, a list, or a generator or dataset of them.
            seed (`int`, *optional*): of the first image of every prompt; its next ones get the next seeds. So an
                image depends on neither the batch nor the place of its prompt.
            generator (`torch.Generator`, *optional*): what noise is drawn from in the place of a seed, for one prompt
                after the other.
            output_type: `"pil"`, `"np"`, `"pt"`, or `"features"` (also `"latent"`) for image features alone.
            batch_size: prompts drawn at once.
            kwargs: further settings of [`Blip3oPipeline`]: `num_inference_steps`, `guidance_scale`,
                `num_images_per_prompt` and so on.

        Returns:
            For each prompt a dictionary with `image` and `image_features` (`[C, h, w]`), with a plan also `plan`, and
            where pictures are looked at `attempts` and `score`; or a list of these with `num_images_per_prompt` above
            1. A list of prompts gives a list; a generator gives an iterator.

        Raises:
            TypeError, ValueError: on bad input.
        """
        return super().__call__(prompts, **kwargs)

    def _sanitize_parameters(self, seed=None, generator=None, output_type=None, **sampling):
        check_keys(sampling, (*SAMPLING_ARGUMENTS, "seed", "generator", "output_type"), "a call for an image")
        if seed is not None and generator is not None:
            raise ValueError("Noise comes from a `seed` or from a `generator`. Got both. Pass one of them.")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"`generator` must be one torch.Generator. Got {type(generator).__name__}. Pass `seed` for noise that "
                f"depends on the prompt's image alone."
            )
        if output_type is not None and output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}. Got {output_type!r}.")
        forward = {**sampling, "seed": seed, "generator": generator, "output_type": output_type}
        forward = {name: as_number(value) for name, value in forward.items() if value is not None}
        return {}, forward, {} if output_type is None else {"output_type": output_type}

    def preprocess(self, prompt: str) -> dict[str, Any]:  # ty: ignore[incompatible-method-override]
        cast("Blip3oProcessor", self.processor).encode_prompts([prompt])  # checks it
        return {"prompts": prompt}

    def _forward(  # ty: ignore[incompatible-method-override]
        self, inputs, output_type="pil", seed=None, generator=None, num_images_per_prompt=1, **sampling
    ):
        prompts = inputs["prompts"]
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if seed is not None:
            seeds = [seed + number for _ in prompts for number in range(num_images_per_prompt)]
            generator = [torch.Generator().manual_seed(each) for each in seeds]
        output = self.drawing(
            prompts,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            output_type="features" if output_type in FEATURE_OUTPUT_TYPES else "pt",
            **sampling,
        )
        made = {"image_features": output.image_features, "images": output.images}
        made |= {name: getattr(output, name) for name in ("attempts", "scores")}
        made = {
            name: torch.as_tensor(values).unflatten(0, (-1, num_images_per_prompt)).float().cpu()
            for name, values in made.items()
            if values is not None
        }
        if output.plans is not None:
            made["plans"] = [
                output.plans[i : i + num_images_per_prompt] for i in range(0, len(output.plans), num_images_per_prompt)
            ]
        return made

    def postprocess(self, made: dict[str, Any], output_type: str = "pil"):  # ty: ignore[incompatible-method-override]
        results = [{"image_features": features} for features in made["image_features"][0]]
        if output_type not in FEATURE_OUTPUT_TYPES:
            images = made["images"][0]
            if output_type != "pt":
                images = VaeImageProcessor.pt_to_numpy(images)
            if output_type == "pil":
                images = VaeImageProcessor.numpy_to_pil(images)
            results = [{"image": image, **result} for image, result in zip(images, results, strict=True)]
        if "plans" in made:  # the library takes one of a batch out of its list, and leaves a single one in it
            plans = made["plans"] if isinstance(made["plans"][0], str) else made["plans"][0]
            results = [{**result, "plan": plan} for result, plan in zip(results, plans, strict=True)]
        if "scores" in made:
            for result, number, score in zip(results, made["attempts"][0], made["scores"][0], strict=True):
                result |= {"attempts": int(number), "score": float(score)}
        return results if len(results) > 1 else results[0]


def open_pipeline(model: Blip3oForConditionalGeneration, processor: Blip3oProcessor | None = None) -> Blip3oPipeline:
    """The pipeline in the repository that a model came from, or one that makes image features and no pixels."""
    source = model.name_or_path
    parts: dict[str, Any] = {"model": model}
    hub_arguments = {name: value for name, value in getattr(model, "hub_arguments", {}).items() if name != "subfolder"}
    if source and has_pipeline(source, **hub_arguments):
        if processor is not None:
            parts["processor"] = processor
        return Blip3oPipeline.from_pretrained(source, **parts, **hub_arguments, dtype=model.dtype)
    logger.warning(
        f"{source or 'This model'} has no {Blip3oPipeline.config_name}, so there is no decoder that makes pixels of "
        "image features. Pass output_type='features', or drawing=Blip3oPipeline(...) with a decoder."
    )
    scheduler = Blip3oFlowScheduler(shift=model.config.noise_shift, integer_timesteps=False)
    return Blip3oPipeline(processor=processor, scheduler=scheduler, **parts)


def generate_images(
    model: Blip3oForConditionalGeneration,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    **kwargs,
) -> torch.Tensor:
    """
    Draw what a conversation asks for: `model.generate(..., generation_mode="image")`.

    Args:
        model: one that was loaded from a repository with a decoder.
        input_ids (`[B, L]`), attention_mask (`[B, L]`): conversations up to the assistant's turn, padded on the left.
            The token that starts an image is added where it is missing.
        generator: as in [`Blip3oPipeline`].
        kwargs: image inputs of the processor, and further settings of [`Blip3oPipeline`] (`num_inference_steps`,
            `guidance_scale`, `plan` and so on). Those of text generation are without effect. What is drawn is not
            looked at.

    Returns:
        `torch.Tensor` `[B, 3, H, W]` in [0, 1].

    Raises:
        ValueError: when the repository has no processor or no decoder.
    """
    drawing = model.__dict__.get("_drawing")
    if drawing is None:
        drawing = model._drawing = open_pipeline(model)
        drawing.set_progress_bar_config(disable=True)
    if drawing.processor is None or drawing.feature_decoder is None:
        raise ValueError(
            f"Drawing needs the processor and the decoder of the model's repository. "
            f"{model.name_or_path or 'This model'} lacks one. Load a whole pipeline, or use Blip3oPipeline with "
            f"output_type='features'."
        )
    drawing.to(model.device)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    names = ("pixel_values", "image_grid_thw")
    image_inputs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
    if drawing.config.default_plan if kwargs.get("plan") is None else kwargs["plan"]:
        top_p = drawing.config.plan_top_p
        seeds = None if top_p is None else spawn(generator, len(input_ids))
        input_ids, attention_mask = plan_conversations(
            model, drawing.processor, input_ids, attention_mask, image_inputs, seeds, top_p
        )
    start = drawing.processor.tokenizer.convert_tokens_to_ids(drawing.processor.image_start_token)
    if (input_ids[:, -1] != start).any():
        input_ids = torch.cat([input_ids, torch.full_like(input_ids[:, :1], start)], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)
    with torch.no_grad():
        condition = model.encode_condition(cast("torch.LongTensor", input_ids), attention_mask, **image_inputs)
    names = set(SAMPLING_ARGUMENTS) - {"plan", "num_attempts", "checker"}  # which need the prompt
    sampling = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
    return drawing(condition=condition, generator=generator, output_type="pt", **sampling).images


__all__ = ["Blip3oTextToImagePipeline", "generate_images", "open_pipeline"]
