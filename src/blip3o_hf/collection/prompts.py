"""Which prompts are collected: from templates, a chat model or a file, without repetitions and benchmarks' prompts."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ..data.texts import text_problem
from .categories import Category, shares
from .prompt_files import Excluded, GivenPrompt
from .similar_texts import SimilarTexts

PER_ROUND = 50
"""So many prompts a chat model is asked for at once."""
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class Prompt:
    """
    A prompt to draw.

    Args:
        id: its number and category; the name of its picture.
        category: its category.
        text: what the picture is to show.
    """

    id: str
    category: str
    text: str


@dataclass(frozen=True)
class DroppedPrompt:
    """A prompt that is not drawn: why, and the text that it repeats, where it does."""

    category: str
    text: str
    reason: str
    found: str = ""


@dataclass
class Selection:
    """The prompts of a collection, and those that were dropped, in the order in which they were met."""

    prompts: list[Prompt]
    dropped: list[DroppedPrompt]

    @property
    def counts(self) -> dict[str, int]:
        """How many were dropped for which reason."""
        return dict(sorted(Counter(each.reason for each in self.dropped).items()))


class Writer(Protocol):
    """Writes prompts, such as a chat model."""

    def write(self, category: Category, number: int, examples: Sequence[str]) -> list[str]:
        """`PER_ROUND` prompts of a category; `number` counts the rounds from 0."""
        ...


def select_prompts(
    streams: Sequence[tuple[str, int, Iterable[str]]], excluded: Excluded, remedy: str = "Ask for fewer."
) -> Selection:
    """
    Take prompts until each category has its number.

    A prompt is dropped when it repeats an earlier one, in the same or in nearly the same words, when `excluded`
    refuses it, or when training could not read it. In the result the categories take turns.

    Args:
        streams: of each category its name, how many are wanted, and candidates in order.
        excluded: prompts that must not be taken.
        remedy: what to do if there are too few, for the error.

    Raises:
        ValueError: when a category has too few.
    """
    seen, kept, dropped = SimilarTexts(), [], []
    for place, (name, wanted, candidates) in enumerate(streams):
        texts: list[str] = []
        for text in candidates if wanted else ():
            text = " ".join(text.split())
            problem = _problem(text, seen, excluded)
            if problem is not None:
                dropped.append(DroppedPrompt(name, text, *problem))
                continue
            seen.add(text)
            texts.append(text)
            if len(texts) == wanted:
                break
        if len(texts) < wanted:
            reasons = Counter(each.reason for each in dropped if each.category == name)
            why = "".join(f", {count} dropped: {reason}" for reason, count in sorted(reasons.items()))
            raise ValueError(f"Category {name!r} must give {wanted} prompts. It gives {len(texts)}{why}. {remedy}")
        kept += [((number + 0.5) / wanted, place, name, text) for number, text in enumerate(texts)]
    kept.sort()
    prompts = [Prompt(f"{number:06d}-{name}", name, text) for number, (_, _, name, text) in enumerate(kept)]
    return Selection(prompts, dropped)


def _problem(text: str, seen: SimilarTexts, excluded: Excluded) -> tuple[str, str] | None:
    if not text:
        return "empty", ""
    if problem := text_problem(text):
        return "not a text to learn from", problem
    earlier = seen.find(text)
    if earlier is not None:
        return "repeats an earlier prompt", earlier
    return excluded.problem(text)


def prompts_of_categories(
    categories: Sequence[Category], number: int, excluded: Excluded, seed: int = 0, writer: Writer | None = None
) -> Selection:
    """
    Prompts of the categories, in proportion to their shares.

    Args:
        categories: what they are of.
        number: how many.
        excluded: prompts that must not be taken.
        seed: of the order in which templates are filled.
        writer (*optional*): writes them; without one the templates are filled.

    Raises:
        ValueError: when a category has no templates and there is no writer, or gives too few.
    """
    streams = []
    for category, wanted in zip(categories, shares(list(categories), number), strict=True):
        if writer is None and not category.templates:
            raise ValueError(
                f"A category without `templates` needs a chat model. {category.name!r} has none. Name one as --writer."
            )
        candidates = category.prompts(seed) if writer is None else _written(category, wanted, seed, writer)
        streams.append((category.name, wanted, candidates))
    remedy = (
        "Add templates or words, or ask for fewer." if writer is None else "Ask for fewer, or divide the category."
    )
    return select_prompts(streams, excluded, remedy)


def _written(category: Category, wanted: int, seed: int, writer: Writer) -> Iterator[str]:
    """What a writer gives: three times as many as wanted at most, since a model that repeats itself never ends."""
    examples = category.prompts(seed)
    for number in range(3 * -(-wanted // PER_ROUND) + 3):
        yield from writer.write(category, number, list(itertools.islice(examples, NUM_EXAMPLES)))


def prompts_of_file(given: Sequence[GivenPrompt], number: int | None, excluded: Excluded) -> Selection:
    """
    The prompts of a file, in its order; all that are not dropped, or the first `number` of them.

    Raises:
        ValueError: when there are fewer than `number`.
    """
    selection, seen = Selection([], []), SimilarTexts()
    for prompt in given:
        if number is not None and len(selection.prompts) == number:
            break
        text, category = " ".join(prompt.text.split()), prompt.category or "given"
        problem = _problem(text, seen, excluded)
        if problem is not None:
            selection.dropped.append(DroppedPrompt(category, text, *problem))
            continue
        seen.add(text)
        selection.prompts.append(Prompt(f"{len(selection.prompts):06d}", category, text))
    if len(selection.prompts) < (number or 1):
        raise ValueError(
            f"The file must give {number or 1} prompts. It gives {len(selection.prompts)}, and "
            f"{len(selection.dropped)} were dropped ({', '.join(selection.counts) or 'none'}). Ask for fewer."
        )
    return selection


def digest(items: Iterable[Any]) -> str:
    """A hash of dataclasses, by which a later run knows whether they are the same."""
    text = json.dumps([asdict(item) for item in items], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
