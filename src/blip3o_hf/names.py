"""Unknown names and keys are answered in one way: the value, the nearest known one, and all of them."""

import difflib
from collections.abc import Collection, Iterable


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


def _guess(name: object, available: list[str]) -> str:
    near = difflib.get_close_matches(str(name), available, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
