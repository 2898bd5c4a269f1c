"""The Trainer: transformers' own, with the stage's loss, Muon where asked for, and an average of the weights."""

import contextlib
import json
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, set_seed
from transformers.integrations import TensorBoardCallback, WandbCallback, is_deepspeed_zero3_enabled
from transformers.utils import logging

from ..data.mixture import StreamingMixture
from ..files import delete_partial
from ..hub.cards import CARD, Origin, write_card
from .checkpoints import delete_incomplete, keep_newest, last_complete_checkpoint, mark_complete
from .distributed import check_engine, forget_gathered, join_processes, local_parts, match_partitioned, whole_model
from .optimizers import build_optimizer
from .origin import origin_of
from .stages import Stage

logger = logging.get_logger(__name__)

Evaluator = Callable[[torch.nn.Module, int], dict[str, float | Image.Image]]
"""Called with a model and the number of steps it has trained; returns what to log."""


def trainable_summary(model: torch.nn.Module) -> str:
    """A line for each part: its parameters, and how many of them train."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = counts.setdefault(name.partition(".")[0], [0, 0])
        size = getattr(parameter, "ds_numel", parameter.numel())  # of a parameter that ZeRO-3 partitioned
        part[0] += size
        part[1] += size if parameter.requires_grad else 0
    lines = [f"{part}: {total:,} parameters, {trained:,} train" for part, (total, trained) in counts.items()]
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    return "\n".join([*lines, f"all: {totals[0]:,} parameters, {totals[1]:,} train"])


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator whose draws are independent of those of all other numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


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
        place = f"-{args.process_index + 1}-of-{args.world_size}" if self._is_partitioned else ""
        return Path(checkpoint) / f"ema{place}.safetensors"

    def on_train_begin(self, args, state, control, **kwargs):
        """
        Begin with the weights, or go on from the average in the checkpoint.

        Raises:
            FileNotFoundError: when the checkpoint was written without one, or by other processes.
        """
        weights = self._weights()
        if self.trainer.resumed_from is None:
            self.average = [weight.float().clone() for weight in weights]
            return
        path = self._file(self.trainer.resumed_from)
        if not path.is_file():
            raise FileNotFoundError(
                f"To resume with `ema_decay`, the checkpoint must hold the average of weights, written by as many "
                f"processes and the same engine. There is no {path}. Resume as the checkpoint was written, or without "
                f"`ema_decay`."
            )
        with safe_open(path, "pt") as file:
            self.num_updates = int(file.metadata()["optimization_step"])
            self.average = [file.get_tensor(str(index)).to(weight.device) for index, weight in enumerate(weights)]

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

    def _place(self, args, state) -> dict:
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
        saved = json.loads(path.read_text())
        expected = self._place(args, state)
        if saved["items"] != expected["items"]:
            raise ValueError(
                f"A stream goes on with the batches it had. After {state.global_step} steps its workers had given "
                f"{saved['items']} items, and with these settings it were {expected['items']}. Set "
                f"`per_device_train_batch_size`, `gradient_accumulation_steps` and `dataloader_num_workers` back."
            )
        self.stream.load_state_dict(saved)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / self.filename).write_text(json.dumps(self._place(args, state)))


class CompleteCallback(TrainerCallback):
    """
    Adds the processor to a checkpoint, marks it as complete after every process wrote its part, and only then deletes
    older ones.

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
            if self.trainer.stage.processor is not None:
                self.trainer.stage.processor.save_pretrained(folder)
            mark_complete(folder)
            keep_newest(args.output_dir, self.number)


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
            self.before = json.loads(path.read_text())
        self.began = (time.perf_counter(), time.process_time())

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (folder / self.filename).write_text(json.dumps(self.spent))


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
    """Run the stage's own evaluation every `evaluation_steps` steps, on the averaged weights where there are any."""

    def __init__(self, trainer: "Blip3oTrainer", evaluate: Evaluator):
        self.trainer = trainer
        self.evaluate = evaluate

    def on_step_end(self, args, state, control, **kwargs):
        if args.evaluation_steps and state.global_step % args.evaluation_steps == 0:
            self.trainer.run_evaluation(self.evaluate)


