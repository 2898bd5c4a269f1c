"""Where a recipe is: a path, or a name such as `tiny/understanding` from any folder."""

import difflib
import os
from pathlib import Path

from ..files import expanded

REPOSITORY_RECIPES = Path(__file__).parents[3] / "recipes"
"""Those of the repository, where the package runs from a clone of it; an installed wheel has none."""


def known_recipes() -> list[str]:
    """Names of the repository's recipes, such as `tiny/understanding`; empty where there is no clone."""
    files = sorted(REPOSITORY_RECIPES.glob("*/*.yaml"))
    return [f"{path.parent.name}/{path.stem}" for path in files if path.parent.name != "accelerate"]


def find_recipe(name: str | os.PathLike, kind: str = "recipe") -> Path:
    """
    The file of a recipe.

    Args:
        name: a path, with or without `.yaml`; or the name of a recipe of the repository.
        kind: `recipe` or `chain`, for the error.

    Raises:
        FileNotFoundError: when there is none, with what was looked for.
    """
    if not str(name).strip():
        raise FileNotFoundError(f"A {kind} is a YAML file, or the name of one. Got {str(name)!r}. Try tiny/decoder.")
    path = expanded(name)
    within = Path(*path.parts[1:]) if path.parts[:1] == ("recipes",) else path
    candidates = [path, Path("recipes") / within]
    candidates += [] if path.is_absolute() else [REPOSITORY_RECIPES / within]
    for candidate in candidates:
        for file in (candidate, candidate.with_name(f"{candidate.name}.yaml")) if candidate.name else ():
            if file.is_file():
                return file
    known = known_recipes()
    wanted = within.with_suffix("").as_posix()
    near = difflib.get_close_matches(wanted, known, n=1) or [each for each in known if each.endswith(f"/{wanted}")][:1]
    guess = f" Did you mean '{near[0]}'?" if near else ""
    if known:
        hint = f"Name a file, or one of {', '.join(known)} ({REPOSITORY_RECIPES})."
    else:
        hint = "Name a file of yours; the recipes of the repository are in a clone of it (docs/training.md)."
    raise FileNotFoundError(f"A {kind} is a YAML file. There is none at {path.absolute()}.{guess} {hint}")
