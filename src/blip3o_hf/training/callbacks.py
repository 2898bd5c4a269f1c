"""What happens beside the steps of training: an average of the weights, checkpoints that are whole, and checks."""

import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback, is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..data.mixture import StreamingMixture
from ..files import expanded
from .checkpoints import keep_newest, mark_complete
from .distributed import forget_gathered, local_parts

if TYPE_CHECKING:
    from .trainer import Blip3oTrainer

logger = logging.get_logger(__name__)


class AverageCallback(TrainerCallback):
    """
    Keep an exponential moving average of the trainable weights, in fp32; it is saved with every checkpoint.

    Each process averages what it holds of the weights: all of them, or its partition under ZeRO-3 and FSDP2. After
    step n the decay is at most 1 - n^-0.75, so that the average soon forgets where it began.

    Args:
        trainer: whose model is averaged, from the beginning of training on.
        decay: of the average, in (0, 1).
    """

    def __init__(self, trainer: "Blip3oTrainer", decay: float):
        self.trainer = trainer
        self.decay = decay
        self.average: list[torch.Tensor] = []
        self.num_updates = 0

    def _weights(self) -> list[torch.Tensor]:
        return local_parts(parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad)

    @property
    def _is_partitioned(self) -> bool:
        return self.trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()

    def _file(self, checkpoint: str | Path) -> Path:
        """One for each process where each holds a partition."""
        args = self.trainer.args
        partition = f"-{args.process_index + 1}-of-{args.world_size}" if self._is_partitioned else ""
        return Path(checkpoint) / f"ema{partition}.safetensors"

    def on_train_begin(self, args, state, control, **kwargs):
        """
        Begin with the weights, or go on from the average in the checkpoint.

        Raises:
            FileNotFoundError: when the checkpoint was written without one, or by other processes.
        """
        if self.trainer.resumed_from is None:
            self.average = [weight.float().clone() for weight in self._weights()]
        else:
            self.load(self.trainer.resumed_from)

    def load(self, checkpoint: str | Path) -> None:
        """
        Go on from the average in a checkpoint.

        Raises:
            FileNotFoundError: when it was written without one, or by other processes.
        """
        path = self._file(checkpoint)
        if not path.is_file():
            raise FileNotFoundError(
                f"To resume with `ema_decay`, the checkpoint must hold the average of weights, written by as many "
                f"processes and the same engine. There is no {path}. Resume with the same engine and number of "
                f"processes, or without `ema_decay`."
            )
        with safe_open(path, "pt") as file:
            self.num_updates = int(file.metadata()["optimization_step"])
            self.average = [
                file.get_tensor(str(index)).to(weight.device) for index, weight in enumerate(self._weights())
            ]

    def on_step_end(self, args, state, control, **kwargs):
        self.num_updates += 1
        decay = min(self.decay, 1 - self.num_updates**-0.75)
        for average, weight in zip(self.average, self._weights(), strict=True):
            average.lerp_(weight.float(), 1 - decay)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero or self._is_partitioned:
            path = self._file(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            tensors = {str(index): tensor for index, tensor in enumerate(self.average)}
            save_file(tensors, path, {"optimization_step": str(self.num_updates)})

    @contextlib.contextmanager
    def applied(self):
        """Within the block, the model holds the averaged weights."""
        stored = [weight.clone() for weight in self._weights()]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(stored)

    def _write(self, values: list[torch.Tensor]) -> None:
        for weight, value in zip(self._weights(), values, strict=True):
            weight.copy_(value)
        forget_gathered(self.trainer.model)


class StreamCallback(TrainerCallback):
    """
    Every checkpoint holds the place of the stream of records, and a resumed run goes on from there.

    Args:
        trainer: whose `resumed_from` is the checkpoint to go on from.
        stream: what the Trainer reads.
    """

    filename = "stream.json"

    def __init__(self, trainer: "Blip3oTrainer", stream: StreamingMixture):
        self.trainer = trainer
        self.stream = stream

    def _stream_state(self, args, state) -> dict:
        batches = state.global_step * args.gradient_accumulation_steps
        return self.stream.state_dict(batches, args.train_batch_size, args.dataloader_num_workers)

    def on_train_begin(self, args, state, control, **kwargs):
        """
        Raises:
            FileNotFoundError: when the checkpoint was written without a stream.
            ValueError: when it was written with other batches, or in another order.
        """
        if self.trainer.resumed_from is None:
            return
        path = Path(self.trainer.resumed_from) / self.filename
        if not path.is_file():
            raise FileNotFoundError(
                f"To resume with `streaming: true`, the checkpoint must hold the place of the stream. There is no "
                f"{path}. Resume with the data settings that it was written with."
            )
        saved = json.loads(path.read_bytes())
        expected = self._stream_state(args, state)
        if saved["items"] != expected["items"]:
            raise ValueError(
                f"A stream must go on with the same batches as before. After {state.global_step} steps its workers "
                f"had given {saved['items']} items, and with these settings it would be {expected['items']}. Set "
                f"`per_device_train_batch_size`, `gradient_accumulation_steps` and `dataloader_num_workers` back."
            )
        self.stream.load_state_dict(saved)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / self.filename).write_text(json.dumps(self._stream_state(args, state)))


class CompleteCallback(TrainerCallback):
    """
    Marks a checkpoint as complete after every process wrote its part, and only then deletes older ones.

    Args:
        trainer: whose processes are waited for.
        number: of complete checkpoints to keep; `None` keeps all.
    """

    def __init__(self, trainer: "Blip3oTrainer", number: int | None):
        self.trainer = trainer
        self.number = number

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(folder)
            keep_newest(args.output_dir, self.number, state.best_model_checkpoint)


