"""Rewards of the tiny world by TRL's protocol: its exact verifier, and a graded form of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from .language import ObjectGroup, Prompt
from .verify import detect, verify


def meaning_of(prompt: Prompt) -> dict[str, Any]:
    """A prompt with its meaning as plain values, for the column `meaning` of a dataset."""
    return asdict(prompt)


def prompt_of(meaning: Mapping[str, Any]) -> Prompt:
    """
    The prompt that `meaning_of` made plain.

    Raises:
        ValueError: when it is none.
    """
    try:
        rest: dict[str, Any] = {name: value for name, value in meaning.items() if name != "objects"}
        return Prompt(objects=tuple(ObjectGroup(**each) for each in meaning["objects"]), **rest)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"The column `meaning` holds what `shapes.rewards.meaning_of` made. Got {meaning!r:.80}. Make it anew."
        ) from error


def verified(
    prompts: Sequence[str], completions: Sequence[Image.Image], meaning: Sequence[Mapping[str, Any]], **columns: Any
) -> list[float]:
    """
    1 for a picture that shows exactly what its prompt says, else 0.

    Args:
        prompts: texts.
        completions: pictures, 64 x 64.
        meaning: of each prompt, as `meaning_of` makes it.
        columns: others, which are not read.
    """
    return [float(verify(image, prompt_of(each)).passed) for image, each in zip(completions, meaning, strict=True)]


def graded(
    prompts: Sequence[str], completions: Sequence[Image.Image], meaning: Sequence[Mapping[str, Any]], **columns: Any
) -> list[float]:
    """
    1 for a picture that shows exactly what its prompt says; else half of the share of objects that are right, less
    those that are wrong, so that groups of wrong pictures tell something, too.

    Args:
        prompts, completions, meaning, columns: as of `verified`.
    """
    return [_grade(image, prompt_of(each)) for image, each in zip(completions, meaning, strict=True)]


def _grade(image: Image.Image, prompt: Prompt) -> float:
    if verify(image, prompt).passed:
        return 1.0
    seen = detect(image)
    right = sum(min(group.count, sum(map(group.holds, seen.objects))) for group in prompt.objects)
    wrong = len(seen.objects) + len(seen.junk) - right
    return 0.5 * max(0.0, right - wrong) / prompt.num_objects


__all__ = ["graded", "meaning_of", "prompt_of", "verified"]
