"""A study as its YAML file says it, checked whole before anything runs."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from ..checks import check_keys, check_name, find_class
from ..files import expanded
from ..training.recipe_files import find_recipe
from ..training.recipe_values import hints_of, read_yaml, typed, typed_values
from ..training.recipes import Recipe, load_recipe
from .studies import COUNTED, DATA_SEED, DIRECTIONS, Arm, Comparison, Measure, Plot, Search, Study, seed_keys

_NAME = re.compile(r"[a-z0-9_]+")


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
    known = [f.name for f in fields(Study) if f.init and f.name not in ("source", "more")]
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
    check_name(f"direction of `{key}`:", settings.get("direction", "higher"), DIRECTIONS)
    return Search(
        typed(settings["key"], str, f"{key}.key"),
        tuple(typed(settings["values"], list, f"{key}.values")),
        tuple(typed(_flat(settings.get("overrides", [])), list[str], f"{key}.overrides")),
        typed(settings.get("by", "overall"), str, f"{key}.by"),
        settings.get("direction", "higher"),
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
            asked = {"training.seed": seed, **dict.fromkeys(seed_keys(recipe.data), DATA_SEED + seed)}
            found = {key: _value(recipe, key) for key in asked}
            if found != asked:
                raise ValueError(
                    f"The seeds of a study are given by its `seeds`. For {seed}, `{arm.name}` would run with "
                    f"{' and '.join(f'{key}={value}' for key, value in found.items())}. Leave these out."
                )
        if arm.search is not None:
            _check_search(study, arm, arm.search)


def _value(recipe: Recipe, key: str) -> Any:
    """What stands at a key of a recipe, such as `data.seed`."""
    section, *rest = key.split(".")
    value: Any = getattr(recipe, section)
    for name in rest:
        value = value[name]
    return value


def _check_search(study: Study, arm: Arm, search: Search) -> None:
    seeds = ("training.seed", *seed_keys(study.load(arm, study.seeds[0]).data))
    if search.key in (*seeds, *(f"training.{key}" for key in COUNTED)):
        raise ValueError(
            f"A search must leave seeds and budgets as they are. That of `{arm.name}` is of {search.key}. Make an arm "
            f"for each value."
        )
    for value in search.values:
        tried = [search.override(value), *search.overrides]
        load_recipe(*study.recipe(arm, study.seeds[0], tried)).checked()


__all__ = ["load_study"]