class TimeCallback(TrainerCallback):
    """
    Counts the wall and CPU time of a run, interruptions left out: every checkpoint holds what it took to get there.

    Args:
        trainer: whose `resumed_from` is the checkpoint to go on from.
    """

    filename = "time.json"

    def __init__(self, trainer: "Blip3oTrainer"):
        self.trainer = trainer
        self.before = {"wall_seconds": 0.0, "cpu_seconds": 0.0}
        self.began = (time.perf_counter(), time.process_time())

    @property
    def spent(self) -> dict[str, float]:
        """Seconds since the beginning of the run, those before an interruption included."""
        now = time.perf_counter(), time.process_time()
        return {name: before + now[i] - self.began[i] for i, (name, before) in enumerate(self.before.items())}

    def on_train_begin(self, args, state, control, **kwargs):
        path = Path(self.trainer.resumed_from or "", self.filename)
        if self.trainer.resumed_from is not None and path.is_file():
            self.before = json.loads(path.read_bytes())
        self.began = (time.perf_counter(), time.process_time())

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / self.filename).write_text(json.dumps(self.spent))


class BarNameCallback(TrainerCallback):
    """
    Puts the name of the stage, or of the task, on the progress bar of training.

    Args:
        trainer: whose bar it is, where it shows one.
    """

    def __init__(self, trainer: "Blip3oTrainer"):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        recipe = self.trainer.recipe
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.set_description(self.trainer.task.name if recipe is None else recipe.stage)


class SpikeCallback(TrainerCallback):
    """
    Leaves out updates with gradients that are not finite, or far larger than usual.

    DeepSpeed owns gradients and updates, and leaves out by itself those that are not finite; these are counted here.

    Args:
        trainer: whose `gradient_norm` is that of the coming update.
        factor: how many times the median of the last 100 norms is too large; `None` for no limit.
        max_skipped: stop after so many updates in a row were left out.
    """

    def __init__(self, trainer: "Blip3oTrainer", factor: float | None, max_skipped: int):
        self.trainer = trainer
        self.factor = factor
        self.max_skipped = max_skipped
        self.norms: deque[float] = deque(maxlen=100)
        self.skipped = 0
        self.in_a_row = 0

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        norm = self.trainer.gradient_norm
        if norm is None:
            return
        if self.trainer.is_deepspeed_enabled:
            is_left_out = self.trainer.accelerator.optimizer_step_was_skipped
        else:
            is_spike = self.factor is not None and len(self.norms) >= 10 and norm > self.factor * median(self.norms)
            is_left_out = is_spike or not math.isfinite(norm)
        if not is_left_out:
            self.norms.append(norm)
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        for parameter in self.trainer.model.parameters():
            parameter.grad = None
        logger.warning(f"Step {state.global_step + 1} is left out: its gradient norm is {norm}.")
        if self.in_a_row >= self.max_skipped:
            raise RuntimeError(
                f"Training needs finite gradients of a usual size. {self.in_a_row} updates in a row had none, the "
                f"last at step {state.global_step + 1} with a norm of {norm}. Lower the learning rate, check the "
                f"data, and resume from the last checkpoint."
            )


class HistoryCallback(TrainerCallback):
    """Hands the log history to a function whenever something was logged."""

    def __init__(self, show: Callable[[list[dict]], None]):
        self.show = show

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.show(state.log_history)


class EvaluationCallback(TrainerCallback):
    """
    Evaluates every `evaluation_steps` steps, on the averaged weights where there are any.

    Args:
        trainer: that has something to evaluate with.
    """

    def __init__(self, trainer: "Blip3oTrainer"):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if args.evaluation_steps and state.global_step % args.evaluation_steps == 0 and self.trainer.has_evaluation:
            should_log = control.should_log
            self.trainer.evaluate()
            control.should_log = should_log  # what it logs is not what the step is to log


class DrawPromptsCallback(TrainerCallback):
    """
    Draws prompts while the model trains, always from the same noise: as `samples-STEP.png` in the output folder, and
    in TensorBoard or Weights & Biases where the run reports to them.

    Args:
        trainer: whose model draws.
        prompts: what to draw.
        steps: how often; by default whenever a checkpoint is written. The end of training is always drawn.
        folder: where to; by default `output_dir`.

    Example:

    ```python
    >>> trainer.add_callback(DrawPromptsCallback(trainer, ["a red kite", "two red kites"]))  # doctest: +SKIP

    ```
    """

    def __init__(
        self,
        trainer: "Blip3oTrainer",
        prompts: Sequence[str],
        steps: int | None = None,
        folder: str | os.PathLike | None = None,
    ):
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"`prompts` must be a list of at least one prompt. Got {prompts!r}. Put it in brackets.")
        self.trainer = trainer
        self.prompts = list(prompts)
        self.steps = steps
        self.folder = expanded(trainer.args.output_folder if folder is None else folder)
        self.last = -1

    def _draw(self, step: int) -> None:
        if step != self.last:
            self.last = step
            self.trainer.draw(self.prompts, self.folder)

    def on_step_end(self, args, state, control, **kwargs):
        if self.steps and state.global_step % self.steps == 0:
            self._draw(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if self.steps is None:
            self._draw(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(state.global_step)


def track_picture(trainer: Trainer, name: str, picture: Image.Image) -> None:
    """Hand a picture to TensorBoard and to Weights & Biases, where the run of a Trainer reports to them."""
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
            callback.tb_writer.flush()
        elif isinstance(callback, WandbCallback):
            import wandb

            wandb.log({name: wandb.Image(picture), "train/global_step": step})
