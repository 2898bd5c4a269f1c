"""CLIP + MSE: regress the image features directly (paper section 3.2, "MSE Loss").

L_MSE = ||X - W Q||^2. The projection W is a layer of the model; what arrives here is its output W Q.
"""

import torch

from ..checks import unknown_name
from .objective import Objective

REDUCTIONS = ("mean", "none")


class FeatureRegression(Objective):
    """A linear head on the condition gives the features, without noise, and so the same ones each time."""

    name = "feature_regression"
    has_noise = False

    def loss(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        noise: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return regression_loss(prediction, target)


def regression_loss(prediction: torch.Tensor, target: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Mean squared error in float32, whatever the dtype of the inputs.

    The mean over all elements is the paper's squared norm divided by a constant.

    Args:
        prediction: [B, ...], the predicted features W Q.
        target: [B, ...], the features X; the same shape, since a broadcast would train on the wrong mean.
        reduction: "mean" for a scalar, "none" for one mean per sample.

    Returns:
        float32, [] or [B].

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            "A loss compares tensors of one shape. "
            f"Got prediction {tuple(prediction.shape)} and target {tuple(target.shape)}. "
            "Bring the target to the layout of the model's output."
        )
    squared_error = (prediction.float() - target.float()).square()
    if reduction == "mean":
        return squared_error.mean()
    if reduction == "none":
        return squared_error.flatten(1).mean(1)
    raise ValueError(unknown_name("reduction", reduction, REDUCTIONS))
