"""What tasks share whose model learns to draw in few steps what it draws in many: its own copy teaches it."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_sizes, is_finite_number
from ..arguments import FROZEN_DTYPES, Blip3oTrainingArguments
from ..distributed import spreads_weights
from .base import Task, drawn_noise

ADAPTIVE = 1e-2
"""Errors are divided by themselves and this, as MeanFlow weights them: so no level of noise outweighs the others."""
VALIDATED_STEPS = (1, 4)


class FewStepsTask(Task):
    """
    Base of these tasks. A subclass says what its pictures depend on (`given`), what the teacher makes of noise
    (`path`), and what the model draws of it (`drawn`).

    Args:
        teacher_steps: in which the teacher draws.
        teacher_guidance_scale: with which; 1 is none.
    """

    teacher: Any

    def _teach_by(self, teacher_steps: int, teacher_guidance_scale: float) -> None:
        """
        Raises:
            ValueError: when the steps are no whole number of at least 1, or the scale is not positive.
        """
        check_sizes(teacher_steps=teacher_steps)
        if not is_finite_number(teacher_guidance_scale, 0):
            raise ValueError(
                f"`teacher_guidance_scale` must be positive. Got {teacher_guidance_scale!r:.40}. 1 is no guidance."
            )
        self.teacher_steps, self.teacher_guidance_scale = teacher_steps, teacher_guidance_scale

    @property
    def frozen_parts(self):
        return [*super().frozen_parts, self.teacher]

    def given(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What pictures depend on, a row for each record."""
        raise NotImplementedError

    def noise_shape(self) -> tuple[int, ...]:
        """Of the noise of one picture."""
        raise NotImplementedError

    def path(self, noise: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher makes of noise, float32 `[teacher_steps + 1, N, ...]`, the last clean; and the levels."""
        raise NotImplementedError

    def drawn(self, model: nn.Module, noise: Tensor, steps: int, *given: Tensor) -> Tensor:
        """What the model makes of noise in so many steps, float32 `[N, ...]`."""
        raise NotImplementedError

    def validation_batch(self, records: Sequence[Any]) -> dict[str, Any]:
        """What `given` reads of records."""
        return self.collate(records)

    @torch.no_grad()
    def validate(self, model, dataset):
        """
        Mean squared errors of what the model draws of held-out records in few steps, of what its teacher makes of the
        same noise, in variances of the latter.
        """
        sums, number = dict.fromkeys(VALIDATED_STEPS, 0.0), 0
        for records in self.batches(dataset):
            given = self.given(self.on_device(self.validation_batch(records), model))
            generators = [torch.Generator().manual_seed(number + index) for index in range(len(records))]
            noise = drawn_noise(self.noise_shape(), generators).to(given[0].device)
            clean = self.path(noise, *given)[0][-1]
            for steps in VALIDATED_STEPS:
                error = (self.drawn(model, noise, steps, *given) - clean).square().mean() / clean.var()
                sums[steps] += error.item() * len(records)
            number += len(records)
        losses = {f"loss_of_{steps}_steps": value / number for steps, value in sums.items()} if number else {}
        return {**losses, "loss": sum(losses.values()) / len(losses)} if losses else {}

    def mean_error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch: squared errors `[N, ...]`, weighted by themselves, as a share of the step."""
        errors = (predicted - target).square().flatten(1).mean(dim=1)
        return self.share("records") * (errors / (errors.detach() + ADAPTIVE)).mean()


def frozen_copy(model: nn.Module, arguments: Blip3oTrainingArguments) -> Any:
    """A model as it is now, without gradients, in the precision of what is frozen."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(FROZEN_DTYPES[arguments.frozen_dtype])
    return copied


def check_holds_all(arguments: Blip3oTrainingArguments) -> None:
    """
    Raises:
        ValueError: when an engine spreads weights over processes, of which a task makes whole copies.
    """
    if spreads_weights(arguments):
        raise ValueError(
            "What is learned from is a copy of the weights, of which each process must hold all. Got ZeRO-3 or FSDP. "
            "Use DDP or ZeRO-2."
        )


__all__ = ["FewStepsTask", "check_holds_all", "frozen_copy"]
