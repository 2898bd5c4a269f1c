"""What a study compares: parts, arms, measures, and hypotheses that stand before the runs."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..training.recipe_files import find_recipe
from ..training.recipes import Recipe, load_recipe

DIRECTIONS = ("higher", "lower")
COUNTED = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "global_batch_size")
"""What tells how many examples a run sees."""
DATA_SEED = 1000
"""Of the data, for the seed 0."""
_PLACE = re.compile(r"\{([a-z0-9_]+)\}")


@dataclass(frozen=True)
class Search:
    """
    The same small search for every arm: each value is tried for a while, and the best is taken for all seeds.

    Args:
        key: what is searched, such as `training.learning_rate`.
        values: to try.
        overrides: of such a trial, such as `training.max_steps=200`.
        by: the score of its last evaluation that decides.
        direction: `higher` where more of it is better, as by default, or `lower`.
    """

    key: str
    values: tuple[Any, ...]
    overrides: tuple[str, ...] = ()
    by: str = "overall"
    direction: str = "higher"

    def override(self, value: Any) -> str:
        """That with a value, written as YAML reads it back."""
        return f"{self.key}={json.dumps(value)}"


@dataclass(frozen=True)
class Arm:
    """
    One way to train, once for each seed; or a part that all of them share, once.

    Args:
        recipe: its file, beside that of the study.
        overrides: of the recipe. `{NAME}` stands for the folder of a part, or of another arm with the same seed. In
            the file they may hold lists, as of an anchor that arms share.
        title: for tables; by default the name.
        search: of its learning rate, or of anything else.
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    title: str = ""
    search: Search | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the parts and arms whose folders it reads."""
        return tuple(dict.fromkeys(name for text in self.overrides for name in _PLACE.findall(text)))


@dataclass(frozen=True)
class Measure:
    """
    What is measured of each run.

    Args:
        kind: class, as `module:Class`; see [`~study.measuring.RunMeasure`].
        settings: of it.
        arms: that it is measured of; all by default.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()

    def is_of(self, arm: Arm) -> bool:
        """Whether it is measured of an arm."""
        return not self.arms or arm.name in self.arms


@dataclass(frozen=True)
class Comparison:
    """
    A question to two arms, with the answer that is expected.

    Args:
        value: what is compared, `MEASURE.VALUE`.
        against_value: of the second arm, where that is another one: so one arm is measured in two ways.
        of, against: the two arms.
        direction: `higher` or `lower`: where `of` is expected to be.
        hypothesis: the same in a sentence.
        paper: where the paper says so, and what; nothing for a question of our own.
        budget: `equal`: both saw as many pictures, the arms that they start from included; or `free`.
    """

    name: str
    value: str
    of: str
    against: str
    direction: str
    hypothesis: str
    paper: str = ""
    budget: str = "equal"
    against_value: str = ""

    @property
    def values(self) -> tuple[str, str]:
        """What is compared of each arm."""
        return self.value, self.against_value or self.value


