"""The stage `alignment`: a small backbone learns to have the picture ready at the query tokens."""

from collections.abc import Sequence

import torch

from ...objectives.phrases import phrase_loss
from ...shapes import MAX_OBJECTS
from ...shapes.dataset import ShapesDataset
from ...shapes.tasks import Phrases, ShapesPhrases
from .generation import VALIDATION_RECORDS
from .joint import JointStage, PairedDataset

NOTHING = "<|im_end|>"


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
    source_keys = JointStage.world_keys
    evaluation_keys = ("per_kind",)
    draws = False

    def _unfreeze(self, model):
        for part in (model.queries, model.get_decoder(), model.get_output_embeddings()):
            part.requires_grad_(True)

    def dataset(self):
        return self._pairs(self.scenes())

    def _pairs(self, scenes: ShapesDataset, **rates: float) -> PairedDataset:
        return PairedDataset(ShapesPhrases(self.pictures(scenes)), self._about(scenes, **rates))

    def _collate_pictures(self, plans: Sequence[Phrases]) -> dict[str, torch.Tensor]:
        images = [list(plan.images) for plan in plans]
        prompts = self.processor.encode_prompts(
            [plan.prompt for plan in plans],
            images=images if any(images) else None,
            histories=[plan.history for plan in plans],
        )
        texts = [[*(f" {' '.join(words)}" for words in plan.phrases), *[NOTHING] * MAX_OBJECTS] for plan in plans]
        return {**prompts, "phrase_ids": self._phrase_ids([own[:MAX_OBJECTS] for own in texts])}

    def loss(self, model, batch, generators):
        phrase_ids = batch.pop("phrase_ids")
        output = model(**batch, output_query_logits=True)
        return self.weights[0] * output.text_loss + self.weights[1] * phrase_loss(output.query_logits, phrase_ids)

    def validate(self, model):
        """Losses of answers about pictures and of phrases, on the tiny world's held-out scenes."""
        scenes = ShapesDataset(VALIDATION_RECORDS, seed=3, split="test", num_questions=self.num_questions)
        pairs = self._pairs(scenes, text_rate=0.0)
        batch = self.collate([pairs[index] for index in range(len(pairs))])
        conversations = {name: tensor.to(model.device) for name, tensor in batch.pop("conversations").items()}
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        phrase_ids = batch.pop("phrase_ids")
        output = model(**batch, conversations=conversations, output_query_logits=True)
        of_phrases = phrase_loss(output.query_logits, phrase_ids)
        return {"loss_of_answers": output.text_loss.item(), "loss_of_phrases": of_phrases.item()}
