"""The one sentence that every unknown name in the objectives is answered with."""

import difflib
from collections.abc import Sequence


def unknown_name(kind: str, name: object, available: Sequence[str], where: str = "") -> str:
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
    near = difflib.get_close_matches(str(name), available, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    origin = f" ({where})" if where else ""
    return f"Unknown {kind} {name!r}.{hint} Available: {', '.join(available)}{origin}."
