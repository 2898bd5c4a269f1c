"""What a study compares, as a YAML file says it: parts, arms, measures, and hypotheses that stand before the runs."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..checks import check_keys, check_name, find_class
from ..files import expanded
from ..training.recipe_files import find_recipe
from ..training.recipe_values import hints_of, read_yaml, typed, typed_values
from ..training.recipes import Recipe, load_recipe

DIRECTIONS = ("higher", "lower")
COUNTED = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps")
"""What tells how many examples a run sees."""
DATA_SEED = 1000
"""Of the data, for the seed 0."""
_NAME = re.compile(r"[a-z0-9_]+")
_PLACE = re.compile(r"\{([a-z0-9_]+)\}")


@dataclass(frozen=True)
class Search:
    """
    The same small search for every arm: each value is tried for a while, and the best is taken for all seeds.

    Args:
        key: what is searched, such as `training.learning_rate`.
        values: to try.
        overrides: of such a trial, such as `training.max_steps=200`.
        by: the score of its last evaluation that decides, the higher the better.
    """

    key: str
    values: tuple[Any, ...]
    overrides: tuple[str, ...] = ()
    by: str = "overall"

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
        seeded = [f"training.seed={seed}", f"data.seed={DATA_SEED + seed}"]
        where = self.run_folder(arm.name, seed) if folder is None else folder
        return find_recipe(self.source.parent / arm.recipe), [
            *overrides,
            *seeded,
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


def load_study(path: str | os.PathLike, more: Sequence[str] = ()) -> Study:
    """
    Read a study, and check all of it, its recipes and measures included; no folder is looked at.

    Args:
        path: a YAML file, or the name of one in recipes/, such as `study/laptop`.
        more: further overrides of every recipe, such as `training.use_cpu=false`.

    Raises:
        FileNotFoundError: when there is no such file, or no such recipe.
        ValueError: when it is not a study, names what it does not have, or compares arms of different budgets.
    """
    path = find_recipe(path, "study")
    try:
        content = read_yaml(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"A study must be valid YAML. {path} is not: {error}. Correct that line.") from error
    known = [f.name for f in fields(Study) if f.name not in ("source", "more")]
    if not isinstance(content, dict) or not content.get("arms"):
        raise ValueError(f"A study compares `arms`. {path} has none. See recipes/study/laptop.yaml.")
    check_keys(content, known, str(path))
    for name in ("title", "folder", "seeds"):
        if name not in content:
            raise ValueError(f"A study must have the key '{name}'. {path} has not. Add it.")
    study = Study(
        title=typed(content["title"], str, "title"),
        folder=Path(expanded(typed(content["folder"], str, "folder"))),
        seeds=tuple(typed(content["seeds"], list[int], "seeds")),
        parts=tuple(_entries(content, "parts", Arm)),
        arms=tuple(_entries(content, "arms", Arm)),
        measures=tuple(_entries(content, "measures", Measure)),
        comparisons=tuple(_entries(content, "comparisons", Comparison)),
        plots=tuple(_entries(content, "plots", Plot)),
        source=path,
        more=tuple(more),
    )
    _check(study)
    return study


def _entries(content: Mapping[str, Any], section: str, kind: Any) -> Iterator[Any]:
    """The entries of a section, which is a mapping from names."""
    given = typed(content.get(section) or {}, dict[str, dict[str, Any]], section)
    for name, settings in given.items():
        key = f"{section}.{name}"
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"Names are small letters, digits and _. Got {name!r:.40} in `{section}`. Rename it.")
        names = [f.name for f in fields(kind) if f.name != "name"]
        check_keys(settings, names, f"`{key}`")
        settings = dict(settings)
        if "overrides" in settings:
            settings["overrides"] = _flat(settings["overrides"])
        hints = {**hints_of(kind, *names), "overrides": list[str], "arms": list[str], "search": dict, "settings": dict}
        values = typed_values(settings, {each: hints[each] for each in names if each in hints}, key)
        values = {each: tuple(value) if isinstance(value, list) else value for each, value in values.items()}
        if settings.get("search") is not None:
            values["search"] = _search(settings["search"], f"{key}.search")
        missing = [f.name for f in fields(kind) if f.name not in values and f.name != "name" and _is_needed(f)]
        if missing:
            raise ValueError(f"`{key}` must have the key '{missing[0]}'. Got {', '.join(settings) or 'none'}. Add it.")
        yield kind(name=str(name), **values)


def _flat(overrides: Any) -> Any:
    """Overrides without the lists that they hold, such as those of an anchor that arms share."""
    if not isinstance(overrides, list):
        return overrides
    return [text for each in overrides for text in (_flat(each) if isinstance(each, list) else [each])]


def _is_needed(each: Field) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _search(settings: Mapping[str, Any], key: str) -> Search:
    check_keys(settings, [f.name for f in fields(Search)], f"`{key}`")
    if "key" not in settings or not settings.get("values"):
        raise ValueError(f"`{key}` must have a `key` and its `values`. Got {', '.join(settings)}. Add them.")
    return Search(
        typed(settings["key"], str, f"{key}.key"),
        tuple(typed(settings["values"], list, f"{key}.values")),
        tuple(typed(_flat(settings.get("overrides", [])), list[str], f"{key}.overrides")),
        typed(settings.get("by", "overall"), str, f"{key}.by"),
    )


def _check(study: Study) -> None:
    """Raise a `ValueError` for what names something that is not there, and for unequal budgets."""
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"A study needs different seeds. Got {list(study.seeds)}. Write seeds: [0, 1, 2].")
    runs = [arm.name for arm in (*study.parts, *study.arms)]
    if len(set(runs)) < len(runs):
        raise ValueError(f"Parts and arms must have different names. Got {', '.join(runs)}. Rename one.")
    arms, measures = [arm.name for arm in study.arms], [measure.name for measure in study.measures]
    for arm in (*study.parts, *study.arms):
        is_part = study.is_part(arm.name)
        for name in arm.needs:
            kind, known = ("part", [part.name for part in study.parts]) if is_part else ("part or arm", runs)
            check_name(f"{kind} in the overrides of `{arm.name}`:", name, known)
    for each in (*study.measures, *study.plots):
        for name in each.arms:
            check_name(f"arm of `{each.name}`:", name, arms)
    list(study.ordered())
    _check_recipes(study)
    for measure in study.measures:
        find_class(measure.kind, {}, f"the measure `{measure.name}`")(measure.settings)
    for comparison in study.comparisons:
        for name in (comparison.of, comparison.against):
            check_name(f"arm of the comparison `{comparison.name}`:", name, arms)
        for value in comparison.values:
            check_name(f"measure of the comparison `{comparison.name}`:", value.partition(".")[0], measures)
        check_name(f"direction of the comparison `{comparison.name}`:", comparison.direction, DIRECTIONS)
        check_name(f"budget of the comparison `{comparison.name}`:", comparison.budget, ("equal", "free"))
        pictures = [study.pictures(name) for name in (comparison.of, comparison.against)]
        if comparison.budget == "equal" and pictures[0] != pictures[1]:
            raise ValueError(
                f"Arms are compared that saw as many pictures. In `{comparison.name}`, {comparison.of} sees "
                f"{pictures[0]:,} and {comparison.against} {pictures[1]:,}. Change their steps, or write budget: free."
            )


def _check_recipes(study: Study) -> None:
    """Raise for a recipe that cannot be, before any other of them takes its hours."""
    for arm in (*study.parts, *study.arms):
        for seed in study.seeds:
            recipe = study.load(arm, seed).checked()
            if recipe.training["seed"] != seed or recipe.data["seed"] != DATA_SEED + seed:
                raise ValueError(
                    f"The seeds of a study are given by its `seeds`. For {seed}, `{arm.name}` would run with "
                    f"training.seed={recipe.training['seed']} and data.seed={recipe.data['seed']}. Leave these out."
                )
        if arm.search is not None:
            _check_search(study, arm, arm.search)


def _check_search(study: Study, arm: Arm, search: Search) -> None:
    if search.key in ("training.seed", "data.seed", *(f"training.{key}" for key in COUNTED)):
        raise ValueError(
            f"A search must leave seeds and budgets as they are. That of `{arm.name}` is of {search.key}. Make an arm "
            f"for each value."
        )
    for value in search.values:
        tried = [search.override(value), *search.overrides]
        load_recipe(*study.recipe(arm, study.seeds[0], tried)).checked()


__all__ = ["DIRECTIONS", "Arm", "Comparison", "Measure", "Plot", "Search", "Study", "load_study"]
