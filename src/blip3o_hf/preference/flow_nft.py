"""Learning from rewards by DiffusionNFT or advantage-weighted matching: the flow itself, no trajectories."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checks import check_name, check_sizes, is_finite_number
from ..training.tasks.base import drawn_noise
from .losses import awm_loss, nft_loss, positives_loss
from .reward_config import FlowRewardConfig
from .reward_task import FlowRewardTask, base_model
from .reward_trainer import FlowRewardTrainer

LOSS_TYPES = ("nft", "awm", "positives")


@dataclass
class FlowNFTConfig(FlowRewardConfig):
    """
    [`~preference.reward_config.FlowRewardConfig`] plus:

    Args:
        loss_type: `nft` (arXiv 2509.16117), `awm` (arXiv 2509.25050), or `positives`: the flow's own loss on pictures
            that are better than their group, which is rejection fine-tuning.
        mix_beta: of `nft`, how far the policies of good and of bad pictures are from the old one.
        adaptive_weight: of `nft` and `positives`, errors are divided by their own size.
        beta: weight of the mean squared distance of velocities from the reference; 0 for no reference.
        train_levels_per_sample: noise levels at which each picture is learned from.
        old_policy_slope, old_policy_max: before the next pictures, the policy that draws keeps `min(slope * step,
            max)` of itself, and takes the rest from the one that learns.
    """

    loss_type: str = field(default="nft")
    mix_beta: float = field(default=1.0)
    adaptive_weight: bool = field(default=True)
    beta: float = field(default=1e-4)
    train_levels_per_sample: int = field(default=2)
    old_policy_slope: float = field(default=1e-3)
    old_policy_max: float = field(default=0.5)

    def __post_init__(self):
        super().__post_init__()
        check_sizes(train_levels_per_sample=self.train_levels_per_sample)
        check_name("`loss_type`", self.loss_type, LOSS_TYPES)
        self.check_above(mix_beta=self.mix_beta)
        self.check_not_below(old_policy_slope=self.old_policy_slope)
        if not is_finite_number(self.old_policy_max) or not 0 <= self.old_policy_max < 1:
            raise ValueError(f"`old_policy_max` must be in [0, 1). Got {self.old_policy_max!r:.40}. Leave it out.")
        if self.rollout_guidance_scale != 1:
            raise ValueError(
                f"{self.loss_type!r} compares velocities of the condition alone, and pictures that were guided are "
                f"not what these draw. Got rollout_guidance_scale={self.rollout_guidance_scale}. Leave it out, or use "
                f"FlowGRPOTrainer."
            )


class FlowNFTTask(FlowRewardTask):
    """Of [`FlowNFTTrainer`]."""

    name = "flow_nft"
    config_class = FlowNFTConfig
    arguments: FlowNFTConfig  # ty: ignore[incompatible-mutable-override]  # `setup` takes no other
    has_old_policy = True

    def learn(self, model, drawn, generators):
        arguments, number = self.arguments, self.arguments.train_levels_per_sample
        sigma, noise = self._levels(drawn["features"], generators, number)
        clean, condition, advantages = (
            drawn[name].repeat_interleave(number, dim=0) for name in ("features", "condition", "advantages")
        )
        noisy = {"condition": condition, "clean": clean, "noise": noise, "sigma": sigma}
        with torch.no_grad(), self.policies.as_old():
            old = self.velocity(self.policies.model, noisy)
        new = self.velocity(model, noisy)
        if arguments.loss_type == "awm":
            losses = awm_loss(new, old, noise - clean, sigma, advantages / arguments.advantage_clip)
        else:
            at_noise = base_model(self.policies.model).objective.add_noise(clean, noise, sigma)
            if arguments.loss_type == "nft":
                losses = nft_loss(
                    new, old, at_noise, clean, sigma, advantages, arguments.mix_beta, arguments.adaptive_weight
                )
            else:
                losses = positives_loss(new, at_noise, clean, sigma, advantages, arguments.adaptive_weight)
        if arguments.beta:
            losses = losses + arguments.beta * self.distance(new, noisy)
        return losses

    def _levels(self, features: Tensor, generators: Sequence[torch.Generator], number: int) -> tuple[Tensor, Tensor]:
        """Noise levels `[N * number]` of the sampler, and noises, by the generators of the prompts."""
        levels, size = self.rollouts.levels(), self.arguments.num_generations * number
        chosen = [levels[torch.randint(len(levels), (size,), generator=each)] for each in generators]
        return torch.cat(chosen).to(features.device), drawn_noise(features.shape[1:], generators, size).to(features)

    def end_step(self, step):
        if step % self.arguments.num_iterations == 0:  # until then, the old policy is the one that drew
            self.policies.follow(min(self.arguments.old_policy_slope * step, self.arguments.old_policy_max))


class FlowNFTTrainer(FlowRewardTrainer):
    """
    Learns from rewards by DiffusionNFT (arXiv 2509.16117), or with `loss_type="awm"` by advantage-weighted matching
    (arXiv 2509.25050). Sampling is without guidance, as both need, and by any solver.

    Each step draws a group of pictures for each prompt with an older policy, asks the rewards, and learns from all
    pictures at a few noise levels: to be more like those that are better than their group, and less like the others.
    Arguments as of [`~preference.reward_trainer.FlowRewardTrainer`].

    Example:

    ```python
    >>> from blip3o_hf import FlowNFTConfig, FlowNFTTrainer

    >>> def redness(prompts, completions, **columns):
    ...     return [image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in completions]

    >>> trainer = FlowNFTTrainer(
    ...     "blip3o-tiny", redness, FlowNFTConfig("runs/red"), train_dataset=[{"prompt": "a circle"}]
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    task_class = FlowNFTTask


__all__ = ["FlowNFTConfig", "FlowNFTTask", "FlowNFTTrainer"]
