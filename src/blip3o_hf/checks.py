"""Checks that every room needs: numbers, and names and keys, whose errors show the value and what is known."""

import difflib
import importlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any


def unknown_name(kind: str, name: object, available: Iterable[str], where: str = "") -> str:
    """Text of the error for a name that is not among `available`.

    Args:
        kind: what the name stands for, in words ("objective", "noise level distribution").
        name: the value received.
        available: every accepted name, in the order in which they are to be listed.
        where: where the value came from, in words; empty when it was a plain argument.

    Example:
        >>> unknown_name("objective", "feature_flw", ("feature_flow", "latent_flow"))
        "Unknown objective 'feature_flw'. Did you mean 'feature_flow'? Available: feature_flow, latent_flow."
    """
    available = list(available)
    origin = f" ({where})" if where else ""
    return f"Unknown {kind} {name!r}.{_guess(name, available)} Available: {', '.join(available)}{origin}."


def check_name(kind: str, name: object, available: Collection[str]) -> None:
    """
    Raises:
        ValueError: with the text of `unknown_name`, when the name is not among `available`.
    """
    if name not in available:
        raise ValueError(unknown_name(kind, name, available))


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """
    Raises:
        ValueError: naming the first key of `given` that is not in `known`, the nearest known one, and all of them.

    Example:
        >>> check_keys(["sed"], ["seed", "length"], "section 'data'")
        Traceback (most recent call last):
        ValueError: Unknown key 'sed' in section 'data'. Did you mean 'seed'? Available: length, seed.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            raise ValueError(f"Unknown key '{key}' in {where}.{_guess(key, known)} Available: {', '.join(known)}.")


def find_class(name: str, known: Mapping[str, str], where: str) -> type:
    """
    The class that a name in a file stands for.

    Args:
        name: a key of `known`, or `module:Class` for a class of your own.
        known: names of classes, as `module:Class`, by their short names.
        where: where the name came from, in words.

    Raises:
        ValueError: when there is no such name, module or class.

    Example:
        >>> find_class("fractions:Fraction", {}, "a doctest").__name__
        'Fraction'
    """
    if ":" not in name:
        check_keys([name], known, where)
        name = known[name]
    found = _named(name, "class", where)
    if not isinstance(found, type):
        raise ValueError(
            f"A class of your own is written module:Class. Got {name!r} in {where}, which is no class. Correct the "
            f"name."
        )
    return found


def find_function(name: str, where: str) -> Callable[..., Any]:
    """
    The function that a name stands for.

    Args:
        name: `module:function`.
        where: where the name came from, in words.

    Raises:
        ValueError: when there is no such name, module or function.

    Example:
        >>> find_function("math:fsum", "a doctest")([1, 2])
        3.0
    """
    if ":" not in name:
        raise ValueError(
            f"A function of your own is written module:function. Got {name!r} in {where}, without a colon. Write both."
        )
    found = _named(name, "function", where)
    if not callable(found):
        raise ValueError(
            f"A function of your own is written module:function. Got {name!r} in {where}, which cannot be called. "
            f"Correct the name."
        )
    return found


def _named(name: str, kind: str, where: str) -> Any:
    """What `module:Name` is, a class or a function."""
    written = f"A {kind} of your own is written module:{kind.capitalize() if kind == 'class' else kind}."
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(
            f"{written} Got {name!r} in {where}, and Python finds no module {error.name!r}. Start the command with "
            f"PYTHONPATH=FOLDER, the folder that holds it."
        ) from error
    if not hasattr(module, attribute):
        raise ValueError(
            f"{written} Got {name!r} in {where}, and {module_name} has no {kind} {attribute!r}. Correct the name."
        )
    return getattr(module, attribute)


def check_sizes(least: int = 1, /, **sizes: object) -> None:
    """
    Raises:
        ValueError: when one of the sizes is no whole number of at least `least`.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}. Got {size!r:.40}. Change it.")


def check_unicode(texts: Iterable[object], name: str) -> None:
    """
    Raises:
        ValueError: when a text holds half a character, as names of files that are no UTF-8 do.
    """
    for text in texts:
        if isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(
                f"{name} must be Unicode text. Got {text!r:.60}, with half a character. Read it as UTF-8."
            )


def _guess(name: object, available: list[str]) -> str:
    near = difflib.get_close_matches(str(name), available, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def is_finite_number(value: object, above: float = -math.inf) -> bool:
    """Whether a value is a number, not a truth value, neither NaN nor infinite, and larger than `above`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > above
