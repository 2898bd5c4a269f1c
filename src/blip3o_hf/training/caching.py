"""Which inputs of generation training come from a folder of `blip3o-hf precompute`, and whether they fit."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..data.images import decoded
from ..data.records import Record
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..models.record_check import RecordCheck
from .arguments import Blip3oTrainingArguments
from .feature_cache import FeatureCache, differences
from .fingerprints import condition_fingerprint, encoder_fingerprint

if TYPE_CHECKING:
    from .tasks.generation import GenerationTask


def decode(identity: str, record: Record) -> Record:
    """What a mixture gives of a record without a cache: the record with its images decoded."""
    return decoded(record)


def checked(processor: Blip3oProcessor, max_length: int | None) -> Callable[[str, Record], Record]:
    """
    What a mixture gives of a record that a model is to read: decoded, and looked at for what would fail in a batch.

    Args:
        processor: of the model.
        max_length: longest conversation in tokens; by default the tokenizer's.
    """
    return partial(_check, record_check(processor, max_length))


def record_check(processor: Blip3oProcessor, max_length: int | None) -> RecordCheck:
    """What a model that trains cannot take; arguments are those of `checked`."""
    max_length = processor.tokenizer.model_max_length if max_length is None else max_length
    return RecordCheck(processor, max_length, reads_images=processor.image_processor is not None)


def checked_cached(
    complete: Callable[[str, Record], Any], processor: Blip3oProcessor, max_length: int | None
) -> Callable[[str, Record], Any]:
    """As `checked`, for records that `complete` takes from a cache: their texts, and what the model still reads."""
    return partial(_check_cached, record_check(processor, max_length), complete)


def _check_cached(check: RecordCheck, complete: Callable[[str, Record], Any], identity: str, record: Record) -> Any:
    check.check_texts(record)
    completed = complete(identity, record)
    return completed if completed.condition is not None else check(completed)


def _check(check: RecordCheck, identity: str, record: Record) -> Record:
    return check(decoded(record))


@dataclass(frozen=True)
class CachedInputs:
    """
    What a run takes from its cache.

    Args:
        cache: `None` without one.
        kinds: of [`~training.feature_cache.KINDS`], those that are taken from it.
    """

    cache: FeatureCache | None = None
    kinds: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: str | Path | None, has_frozen_conditions: bool = True) -> "CachedInputs":
        """
        What the cache in a folder gives. Conditions change while the queries train, and are then computed.

        Raises:
            ValueError: when it holds conditions alone, and the queries train.
        """
        if folder is None:
            return cls()
        cache = FeatureCache(folder)
        kinds = tuple(kind for kind in cache.manifest if kind != "conditions" or has_frozen_conditions)
        if not kinds:
            raise ValueError(
                f"A cache of conditions alone is for frozen queries. The queries train, and {cache.folder} holds "
                f"nothing else. Let the transformer train alone (`train: [transformer]`), or run `blip3o-hf "
                f"precompute` on this recipe."
            )
        return cls(cache, kinds)

    @property
    def complete(self) -> Callable[[str, Record], Any]:
        """What a mixture is to give of a source's identity and a record, as in [`~data.mixture.open_mixture`]."""
        if self.cache is None or not self.kinds:
            return decode
        return partial(self.cache.complete, self.kinds)

    def checked_complete(
        self, processor: Blip3oProcessor | None, max_length: int | None
    ) -> Callable[[str, Record], Any]:
        """As `complete`, with what a cache holds checked as [`checked`] does; its arguments are those."""
        is_checked = self.kinds and processor is not None
        return checked_cached(self.complete, processor, max_length) if is_checked else self.complete

    @property
    def statistics(self) -> dict[str, list[float]]:
        """
        Mean and standard deviation of each channel of the cached features.

        Raises:
            ValueError: when the cache was computed without them.
        """
        assert self.cache is not None  # without one, nothing is taken from it
        if "statistics" not in self.cache.manifest["targets"]:
            raise ValueError(
                f"With `model.standardize_features`, the cache must hold the statistics of the features. "
                f"{self.cache.folder} does not. Run `blip3o-hf precompute` on this recipe again."
            )
        return self.cache.manifest["targets"]["statistics"]

    def check(self, kind: str, fingerprint: dict[str, Any], run_name: str) -> None:
        """
        Args:
            kind: that is taken from the cache.
            fingerprint: of the model in training.
            run_name: of the run that takes it, in words.

        Raises:
            ValueError: when the cache is of another model.
        """
        assert self.cache is not None  # without one, nothing is taken from it
        if found := differences(self.cache.manifest[kind]["fingerprint"], fingerprint):
            raise ValueError(
                f"Cached {kind} must be those of the recipe. {self.cache.folder} does not fit {run_name}: {found}. "
                f"Set that back, or run `blip3o-hf precompute` on this recipe with another folder."
            )


def target_fingerprint(
    encoder_source: tuple[str, str], feature_size: int, arguments: Blip3oTrainingArguments
) -> dict[str, Any]:
    """
    All that target features depend on, beside the images.

    Args:
        encoder_source: folder and subfolder of the target encoder.
        feature_size: height and width of the grid.
        arguments: of the training.
    """
    settings = {"feature_size": feature_size, "frozen_dtype": f"torch.{arguments.frozen_dtype}"}
    return {**encoder_fingerprint(*encoder_source), **settings}


def conditions_fingerprint(task: "GenerationTask", model: nn.Module) -> dict[str, Any]:
    """All that conditions depend on, beside prompts and input images."""
    assert isinstance(model, Blip3oForConditionalGeneration)  # with adapters, conditions are not cached
    assert task.processor is not None  # see `reads_prompts`
    arguments = task.arguments
    settings = {"frozen_dtype": f"torch.{arguments.frozen_dtype}", "mixed precision": arguments.mixed_precision}
    return {**condition_fingerprint(model, task.processor), **settings}
