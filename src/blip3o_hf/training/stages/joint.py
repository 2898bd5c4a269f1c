"""The stage `joint`: understanding and generation at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from ...data.mixture import MIXTURE_KEYS, open_mixture
from ...data.records import Record
from ...names import check_keys
from ...shapes.conversations import ShapesConversations
from ...shapes.dataset import ShapesDataset
from ..conversations import Conversations
from .generation import VALIDATION_RECORDS, GenerationStage
from .understanding import UnderstandingStage


@dataclass(frozen=True)
class Pair:
    """A picture and a conversation of which a batch reads one."""

    pictures: Dataset
    conversations: Dataset
    index: int

    @property
    def picture(self) -> Record:
        return self.pictures[self.index % len(self.pictures)]

    @property
    def conversation(self) -> Record:
        return self.conversations[self.index % len(self.conversations)]


class PairedDataset(Dataset):
    """Pictures and conversations side by side, as long as the longer of both."""

    def __init__(self, pictures: Dataset, conversations: Dataset):
        self.pictures = pictures
        self.conversations = conversations

    def __len__(self) -> int:
        return max(len(self.pictures), len(self.conversations))

    def __getitem__(self, index: int) -> Pair:
        return Pair(self.pictures, self.conversations, index)


class JointStage(GenerationStage):
    """
    Both tasks at once (paper section 4.1): each batch holds conversations and prompts with images, and the losses of
    both add up. The backbone's text stack trains with queries and transformer; its vision tower is frozen.

    Records are the tiny world's, or those of two mixtures, `data.pictures` and `data.conversations`.
    """

    name = "joint"
    model_keys = (
        *(key for key in GenerationStage.model_keys if key not in ("lora", "caption_weight")),
        "understanding_weight",
        "generation_weight",
    )
    world_keys = (*UnderstandingStage.world_keys, *GenerationStage.task_keys, "understanding_rate")
    source_keys = ("pictures", "conversations", "understanding_rate")
    evaluation_keys = (*GenerationStage.evaluation_keys, "per_kind")
    num_questions = UnderstandingStage.num_questions

    def __init__(self, recipe):
        super().__init__(recipe)
        rate = recipe.data.get("understanding_rate", 0.5)
        self.num_conversations = round(rate * self.arguments.per_device_train_batch_size)
        if not 0 < self.num_conversations < self.arguments.per_device_train_batch_size:
            raise ValueError(
                f"Joint training needs conversations and pictures in every batch. `data.understanding_rate` {rate} of "
                f"{self.arguments.per_device_train_batch_size} records leaves none of one kind. Choose a share "
                f"between 0 and 1, or a larger `training.per_device_train_batch_size`."
            )
        for name in () if self.is_world else ("pictures", "conversations"):
            mixture = recipe.data.get(name, {})
            check_keys(mixture, [key for key in MIXTURE_KEYS if key != "streaming"], f"'data.{name}' of {self.where}")

    @property
    def is_world(self):
        return not {"pictures", "conversations"} & self.recipe.data.keys()

    def build(self):
        settings = self.recipe.model
        self.weights = settings.get("understanding_weight", 1.0), settings.get("generation_weight", 1.0)
        model = super().build()
        self.conversations = Conversations(self.processor, settings["max_length"])
        return model

    def _unfreeze(self, model):
        super()._unfreeze(model)
        for part in (model.get_decoder(), model.get_output_embeddings()):
            part.requires_grad_(True)

    def dataset(self):
        if not self.is_world:
            return PairedDataset(*(open_mixture(self.recipe.data[name]) for name in ("pictures", "conversations")))
        scenes = self.scenes()
        return PairedDataset(self.pictures(scenes), self._about(scenes))

    def _about(self, scenes: ShapesDataset, **rates: float) -> ShapesConversations:
        """Conversations about scenes, at the recipe's rates or at those given."""
        keys = UnderstandingStage.conversation_keys
        rates = {key: self.recipe.data[key] for key in keys if key in self.recipe.data} | rates
        return ShapesConversations(scenes, self.processor, **rates)

    def collate(self, records: Sequence[Pair]):
        conversations = [pair.conversation for pair in records[: self.num_conversations]]
        pictures = [pair.picture for pair in records[self.num_conversations :]]
        return {**self._collate_pictures(pictures), "conversations": self.conversations.collate(conversations)}

    def _collate_pictures(self, pictures: Sequence[Record]) -> dict[str, Any]:
        return super().collate(pictures)

    def loss(self, model, batch, generators):
        batch = self._with_features(batch)
        generator = generators[: len(batch["target_features"])]
        output = model(**batch, num_noise_draws=self.arguments.noise_draws, generator=generator)
        return self.weights[0] * output.text_loss + self.weights[1] * output.loss

    def validate(self, model):
        if not self.is_world:
            return super().validate(model)
        scenes = ShapesDataset(VALIDATION_RECORDS, seed=3, split="test", num_questions=self.num_questions)
        about = self._about(scenes, text_rate=0.0)
        conversations = self.conversations.collate([about[index] for index in range(len(about))])
        output = model(**{name: tensor.to(model.device) for name, tensor in conversations.items()})
        return {**super().validate(model), "loss_of_answers": output.loss.item()}
