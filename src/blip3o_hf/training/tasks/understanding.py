"""The task `understanding`: a backbone learns to answer."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from ...data.records import Record
from ...models.configuration_blip3o import Blip3oConfig
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.processing_blip3o import Blip3oProcessor
from ..conversations import Conversations, num_answer_tokens
from .base import Task


class UnderstandingTask(Task):
    """
    Questions about images, captioning, plans and text: cross-entropy of the answers (paper section 4).

    The model is a vision-language model, all of which trains but a target encoder that it sees with; or a BLIP3-o, of
    whose backbone the text stack trains.
    """

    name = "understanding"
    conversations: Conversations

    def load(self, name, arguments):
        processor = Blip3oProcessor.from_pretrained(name)
        is_blip3o = isinstance(AutoConfig.from_pretrained(name), Blip3oConfig)
        kind = Blip3oForConditionalGeneration if is_blip3o else AutoModelForImageTextToText
        return kind.from_pretrained(name, dtype=torch.float32, attn_implementation="eager"), processor

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        self.conversations = Conversations(processor, arguments.max_length or processor.tokenizer.model_max_length)
        return super().setup(model, processor, target_encoder, arguments, peft_config)

    def choose(self, model):
        if isinstance(model, Blip3oForConditionalGeneration):
            model.requires_grad_(False)
            for part in (model.get_decoder(), model.get_output_embeddings()):
                part.requires_grad_(True)
        else:
            freeze_eye(model)

    def collate(self, records):
        return self.conversations.collate(records)

    def counts(self, batch):
        return {"tokens": num_answer_tokens(batch["labels"])}

    def loss(self, model, batch, generators):
        return self.share("tokens") * model(**batch).loss

    def validate(self, model, dataset):
        """The loss of held-out answers, each token of them counted once."""
        return answer_losses(self, self.conversations, model, self.batches(dataset))

    def save(self, model, folder, weights=None):
        model.save_pretrained(folder, state_dict=weights)
        assert self.processor is not None  # see `reads_prompts`
        self.processor.save_pretrained(Path(folder))


def freeze_eye(model: nn.Module) -> None:
    """Of a model that sees with a target encoder, that part does not train."""
    tower = getattr(model.base_model, "vision_tower", None)
    if tower is not None:
        tower.requires_grad_(False)


def answer_losses(
    task: Task, conversations: Conversations, model: nn.Module, batches: Iterable[Sequence[Record]]
) -> dict[str, float]:
    """`loss` and `loss_of_answers` of batches of records, which `conversations` collates for the task."""
    total, number = 0.0, 0
    for records in batches:
        batch = task.on_device(conversations.collate(records), model)
        tokens = int(num_answer_tokens(batch["labels"]))
        total += model(**batch).loss.item() * tokens
        number += tokens
    return {"loss": total / number, "loss_of_answers": total / number} if number else {}
