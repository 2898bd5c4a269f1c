"""To Label Studio and back: tasks with two pictures and a choice for each criterion, and its export as answers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from ...files import check_can_write, written_whole
from ...reading import read_json
from .answers import MAX_ANSWERS_BYTES, MAX_MS, Answer, as_answer, check_rater, now, standing
from .order import questions_of, sides_of
from .study import ANSWERS, Question, Study, write_json

TASKS, CONFIG = "tasks.json", "labeling_config.xml"
NAMES = {"left": "left", "right": "right", "tie": "no difference"}
"""What Label Studio shows for our choices."""
ORDER = "label-studio"
"""In place of a rater's name: all annotators of a task see it as it stands."""
LOCAL_FILES = "/data/local-files/?d=images/"
"""Where Label Studio finds pictures in its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


def labeling_config(study: Study) -> str:
    """The labeling interface: the prompt, two `<Image>`, and one required `<Choices>` for each criterion."""
    lines = [
        "<View>",
        '  <Text name="prompt" value="$prompt"/>',
        '  <View style="display: grid; grid-template-columns: 1fr 1fr; gap: 1em">',
        '    <Image name="left" value="$left"/>',
        '    <Image name="right" value="$right"/>',
        "  </View>",
    ]
    for criterion in study.criteria:
        lines += [
            f"  <Header value={quoteattr(criterion.instruction)}/>",
            f'  <Choices name="{criterion.id}" toName="left" choice="single-radio" showInline="true" required="true">',
            *(f'    <Choice value="{NAMES[choice]}"/>' for choice in study.choices),
            "  </Choices>",
        ]
    return "\n".join([*lines, "</View>"]) + "\n"


def tasks(study: Study, images_url: str = LOCAL_FILES) -> list[dict[str, Any]]:
    """
    One task for each pair and round, in an order that says nothing of the systems.

    Args:
        study: to ask about.
        images_url: what stands before the name of a picture in its address.
    """
    first = study.criteria[0].id
    rows = []
    for question in questions_of(study, ORDER):
        if question.criterion == first:
            left, right = sides_of(study, ORDER, question)
            data = {"study": study.id, "pair": question.pair, "round": question.round}
            data |= {"prompt": study.by_id[question.pair].prompt}
            data |= {"left": images_url + left, "right": images_url + right}
            rows.append({"data": {**data, "left_name": left, "right_name": right}})
    return rows


def export(study: Study, folder: str | os.PathLike, images_url: str = LOCAL_FILES) -> list[Path]:
    """Write tasks.json and labeling_config.xml into a folder, each whole or not at all."""
    folder = check_can_write(folder, "The folder for Label Studio")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TASKS, tasks(study, images_url))
    with written_whole(folder / CONFIG) as temporary:
        temporary.write_text(labeling_config(study), encoding="utf-8")
    return [folder / TASKS, folder / CONFIG]


def import_answers(study: Study, path: str | os.PathLike) -> tuple[list[Path], list[str]]:
    """
    Write what Label Studio exported ("JSON") as `answers/label-studio-<user>.jsonl`, one file for each user.

    Returns:
        the files, and notes on what was left out.

    Raises:
        ValueError: when the export is damaged, of another study, or answers a question twice.
        FileExistsError: when there are answers of such a user already.
    """
    rows = read_json(path, MAX_ANSWERS_BYTES)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"An export of Label Studio is a JSON list of tasks. {path} is none. Export as JSON.")
    by_rater: dict[str, list[Answer]] = {}
    num_cancelled = 0
    for number, row in enumerate(rows, start=1):
        try:
            for annotation in row.get("annotations", []):
                if annotation.get("was_cancelled"):
                    num_cancelled += 1
                    continue
                for answer in _answers(study, row["data"], annotation):
                    by_rater.setdefault(answer.rater, []).append(answer)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"A task of Label Studio must have its data and annotations. Task {number} of {path} has no "
                f"valid ones ({type(error).__name__}: {error}). Export as JSON."
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}, task {number}: {error}") from error
    paths = {rater: study.folder / ANSWERS / f"{rater}.jsonl" for rater in sorted(by_rater)}
    for rater, target in paths.items():
        standing(by_rater[rater], str(path))
        if target.exists():
            raise FileExistsError(
                f"Answers are imported once. {target} is there already. Move it away to import again."
            )
    for rater, target in paths.items():
        target.parent.mkdir(exist_ok=True)
        with written_whole(target) as temporary:
            temporary.write_text("".join(answer.as_line() for answer in by_rater[rater]))
    return list(paths.values()), [f"{num_cancelled} skipped tasks are left out"] if num_cancelled else []


def _answers(study: Study, data: Mapping[str, Any], annotation: Mapping[str, Any]) -> list[Answer]:
    user = annotation["completed_by"]
    rater = check_rater(f"label-studio-{user['id'] if isinstance(user, dict) else user}")
    chosen = {}
    for result in annotation["result"]:
        if result["type"] == "choices":
            chosen[result["from_name"]] = result["value"]["choices"]
    ours = {name: choice for choice, name in NAMES.items()}
    answers = []
    for criterion in study.criteria:
        picked = chosen.get(criterion.id, [])
        if len(picked) != 1 or picked[0] not in ours:
            raise ValueError(
                f"Each criterion must have one choice of {', '.join(ours)}. {criterion.id} has {picked!r:.60}. "
                f"Complete it in Label Studio."
            )
        row = {"study": data["study"], "rater": rater, "pair": data["pair"], "criterion": criterion.id}
        row |= {"round": data["round"], "left": data["left_name"], "right": data["right_name"]}
        seconds = annotation.get("lead_time") or 0
        row |= {"choice": ours[picked[0]], "ms": min(MAX_MS, max(0, round(1000 * seconds / len(study.criteria))))}
        answer = as_answer({**row, "time": annotation.get("created_at") or now()}, study)
        if (answer.left, answer.right) != sides_of(
            study, ORDER, Question(answer.pair, study.criteria[0].id, answer.round)
        ):
            raise ValueError("The pictures must stand as they were exported. They do not. Import the tasks again.")
        answers.append(answer)
    return answers
