"""What prompts are wanted of: the paper's four categories, and your own from YAML (paper section 5.2, stage 2)."""

import math
import os
import random
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ..checks import check_keys, is_finite_number
from ..reading import read_text
from ..yaml_text import parse_yaml

PACKAGED = {"paper": "blip3o_hf.collection", "shapes": "blip3o_hf.shapes"}
"""Packages whose `categories.yaml` has a short name."""


@dataclass(frozen=True)
class Category:
    """
    One kind of prompts.

    Args:
        name: in small letters, digits, `_` and `-`; it is part of the names of pictures.
        about: what a chat model is asked to write prompts about.
        templates: prompts with places to fill, such as `"{person} on a beach"`.
        words: what may fill each place.
        share: how many of the prompts are of this category, relative to the others.

    Raises:
        ValueError: when the name cannot name a file, or templates and words do not fit.

    Example:
        >>> list(Category("a", "", ("a {x} dog",), {"x": ("red",)}).prompts(seed=0))
        ['a red dog']
    """

    name: str
    about: str
    templates: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    share: float = 1.0

    def __post_init__(self):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", self.name):
            raise ValueError(
                f"A category's name must be small letters, digits, _ and -. Got {self.name!r}. Write it so."
            )
        if not is_finite_number(self.share, above=0):
            raise ValueError(f"`share` of a category must be a number above 0. {self.name} has {self.share!r}.")
        for template in self.templates:
            for place in _places(template):
                if not self.words.get(place):
                    raise ValueError(
                        f"Every place of a template must have words. {template!r} of {self.name} has {{{place}}}, and "
                        f"`words` has {', '.join(self.words) or 'nothing'}. Add them."
                    )

    @property
    def num_combinations(self) -> int:
        """How many prompts the templates and words make together."""
        return sum(map(self._count, self.templates))

    def _count(self, template: str) -> int:
        return math.prod(len(self.words[place]) for place in _places(template))

    def prompts(self, seed: int) -> Iterator[str]:
        """
        Prompts of the templates, each once, in an order that the seed decides; each template is used equally often
        until it has no more.
        """
        waiting = [
            (template, _shuffled(self._count(template), f"{seed}:{self.name}:{number}"))
            for number, template in enumerate(self.templates)
        ]
        while waiting:
            still = []
            for template, numbers in waiting:
                number = next(numbers, None)
                if number is not None:
                    yield self._filled(template, number)
                    still.append((template, numbers))
            waiting = still

    def _filled(self, template: str, number: int) -> str:
        chosen = {}
        for place in _places(template):
            number, index = divmod(number, len(self.words[place]))
            chosen[place] = self.words[place][index]
        return template.format(**chosen)


def _places(template: str) -> list[str]:
    """Names of the places of a template, each once."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"A template must hold {{names}} in braces. {template!r} does not: {error}.") from error
    if not all(name.isidentifier() for name in names):
        raise ValueError(f"A place in a template must be a name in braces, such as {{person}}. Got {template!r}.")
    return list(dict.fromkeys(names))


def _shuffled(length: int, seed: str) -> Iterator[int]:
    """The numbers below `length` in random order; of very many, those that are asked for are drawn one by one."""
    rng = random.Random(seed)
    if length <= 1_000_000:
        yield from rng.sample(range(length), length)
        return
    seen: set[int] = set()
    while len(seen) < length:
        number = rng.randrange(length)
        if number not in seen:
            seen.add(number)
            yield number


def read_categories(name_or_path: str | os.PathLike) -> list[Category]:
    """
    The categories of a YAML file.

    Args:
        name_or_path: `paper`, `shapes`, or a file: a mapping of names to `about`, `templates`, `words` and `share`.

    Raises:
        FileNotFoundError: when there is no such name or file.
        ValueError: when it says something else than categories.
    """
    name = os.fspath(name_or_path)
    if name in PACKAGED and not Path(name).exists():
        text = resources.files(PACKAGED[name]).joinpath("categories.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = read_text(name)
    else:
        raise FileNotFoundError(
            f"Categories must be a YAML file, or one of {', '.join(PACKAGED)}. There is no {name!r}. Check the path."
        )
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"Categories must be YAML. {name} is not: {error}. Correct it.") from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"Categories must be a mapping of their names. {name} holds {content!r:.60}. See docs/collect.md."
        )
    return [_category(str(key), value, name) for key, value in content.items()]


def _category(name: str, content: Any, path: str) -> Category:
    where = f"category {name!r} of {path}"
    if not isinstance(content, Mapping):
        raise ValueError(f"A category must be a mapping. Got {content!r:.60} in {where}. Add `about` or `templates`.")
    check_keys(map(str, content), (each.name for each in fields(Category) if each.name != "name"), where)
    words = content.get("words", {})
    if not isinstance(words, Mapping):
        raise ValueError(f"`words` must be a mapping of places to lists. Got {words!r:.60} in {where}. Correct it.")
    category = Category(
        name,
        str(content.get("about", "")),
        _texts(content.get("templates", []), f"`templates` in {where}"),
        {str(place): _texts(each, f"`words` of {place} in {where}") for place, each in words.items()},
        content.get("share", 1),
    )
    if not category.about and not category.templates:
        raise ValueError(f"A category must have `about` or `templates`. {where} has neither. Add one.")
    return category


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, (str, int)) and str(each).strip() for each in value):
        raise ValueError(f"{name} must be a list of texts. Got {value!r:.60}. Put texts that hold a colon in quotes.")
    if any(isinstance(each, bool) for each in value):  # YAML reads yes and no as truth values
        raise ValueError(f"{name} must be a list of texts. Got {value!r:.60}. Put yes, no, on and off in quotes.")
    return tuple(map(str, value))


def shares(categories: list[Category], number: int) -> list[int]:
    """
    How many of `number` prompts each category gets: in proportion to the shares, in whole numbers.

    Example:
        >>> shares([Category("a", "x"), Category("b", "x", share=2)], 4)
        [1, 3]
    """
    total = sum(category.share for category in categories)
    exact = [number * category.share / total for category in categories]
    counts = [int(value) for value in exact]
    order = sorted(range(len(counts)), key=lambda index: counts[index] - exact[index])
    for index in order[: number - sum(counts)]:
        counts[index] += 1
    return counts
