"""The stage `alignment`: a small backbone learns to have the picture ready at the query tokens."""

from collections.abc import Sequence
from typing import Any

import torch

from ...data.records import Record
from ...models.processing_blip3o import message_images
from ...objectives.phrases import phrase_loss
from ...training.conversations import num_answer_tokens
from ...training.stages.joint import JointStage
from ...training.tasks.joint import JointTask, PairedDataset
from .. import MAX_OBJECTS
from ..tasks import Phrases, ShapesPhrases

NOTHING = "<|im_end|>"


class AlignmentTask(JointTask):
    """Conversations, and prompts whose queries learn to say what the picture will show."""

    name = "alignment"
    draws = False

    def needs_encoder(self, arguments):
        return False

    def choose(self, model):
        model.requires_grad_(False)
        for part in (model.queries, model.get_decoder(), model.get_output_embeddings()):
            part.requires_grad_(True)

    def collate_pictures(self, pictures: Sequence[Phrases]) -> dict[str, torch.Tensor]:
        images = [list(plan.images) for plan in pictures]
        assert self.processor is not None
        prompts = self.processor.encode_prompts(
            [plan.prompt for plan in pictures],
            images=images if any(images) else None,
            histories=[plan.history for plan in pictures],
        )
        texts = [[*(f" {' '.join(words)}" for words in plan.phrases), *[NOTHING] * MAX_OBJECTS] for plan in pictures]
        return {**prompts, "phrase_ids": self.phrase_ids([phrases[:MAX_OBJECTS] for phrases in texts])}

    def collate_conversations(self, conversations):
        """Those without images apart: they are short, and many."""
        kinds: tuple[list[Record], list[Record]] = ([], [])
        for record in conversations:
            kinds[bool(record.images or message_images(record.history))].append(record)
        return [self.conversations.collate(records) for records in kinds if records]

    def counts(self, batch):
        tokens = sum(num_answer_tokens(each["labels"]) for each in batch["conversations"])
        return {"records": len(batch["phrase_ids"]), "tokens": tokens}

    def loss(self, model, batch, generators):
        return self.weighted(*self._losses(model, batch))

    @staticmethod
    def _losses(model, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of answers and of phrases."""
        phrase_ids = batch.pop("phrase_ids")
        output = model(**batch, output_query_logits=True)
        return output.text_loss, phrase_loss(output.query_logits, phrase_ids)

    def validate(self, model, dataset):
        """Losses of answers about pictures, of each token, and of phrases; `loss` is their weighted sum."""
        sums, num_tokens, number = torch.zeros(2), 0, 0
        for plans in self.batches(dataset.pictures):
            about = [dataset.conversations[number + index] for index in range(len(plans))]
            batch = {**self.collate_pictures(plans), "conversations": self.conversations.collate(about)}
            tokens = int(num_answer_tokens(batch["conversations"]["labels"]))
            losses = torch.stack(self._losses(model, self.on_device(batch, model))).cpu()
            sums += losses * torch.tensor([tokens, len(plans)])
            num_tokens, number = num_tokens + tokens, number + len(plans)
        answers, phrases = (sums / torch.tensor([num_tokens, number])).tolist()
        loss = self.understanding_weight * answers + self.generation_weight * phrases
        return {"loss": loss, "loss_of_answers": answers, "loss_of_phrases": phrases}


class AlignmentStage(JointStage):
    """
    Conversations, and prompts whose queries learn to say what the picture will show. Leaves a BLIP3-o whose
    transformer is untrained.

    Query tokens read what a backbone has in mind at places where it never had to speak. A large one has the picture in
    mind there; a small one does not, until it is asked. Each quarter of the queries has to say, through the
    backbone's own output layer, all words about one object: size, colour, shape, place and background. What the
    prompt leaves open stays open, and "left of" becomes a place that is likely on the left.

    It reads the tiny world alone.
    """

    name = "alignment"
    optional_inputs = ("model", "backbone", "encoder")
    scores = ("answers",)
    sampling_keys = ()
    evaluation_keys = ()

    def task(self):
        return AlignmentTask(**self._given(self.weight_keys), understanding_rate=self.understanding_rate)

    def datasets(self, task, processor):
        return self._pairs(self.data.pictures(processor=processor), self.data.conversations(processor)), self._pairs(
            self.data.held_out_pictures(processor=processor), self.data.held_out_conversations(processor)
        )

    @staticmethod
    def _pairs(pictures, conversations) -> PairedDataset:
        return PairedDataset(ShapesPhrases(pictures), conversations)

    def score(self, trainer):
        assert self.benchmark is not None
        return self.benchmark.answers(trainer.unwrapped_model, trainer.processing_class)
