"""The BLIP3-o model: a frozen autoregressive backbone, learned query tokens and a diffusion transformer."""

import functools
import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeGuard

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from ..checkpoints.loading import load_complete, load_saved
from ..checkpoints.lookup import HUB_ARGUMENTS
from ..checkpoints.published_checkpoint import PublishedCheckpoint
from ..checkpoints.published_names import LEFT_OUT, OUTPUT_LAYER
from ..checkpoints.published_renaming import keep_our_names, register_with_transformers
from ..checks import check_name
from ..objectives import get_objective
from ..objectives.noise_levels import sigma_from_uniform
from ..objectives.objective import Objective
from .backbones import (
    TOKEN_TYPES,
    accepts,
    check_backbone,
    check_backbone_config,
    embed_new_tokens,
    text_stack,
    token_types,
    vision_or_text_model,
)
from .condition import Blip3oConditionMixin
from .configuration_blip3o import Blip3oConfig, backbone_config_of
from .fitted_config import config_of, fitted
from .plain_weights import folder_of_shards, save_plain
from .transformer_next_dit import Blip3oTransformer2DModel


class ObjectiveWithNoise(Protocol):
    """What an objective adds whose model sees its targets with noise, as `FeatureFlow` does."""

    def add_noise(self, target: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor: ...

    def predicted_velocity(
        self, prediction: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor
    ) -> torch.Tensor: ...


def has_noise(objective: Objective) -> TypeGuard[ObjectiveWithNoise]:
    """Whether the model sees its targets with noise."""
    return objective.has_noise


class Blip3oQueries(nn.Module):
    """Learned query tokens (paper section 3.2, Q). A module of its own, so that PEFT can train and save it."""

    def __init__(self, num_queries: int, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_queries, hidden_size))

    def forward(self, batch_size: int) -> torch.Tensor:
        """Query embeddings `[batch_size, num_queries, hidden_size]`."""
        return self.weight.expand(batch_size, -1, -1)


@dataclass
class Blip3oOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): the generation loss in fp32, where there are target features.
        prediction (`torch.Tensor` `[B, C, H, W]`, *optional*): what the objective has the model predict, velocity or
            features, where there are target features.
        condition (`torch.Tensor` `[B, num_queries, hidden_size]`): the backbone's hidden states at the queries.
        text_loss (`torch.Tensor` of shape `()`, *optional*): the loss of `conversations`, which `loss` leaves out.
        query_logits (`torch.Tensor` `[B, num_queries, vocab_size]`, *optional*): scores of the tokens that the
            backbone would say at each query, on request; one row per prompt, however many noises are drawn.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    condition: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    query_logits: torch.Tensor | None = None


