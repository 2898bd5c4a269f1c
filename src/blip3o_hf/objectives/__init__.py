"""What the image features are trained on: the three design choices of the paper (section 3.3), one object each.

`feature_flow` is CLIP + Flow Matching, `feature_regression` is CLIP + MSE, `latent_flow` is VAE + Flow
Matching. The modules import only torch; this file imports none of them before an object is asked for, so a recipe is
checked without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..checks import unknown_name

if TYPE_CHECKING:
    from .objective import Objective

OBJECTIVES = ("feature_flow", "feature_regression", "latent_flow")
_registered: dict[str, Objective] = {}
_packaged: dict[str, Objective] = {}


def check_objective(name: str, where: str = "") -> str:
    """Return `name` if it is one of `OBJECTIVES`, or was registered.

    Args:
        name: the objective asked for.
        where: where the name came from, in words, for the error
            (``"key `objective` in recipes/tiny/pretrain.yaml"``).

    Raises:
        ValueError: if `name` is not an objective; the message names the nearest one.
    """
    available = (*OBJECTIVES, *_registered)
    if name not in available:
        raise ValueError(unknown_name("objective", name, available, where))
    return name


def get_objective(name: str) -> Objective:
    """The objective of this name.

    Raises:
        ValueError: as `check_objective`.
    """
    check_objective(name)
    if name in _registered:
        return _registered[name]
    if not _packaged:
        from .feature_flow import FeatureFlow
        from .feature_regression import FeatureRegression
        from .latent_flow import LatentFlow

        for objective in (FeatureFlow(), FeatureRegression(), LatentFlow()):
            _packaged[objective.name] = objective
    return _packaged[name]


def register_objective(objective: Objective) -> None:
    """Make an objective known under its name, for configs that name it; call it before such a model is loaded.

    Registering a name again replaces the earlier objective.

    Args:
        objective: an object of a subclass of [`~objectives.objective.Objective`].

    Raises:
        TypeError: if it is anything else.
        ValueError: if its name is one of `OBJECTIVES`, or none.

    Example:
        >>> from blip3o_hf.objectives.feature_flow import FeatureFlow
        >>> class MyFlow(FeatureFlow):
        ...     name = "my_flow"
        ...
        ...     def loss(self, prediction, target, noise=None, sigma=None):
        ...         return (prediction - (noise - target)).abs().mean()
        >>> register_objective(MyFlow())
    """
    from .objective import Objective

    if not isinstance(objective, Objective):
        raise TypeError(
            f"An objective is an object of a subclass of Objective. Got {objective!r}. Call register_objective("
            f"MyObjective()), with the brackets."
        )
    name = getattr(objective, "name", None)
    if not isinstance(name, str) or not name or name in OBJECTIVES:
        raise ValueError(
            f"An objective needs its own name, which is stored in configs. Got {name!r}. Set `name` in its class to "
            f"a name other than {', '.join(OBJECTIVES)}."
        )
    _registered[name] = objective


__all__ = ["OBJECTIVES", "check_objective", "get_objective", "register_objective"]
