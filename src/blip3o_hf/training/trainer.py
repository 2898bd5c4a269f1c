"""The Trainer: transformers' own, with the tasks of a BLIP3-o, Muon where asked for, and an average of the weights."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..assets import resolve_model
from ..data.mixture import StreamingMixture
from ..files import delete_partial, expanded
from ..hub.cards import CARD, Origin, update_card, write_card
from ..hub.push import push_saved
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..models.target_encoder import TargetEncoder
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from .arguments import FROZEN_DTYPES, Blip3oTrainingArguments
from .callbacks import (
    AverageCallback,
    BarNameCallback,
    CompleteCallback,
    EvaluationCallback,
    HistoryCallback,
    SpikeCallback,
    StreamCallback,
    TimeCallback,
    track_picture,
)
from .checkpoints import delete_incomplete, last_complete_checkpoint
from .distributed import check_engine, join_processes, match_partitioned, trainable_summary, whole_model, whole_weights
from .inputs import (
    EncoderInput,
    check_cached_targets,
    check_has_batches,
    check_hooks,
    load_encoder,
    open_evaluation,
    open_training,
    processor_of,
    warn_of_overlap,
)
from .optimizers import build_optimizer
from .origin import origin_of
from .recipes import Recipe
from .results import DRAWN_AT_ONCE, assemble_pipeline, draw_prompts, save_samples, write_part, write_repository
from .step_shares import SHARES, shares_of_step
from .tasks import Task, build_task
from .training_data import TrainingData

logger = logging.get_logger(__name__)

Evaluator = Callable[["Blip3oTrainer"], dict[str, float | Image.Image]]
"""Called with the Trainer, whose model is whole and averaged then; returns what to log."""


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator whose draws are independent of those of all other numbers."""
    (seed,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed))


