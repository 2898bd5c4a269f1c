"""Calls reward functions by TRL's protocol, and adds up what they say."""

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..checks import find_function, is_finite_number
from .advantages import weighted_sum

logger = logging.getLogger(__name__)

Reward = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]
"""
Called as `reward(prompts=..., completions=..., **columns)`, all lists of one length: texts, PIL images, and the other
columns of the dataset. It returns a number for each picture, or `None` where it does not apply. It may be `async`.
"""


@dataclass(frozen=True)
class Scores:
    """
    Attributes:
        values (`[N, K]`): what each reward said of each picture, float64; NaN where it did not apply.
        total (`[N]`): the weighted sum, in which those that did not apply add nothing; NaN where none did.
        names: of the rewards.
        not_finite: how often each returned NaN or infinity, which counts as not applicable, and never as 0.
    """

    values: Tensor
    total: Tensor
    names: tuple[str, ...]
    not_finite: tuple[int, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """Mean and standard deviation of each reward, by TRL's names; NaN is left out."""
        found = {}
        for name, column in zip(self.names, self.values.unbind(dim=1), strict=True):
            known = column[~column.isnan()]
            found[f"rewards/{name}/mean"] = known.mean().item() if len(known) else math.nan
            found[f"rewards/{name}/std"] = known.std(correction=0).item() if len(known) else math.nan
        return found


class RewardManager:
    """
    Several rewards with weights.

    Args:
        rewards: functions, or names of functions as `module:function`.
        weights: one for each; 1 by default.

    Raises:
        ValueError: when there is no reward, a name stands for none, two have one name, or weights are not finite
            numbers, one for each.
    """

    def __init__(self, rewards: Sequence[Reward | str], weights: Sequence[float] | None = None):
        if not rewards:
            raise ValueError("There must be a reward. Got none. Pass a function of prompts and completions.")
        self.rewards = [find_function(each, "the rewards") if isinstance(each, str) else each for each in rewards]
        self.names = tuple(_name(reward) for reward in self.rewards)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"Each reward must have a name of its own. Got {', '.join(self.names)}. Rename one.")
        self.weights = [1.0] * len(rewards) if weights is None else list(weights)
        if len(self.weights) != len(self.rewards) or not all(map(is_finite_number, self.weights)):
            raise ValueError(
                f"`weights` must be a finite number for each of {len(self.rewards)} rewards. Got "
                f"{self.weights!r:.80}. Leave them out for 1 each."
            )

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Image.Image],
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> Scores:
        """
        Args:
            prompts: texts.
            completions: a picture for each.
            columns: further columns of the dataset, each with a value for each picture.

        Raises:
            ValueError: when columns have another length, or a reward does not return a number or `None` for each
                picture. An error in a reward is raised as it is, after a line in the log with the reward's name.
        """
        columns = {name: list(values) for name, values in (columns or {}).items()}
        for name, values in {"completions": completions, **columns}.items():
            if len(values) != len(prompts):
                raise ValueError(
                    f"`{name}` must have a value for each prompt. Got {len(values)} for {len(prompts)}. Repeat them."
                )
        arguments = {**columns, "prompts": list(prompts), "completions": list(completions)}
        said = self._said(arguments)
        checked = [_checked(values, len(prompts), name) for values, name in zip(said, self.names, strict=True)]
        for name, (_, number) in zip(self.names, checked, strict=True):
            if number:
                logger.warning(
                    "The reward %s returned NaN or infinity for %d of %d pictures. They count as not applicable.",
                    *(name, number, len(prompts)),
                )
        values = torch.tensor([row for row, _ in checked], dtype=torch.float64).T
        return Scores(values, weighted_sum(values, self.weights), self.names, tuple(number for _, number in checked))

    def _said(self, arguments: Mapping[str, Any]) -> list[Any]:
        """What all rewards return; those that are `async` run at once, in a loop of their own."""
        given = []
        for name, reward in zip(self.names, self.rewards, strict=True):
            with _Named(name):
                given.append(reward(**arguments))
        waiting = {
            index: _named(self.names[index], each) for index, each in enumerate(given) if inspect.isawaitable(each)
        }
        if waiting:
            with ThreadPoolExecutor(1) as other:  # a notebook runs a loop in this thread
                answers = other.submit(lambda: asyncio.run(_gathered(list(waiting.values())))).result()
            for index, answer in zip(waiting, answers, strict=True):
                given[index] = answer
        return given


class _Named:
    """Says in the log which reward an error is of; its own text seldom does, and notes on errors need Python 3.11."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            logger.error("The reward %s raised the %s that follows.", self.name, type(error).__name__)


async def _named(name: str, waiting: Awaitable[Any]) -> Any:
    with _Named(name):
        return await waiting


async def _gathered(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*waiting)


def _name(reward: Reward) -> str:
    return getattr(reward, "__name__", None) or type(reward).__name__


def _checked(values: Any, number: int, name: str) -> tuple[list[float], int]:
    """The numbers of a reward, NaN where it did not apply, and how many were not finite."""
    if not isinstance(values, (list, tuple, Tensor)) or len(values) != number:
        received = f"{len(values)} values" if isinstance(values, (list, tuple, Tensor)) else type(values).__name__
        raise ValueError(
            f"A reward returns a list with a value for each of {number} pictures. {name} returned {received}. Return "
            f"`None` for a picture that it does not apply to."
        )
    numbers, not_finite = [], 0
    for value in values.tolist() if isinstance(values, Tensor) else values:
        if value is not None and not isinstance(value, (int, float)):
            raise ValueError(f"A reward returns numbers and None. {name} returned {value!r:.40}. Use float().")
        is_known = value is not None and math.isfinite(value)
        not_finite += value is not None and not is_known
        numbers.append(float(value) if value is not None and is_known else math.nan)
    return numbers, not_finite


__all__ = ["Reward", "RewardManager", "Scores"]
