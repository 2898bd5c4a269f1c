"""transformers renames for us: its own loader reads published names, and its own saving writes ours."""

from typing import Any

from torch import Tensor
from transformers import ConversionOps, PreTrainedModel, WeightConverter
from transformers.conversion_mapping import get_model_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange, WeightRenaming

from .published_names import OUR_NAMES

_QUERIES = "queries.weight"


class QueriesToMatrix(ConversionOps):
    """Published queries `[1, num_queries, hidden_size]` to ours, `[num_queries, hidden_size]`."""

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs
    ) -> dict[str, Tensor]:  # ty: ignore[incompatible-method-override]  # as most of the library's own operations
        (tensors,) = input_dict.values()
        tensor = tensors[0] if isinstance(tensors, list) else tensors
        return {target_patterns[0]: tensor.flatten(0, -2)}


def register_with_transformers(model_class: type[PreTrainedModel]) -> None:
    """Make `from_pretrained` of this class read published names as well as ours. Idempotent."""
    renamings = [WeightRenaming(pattern, ours) for pattern, ours in OUR_NAMES if ours != _QUERIES]
    queries = [
        WeightConverter(pattern, ours, operations=[QueriesToMatrix()])
        for pattern, ours in OUR_NAMES
        if ours == _QUERIES
    ]
    register_checkpoint_conversion_mapping(model_class.__name__, renamings + queries, overwrite=True)


def keep_our_names(model: PreTrainedModel) -> None:
    """
    See to it that `save_pretrained` writes our names.

    transformers saves a model under the names it was read from, and a new one under those of the registered mapping;
    only the mappings of the parts (which have a scope) are to be undone.
    """
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is None:
        conversions = get_model_conversion_mapping(model, add_legacy=False)
        conversions = [conversion for conversion in conversions if not isinstance(conversion, PrefixChange)]
    scoped = [conversion for conversion in conversions if conversion.scope_prefix is not None]
    model._weight_conversions = scoped  # ty: ignore[invalid-assignment]  # no part: `nn.Module` types all attributes so


__all__ = ["keep_our_names", "register_with_transformers"]
