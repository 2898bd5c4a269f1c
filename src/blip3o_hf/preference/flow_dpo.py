"""Learning from preferences by direct preference optimization: pairs that people chose, or that rewards did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_sizes, is_finite_number
from ..objectives.noise_levels import sigma_from_uniform
from ..rewards.manager import RewardManager
from ..training.tasks.base import drawn_noise
from ..training.tasks.generation import GenerationTask
from ..training.trainer import seeded_generator
from .losses import dpo_loss, mean_square
from .pairs import PICTURES, PreferenceDataset
from .prompts import PromptDataset, collated
from .reward_config import FlowRewardConfig
from .reward_task import EVALUATION, Drawn, FlowRewardTask, base_model, compared
from .reward_trainer import FlowRewardTrainer

OF_DRAWN = {"num_iterations": 1, "log_completions": False, "min_diversity": None, "reward_patience": None}
"""Settings of what is drawn, and their values where nothing is."""


@dataclass
class FlowDPOConfig(FlowRewardConfig):
    """
    [`~preference.reward_config.FlowRewardConfig`] plus:

    Args:
        beta: how much a step away from the reference costs; the loss compares mean squared errors of velocities, which
            are small, so it is large: 100 to 5000. Smaller ones go further.
        label_smoothing: share of pairs that are taken to be the other way round, in [0, 0.5).
        train_levels_per_sample: noises and noise levels at which each pair is compared.
    """

    beta: float = field(default=1000.0)
    label_smoothing: float = field(default=0.0)
    train_levels_per_sample: int = field(default=2)

    def __post_init__(self):
        super().__post_init__()
        self.check_above(beta=self.beta)
        check_sizes(train_levels_per_sample=self.train_levels_per_sample)
        if not is_finite_number(self.label_smoothing) or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f"`label_smoothing` must be in [0, 0.5). Got {self.label_smoothing!r:.40}. Leave it out for 0."
            )


class FlowDPOTask(FlowRewardTask):
    """
    Of [`FlowDPOTrainer`].

    Args:
        rewards: choose the pairs, among what the model draws; without them the dataset has them.
    """

    name = "flow_dpo"
    config_class = FlowDPOConfig
    arguments: FlowDPOConfig  # ty: ignore[incompatible-mutable-override]  # `setup` takes no other

    def __init__(self, rewards: RewardManager | None = None):
        self.is_online = rewards is not None
        super().__init__(rewards)  # ty: ignore[invalid-argument-type]  # not asked where there are none

    def needs_encoder(self, arguments):
        return not self.is_online

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        model = super().setup(model, processor, target_encoder, arguments, peft_config)
        of_drawn = [name for name, plain in OF_DRAWN.items() if getattr(arguments, name) != plain]
        if of_drawn and not self.is_online:
            raise ValueError(
                f"Without rewards nothing is drawn. Got `{of_drawn[0]}`, which is of drawn pictures. Leave it out, or "
                f"pass `reward_funcs`."
            )
        return model

    # Data

    def open(self, dataset, name):
        return (PromptDataset if self.is_online else PreferenceDataset)(dataset, name)

    def __call__(self, items):
        if self.is_online:
            return super().__call__(items)
        rows = collated(items)
        assert self.target_encoder is not None  # see `needs_encoder`
        pixels = {side: self.target_encoder.pixel_values(rows[side]) for side in PICTURES}
        return {**GenerationTask.encode_prompts(self, rows["prompt"], [[] for _ in items]), **pixels}

    # Losses

    def counts(self, batch):
        return super().counts(batch) if self.is_online else {"pictures": len(batch["chosen"])}

    def loss(self, model, batch, generators):
        if self.is_online:
            return super().loss(model, batch, generators)
        pairs = self._encoded(batch)
        found, metrics = self._compared(model, pairs, generators[: len(pairs["chosen"])])
        self.metrics.append(metrics)
        return self.share("pictures") * found.mean()

    def _encoded(self, batch: Mapping[str, Any]) -> Drawn:
        """Pairs of normalised features, with the condition of their prompt."""
        assert self.target_encoder is not None  # see `needs_encoder`
        model = base_model(self.policies.model)
        with torch.no_grad():
            condition = model.encode_condition(**{key: batch[key] for key in batch if key not in PICTURES})
            features = {
                side: model.normalize_features(self.target_encoder.features(batch[side])).float() for side in PICTURES
            }
        return {"condition": condition, **features}

    def learn(self, model, drawn, generators):
        """Best against worst of each group; of groups that are all alike nothing is learned."""
        size = self.arguments.num_generations
        advantages = drawn["advantages"].unflatten(0, (-1, size))
        first = torch.arange(len(advantages), device=advantages.device) * size
        best, worst = (first + found for found in (advantages.argmax(dim=1), advantages.argmin(dim=1)))
        differs = advantages.amax(dim=1) > advantages.amin(dim=1)
        pairs = {
            "condition": drawn["condition"][best],
            "chosen": drawn["features"][best],
            "rejected": drawn["features"][worst],
        }
        losses, metrics = self._compared(model, pairs, generators, differs)
        self.metrics[-1] |= {**metrics, "frac_pairs": differs.double().mean().item()}
        return losses

    def _compared(
        self, model: nn.Module, pairs: Drawn, generators: Sequence[torch.Generator], counted: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """
        One loss for each pair and noise level, 0 for pairs that are not counted, and the metrics of those that are.
        Both pictures of a pair get the same noise.
        """
        number = self.arguments.train_levels_per_sample
        config = base_model(self.policies.model).config
        uniform = torch.cat([torch.rand(number, generator=each) for each in generators])
        noise = drawn_noise(pairs["chosen"].shape[1:], generators, number).to(pairs["chosen"])
        sigma = sigma_from_uniform(uniform.to(noise.device), config.noise_distribution, config.noise_shift)
        condition = pairs["condition"].repeat_interleave(number, dim=0)
        clean = torch.cat([pairs[side].repeat_interleave(number, dim=0) for side in PICTURES])
        noisy = {
            "condition": torch.cat([condition, condition]),
            "clean": clean,
            "noise": torch.cat([noise, noise]),
            "sigma": torch.cat([sigma, sigma]),
        }
        target = noisy["noise"] - clean
        velocity = self.velocity(model, noisy)
        chosen, rejected = mean_square(velocity - target).chunk(2)
        reference = self.reference_velocity(noisy)
        references = mean_square(reference - target).chunk(2)
        found = dpo_loss(chosen, rejected, *references, self.arguments.beta, self.arguments.label_smoothing)
        if counted is None:
            counted = torch.ones(len(pairs["chosen"]), dtype=torch.bool, device=clean.device)
        counted = counted.repeat_interleave(number)
        values = {  # TRL's, and the errors themselves, which both grow where training goes wrong
            "rewards/chosen": found.chosen,
            "rewards/rejected": found.rejected,
            "rewards/margins": found.chosen - found.rejected,
            "rewards/accuracies": (found.chosen > found.rejected).float(),
            "errors/chosen": chosen.detach(),
            "errors/rejected": rejected.detach(),
        }
        metrics = {name: value[counted].mean().item() for name, value in values.items()}
        return found.loss * counted, {**metrics, **compared(velocity, reference)}

    def validate(self, model, dataset):
        if self.is_online:
            return super().validate(model, dataset)
        sums: dict[str, float] = {}
        for first, rows in enumerate(self.batches(dataset)):
            pairs = self._encoded(self.on_device(self(rows), model))
            generators = [seeded_generator(EVALUATION, first, index) for index in range(len(rows))]
            losses, metrics = self._compared(model, pairs, generators)
            for name, value in {**metrics, "loss": losses.mean().item()}.items():
                sums[name] = sums.get(name, 0.0) + value * len(rows) / len(dataset)
        return sums


class FlowDPOTrainer(FlowRewardTrainer):
    """
    Learns from preferences by Diffusion-DPO (arXiv 2311.12908) in the form of flows: offline, from a dataset of pairs;
    or online with `reward_funcs`, from the best and the worst picture of each group that the model draws.

    Args:
        model: with a flow, or its name.
        reward_funcs: one or several, as of [`~preference.reward_trainer.FlowRewardTrainer`]; `None` for a dataset of
            pairs.
        args ([`FlowDPOConfig`]): how.
        train_dataset: rows with `prompt`, `chosen` and `rejected`, the last two pictures; or rows with a `prompt` and
            what the rewards read.
        eval_dataset: the same. Of pairs, `evaluate` gives loss and accuracy.
        kwargs: as of [`~preference.reward_trainer.FlowRewardTrainer`].

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from blip3o_hf import FlowDPOConfig, FlowDPOTrainer

    >>> pairs = load_dataset("parquet", data_files="pairs.parquet", split="train")  # doctest: +SKIP
    >>> trainer = FlowDPOTrainer("blip3o-tiny", args=FlowDPOConfig("runs/dpo"), train_dataset=pairs)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    task_class = FlowDPOTask

    def make_task(self, reward_funcs, args):
        return FlowDPOTask() if reward_funcs is None else super().make_task(reward_funcs, args)


__all__ = ["FlowDPOConfig", "FlowDPOTask", "FlowDPOTrainer"]
