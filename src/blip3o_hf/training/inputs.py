"""Checks and completes what a user passes to the Trainer: model, encoder, data sets."""

import os
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKL
from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length
from transformers.utils import logging

from ..assets import resolve_model
from ..data.given_rows import as_given
from ..data.mixture import StreamingMixture
from ..data.records import BadItem, Record
from ..models.processing_blip3o import Blip3oProcessor
from ..models.target_encoder import TargetEncoder, load_image_processor, square_image_processor, vae_scale_factor
from ..pipelines.pipeline_blip3o import has_pipeline
from .arguments import FROZEN_DTYPES, Blip3oTrainingArguments
from .caching import CachedInputs, target_fingerprint
from .distributed import whole_weights
from .feature_cache import content_hash
from .tasks import Task

logger = logging.get_logger(__name__)

EncoderInput = str | os.PathLike | TargetEncoder | PreTrainedModel | AutoencoderKL | None
COMPARED_RECORDS = 1000
"""Of a training set, so many records are compared with those of the evaluation."""


HOOKS = ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics", "model_init")
"""Arguments of transformers' Trainer that this one does not read."""


def check_hooks(arguments: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: when an argument was passed that has no effect in this Trainer.
    """
    for name in HOOKS:
        if arguments.get(name) is not None:
            raise ValueError(
                f"An argument must have an effect. `{name}` has none: the task defines losses and scores. Got "
                f"{arguments[name]!r}. Pass a `task` of your own, or a function to `evaluate_with`."
            )


def check_has_batches(dataset: Any, arguments: Blip3oTrainingArguments) -> None:
    """
    Raises:
        ValueError: when a dataset of known length gives no batch for every process.
    """
    if not has_length(dataset):
        if arguments.data_seed is not None and isinstance(dataset, StreamingMixture):
            raise ValueError(
                f"The order of a stream depends on its own `seed`. Got `data_seed` {arguments.data_seed}. Set "
                f"`data.seed` instead."
            )
        return
    batch = arguments.train_batch_size * arguments.world_size
    if len(dataset) >= (batch if arguments.dataloader_drop_last else 1):
        return
    advice = "Make the batch smaller, or leave `dataloader_drop_last` out" if len(dataset) else "Check the data"
    raise ValueError(
        f"Training needs a batch for every process. There are {len(dataset)} records, and a step of all processes "
        f"takes {batch}. {advice}."
    )


def processor_of(model: nn.Module) -> Blip3oProcessor:
    """
    That of the repository that a model was loaded from.

    Raises:
        ValueError: when it was loaded from none.
    """
    source = getattr(model, "name_or_path", "")
    if not source:
        raise ValueError(
            "Prompts need the model's processor. This model was not loaded from a repository that has one. Pass "
            "`processing_class=Blip3oProcessor.from_pretrained(...)`."
        )
    return Blip3oProcessor.from_pretrained(source)


def open_training(task: Task, dataset: Any, data_collator: Any) -> Any:
    """
    What a user passes to train on, as a dataset of records; where a collator of the user's own reads the items of the
    user's own dataset, that as it is.
    """
    if dataset is None:
        return None
    opened = task.open(dataset, "train_dataset")
    return opened if data_collator is None else as_given(opened)


def open_evaluation(task: Task, dataset: Any) -> Any:
    """What a user passes to evaluate with, as one dataset of records, or several by their names."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping) and not task.is_dataset(dataset):
        return {name: task.open(held_out, f"eval_dataset[{name!r}]") for name, held_out in dataset.items()}
    return task.open(dataset, "eval_dataset")


def encoder_source(given: EncoderInput, model_source: str) -> tuple[str, str]:
    """
    Folder and subfolder of the target encoder: of a repository that has one, or a folder of its own.

    Raises:
        ValueError: when neither is known.
    """
    source = resolve_model(os.fspath(given)) if isinstance(given, str | os.PathLike) else model_source
    if given is None and not (source and has_pipeline(source)):
        raise ValueError(
            f"Generation learns from a target encoder's features. The repository of this model "
            f"({model_source or 'not known'}) has none. Pass `target_encoder`: a folder, a Hub id or a vision tower; "
            f"or `feature_cache` in the arguments."
        )
    return source, "target_encoder" if has_pipeline(source) else ""


def load_encoder(
    given: EncoderInput, model_source: str, feature_size: int, arguments: Blip3oTrainingArguments
) -> TargetEncoder:
    """
    The target encoder to train with, frozen.

    Args:
        given: what the user passed.
        model_source: folder or Hub id of the model to train, whose repository has one by default.
        feature_size: height and width of the grid of features.
        arguments: of the training.

    Raises:
        ValueError: when there is none.
    """
    if isinstance(given, TargetEncoder):
        return given
    if given is None or isinstance(given, str | os.PathLike):
        source, subfolder = encoder_source(given, model_source)
        with whole_weights(arguments):
            try:
                return TargetEncoder.load(source, subfolder, FROZEN_DTYPES[arguments.frozen_dtype], feature_size)
            except OSError as error:
                raise ValueError(
                    f"The target encoder must be in the model's repository, or be passed. {source} has none "
                    f"({error}). Pass `target_encoder`: a folder, a Hub id or a vision tower."
                ) from error
    encoder = given.requires_grad_(False).eval()
    if isinstance(encoder, AutoencoderKL):
        return TargetEncoder(encoder, square_image_processor(feature_size * vae_scale_factor(encoder)), feature_size)
    if not encoder.name_or_path:
        raise ValueError(
            "An encoder needs its image processor. That of this one is not known, since it was not loaded from a "
            "folder. Pass TargetEncoder(encoder, image_processor) of blip3o_hf.models.target_encoder."
        )
    return TargetEncoder(encoder, load_image_processor(encoder.name_or_path), feature_size)


def check_cached_targets(
    given: EncoderInput, model_source: str, feature_size: int, arguments: Blip3oTrainingArguments
) -> None:
    """
    Args:
        given, model_source, feature_size, arguments: as in [`load_encoder`].

    Raises:
        ValueError: when the cache holds target features of another encoder.
    """
    fingerprint = target_fingerprint(encoder_source(given, model_source), feature_size, arguments)
    CachedInputs.of(arguments.feature_cache).check("targets", fingerprint, "this run")


def warn_of_overlap(train_dataset: Any, eval_dataset: Any) -> int:
    """
    Warn when records of the evaluation are also trained on, by the pixels and the words of each.

    Of a large training set, evenly spread records are compared; of a stream none.

    Returns:
        `int`: how many records of the evaluation were found.
    """
    if isinstance(eval_dataset, dict):
        return sum(warn_of_overlap(train_dataset, dataset) for dataset in eval_dataset.values())
    datasets = (train_dataset, eval_dataset)
    if any(isinstance(d, IterableDataset) or not has_length(d) or not len(d) for d in datasets):
        return 0
    stride = max(1, len(train_dataset) // COMPARED_RECORDS)
    held_out = [_content(eval_dataset, index) for index in range(min(len(eval_dataset), COMPARED_RECORDS))]
    if not any(held_out):
        return 0
    trained = {_content(train_dataset, index) for index in range(0, len(train_dataset), stride)}
    number = sum(content is not None and content in trained for content in held_out)
    if number:
        logger.warning(
            f"{number} of {len(held_out)} records of `eval_dataset` are also in `train_dataset`: their losses say "
            f"nothing about new images. Split the data before training, as with dataset.train_test_split(0.1)."
        )
    return number


def _content(dataset: Any, index: int) -> int | None:
    """A hash of a record; `None` of what is no record, or cannot be read."""
    try:
        record = dataset[index]
    except BadItem:
        return None
    if not isinstance(record, Record):
        return None
    images = (image for image in (record.target, *record.images) if image is not None)
    return content_hash(repr((record.prompt, record.turns)), images)
