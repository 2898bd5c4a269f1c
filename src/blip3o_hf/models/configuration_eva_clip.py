"""Configuration of the EVA-CLIP vision tower, the target encoder of BLIP3-o."""

from transformers.configuration_utils import PreTrainedConfig


class EvaClipVisionConfig(PreTrainedConfig):
    r"""
    Configuration of [`EvaClipVisionModel`]. The defaults are EVA-CLIP-E-14-plus (paper section 5.1).

    Args:
        hidden_size (`int`, defaults to 1792):
            Width of the tokens, and so channels of the target features.
        intermediate_size (`int`, defaults to 15360):
            Inner width of the MLPs.
        num_hidden_layers (`int`, defaults to 64):
            Number of blocks.
        num_attention_heads (`int`, defaults to 16):
            Number of heads; divides `hidden_size`.
        num_channels (`int`, defaults to 3):
            Channels of the images.
        image_size (`int`, defaults to 448):
            Height and width of the images in pixels.
        patch_size (`int`, defaults to 14):
            Height and width of a patch in pixels; divides `image_size`.
        hidden_act (`str`, defaults to `"gelu"`):
            Activation of the MLPs; `gelu` is the exact one.
        layer_norm_eps (`float`, defaults to 1e-6):
            Epsilon of the layer norms.
        initializer_range (`float`, defaults to 0.02):
            Standard deviation of freshly initialised weights.

    Raises:
        ValueError: when the heads do not divide the width, or the patches the image.
    """

    model_type = "eva_clip_vision_model"

    hidden_size: int = 1792
    intermediate_size: int = 15360
    num_hidden_layers: int = 64
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 448
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for whole, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
            if getattr(self, part) < 1 or getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"`{part}` must divide `{whole}`. Got {getattr(self, part)} for {getattr(self, whole)}. "
                    f"EVA-CLIP-E-14-plus has {getattr(type(self), part)} for {getattr(type(self), whole)}."
                )


__all__ = ["EvaClipVisionConfig"]
