"""The task `joint`: understanding and generation at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from ...data.records import Record
from ..conversations import Conversations, num_answer_tokens
from .base import as_record
from .generation import GenerationTask
from .understanding import answer_losses

_KINDS = ("pictures", "conversations")


class SizedDataset(Protocol):
    """A dataset of records or rows whose length is known."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Pair:
    """A picture and a conversation of which a batch reads one."""

    pictures: SizedDataset
    conversations: SizedDataset
    index: int

    @property
    def picture(self) -> Any:
        return self.pictures[self.index % len(self.pictures)]

    @property
    def conversation(self) -> Record | dict[str, Any]:
        return self.conversations[self.index % len(self.conversations)]


class PairedDataset(Dataset):
    """Pictures and conversations side by side, as long as the longer of both."""

    def __init__(self, pictures: SizedDataset, conversations: SizedDataset):
        self.pictures = pictures
        self.conversations = conversations

    def __len__(self) -> int:
        return max(len(self.pictures), len(self.conversations))

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.pictures, self.conversations, index)


class JointTask(GenerationTask):
    """
    Both tasks at once (paper section 4.1): each batch holds conversations and prompts with images, and the losses of
    both add up. The backbone's text stack and output layer train with queries and transformer; its vision tower is
    frozen.

    Its dataset is a mapping with `pictures` and `conversations`, or a [`PairedDataset`] of both.

    Args:
        understanding_weight, generation_weight: of the two losses.
        understanding_rate: share in (0, 1) of conversations in a batch.
    """

    name = "joint"
    conversations: Conversations
    num_conversations: int

    def __init__(
        self, understanding_weight: float = 1.0, generation_weight: float = 1.0, understanding_rate: float = 0.5
    ):
        self.understanding_weight = understanding_weight
        self.generation_weight = generation_weight
        self.understanding_rate = understanding_rate

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        self.num_conversations = num_conversations(self.understanding_rate, arguments.per_device_train_batch_size)
        self.conversations = Conversations(processor, arguments.max_length or processor.tokenizer.model_max_length)
        return super().setup(model, processor, target_encoder, arguments, peft_config)

    def choose(self, model):
        super().choose(model)
        for part in (model.get_decoder(), model.get_output_embeddings()):
            part.requires_grad_(True)

    def is_dataset(self, mapping):
        return mapping.keys() == set(_KINDS)

    def open(self, dataset, name):
        if isinstance(dataset, PairedDataset):
            dataset = {kind: getattr(dataset, kind) for kind in _KINDS}
        if not (isinstance(dataset, Mapping) and self.is_dataset(dataset)):
            received = f"the keys {', '.join(dataset)}" if isinstance(dataset, Mapping) else type(dataset).__name__
            raise TypeError(
                f"Joint training reads two datasets. `{name}` must be a mapping with 'pictures' and 'conversations'. "
                f"Got {received}. Example: {{'pictures': photos, 'conversations': chats}}."
            )
        return PairedDataset(*(super(JointTask, self).open(dataset[key], f"{name}[{key!r}]") for key in _KINDS))

    def __call__(self, items):
        return self.collate(items)

    def is_conversation(self, position: int) -> bool:
        """
        Whether the pair at this position of a batch gives its conversation, the others give pictures.

        Both are spread evenly over the batch, the first position is a picture's: a batch has the same of each kind
        when it is spread over micro-batches and processes.
        """
        size = self.arguments.per_device_train_batch_size
        return (position + 1) * self.num_conversations // size > position * self.num_conversations // size

    def collate(self, records: Sequence[Any]) -> dict[str, Any]:
        pairs: Sequence[Pair] = records
        chosen = [pair for position, pair in enumerate(pairs) if self.is_conversation(position)]
        conversations = [
            as_record(pair.conversation, pair.index)
            for pair in chosen or pairs[-1:]  # the last of an epoch is short
        ]
        pictures = [
            as_record(pair.picture, pair.index)
            for position, pair in enumerate(pairs)
            if not self.is_conversation(position)
        ]
        return {**self.collate_pictures(pictures), "conversations": self.collate_conversations(conversations)}

    def collate_conversations(self, conversations: Sequence[Record]) -> Any:
        """The part of a batch that is about conversations."""
        return self.conversations.collate(conversations)

    def collate_pictures(self, pictures: Sequence[Any]) -> dict[str, Any]:
        """The part of a batch that is about pictures."""
        return super().collate(pictures)

    def counts(self, batch):
        return {**super().counts(batch), "tokens": num_answer_tokens(batch["conversations"]["labels"])}

    def loss(self, model, batch, generators):
        batch = self.with_features(batch)
        of_pictures = [each for position, each in enumerate(generators) if not self.is_conversation(position)]
        generator = of_pictures[: len(batch["target_features"])]
        output = model(**batch, num_noise_draws=self.arguments.noise_draws, generator=generator)
        return self.weighted(output.text_loss, output.loss)

    def weighted(self, text_loss: torch.Tensor, picture_loss: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of a batch, with the weights of both and their shares in the step."""
        return (
            self.understanding_weight * self.share("tokens") * text_loss
            + self.generation_weight * self.share("records") * picture_loss
        )

    def validate(self, model, dataset):
        """Those of both tasks; `loss` is the sum of both, weighted as in training."""
        pictures = super().validate(model, dataset.pictures)
        answers = answer_losses(self, self.conversations, model, self.batches(dataset.conversations))
        weighted = ((self.generation_weight, pictures), (self.understanding_weight, answers))
        return {**pictures, **answers, "loss": sum(weight * losses.get("loss", 0.0) for weight, losses in weighted)}


def num_conversations(rate: float, batch_size: int) -> int:
    """
    Of a batch.

    Raises:
        ValueError: when none of one kind would be in it.
    """
    number = round(rate * batch_size)
    if not 0 < number < batch_size:
        raise ValueError(
            f"Joint training needs conversations and pictures in every batch. `data.understanding_rate` {rate} of "
            f"{batch_size} records leaves none of one kind. Choose a share between 0 and 1, or a larger "
            f"`training.per_device_train_batch_size`."
        )
    return number
