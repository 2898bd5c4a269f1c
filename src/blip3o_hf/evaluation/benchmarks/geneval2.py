"""GenEval 2: its hand-off file, and its scores with a judge of one's choice."""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files import written_whole
from ...hub.results import Figure, Score
from ...reading import read_json
from ..statistics import Rate
from .base import Item, PictureBenchmark, Pictures, field_of, json_lines
from .judges import NUMBERS, YES_OR_NO, Question, Reply, shows, unanswered
from .layouts import flat_problems, save_png

HAND_OFF = "pictures.json"
ONE_WORD = " Answer in one word."
MAX_UNANSWERED = 0.05
"""Share of questions a judge may leave unanswered; above it, its scores mean nothing, and none is given."""


def soft_tifa_am(probabilities: Sequence[float]) -> float:
    """
    Soft-TIFA by the arithmetic mean.

    Args:
        probabilities: of the right answers to all questions on one picture, in [0, 1].

    Example:
        >>> soft_tifa_am([1.0, 0.5])
        0.75
    """
    return math.fsum(_checked(probabilities)) / len(probabilities)


def soft_tifa_gm(probabilities: Sequence[float]) -> float:
    """
    Soft-TIFA by the geometric mean: low as soon as one answer is wrong.

    Example:
        >>> soft_tifa_gm([1.0, 0.25])
        0.5
    """
    if 0 in _checked(probabilities):
        return 0.0
    return math.exp(math.fsum(map(math.log, probabilities)) / len(probabilities))


def tifa(is_right: Sequence[bool]) -> float:
    """TIFA: the share of questions on one picture whose answer is right."""
    return sum(map(bool, _checked(is_right))) / len(is_right)


def _checked(values: Sequence[float]) -> Sequence[float]:
    if not values or not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f"A picture needs one question or more, with probabilities from 0 to 1. Got {list(values)!r:.80}. "
            f"Check the judge."
        )
    return values


