"""What `AutoConfig` finds under the `model_type` of published checkpoints."""

from typing import Any

from transformers import PreTrainedConfig

from ..checkpoints.published_checkpoint import PublishedCheckpoint
from ..checkpoints.published_config import PUBLISHED_MODEL_TYPES, published_settings
from .configuration_blip3o import Blip3oConfig
from .fitted_config import config_of


class PublishedConfig(PreTrainedConfig):
    """A published config, which becomes a [`Blip3oConfig`] at once."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        A [`Blip3oConfig`] with the sizes of the tensors beside the file.

        `AutoConfig` does not tell subfolder and revision. Where the same config is not found without them, the sizes
        are those of the reference's source, and `from_pretrained` of the model corrects them.
        """
        source = kwargs.get("name_or_path")
        checkpoint = PublishedCheckpoint("", config_dict, None)
        if source and published_settings(source) == config_dict:
            checkpoint = PublishedCheckpoint.open(source, config_dict, must_exist=False)
        config = config_of(checkpoint, Blip3oConfig, kwargs.pop("transformer_config", None))
        return Blip3oConfig.from_dict(config.to_dict(), **kwargs)


class PublishedTrainingConfig(PublishedConfig):
    model_type = PUBLISHED_MODEL_TYPES[0]


class PublishedInferenceConfig(PublishedConfig):
    model_type = PUBLISHED_MODEL_TYPES[1]


__all__ = ["PublishedInferenceConfig", "PublishedTrainingConfig"]
