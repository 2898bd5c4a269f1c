"""What the arguments of all trainers that draw and ask rewards have in common."""

from dataclasses import dataclass, field
from typing import Any

from ..checks import check_name, check_sizes, is_finite_number
from ..rewards.advantages import AGGREGATIONS, SCALES
from ..training.arguments import Blip3oTrainingArguments
from .safeguards import SAFEGUARDS


@dataclass
class FlowRewardConfig(Blip3oTrainingArguments):
    """
    [`Blip3oTrainingArguments`] plus, by TRL's names where there are such:

    Args:
        num_generations: pictures of a prompt, at least 2. `per_device_train_batch_size` counts prompts.
        num_generations_eval: the same in evaluations; by default as many.
        num_iterations: steps that learn from the same pictures.
        rollout_steps: sampling steps of the pictures that are judged.
        rollout_guidance_scale: their guidance; 1 for none.
        rollout_decoder_steps: steps of a diffusion decoder for them; by default its own.
        beta: weight of the distance from the reference, which is the model at the start; 0 for no reference.
        scale_rewards: what divides rewards: the standard deviation of the `group`, of the `batch` (a micro-batch of
            all processes), or `none`.
        multi_objective_aggregation: `sum_then_normalize`, or `normalize_then_sum`: each reward becomes an advantage of
            its own, which keeps one of small numbers from being lost.
        advantage_clip: largest advantage, either way.
        reward_weights: one for each reward; 1 by default.
        log_completions: write a table of the last pictures with their rewards at every log, in
            `output_dir/completions`.
        max_kl: stop when `kl`, the distance from the reference, is larger; needs `beta`.
        max_velocity_growth: stop when velocities are so many times as long as those of the reference; needs `beta`.
        min_diversity: stop when the distance of pictures of one prompt is below this share of what it was.
        reward_patience: stop when the reward of held-out prompts was not better for so many evaluations.
        max_real_loss_growth: stop when the loss of `real_dataset` is so many times what it was.
    """

    num_generations: int = field(default=8)
    num_generations_eval: int | None = field(default=None)
    num_iterations: int = field(default=1)
    rollout_steps: int = field(default=10)
    rollout_guidance_scale: float = field(default=1.0)
    rollout_decoder_steps: int | None = field(default=None)
    beta: float = field(default=0.0)
    scale_rewards: str = field(default="group")
    multi_objective_aggregation: str = field(default="sum_then_normalize")
    advantage_clip: float = field(default=5.0)
    reward_weights: list[float] | None = field(default=None)
    log_completions: bool = field(default=False)
    max_kl: float | None = field(default=None)
    max_velocity_growth: float | None = field(default=None)
    min_diversity: float | None = field(default=None)
    reward_patience: int | None = field(default=None)
    max_real_loss_growth: float | None = field(default=None)

    def __post_init__(self):
        super().__post_init__()
        check_sizes(2, num_generations=self.num_generations)
        check_sizes(rollout_steps=self.rollout_steps, num_iterations=self.num_iterations)
        if self.num_generations_eval is not None:
            check_sizes(2, num_generations_eval=self.num_generations_eval)
        if self.rollout_decoder_steps is not None:
            check_sizes(rollout_decoder_steps=self.rollout_decoder_steps)
        check_name("`scale_rewards`", self.scale_rewards, SCALES)
        check_name("`multi_objective_aggregation`", self.multi_objective_aggregation, AGGREGATIONS)
        self.check_above(rollout_guidance_scale=self.rollout_guidance_scale, advantage_clip=self.advantage_clip)
        self.check_not_below(beta=self.beta)
        self._check_safeguards()

    def _check_safeguards(self) -> None:
        limits = {name: getattr(self, name) for name in SAFEGUARDS if getattr(self, name) is not None}
        self.check_above(**limits)
        if limits.get("min_diversity", 0) > 1:
            raise ValueError(
                f"`min_diversity` is a share of the diversity at the start, at most 1. Got "
                f"{self.min_diversity!r:.40}. Try 0.7."
            )
        if self.reward_patience is not None:
            check_sizes(reward_patience=self.reward_patience)
        for name in ("max_kl", "max_velocity_growth"):
            if name in limits and not self.beta:
                raise ValueError(
                    f"`{name}` compares with the reference, which is kept where `beta` is above 0. Got `{name}` "
                    f"{limits[name]} and `beta` 0. Set beta=1e-4."
                )

    def check_above(self, least: float = 0, **values: Any) -> None:
        """Raise a `ValueError` for a value that is not a finite number above `least`."""
        for name, value in values.items():
            if not is_finite_number(value, least):
                raise ValueError(f"`{name}` must be a number above {least}. Got {value!r:.40}. Leave it out.")

    def check_not_below(self, **values: Any) -> None:
        """Raise a `ValueError` for a value that is not a finite number of at least 0."""
        for name, value in values.items():
            if not is_finite_number(value) or value < 0:
                raise ValueError(f"`{name}` must be at least 0. Got {value!r:.40}. Leave it out.")


__all__ = ["FlowRewardConfig"]
