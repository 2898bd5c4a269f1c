"""The stage `joint`: understanding and generation at once."""

from ..tasks.joint import JointTask, PairedDataset, num_conversations
from .generation import GenerationStage


class JointStage(GenerationStage):
    """
    Both tasks at once (paper section 4.1), on pictures and conversations. Leaves a BLIP3-o.

    Records are those of the data, or of two mixtures, `data.pictures` and `data.conversations`.
    """

    name = "joint"
    weight_keys = ("understanding_weight", "generation_weight")
    model_keys = (*(key for key in GenerationStage.model_keys if key not in ("lora", "caption_weight")), *weight_keys)
    data_keys = ("understanding_rate",)
    types = {
        **GenerationStage.types,
        "model": {**GenerationStage.types["model"], **dict.fromkeys(weight_keys, float)},
        "data": {"understanding_rate": float},
    }
    use = "pairs"
    scores = ("drawing", "answers")

    def __init__(self, recipe):
        super().__init__(recipe)
        self.understanding_rate = recipe.data.get("understanding_rate", 0.5)
        num_conversations(self.understanding_rate, self.arguments.per_device_train_batch_size)

    def task(self):
        return JointTask(**self._given(self.weight_keys), understanding_rate=self.understanding_rate)

    def datasets(self, task, processor):
        held_out = self.data.held_out_pictures(processor=processor), self.data.held_out_conversations(processor)
        return (
            PairedDataset(self.data.pictures(processor=processor), self.data.conversations(processor)),
            None if None in held_out else PairedDataset(*held_out),
        )

    def score(self, trainer):
        scores = super().score(trainer)
        if "per_kind" in self.recipe.evaluation:
            assert self.benchmark is not None  # else the Trainer asks for no scores
            answers = self.benchmark.answers(trainer.unwrapped_model, trainer.processing_class)
            scores["understanding"] = answers["overall"]
        return scores
