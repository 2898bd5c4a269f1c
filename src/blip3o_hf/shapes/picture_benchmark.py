"""The tiny world as a benchmark of drawing beside those of the field: its own prompts, its exact verifier."""

import os
from typing import Any

from ..checks import check_sizes
from ..evaluation.benchmarks.base import Item, PictureBenchmark, Pictures
from ..evaluation.statistics import Rate
from ..hub.results import Score
from .benchmark import held_out_prompts, overall, rates_by_family, score
from .language import Prompt
from .verify import verify


class ShapesBenchmark(PictureBenchmark):
    """
    Held-out prompts of the tiny world; a picture passes when the verifier finds all that the prompt states, and
    nothing else.

    Args:
        prompts: nothing; the benchmark makes its prompts itself.
        limit: as in the base.
        per_family: prompts of each family.
        seed: of the prompts.
    """

    name = "shapes"
    title = "Tiny world of coloured shapes"
    about = (
        "One picture for each prompt, nothing chosen; 95 % Wilson intervals. A picture passes when the programmatic "
        "verifier finds exactly the objects, colours, counts, relation and background that the prompt states, and "
        "nothing else. All prompts are held out of training."
    )

    def __init__(
        self,
        prompts: str | os.PathLike | None = None,
        limit: int | None = None,
        per_family: int = 80,
        seed: int = 0,
    ):
        if prompts is not None:
            raise ValueError(f"The tiny world makes its prompts itself. Got the file {prompts}. Leave it out.")
        check_sizes(per_family=per_family)
        check_sizes(0, seed=seed)
        by_family = held_out_prompts(per_family, seed)
        made = [prompt for index in range(per_family) for prompt in by_family[index::per_family]]  # `limit` takes all
        self._meanings: dict[str, Prompt] = {f"{index:05d}": prompt for index, prompt in enumerate(made)}
        super().__init__(None, limit)

    def make_items(self):
        return [Item(name, prompt.text, {"family": prompt.family}) for name, prompt in self._meanings.items()]

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base, 64 x 64 pixels each.
            judges: nothing.
        """
        pictures.check_complete()
        prompts = [self._meanings[item.id] for item in pictures.items for _ in range(pictures.number)]
        passed = [
            verify(pictures.open(item, number), self._meanings[item.id]).passed
            for item in pictures.items
            for number in range(pictures.number)
        ]
        rates: dict[str, Rate] = rates_by_family(prompts, passed)
        return [score("text-to-image", name, rate) for name, rate in {**rates, "overall": overall(rates)}.items()]
