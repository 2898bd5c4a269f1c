"""Safeguards: callbacks that watch for what rewards do not see, show it as a curve, and stop a run in time."""

import math
from pathlib import Path
from typing import ClassVar

from transformers import TrainerCallback
from transformers.utils import logging

from ..evaluation.sheets import curve

logger = logging.get_logger(__name__)


class Safeguard(TrainerCallback):
    """
    Base: follows one value that the Trainer logs.

    Args:
        limit: beyond which the run stops. The weights are saved as at any end.
        folder: its curve goes there, as `METRIC.png`.
    """

    metric: ClassVar[str]
    advice: ClassVar[str]

    def __init__(self, limit: float, folder: str | Path):
        self.limit, self.folder = limit, Path(folder)
        self.tripped_at: int | None = None

    def is_beyond(self, values: list[float]) -> bool:
        """Whether a run stops whose values were these, the last one new."""
        raise NotImplementedError

    def on_train_begin(self, args, state, control, **kwargs):
        self.tripped_at = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if math.isnan((logs or {}).get(self.metric, math.nan)):  # of rewards, where none applied
            return control
        points = [(entry["step"], entry.get(self.metric, math.nan)) for entry in state.log_history]
        points = [point for point in points if not math.isnan(point[1])]
        values = [value for _, value in points]
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            curve(points, self.metric, self.folder / f"{self.metric}.png")
        if self.tripped_at is None and self.is_beyond(values):
            self.tripped_at = state.global_step
            logger.warning(
                f"The run stops at step {state.global_step}: {self.metric} is {values[-1]:.4g} after {values[0]:.4g}, "
                f"beyond the limit {self.limit:.4g}. {self.advice}"
            )
            control.should_training_stop = True
        return control


class KLBudget(Safeguard):
    """Stops when `kl`, the mean squared distance of velocities from the reference, is above the limit."""

    metric = "kl"
    advice = "Raise `beta`, or lower the learning rate."

    def is_beyond(self, values):
        return values[-1] > self.limit


class VelocityGrowth(Safeguard):
    """
    Stops when velocities are longer than those of the reference by more than the limit, a factor: as they grow,
    pictures get harsh.
    """

    metric = "velocity_growth"
    advice = "Raise `beta`, or lower the learning rate."

    def is_beyond(self, values):
        return values[-1] > self.limit


class Diversity(Safeguard):
    """Stops when the distance of pictures of one prompt is below a share, the limit, of what it was at first."""

    metric = "diversity"
    advice = "The model draws one picture for each prompt. Raise `beta`, or stop earlier."

    def is_beyond(self, values):
        return values[-1] < self.limit * values[0]


class HeldOutReward(Safeguard):
    """Stops when the reward of held-out prompts was not better than before for so many evaluations in a row."""

    metric = "eval_reward"
    advice = "What it learns does not hold for other prompts. Take the checkpoint of the best evaluation."

    def is_beyond(self, values):
        best = values.index(max(values))
        return len(values) - 1 - best >= self.limit


class RealLoss(Safeguard):
    """Stops when the loss of the flow on real pictures is so many times what it was at first: pictures get worse."""

    metric = "eval_real_loss"
    advice = "Raise `beta`, or mix in training on real pictures."

    def is_beyond(self, values):
        return values[-1] > self.limit * values[0]


SAFEGUARDS: dict[str, type[Safeguard]] = {
    "max_kl": KLBudget,
    "max_velocity_growth": VelocityGrowth,
    "min_diversity": Diversity,
    "reward_patience": HeldOutReward,
    "max_real_loss_growth": RealLoss,
}
"""By the names of their limits in the arguments of a trainer."""

__all__ = ["SAFEGUARDS", "Diversity", "HeldOutReward", "KLBudget", "RealLoss", "Safeguard", "VelocityGrowth"]
