"""A published checkpoint as a pipeline: the parts of one repository, with the settings of the reference."""

import os
from collections.abc import Collection
from typing import Any

from diffusers.utils import logging

from ..checkpoints.decoder_files import has_decoder
from ..checkpoints.lookup import HUB_ARGUMENTS, checkpoint_files
from ..checkpoints.published_names import PUBLISHED_DECODER
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor, has_tokenizer
from ..schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .pipeline_blip3o_decoder import Blip3oDecoderPipeline, part_settings

logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that the parts of the diffusion decoder take, too.
_DECODER_ARGUMENTS = ("device_map", "low_cpu_mem_usage", "max_memory", "offload_folder", "offload_state_dict")
# Names of the parts in a `Blip3oDecoderPipeline` and in a `Blip3oPipeline`.
_DECODER_PARTS = {"unet": "unet", "vae": "vae", "scheduler": "decoder_scheduler"}


def load_published_parts(source: str | os.PathLike, names: Collection[str], **kwargs: Any) -> dict[str, Any]:
    """
    Arguments of `Blip3oPipeline` from a published checkpoint: model, tokenizer and `diffusion-decoder/`.

    Args:
        source: folder or Hub id.
        names: of all arguments of `Blip3oPipeline`; those that `kwargs` have are taken in place of what is stored.
        kwargs: as of `Blip3oPipeline.from_pretrained`.

    Raises:
        ValueError: when a part is incomplete or damaged, or `device_map` is a dictionary.
    """
    # The reference draws the noise of the null features when they are first needed.
    parts = {"null_seed": None} | {name: kwargs.pop(name) for name in names if name in kwargs}
    hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    variant = kwargs.pop("variant", None)
    kwargs.pop("use_safetensors", None)
    by_part = {
        "dtype": kwargs.pop("torch_dtype", None) or kwargs.pop("dtype", None),
        "quantization_config": kwargs.pop("quantization_config", None),
    }
    by_part = {name: value for name, value in by_part.items() if value is not None}
    if isinstance(kwargs.get("device_map"), dict):
        raise ValueError(
            "The `device_map` of a pipeline must be a string, such as 'balanced' or 'cuda'. Got a dictionary. "
            "Load Blip3oForConditionalGeneration with it, and pass `model=`."
        )
    files = checkpoint_files(source, **hub_arguments)
    if "model" not in parts:
        settings = part_settings(by_part, "model", is_diffusers=False)
        parts["model"] = Blip3oForConditionalGeneration.from_pretrained(source, **hub_arguments, **kwargs, **settings)
    if "processor" not in parts:
        parts["processor"] = None
        if has_tokenizer(files):
            parts["processor"] = Blip3oProcessor.from_pretrained(source, **hub_arguments)
        else:
            logger.warning(
                f"{files} holds no tokenizer, so prompts cannot be read. Pass processor=..., or give `condition`."
            )
    parts.setdefault("scheduler", Blip3oFlowScheduler())
    if "decoder" in parts:
        return parts
    subfolder = "/".join(filter(None, (hub_arguments.pop("subfolder", None), PUBLISHED_DECODER)))
    given = {part: parts[name] for part, name in _DECODER_PARTS.items() if parts.get(name) is not None}
    if has_decoder(source, subfolder=subfolder, **hub_arguments):
        decoder = Blip3oDecoderPipeline.from_pretrained(
            source,
            subfolder=subfolder,
            variant=variant,
            part_arguments={part: part_settings(by_part, part) for part in ("unet", "vae")},
            **given,
            **hub_arguments,
            **{name: kwargs[name] for name in _DECODER_ARGUMENTS if name in kwargs},
        )
        parts |= {name: getattr(decoder, part) for part, name in _DECODER_PARTS.items()}
    elif len(given) < len(_DECODER_PARTS):
        logger.warning(f"{files} holds no {PUBLISHED_DECODER}/, so only output_type='features' works.")
    return parts


__all__ = ["load_published_parts"]