class Blip3oPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model's class: its config, what it can do, and how new weights begin."""

    config_class = Blip3oConfig
    config: Blip3oConfig
    base_model_prefix = "blip3o"
    input_modalities = ("image", "text")  # ty: ignore[invalid-assignment]  # a tuple in the library's own models, too
    output_modalities = ("text", "image")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["Blip3oTransformerBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [LEFT_OUT]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the queries (normal) and, as PyTorch does by default, the transformer and the linear head."""
        if isinstance(module, Blip3oQueries):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(gate := getattr(module, "gate", None), nn.Parameter):
            assert self.config.transformer_config is not None  # only the transformer has gates
            init.constant_(gate, self.config.transformer_config.get("gate_init", 0.0))
        elif "Norm" in type(module).__name__ and (weight := getattr(module, "weight", None)) is not None:
            init.ones_(weight)
            if (bias := getattr(module, "bias", None)) is not None:
                init.zeros_(bias)


class Blip3oForConditionalGeneration(Blip3oConditionMixin, Blip3oPreTrainedModel, GenerationMixin):
    """
    One model that understands and draws (paper section 5.1).

    Understanding is the backbone's own: `generate` and a `forward` without `target_features` are delegated to it
    whole. Generation reads the prompt and the query tokens with the backbone (`encode_condition`) and flow-matches
    image features with the transformer (`forward` with `target_features` trains it; [`Blip3oPipeline`] samples).

    Example:

    ```python
    >>> from blip3o_hf import Blip3oForConditionalGeneration, Blip3oProcessor, packaged_model_path

    >>> path = packaged_model_path("blip3o-tiny")
    >>> model = Blip3oForConditionalGeneration.from_pretrained(path, subfolder="model")
    >>> processor = Blip3oProcessor.from_pretrained(path, subfolder="processor")
    >>> inputs = processor.encode_prompts(["a red circle"])
    >>> tuple(model.encode_condition(**inputs).shape) == (1, model.config.num_queries, model.config.hidden_size)
    True

    ```
    """

    image_generator: ClassVar[Callable[..., torch.Tensor]]
    """What draws for `generate`: the package's pipeline, which has the decoder and is registered here."""

    def __init__(self, config: Blip3oConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        assert isinstance(config.backbone_config, PreTrainedConfig)  # the library makes one of a dictionary
        check_backbone_config(config.backbone_config)
        if backbone is None:
            backbone = vision_or_text_model(config.backbone_config).from_config(config.backbone_config)
        check_backbone(backbone)
        self.backbone = backbone
        self.queries = Blip3oQueries(config.num_queries, config.hidden_size)
        if config.uses_transformer:
            assert config.transformer_config is not None  # the config fills it in
            self.transformer = Blip3oTransformer2DModel(**config.transformer_config)
        else:
            self.feature_head = nn.Linear(config.hidden_size, config.feature_dim)
        self.post_init()
        # Those of the parts are added by then; a vision tower also names layers of the text tower that it lost.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = present.intersection(self._no_split_modules or ())

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]  # the library's, too, can return a tuple
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> "Blip3oForConditionalGeneration | tuple[Blip3oForConditionalGeneration, dict[str, Any]]":
        """
        As in transformers, but an incomplete checkpoint is refused: weights would silently stay random. To build on a
        trained backbone, use `from_backbone`.

        A published checkpoint (`model_type` `blip3o_qwen` or `blip3o_qwen_inference`) is loaded as it is; names and
        shapes are checked before its tensors are read, and values after. A passed `config` is brought to its sizes.

        Raises:
            ValueError: naming the tensors that are missing, not finite, or have the wrong shape, and in a published
                checkpoint also unexpected ones and their files; when weights are damaged, or in pickles only.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        accepts_mismatch = kwargs.get("ignore_mismatched_sizes", False)
        published = PublishedCheckpoint.find(pretrained_model_name_or_path, **kwargs)
        if published is not None:
            if isinstance(kwargs.get("config"), Blip3oConfig):
                config = kwargs["config"] = fitted(kwargs["config"], published)
            else:
                config = config_of(published, Blip3oConfig, kwargs.get("transformer_config"))
            published.empty_model(cls, config, compare_shapes=not accepts_mismatch)
            kwargs["use_safetensors"] = True
        elif kwargs.get("device_map") is not None and not kwargs.get("subfolder"):
            kwargs |= folder_of_shards(pretrained_model_name_or_path, **kwargs)
        load = super().from_pretrained
        if published is not None or pretrained_model_name_or_path is None:
            model, info = load_complete(load, pretrained_model_name_or_path, *args, **kwargs)
        else:
            model, info = load_saved(load, pretrained_model_name_or_path, *args, **kwargs)
        if published is not None:
            if model.config.tie_word_embeddings and OUTPUT_LAYER in published.stored:
                model.tie_weights()  # as the reference does, whatever the stored output layer holds
            published.check_values(model)
        model.hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)}
        return (model, info) if wants_info else model

    # Wrapped for its signature: a pipeline of diffusers hands on only what that names, `variant` among it.
    @functools.wraps(PreTrainedModel.save_pretrained, assigned=())
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """
        As in transformers, under our names, wherever the weights came from. To write published names, use
        [`~checkpoints.published_saving.save_published_layout`]. Compiled and data-parallel parts are saved as what
        was wrapped. Other variants in the folder stay, and so does the `dtype` of the one without a variant.

        Raises:
            ValueError: when a pipeline's adapters are loaded into it; they would be saved in the place of its weights.
        """
        keep_our_names(self)
        save_plain(self, super().save_pretrained, *args, **kwargs)

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike,
        config: Blip3oConfig | None = None,
        processor: ProcessorMixin | None = None,
        **kwargs: Any,
    ) -> "Blip3oForConditionalGeneration":
        """
        A BLIP3-o on top of a trained backbone, with new queries and a new transformer (paper section 5.1).

        Args:
            backbone: folder or Hub id of any Hugging Face autoregressive model, such as
                `Qwen/Qwen2.5-VL-3B-Instruct`; or of a BLIP3-o, whose backbone is taken.
            config (*optional*): everything but the backbone; by default the paper's sizes.
            processor (*optional*): what [`Blip3oProcessor.from_backbone`] made. Tokens that it added get the mean of
                the backbone's own embeddings, as in the reference; the vocabulary grows where it is too small.
            kwargs: passed on to the backbone's `from_pretrained` (`dtype`, `attn_implementation`, ...).
        """
        settings = {} if config is None else config.to_dict()
        settings.pop("model_type", None)
        found = AutoConfig.from_pretrained(backbone)
        settings["backbone_config"] = backbone_config = backbone_config_of(found)
        with torch.random.fork_rng(devices=()):  # what is new is drawn the same, however the backbone is loaded
            if isinstance(found, Blip3oConfig):
                whole = cls.from_pretrained(backbone, **kwargs)
                assert isinstance(whole, Blip3oForConditionalGeneration)  # no loading info was asked for
                pretrained = whole.backbone
                pretrained.generation_config = whole.generation_config  # answers are as long, and end as before
            else:
                pretrained = vision_or_text_model(backbone_config).from_pretrained(backbone, **kwargs)
        if processor is not None:
            tokenizer = AutoTokenizer.from_pretrained(backbone)
            assert tokenizer is not None  # the library's type for a class that cannot be imported
            embed_new_tokens(pretrained, len(tokenizer), len(processor.tokenizer))
            text_config = settings["backbone_config"].get_text_config()
            text_config.vocab_size = pretrained.get_input_embeddings().num_embeddings
        model = cls(Blip3oConfig(**settings), backbone=pretrained)
        model.generation_config = pretrained.generation_config
        return model

    @property
    def base_model(self) -> nn.Module:
        """The backbone without its output layer, which trainers of language models run for the hidden states (TRL)."""
        return self.backbone.base_model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> PreTrainedModel:
        """The backbone's text stack, without its output layer."""
        return text_stack(self.backbone)

    @property
    def objective(self) -> Objective:
        """What the model was made to predict, by the name in its config."""
        return get_objective(self.config.objective)

    # Understanding

    def generate(  # ty: ignore[incompatible-method-override]  # pictures are no token ids
        self, *args: Any, generation_mode: str = "text", **kwargs: Any
    ) -> torch.Tensor | ModelOutput:
        """
        Answer in text: the backbone's own `generate`, with this model's generation config. Or, with
        `generation_mode="image"`, draw: see [`~pipelines.text_to_image.generate_images`].

        Raises:
            ValueError: when given an image and the backbone reads text only, or another `generation_mode`.
        """
        check_name("generation mode", generation_mode, self.output_modalities)
        self._check_image_inputs(kwargs)
        if generation_mode == "image":
            return type(self).image_generator(self, *args, **kwargs)
        input_ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        self.backbone.generation_config = self.generation_config
        with self._preparing_inputs():
            # `nn.Module` types all attributes as tensors or modules; this one is of `GenerationMixin`.
            return self.backbone.generate(*args, **self._with_token_types(input_ids, kwargs))  # ty: ignore[not-callable]

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The backbone's own."""
        model_class: Any = type(self.backbone)  # with `GenerationMixin` among its bases
        return model_class.prepare_inputs_for_generation(self.backbone, *args, **kwargs)

    @contextmanager
    def _preparing_inputs(self) -> Generator[None]:
        """Lend the backbone the method by which a wrapper (PEFT) replaced that of this model."""
        replaced = vars(self).get("prepare_inputs_for_generation")
        if replaced is not None:
            self.backbone.prepare_inputs_for_generation = replaced
        try:
            yield
        finally:
            vars(self.backbone).pop("prepare_inputs_for_generation", None)

    # Generation

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        num_noise_draws: int = 1,
        conversations: dict[str, torch.Tensor] | Sequence[dict[str, torch.Tensor]] | None = None,
        generator: list[torch.Generator] | None = None,
        output_query_logits: bool = False,
        sigma_to: torch.Tensor | None = None,
        **backbone_inputs: Any,
    ) -> ModelOutput:
        """
        Args:
            input_ids (`[B, L]`), attention_mask (`[B, L]`): prompts, as in `encode_condition`.
            target_features (`[B, C, H, W]`, *optional*): features X of the images to learn to generate, as the
                target encoder gives them. Without them the call is the backbone's own forward.
            noise (`[B, C, H, W]`, *optional*): drawn from N(0, 1) when left out.
            sigma (`[B]` in (0, 1], *optional*): noise levels, drawn from the config's distribution when left out.
            condition (`[B, num_queries, hidden_size]`, *optional*): a condition computed earlier; the backbone is
                then not run.
            num_noise_draws: noises and noise levels drawn per image. The backbone runs once for all of them; the
                batch of everything after it, and of `noise` and `sigma` where given, is `B * num_noise_draws`.
            generator (*optional*): one for each image, on the CPU; it draws the noise, noise levels and dropped
                conditions of that image, which then do not depend on what else is in the batch.
            conversations (*optional*): inputs of the backbone with `labels`, for joint training (paper section 4.1);
                or several such, run one after another, so that short ones are not padded to the length of long ones.
            output_query_logits: also return what the backbone would say at the queries, for a loss of its own such as
                [`~objectives.phrases.phrase_loss`]; with target features or without.
            sigma_to (`[B]` in [0, 1], *optional*): of a model whose transformer is a flow map, the noise levels that
                its prediction leads to.
            backbone_inputs: image inputs of the processor; without target features, all that the backbone's own
                forward takes.

        Returns:
            [`Blip3oOutput`], or the backbone's output when neither `target_features` nor `output_query_logits` is
            given.

        Raises:
            ValueError: when features do not have the config's shape, or an image meets a text-only backbone.
        """
        text_loss = None if conversations is None else self._text_loss(conversations)
        if target_features is None and output_query_logits:
            assert input_ids is not None  # queries follow a prompt
            condition = self.encode_condition(input_ids, attention_mask, **backbone_inputs)
            return Blip3oOutput(condition=condition, text_loss=text_loss, query_logits=self.query_logits(condition))
        if target_features is None:
            self._check_image_inputs(backbone_inputs)
            backbone_inputs = self._with_token_types(input_ids, backbone_inputs)
            return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **backbone_inputs)

        self._check_targets(target_features, input_ids, condition, num_noise_draws)
        target = self.normalize_features(target_features)
        if condition is None:
            assert input_ids is not None  # `_check_targets`
            condition = self.encode_condition(input_ids, attention_mask, **backbone_inputs)
        query_logits = self.query_logits(condition) if output_query_logits else None
        if self.objective.has_noise:
            target = target.repeat_interleave(num_noise_draws, dim=0)
            condition = condition.repeat_interleave(num_noise_draws, dim=0)
            loss, prediction = self._loss_with_noise(
                target, condition, noise, sigma, num_noise_draws, generator, sigma_to
            )
        else:
            prediction = self.regress_features(condition)
            loss = self.objective.loss(prediction, target)
        return Blip3oOutput(loss, prediction, condition, text_loss, query_logits)

    def _text_loss(self, conversations: dict[str, torch.Tensor] | Sequence[dict[str, torch.Tensor]]) -> torch.Tensor:
        """The mean over all labels of the conversations."""
        if isinstance(conversations, dict):
            return self.backbone(**conversations).loss
        numbers = torch.stack([(each["labels"][:, 1:] != -100).sum() for each in conversations])
        losses = torch.stack([self.backbone(**each).loss for each in conversations])
        return (losses * numbers).sum() / numbers.sum()

    def _check_targets(
        self,
        target_features: torch.Tensor,
        input_ids: torch.Tensor | None,
        condition: torch.Tensor | None,
        num_noise_draws: int,
    ) -> None:
        """Raise `ValueError` for what training on features cannot use. Arguments as of `forward`."""
        expected = (self.config.feature_dim, self.config.feature_size, self.config.feature_size)
        if tuple(target_features.shape[1:]) != expected:
            raise ValueError(
                f"`target_features` must have shape [batch, {', '.join(map(str, expected))}]. Got "
                f"{list(target_features.shape)}. Encode images with the target encoder this model was made for."
            )
        if input_ids is None and condition is None:
            raise ValueError(
                "Training needs prompts or their condition. Got `target_features` alone. Pass `input_ids` with "
                "`attention_mask`, or `condition`."
            )
        if num_noise_draws < 1:
            raise ValueError(f"`num_noise_draws` must be at least 1. Got {num_noise_draws}. Use 1 for the plain loss.")

    def _loss_with_noise(
        self,
        target: torch.Tensor,
        condition: torch.Tensor,
        noise: torch.Tensor | None,
        sigma: torch.Tensor | None,
        num_noise_draws: int,
        generator: list[torch.Generator] | None,
        sigma_to: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and prediction at targets with noise; what is not given is drawn. Arguments as of `forward`."""

        def draw(random: Callable[..., torch.Tensor], *shape: int) -> torch.Tensor:
            if generator is None:
                return random(target.shape[0], *shape, device=target.device)
            return torch.cat([random(num_noise_draws, *shape, generator=each) for each in generator]).to(target.device)

        noise = draw(torch.randn, *target.shape[1:]).to(target.dtype) if noise is None else noise
        if noise.shape != target.shape:
            raise ValueError(
                f"`noise` must have the shape of the targets, {list(target.shape)}. Got {list(noise.shape)}. Leave it "
                f"out to draw it."
            )
        if sigma is None:
            sigma = sigma_from_uniform(draw(torch.rand), self.config.noise_distribution, self.config.noise_shift)
        visible = condition
        if self.training and self.config.condition_dropout > 0:
            keep = draw(torch.rand) >= self.config.condition_dropout
            visible = condition * keep[:, None, None].to(condition.dtype)
        objective = self.objective
        assert has_noise(objective)  # this is called for no others
        prediction = self.transformer(
            hidden_states=objective.add_noise(target, noise, sigma).to(self.transformer.dtype),
            timestep=self.training_timestep(sigma),
            encoder_hidden_states=visible.to(self.transformer.dtype),
            r_timestep=None if sigma_to is None else self.training_timestep(sigma_to),
        ).sample
        return self.objective.loss(prediction, target, noise, sigma), prediction

    def training_timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """
        What the transformer is told of noise levels in training, `[B]` in [0, 1] to `[B]` in [0, 1000]. Samplers of
        published models cut it to whole numbers.
        """
        is_whole = self.config.noise_distribution == "discrete_uniform" and self.config.noise_shift == 1.0
        return (1000 * sigma).round() if is_whole else 1000 * sigma

    def query_logits(self, condition: torch.Tensor) -> torch.Tensor:
        """What the backbone would say at the queries: `[B, num_queries, hidden]` to `[B, num_queries, vocab_size]`."""
        return self.get_output_embeddings()(condition)

    def regress_features(self, condition: torch.Tensor) -> torch.Tensor:
        """WQ of the CLIP + MSE design (paper section 3.2): `[B, num_queries, hidden]` to `[B, C, H, W]`."""
        size = self.config.feature_size
        if condition.shape[1] != size * size:
            raise ValueError(
                f"`{self.config.objective}` needs one query per feature: {size * size}. This model has "
                f"{condition.shape[1]} queries. Set `num_queries={size * size}`."
            )
        condition = condition.to(self.feature_head.weight.dtype)
        return self.feature_head(condition).transpose(1, 2).unflatten(2, (size, size))

    def normalize_features(self, features: torch.Tensor) -> torch.Tensor:
        """Standardise encoder features `[B, C, H, W]` per channel by the config's statistics, if it has any."""
        mean, std = self._feature_statistics(features)
        return features if mean is None or std is None else (features - mean) / std

    def denormalize_features(self, features: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_features`."""
        mean, std = self._feature_statistics(features)
        return features if mean is None or std is None else features * std + mean

    def _feature_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Mean and deviation of the config, `[1, C, 1, 1]` each, in the precision and on the device of `like`."""
        if self.config.feature_mean is None or self.config.feature_std is None:
            return None, None
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device)[None, :, None, None]
            for values in (self.config.feature_mean, self.config.feature_std)
        )
        return mean, std

    def _with_token_types(self, input_ids: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs, with the kind of each token where there are images, under names that the backbone takes."""
        given = {
            name: value
            for name, value in inputs.items()
            if name not in TOKEN_TYPES or (value is not None and accepts(self.backbone, name))
        }
        has_pixels = any(inputs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        if input_ids is None or not has_pixels:
            return given
        return {**token_types(self.backbone, input_ids), **given}

    def _reset_stateful_cache(self) -> None:
        """What a diffusers pipeline calls after each run: caches of block outputs are for one run."""
        if self.config.uses_transformer and self.transformer.is_cache_enabled:
            self.transformer._reset_stateful_cache()

    def _check_image_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Raise `ValueError` when there are images among the inputs and the backbone reads text only."""
        if inputs.get("pixel_values") is not None:
            self.check_vision()

    def check_vision(self) -> None:
        """
        The check of all that take images.

        Raises:
            ValueError: when the backbone reads text only, and was given an image.
        """
        if not self.config.has_vision:
            raise ValueError(
                f"This model's backbone ({self.backbone.config.model_type}) reads text only. Got an image. "
                f"Use a model with a vision-language backbone such as Qwen2.5-VL."
            )


register_with_transformers(Blip3oForConditionalGeneration)

__all__ = ["Blip3oForConditionalGeneration", "Blip3oOutput", "Blip3oPreTrainedModel", "Blip3oQueries", "has_noise"]
