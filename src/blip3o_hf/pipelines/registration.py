"""Make diffusers know our classes, so that saved pipelines name them shortly and load from the Hub."""

import diffusers
from diffusers.pipelines import pipeline_loading_utils

_SAVE_AND_LOAD = ["save_pretrained", "from_pretrained"]
_BASES = ("ModelMixin", "SchedulerMixin", "DiffusionPipeline", "PreTrainedModel", "ProcessorMixin")


def register_with_diffusers(pipeline_class: type) -> None:
    """
    Register `blip3o_hf` as a library of loadable components, and `pipeline_class` by its name.

    diffusers offers no public call for this: its table of libraries is a plain dictionary. Idempotent.
    """
    pipeline_loading_utils.LOADABLE_CLASSES["blip3o_hf"] = {base: _SAVE_AND_LOAD for base in _BASES}
    setattr(diffusers, pipeline_class.__name__, pipeline_class)
