"""What every task has in common."""

import contextlib
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from torch.utils.data import IterableDataset

from ...data.given_rows import check_given
from ...data.mixture import MixtureDataset, StreamingMixture, open_mixture, with_complete
from ...data.records import Record
from ...data.rows import read_row
from ...data.tables import open_table
from ...models.processing_blip3o import Blip3oProcessor
from ...models.target_encoder import TargetEncoder
from ..arguments import Blip3oTrainingArguments
from ..caching import checked, decode


class Task:
    """
    What a [`~training.trainer.Blip3oTrainer`] does with records: how they become batches (`collate`), what is learned
    from these (`loss`, `validate`), which parameters train (`choose`), and what is written (`save`).

    `setup` binds it to a model. An object of a task serves one Trainer.
    """

    name: ClassVar[str]
    draws: ClassVar[bool] = False
    """Whether the model that trains is a BLIP3-o that can draw."""
    reads_prompts: ClassVar[bool] = True
    """Whether it needs a processor."""
    takes_targets: bool = True
    """Whether it learns from target features, which a cache may hold."""
    processor: Blip3oProcessor | None = None
    """What prepares prompts for the model, where it reads any; every checkpoint holds it."""
    target_encoder: TargetEncoder | None = None
    """The frozen target encoder, where the task needs one."""
    details: str = ""
    """What a card says of the task beside its arguments, in a sentence."""
    arguments: Blip3oTrainingArguments
    shares: Mapping[str, float | torch.Tensor] = MappingProxyType({})
    """What the means in `loss` count for in their step; the Trainer sets them for each batch."""

    def load(self, name: str, arguments: Blip3oTrainingArguments) -> tuple[nn.Module, Blip3oProcessor | None]:
        """
        Model and processor for this task, as `from_pretrained` of their classes reads them.

        Args:
            name: folder or Hub id.
            arguments: of the training to come.
        """
        raise NotImplementedError(f"The task {self.name!r} takes a model, not a name. Load it first.")

    def needs_encoder(self, arguments: Blip3oTrainingArguments) -> bool:
        """Whether the task needs a target encoder."""
        return False

    def feature_size(self, model: nn.Module, source: str) -> int:
        """Height and width of the target features of a model, which was loaded from `source`."""
        return getattr(getattr(model, "config", None), "feature_size", 8)

    def setup(
        self,
        model: nn.Module,
        processor: Blip3oProcessor | None,
        target_encoder: TargetEncoder | None,
        arguments: Blip3oTrainingArguments,
        peft_config: PeftConfig | None = None,
    ) -> nn.Module:
        """
        Bind the task to a model, and choose what of it trains.

        Returns:
            The module that the Trainer trains: the model itself, or with PEFT's layers in it.

        Raises:
            ValueError: when nothing would train, or parts do not belong together.
        """
        self.processor, self.target_encoder, self.arguments = processor, target_encoder, arguments
        self.check(model)
        if peft_config is None:
            self.choose(model)
        else:
            model.requires_grad_(False)
            model = _adapted(model, peft_config)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"Something must train. All parameters of this {type(model).__name__} are frozen. Name the parts that "
                f"train, such as `train=['queries', 'transformer']`, or set `requires_grad`."
            )
        return model

    def check(self, model: nn.Module) -> None:
        """Raise a `ValueError` when model, processor, encoder and arguments do not belong together."""

    def choose(self, model: nn.Module) -> None:
        """Set `requires_grad` of the model's parameters; by default they stay as they are."""

    @property
    def frozen_parts(self) -> list[nn.Module]:
        """Models outside the one that trains; the Trainer puts them on the training device."""
        return [] if self.target_encoder is None else [self.target_encoder.model]

    # Data

    @property
    def complete(self) -> Callable[[str, Record], Any]:
        """What sources give of their identity and a record, as in [`~data.mixture.open_mixture`]."""
        return decode if self.processor is None else checked(self.processor, self.arguments.max_length)

    def is_dataset(self, mapping: Mapping[str, Any]) -> bool:
        """Whether a mapping is one dataset, as `open` takes it, and not several by their names."""
        return "sources" in mapping

    def open(self, dataset: Any, name: str) -> Any:
        """
        What a user passes as a dataset, as one of records.

        Args:
            dataset: of `datasets`; the folder, file or Hub name of a source, or a recipe's section `data` with
                `sources`; or any PyTorch dataset or list of records or of rows.
            name: of the argument, for addresses and errors.

        Raises:
            TypeError: when it is not a dataset.
        """
        import datasets

        if isinstance(dataset, str | os.PathLike):
            dataset = {"sources": [{"path": str(dataset)}]}
        if isinstance(dataset, Mapping):
            return open_mixture(dataset, self.complete)
        if isinstance(dataset, datasets.Dataset | datasets.IterableDataset):
            return open_table(dataset, name, self.complete)
        if isinstance(dataset, MixtureDataset | StreamingMixture):
            return with_complete(dataset, self.complete)
        if isinstance(dataset, IterableDataset) or (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
            return check_given(dataset, name, self.complete)
        raise TypeError(
            f"`{name}` must be a dataset with captions and images: one of `datasets`, or a PyTorch dataset of rows or "
            f"records. Got {type(dataset).__name__}. Example: load_dataset('imagefolder', data_dir='photos', "
            f"split='train')."
        )

    def __call__(self, items: Sequence[Any]) -> dict[str, Any]:
        """The data collator: a batch of records, or of rows with the columns of docs/data.md."""
        return self.collate([as_record(item, index) for index, item in enumerate(items)])

    def collate(self, records: Sequence[Any]) -> dict[str, Any]:
        """The tensors of a batch."""
        raise NotImplementedError

    # Losses

    def counts(self, batch: Mapping[str, Any]) -> dict[str, int | torch.Tensor]:
        """
        How many items the means in `loss` go over, by a name for each kind of item, such as `records` or `tokens`.

        A step is spread over micro-batches and processes, which may have different numbers of them: a mean over all
        items of the step is the mean of `share(name)` times the mean over those of each batch.

        Args:
            batch: what `collate` returned.
        """
        return {}

    def share(self, name: str) -> float | torch.Tensor:
        """The factor of a mean over items of that name: 1 where all batches of the step have equally many."""
        return self.shares.get(name, 1.0)

    def loss(self, model: nn.Module, batch: dict[str, Any], generators: Sequence[torch.Generator]) -> torch.Tensor:
        """
        The loss of a batch, each mean in it multiplied by its `share`.

        Args:
            model: what `setup` returned, wrapped for several processes where there are.
            batch: what `collate` returned.
            generators: at least one for each record, to draw what is random about it.
        """
        raise NotImplementedError

    def validate(self, model: nn.Module, dataset: Any) -> dict[str, float]:
        """
        Losses on held-out records, the same ones and with the same random numbers at every call; `loss` is the one
        to compare models by.

        Args:
            model: what `setup` returned.
            dataset: of records or rows.
        """
        total, number = 0.0, 0
        for records in self.batches(dataset):
            batch = self.on_device(self.collate(records), model)
            generators = [torch.Generator().manual_seed(number + index) for index in range(len(records))]
            with _fixed_randomness(number):
                total += self.loss(model, batch, generators).item() * len(records)
            number += len(records)
        return {"loss": total / number} if number else {}

    def batches(self, dataset: Any) -> Iterator[list[Any]]:
        """
        A dataset's records in batches of `per_device_eval_batch_size`, in order.

        Raises:
            ValueError: when it has no end.
        """
        if isinstance(dataset, StreamingMixture) and dataset.epochs is None:
            raise ValueError(
                "A dataset to evaluate on must end. Got a stream without `epochs`. Leave out `streaming: true`."
            )
        items = dataset if isinstance(dataset, IterableDataset) else (dataset[i] for i in range(len(dataset)))
        items = (as_record(item, index) for index, item in enumerate(items))
        while batch := list(itertools.islice(items, self.arguments.per_device_eval_batch_size)):
            yield batch

    def on_device(self, batch: dict[str, Any], model: nn.Module) -> dict[str, Any]:
        """A batch where the model is."""
        device = next(model.parameters()).device

        def moved(value: Any) -> Any:
            return {key: moved(item) for key, item in value.items()} if isinstance(value, dict) else value.to(device)

        return moved(batch)

    # Results

    def save(self, model: nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """
        Write the trained part.

        Args:
            model: what `setup` returned.
            folder: where to.
            weights: the model's state dict; its own by default, which may hold partitions of them only.
        """
        raise NotImplementedError

    def save_checkpoint(self, model: nn.Module, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """The same for a checkpoint to go on from, where that is another one than the result."""
        self.save(model, folder, weights)


def as_record(item: Any, index: int) -> Any:
    """A row as a record; everything else, such as a record or a pair of them, as it is."""
    return read_row(f"row {index}", item) if isinstance(item, dict) else item


def drawn_noise(shape: Sequence[int], generators: Sequence[torch.Generator], number: int = 1) -> torch.Tensor:
    """So many noises of each generator, `[len(generators) * number, *shape]`, on the CPU."""
    return torch.cat([torch.randn(number, *shape, generator=each) for each in generators])


@contextlib.contextmanager
def _fixed_randomness(seed: int) -> Generator[None]:
    """Within the block, PyTorch's global random numbers are those of a seed; after it, they go on as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _adapted(model: nn.Module, peft_config: PeftConfig) -> nn.Module:
    """The model with PEFT's layers."""
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        named = getattr(peft_config, "target_modules", None)  # of the configs of most methods
        raise ValueError(
            f"`peft_config` must name layers of the model. {named!r} matches none of "
            f"{type(model).__name__} ({error}). `blip3o_hf.models.adapters.lora_config(model)` makes one that fits."
        ) from error
