"""Whether a model still understands as its bare backbone does: the same tasks of lmms-eval, compared per sample."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files import written_whole
from ..hub.provenance import now, public_name, versions

ABOUT = (
    "Both answer the same questions through the same plug-in, greedily unless a task says otherwise. BLIP3-o keeps "
    "its backbone frozen (paper section 5.1), so that all answers must be equal."
)


@dataclass(frozen=True)
class Difference:
    """
    Args:
        doc_id: of the sample, as lmms-eval counts.
        model, backbone: what each answered.
        target: the right answer.
    """

    doc_id: int
    model: str
    backbone: str
    target: str


@dataclass(frozen=True)
class TaskComparison:
    """
    Args:
        task: its name in lmms-eval.
        samples: how many both answered.
        differences: of these, the ones whose answers differ.
        model, backbone: scores of both by the names of the metrics.
    """

    task: str
    samples: int
    differences: tuple[Difference, ...]
    model: Mapping[str, float]
    backbone: Mapping[str, float]


def compare_backbone(
    pretrained: str,
    tasks: Sequence[str],
    include_path: str | os.PathLike | None = None,
    backbone: str | None = None,
    limit: int | None = None,
    batch_size: int = 1,
    **arguments: Any,
) -> list[TaskComparison]:
    """
    Run tasks of lmms-eval on a model, then on its bare backbone.

    Args:
        pretrained: packaged name, folder or Hub id of a BLIP3-o.
        tasks: their names.
        include_path: folder with tasks of your own.
        backbone: folder or Hub id of the backbone before BLIP3-o was trained on it; by default the one in the model.
        limit: only the first so many samples of each task.
        batch_size: conversations at once. Another one may change the rounding, and so an answer; both have the same.
        arguments: of [`~evaluation.lmms_models.Blip3oLmms`], such as `device` and `dtype`.

    Raises:
        ImportError: naming the extra, when lmms-eval is not installed.
        ValueError: when there is no such task.
    """
    try:
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            f"This comparison needs lmms-eval. Importing it failed: {error}. Install it with pip install "
            f"'blip3o-hf[lmms]'."
        ) from error
    from .lmms_models import Blip3oBackboneLmms, Blip3oLmms

    manager = _task_manager(TaskManager, tasks, include_path)
    results = []
    for load in (Blip3oLmms, partial(Blip3oBackboneLmms, weights=backbone)):
        model = load(pretrained, batch_size=batch_size, **arguments)
        results.append(
            simple_evaluate(model=model, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=True)
        )
        del model  # the memory is for the other one
    return compare_results(*results)


def _task_manager(manager_class: Any, tasks: Sequence[str], include_path: str | os.PathLike | None) -> Any:
    """That of the folder alone where it has all tasks: looking through lmms-eval's own ones takes a while."""
    if include_path is not None:
        if not Path(include_path).is_dir():
            raise ValueError(f"Your own tasks must be in a folder. There is none at {include_path}. Check the path.")
        manager = manager_class(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = manager_class(include_path=None if include_path is None else str(include_path))
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise ValueError(
            f"Tasks are those of lmms-eval, or of your folder. There is no {', '.join(unknown)}. List them with "
            f"lmms-eval tasks list."
        )
    return manager


def compare_results(model: Mapping[str, Any], backbone: Mapping[str, Any]) -> list[TaskComparison]:
    """
    Two results of `simple_evaluate` with samples, compared per sample.

    Raises:
        ValueError: when the two are not about the same samples.
    """
    names = sorted(model["samples"])
    if names != sorted(backbone["samples"]):
        raise ValueError(
            f"Both must have run the same tasks. Got {', '.join(names)} and {', '.join(sorted(backbone['samples']))}. "
            f"Run both again."
        )
    return [_compare_task(name, model, backbone) for name in names]


def _compare_task(name: str, model: Mapping[str, Any], backbone: Mapping[str, Any]) -> TaskComparison:
    first, second = (_by_id(name, results["samples"][name]) for results in (model, backbone))
    if first.keys() != second.keys():
        alone = ", ".join(map(str, sorted(first.keys() ^ second.keys())[:10]))
        raise ValueError(
            f"Both must have answered the same samples of {name}. Only one answered {alone}. Run both again."
        )
    changed = [doc_id for doc_id in first if first[doc_id].get("doc_hash") != second[doc_id].get("doc_hash")]
    if changed:
        raise ValueError(f"Samples of {name} must not change between the runs. {changed[0]} did. Run both again.")
    differences = tuple(
        Difference(doc_id, _answer(first[doc_id]), _answer(second[doc_id]), str(first[doc_id].get("target")))
        for doc_id in sorted(first)
        if _answer(first[doc_id]) != _answer(second[doc_id])
    )
    return TaskComparison(name, len(first), differences, _scores(model, name), _scores(backbone, name))


def _by_id(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    found = {int(sample["doc_id"]): sample for sample in samples}
    if not found or len(found) != len(samples):
        reason = "none" if not found else "one twice"
        raise ValueError(f"Results must have each sample once. Those of {name} have {reason}. Run the task again.")
    return found


def _answer(sample: Mapping[str, Any]) -> str:
    """What was generated, before the task filtered it: all rounds and repeats."""
    return json.dumps(sample["resps"], ensure_ascii=False)


def _scores(results: Mapping[str, Any], name: str) -> dict[str, float]:
    rows = results["results"][name].items()
    return {
        key.removesuffix(",none"): float(value)
        for key, value in rows
        if "_stderr" not in key and isinstance(value, (int, float))
    }


def write_comparison(
    path: str | os.PathLike, comparisons: Sequence[TaskComparison], command: str, settings: Mapping[str, Any]
) -> None:
    """
    Write a comparison with all that is needed to make it again, as JSON.

    Args:
        path: of the file.
        comparisons: what [`compare_backbone`] returned.
        command: that makes it again.
        settings: of both runs.
    """
    shown = {name: public_name(value) if isinstance(value, str) else value for name, value in settings.items()}
    content = {
        "about": ABOUT,
        "command": command,
        "date": now(),
        "settings": shown,
        "versions": {**versions(), "lmms-eval": version("lmms-eval")},
        "tasks": [asdict(comparison) for comparison in comparisons],
    }
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
