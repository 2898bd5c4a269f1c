"""How `Blip3oForConditionalGeneration` gets the condition Q: its backbone reads a prompt and the queries after it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from .backbones import (
    TOKEN_TYPES,
    accepts,
    check_causal,
    holds,
    image_token_id,
    left_aligned,
    needs_token_ids,
    read,
    read_after,
    reads_padding,
    rows_to_read,
    token_cache,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .configuration_blip3o import Blip3oConfig
    from .modeling_blip3o import Blip3oQueries

    class Base(PreTrainedModel):
        """What the mixin uses of the model."""

        config: Blip3oConfig
        backbone: PreTrainedModel
        queries: Blip3oQueries

        def get_decoder(self) -> PreTrainedModel: ...

        def _check_image_inputs(self, inputs: Mapping[str, Any]) -> None: ...

else:
    Base = object


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position ids `[B, L]` counting real tokens only, so that padding changes nothing."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


class Blip3oConditionMixin(Base):
    """The condition of [`Blip3oForConditionalGeneration`] (paper section 3.2), from any kind of backbone."""

    _reads_padding: bool | None = None
    """Whether padding changes what the backbone reads; measured when it could."""

    def encode_condition(
        self,
        input_ids: torch.Tensor,
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
        given = {name: value for name, value in image_inputs.items() if value is not None}
        input_ids, attention_mask, image_inputs = left_aligned(input_ids, attention_mask, given)
        has_own_positions = self.config.image_positions == "backbone"
        grids = image_inputs.get("image_grid_thw") if has_own_positions else None
        positions = self.prompt_positions(input_ids, attention_mask, grids)
        decoder = self.get_decoder()
        if accepts(decoder, "position_ids") and token_cache(decoder) is not None:
            return self._read_batch(input_ids, positions, attention_mask, image_inputs)
        return self._read_rows(input_ids, positions, attention_mask, image_inputs)

    def _read_batch(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor,
        image_inputs: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """The condition from prompts that are read together, padded on the left."""
        decoder = self.get_decoder()
        cache = token_cache(decoder)
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.backbone.parameters())
        is_checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules())
        # Engines that partition weights gather them again when the gradient reaches a layer's output, and it does
        # not come through a cache. Under gradient checkpointing the library's layers take no cache at all.
        is_one_pass = (trains or (decoder.training and is_checkpointed)) and not needs_token_ids(decoder)
        if cache is not None and not is_one_pass:
            with torch.set_grad_enabled(trains):
                self.read_prompt(input_ids, positions, attention_mask, cache, **image_inputs)
            if holds(cache, input_ids.shape[1]):
                return self.read_queries(cache, positions, attention_mask)
        return self.read_together(input_ids, positions, attention_mask, **image_inputs)

    def _read_rows(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor,
        image_inputs: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """
        The condition from a backbone that keeps states, or takes no positions. It is measured first, and prompts go
        one by one where padding would change them.
        """
        if self._reads_padding is None:
            check_causal(self.backbone)
            self._reads_padding = reads_padding(self.get_decoder())
        rows = rows_to_read(self.backbone, attention_mask, self._reads_padding, image_inputs)
        token_inputs = {name: value for name, value in image_inputs.items() if name in TOKEN_TYPES}
        return torch.cat(
            [
                self._read_batch(
                    input_ids[row, first:],
                    positions[..., row, first:],
                    attention_mask[row, first:],
                    {**image_inputs, **{name: value[row, first:] for name, value in token_inputs.items()}},
                )
                for row, first in rows
            ]
        )

    def read_prompt(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **image_inputs: torch.Tensor,
    ) -> torch.Tensor:
        """
        The backbone's hidden states of a prompt, by its own forward, whatever that does with images.

        Args:
            input_ids (`[B, L]`): the prompt, or what follows the tokens in `past_key_values`.
            positions (`[B, L]` or `[3, B, L]`): as `prompt_positions` gives them.
            attention_mask (*optional*): 1 for real tokens; left out where there is no padding.
            past_key_values (*optional*): a cache to which the prompt is added.
            image_inputs: what the processor returns for input images.

        Returns:
            `torch.Tensor` `[B, L, hidden_size]`.
        """
        return read(self.backbone, input_ids, positions, attention_mask, image_inputs, past_key_values=past_key_values)

    def read_queries(
        self, past_key_values: Cache, prompt_positions: torch.Tensor, attention_mask: torch.Tensor | None = None
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
        return read_after(self.get_decoder(), past_key_values, queries, positions, full_mask)

    def read_together(
        self,
        input_ids: torch.Tensor,
        prompt_positions: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **image_inputs: torch.Tensor,
    ) -> torch.Tensor:
        """
        The condition Q by one pass over prompts and queries. Arguments are those of `read_prompt`.

        Raises:
            ValueError: when the backbone makes more of token ids than embeddings; queries have none.
        """
        if needs_token_ids(self.get_decoder()):
            raise ValueError(
                f"This backbone ({self.backbone.config.model_type}) reads token ids in every layer, and "
                f"queries have none; they can only follow a prompt in a cache. Gradient checkpointing takes none. "
                f"Turn it off."
            )
        queries, positions, full_mask = self._query_inputs(prompt_positions, attention_mask)
        embeddings = torch.cat([self.get_input_embeddings()(input_ids), queries], dim=1)
        positions = torch.cat([prompt_positions, positions], dim=-1)
        hidden_states = read(self.backbone, input_ids, positions, full_mask, image_inputs, inputs_embeds=embeddings)
        return hidden_states[:, -queries.shape[1] :]

    def _query_inputs(
        self, prompt_positions: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Embeddings and positions of the queries after prompts, and the mask of both."""
        batch_size = prompt_positions.shape[-2]
        queries = self.queries(batch_size).to(self.get_input_embeddings().weight.dtype)
        first = prompt_positions.amax(-1, keepdim=True) + 1
        positions = first + torch.arange(queries.shape[1], device=prompt_positions.device)
        if attention_mask is None:
            return queries, positions, None
        return queries, positions, torch.cat([attention_mask, attention_mask.new_ones(queries.shape[:2])], dim=1)

    def prompt_positions(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, image_grid_thw: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Positions of a prompt's real tokens: `[B, L]`, counted on, or `[3, B, L]`, the backbone's own for images of
        these grids, where it has such.
        """
        positions_of_pixels = getattr(self.backbone.base_model, "get_rope_index", None)
        if image_grid_thw is None or positions_of_pixels is None:
            return _positions(attention_mask)
        image_token = image_token_id(self.backbone.config)
        assert image_token is not None  # there are images
        is_image = (input_ids == image_token).int()
        return positions_of_pixels(
            input_ids, mm_token_type_ids=is_image, image_grid_thw=image_grid_thw, attention_mask=attention_mask
        )[0]


__all__ = ["Blip3oConditionMixin"]