@dataclass(frozen=True)
class Plot:
    """
    Curves of arms along training, a line for each with a band over its seeds.

    Args:
        score: of the evaluations of their recipes.
        arms: to show.
    """

    name: str
    score: str
    arms: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """
    Args:
        title: of the report.
        folder: of all runs.
        seeds: of all arms.
        parts: that are trained once.
        arms, measures, comparisons, plots: see there.
        source: the file.
        more: further overrides of every recipe, such as `training.use_cpu=false`.
    """

    title: str
    folder: Path
    seeds: tuple[int, ...]
    parts: tuple[Arm, ...]
    arms: tuple[Arm, ...]
    measures: tuple[Measure, ...]
    comparisons: tuple[Comparison, ...]
    plots: tuple[Plot, ...]
    source: Path
    more: tuple[str, ...] = ()
    _seed_keys: dict[str, list[str]] = field(init=False, default_factory=dict, repr=False, compare=False)

    def arm(self, name: str) -> Arm:
        """The arm, or the part, of that name."""
        return next(each for each in (*self.parts, *self.arms) if each.name == name)

    def is_part(self, name: str) -> bool:
        """Whether it is trained once, and not for each seed."""
        return any(part.name == name for part in self.parts)

    def run_folder(self, name: str, seed: int) -> Path:
        """Where the run of an arm, or of a part, is."""
        return self.folder / "parts" / name if self.is_part(name) else self.folder / "runs" / f"{name}-{seed}"

    def recipe(
        self, arm: Arm, seed: int, more: Sequence[str] = (), folder: Path | None = None
    ) -> tuple[Path, list[str]]:
        """
        File and overrides of a run.

        Args:
            arm: what runs.
            seed: of its weights, its noise and its data.
            more: further overrides, such as the learning rate that was found.
            folder: where to; by default its own.
        """
        places = {name: str(self.run_folder(name, seed)) for name in arm.needs}
        overrides = [_PLACE.sub(lambda found: places[found[1]], text) for text in arm.overrides]
        path = find_recipe(self.source.parent / arm.recipe)
        if arm.name not in self._seed_keys:  # the same for all its runs
            self._seed_keys[arm.name] = seed_keys(load_recipe(path, overrides).data)
        keys = self._seed_keys[arm.name]
        where = self.run_folder(arm.name, seed) if folder is None else folder
        return path, [
            *overrides,
            f"training.seed={seed}",
            *(f"{key}={DATA_SEED + seed}" for key in keys),
            *more,
            *self.more,
            f"output_dir={where}",
        ]

    def load(self, arm: Arm, seed: int) -> Recipe:
        """The recipe of a run, without what a search finds."""
        return load_recipe(*self.recipe(arm, seed))

    def pictures(self, name: str) -> int:
        """
        How many training examples an arm sees, and the arms that it starts from, each counted once; those of parts are
        not counted.

        Raises:
            ValueError: when a recipe leaves its number open.
        """
        return sum(self._own_pictures(each) for each in self._trained_for(name))

    def _trained_for(self, name: str) -> set[str]:
        """An arm, and the arms that it starts from."""
        arms = [each for each in self.arm(name).needs if not self.is_part(each)]
        return {name}.union(*map(self._trained_for, arms))

    def _own_pictures(self, name: str) -> int:
        training = self.load(self.arm(name), self.seeds[0]).training
        for key in COUNTED[:2]:
            if key not in training:
                raise ValueError(
                    f"The recipes of a study say how many examples they see. That of `{name}` has no training.{key}. "
                    f"Add it to its overrides."
                )
        if "global_batch_size" in training:
            return training["max_steps"] * training["global_batch_size"]
        own = training["max_steps"] * training["per_device_train_batch_size"]
        return own * training.get("gradient_accumulation_steps", 1)

    def ordered(self) -> Iterator[Arm]:
        """Parts, and then arms, each after those that it reads."""
        done: list[str] = []
        waiting = [*self.parts, *self.arms]
        while waiting:
            ready = [arm for arm in waiting if set(arm.needs) <= set(done)]
            if not ready:
                raise ValueError(
                    f"Arms must not wait for one another. {', '.join(arm.name for arm in waiting)} of {self.source} "
                    f"do. Correct their overrides."
                )
            for arm in ready:
                yield arm
                done.append(arm.name)
                waiting.remove(arm)


def seed_keys(data: Mapping[str, Any]) -> list[str]:
    """Keys of the seeds of a recipe's section `data`: its own, or those of both kinds of data that it holds."""
    kinds = [kind for kind in ("pictures", "conversations") if isinstance(data.get(kind), Mapping)]
    return [f"data.{kind}.seed" for kind in kinds] or ["data.seed"]


__all__ = [
    "COUNTED",
    "DATA_SEED",
    "DIRECTIONS",
    "Arm",
    "Comparison",
    "Measure",
    "Plot",
    "Search",
    "Study",
    "seed_keys",
]
