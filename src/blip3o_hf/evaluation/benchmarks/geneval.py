"""GenEval: the folder that its scorer reads, and its rules with a detector of one's choice."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...hub.results import Figure, Score
from ...reading import read_json
from ..statistics import Rate
from .base import Item, PictureBenchmark, Pictures, json_lines
from .geneval_rules import TAGS, Judgement, check_row, judge
from .layouts import odd_sizes, picture_sizes, save_png

RULES = "GenEval rules"


class GenEvalBenchmark(PictureBenchmark):
    """
    GenEval (Ghosh et al., 2023), of which the prompts are `evaluation_metadata.jsonl`.

    Scores are those of GenEval's rules with another detector than GenEval's, and are named so.
    """

    name = "geneval"
    title = RULES
    about = (
        "Four pictures of each prompt. A picture passes when a detector finds the objects, and where the prompt says "
        "it, their number, colours and places, by GenEval's rules. The score of a kind of prompts is the share of its "
        "pictures that pass; *overall* is the plain mean of the six kinds. *Any of the pictures* counts prompts of "
        "which one picture passes. Numbers of another detector than GenEval's own are not GenEval scores."
    )
    pictures_per_prompt = 4
    judged_by = ("detector", "colors")
    official = (
        "python evaluation/evaluate_images.py FOLDER --outfile results.jsonl --model-path DETECTOR; "
        "python evaluation/summary_scores.py results.jsonl. It needs CUDA and mmdet 2."
    )

    def read_items(self, path):
        rows = json_lines(path)
        for number, row in enumerate(rows):
            check_row(row, f"{path}, prompt {number}")
        return [Item(f"{number:05d}", row["prompt"], row) for number, row in enumerate(rows)]

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            for number in range(pictures.number):
                save_png(pictures.open(item, number), folder / item.id / "samples" / f"{number:04d}.png")
            (folder / item.id / "metadata.jsonl").write_text(json.dumps(item.row))

    def problems(self, folder):
        if not folder.is_dir():
            return [f"There is no folder {folder}."]
        problems: list[str] = []
        names = [
            f"{item.id}/samples/{number:04d}.png" for item in self.items for number in range(self.pictures_per_prompt)
        ]
        problems += odd_sizes(picture_sizes(folder, names, problems))
        for item in self.items:
            problems += _metadata_problems(folder / item.id, item)
            problems += _sample_problems(folder / item.id, set(names))
        return problems + _folder_problems(folder, {item.id for item in self.items})

    def check_judges(self, **given: Any) -> None:
        has_colors = any("color" in entry for item in self.items for entry in item.row["include"])
        if "detector" in given and "colors" not in given and has_colors:
            raise ValueError(
                "GenEval's prompts on colours need a colour classifier. Got none. Give `colors`, a CLIP such as "
                "openai/clip-vit-large-patch14."
            )

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base.
            judges: `detector`, a [`~detectors.Detector`], and `colors`, a [`~detectors.ColorClassifier`]; without a
                detector there is no score.
        """
        detector, colors = judges.get("detector"), judges.get("colors")
        if detector is None:
            return []
        pictures.check_complete()
        self.check_judges(**{name: judge for name, judge in judges.items() if judge is not None})
        judgements = {
            item.id: [
                judge_picture(item.row, pictures.open(item, number), detector, colors)
                for number in range(pictures.number)
            ]
            for item in pictures.items
        }
        return summary(pictures.items, judgements, detector.name)


def judge_picture(row: Mapping[str, Any], image: Image.Image, detector: Any, colors: Any) -> Judgement:
    """GenEval's verdict on a picture by a detector and a colour classifier."""
    entries = [*row["include"], *row.get("exclude", ())]
    found = detector(image, list(dict.fromkeys(entry["class"] for entry in entries)))
    return judge(row, found, lambda detections, name: colors(image, detections, name))


def summary(items: list[Item], judgements: Mapping[str, list[Judgement]], detector: str) -> list[Score]:
    """
    Scores of the kinds of prompts that are there, their plain mean where all six are, and prompts with a right
    picture.

    Args:
        judgements: of all pictures of each item, by its id.
        detector: its name, which is in the name of every score.
    """
    label = f"{RULES}, detector {detector}"
    shares: dict[str, list[float]] = {}
    any_right = Rate(0, 0)
    for item in items:
        right = [judgement.is_correct for judgement in judgements[item.id]]
        shares.setdefault(item.row["tag"], []).append(sum(right) / len(right))
        any_right += Rate(int(any(right)), 1)
    means = {tag: sum(shares[tag]) / len(shares[tag]) for tag in TAGS if tag in shares}
    scores = [Score("text-to-image", f"{label}: {tag}", Figure(m), len(shares[tag])) for tag, m in means.items()]
    if len(means) == len(TAGS):
        overall = Figure(sum(means.values()) / len(TAGS))
        scores.append(Score("text-to-image", f"{label}: overall", overall, len(items)))
    any_figure = Figure(any_right.value, any_right.interval)
    return [*scores, Score("text-to-image", f"{label}: any of the pictures", any_figure, len(items))]


def _metadata_problems(folder: Path, item: Item) -> list[str]:
    name = f"{item.id}/metadata.jsonl"
    try:
        row = read_json(folder / "metadata.jsonl")
    except FileNotFoundError:
        return [f"{name} is missing."]
    except ValueError as error:
        return [f"{name} must hold one JSON: {error}"]
    # The scorer groups pictures by this text, so the order of keys matters, too.
    if json.dumps(row) != json.dumps(item.row):
        return [f"{name} is not line {int(item.id)} of the prompt file, counted from 0: {item.prompt!r:.60}."]
    return []


def _sample_problems(folder: Path, known: set[str]) -> list[str]:
    sentences = []
    for path in sorted((folder / "samples").glob("*")):
        name = f"{folder.name}/samples/{path.name}"
        if name in known:
            continue
        is_read = re.fullmatch(r"\d+\.png", path.name)
        sentences.append(f"{name} is one too many." if is_read else f"{name} is not read: its name is not digits.png.")
    return sentences


def _folder_problems(folder: Path, ids: set[str]) -> list[str]:
    """Folders of digits that the scorer would read, too: of no prompt, or the number of one written differently."""
    extra = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name.isdecimal() and p.name not in ids]
    return [
        f"{name} is a duplicate of {int(name):05d}."
        if f"{int(name):05d}" in ids
        else f"{name} is the folder of no prompt."
        for name in extra
    ]
