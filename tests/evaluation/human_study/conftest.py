"""A tiny study of two systems, and answers to it."""

import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from blip3o_hf.evaluation.human_study.answers import Answer
from blip3o_hf.evaluation.human_study.making import make_study
from blip3o_hf.evaluation.human_study.order import questions_of, sides_of

SYSTEMS = ("janus-pro-secret", "blip3o-secret")
TIME = "2026-01-31T12:00:00Z"


def write_pictures(folder, systems=SYSTEMS, ids=range(6), size=8):
    """`folder/<system>/<id>.png` of noise with texts in it, and `folder/prompts.jsonl`."""
    noise = np.random.default_rng(0)
    ids = [f"{number:03d}" for number in ids]
    for system in systems:
        (folder / system).mkdir(parents=True)
        for name in ids:
            said = PngInfo()
            said.add_text("Software", system)
            image = Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8))
            image.save(folder / system / f"{name}.png", pnginfo=said)
    rows = [{"id": name, "prompt": f"picture {name} </script><b>"} for name in ids]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {system: folder / system for system in systems}, folder / "prompts.jsonl"


@pytest.fixture
def sources(tmp_path):
    """Folders of two systems, and the file of their prompts."""
    return write_pictures(tmp_path / "sources")


@pytest.fixture
def make(tmp_path, sources):
    """`make(**settings)`: a study and its key."""

    def make(name="study", **settings):
        return make_study(tmp_path / name, *sources, **{"control": 4, "seed": 3, **settings})[:2]

    return make


@pytest.fixture
def study(make):
    return make()[0]


@pytest.fixture
def answer_all():
    """`answer_all(study, rater, choose)`: answers to all questions; `choose(question, left, right)` chooses."""

    def answer_all(study, rater, choose, ms=2500):
        answers = []
        for question in questions_of(study, rater):
            left, right = sides_of(study, rater, question)
            words = (study.id, rater, question.pair, question.criterion, question.round, left, right)
            answers.append(Answer(*words, choose(question, left, right), ms, TIME))
        return answers

    return answer_all
