"""Configuration of a BLIP3-o model: which backbone, which transformer, which objective."""

import math
from typing import Any, ClassVar, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from ..checkpoints.published_checkpoint import PublishedCheckpoint
from ..checkpoints.published_config import PUBLISHED_MODEL_TYPES
from ..checkpoints.settings import check_config_file
from ..checks import check_name, check_sizes, is_finite_number
from ..objectives import check_objective, get_objective
from .fitted_config import config_of

IMAGE_POSITIONS = ("backbone", "sequential")


def has_vision(backbone_config: PreTrainedConfig) -> bool:
    """Whether a backbone of this config can read images."""
    return getattr(backbone_config, "vision_config", None) is not None


class Blip3oConfig(PreTrainedConfig):
    r"""
    Configuration of [`Blip3oForConditionalGeneration`] (paper section 5.1).

    `from_pretrained` reads published checkpoints, too: they do not save the sizes of their transformer, which are
    taken from the headers of the weights (see [`~checkpoints.published_sizes`]).

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            Any Hugging Face autoregressive model: Qwen2.5-VL (default), Llama for the paper's study, or another.
        transformer_config (`dict`, *optional*):
            Arguments of [`Blip3oTransformer2DModel`]. `in_channels`, `sample_size` and `condition_dim` are filled
            in from `feature_dim`, `feature_size` and the backbone's hidden size.
        num_queries (`int`, defaults to 64):
            Number of learned query tokens that follow the prompt.
        objective (`str`, defaults to `"feature_flow"`):
            `feature_flow` (CLIP + flow matching), `feature_regression` (CLIP + MSE, a linear head and no
            transformer) or `latent_flow` (VAE + flow matching), paper section 3.3; or the name of one that
            [`~objectives.register_objective`] made known.
        feature_dim (`int`, defaults to 1792):
            Channels of the target features.
        feature_size (`int`, defaults to 8):
            Height and width of the grid of target features.
        feature_mean, feature_std (`list[float]`, *optional*):
            Per-channel statistics, `feature_dim` long, by which target features are standardised before the flow.
            `None` leaves features as the encoder gives them, as the reference does.
        condition_dropout (`float`, defaults to 0.1):
            Probability in [0, 1) that a training sample's condition is replaced by zeros, the null condition of
            classifier-free guidance.
        noise_distribution (`str`, defaults to `"discrete_uniform"`):
            How training draws noise levels; see [`~objectives.noise_levels.sample_noise_levels`].
        noise_shift (`float`, defaults to 1.0):
            Shift of training noise levels towards noise (> 1).
        image_positions (`str`, defaults to `"sequential"`):
            Positions of the images in a prompt to draw from: counted on over their tokens (`"sequential"`), as
            published checkpoints were trained, or the backbone's own in rows and columns (`"backbone"`), as where it
            answers about them. A model that is to edit is better trained with the latter.
        initializer_range (`float`, defaults to 1.0):
            Standard deviation of freshly initialised query tokens.
        tie_word_embeddings (`bool`, defaults to `False`):
            Whether the backbone's output layer shares the input embeddings; read from the backbone's config.

    Raises:
        ValueError: on an unknown `objective`, on statistics that are no numbers or of the wrong length, or on a
            `condition_dropout` outside [0, 1).
    """

    ignored_entries: ClassVar[tuple[str, ...]] = ("auto_map", "custom_pipelines")
    """
    Entries of a `config.json` that name code beside it (`blip3o-hf export --remote-code`). This code takes its place,
    and what is saved later has none beside it. Code that a repository carries sets this to `()`.
    """

    model_type = "blip3o"
    # `sub_configs_defaults` is newer than the transformers of other engines, which exported code also runs on.
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    transformer_config: dict | None = None
    num_queries: int = 64
    objective: str = "feature_flow"
    feature_dim: int = 1792
    feature_size: int = 8
    feature_mean: list[float] | None = None
    feature_std: list[float] | None = None
    condition_dropout: float = 0.1
    noise_distribution: str = "discrete_uniform"
    noise_shift: float = 1.0
    image_positions: str = "sequential"
    initializer_range: float = 1.0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = CONFIG_MAPPING["qwen2_5_vl"]()
        elif isinstance(self.backbone_config, dict):
            made_from = CONFIG_MAPPING[self.backbone_config.get("model_type", "")]
            self.backbone_config = made_from.from_dict(self.backbone_config)
        super().__post_init__(**kwargs)
        check_sizes(num_queries=self.num_queries, feature_dim=self.feature_dim, feature_size=self.feature_size)
        check_objective(self.objective, where="key `objective` of Blip3oConfig")
        self.check_settings()
        if (self.feature_mean is None) != (self.feature_std is None):
            given = "feature_std" if self.feature_mean is None else "feature_mean"
            raise ValueError(
                f"`feature_mean` and `feature_std` go together. Got `{given}` alone. Give both to standardise "
                f"features, or neither."
            )
        for name in ("feature_mean", "feature_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.feature_dim:
                raise ValueError(
                    f"`{name}` must hold one number per feature channel. Got {len(values)} numbers for "
                    f"feature_dim={self.feature_dim}. Leave it out to use the encoder's features as they are."
                )
            kind, above = ("positive finite", 0.0) if name == "feature_std" else ("finite", -math.inf)
            bad = [value for value in values or () if not is_finite_number(value, above)]
            if bad:
                raise ValueError(
                    f"`{name}` must hold {kind} numbers, by which features are standardised. Got {bad[0]!r:.40}. Use "
                    f"the config that was saved with the weights."
                )
        self.tie_word_embeddings = bool(getattr(self.backbone_config, "tie_word_embeddings", False))
        if self.uses_transformer:
            self.transformer_config = {
                **(self.transformer_config or {}),
                "in_channels": self.feature_dim,
                "sample_size": self.feature_size,
                "condition_dim": self.hidden_size,
            }

    def check_settings(self) -> None:
        """
        Check what may change after the weights were made.

        Raises:
            ValueError: on an unknown name, or a number out of range.
        """
        check_name("image_positions", self.image_positions, IMAGE_POSITIONS)
        if not isinstance(self.condition_dropout, (int, float)) or not 0.0 <= self.condition_dropout < 1.0:
            raise ValueError(
                f"`condition_dropout` must be in [0, 1). Got {self.condition_dropout!r}. The paper's recipe uses 0.1."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As in transformers.

        Raises:
            ValueError: when the config describes no model, with what the libraries say of it; as `get_config_dict`.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
            reason = " ".join(f"{error}".split()) or type(error).__name__
            raise ValueError(
                f"The config.json of a model must describe one. That of {pretrained_model_name_or_path} does not: "
                f"{reason:.300}. Use the config that was saved with the weights."
            ) from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """
        As in transformers; the config of a published checkpoint comes back as one of ours.

        Raises:
            ValueError: when there is no config, or it is damaged or that of another model: transformers would go on
                with default values, of a model that fits no memory.
        """
        check_config_file(pretrained_model_name_or_path, **kwargs)
        config_dict, unused_kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") in PUBLISHED_MODEL_TYPES:
            checkpoint = PublishedCheckpoint.open(pretrained_model_name_or_path, config_dict, **kwargs)
            transformer_config = unused_kwargs.pop("transformer_config", None)
            config_dict = config_of(checkpoint, Blip3oConfig, transformer_config).to_dict()
        elif config_dict.get("model_type") != cls.model_type:
            found = f"has {config_dict['model_type']!r}" if "model_type" in config_dict else "has none"
            raise ValueError(
                f"A BLIP3-o model has a config.json of the model_type {cls.model_type!r}, a published one "
                f"{' or '.join(map(repr, PUBLISHED_MODEL_TYPES))}. {pretrained_model_name_or_path} {found}. Check the "
                f"path; to build on a plain backbone, use `from_backbone`."
            )
        elif not config_dict.get("backbone_config"):
            raise ValueError(
                f"The config.json of a BLIP3-o model says what its backbone is, under `backbone_config`. That of "
                f"{pretrained_model_name_or_path} says nothing. Use the config that was saved with the weights."
            )
        return config_dict, unused_kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """As in transformers, without `ignored_entries`."""
        config_dict = {name: value for name, value in config_dict.items() if name not in cls.ignored_entries}
        return super().from_dict(config_dict, **kwargs)

    @property
    def uses_transformer(self) -> bool:
        """Whether the objective needs the diffusion transformer (of the paper's, all but `feature_regression`)."""
        return get_objective(self.objective).has_transformer

    @property
    def is_flow_map(self) -> bool:
        """Whether the transformer goes from one noise level to another at once."""
        return bool((self.transformer_config or {}).get("is_flow_map"))

    @property
    def _backbone(self) -> PreTrainedConfig:
        return cast("PreTrainedConfig", self.backbone_config)  # made of a dictionary at the start

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's hidden states, and so of the condition."""
        return self._backbone.get_text_config().hidden_size

    @property
    def has_vision(self) -> bool:
        """Whether the backbone can read images."""
        return has_vision(self._backbone)

    def get_text_config(self, *args, **kwargs):
        return self._backbone.get_text_config(*args, **kwargs)


def backbone_config_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    The config of a backbone.

    Args:
        config: of an autoregressive model, or of a BLIP3-o, whose backbone is meant.
    """
    return config._backbone if isinstance(config, Blip3oConfig) else config


__all__ = ["Blip3oConfig", "backbone_config_of", "has_vision"]
