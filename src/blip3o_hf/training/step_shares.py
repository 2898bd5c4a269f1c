"""Weights of the batches of a step, so that a step over several batches and processes has the loss of one batch."""

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator

SHARES = "step_shares"
"""The key under which the Trainer keeps them in a batch."""


def shares_of_step(
    counts: Sequence[Mapping[str, int | torch.Tensor]], accelerator: Accelerator
) -> list[dict[str, torch.Tensor]]:
    """
    The factors that make the mean of the batches' means one mean over all items of the step.

    The Trainer takes the plain mean over batches, and the engine that over processes. A batch with twice as many items
    as another must count twice; with equally many, every factor is exactly 1.

    Args:
        counts: for each batch of the step in this process, how many items its means go over, by their names.
        accelerator: whose processes share the step.

    Returns:
        For each batch the factors `[]` by the same names; nothing where there are no counts.

    Example:
        >>> shares_of_step([{"tokens": 1}, {"tokens": 3}], Accelerator(cpu=True))  # doctest: +SKIP
        [{'tokens': tensor(0.5000)}, {'tokens': tensor(1.5000)}]
    """
    if not counts or not counts[0]:
        return [{} for _ in counts]
    names = list(counts[0])
    device = accelerator.device
    table = torch.stack([torch.stack([torch.as_tensor(of[name], device=device) for name in names]) for of in counts])
    totals = accelerator.reduce(table.sum(dim=0), "sum")
    shares = table * (len(counts) * accelerator.num_processes) / totals.clamp(min=1)
    return [dict(zip(names, row, strict=True)) for row in shares.unbind()]
