"""A run of a benchmark of drawing: pictures as they come, the official folder, scores, and a manifest beside them."""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from ..data.images import as_input_image
from ..files import delete_partial, written_whole
from ..hub.provenance import now, versions
from ..hub.results import Evaluation, Score
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..reading import read_json
from .benchmarks.base import RUN_PICTURES, RUN_SETTINGS, Item, PictureBenchmark, Pictures
from .manifests import MANIFEST, Manifest, Picture, environment_of, pixel_hash

PROMPTS, LAYOUT = "prompts.jsonl", "layout"
"""What else a run leaves in its folder, beside the manifest."""
SEED_RULES = ("picture", "prompt")


@dataclass(frozen=True)
class DrawingSettings:
    """
    What decides the pictures of a run, beside the model and the prompts.

    Args:
        seed: of the noise.
        seed_rule: `picture`: picture `i` of the run, in the order of the prompts, has the seed `seed + i`. `prompt`:
            the pictures of every prompt have the seeds `seed`, `seed + 1`, ..., as the reference starts each prompt
            anew.
        batch_size: pictures at once. It belongs to a run, since a batch may change the last bits of a picture.
        call: arguments of the pipeline, such as `num_inference_steps`; `None` is the model's own.
        truncate: cut prompts that are too long for the model, where they would else be an error.
    """

    seed: int = 0
    seed_rule: str = "picture"
    batch_size: int = 8
    call: Mapping[str, Any] = field(default_factory=dict)
    truncate: bool = False

    def __post_init__(self):
        if self.seed_rule not in SEED_RULES:
            raise ValueError(f"`seed_rule` must be one of {', '.join(SEED_RULES)}. Got {self.seed_rule!r}.")
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise ValueError(f"`batch_size` must be an integer of at least 1. Got {self.batch_size!r:.40}. Try 8.")


