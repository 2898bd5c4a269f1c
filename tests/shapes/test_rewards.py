"""The verifier as a reward: exact, and graded so that wrong pictures differ."""

import json

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.rewards.manager import RewardManager
from blip3o_hf.shapes import ObjectGroup, Prompt, render, sample_scene
from blip3o_hf.shapes.benchmark import held_out_prompts
from blip3o_hf.shapes.rewards import graded, meaning_of, prompt_of, verified


def picture(prompt, seed=0):
    return Image.fromarray(render(sample_scene(prompt, np.random.default_rng(seed), split="test")))


def test_true_pictures_have_1_and_those_of_other_prompts_less():
    prompts = held_out_prompts(3)
    pictures = [picture(prompt) for prompt in prompts]
    meanings = [json.loads(json.dumps(meaning_of(prompt))) for prompt in prompts]  # as a dataset holds them
    manager = RewardManager([verified, graded])
    texts = [prompt.text for prompt in prompts]
    scores = manager(texts, pictures, {"meaning": meanings})
    assert (scores.values == 1).all()
    others = manager(texts, pictures[::-1], {"meaning": meanings}).values
    assert others[:, 0].mean() < 0.5 and ((others[:, 1] == 1) == (others[:, 0] == 1)).all()
    assert (others[:, 1] <= 1).all() and (others[:, 1] >= 0).all()


def test_more_right_objects_have_a_higher_grade():
    wanted = Prompt("four red circles", "counting", (ObjectGroup("circle", "red", 4),))
    grades = []
    for count in range(1, 5):
        shown = Prompt("", "counting", (ObjectGroup("circle", "red", count),))
        grades += graded([""], [picture(shown)], [meaning_of(wanted)])
    assert grades == sorted(grades) and grades[0] == pytest.approx(0.125) and grades[-1] == 1.0
    blue = Prompt("", "counting", (ObjectGroup("circle", "blue", 4),))
    assert graded([""], [picture(blue)], [meaning_of(wanted)]) == [0.0]


def test_a_meaning_is_read_as_it_was_made():
    for prompt in held_out_prompts(2):
        assert prompt_of(json.loads(json.dumps(meaning_of(prompt)))) == prompt
    with pytest.raises(ValueError, match=r"The column `meaning` holds what `shapes.rewards.meaning_of` made. Got {}"):
        prompt_of({})
