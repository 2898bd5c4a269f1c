"""Which yes/no questions a reward asks of each picture, and the mean of the answers."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from ..evaluation.benchmarks.judges import shows
from .ready import ReadyReward

QUESTION = shows("{prompt}").text
"""VQAScore's (Lin et al., 2024), with a place for the prompt."""


def check_question(question: str) -> None:
    """
    Raises:
        ValueError: when it has no place for the prompt.
    """
    if "{prompt}" not in question:
        raise ValueError(
            f"A question on a picture must hold {{prompt}}, where the prompt stands. Got {question!r:.80}. Write it."
        )


class QuestionReward(ReadyReward):
    """
    Base of rewards that ask yes/no questions.

    Args:
        question: asked of each picture; `{prompt}` in it becomes the prompt.
        name, licence: as of [`~rewards.ready.ReadyReward`].

    Raises:
        ValueError: when the question has no place for the prompt.
    """

    def __init__(self, question: str, name: str, licence: str):
        check_question(question)
        super().__init__(name, licence)
        self.question = question

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Image.Image],
        questions: Sequence[Sequence[str] | None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """
        Args:
            prompts: texts.
            completions: a picture for each.
            questions (*optional*): of each picture, yes/no questions, all of which yes answers if it is right; their
                mean is the score (DSG, Cho et al., 2024). `None` or an empty list asks for the whole prompt.
            columns: others, which are not read.

        Returns:
            Numbers in [0, 1]; `None` where a question was not answered with yes or no.

        Raises:
            ValueError: when `questions` does not hold lists of texts.
            OSError: when who is asked cannot be reached.
        """
        return mean_answers(self.question, prompts, completions, questions, self.answers)

    def answers(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float | None]:
        """
        How likely yes is.

        Args:
            images: pictures.
            texts: a question for each.
        """
        raise NotImplementedError


def mean_answers(
    question: str,
    prompts: Sequence[str],
    completions: Sequence[Image.Image],
    questions: Sequence[Sequence[str] | None] | None,
    answer: Callable[[list[Image.Image], list[str]], Sequence[float | None]],
) -> list[float | None]:
    """
    What a judge says of each picture.

    Args:
        question: is asked where a picture has none of its own; `{prompt}` in it becomes the prompt.
        prompts: texts.
        completions: a picture for each.
        questions: of each picture, all of which yes answers if it is right (DSG, Cho et al., 2024).
        answer: given pictures and a question for each, how likely yes is; `None` where there is no answer.

    Returns:
        The mean of each picture's answers in [0, 1]; `None` where one of them is not known.

    Raises:
        ValueError: when `questions` does not hold lists of texts.
    """
    given = [None] * len(prompts) if questions is None else questions
    asked = [
        _checked(own) if own else [question.replace("{prompt}", prompt)]
        for prompt, own in zip(prompts, given, strict=True)
    ]
    images = [image for image, texts in zip(completions, asked, strict=True) for _ in texts]
    answers = iter(answer(images, [text for texts in asked for text in texts]))
    return [_mean([next(answers) for _ in texts]) for texts in asked]


def _checked(texts: Sequence[str]) -> list[str]:
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"The column `questions` holds a list of yes/no questions for each picture. Got {texts!r:.60}. Make it a "
            f"list of texts."
        )
    return list(texts)


def _mean(answers: Sequence[float | None]) -> float | None:
    known = [each for each in answers if each is not None]
    return sum(known) / len(known) if len(known) == len(answers) else None


__all__ = ["QUESTION", "QuestionReward", "check_question", "mean_answers"]