class Blip3oTrainer(Trainer):
    """
    [`Trainer`] for BLIP3-o, called like the trainers of transformers and TRL.

    Args:
        model: to train, or the name, folder or Hub id to load it from.
        args ([`Blip3oTrainingArguments`] or `TrainingArguments`, *optional*): what trains, and how. By default in the
            folder `NAME-TASK`.
        train_dataset: of `datasets`, with `image` and `caption` (or `text`), or the other columns of docs/data.md; or
            the folder, file or Hub name of a source; or a recipe's section `data`; or any PyTorch dataset of such rows
            or of [`~data.records.Record`].
        eval_dataset: the same, of held-out data, or a dictionary of several. `evaluate` gives its losses.
        processing_class ([`Blip3oProcessor`], *optional*): of the model; by default that of its repository.
        target_encoder (*optional*): a folder or Hub id, a vision tower, or a
            [`~models.target_encoder.TargetEncoder`]; by default that of the model's repository. Not needed with
            `args.feature_cache`.
        decoder (*optional*): folder of a decoder, or one, for a model whose repository has none. It draws, and is
            saved with the model.
        data_collator (*optional*): makes batches of what the dataset gives; by default the task does.
        peft_config (*optional*): of PEFT, such as [`~models.adapters.lora_config`] makes. The model stays as it is,
            and adapters train.
        task: `"generation"`, `"joint"`, `"understanding"` or `"decoder"`, or an object of `training.tasks`.
        pipeline_settings: of the pipeline that is saved, such as `{"default_guidance_scale": 2.0}`. The model learns
            to draw what prompts say: unless these settings say otherwise, its pipeline writes no plan and draws once.
        callbacks, optimizers, kwargs: as in transformers.

    Raises:
        TypeError, ValueError: when parts do not belong together, nothing would train, or a dataset has no captions.

    Example:

    ```python
    >>> from datasets import load_dataset
    >>> from blip3o_hf import Blip3oTrainer

    >>> dataset = load_dataset("imagefolder", data_dir="photos", split="train")  # doctest: +SKIP
    >>> trainer = Blip3oTrainer("blip3o-tiny", train_dataset=dataset)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    args: Blip3oTrainingArguments
    model: torch.nn.Module
    processing_class: Blip3oProcessor | None

    def __init__(
        self,
        model: torch.nn.Module | str | os.PathLike,
        args: TrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Blip3oProcessor | None = None,
        target_encoder: EncoderInput = None,
        decoder: str | os.PathLike | torch.nn.Module | None = None,
        data_collator: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
        peft_config: PeftConfig | None = None,
        task: str | Task = "generation",
        pipeline_settings: dict[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        **kwargs,
    ):
        check_hooks(kwargs)
        self.task = task = build_task(task)
        name = os.fspath(model) if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", "")
        args = Blip3oTrainingArguments.of(args or Blip3oTrainingArguments(f"{Path(name).name}-{task.name}"))
        args.check_output_folder()
        args.check_global_batch_size()
        join_processes(args)
        set_seed(args.seed)
        self.source: str | None = None
        if isinstance(model, str | os.PathLike):
            self.source = resolve_model(name)
            model, loaded_processor = task.load(self.source, args)
            processing_class = loaded_processor if processing_class is None else processing_class
        elif processing_class is None and task.reads_prompts:
            processing_class = processor_of(model)
        self.source = getattr(model, "name_or_path", "") if self.source is None else self.source
        self.encoder_arguments = (target_encoder, self.source, task.feature_size(model, self.source), args)
        encoder = load_encoder(*self.encoder_arguments) if task.needs_encoder(args) else None
        if encoder is None and args.feature_cache is not None and task.takes_targets:
            check_cached_targets(*self.encoder_arguments)
        self.decoder, self.given_dataset = decoder, train_dataset
        self.pipeline_settings = {**DRAWN_AT_ONCE, **(pipeline_settings or {})}
        model = task.setup(model, processing_class, encoder, args, peft_config)
        match_partitioned(model, args.device)
        super().__init__(
            model=model,
            args=args,
            train_dataset=open_training(task, train_dataset, data_collator),
            eval_dataset=open_evaluation(task, eval_dataset),
            data_collator=task if data_collator is None else data_collator,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        check_engine(self.args, self.accelerator.distributed_type)
        self.model_accepts_loss_kwargs = False  # losses are means over the step by their shares, whatever the model
        for part in task.frozen_parts:
            part.to(self.args.device)
        self.recipe: Recipe | None = None
        self.data: TrainingData | None = None  # of the recipe
        self.evaluators: list[Evaluator] = []
        self.resumed_from: str | Path | None = None
        self.written: Path | None = None  # the last repository of this run
        self._pipeline: Blip3oPipeline | None = None
        self._writes_result = False
        self._add_own_callbacks()
        self.clock: tuple[float, int] | None = None
        self.gradient_norm: float | None = None
        self.step_so_far = (-1, 0)  # step, and its batches that this process has seen
        self.what_trains = trainable_summary(model)
        logger.info(f"What trains:\n{self.what_trains}")
        if self.args.compile_transformer:
            transformer = self.unwrapped_model.transformer
            assert isinstance(transformer, torch.nn.Module)  # `nn.Module` types all attributes as tensors, too
            transformer.compile()

    def _add_own_callbacks(self) -> None:
        self.average: AverageCallback | None = None
        if self.args.ema_decay is not None:
            self.average = AverageCallback(self, self.args.ema_decay)
            self.add_callback(self.average)
        if isinstance(self.train_dataset, StreamingMixture):
            self.args.ignore_data_skip = True  # the stream itself goes on where it was
            self.add_callback(StreamCallback(self, self.train_dataset))
        self.add_callback(BarNameCallback(self))
        self.clock_of_run = TimeCallback(self)
        self.add_callback(self.clock_of_run)
        number, self.args.save_total_limit = self.args.save_total_limit, None  # deleted by the callback, in safe order
        self.add_callback(CompleteCallback(self, number))
        self.add_callback(SpikeCallback(self, self.args.spike_factor, self.args.max_skipped_steps))
        self.add_callback(EvaluationCallback(self))

    # What the model is a part of

    @property
    def unwrapped_model(self) -> torch.nn.Module:
        """The model, without what an engine put around it; with PEFT's layers where it has any."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def writes_repository(self) -> bool:
        """Whether what is saved is a whole repository that draws."""
        return self.task.draws and not isinstance(self.unwrapped_model, PeftModel)

    @property
    def samples_folder(self) -> Path:
        """Where pictures of the run are written."""
        return self.args.output_folder if self.recipe is None else Path(self.recipe.output_dir)

    def pipeline(self) -> Blip3oPipeline:
        """The pipeline around the model as it is, with the decoder and settings of its repository or those given."""
        if not self.task.draws:
            raise ValueError(
                f"Only a BLIP3-o can draw. The task {self.task.name!r} trains another kind of model. Train with "
                f"'generation' or 'joint'."
            )
        if self._pipeline is None:
            model, dtype = self.unwrapped_model, FROZEN_DTYPES[self.args.frozen_dtype]
            assert isinstance(model, Blip3oForConditionalGeneration | PeftModel)  # see `Task.draws`
            assert self.processing_class is not None  # what draws reads prompts
            with whole_weights(self.args), torch.random.fork_rng():
                self._pipeline = assemble_pipeline(
                    model, self.processing_class, self.decoder, self.pipeline_settings, dtype
                )
            for name, part in self._pipeline.components.items():
                if isinstance(part, torch.nn.Module) and name != "model":
                    part.to(self.args.device)
        return self._pipeline

    def target_encoder(self) -> TargetEncoder:
        """The target encoder, also where a cache took its place in training."""
        if self.task.target_encoder is None:
            self.task.target_encoder = load_encoder(*self.encoder_arguments)
        return self.task.target_encoder

    # Evaluation

    def evaluate_with(self, evaluate: Evaluator) -> None:
        """Call `evaluate` at every evaluation, and log what it returns; a picture `samples` is written, too."""
        self.evaluators.append(evaluate)

    @property
    def has_evaluation(self) -> bool:
        """Whether there is something to evaluate with."""
        return bool(self.evaluators) or self.eval_dataset is not None

    @contextlib.contextmanager
    def evaluating(self):
        """Within the block, the model is whole, averaged where an average is kept, and in evaluation mode."""
        was_training = self.model.training
        self.model.eval()
        eager = torch.compiler.set_stance("force_eager")
        with self.averaged(), whole_model(self.model, self.accelerator), torch.no_grad(), eager:
            yield self.unwrapped_model
        self.model.train(was_training)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Losses of held-out records, always on the same noise, and what the functions of `evaluate_with` return.
        Pictures among it go to the trackers.

        Args:
            eval_dataset: by default that of the Trainer; several in a dictionary are told apart by their names.
            ignore_keys: without effect.
            metric_key_prefix: before the names.

        Raises:
            ValueError: when there is neither a dataset nor a function.
        """
        datasets = self.eval_dataset if eval_dataset is None else open_evaluation(self.task, eval_dataset)
        if datasets is None and not self.evaluators:
            raise ValueError("An evaluation needs held-out data. There is none. Pass `eval_dataset`.")
        named = datasets if isinstance(datasets, dict) else {"": datasets}
        values: dict[str, float | Image.Image] = {}
        with self.evaluating() as model:
            for name, dataset in named.items():
                losses = {} if dataset is None else self.task.validate(model, dataset)
                values |= {f"{name}_{key}" if name else key: value for key, value in losses.items()}
            for evaluate in self.evaluators if eval_dataset is None else ():
                values |= evaluate(self)
        pictures = {name: value for name, value in values.items() if isinstance(value, Image.Image)}
        metrics = {
            f"{metric_key_prefix}_{name}": value
            for name, value in values.items()
            if not isinstance(value, Image.Image)
        }
        self.log(metrics)
        if self.is_world_process_zero():
            for name, picture in pictures.items():
                track_picture(self, f"{metric_key_prefix}/{name}", picture)
                if name == "samples":
                    save_samples(picture, self.samples_folder, self.state.global_step)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def draw(self, prompts: Sequence[str], folder: str | os.PathLike | None = None) -> Image.Image:
        """
        Draw prompts with the model as it is, on the same noise every time: a sheet, written as `samples-STEP.png`, and
        sent to the trackers.

        Args:
            prompts: one picture each.
            folder: where to; by default the run's.
        """
        with self.evaluating():
            sheet = self.sheet(prompts)
        if self.is_world_process_zero():
            save_samples(sheet, folder or self.samples_folder, self.state.global_step)
            track_picture(self, "samples", sheet)
        return sheet

    def sheet(self, prompts: Sequence[str]) -> Image.Image:
        """A sheet of what prompts give, on the same noise every time."""
        return draw_prompts(self.pipeline(), prompts)

    # What is saved

    @property
    def origin(self) -> Origin:
        """What the card of the result says of how it came to be."""
        return origin_of(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Write the result: a whole repository with pipeline, target encoder, card and samples; of other tasks, and of
        adapters, the part that trained with its card. With `ema_decay`, the averaged weights.

        Args:
            output_dir: by default that of the arguments.
        """
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        self._write_result(output_dir)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save")

    def _write_result(self, folder: str | None) -> None:
        self._writes_result = True
        try:
            with self.averaged():
                super().save_model(folder, _internal_call=True)
        finally:
            self._writes_result = False

    def _save(self, output_dir=None, state_dict=None):
        """A checkpoint of what is not the result itself, such as a model with heads for training alone, is plain."""
        weights = None if state_dict is None else self._untied(state_dict)
        folder = expanded(self.args.output_folder if output_dir is None else output_dir)
        is_adapter = isinstance(self.unwrapped_model, PeftModel)
        if not (self._writes_result or self.writes_repository or is_adapter):
            super()._save(output_dir, weights)
        elif self.args.should_save:
            if self.writes_repository:
                write_repository(self, folder, weights, self._earlier_repository())
                self.written = folder
            else:
                write_part(self, folder, weights, self._writes_result)

    def _earlier_repository(self) -> Path | None:
        for folder in (self.written, self.resumed_from and Path(self.resumed_from)):
            if folder is not None and Path(folder, "model_index.json").is_file():
                return Path(folder)
        return None

    def save_result(self) -> Path:
        """
        Write what a recipe's run leaves in its `output_dir`, by one process for all, and return that folder: the part
        that trained, and in `pipeline/` the whole repository where it draws.
        """
        folder = self.samples_folder
        with self.averaged():
            weights = self.accelerator.get_state_dict(self.model_wrapped)  # of the first process alone under ZeRO-3
            if self.is_world_process_zero():
                weights = self._untied(weights)
                write_part(self, folder, weights)
                if self.writes_repository:
                    write_repository(self, folder / "pipeline", weights, self._earlier_repository())
        self.accelerator.wait_for_everyone()
        return folder

    def create_model_card(  # ty: ignore[incompatible-method-override]  # this card says tasks and data by itself
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset_tags: str | list[str] | None = None,
        folder: str | os.PathLike | None = None,
    ) -> None:
        """
        Write the card of what `save_model` wrote; the text of a card that a person wrote is kept.

        Args:
            language, license, tags, finetuned_from, dataset_tags: for its front matter.
            model_name: of the repository.
            folder: that was written to; by default `output_dir`.

        Raises:
            FileNotFoundError: when nothing was saved there.
        """
        if not self.is_world_process_zero():
            return
        folder = self.args.output_folder if folder is None else Path(folder)
        picture = "samples.png" if (folder / "samples.png").is_file() else None
        card = write_card(folder, self.origin, name=model_name, picture=picture)
        fields: dict[str, Any] = {
            "language": language,
            "license": license,
            "base_model": finetuned_from,
            "datasets": dataset_tags,
        }
        if tags is not None:
            fields["tags"] = [tags] if isinstance(tags, str) else list(tags)
        update_card(card, **fields)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """The repository is made by the first push, after all checks."""
        self.hub_model_id = self.args.hub_model_id or self.args.output_folder.absolute().name

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Only results are pushed: a half-trained model has no card that says that it is half trained."""

    def push_to_hub(  # ty: ignore[incompatible-method-override]  # the url, as the one who called it wants it
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> str | None:
        """
        Save the result and push it, under the checks of `blip3o-hf push`.

        Args:
            commit_message, token, private: as in transformers.
            blocking: a push in the background is not offered.
            revision: only the main branch is pushed to; see `blip3o-hf push --revision`.
            kwargs: for the card, as in `create_model_card`: above all `license`.

        Returns:
            `str`: the url of the commit; `None` in other processes than the first.

        Raises:
            ValueError: when no licence is stated, or the folder must not be shared. Nothing is sent.
            PushError: when the Hub did not take it.
        """
        if not blocking or revision is not None:
            raise ValueError(
                "A push is checked first, and goes to the main branch. Got blocking=False or a `revision`. Save the "
                "model, and run `blip3o-hf push FOLDER NAME --revision BRANCH`."
            )
        if self.hub_model_id is None:
            self.init_hf_repo()
        assert self.hub_model_id is not None  # `init_hf_repo` has set it
        card = self.args.output_folder / CARD
        card.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=card.parent, prefix=".push-") as temporary:
            folder = Path(temporary, self.hub_model_id.rpartition("/")[2])
            folder.mkdir()
            if card.is_file():
                shutil.copyfile(card, folder / CARD)
            self._write_result(str(folder))
            if not self.is_world_process_zero():
                return None
            self.create_model_card(folder=folder, **kwargs)
            if "/" in self.hub_model_id:
                update_card(folder / CARD, name=self.hub_model_id)
            return push_saved(
                folder,
                self.hub_model_id,
                private=self.args.hub_private_repo if private is None else private,
                commit_message=commit_message,
                token=token or self.args.hub_token,
            )

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

    def _load_best_model(self) -> None:
        """As a checkpoint is resumed from, and with its average of the weights, which is what was evaluated."""
        best = self.state.best_model_checkpoint
        assert best is not None  # else transformers does not call this
        is_whole = isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if is_whole:
            self._load_from_checkpoint(best)
        else:
            super()._load_best_model()
        if self.average is not None:
            self.average.load(best)

    def _untied(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tied weights once: DeepSpeed gathers copies, in which `save_pretrained` cannot see that they are tied."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        return {name: value for name, value in weights.items() if name not in tied}

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.model, self.args, self.optimizer_cls_and_kwargs)
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
            persistent_workers=self.args.dataloader_persistent_workers,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            in_order=self.args.dataloader_in_order,
            drop_last=self.args.dataloader_drop_last,
            pin_memory=self.args.dataloader_pin_memory,
            generator=seeded_generator(self.args.seed),
        )

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """
        As in transformers; `True` resumes from the newest complete checkpoint. What interrupted runs left of
        checkpoints and other files is deleted first.

        Raises:
            ValueError: when the data are too few for one step.
        """
        check_has_batches(self.train_dataset, self.args)
        if isinstance(resume_from_checkpoint, bool):
            resume_from_checkpoint = (
                last_complete_checkpoint(self.args.output_folder) if resume_from_checkpoint else None
            )
        resume_from_checkpoint = resume_from_checkpoint and str(expanded(resume_from_checkpoint))
        self.resumed_from = resume_from_checkpoint
        if self.is_world_process_zero():
            delete_partial(self.samples_folder)
            delete_incomplete(self.args.output_folder)
            if self.args.feature_cache is None:
                warn_of_overlap(self.train_dataset, self.eval_dataset)
        self.accelerator.wait_for_everyone()
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.state.global_step == 0:
            raise ValueError("Training must take a step. The data gave no batch. Check them: blip3o-hf data check.")
        return result

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
        now = self.state.global_step
        step, batches = self.step_so_far if self.step_so_far[0] == now else (now, 0)
        self.step_so_far = step, batches + 1
        size = self.args.per_device_train_batch_size
        first = (batches * self.args.world_size + self.args.process_index) * size
        return [seeded_generator(self.args.seed, step, first + index) for index in range(size)]

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As in transformers; each batch also tells its shares in the step, which its losses are multiplied by."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        shares = shares_of_step([self.task.counts(batch) for batch in batches], self.accelerator)
        return [{**batch, SHARES: of_batch} for batch, of_batch in zip(batches, shares, strict=True)], num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        batch = dict(inputs)
        self.task.shares = batch.pop(SHARES, {})
        try:
            loss = self.task.loss(model, batch, self._example_generators())
        finally:
            self.task.shares = {}
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
