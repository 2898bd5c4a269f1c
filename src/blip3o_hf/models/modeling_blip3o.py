"""The BLIP3-o model: a frozen autoregressive backbone, learned query tokens and a diffusion transformer."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import ModelOutput

from ..checkpoints.loading import load_complete, load_saved
from ..checkpoints.lookup import HUB_ARGUMENTS
from ..checkpoints.published_checkpoint import PublishedCheckpoint
from ..checkpoints.published_names import LEFT_OUT, OUTPUT_LAYER
from ..checkpoints.published_renaming import keep_our_names, register_with_transformers
from ..names import check_name
from ..objectives import get_objective
from ..objectives.noise_levels import sigma_from_uniform
from ..objectives.objective import Objective
from .configuration_blip3o import Blip3oConfig
from .fitted_config import config_of, fitted
from .transformer_next_dit import Blip3oTransformer2DModel


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


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids `[B, L]` counting real tokens only, so that padding changes nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _vision_or_text_model(
    backbone_config: PreTrainedConfig,
) -> type[AutoModelForImageTextToText] | type[AutoModelForCausalLM]:
    """The Auto class that builds `backbone_config`: image-text-to-text where it exists, else causal LM."""
    if type(backbone_config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


@torch.no_grad()
def _embed_new_tokens(backbone: PreTrainedModel, first: int, end: int) -> None:
    """Give the tokens from `first` up to `end` the mean of all embeddings before them."""
    if end > backbone.get_input_embeddings().num_embeddings:
        backbone.resize_token_embeddings(end)
    embeddings = backbone.get_input_embeddings().weight
    embeddings[first:end] = embeddings[:first].float().mean(dim=0).to(embeddings.dtype)


class Blip3oPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model's class: its config, what it can do, and how new weights begin."""

    config_class = Blip3oConfig
    config: Blip3oConfig
    base_model_prefix = "blip3o"
    input_modalities = ("image", "text")
    output_modalities = ("text", "image")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ("Blip3oTransformerBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _keys_to_ignore_on_load_unexpected = (LEFT_OUT,)
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
        elif isinstance(getattr(module, "gate", None), nn.Parameter):
            init.constant_(module.gate, self.config.transformer_config.get("gate_init", 0.0))
        elif "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class Blip3oForConditionalGeneration(Blip3oPreTrainedModel, GenerationMixin):
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
        if backbone is None:
            backbone = _vision_or_text_model(config.backbone_config).from_config(config.backbone_config)
        self.backbone = backbone
        self.queries = Blip3oQueries(config.num_queries, config.hidden_size)
        if config.uses_transformer:
            self.transformer = Blip3oTransformer2DModel(**config.transformer_config)
        else:
            self.feature_head = nn.Linear(config.hidden_size, config.feature_dim)
        self.post_init()
        # Those of the parts are added by then; a vision tower also names layers of the text tower that it lost.
        present = {type(module).__name__ for module in self.modules()}
        self._no_split_modules = type(self._no_split_modules)(n for n in self._no_split_modules if n in present)

    @classmethod
    def from_pretrained(
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
        load = load_complete if published is not None or pretrained_model_name_or_path is None else load_saved
        model, info = load(super().from_pretrained, pretrained_model_name_or_path, *args, **kwargs)
        if published is not None:
            if model.config.tie_word_embeddings and OUTPUT_LAYER in published.tensors:
                model.tie_weights()  # as the reference does, whatever the stored output layer holds
            published.check_values(model)
        model.hub_arguments = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)}
        return (model, info) if wants_info else model

    # Wrapped for its signature: a pipeline of diffusers hands on only what that names, `variant` among it.
    @functools.wraps(PreTrainedModel.save_pretrained, assigned=())
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """
        As in transformers, under our names, wherever the weights came from. To write published names, use
        [`~checkpoints.published_saving.save_published_layout`].
        """
        keep_our_names(self)
        super().save_pretrained(*args, **kwargs)

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
                `Qwen/Qwen2.5-VL-3B-Instruct`.
            config (*optional*): everything but the backbone; by default the paper's sizes.
            processor (*optional*): what [`Blip3oProcessor.from_backbone`] made. Tokens that it added get the mean of
                the backbone's own embeddings, as in the reference; the vocabulary grows where it is too small.
            kwargs: passed on to the backbone's `from_pretrained` (`dtype`, `attn_implementation`, ...).
        """
        settings = {} if config is None else config.to_dict()
        settings.pop("model_type", None)
        settings["backbone_config"] = AutoConfig.from_pretrained(backbone)
        with torch.random.fork_rng(devices=()):  # what is new is drawn the same, however the backbone is loaded
            pretrained = _vision_or_text_model(settings["backbone_config"]).from_pretrained(backbone, **kwargs)
        if processor is not None:
            _embed_new_tokens(pretrained, len(AutoTokenizer.from_pretrained(backbone)), len(processor.tokenizer))
            text_config = settings["backbone_config"].get_text_config()
            text_config.vocab_size = pretrained.get_input_embeddings().num_embeddings
        model = cls(Blip3oConfig(**settings), backbone=pretrained)
        model.generation_config = pretrained.generation_config
        return model

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.backbone.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The backbone's text stack, without its output layer."""
        return self.backbone.get_decoder()

    @property
    def objective(self) -> Objective:
        """What the model was made to predict, by the name in its config."""
        return get_objective(self.config.objective)

    # Understanding

    def generate(self, *args: Any, generation_mode: str = "text", **kwargs: Any) -> torch.Tensor | ModelOutput:
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
        return self.backbone.generate(*args, **self._with_token_types(input_ids, kwargs))

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The backbone's own."""
        return self.backbone.prepare_inputs_for_generation(*args, **kwargs)

    # Generation

    def encode_condition(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        **image_inputs: torch.Tensor,
    ) -> torch.Tensor:
        """
        The condition Q: the backbone's hidden states at the query tokens, after the final norm (paper section 3.2).

        The prompt runs first, without gradient, and leaves its keys and values in a cache; the queries run after it.
        Attention is causal, so nothing of the prompt depends on the queries, and their gradient is that of the full
        sequence. Where the backbone itself trains, there is nothing to save: one pass over the whole sequence.

        Args:
            input_ids (`[B, L]`): prompts that end with the `[IMG]` token, padded on either side.
            attention_mask (`[B, L]`, *optional*): 1 for real tokens. Positions count real tokens only.
            image_inputs: what the processor returns for input images (`pixel_values`, `image_grid_thw`, ...).

        Returns:
            `torch.Tensor` `[B, num_queries, hidden_size]`.

        Raises:
            ValueError: when given an image and the backbone reads text only.
        """
        self._check_image_inputs(image_inputs)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        decoder = self.get_decoder()
        has_own_positions = self.config.image_positions == "backbone"
        grids = image_inputs.get("image_grid_thw") if has_own_positions else None
        prompt_positions = self.prompt_positions(input_ids, attention_mask, grids)

        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.backbone.parameters())
        is_checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())
        if trains or (decoder.training and is_checkpointed):
            # Engines that partition weights gather them again when the gradient reaches a layer's output, and it does
            # not come through a cache. Under gradient checkpointing the library's layers take no cache at all.
            queries, query_positions, full_mask = self._query_inputs(prompt_positions, attention_mask)
            prompt = self.embed_prompt(input_ids, **image_inputs)
            hidden_states = decoder(
                inputs_embeds=torch.cat([prompt, queries], dim=1),
                attention_mask=full_mask,
                position_ids=torch.cat([prompt_positions, query_positions], dim=-1),
                use_cache=False,
            ).last_hidden_state
            return hidden_states[:, -queries.shape[1] :]

        cache = DynamicCache(config=decoder.config)
        with torch.no_grad():
            decoder(
                inputs_embeds=self.embed_prompt(input_ids, **image_inputs),
                attention_mask=attention_mask,
                position_ids=prompt_positions,
                past_key_values=cache,
                use_cache=True,
            )
        return self.read_queries(cache, prompt_positions, attention_mask)

    def read_queries(
        self, past_key_values: Cache, prompt_positions: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        The condition Q of prompts whose keys and values were kept: the hidden states at the queries, which run after
        them.

        Args:
            past_key_values: keys and values of the prompts; those of the queries are added to them.
            prompt_positions (`[B, L]` or `[3, B, L]`): as `prompt_positions` gives them.
            attention_mask (`[B, L]`, *optional*): 1 for real tokens; left out where there is no padding.

        Returns:
            `torch.Tensor` `[B, num_queries, hidden_size]`.
        """
        queries, positions, full_mask = self._query_inputs(prompt_positions, attention_mask)
        return self.get_decoder()(
            inputs_embeds=queries,
            attention_mask=full_mask,
            position_ids=positions,
            past_key_values=past_key_values,
            use_cache=True,
        ).last_hidden_state

    def _query_inputs(
        self, prompt_positions: torch.LongTensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.LongTensor, torch.Tensor | None]:
        """Embeddings and positions of the queries after prompts, and the mask of both."""
        batch_size = prompt_positions.shape[-2]
        queries = self.queries(batch_size).to(self.get_input_embeddings().weight.dtype)
        first = prompt_positions.amax(-1, keepdim=True) + 1
        positions = first + torch.arange(queries.shape[1], device=prompt_positions.device)
        if attention_mask is None:
            return queries, positions, None
        return queries, positions, torch.cat([attention_mask, attention_mask.new_ones(queries.shape[:2])], dim=1)

    def prompt_positions(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor, image_grid_thw: torch.Tensor | None = None
    ) -> torch.LongTensor:
        """
        Positions of a prompt's real tokens: `[B, L]`, counted on, or `[3, B, L]`, the backbone's own for images of
        these grids, where it has such.
        """
        positions_of_pixels = getattr(self.backbone.base_model, "get_rope_index", None)
        if image_grid_thw is None or positions_of_pixels is None:
            return _positions(attention_mask)
        token_types = (input_ids == self.config.backbone_config.image_token_id).int()
        return positions_of_pixels(
            input_ids, mm_token_type_ids=token_types, image_grid_thw=image_grid_thw, attention_mask=attention_mask
        )[0]

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        target_features: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        num_noise_draws: int = 1,
        conversations: dict[str, torch.Tensor] | None = None,
        generator: list[torch.Generator] | None = None,
        output_query_logits: bool = False,
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
            conversations (*optional*): inputs of the backbone with `labels`, for joint training (paper section 4.1).
            output_query_logits: also return what the backbone would say at the queries, for a loss of its own such as
                [`~objectives.phrases.phrase_loss`]; with target features or without.
            backbone_inputs: image inputs of the processor; without target features, all that the backbone's own
                forward takes.

        Returns:
            [`Blip3oOutput`], or the backbone's output when neither `target_features` nor `output_query_logits` is
            given.

        Raises:
            ValueError: when features do not have the config's shape, or an image meets a text-only backbone.
        """
        text_loss = None if conversations is None else self.backbone(**conversations).loss
        if target_features is None and output_query_logits:
            condition = self.encode_condition(input_ids, attention_mask, **backbone_inputs)
            return Blip3oOutput(condition=condition, text_loss=text_loss, query_logits=self.query_logits(condition))
        if target_features is None:
            self._check_image_inputs(backbone_inputs)
            backbone_inputs = self._with_token_types(input_ids, backbone_inputs)
            return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **backbone_inputs)

        self._check_targets(target_features, input_ids, condition, num_noise_draws)
        target = self.normalize_features(target_features)
        if condition is None:
            condition = self.encode_condition(input_ids, attention_mask, **backbone_inputs)
        query_logits = self.query_logits(condition) if output_query_logits else None
        if self.objective.has_noise:
            target = target.repeat_interleave(num_noise_draws, dim=0)
            condition = condition.repeat_interleave(num_noise_draws, dim=0)
            loss, prediction = self._loss_with_noise(target, condition, noise, sigma, num_noise_draws, generator)
        else:
            prediction = self.regress_features(condition)
            loss = self.objective.loss(prediction, target)
        return Blip3oOutput(loss, prediction, condition, text_loss, query_logits)

    def _check_targets(
        self,
        target_features: torch.Tensor,
        input_ids: torch.LongTensor | None,
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
        timestep = 1000 * sigma
        if self.config.noise_distribution == "discrete_uniform" and self.config.noise_shift == 1.0:
            timestep = timestep.round()
        prediction = self.transformer(
            hidden_states=self.objective.add_noise(target, noise, sigma).to(self.transformer.dtype),
            timestep=timestep,
            encoder_hidden_states=visible.to(self.transformer.dtype),
        ).sample
        return self.objective.loss(prediction, target, noise, sigma), prediction

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
        return features if mean is None else (features - mean) / std

    def denormalize_features(self, features: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize_features`."""
        mean, std = self._feature_statistics(features)
        return features if mean is None else features * std + mean

    def _feature_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Mean and deviation of the config, `[1, C, 1, 1]` each, in the precision and on the device of `like`."""
        if self.config.feature_mean is None or self.config.feature_std is None:
            return None, None
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device)[None, :, None, None]
            for values in (self.config.feature_mean, self.config.feature_std)
        )
        return mean, std

    def embed_prompt(self, input_ids: torch.LongTensor, **image_inputs: torch.Tensor) -> torch.Tensor:
        """Token embeddings `[B, L, hidden]`, with image features in the place of image placeholders."""
        embeddings = self.get_input_embeddings()(input_ids)
        if image_inputs.get("pixel_values") is None:
            return embeddings
        image_inputs.pop("mm_token_type_ids", None)
        features = self.backbone.get_image_features(**image_inputs, return_dict=True).pooler_output
        features = torch.cat(tuple(features)).to(embeddings)
        slots = (input_ids == self.config.backbone_config.image_token_id)[..., None].expand_as(embeddings)
        if int(slots.sum()) != features.numel():
            raise ValueError(
                f"The prompt must hold one image placeholder per image feature. It holds "
                f"{int(slots.sum()) // embeddings.shape[-1]} for {features.shape[0]} features. "
                f"Prepare prompts and images together with the processor."
            )
        return embeddings.masked_scatter(slots, features)

    def _with_token_types(self, input_ids: torch.LongTensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """
        The inputs with `mm_token_type_ids`, which placeholder ids tell as well: without them, the library falls back
        from the positions of pixels to those of text, and says nothing.
        """
        has_grids = any(inputs.get(name) is not None for name in ("image_grid_thw", "video_grid_thw"))
        if input_ids is None or not has_grids or inputs.get("mm_token_type_ids") is not None:
            return inputs
        config = self.config.backbone_config
        token_types = (input_ids == config.image_token_id).int() + 2 * (input_ids == config.video_token_id).int()
        return {**inputs, "mm_token_type_ids": token_types}

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
                f"This model's backbone ({self.config.backbone_config.model_type}) reads text only. Got an image. "
                f"Use a model with a vision-language backbone such as Qwen2.5-VL."
            )


register_with_transformers(Blip3oForConditionalGeneration)

__all__ = ["Blip3oForConditionalGeneration", "Blip3oOutput", "Blip3oPreTrainedModel", "Blip3oQueries"]