class GenEval2Benchmark(PictureBenchmark):
    """
    GenEval 2 (arXiv 2512.16853), of which the prompts are `geneval2_data.jsonl` of a checkout of your own: its licence
    is CC BY-NC 4.0, and nothing of it is part of this package.
    """

    name = "geneval2"
    title = "GenEval 2"
    about = (
        "One picture of each prompt. A judge that sees answers a question on each object, number, attribute, place "
        "and action of the prompt; a question's value is the probability of the right answer. *AM* is the mean of the "
        "questions of a prompt, *GM* their geometric mean; *TIFA* counts likeliest answers that are right; *VQAScore* "
        "is the probability of yes to the whole prompt. Official numbers are those of Qwen3-VL-8B-Instruct."
    )
    pattern = "geneval2_data.jsonl"
    judged_by = ("judge",)
    official = (
        f"The scorer of the checkout, on FOLDER/{HAND_OFF}, with --method and one of soft_tifa_am, soft_tifa_gm, "
        f"tifa, vqascore."
    )

    def read_items(self, path):
        if path.is_dir():
            path = path / self.pattern
        items = [_item(row, number, path) for number, row in enumerate(json_lines(path))]
        twice = [prompt for prompt, number in Counter(item.prompt for item in items).items() if number > 1]
        if twice:
            raise ValueError(f"A prompt names its picture. {path} has {twice[0]!r:.60} twice. Correct it.")
        return items

    def write_layout(self, pictures, folder):
        named = {}
        for item in pictures.items:
            save_png(pictures.open(item), folder / "images" / f"{item.id}.png")
            named[item.prompt] = f"images/{item.id}.png"
        with written_whole(folder / HAND_OFF) as temporary:
            temporary.write_text(json.dumps(named, indent=2, ensure_ascii=False) + "\n")

    def problems(self, folder):
        if not folder.is_dir():
            return [f"There is no folder {folder}."]
        problems = flat_problems(folder, [f"images/{item.id}.png" for item in self.items], beside=(HAND_OFF,))
        return problems + self._hand_off_problems(folder)

    def _hand_off_problems(self, folder: Path) -> list[str]:
        try:
            named = read_json(folder / HAND_OFF)
        except FileNotFoundError:
            return [f"{HAND_OFF} is missing."]
        except ValueError as error:
            return [f"{HAND_OFF} must hold JSON: {error}"]
        if not isinstance(named, dict):
            return [f"{HAND_OFF} must be a mapping from prompts to paths."]
        wanted = {item.prompt: f"images/{item.id}.png" for item in self.items}
        return [
            *(f"{HAND_OFF} has no picture of {prompt!r:.60}." for prompt in wanted if prompt not in named),
            *(f"{HAND_OFF} has a prompt that is none: {prompt!r:.60}." for prompt in named if prompt not in wanted),
            *(
                f"{HAND_OFF} has {named[prompt]!r:.60} for {prompt!r:.60}, not {path}."
                for prompt, path in wanted.items()
                if prompt in named and named[prompt] != path
            ),
        ]

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base.
            judges: `judge`, a [`~judges.VlmJudge`]; without it there is no score.

        Returns:
            AM, GM, TIFA and VQAScore over all prompts, AM by skill, GM by number of atoms, and the share of questions
            that the judge did not answer. If it is more than 5 %, that row alone: probabilities of a judge that says
            something else are no scores.
        """
        judge = judges.get("judge")
        if judge is None:
            return []
        pictures.check_complete()
        replies, whole = [], []
        for item in pictures.items:
            image, asked = pictures.open(item), questions(item)
            *of_atoms, of_prompt = judge.ask([image] * (len(asked) + 1), [*asked, shows(item.prompt)])
            replies.append(of_atoms)
            whole.append(of_prompt)
        return summary(pictures.items, replies, whole, judge.name)


def questions(item: Item) -> list[Question]:
    """The questions on a prompt, as the judge reads them."""
    return [_question(text, answer) for text, answer in item.row["vqa_list"]]


def summary(
    items: Sequence[Item], replies: Sequence[Sequence[Reply]], whole: Sequence[Reply], judge: str
) -> list[Score]:
    """
    Scores from all replies of a judge.

    Args:
        items: prompts.
        replies: to the questions on each prompt.
        whole: to VQAScore's question on each prompt.
        judge: its name, which is in the name of every score.
    """
    label = f"GenEval 2 questions, judge {judge}"
    every = [reply for group in (*replies, whole) for reply in group]
    left = Rate(unanswered(every), len(every))
    row = Score(
        "text-to-image", f"{label}: not answered by any allowed word", Figure(left.value, left.interval), left.total
    )
    if left.value > MAX_UNANSWERED:
        return [row]
    values = [[reply.probability for reply in group] for group in replies]
    columns = {
        "Soft-TIFA AM": [soft_tifa_am(group) for group in values],
        "Soft-TIFA GM": [soft_tifa_gm(group) for group in values],
        "TIFA": [tifa([reply.is_first for reply in group]) for group in replies],
        "VQAScore": [reply.probability for reply in whole],
    }
    skills: dict[str, list[float]] = {}
    atoms: dict[str, list[float]] = {}
    for item, group, gm in zip(items, values, columns["Soft-TIFA GM"], strict=True):
        atoms.setdefault(f"Soft-TIFA GM, {item.row['atom_count']} atoms", []).append(gm)
        for skill, value in zip(item.row["skills"], group, strict=True):
            skills.setdefault(f"Soft-TIFA AM, {skill}", []).append(value)
    ordered = dict(sorted(atoms.items(), key=lambda entry: int(entry[0].split()[2])))
    return [
        *(
            Score("text-to-image", f"{label}: {name}", Figure(math.fsum(column) / len(column)), len(column))
            for name, column in {**columns, **skills, **ordered}.items()
        ),
        row,
    ]


def _question(text: str, answer: str) -> Question:
    allowed = NUMBERS if text.lower().startswith("how many") else YES_OR_NO
    return Question(f"{text}{ONE_WORD}", str(answer), allowed)


def _item(row: dict[str, Any], number: int, path: str | os.PathLike) -> Item:
    where = f"Line {number + 1} of {path}"
    asked, skills = field_of(row, "vqa_list", list, where), field_of(row, "skills", list, where)
    field_of(row, "atom_count", int, where)
    is_good = len(asked) == len(skills) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and str(pair[1]).strip()
        for pair in asked
    )
    if not is_good or not all(isinstance(skill, str) for skill in skills):
        raise ValueError(
            f"A line of GenEval 2 must have a question and an answer for each skill. {where} has {len(asked)} pairs "
            f"and {len(skills)} skills, or other content. Take its file `geneval2_data.jsonl`."
        )
    return Item(f"{number:04d}", field_of(row, "prompt", str, where), row)