class Blip3oTrainer(Trainer):
    """
    [`Trainer`] for any stage of a BLIP3-o.

    Args:
        stage ([`~training.stages.Stage`]): what is built, trained and saved.
        kwargs: further arguments of [`Trainer`].
    """

    def __init__(self, stage: Stage, **kwargs):
        self.stage = stage
        stage.arguments.check_global_batch_size()
        join_processes(stage.arguments)
        set_seed(stage.arguments.seed)
        model = stage.build()
        match_partitioned(model, stage.arguments.device)
        super().__init__(
            model=model,
            args=stage.arguments,
            train_dataset=stage.dataset(),
            data_collator=stage.collate,
            **kwargs,
        )
        check_engine(self.args, self.accelerator.distributed_type)
        self.model_accepts_loss_kwargs = False
        for part in stage.frozen_parts:
            part.to(self.args.device)
        self.resumed_from: str | Path | None = None
        self.average: AverageCallback | None = None
        if self.args.ema_decay is not None:
            self.average = AverageCallback(self, self.args.ema_decay)
            self.add_callback(self.average)
        if isinstance(self.train_dataset, StreamingMixture):
            self.args.ignore_data_skip = True  # the stream itself goes on where it was
            self.add_callback(StreamCallback(self, self.train_dataset))
        self.clock_of_run = TimeCallback(self)
        self.add_callback(self.clock_of_run)
        number, self.args.save_total_limit = self.args.save_total_limit, None  # deleted by the callback, in safe order
        self.add_callback(CompleteCallback(self, number))
        self.add_callback(SpikeCallback(self, self.args.spike_factor, self.args.max_skipped_steps))
        self.clock: tuple[float, int] | None = None
        self.gradient_norm: float | None = None
        self.step_so_far = (-1, 0)  # step, and its batches that this process has seen
        self.what_trains = trainable_summary(model)
        logger.info(f"What trains:\n{self.what_trains}")
        if self.args.compile_transformer:
            model.transformer.compile()

    def evaluate_with(self, evaluate: Evaluator) -> None:
        """
        Call `evaluate` with the model and the step every `evaluation_steps` steps, and log what it returns.

        A callable, because sampling needs a pipeline and training knows none.
        """
        self.add_callback(EvaluationCallback(self, evaluate))

    def on_log_history(self, show: Callable[[list[dict]], None]) -> None:
        """Call `show` with the log history whenever something was logged."""
        self.add_callback(HistoryCallback(show))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Through `from_pretrained`, which knows every layout that `save_pretrained` writes."""
        if isinstance(self.model, PreTrainedModel) and not self.is_fsdp_enabled:
            saved = type(self.model).from_pretrained(resume_from_checkpoint, dtype=self.model.dtype)
            self.model.load_state_dict(saved.state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, None if state_dict is None else self._untied(state_dict))

    def _untied(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tied weights once: DeepSpeed gathers copies, in which `save_pretrained` cannot see that they are tied."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        return {name: value for name, value in weights.items() if name not in tied}

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.args)
        return self.optimizer

    def get_train_dataloader(self):
        """
        As in transformers. A stream divides itself among processes, so it is not prepared to be divided; and it draws
        the seeds of its workers by itself, since a resumed run must not find other random numbers for that.
        """
        if not isinstance(self.train_dataset, StreamingMixture):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
            generator=seeded_generator(self.args.seed),
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        As in transformers; `True` resumes from the newest complete checkpoint. What interrupted runs left of
        checkpoints and other files is deleted first.
        """
        if isinstance(resume_from_checkpoint, bool):
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir) if resume_from_checkpoint else None
        self.resumed_from = resume_from_checkpoint
        if self.is_world_process_zero():
            delete_partial(self.stage.recipe.output_dir)
            delete_incomplete(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _run_epoch(self, *args, **kwargs):
        """Not after the last step: from a checkpoint of it, transformers would take one more."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.gradient_norm = None if norm is None else float(norm)
        return norm

    def log(self, logs, *args, **kwargs):
        """As in transformers, with the examples per second since the last log."""
        if "loss" in logs and self.clock is not None:
            now = time.perf_counter(), self.state.global_step
            num_examples = (now[1] - self.clock[1]) * self.args.train_batch_size * self.args.world_size
            num_examples *= self.args.gradient_accumulation_steps
            logs = {**logs, "examples_per_second": round(num_examples / (now[0] - self.clock[0]), 2)}
            self.clock = now
        super().log(logs, *args, **kwargs)

    def _example_generators(self) -> list[torch.Generator]:
        """
        A generator for each example of the coming batch, by its place in the step.

        What is drawn for an example does then not depend on how many processes and micro-batches the step is spread
        over: any of them gives the losses of one process.
        """
        step, batches = (
            self.step_so_far if self.step_so_far[0] == self.state.global_step else (self.state.global_step, 0)
        )
        self.step_so_far = step, batches + 1
        size = self.args.per_device_train_batch_size
        first = (batches * self.args.world_size + self.args.process_index) * size
        return [seeded_generator(self.args.seed, step, first + index) for index in range(size)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.stage.loss(model, dict(inputs), self._example_generators())
        return (loss, None) if return_outputs else loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.clock is None:
            self.clock = time.perf_counter(), self.state.global_step
        with self._attention():
            return super().training_step(model, inputs, num_items_in_batch)

    def _attention(self):
        """On a CPU, plain matrix products: the backward of the fused kernel is several times slower there."""
        return sdpa_kernel(SDPBackend.MATH) if self.args.device.type == "cpu" else contextlib.nullcontext()

    def averaged(self):
        """Context in which the model holds the averaged weights, where an average is kept."""
        is_kept = self.average is not None and self.average.num_updates > 0
        return self.average.applied() if is_kept else contextlib.nullcontext()

    def run_evaluation(self, evaluate: Evaluator) -> None:
        """Evaluate the (averaged) model and log what comes back: numbers under `eval_`, pictures where trackers show
        them."""
        was_training = self.model.training
        self.model.eval()
        eager = torch.compiler.set_stance("force_eager")
        with self.averaged(), whole_model(self.model, self.accelerator), torch.no_grad(), eager:
            metrics = {**self.stage.validate(self.model), **evaluate(self.model, self.state.global_step)}
        self.model.train(was_training)
        pictures = {name: value for name, value in metrics.items() if isinstance(value, Image.Image)}
        self.log({f"eval_{name}": value for name, value in metrics.items() if name not in pictures})
        if self.is_world_process_zero():
            for name, picture in pictures.items():
                self._track_picture(f"eval/{name}", picture)

    def _track_picture(self, name: str, picture: Image.Image) -> None:
        """Hand a picture to TensorBoard and to Weights & Biases, where the run reports to them."""
        step = self.state.global_step
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.tb_writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
                callback.tb_writer.flush()
            elif isinstance(callback, WandbCallback):
                import wandb

                wandb.log({name: wandb.Image(picture), "train/global_step": step})

    @property
    def origin(self) -> Origin:
        """What the card of the result says of how it came to be."""
        return origin_of(self.stage, self.state.global_step, self.what_trains)

    def save_result(self) -> Path:
        """
        Write the trained part and its card to the recipe's `output_dir`, by one process for all, and return that
        folder. A card that a person wrote there is kept.
        """
        folder = Path(self.stage.recipe.output_dir)
        with self.averaged():
            weights = self.accelerator.get_state_dict(self.model_wrapped)
            if self.is_world_process_zero():
                folder.mkdir(parents=True, exist_ok=True)
                card = folder / CARD
                before = card.read_bytes() if card.exists() else None
                self.stage.save(self.accelerator.unwrap_model(self.model), folder, self._untied(weights))
                if before is not None:  # PEFT changes a card that is there, and else leaves one of its own
                    card.write_bytes(before)
                write_card(folder, self.origin, replace=before is None)
        self.accelerator.wait_for_everyone()
        return folder
