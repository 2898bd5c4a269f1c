"""The task of all trainers that draw and ask rewards: groups of pictures, their advantages, and what is learned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..rewards.advantages import Advantages, advantages_of
from ..rewards.manager import RewardManager, Scores
from ..training.distributed import spreads_weights
from ..training.tasks.generation import GenerationTask
from ..training.trainer import seeded_generator
from .completions import Completions
from .losses import mean_square
from .policies import Policies
from .prompts import PromptDataset, collated
from .reward_config import FlowRewardConfig
from .rollouts import Rollout, Rollouts, evaluating

Drawn = dict[str, Tensor]
"""
Pictures to learn from, as tensors whose first dimension is that of pictures: `condition`, `features`, `advantages`,
and what a trainer adds. All of it can be saved.
"""


EVALUATION = 2**32
"""First of the numbers that seed the noise of evaluations; no seed of a training is as large."""


class FlowRewardTask(GenerationTask):
    """
    A transformer that learns from rewards of what it, or an older one, drew; queries and backbone stay as they are.

    Args:
        rewards: judge pictures.
    """

    default_parts = ("transformer",)
    config_class: type[FlowRewardConfig] = FlowRewardConfig
    arguments: FlowRewardConfig  # ty: ignore[incompatible-mutable-override]  # `setup` takes no other
    has_old_policy = False
    """Whether pictures are drawn by an older policy."""
    make_pipeline: Callable[[], Blip3oPipeline]
    """Of the Trainer, around the model that learns."""
    place: Callable[[], tuple[int, int]]
    """Of the Trainer: the present step, and the number of the micro-batch in it."""
    gather: Callable[[Tensor], Tensor]
    """Of the Trainer: the rows of all processes."""
    policies: Policies

    def __init__(self, rewards: RewardManager):
        self.rewards = rewards
        if rewards is not None:
            self.details = f"Rewards: {', '.join(f'`{name}`' for name in rewards.names)}."
        self.metrics: list[dict[str, float]] = []
        self.completions: Completions | None = None
        self.kept: list[Drawn] = []
        self._rollouts: Rollouts | None = None

    def needs_encoder(self, arguments):
        return False

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        if not isinstance(arguments, self.config_class):
            name = self.config_class.__name__
            raise TypeError(
                f"This trainer takes a {name}. Got {type(arguments).__name__}. Example: {name}('runs/one')."
            )
        _check_trains_alone(model, arguments, peft_config)
        model = super().setup(model, processor, target_encoder, arguments, peft_config)
        _check_conditions_stay(model)
        self.policies = Policies(model, self.has_old_policy, has_reference=arguments.beta > 0)
        return model

    # Data

    def open(self, dataset, name):
        return PromptDataset(dataset, name)

    def __call__(self, items):
        return {"rows": collated(items)}

    def batches(self, dataset):
        size = self.arguments.per_device_eval_batch_size
        for start in range(0, len(dataset), size):
            yield [dataset[index] for index in range(start, min(start + size, len(dataset)))]

    # Losses

    def counts(self, batch):
        return {"pictures": len(batch["rows"]["prompt"]) * self.arguments.num_generations}

    def loss(self, model, batch, generators):
        generators = generators[: len(batch["rows"]["prompt"])]
        drawn = self._drawn(batch["rows"], generators)
        return self.share("pictures") * self.learn(model, drawn, generators).mean()

    def learn(self, model: nn.Module, drawn: Drawn, generators: Sequence[torch.Generator]) -> Tensor:
        """
        Losses of pictures, whose mean is that of the batch.

        Args:
            model: what trains, through what an engine put around it.
            drawn: the pictures.
            generators: one for each prompt, for what is random.
        """
        raise NotImplementedError

    def end_step(self, step: int) -> None:
        """After an update, that of this number from 1."""

    @property
    def rollouts(self) -> Rollouts:
        """What draws; made at the first step, when the Trainer has its pipeline."""
        if self._rollouts is None:
            arguments = self.arguments
            self._rollouts = Rollouts(
                self.make_pipeline(),
                arguments.num_generations,
                arguments.rollout_steps,
                arguments.rollout_guidance_scale,
                arguments.rollout_decoder_steps,
            )
        return self._rollouts

    @property
    def _is_new(self) -> bool:
        """Whether this step draws, and does not learn again from what was drawn before."""
        return self.place()[0] % self.arguments.num_iterations == 0

    def _drawn(self, rows: Mapping[str, Sequence[Any]], generators: Sequence[torch.Generator]) -> Drawn:
        _, number = self.place()
        if not self._is_new:
            self.metrics.append({})
            device = next(self.policies.model.parameters()).device
            self.kept[number] = {name: value.to(device) for name, value in self.kept[number].items()}
            return self.kept[number]
        drawn, rollout = self.draw(list(rows["prompt"]), generators)
        self.completions = self.judged(rollout, rows)
        scores = self.completions.scores
        found = self._advantages(scores)
        drawn["advantages"] = found.values.to(rollout.features.device)
        self.metrics.append({**found.metrics, **scores.metrics, "diversity": diversity(rollout)})
        if number == 0:
            self.kept = []
        self.kept.append(drawn)
        return drawn

    def draw(self, prompts: list[str], generators: Sequence[torch.Generator]) -> tuple[Drawn, Rollout]:
        """What is learned from, without advantages, and the rollout whose pictures are judged."""
        with self.policies.as_old():
            rollout = self.rollouts(prompts, generators)
        return {"condition": rollout.condition, "features": rollout.features}, rollout

    def judged(self, rollout: Rollout, rows: Mapping[str, Sequence[Any]]) -> Completions:
        """The pictures of a rollout, whose prompts have these columns, and what the rewards say of them."""
        size = rollout.num_generations
        columns = {name: [value for value in values for _ in range(size)] for name, values in rows.items()}
        prompts, pictures = columns.pop("prompt"), self.rollouts.pictures(rollout)
        return Completions(prompts, pictures, self.rewards(prompts, pictures, columns))

    def _advantages(self, scores: Scores) -> Advantages:
        arguments = self.arguments
        values, rows = scores.values, slice(None)
        if arguments.scale_rewards == "batch":
            gathered = self.gather(values.to(next(self.policies.model.parameters()).device, torch.float32)).cpu()
            first = arguments.process_index * len(values)
            values, rows = gathered.double(), slice(first, first + len(values))
        found = advantages_of(
            values,
            self.rewards.weights,
            arguments.num_generations,
            arguments.scale_rewards,
            arguments.multi_objective_aggregation,
            arguments.advantage_clip,
        )
        return Advantages(found.values[rows], found.metrics)

    def velocity(self, model: nn.Module, noisy: Drawn) -> Tensor:
        """
        What a model says at features with noise, by its own forward, so that engines see it; no condition is dropped.

        Args:
            model: what trains, or what is in it.
            noisy: `condition`, `clean` (normalised), `noise` and `sigma`, of one length.
        """
        whole = base_model(self.policies.model)
        with evaluating(whole):
            output = model(
                condition=noisy["condition"],
                target_features=whole.denormalize_features(noisy["clean"]),
                noise=noisy["noise"],
                sigma=noisy["sigma"],
            )
        level = noisy["sigma"].view(-1, *[1] * (noisy["clean"].ndim - 1))
        at_noise = whole.objective.add_noise(noisy["clean"], noisy["noise"], noisy["sigma"])
        return whole.objective.predicted_velocity(output.prediction.float(), at_noise, level)

    def reference_velocity(self, noisy: Drawn) -> Tensor:
        """The same of the reference, without gradient."""
        with torch.no_grad(), self.policies.as_reference():
            return self.velocity(self.policies.model, noisy)

    def distance(self, velocity: Tensor, noisy: Drawn) -> Tensor:
        """Mean squared distance of velocities from those of the reference, `[N]`; logged as `kl`."""
        reference = self.reference_velocity(noisy)
        self.metrics[-1] |= compared(velocity, reference)
        return mean_square(velocity - reference)

    def validate(self, model, dataset):
        """Rewards of prompts, each with the same noise at every call, drawn by the model itself."""
        judged: list[Scores] = []
        spread: list[float] = []
        for first, rows in enumerate(self.batches(dataset)):
            columns = collated(rows)
            generators = [seeded_generator(EVALUATION, first, index) for index in range(len(rows))]
            rollout = self.rollouts(columns["prompt"], generators, self.arguments.num_generations_eval)
            judged.append(self.judged(rollout, columns).scores)
            spread.append(diversity(rollout))
        means = torch.cat([each.values for each in judged]).nanmean(dim=0).tolist()
        total = torch.cat([each.total for each in judged]).nanmean().item()
        named = {f"rewards/{name}": mean for name, mean in zip(self.rewards.names, means, strict=True)}
        return {**named, "reward": total, "diversity": sum(spread) / len(spread), "loss": -total}


def base_model(model: nn.Module) -> Any:
    """The BLIP3-o itself, without PEFT around it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def compared(velocity: Tensor, reference: Tensor) -> dict[str, float]:
    """What to log: `kl`, the mean squared distance from the reference, and `velocity_growth`, the ratio of lengths."""
    velocity = velocity.detach()
    growth = mean_square(velocity).mean().sqrt() / mean_square(reference).mean().sqrt()
    return {"kl": mean_square(velocity - reference).mean().item(), "velocity_growth": growth.item()}


