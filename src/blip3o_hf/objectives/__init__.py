"""What the image features are trained on: the three design choices of the paper (section 3.3) as pure maths.

`feature_flow` is CLIP + Flow Matching, `feature_regression` is CLIP + MSE, `latent_flow` is VAE + Flow
Matching. The modules import only torch; this file imports none of them, so a recipe is checked without torch.
"""

from ..names import unknown_name

OBJECTIVES = ("feature_flow", "feature_regression", "latent_flow")


def check_objective(name: str, where: str = "") -> str:
    """Return `name` if it is one of `OBJECTIVES`.

    Args:
        name: the objective asked for.
        where: where the name came from, in words, for the error
            (``"key `objective` in recipes/tiny/pretrain.yaml"``).

    Raises:
        ValueError: if `name` is not an objective; the message names the nearest one.
    """
    if name not in OBJECTIVES:
        raise ValueError(unknown_name("objective", name, OBJECTIVES, where))
    return name


__all__ = ["OBJECTIVES", "check_objective"]
