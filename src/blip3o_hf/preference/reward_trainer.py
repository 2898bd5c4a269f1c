"""The Trainer that draws and asks rewards: its prompts, checkpoints, logs and safeguards."""

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback

from ..rewards.manager import Reward, RewardManager
from ..training.tasks.generation import GenerationTask
from ..training.trainer import Blip3oTrainer, seeded_generator
from .reward_config import FlowRewardConfig
from .reward_task import FlowRewardTask
from .safeguards import SAFEGUARDS

ORDERS = 3
"""Last of the numbers that seed the orders of prompts, so that nothing else is drawn from the same."""


class RepeatedPrompts(Sampler[int]):
    """
    Numbers of prompts in a new order each epoch, as many for each step as it takes, and the same ones for as many
    steps as learn from one drawing. The last step of an epoch is filled up with its first prompts.

    Args:
        num_prompts: of the dataset.
        step_size: prompts of a step, over all processes and micro-batches.
        num_repeats: steps that learn from them.
        seed: of the orders.
        is_shuffled: or the prompts stay in their order.
    """

    def __init__(self, num_prompts: int, step_size: int, num_repeats: int, seed: int, is_shuffled: bool = True):
        self.num_prompts, self.step_size, self.num_repeats = num_prompts, step_size, num_repeats
        self.seed, self.is_shuffled, self.epoch = seed, is_shuffled, 0

    def set_epoch(self, epoch: int) -> None:
        """As the Trainer calls it at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_prompts // self.step_size) * self.step_size * self.num_repeats

    def __iter__(self):
        generator = seeded_generator(self.seed, self.epoch, ORDERS)
        order = torch.randperm(self.num_prompts, generator=generator).tolist()
        order = order if self.is_shuffled else list(range(self.num_prompts))
        for start in range(0, self.num_prompts, self.step_size):
            block = [order[index % self.num_prompts] for index in range(start, start + self.step_size)]
            for _ in range(self.num_repeats):
                yield from block


class PolicyCallback(TrainerCallback):
    """
    The policy that draws follows the one that learns; every checkpoint holds it, and the pictures that later steps
    learn from again.

    Args:
        trainer: whose task has them.
    """

    policy_file = "old_policy.safetensors"

    def __init__(self, trainer: "FlowRewardTrainer"):
        self.trainer = trainer

    def _drawn_file(self, folder: Path, number: int) -> Path:
        return folder / f"drawn-{self.trainer.args.process_index}-{number}.safetensors"

    def on_train_begin(self, args, state, control, **kwargs):
        """
        Raises:
            FileNotFoundError: when the checkpoint that is resumed from lacks something.
            ValueError: when its pictures are of other batches.
        """
        task = self.trainer.task
        task.kept, task.metrics = [], []
        if self.trainer.resumed_from is None:
            return
        folder = Path(self.trainer.resumed_from)
        if task.has_old_policy:
            task.policies.load_old(load_file(_found(folder / self.policy_file, "the policy that draws")))
        if state.global_step % args.num_iterations:
            names = [self._drawn_file(folder, number) for number in range(args.gradient_accumulation_steps)]
            task.kept = [load_file(_found(name, "the pictures that it learns from")) for name in names]
            expected = args.per_device_train_batch_size * args.num_generations
            odd = [len(drawn["advantages"]) for drawn in task.kept if len(drawn["advantages"]) != expected]
            if odd:
                raise ValueError(
                    f"To go on, a checkpoint must hold pictures for every process. These settings need {expected} in "
                    f"a micro-batch, and {folder} has {odd[0]}. Resume with the settings that it was saved with."
                )

    def on_step_end(self, args, state, control, **kwargs):
        self.trainer.task.end_step(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        task, folder = self.trainer.task, Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.global_step % args.num_iterations:
            for number, drawn in enumerate(task.kept):
                save_file(
                    {name: value.contiguous() for name, value in drawn.items()}, self._drawn_file(folder, number)
                )
        if state.is_world_process_zero and task.has_old_policy:
            assert task.policies.old is not None  # it has one
            save_file(task.policies.old, folder / self.policy_file)

    def on_log(self, args, state, control, **kwargs):
        task = self.trainer.task
        if args.log_completions and state.is_world_process_zero and task.completions is not None:
            task.completions.write(self.trainer.samples_folder / "completions", state.global_step)
            task.completions = None


def _found(path: Path, what: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(
            f"To go on, a checkpoint must hold {what}. There is no {path}. Resume from one of this trainer, with as "
            f"many processes and micro-batches."
        )
    return path


class FlowRewardTrainer(Blip3oTrainer):
    """
    [`Blip3oTrainer`] that draws groups of pictures, asks rewards, and learns from their advantages.

    Args:
        model: with a flow, or its name.
        reward_funcs: one or several, by TRL's protocol: `f(prompts, completions, **columns)`, pictures as PIL images;
            or names of such functions, `module:function`.
        args: of the trainer's own class; by default in the folder `NAME-TASK`.
        train_dataset: rows with a `prompt`, and columns that rewards read.
        eval_dataset: the same; `evaluate` gives its mean reward.
        real_dataset: real pictures with captions, as [`Blip3oTrainer`] takes them; each evaluation also gives the
            loss of the flow on these, `eval_real_loss`.
        kwargs: as of [`Blip3oTrainer`]. With `peft_config`, adapters train.
    """

    task_class: type[FlowRewardTask] = FlowRewardTask
    task: FlowRewardTask
    args: Any

    def __init__(
        self,
        model: nn.Module | str,
        reward_funcs: Reward | str | Sequence[Reward | str] | None = None,
        args: FlowRewardConfig | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        real_dataset: Any = None,
        **kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else getattr(model, "name_or_path", "")
            args = self.task_class.config_class(f"{Path(name).name}-{self.task_class.name}")
        task = self.make_task(reward_funcs, args)
        task.make_pipeline = self.pipeline
        task.place = lambda: (self.step_so_far[0], self.step_so_far[1] - 1)
        task.gather = lambda rows: self.accelerator.gather(rows)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, task=task, **kwargs)
        if self.args.reward_patience is not None and (
            self.eval_dataset is None or isinstance(self.eval_dataset, dict)
        ):
            raise ValueError(
                f"`reward_patience` watches the reward of held-out prompts. There "
                f"{'is no' if self.eval_dataset is None else 'are several in'} `eval_dataset`. Pass one, or leave it "
                f"out."
            )
        self.add_real_data(real_dataset)

    def make_task(self, reward_funcs: Any, args: FlowRewardConfig) -> FlowRewardTask:
        """
        The task of these rewards.

        Raises:
            ValueError: when there is none, or two have one name.
        """
        several = list(reward_funcs) if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
        rewards = RewardManager([each for each in several if each is not None], getattr(args, "reward_weights", None))
        return self.task_class(rewards)

    def add_real_data(self, dataset: Any) -> None:
        """Evaluate the flow's loss on real pictures, too."""
        if dataset is None:
            if self.args.max_real_loss_growth is not None:
                raise ValueError(
                    "`max_real_loss_growth` watches the loss of real pictures. There is no `real_dataset`. Pass one, "
                    "or leave it out."
                )
            return
        records = GenerationTask.open(self.task, dataset, "real_dataset")
        self.target_encoder().model.to(self.args.device)

        def evaluate(trainer: Blip3oTrainer) -> dict[str, Any]:
            losses = GenerationTask.validate(self.task, trainer.unwrapped_model, records)
            return {"real_loss": losses["loss"]}

        self.evaluate_with(evaluate)

    def _add_own_callbacks(self) -> None:
        self.add_callback(PolicyCallback(self))  # before a checkpoint is marked as complete
        super()._add_own_callbacks()
        for name, kind in SAFEGUARDS.items():
            limit = getattr(self.args, name)
            if limit is not None:
                self.add_callback(kind(limit, self.samples_folder / "safeguards"))

    def _get_train_sampler(self, train_dataset=None):
        args = self.args
        step_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        assert isinstance(self.train_dataset, Sized)  # rows, which `open` has read
        is_shuffled = args.train_sampling_strategy != "sequential"
        return RepeatedPrompts(len(self.train_dataset), step_size, args.num_iterations, args.seed, is_shuffled)

    def log(self, logs, *args, **kwargs):
        """As in [`Blip3oTrainer`], with the means of rewards since the last log, of all processes, by TRL's names."""
        if "loss" in logs and self.task.metrics:
            found, self.task.metrics = self.task.metrics, []
            names = sorted(set().union(*found))
            rows = [[each.get(name, float("nan")) for name in names] for each in found]
            table = torch.tensor(rows, device=self.args.device)
            sums = torch.stack([table.nansum(dim=0), (~table.isnan()).sum(dim=0).float()])
            total, number = self.accelerator.reduce(sums, "sum")
            known = {name: (t / n).item() for name, t, n in zip(names, total, number, strict=True) if n}
            logs = {**logs, **known}
        super().log(logs, *args, **kwargs)


__all__ = ["FlowRewardTrainer", "PolicyCallback", "RepeatedPrompts"]
