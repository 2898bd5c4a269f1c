"""Stages one after another: which are done, what each took and reached, and where an interrupted chain goes on."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ..checks import check_keys
from ..files import expanded, written_whole
from .checkpoints import has_complete_checkpoint
from .recipe_files import find_recipe
from .recipe_values import hints_of, read_yaml, typed, typed_values
from .recipes import Recipe, load_recipe

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """
    What a finished stage took and reached.

    Attributes:
        stage, recipe: what was trained.
        steps, batch_size: how many steps, of how many examples each.
        wall_seconds, cpu_seconds: of training, interruptions left out.
        threads: of the CPU.
        scores: of the last evaluation.
    """

    stage: str
    recipe: str
    steps: int
    batch_size: int
    wall_seconds: float
    cpu_seconds: float
    threads: int
    scores: dict[str, float]

    @property
    def times(self) -> str:
        """Both times in words."""
        return f"{self.wall_seconds:.0f} s of wall time, {self.cpu_seconds:.0f} s of CPU time"

    def write(self, folder: str | os.PathLike) -> None:
        """Leave it in the stage's folder: the mark that the stage is done."""
        with written_whole(Path(folder, SUMMARY)) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Summary | None":
        """That of a finished stage; `None` where it is not finished."""
        path = Path(folder, SUMMARY)
        return cls(**json.loads(path.read_bytes())) if path.is_file() else None


def summarize(trainer: Any, spent: dict[str, float], threads: int) -> Summary:
    """
    The summary of a trainer that has finished.

    Args:
        trainer ([`~training.trainer.Blip3oTrainer`]): after training and its evaluation.
        spent: its `clock_of_run.spent`.
        threads: of the CPU.
    """
    recipe, scores = trainer.recipe, {}
    for entry in trainer.state.log_history:
        scores |= {name.removeprefix("eval_"): value for name, value in entry.items() if name.startswith("eval_")}
    size = trainer.args.train_batch_size * trainer.args.world_size * trainer.args.gradient_accumulation_steps
    return Summary(
        recipe.stage, recipe.source, trainer.state.global_step, size, **spent, threads=threads, scores=scores
    )


@dataclass(frozen=True)
class Link:
    """
    A stage of a chain.

    Args:
        recipe: its file, beside that of the chain.
        short: overrides for a run of minutes.
        show: the score to show, one of its evaluation.
    """

    recipe: str
    short: tuple[str, ...] = ()
    show: str = ""


@dataclass(frozen=True)
class Chain:
    """
    All stages of a model, in the order in which they read one another's results.

    Args:
        folder: that all recipes write to and read from.
        links: the stages.
        source: the file it was read from.
    """

    folder: str
    links: tuple[Link, ...]
    source: Path

    def recipe(self, link: Link, output: str | None = None, is_short: bool = False) -> tuple[Path, list[str]]:
        """
        File and overrides of a stage.

        Args:
            link: the stage.
            output: the folder to take in the place of `folder`.
            is_short: whether to run for minutes only.
        """
        path = self.source.parent / link.recipe
        overrides = list(link.short) if is_short else []
        moved_to = None if output is None else expanded(output)
        if moved_to is not None and moved_to != Path(self.folder):
            recipe = load_recipe(path)
            folders = {
                "output_dir": recipe.output_dir,
                **{f"inputs.{k}": str(expanded(v)) for k, v in recipe.inputs.items()},
            }
            for key, folder in folders.items():
                if Path(self.folder) in Path(folder).parents:
                    overrides.append(f"{key}={moved_to / Path(folder).relative_to(self.folder)}")
        return path, overrides

    def load(self, link: Link, output: str | None = None, is_short: bool = False) -> Recipe:
        """The recipe of a stage."""
        return load_recipe(*self.recipe(link, output, is_short))


def load_chain(path: str | os.PathLike) -> Chain:
    """
    Read a chain.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is not a chain.
    """
    path = find_recipe(path, "chain")
    try:
        content = read_yaml(path)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"A chain must be valid YAML. {path} is not: {error}. Correct that line.") from error
    if not isinstance(content, dict) or not isinstance(content.get("stages"), list) or not content["stages"]:
        raise ValueError(f"A chain lists its `stages`. {path} does not. See recipes/tiny/chain.yaml.")
    check_keys(content, ("folder", "stages"), str(path))
    if "folder" not in content:
        raise ValueError(
            f"A chain must name the `folder` of its stages. {path} does not. See recipes/tiny/chain.yaml."
        )
    try:
        folder = typed(content["folder"], str, "folder")
        stages = typed(content["stages"], list[dict[str, Any]], "stages")
        links = tuple(_link(stage, f"stages.{index}") for index, stage in enumerate(stages))
    except ValueError as error:
        raise ValueError(f"A chain must be one of recipes. {path} is not: {error}") from error
    return Chain(str(expanded(folder)), links, path)


def _link(settings: Mapping[str, Any], key: str) -> Link:
    """A stage as the file has it; `key` is for errors."""
    check_keys(settings, {field.name for field in fields(Link)}, f"`{key}`")
    if "recipe" not in settings:
        raise ValueError(f"`{key}` must name its `recipe`. Got {settings!r:.80}. Add it.")
    given = typed_values(settings, {**hints_of(Link), "short": list[str]}, key)
    given["short"] = tuple(given.get("short", ()))
    return Link(**given)


def run_command(command: Sequence[str]) -> int:
    """
    The exit code of a command that trains. Ctrl-C is the command's own: it writes a checkpoint, and who started it
    waits for that.
    """
    with subprocess.Popen(command) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def train_alone(
    recipe: Path, overrides: Sequence[str], folder: Path, threads: int | None = None, launcher: Sequence[str] = ()
) -> int:
    """
    The exit code of `blip3o-hf train` in a process of its own, which goes on from a checkpoint where there is one.

    Args:
        recipe: its file.
        overrides: of it.
        folder: its `output_dir`.
        threads: of the CPU; all by default.
        launcher: words that start a module on several processes, such as `torchrun --nproc_per_node 8`; one process
            by default.
    """
    command = [*(launcher or [sys.executable]), "-m", "blip3o_hf.cli", "train", str(recipe), *overrides]
    if has_complete_checkpoint(folder / "checkpoints"):
        command.append("--resume")
    if threads is not None:
        command += ["--threads", str(threads)]
    return run_command(command)


def table(summaries: list[Summary], shown: list[str]) -> str:
    """
    What the stages took and reached, as a table of Markdown.

    Args:
        summaries: of the finished stages.
        shown: for each the name of the score to show, or nothing.
    """
    rows = [["stage", "recipe", "examples", "wall time", "CPU time", "threads", "score"], ["---"] * 7]
    for summary, name in zip(summaries, shown, strict=True):
        rows.append(
            [
                summary.stage,
                f"`{summary.recipe}`",
                f"{summary.steps:,} steps of {summary.batch_size}",
                f"{summary.wall_seconds:,.0f} s",
                f"{summary.cpu_seconds:,.0f} s",
                str(summary.threads),
                f"{name} {summary.scores[name]:.3f}" if name in summary.scores else "",
            ]
        )
    wall, cpu = (sum(getattr(s, f"{kind}_seconds") for s in summaries) for kind in ("wall", "cpu"))
    rows.append(["all", "", "", f"{wall:,.0f} s", f"{cpu:,.0f} s", "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
