"""Training arguments: those of transformers, and a few more for training a BLIP3-o."""

import os
from dataclasses import MISSING, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..checks import check_keys
from ..files import check_can_write

WITHOUT_EFFECT = {
    "label_smoothing_factor": "the tasks define the losses",
    "average_tokens_across_devices": "losses are always means over all processes",
    "label_names": "the tasks make the batches",
    "optim_target_modules": "`train` or a `peft_config` says which parts train",
    "use_liger_kernel": "Liger has no kernels for a BLIP3-o",
    "liger_kernel_config": "Liger has no kernels for a BLIP3-o",
    **dict.fromkeys(
        (
            "prediction_loss_only",
            "eval_accumulation_steps",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
        ),
        "the tasks evaluate, and they keep no predictions",
    ),
    "hub_revision": "a push goes to the main branch; `blip3o-hf push --revision` takes others",
    "hub_always_push": "only results are pushed, when `save_model` or `push_to_hub` is called",
}
"""Settings of `TrainingArguments` that this Trainer does not read, and why; any value but the default is refused."""
HUB_STRATEGIES = ("end", "every_save")
"""Both push the result alone: `every_save` is what transformers has by default."""
MODEL_OPTIMIZERS = ("galore", "apollo", "lomo", "schedule_free")
"""Optimizers that need more than groups of parameters: the model's layers, or calls of their own at every step."""
ADAMW = ("adamw_torch", "adamw_torch_fused")
PARTS = ("queries", "transformer", "backbone")
FROZEN_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Blip3oTrainingArguments(TrainingArguments):
    """
    [`TrainingArguments`] plus:

    Args:
        muon_learning_rate: learning rate of Muon for weight matrices; `None` trains everything with
            `optim`, which is AdamW by default.
        ema_decay: decay in (0, 1) of the exponential moving average of trainable weights; `None` keeps none. The
            average is what is evaluated and saved at the end.
        compile_transformer: compile the diffusion transformer with `torch.compile`.
        noise_draws: noise levels and noises drawn per image and step; the backbone and the target encoder run once
            for all of them.
        learning_rates: AdamW's learning rate of single parts, by the beginning of their parameters' names, such as
            `{"queries": 1e-3}`; `learning_rate` is for the others.
        spike_factor: updates whose gradient norm is not finite, or so many times the median of the last 100, are
            left out; `None` leaves out only those that are not finite, as DeepSpeed, which updates by itself, always
            does.
        max_skipped_steps: the run stops when so many updates in a row were left out.
        evaluation_steps: steps between two evaluations, beside those of `eval_strategy`; 0 for none.
        global_batch_size: records of a step over all processes and micro-batches. It sets nothing: a run that would
            have another is refused at its start.
        train: the parts of a BLIP3-o that train, of `queries`, `transformer` and `backbone` (its text stack without
            the output layer). By default those of the task: in `generation` queries and transformer, as in the paper.
        frozen_dtype: `float32` or `bfloat16`, of the parts that do not train.
        caption_weight: weight of a second loss of `generation`, by which every query learns to say all words of its
            caption; for a backbone that trains, too.
        max_length: longest prompt with its queries, or longest conversation, in tokens; by default the tokenizer's.
        max_input_pixels: images in prompts are scaled down to so many pixels.
        feature_cache: folder that `blip3o-hf precompute` wrote: target features come from there, and conditions where
            nothing of theirs trains.
    """

    muon_learning_rate: float | None = field(default=None)
    ema_decay: float | None = field(default=None)
    compile_transformer: bool = field(default=False)
    noise_draws: int = field(default=1)
    learning_rates: dict[str, float] | None = field(default=None)
    spike_factor: float | None = field(default=None)
    max_skipped_steps: int = field(default=10)
    evaluation_steps: int = field(default=0)
    global_batch_size: int | None = field(default=None)
    train: list[str] | None = field(default=None)
    frozen_dtype: str = field(default="float32")
    caption_weight: float = field(default=0.0)
    max_length: int | None = field(default=None)
    max_input_pixels: int | None = field(default=None)
    feature_cache: str | None = field(default=None)
    optim: str = field(default="adamw_torch")
    """Of transformers, for all that Muon does not train; `adamw_torch_fused` takes PyTorch's fused kernel."""
    remove_unused_columns: bool = field(default=False)
    """A collator of records needs all columns; `True` is refused."""

    def __post_init__(self):
        for name in ("output_dir", "feature_cache", "deepspeed", "fsdp_config", "resume_from_checkpoint"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, os.path.expanduser(getattr(self, name)))
        super().__post_init__()
        if self.ema_decay is not None and not 0.0 < self.ema_decay < 1.0:
            raise ValueError(
                f"`ema_decay` must be between 0 and 1. Got {self.ema_decay}. Typical values are 0.995 to 0.9999; "
                f"leave it out to keep no average."
            )
        if self.spike_factor is not None and not self.spike_factor > 1.0:
            raise ValueError(
                f"`spike_factor` must be above 1. Got {self.spike_factor}. Typical values are 5 to 20; leave it out "
                f"to take every finite step."
            )
        if not self.max_grad_norm or self.max_grad_norm <= 0:
            raise ValueError(
                f"`max_grad_norm` must be above 0, since every stage clips its gradients. Got {self.max_grad_norm}. "
                f"The paper's code uses 1.0."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "`remove_unused_columns` must be False: the columns of captions and images are no arguments of the "
                "model, and would be removed. Got True. Leave it out."
            )
        self._check_effects()
        check_keys([self.frozen_dtype], FROZEN_DTYPES, "`frozen_dtype`")
        check_keys(self.train or (), PARTS, "`train`")
        if self.noise_draws < 1:
            raise ValueError(f"`noise_draws` must be at least 1. Got {self.noise_draws}. Use 1 for the plain loss.")

    def _check_effects(self) -> None:
        """Raise a `ValueError` for a setting of transformers that would change nothing."""
        defaults = {
            f.name: f.default if f.default_factory is MISSING else f.default_factory()
            for f in fields(TrainingArguments)
            if f.name in WITHOUT_EFFECT
        }
        for name, reason in WITHOUT_EFFECT.items():
            if name in defaults and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"A setting must have an effect. `{name}` has none in this Trainer: {reason}. Got "
                    f"{getattr(self, name)!r}. Leave it out."
                )
        if self.hub_strategy not in HUB_STRATEGIES:
            assert isinstance(self.hub_strategy, Enum)  # transformers has made it one
            raise ValueError(
                f"Only results are pushed, and `hub_strategy` must be 'end' or 'every_save'. Got "
                f"{self.hub_strategy.value!r}. Checkpoints stay on this machine."
            )
        optimizer = str(self.optim.value if isinstance(self.optim, Enum) else self.optim)
        if any(name in optimizer for name in MODEL_OPTIMIZERS):
            raise ValueError(
                f"`optim` must be an optimizer that takes groups of parameters. Got {optimizer!r}, which needs more. "
                f"Use 'adamw_torch', 'adafactor', 'sgd' or an 8-bit one such as 'adamw_8bit'."
            )
        if self.muon_learning_rate is not None and optimizer not in ADAMW:
            raise ValueError(
                f"Muon trains matrices, and AdamW everything else. Got `muon_learning_rate` "
                f"{self.muon_learning_rate} and `optim` {optimizer!r}. Leave one of them out."
            )

    @classmethod
    def of(cls, arguments: TrainingArguments) -> "Blip3oTrainingArguments":
        """The same settings as arguments of this class; what it adds gets its defaults."""
        if isinstance(arguments, cls):
            return arguments
        given: dict[str, Any] = {f.name: getattr(arguments, f.name) for f in fields(arguments) if f.init}
        given["remove_unused_columns"] = False
        return cls(**given)

    @property
    def output_folder(self) -> Path:
        """`output_dir` as a path."""
        assert self.output_dir is not None  # transformers fills it in
        return Path(self.output_dir)

    def check_output_folder(self) -> None:
        """
        Raises:
            OSError: when this process is to write to `output_dir` and cannot.
        """
        if self.should_save:
            check_can_write(self.output_folder, "`output_dir`")

    def check_global_batch_size(self) -> None:
        """
        Raises:
            ValueError: when a step of these processes has another number of records than `global_batch_size`.
        """
        micro = self.train_batch_size * self.world_size
        found = micro * self.gradient_accumulation_steps
        if self.global_batch_size in (None, found):
            return
        accumulation, rest = divmod(self.global_batch_size, micro)
        advice = f"Set training.gradient_accumulation_steps={accumulation}"
        if rest:
            advice = "No number of micro-batches fits: choose training.per_device_train_batch_size so that one does"
        raise ValueError(
            f"A step must have `global_batch_size` records, {self.global_batch_size}. Got {self.train_batch_size} a "
            f"process x {self.world_size} processes x {self.gradient_accumulation_steps} micro-batches = {found}. "
            f"{advice}, or leave `global_batch_size` out."
        )
