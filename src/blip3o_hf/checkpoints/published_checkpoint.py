"""A published checkpoint as it lies on disk or on the Hub, checked before a tensor is read.

The reference saves a flat config, the tensor names of transformers 4.51, and the target encoder beside the model. The
classes of a model are handed in; transformers loads the weights, under the names of `published_renaming.py`.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME

from .headers import StoredTensor
from .loading import check_finite
from .lookup import checkpoint_files
from .published_config import published_settings
from .published_names import LEFT_OUT, OUTPUT_LAYER, QUERIES, published_name
from .published_sizes import PublishedSizes, published_sizes
from .stored_weights import read_tensors, transformers_tensors
from .tensor_checks import check_tensors, located

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """
    A published checkpoint, known by its config and the headers of its files.

    Args:
        source: folder or Hub id.
        settings: its `config.json`.
        tensors: every tensor by its published name; `None` where the files are out of reach.
    """

    source: str
    settings: dict[str, Any]
    tensors: dict[str, StoredTensor] | None

    @classmethod
    def find(cls, source: str | os.PathLike | None, **kwargs) -> "PublishedCheckpoint | None":
        """
        The published checkpoint at `source`; `None` when there is none, going by the `model_type` of its config.

        Args:
            source: folder, file `config.json` in it, or Hub id.
            kwargs: arguments of `from_pretrained`; those that say where to look are used.

        Raises:
            ValueError: when the files are damaged, incomplete, or pickles.
        """
        settings = published_settings(source, **kwargs)
        return None if source is None or settings is None else cls.open(source, settings, **kwargs)

    @classmethod
    def open(
        cls, source: str | os.PathLike, settings: dict[str, Any], must_exist: bool = True, **kwargs
    ) -> "PublishedCheckpoint":
        """
        The checkpoint with these settings, once its headers are read.

        Args:
            must_exist: whether weights must be found.

        Raises:
            ValueError: when the files are damaged, incomplete, or pickles.
        """
        files = checkpoint_files(source, **kwargs)
        return cls(str(files), settings, transformers_tensors(files) if must_exist else read_tensors(files))

    @property
    def stored(self) -> dict[str, StoredTensor]:
        """`tensors`, of files that are within reach."""
        assert self.tensors is not None, self.source
        return self.tensors

    @property
    def ties_embeddings(self) -> bool | None:
        """Whether the output layer is the input embeddings, by the tensors; `None` where the config says it."""
        return None if "tie_word_embeddings" in self.settings else OUTPUT_LAYER not in self.stored

    def sizes(self) -> PublishedSizes:
        """
        What the shapes of its tensors say.

        Raises:
            ValueError: when a tensor that tells a size is missing, has other dimensions or is empty.
        """
        return published_sizes(self.stored, self.source)

    def path_of(self, name: str) -> str:
        """The file that holds a tensor, for messages."""
        return f"{self.source}/{self.stored[name].file}"

    def empty_model(self, model_class: type[Model], config: PreTrainedConfig, compare_shapes: bool = True) -> Model:
        """
        A model of this checkpoint's config on the meta device, where it costs neither memory nor time, once `check`
        finds that the stored tensors are its own.

        Raises:
            ValueError: when the config describes no model, and as `check`.
        """
        with self.blaming_config(), torch.device("meta"):
            model = model_class(config)
        self.check(model, compare_shapes)
        return model

    def check(self, model: PreTrainedModel, compare_shapes: bool = True) -> None:
        """
        Check names and shapes before any tensor is read.

        Args:
            model: one of this checkpoint's config.
            compare_shapes: whether shapes must agree, too.

        Raises:
            ValueError: naming missing, unexpected and ill-shaped tensors, and their files.
        """
        expected = {published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        expected[QUERIES] = (1, *expected[QUERIES])
        check_tensors(
            self.stored,
            expected,
            self.source,
            optional={OUTPUT_LAYER} if model.config.tie_word_embeddings else (),
            left_out=LEFT_OUT,
            compare_shapes=compare_shapes,
        )

    def check_values(self, model: PreTrainedModel) -> None:
        """Check that no loaded weight is NaN or infinite; see [`~checkpoints.loading.check_finite`]."""
        check_finite(model, self.source, lambda name: located(self.stored, published_name(name)))

    def check_num_layers(self) -> None:
        """
        Refuse more layers than tensors at once, which the library would build for as long as memory lasts.

        Raises:
            ValueError: with both numbers.
        """
        vision = self.settings.get("vision_config") or {}
        num_layers = max(self.settings.get("num_hidden_layers", 0), vision.get("depth", 0))
        if self.tensors is not None and num_layers > len(self.tensors):
            raise ValueError(
                f"{CONFIG_NAME} must describe the tensors beside it. It asks for {num_layers} layers, and "
                f"{self.source} holds {len(self.tensors)} tensors. Use the config that was saved with these weights."
            )

    @contextmanager
    def blaming_config(self) -> Generator[None]:
        """Turn what a library says of a bad config into a `ValueError` that names the file."""
        try:
            yield
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            StrictDataclassError,
            TypeError,
        ) as error:
            raise ValueError(
                f"{CONFIG_NAME} must describe a Qwen2.5-VL model. That of {self.source} does not "
                f"({type(error).__name__}: {error}). Use the config that was saved with these weights."
            ) from error


__all__ = ["PublishedCheckpoint"]
