"""One optimizer object for Muon on weight matrices and AdamW on everything else."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from .arguments import Blip3oTrainingArguments


class CombinedOptimizer(torch.optim.Optimizer):
    """
    Several optimizers behind one interface, so that one learning-rate schedule and one checkpoint serve them all.

    Args:
        optimizers: optimizers over disjoint parameters.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]):
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss

    def state_dict(self) -> dict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def _is_hidden_matrix(name: str, parameter: torch.Tensor, embeddings: set[int]) -> bool:
    """Muon is for matrices between hidden layers: not embeddings, not the first or the last projection."""
    edges = ("embed", "queries", "position", "lm_head", "proj_in", "proj_out", "norm_out", "_projection")
    return parameter.ndim == 2 and id(parameter) not in embeddings and not any(edge in name for edge in edges)


def _by_rate(parameters: dict[str, nn.Parameter], rates: dict[str, float]) -> list[dict]:
    """A parameter group for each part with a learning rate of its own (the longest name counts), one for the rest."""
    groups: dict[str | None, list[nn.Parameter]] = {None: [], **{part: [] for part in rates}}
    for name, parameter in parameters.items():
        groups[max((part for part in rates if name.startswith(part)), key=len, default=None)].append(parameter)
    rate_of = {part: {"lr": rate} for part, rate in rates.items()}
    return [{"params": group, **rate_of.get(part, {})} for part, group in groups.items() if group]


def build_optimizer(
    model: nn.Module,
    arguments: Blip3oTrainingArguments,
    chosen: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """
    `arguments.optim`, by default AdamW, over the trainable parameters of `model`; Muon for hidden matrices where asked
    for.

    Args:
        model: parameters with `requires_grad` are trained, others are left out.
        arguments: optimizer, learning rates, betas, epsilon and weight decay.
        chosen: class and arguments of another optimizer, in the place of `arguments.optim`.

    Raises:
        ValueError: when a part with a learning rate of its own does not train, or Muon meets another optimizer.
        ImportError: when the library of the optimizer is not installed.
    """
    trainable = {
        name.removeprefix("base_model.model."): parameter  # PEFT's prefix
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    rates = arguments.learning_rates or {}
    for part in rates:
        if not any(name.startswith(part) for name in trainable):
            parts = sorted({name.partition(".")[0] for name in trainable})
            raise ValueError(
                f"`learning_rates` must name parts that train. Got {part!r}. What trains here: {', '.join(parts)}."
            )
    if chosen is None:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(
            arguments,
            model,  # ty: ignore[invalid-argument-type]  # it reads any module
        )
    else:
        kind, settings = chosen
    options: dict[str, Any] = {"weight_decay": arguments.weight_decay, **settings}
    if arguments.muon_learning_rate is None:
        return kind(_by_rate(trainable, rates), **options)
    if chosen is not None:
        raise ValueError(
            f"Muon trains matrices, and AdamW everything else. Got `muon_learning_rate` and the optimizer "
            f"{kind.__name__}. Leave one of them out."
        )
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for name, p in trainable.items() if _is_hidden_matrix(name, p, embeddings)]
    by_muon = {id(p) for p in matrices}
    others = _by_rate({name: p for name, p in trainable.items() if id(p) not in by_muon}, rates)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=arguments.muon_learning_rate, weight_decay=arguments.weight_decay))
    if others:
        parts.append(kind(others, **options))
    return CombinedOptimizer(parts)
