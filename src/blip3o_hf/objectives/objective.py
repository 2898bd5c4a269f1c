"""What an objective is: one object has all that differs between the designs of the paper's section 3.3."""

from typing import ClassVar

import torch


class Objective:
    """
    What a model learns to make of a condition, and what sampling makes of the model's prediction.

    A model names its objective in its config; `get_objective` gives the object. A new one is a subclass of this class,
    or of an objective of the package, and is known after [`~objectives.register_objective`].

    Attributes:
        name: what stands in the config as `objective`.
        has_noise: whether the model sees its target with noise. It then has a transformer, and sampling goes from
            noise to features by `add_noise` and `predicted_velocity`, as those of
            [`~objectives.feature_flow.FeatureFlow`]. Without noise, a linear head gives the features in one pass.
        is_latent: whether the targets are latents of a VAE, which then is also the decoder.
    """

    name: ClassVar[str]
    has_noise: ClassVar[bool] = True
    is_latent: ClassVar[bool] = False

    @property
    def has_transformer(self) -> bool:
        """Whether the model has the diffusion transformer; else a linear head is in its place."""
        return self.has_noise

    def loss(
        self,
        prediction: torch.Tensor,
        target: torch.Tensor,
        noise: torch.Tensor | None = None,
        sigma: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The training loss.

        Args:
            prediction (`[B, C, H, W]`): what the transformer, or the head, gave.
            target (`[B, C, H, W]`): the clean features or latents, standardised as the config says.
            noise (`[B, C, H, W]`), sigma (`[B]` in (0, 1]): what was mixed in, and its level; with noise only.

        Returns:
            `torch.Tensor` `[]`, float32.
        """
        raise NotImplementedError


__all__ = ["Objective"]