def diversity(rollout: Rollout) -> float:
    """
    Distance of the features of two pictures of one prompt: the root of the mean square over all such pairs and
    numbers, and the mean over prompts.
    """
    size = rollout.num_generations
    groups = rollout.features.flatten(1).unflatten(0, (-1, size))
    return (2 * groups.var(dim=1)).mean(dim=1).sqrt().mean().item()  # the mean square over pairs is twice the variance


def _check_trains_alone(model: nn.Module, arguments: FlowRewardConfig, peft_config: Any) -> None:
    """Raise a `ValueError` where something else than a transformer, or adapters on it, would train."""
    if tuple(arguments.train or ("transformer",)) != ("transformer",) or not base_model(model).objective.has_noise:
        raise ValueError(
            f"What learns is the transformer of a flow. Got train={arguments.train} and the objective "
            f"{base_model(model).config.objective!r}. Leave `train` out, and take a model with a flow."
        )
    if peft_config is not None:
        if getattr(peft_config, "lora_dropout", 0):
            raise ValueError(
                f"The policy that learns must be the one that drew. Got lora_dropout={peft_config.lora_dropout}, with "
                f"which each pass is by another one. Leave dropout out."
            )
        odd = [*(peft_config.modules_to_save or ()), *["backbone"] * ("backbone" in str(peft_config.target_modules))]
        if odd:
            raise _conditions_change(odd[0])
    if spreads_weights(arguments):
        raise ValueError(
            "Other policies take the place of the weights, of which each process must hold all. Got ZeRO-3 or FSDP. "
            "Use DDP or ZeRO-2."
        )


def _check_conditions_stay(model: nn.Module) -> None:
    """Raise a `ValueError` where something trains, by whatever pattern of PEFT, that conditions depend on."""
    names = (name for name, parameter in base_model(model).named_parameters() if parameter.requires_grad)
    odd = next((name for name in names if not name.startswith("transformer.")), None)
    if odd is not None:
        raise _conditions_change(odd)


def _conditions_change(name: str) -> ValueError:
    return ValueError(
        f"Conditions must stay as they are while a flow learns from rewards. This `peft_config` trains {name}, too. "
        f"Pass lora_config(model, train_queries=False)."
    )


__all__ = ["Drawn", "FlowRewardTask", "base_model", "compared", "diversity"]
