"""A reward of a model that sees: how likely it answers yes when asked whether a picture shows its prompt."""

import contextlib
from collections.abc import Generator, Sequence

import torch
from PIL import Image

from ..checks import check_sizes
from ..evaluation.benchmarks.judges import VlmJudge, yes_or_no
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from .questions import QUESTION, QuestionReward
from .ready import find_device, find_weights, licence_of

TINY = "blip3o-tiny"
LICENCES = {TINY: "Apache-2.0"}


class VqaScore(QuestionReward):
    r"""
    VQAScore (Lin et al., 2024, arXiv 2404.01291): \(P(\text{yes}) / (P(\text{yes}) + P(\text{no}))\) in [0, 1]. A
    judge that answers with something else gives `None`.

    Judge a model that was trained so with another judge: this one's mistakes were learned, too.

    Args:
        judge: a [`~evaluation.benchmarks.judges.VlmJudge`]; or the name of a packaged model, a folder, or the Hub id
            of any image-text-to-text model with a chat template, which is loaded at the first call.
        question: asked of each picture; `{prompt}` in it becomes the prompt.
        name: in logs.
        licence (*optional*): of the judge's weights.
        device: of a judge by name; by default this process's accelerator, where there is one.
        dtype: of the weights of a judge by name; by default that in which they are stored.
        batch_size: questions at once, to a judge by name.

    Raises:
        ValueError: when the question has no place for the prompt.

    Example:
        >>> reward = VqaScore("Qwen/Qwen2.5-VL-7B-Instruct", licence="see its card")  # nothing is loaded yet
        >>> reward.name
        'vqa_score'
    """

    def __init__(
        self,
        judge: str | VlmJudge,
        *,
        question: str = QUESTION,
        name: str = "vqa_score",
        licence: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str = "auto",
        batch_size: int = 16,
    ):
        given = licence or licence_of(judge if isinstance(judge, str) else judge.name, LICENCES)
        super().__init__(question, name, given)
        check_sizes(batch_size=batch_size)
        self.device, self.dtype, self.batch_size = device, dtype, batch_size
        self._judge = judge

    @classmethod
    def of_backbone(
        cls,
        model: Blip3oForConditionalGeneration,
        processor: Blip3oProcessor,
        *,
        name: str = "backbone_score",
        licence: str = "that of the model",
        batch_size: int = 16,
    ) -> "VqaScore":
        """
        With the model's own backbone, asked by the processor's `check_instruction`, as the pipeline checks its
        attempts. While a flow learns, its backbone is frozen, so this judge stays the same; but what it does not see,
        its conditions may not say either.

        Args:
            model: whose weights are whole in each process: not partitioned by FSDP or ZeRO-3.
            processor: of the same repository.
            name, licence: as above.
            batch_size: questions at once.

        Raises:
            ValueError: when the backbone reads text only.
        """
        model.check_vision()
        check_sizes(batch_size=batch_size)
        question = processor.check_instruction.replace("{caption}", "{prompt}")
        return cls(
            VlmJudge(model, processor, "own backbone", batch_size), question=question, name=name, licence=licence
        )

    @property
    def judge(self) -> VlmJudge:
        """
        Raises:
            OSError: when its weights are neither here nor on the Hub.
        """
        if isinstance(self._judge, str):
            source = find_weights(self._judge)
            self._judge = VlmJudge.from_pretrained(source, find_device(self.device), dtype=self.dtype)
            self._judge.batch_size = self.batch_size
        return self._judge

    def answers(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float | None]:
        judge = self.judge
        with _in_evaluation_mode(judge.model):
            replies = judge.ask(images, [yes_or_no(text) for text in texts])
        return [reply.probability / reply.mass if reply.is_answer else None for reply in replies]


@contextlib.contextmanager
def _in_evaluation_mode(model: torch.nn.Module) -> Generator[None]:
    """A model that trains beside this, too, answers without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


tiny_vqa_score = VqaScore(TINY, name="tiny_vqa_score")
"""The packaged model as a judge of its tiny world, for recipes: `blip3o_hf.rewards.vqa:tiny_vqa_score`."""

__all__ = ["VqaScore", "tiny_vqa_score"]
