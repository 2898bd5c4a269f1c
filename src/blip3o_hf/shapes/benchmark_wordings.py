"""The tiny world's benchmark of language: prompts and questions as people write them, and scripted conversations."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

from ..evaluation.answers import answer
from ..evaluation.statistics import Rate
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..pipelines.chat import NO_ANSWER, Blip3oChat
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from . import RELATIONS, ObjectGroup, Prompt, Scene, render

WORDINGS = ("plain", "natural")
ABOUT_WORDINGS = (
    "*Wordings*: prompts and questions, held out, each in the world's plain words and in a wording written apart from "
    "those of training. *Chat*: scripted conversations in which the model chooses between words and a picture; a turn "
    "counts when the model chose what was wanted and said or drew something."
)


@dataclass(frozen=True)
class AskedPicture:
    """A picture, or two to compare, with a question in both wordings."""

    scenes: tuple[Scene, ...]
    kind: str
    texts: dict[str, str]
    answer: str


@cache
def _lines() -> list[dict]:
    path = Path(__file__).parent / "wordings.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def worded_prompts() -> dict[str, list[Prompt]]:
    """The prompts by wording, in one order."""
    prompts = []
    for line in _lines():
        if "family" in line:
            groups = tuple(ObjectGroup(**group) for group in line["objects"])
            meaning = Prompt(line["plain"], line["family"], groups, line.get("relation"), line.get("background"))
            prompts.append((meaning, line))
    return {wording: [replace(meaning, text=line[wording]) for meaning, line in prompts] for wording in WORDINGS}


def worded_questions() -> list[AskedPicture]:
    """The questions, each with what is asked about."""
    return [
        AskedPicture(
            tuple(map(Scene.from_key, line["scenes"])),
            line["kind"],
            {wording: line[wording] for wording in WORDINGS},
            line["answer"],
        )
        for line in _lines()
        if "kind" in line
    ]


def score_worded_questions(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    questions: Sequence[AskedPicture],
    batch_size: int = 64,
) -> dict[str, Rate]:
    """Accuracy by wording: exact matches; of a relation, whether the one that was said is the one asked for or not."""
    rates = {wording: Rate(0, 0) for wording in WORDINGS}
    for start in tqdm(range(0, len(questions), batch_size), desc="asking", leave=False):
        batch = questions[start : start + batch_size]
        images = [[render(scene) for scene in asked.scenes] for asked in batch]
        for wording in WORDINGS:
            replies = answer(model, processor, images, [asked.texts[wording] for asked in batch], max_new_tokens=24)
            right = sum(_is_right(reply, asked) for reply, asked in zip(replies, batch, strict=True))
            rates[wording] += Rate(right, len(batch))
    return rates


def _is_right(reply: str, asked: AskedPicture) -> bool:
    """The model says which relation there is; these answers say yes or no to one."""
    if asked.kind != "position":
        return reply == asked.answer
    (relation,) = (relation for relation in RELATIONS if f" {relation} " in asked.texts["plain"])
    return ("yes" if reply.endswith(f", {relation} it") else "no") == asked.answer and ", " in reply


def chat_scripts() -> list[list[dict[str, str]]]:
    """Conversations as turns of a user: `text`, and `mode`, what is wanted: `draw` or `words`."""
    path = Path(__file__).parent / "chat.json"
    return json.loads(path.read_text(encoding="utf-8"))["conversations"]


def score_chat(pipe: Blip3oPipeline, scripts: Sequence[Sequence[dict[str, str]]], seed: int = 0) -> tuple[Rate, int]:
    """How many turns were answered in the right way, and how many with nothing."""
    pipe.set_progress_bar_config(disable=True)
    right, blank, total = 0, 0, 0
    for number, script in enumerate(tqdm(scripts, desc="talking", leave=False)):
        chat = Blip3oChat(pipe)
        for index, turn in enumerate(script):
            generator = torch.Generator().manual_seed(seed + 100 * number + index)
            reply = chat.send(turn["text"], generator=generator)
            is_blank = reply.image is None and reply.text in (None, "", NO_ANSWER)
            is_right = (turn["mode"] == "draw") == (reply.image is not None)
            right, blank, total = right + (is_right and not is_blank), blank + is_blank, total + 1
    return Rate(right, total), blank
