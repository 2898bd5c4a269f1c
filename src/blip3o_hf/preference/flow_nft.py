"""Learning from rewards by DiffusionNFT or advantage-weighted matching: the flow itself, no trajectories."""

import contextlib
import copy
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from ..checks import check_name, check_sizes, is_finite_number
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..rewards.advantages import SCALES, group_advantages
from ..rewards.manager import Reward, RewardManager
from ..training.arguments import Blip3oTrainingArguments
from ..training.tasks.generation import GenerationTask
from ..training.trainer import Blip3oTrainer
from .losses import awm_loss, mean_square, nft_loss
from .prompts import PromptDataset, collated
from .rollouts import Rollouts, drawing_with

LOSS_TYPES = ("nft", "awm")


@dataclass
class FlowNFTConfig(Blip3oTrainingArguments):
    """
    [`Blip3oTrainingArguments`] plus, by TRL's names where there are such:

    Args:
        num_generations: pictures of a prompt, at least 2. `per_device_train_batch_size` counts prompts.
        rollout_steps: sampling steps of the pictures that are judged.
        loss_type: `nft` (arXiv 2509.16117) or `awm` (arXiv 2509.25050).
        mix_beta: of `nft`, how far the policies of good and of bad pictures are from the old one.
        adaptive_weight: of `nft`, the released form.
        beta: weight of the mean squared distance of velocities from the reference; 0 for no reference.
        train_levels_per_sample: noise levels at which each picture is learned from.
        scale_rewards: what divides rewards: the standard deviation of the `group`, of the `batch`, or `none`.
        advantage_clip: largest advantage, either way.
        reward_weights: one for each reward; 1 by default.
        old_policy_slope, old_policy_max: the policy that draws keeps `min(slope * step, max)` of itself at each step
            and takes the rest from the one that learns.
    """

    num_generations: int = field(default=8)
    rollout_steps: int = field(default=10)
    loss_type: str = field(default="nft")
    mix_beta: float = field(default=1.0)
    adaptive_weight: bool = field(default=True)
    beta: float = field(default=1e-4)
    train_levels_per_sample: int = field(default=2)
    scale_rewards: str = field(default="group")
    advantage_clip: float = field(default=5.0)
    reward_weights: list[float] | None = field(default=None)
    old_policy_slope: float = field(default=1e-3)
    old_policy_max: float = field(default=0.5)

    def __post_init__(self):
        super().__post_init__()
        check_sizes(2, num_generations=self.num_generations)
        check_sizes(rollout_steps=self.rollout_steps, train_levels_per_sample=self.train_levels_per_sample)
        check_name("`loss_type`", self.loss_type, LOSS_TYPES)
        check_name("`scale_rewards`", self.scale_rewards, SCALES)
        for name in ("mix_beta", "advantage_clip"):
            if not is_finite_number(getattr(self, name), 0):
                raise ValueError(f"`{name}` must be a number above 0. Got {getattr(self, name)!r:.40}. Leave it out.")
        for name in ("beta", "old_policy_slope"):
            if not is_finite_number(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0. Got {getattr(self, name)!r:.40}. Leave it out.")
        if not is_finite_number(self.old_policy_max) or not 0 <= self.old_policy_max < 1:
            raise ValueError(f"`old_policy_max` must be in [0, 1). Got {self.old_policy_max!r:.40}. Leave it out.")


class FlowNFTTask(GenerationTask):
    """
    A transformer that learns from rewards of what an older one drew; queries and backbone stay as they are.

    Args:
        rewards: judge pictures.
    """

    name = "flow_nft"
    default_parts = ("transformer",)
    arguments: FlowNFTConfig  # ty: ignore[incompatible-mutable-override]  # `setup` takes no other
    make_pipeline: Callable[[], Blip3oPipeline]
    """Of the Trainer, around the model that learns."""

    old: nn.Module
    """The transformer that draws."""

    def __init__(self, rewards: RewardManager):
        self.rewards = rewards
        self.reference: nn.Module | None = None
        self.metrics: list[dict[str, float]] = []
        self._rollouts: Rollouts | None = None

    def needs_encoder(self, arguments):
        return False

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        if not isinstance(arguments, FlowNFTConfig):
            raise TypeError(
                f"FlowNFTTrainer takes a FlowNFTConfig. Got {type(arguments).__name__}. Example: "
                f"FlowNFTConfig('runs/nft')."
            )
        if peft_config is not None or arguments.deepspeed_plugin is not None or arguments.fsdp:
            raise ValueError(
                "FlowNFTTrainer trains whole weights, on one process or under DDP. Got `peft_config`, DeepSpeed or "
                "FSDP. Leave it out."
            )
        if tuple(arguments.train or ("transformer",)) != ("transformer",) or not model.objective.has_noise:
            raise ValueError(
                f"What learns is the transformer of a flow. Got train={arguments.train} and the objective "
                f"{model.config.objective!r}. Leave `train` out, and take a model with a flow."
            )
        model = super().setup(model, processor, target_encoder, arguments)
        self.old = copy.deepcopy(model.transformer).requires_grad_(False).eval()
        self.reference = copy.deepcopy(self.old) if arguments.beta else None
        return model

    @property
    def frozen_parts(self):
        return [self.old] if self.reference is None else [self.old, self.reference]

    def open(self, dataset, name):
        return PromptDataset(dataset, name)

    def __call__(self, items):
        return {"rows": collated(items)}

    def counts(self, batch):
        return {"pictures": len(batch["rows"]["prompt"]) * self.arguments.num_generations}

    def loss(self, model, batch, generators):
        columns = dict(batch["rows"])
        prompts, size = columns.pop("prompt"), self.arguments.num_generations
        rollout = self.rollouts(prompts, generators, self.old)
        scores = self.rewards(
            [prompt for prompt in prompts for _ in range(size)],
            self.rollouts.pictures(rollout),
            {name: [value for value in values for _ in range(size)] for name, values in columns.items()},
        )
        found = group_advantages(scores.total, size, self.arguments.scale_rewards, self.arguments.advantage_clip)
        self.metrics.append({**found.metrics, **scores.metrics})
        advantages = found.values.to(rollout.features.device)
        number = self.arguments.train_levels_per_sample
        sigma, noise = self._levels(rollout.features, generators[: len(prompts)], number)
        features, condition = (each.repeat_interleave(number, dim=0) for each in (rollout.features, rollout.condition))
        losses = self._losses(model, features, condition, noise, sigma, advantages.repeat_interleave(number))
        return self.share("pictures") * losses.mean()

    @property
    def rollouts(self) -> Rollouts:
        """What draws; made at the first step, when the Trainer has its pipeline."""
        if self._rollouts is None:
            arguments = self.arguments
            self._rollouts = Rollouts(self.make_pipeline(), arguments.num_generations, arguments.rollout_steps)
        return self._rollouts

    def _levels(self, features: Tensor, generators: Sequence[torch.Generator], number: int) -> tuple[Tensor, Tensor]:
        """Noise levels `[N * number]` of the sampler, and noises, by the generators of the prompts."""
        scheduler, size = self.rollouts.pipe.scheduler, self.arguments.num_generations * number
        scheduler.set_timesteps(self.arguments.rollout_steps)
        levels = scheduler.sigmas[:-1]
        chosen = [levels[torch.randint(len(levels), (size,), generator=each)] for each in generators]
        noises = [torch.randn(size, *features.shape[1:], generator=each) for each in generators]
        return torch.cat(chosen).to(features.device), torch.cat(noises).to(features)

    def _losses(
        self, model: nn.Module, features: Tensor, condition: Tensor, noise: Tensor, sigma: Tensor, advantages: Tensor
    ) -> Tensor:
        whole, arguments = extract_model_from_parallel(model), self.arguments
        raw = whole.denormalize_features(features)

        def velocity(transformer: nn.Module) -> Tensor:
            with torch.no_grad(), drawing_with(self.rollouts.pipe, transformer):
                return self._velocity(whole, whole, raw, condition, noise, sigma)

        old = velocity(self.old)
        new = self._velocity(model, whole, raw, condition, noise, sigma)
        if arguments.loss_type == "nft":
            noisy = whole.objective.add_noise(features, noise, sigma)
            losses = nft_loss(
                new, old, noisy, features, sigma, advantages, arguments.mix_beta, arguments.adaptive_weight
            )
        else:
            losses = awm_loss(new, old, noise - features, sigma, advantages / arguments.advantage_clip)
        if self.reference is not None:
            distance = mean_square(new - velocity(self.reference))
            self.metrics[-1]["kl"] = distance.mean().item()
            losses = losses + arguments.beta * distance
        return losses

    def _velocity(
        self, model: nn.Module, whole: Any, raw: Tensor, condition: Tensor, noise: Tensor, sigma: Tensor
    ) -> Tensor:
        """By the forward of the model, through what an engine put around it; no condition is dropped."""
        with _evaluating(whole):
            return model(condition=condition, target_features=raw, noise=noise, sigma=sigma).prediction.float()

    def validate(self, model, dataset):
        """Rewards of prompts, each with the same noise at every call, drawn by the model itself."""
        totals: list[Tensor] = []
        for first, rows in enumerate(self.batches(dataset)):
            columns = collated(rows)
            prompts, size = columns.pop("prompt"), self.arguments.num_generations
            generators = [torch.Generator().manual_seed(1000 * first + index) for index in range(len(prompts))]
            rollout = self.rollouts(prompts, generators)
            repeated = {name: [value for value in values for _ in range(size)] for name, values in columns.items()}
            texts = [prompt for prompt in prompts for _ in range(size)]
            totals.append(self.rewards(texts, self.rollouts.pictures(rollout), repeated).total)
        reward = torch.cat(totals).nanmean().item()
        return {"reward": reward, "loss": -reward}

    def batches(self, dataset):
        size = self.arguments.per_device_eval_batch_size
        for start in range(0, len(dataset), size):
            yield [dataset[index] for index in range(start, min(start + size, len(dataset)))]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Within the block, the model itself, and not its parts, is not in training: it drops no conditions."""
    was_training, model.training = model.training, False
    try:
        yield
    finally:
        model.training = was_training


class OldPolicyCallback(TrainerCallback):
    """
    The policy that draws follows the one that learns; every checkpoint holds it.

    Args:
        trainer: whose task has both.
    """

    filename = "old_policy.safetensors"

    def __init__(self, trainer: "FlowNFTTrainer"):
        self.trainer = trainer

    @property
    def _transformer(self) -> nn.Module:
        transformer = self.trainer.unwrapped_model.transformer
        assert isinstance(transformer, nn.Module)  # `nn.Module` types all attributes as tensors, too
        return transformer

    def on_train_begin(self, args, state, control, **kwargs):
        """
        Raises:
            FileNotFoundError: when the checkpoint that is resumed from has none.
        """
        old = self.trainer.task.old
        if self.trainer.resumed_from is None:
            old.load_state_dict(self._transformer.state_dict())
            return
        path = Path(self.trainer.resumed_from) / self.filename
        if not path.is_file():
            raise FileNotFoundError(
                f"To go on, a checkpoint must hold the policy that draws. There is no {path}. Resume from one of this "
                f"trainer."
            )
        old.load_state_dict(load_file(path))

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        decay = min(args.old_policy_slope * state.global_step, args.old_policy_max)
        for kept, learned in zip(self.trainer.task.old.parameters(), self._transformer.parameters(), strict=True):
            kept.lerp_(learned.to(kept), 1 - decay)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            save_file(self.trainer.task.old.state_dict(), folder / self.filename)


class FlowNFTTrainer(Blip3oTrainer):
    """
    [`Blip3oTrainer`] that learns from rewards: DiffusionNFT (arXiv 2509.16117), or with `loss_type="awm"`
    advantage-weighted matching (arXiv 2509.25050). Sampling is without guidance, as both need.

    Each step draws a group of pictures for each prompt with an older policy, asks the rewards, and learns from all
    pictures at a few noise levels: to be more like those that are better than their group, and less like the others.

    Args:
        model: with a flow, or its name.
        reward_funcs: one or several, by TRL's protocol: `f(prompts, completions, **columns)`, pictures as PIL images.
        args ([`FlowNFTConfig`]): how.
        train_dataset: rows with a `prompt`, and columns that rewards read.
        eval_dataset: the same; `evaluate` gives its mean reward.
        kwargs: as of [`Blip3oTrainer`].

    Example:

    ```python
    >>> from blip3o_hf.preference.flow_nft import FlowNFTConfig, FlowNFTTrainer

    >>> def redness(prompts, completions, **columns):
    ...     return [image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in completions]

    >>> trainer = FlowNFTTrainer(
    ...     "blip3o-tiny", redness, FlowNFTConfig("runs/red"), train_dataset=[{"prompt": "a circle"}]
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    task: FlowNFTTask

    def __init__(
        self,
        model: nn.Module | str,
        reward_funcs: Reward | str | Sequence[Reward | str],
        args: FlowNFTConfig,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        **kwargs: Any,
    ):
        several = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        task = FlowNFTTask(RewardManager(several, args.reward_weights))
        task.make_pipeline = self.pipeline
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, task=task, **kwargs)

    def _add_own_callbacks(self) -> None:
        self.add_callback(OldPolicyCallback(self))  # before a checkpoint is marked as complete
        super()._add_own_callbacks()

    def log(self, logs, *args, **kwargs):
        """As in [`Blip3oTrainer`], with the means of rewards since the last log, of all processes, by TRL's names."""
        if "loss" in logs and self.task.metrics:
            found, self.task.metrics = self.task.metrics, []
            names = list(found[0])
            table = torch.tensor([[each[name] for name in names] for each in found], device=self.args.device)
            sums = torch.stack([table.nansum(dim=0), (~table.isnan()).sum(dim=0).float()])
            total, number = self.accelerator.reduce(sums, "sum")
            known = {name: (t / n).item() for name, t, n in zip(names, total, number, strict=True) if n}
            logs = {**logs, **known}
        super().log(logs, *args, **kwargs)


__all__ = ["FlowNFTConfig", "FlowNFTTask", "FlowNFTTrainer", "OldPolicyCallback"]