class DrawingRun:
    """
    Draws the pictures of a benchmark with a pipeline, and scores them. Killed at any moment and started again, and on
    any number of processes (`accelerate launch`), it gives the same pictures.

    Args:
        benchmark: what is drawn.
        pipe: what draws.
        folder: of the run; a run in it must be of the same settings, and goes on.
        settings: what decides the pictures.
        inputs: sha256 of what the pictures depend on, by name: the model's files at least.

    Raises:
        ValueError: when the folder holds a run of other settings, or a prompt is too long for the model.
    """

    def __init__(
        self,
        benchmark: PictureBenchmark,
        pipe: Blip3oPipeline,
        folder: str | os.PathLike,
        settings: DrawingSettings,
        inputs: Mapping[str, str],
    ):
        self.benchmark, self.pipe, self.settings = benchmark, pipe, settings
        self.folder, self.started = Path(folder), now()
        self.inputs = {**inputs, **benchmark.hashes}
        self.environment = environment_of(pipe.device, pipe.model.dtype)
        self.state = PartialState()
        self.pictures = Pictures(self.folder / RUN_PICTURES, benchmark.items, benchmark.pictures_per_prompt)
        self.prompts, self.cut = self._fitting_prompts()

    def run(self, words: Sequence[str] = (), judges: Callable[[], Mapping[str, Any]] = dict) -> Manifest | None:
        """
        Draw what is missing, lay it out, check it, score it, and write the manifest.

        Args:
            words: of the command that does the same, for the manifest.
            judges: makes what the benchmark's scores need; called on the main process once all is drawn.

        Returns:
            The manifest on the main process, `None` on the others.

        Raises:
            ValueError: when another process writes to this folder, or the official scorer would find it wrong.
        """
        if not self.state.is_main_process:
            self.state.wait_for_everyone()  # until the folder is found to be this run's
            self._draw()
            self.state.wait_for_everyone()
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder):
            self._begin()
            self.state.wait_for_everyone()
            self._draw()
            self.state.wait_for_everyone()
            return self._finish(words, judges())

    def _begin(self) -> None:
        """Note the settings of the run, or compare them with those of the run that is there."""
        path, own = self.folder / RUN_SETTINGS, self._content()
        if path.is_file():
            before = read_json(path)
            if not isinstance(before, dict) or not isinstance(before.pop("started", None), str):
                raise ValueError(f"{path} must hold the settings of a run. It does not. Name another folder.")
            changed = [name for name in {**own, **before} if before.get(name) != own.get(name)]
            if changed:
                raise ValueError(
                    f"A run goes on with the settings it began with. `{changed[0]}` in {path} is "
                    f"{before.get(changed[0])!r:.80}, and now {own.get(changed[0])!r:.80}. Name another folder."
                )
            self.started = read_json(path)["started"]
            for leftover in self.folder.glob(".partial-*"):  # what killed processes left of a layout
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            return
        prompts = (json.dumps({"id": item.id, "prompt": item.prompt}) for item in self.benchmark.items)
        with written_whole(self.folder / PROMPTS) as temporary:
            temporary.write_text("\n".join(prompts) + "\n")
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps({**own, "started": self.started}, indent=1) + "\n")

    def _content(self) -> dict[str, Any]:
        settings = {name: value for name, value in asdict(self.settings).items() if name != "call"}
        content = {
            "benchmark": self.benchmark.name,
            "prompts": len(self.benchmark.items),
            **settings,
            **self.settings.call,
            **{f"sha256 of {name}": value for name, value in self.inputs.items()},
            **{name: self.environment[name] for name in ("device", "machine", "dtype")},
            "versions": versions(),
        }
        return json.loads(json.dumps(content))

    def _fitting_prompts(self) -> tuple[dict[str, str], int]:
        """The prompt of each item, cut where it is too long and may be cut, and how many are cut."""
        processor = self.pipe.processor
        prompts = {item.id: item.prompt for item in self.benchmark.items}
        if processor is None:
            return prompts, 0
        fitted = {name: processor.fitted_prompt(prompt) for name, prompt in prompts.items()}
        long = [name for name in prompts if fitted[name] != prompts[name]]
        if long and not self.settings.truncate:
            raise ValueError(
                f"Prompts must fit the model's context, {processor.max_prompt_length} tokens. {len(long)} of "
                f"{len(prompts)} do not, {long[0]} among them. Cut them (--truncate), which the manifest says."
            )
        return fitted, len(long)

    def _draw(self) -> None:
        """Draw this process's share of the batches whose pictures are not all there."""
        self.pipe.set_progress_bar_config(disable=True)
        share = list(self._batches())[self.state.process_index :: self.state.num_processes]
        done = [all(self.pictures.path(item, number).is_file() for _, item, number in batch) for batch in share]
        progress = tqdm(
            total=sum(map(len, share)),
            initial=sum(len(batch) for batch, is_done in zip(share, done, strict=True) if is_done),
            desc=self.benchmark.title,
            unit="picture",
            disable=not self.state.is_main_process,
        )
        with progress:
            for batch, is_done in zip(share, done, strict=True):
                if not is_done:
                    self._draw_batch(batch)
                    progress.update(len(batch))

    def _batches(self) -> Iterator[Sequence[tuple[int, Item, int]]]:
        """All pictures as index, item and number, in batches: the same ones on any number of processes."""
        number = self.benchmark.pictures_per_prompt
        all_of_them = [
            (position * number + index, item, index)
            for position, item in enumerate(self.benchmark.items)
            for index in range(number)
        ]
        size = self.settings.batch_size
        return (all_of_them[start : start + size] for start in range(0, len(all_of_them), size))

    def seed_of(self, index: int, number: int) -> int:
        """The seed of picture `index` of the run, the `number`-th of its prompt."""
        return self.settings.seed + (index if self.settings.seed_rule == "picture" else number)

    def _draw_batch(self, batch: Sequence[tuple[int, Item, int]]) -> None:
        generators = [torch.Generator().manual_seed(self.seed_of(index, number)) for index, _, number in batch]
        call = {name: value for name, value in self.settings.call.items() if value is not None}
        if any(item.images for _, item, _ in batch):
            call["image"] = [[as_input_image(path) for path in item.images] for _, item, _ in batch]
        output = self.pipe([self.prompts[item.id] for _, item, _ in batch], generator=generators, **call)
        for (_, item, number), image in zip(batch, output.images, strict=True):
            path = self.pictures.path(item, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                image.save(temporary)

    def _finish(self, words: Sequence[str], judges: Mapping[str, Any]) -> Manifest:
        self.pictures.check_complete()
        for folder in (self.folder / RUN_PICTURES).iterdir():
            delete_partial(folder)  # what killed processes left
        self._lay_out()
        scores = self.benchmark.score(self.pictures, **judges)
        manifest = Manifest(
            evaluation=self._evaluation(scores, words),
            words=tuple(words),
            inputs=self.inputs,
            environment=self.environment,
            started=self.started,
            pictures=tuple(self._hashed()),
        )
        manifest.write(self.folder / MANIFEST)
        return manifest

    def _lay_out(self) -> None:
        """The folder for the official scorer, made beside its place and then moved there."""
        target = self.folder / LAYOUT
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".partial-") as temporary:
            made = Path(temporary, LAYOUT)
            self.benchmark.lay_out(self.pictures, made)
            if not made.exists():  # there is no official scorer
                return
            problems = self.benchmark.problems(made)
            if problems:
                raise ValueError(
                    f"The folder must be as the scorer of {self.benchmark.title} reads it. {len(problems)} things are "
                    f"wrong: {'; '.join(problems[:5])}."
                )
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)

    def _hashed(self) -> Iterator[Picture]:
        for batch in self._batches():
            for index, item, number in batch:
                digest = pixel_hash(self.pictures.open(item, number))
                yield Picture(item.id, number, self.seed_of(index, number), digest)

    def _evaluation(self, scores: Sequence[Score], words: Sequence[str]) -> Evaluation:
        config, call = self.pipe.config, self.settings.call
        chosen = {
            "steps": _chosen(call.get("num_inference_steps"), config.default_num_inference_steps),
            "guidance": _chosen(call.get("guidance_scale"), config.default_guidance_scale),
            "plan": _chosen(call.get("plan"), config.default_plan),
            "attempts": _chosen(call.get("num_attempts"), config.default_num_attempts),
        }
        processor = self.pipe.processor
        decoder = self.pipe.decoder if self.pipe.decoder is not None else self.pipe.unet
        settings = {
            "prompts": len(self.benchmark.items),
            "pictures per prompt": self.benchmark.pictures_per_prompt,
            "prompts cut": self.cut,
            "template": None if processor is None else processor.instruction,
            "seed": self.settings.seed,
            "seed rule": self.settings.seed_rule,
            "batch size": self.settings.batch_size,
            **chosen,
            "scheduler": {name: value for name, value in self.pipe.scheduler.config.items() if name[0] != "_"},
            "scheduler class": type(self.pipe.scheduler).__name__,
            "decoder": type(decoder).__name__,
        }
        if self.pipe.unet is not None:
            settings["decoder steps"] = config.default_decoder_num_inference_steps
            settings["decoder guidance"] = config.default_decoder_guidance_scale
        settings = json.loads(json.dumps(settings, default=str))
        title, number = self.benchmark.title, len(self.benchmark.items)
        if number < self.benchmark.number_of_all:
            title += f", first {number} of {self.benchmark.number_of_all} prompts"
        return Evaluation(
            title,
            self.benchmark.about,
            shlex.join(["blip3o-hf", *words]),
            now(),
            settings,
            versions(),
            tuple(scores),
        )


def _chosen(given: Any, default: Any) -> Any:
    return default if given is None else given


def _locked(folder: Path) -> AcquireReturnProxy:
    """A lock on the folder of a run, held by the block; `ValueError` where another process holds it."""
    try:
        return FileLock(folder / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"One process at a time writes a run. Another one writes to {folder}. Wait for it, or name another folder."
        ) from error


__all__ = ["LAYOUT", "MANIFEST", "PROMPTS", "DrawingRun", "DrawingSettings"]
