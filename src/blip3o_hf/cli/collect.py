"""`blip3o-hf collect`: prompt and picture pairs from a teacher, for instruction tuning."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .endpoints import PREFIX, add_endpoint_arguments, check_at_least_one, endpoint_model, open_endpoint
from .files import check_writable
from .models import load_pipeline

if TYPE_CHECKING:
    from ..collection.categories import Category
    from ..collection.collect import Collector
    from ..collection.folder import CollectionFolder
    from ..collection.prompt_files import Excluded
    from ..collection.prompts import Selection
    from ..collection.teachers import Teacher

EXAMPLES = """examples:
  blip3o-hf collect pairs --number 200 --categories shapes --teacher shapes --terms "made by a program of mine"
  blip3o-hf collect pairs --number 40000 --prompts-only --writer openai:MODEL --base-url URL --key-env MY_KEY \\
      --exclude evaluation_metadata.jsonl dpg_bench/prompts
  blip3o-hf collect pairs --number 1000 --teacher openai:MODEL --base-url URL --key-env MY_KEY \\
      --price 0.04 --budget 20 --check blip3o-tiny --terms "terms of PROVIDER of 2026-11, section 3"
  blip3o-hf collect pairs --number 1000 --teacher openai:MODEL --batch-out requests.jsonl --terms "..."
  blip3o-hf collect pairs --number 1000 --teacher openai:MODEL --batch-in results.jsonl --terms "..."
  blip3o-hf collect pairs --prompts mine.txt --teacher diffusers:OWNER/NAME --set num_inference_steps=8 --terms "..."
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="folder to write; the same command goes on where it stopped")
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument("--number", type=int, help="how many prompts (default: all of --prompts)")
    prompts.add_argument(
        "--categories", default="paper", help="paper, shapes, or a YAML file of your own (default: %(default)s)"
    )
    prompts.add_argument("--writer", metavar="openai:MODEL", help="chat model that writes them (default: templates)")
    prompts.add_argument("--prompts", metavar="FILE", help="take the prompts of this .txt, .jsonl, .json or .csv")
    prompts.add_argument(
        "--exclude", nargs="+", default=[], metavar="FILE", help="prompts of benchmarks, which are left out"
    )
    prompts.add_argument("--prompts-only", action="store_true", help="write OUT/prompts.jsonl and stop, to read them")
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--teacher", help="openai:MODEL, diffusers:NAME, a model of ours, shapes, or module:Class of your own"
    )
    pictures.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting of the teacher, such as size=512x512"
    )
    pictures.add_argument("--seed", type=int, default=0, help="picture i has seed + i (default: %(default)s)")
    pictures.add_argument("--terms", help="licence or terms under which the pictures may be used")
    pictures.add_argument("--check", help="who looks at them: a model of ours, openai:MODEL, or module:function")
    pictures.add_argument("--safety", metavar="module:function", help="function that says which must not be kept")
    pictures.add_argument("--price", help="of one picture")
    pictures.add_argument("--budget", help="stop before pictures cost more than this")
    pictures.add_argument("--batch-out", metavar="FILE", help="write requests that are open as a batch, and stop")
    pictures.add_argument("--batch-in", metavar="FILE", help="read answers to a batch instead of drawing")
    add_endpoint_arguments(parser)
    parser.add_argument("--shard-size", type=int, default=500, help="prompts of a tar (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    from ..collection.folder import opened

    with opened(arguments.out) as folder:
        selection = _selection(arguments, folder)
        print(f"{len(selection.prompts)} prompts in {folder.path / 'prompts.jsonl'}")
        for reason, count in selection.counts.items():
            print(f"  {count} dropped: {reason}")
        if arguments.prompts_only:
            return 0
        options = _options(arguments.set)
        teacher = _teacher(arguments, options)
        collector = _collector(arguments, folder, selection, teacher)
        if arguments.batch_out:
            return _write_batch(arguments, collector, teacher)
        return _collect(arguments, collector, teacher)


def _check(arguments: argparse.Namespace) -> None:
    check_at_least_one(arguments, "number", "shard_size", "at_once")
    if arguments.number is None and arguments.prompts is None:
        raise ValueError("A collection needs a number of prompts. There is no --number. Add it, or --prompts FILE.")
    if arguments.prompts and arguments.writer:
        raise ValueError("Prompts come from a file or from a chat model. Got --prompts and --writer. Leave one out.")
    if arguments.prompts_only:
        return
    if not arguments.teacher:
        raise ValueError("Somebody must draw. There is no --teacher. Add it, or --prompts-only for the prompts alone.")
    if not (arguments.terms or "").strip():
        raise ValueError(
            "A collection says under which terms its pictures may be used. There is no --terms. Write a "
            "sentence, such as --terms 'Apache-2.0 model, prompts of my own'."
        )
    if arguments.batch_out and arguments.batch_in:
        raise ValueError("A batch is written, then read. Got --batch-out and --batch-in. Give one at a time.")
    if (arguments.batch_out or arguments.batch_in) and not arguments.teacher.startswith(PREFIX):
        raise ValueError(f"A batch is of an endpoint. --teacher is {arguments.teacher!r}. Use {PREFIX}MODEL.")


def _selection(arguments: argparse.Namespace, folder: "CollectionFolder") -> "Selection":
    """The prompts: those that the folder has, or else new ones, which it gets, and beside them those dropped."""
    from ..collection.categories import read_categories
    from ..collection.prompt_files import Excluded, read_prompts
    from ..collection.prompts import digest, prompts_of_file
    from ..collection.selections import settled

    excluded = Excluded(arguments.exclude)
    settings: dict[str, Any] = {"number": arguments.number, "exclude": excluded.digest, "seed": arguments.seed}
    if arguments.prompts:
        given = read_prompts(arguments.prompts)
        settings["prompts"] = digest(given)
        return settled(folder, settings, lambda: prompts_of_file(given, arguments.number, excluded))
    categories = read_categories(arguments.categories)
    settings |= {"categories": digest(categories), "writer": arguments.writer}
    return settled(folder, settings, lambda: _new_prompts(arguments, folder, categories, excluded))


def _new_prompts(
    arguments: argparse.Namespace, folder: "CollectionFolder", categories: "Sequence[Category]", excluded: "Excluded"
) -> "Selection":
    from ..collection.chat_writer import ChatWriter
    from ..collection.prompts import prompts_of_categories

    writer = None
    if arguments.writer:
        model = endpoint_model(arguments.writer, "--writer")
        writer = ChatWriter(open_endpoint(arguments, "--writer"), model, folder)
    return prompts_of_categories(categories, arguments.number, excluded, arguments.seed, writer)


def _options(words: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` as a mapping; values are JSON, or else texts."""
    options = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise ValueError(f"--set must be written KEY=VALUE. Got {word!r}. Example: --set size=1024x1024.")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def _teacher(arguments: argparse.Namespace, options: Mapping[str, Any]) -> "Teacher":
    from ..checks import find_class
    from ..collection.teachers import TEACHERS, EndpointTeacher, PipelineTeacher
    from ..hub.provenance import public_name

    name = arguments.teacher
    if name.startswith(PREFIX):
        is_batch = arguments.batch_out or arguments.batch_in
        endpoint = None if is_batch else open_endpoint(arguments, "--teacher")
        return EndpointTeacher(endpoint_model(name, "--teacher"), endpoint, options, arguments.at_once)
    if name.startswith("diffusers:"):
        name = name.removeprefix("diffusers:")
        return PipelineTeacher(_diffusers_pipeline(name), public_name(name), options, arguments.at_once)
    if name in TEACHERS or ":" in name:
        return find_class(name, TEACHERS, "--teacher")(options)
    pipe = load_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return PipelineTeacher(pipe, public_name(name), options, arguments.at_once)


def _diffusers_pipeline(name: str) -> Any:
    from pathlib import Path

    import torch
    from diffusers import DiffusionPipeline

    from ..assets import resolve_model
    from ..hub.reach import check_reachable

    path = resolve_model(name)
    if not Path(path).is_dir():
        check_reachable(path)
    pipe = DiffusionPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return pipe if accelerator is None else pipe.to(accelerator)


def _collector(
    arguments: argparse.Namespace, folder: "CollectionFolder", selection: "Selection", teacher: "Teacher"
) -> "Collector":
    from ..checks import find_function
    from ..collection.collect import SECTION, Collector
    from ..collection.costs import Budget, amount
    from ..hub.provenance import public_name

    price = None if arguments.price is None else amount(arguments.price, "--price")
    budget = Budget(price, None if arguments.budget is None else amount(arguments.budget, "--budget"))
    provenance = {
        "teacher": dict(teacher.settings),
        "terms": arguments.terms.strip(),
        "check": arguments.check and public_name(arguments.check),
        "safety": arguments.safety,
    }
    settings = {**provenance, "shard_size": arguments.shard_size, "seed": arguments.seed}
    folder.check_settings(SECTION, settings, free=["teacher.base_url"])
    check = safety = None
    if not arguments.batch_out:
        safety = arguments.safety and find_function(arguments.safety, "--safety")
        check = arguments.check and _check_of(arguments)
    return Collector(
        folder, selection.prompts, arguments.shard_size, arguments.seed, provenance, settings, check, safety, budget
    )


def _check_of(arguments: argparse.Namespace) -> Any:
    from ..checks import find_function
    from ..collection.checks import EndpointChecker, model_checker

    name = arguments.check
    if name.startswith(PREFIX):
        return EndpointChecker(open_endpoint(arguments, "--check"), endpoint_model(name, "--check"))
    return find_function(name, "--check") if ":" in name else model_checker(load_pipeline(name))


def _write_batch(arguments: argparse.Namespace, collector: "Collector", teacher: Any) -> int:
    from ..collection.batch_files import write_batch

    path = check_writable(arguments.batch_out)
    prompts = collector.open_prompts()
    taken = prompts[: int(min(len(prompts), collector.budget.num_left))]
    write_batch(path, teacher, map(collector.request, taken))
    print(f"{len(taken)} of {len(prompts)} open requests in {path}")
    return 0


def _collect(arguments: argparse.Namespace, collector: "Collector", teacher: "Teacher") -> int:
    from tqdm import tqdm

    _remember(collector, teacher)
    num_prompts = len(collector.prompts)
    with tqdm(total=num_prompts, initial=num_prompts - len(collector.open_prompts()), desc="collecting") as bar:

        def report(ids) -> None:
            if collector.budget.cost is not None:
                bar.set_postfix(cost=str(collector.budget.cost), refresh=False)
            bar.update(len(ids))

        collector.report = report
        if arguments.batch_in:
            _read_batch(arguments.batch_in, collector, teacher)
        progress = collector.run(None if arguments.batch_in else teacher)
    print(f"{progress.num_pairs} pairs of {num_prompts} prompts in {collector.folder.path}")
    for reason, count in sorted(progress.dropped.items()):
        print(f"  {count} dropped: {reason}")
    if collector.budget.cost is not None:
        print(f"{collector.budget.num_pictures} pictures cost {collector.budget.cost}")
    if progress.num_open:
        why = "the budget is reached: raise --budget to go on" if collector.budget.num_left < 1 else "no answer yet"
        print(f"{progress.num_open} prompts have no picture: {why}")
    return 1 if progress.num_open or not progress.num_pairs else 0


def _remember(collector: "Collector", teacher: "Teacher") -> None:
    """Whether the endpoint answered in an earlier run, with the same settings and at the same address."""
    from ..collection.collect import SECTION
    from ..collection.teachers import EndpointTeacher

    if isinstance(teacher, EndpointTeacher) and teacher.endpoint is not None:
        before = collector.folder.saved(SECTION) or {}
        teacher.endpoint.has_answered = collector.budget.num_pictures > 0 and before["teacher"] == teacher.settings


def _read_batch(path: str, collector: "Collector", teacher: Any) -> None:
    from ..collection.batch_files import batch_id, read_batch

    failed: dict[str, list[str]] = {}
    ids = {batch_id(teacher, collector.request(prompt)): prompt.id for prompt in collector.prompts}
    for name, answer in read_batch(path, ids):
        if isinstance(answer, str):
            failed.setdefault(answer, []).append(name)
        else:
            collector.keep(name, answer)
    for reason, names in failed.items():
        print(f"{len(names)} answers of the batch failed, such as {names[0]}: {reason}")
