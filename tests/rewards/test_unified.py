"""Scores that a model writes are read, and a text without one is no score."""

import pytest
import torch

from blip3o_hf.rewards.manager import RewardManager
from blip3o_hf.rewards.unified import UnifiedReward, read_score, unified_reward

THREE_LINES = "Alignment Score (1-5): 4\nCoherence Score: 3.5\n**Style Score:** 2/5"


@pytest.mark.parametrize(
    ("text", "aspect", "score"),
    [
        (THREE_LINES, "alignment", 4.0),
        (THREE_LINES, "coherence", 3.5),
        (THREE_LINES, "style", 2.0),
        ("alignment score: 2. After a second look:\nAlignment Score: 3", "alignment", 3.0),
        ("Alignment Score: 0", "alignment", None),
        ("Alignment Score: 45", "alignment", None),
        ("Alignment Score: -3", "alignment", None),
        ("Alignment Score: good", "alignment", None),
        ("Alignment Score:\n\n5", "alignment", 5.0),
        ("Style Score: 3", "alignment", None),
        ("", "style", None),
    ],
)
def test_scores_are_read(text, aspect, score):
    assert read_score(text, aspect) == score


@pytest.fixture
def reward(llava_folder):
    return UnifiedReward(llava_folder, device="cpu", batch_size=2, max_new_tokens=8, prompt="Rate: {prompt}")


def test_a_model_that_writes_no_score_gives_none(reward, make_image):
    assert reward(["a", "two dogs", "b"], [make_image(seed) for seed in range(3)], id=[1, 2, 3]) == [None] * 3


def test_what_the_model_writes_after_the_request_is_scaled(reward, make_image, monkeypatch):
    model, answers = reward.model, iter(["Alignment Score: 4", "no idea", "Alignment Score: 1"])
    asked = []

    def generate(input_ids, **settings):
        assert settings["max_new_tokens"] == 8 and settings["do_sample"] is False
        asked.extend(reward._processor.tokenizer.batch_decode(input_ids, skip_special_tokens=True))
        texts = [next(answers) for _ in input_ids]
        written = reward._processor.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        return torch.cat([input_ids, written], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    scores = RewardManager([reward])(["red", "blue", "green"], [make_image()] * 3)
    assert scores.names == ("unified_alignment",) and scores.not_finite == (0,)
    assert scores.values[[0, 2], 0].tolist() == [0.75, 0.0] and scores.values[1].isnan()
    assert [text.split()[-1] for text in asked] == ["red", "blue", "green"]


def test_the_ready_object_and_bad_settings(make_image):
    manager = RewardManager(["blip3o_hf.rewards.unified:unified_reward"])
    assert manager.rewards == [unified_reward] and unified_reward.licence.startswith("MIT")
    with pytest.raises(OSError, match=r"'CodeGoat24/UnifiedReward-2\.0-qwen-3b' is no folder here"):
        manager(["a"], [make_image()])
    with pytest.raises(ValueError, match=r"Unknown aspect 'styl'\. Did you mean 'style'\?"):
        UnifiedReward(aspect="styl")
    with pytest.raises(ValueError, match=r"must hold {prompt}"):
        UnifiedReward(prompt="Rate it.")
