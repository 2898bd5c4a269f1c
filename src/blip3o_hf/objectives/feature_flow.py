"""CLIP + Flow Matching: transport noise to image features (paper section 3.2, "Flow Matching").

In the paper's letters X_1 is the target, X_0 the noise and t = 1 - sigma. Its two equations are printed with
X_t where X_1 is meant: X_t = t X_1 + (1 - t) X_0 and V_t = X_1 - X_0. We follow the released code, whose
network predicts the velocity along sigma, d x / d sigma = noise - target = -V_t.
"""

import torch

from .feature_regression import regression_loss
from .objective import Objective


class FeatureFlow(Objective):
    """Flow matching: a transformer predicts the velocity at features with noise, and sampling follows it from noise.

    Another flow is a subclass with a `loss` of its own, and with a `predicted_velocity` where the model predicts
    something else than the velocity.
    """

    name = "feature_flow"

    def loss(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        noise: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
    ) -> torch.Tensor:
        assert noise is not None
        return flow_loss(prediction, target, noise)

    def add_noise(self, target: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the model sees at a noise level, and what sampling starts from: at sigma 1 the noise alone.

        Arguments and result are those of the function `add_noise`.
        """
        return add_noise(target, noise, sigma)

    def predicted_velocity(self, prediction: torch.Tensor, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The velocity d x / d sigma that sampling follows, from what the model predicted.

        Args:
            prediction: [B, ...], the model's output.
            noisy: [B, ...], what the model saw.
            sigma: [], the noise level of `noisy`, in (0, 1].

        Returns:
            [B, ...].
        """
        return prediction


def add_noise(target: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The straight path from target to noise: (1 - sigma) * target + sigma * noise.

    Args:
        target: [B, ...], clean features or latents.
        noise: [B, ...], from N(0, 1).
        sigma: [B] or [], in [0, 1]; cast to the dtype of `target` before mixing, as the released code does.

    Returns:
        [B, ...] in the dtype of `target`.

    Raises:
        ValueError: if `sigma` does not hold one level per sample.
    """
    sigma = _per_sample(sigma, target)
    return (1 - sigma) * target + sigma * noise


def velocity(target: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """d x / d sigma along the path of `add_noise`: noise - target, [B, ...], the same at every sigma."""
    return noise - target


def flow_loss(
    prediction: torch.Tensor, target: torch.Tensor, noise: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Flow matching loss: unweighted mean squared error of the predicted velocity, in float32.

    Args:
        prediction: [B, ...], the network's velocity.
        target: [B, ...], clean features or latents.
        noise: [B, ...], the noise that was mixed in.
        reduction: "mean" for a scalar, "none" for one mean per sample.

    Returns:
        float32, [] or [B].

    Raises:
        ValueError: if the shapes differ or the reduction is unknown.
    """
    return regression_loss(prediction, velocity(target.float(), noise.float()), reduction)


def predicted_target(noisy: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The clean features that a velocity at `sigma` points to: noisy - sigma * velocity.

    Args:
        noisy: [B, ...], features at noise level `sigma`.
        velocity: [B, ...].
        sigma: [B] or [], in [0, 1].

    Returns:
        [B, ...].

    Raises:
        ValueError: if `sigma` does not hold one level per sample.
    """
    return noisy - _per_sample(sigma, noisy) * velocity


def _per_sample(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if sigma.ndim > 1 or (sigma.ndim == 1 and sigma.shape[0] != like.shape[0]):
        raise ValueError(
            f"`sigma` holds one noise level per sample, shape [{like.shape[0]}] or []. "
            f"Got shape {list(sigma.shape)}. Draw it with `sample_noise_levels(batch_size)`."
        )
    sigma = sigma.to(device=like.device, dtype=like.dtype)
    return sigma.reshape(-1, *[1] * (like.ndim - 1)) if sigma.ndim else sigma
