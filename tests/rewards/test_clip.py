"""Rewards of CLIP are the logits of the model for each picture and its own prompt."""

import pytest
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from blip3o_hf.rewards.clip import ClipScore, PickScore, clip_score, pick_score
from blip3o_hf.rewards.manager import RewardManager

PROMPTS = ["a cat", "two dogs", "a cat", "a very long prompt of many letters"]


@pytest.fixture
def pictures(make_image):
    return [make_image(seed) for seed in range(4)]


@pytest.fixture(scope="module")
def logits(clip_folder, make_image):
    """`[4, 4]`, of all pictures and prompts by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    texts = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
    images = AutoImageProcessor.from_pretrained(clip_folder, backend="pil")
    pixels = images([make_image(seed) for seed in range(4)], return_tensors="pt")
    with torch.no_grad():
        return CLIPModel.from_pretrained(clip_folder)(**texts, **pixels).logits_per_image


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_scores_are_the_diagonal_of_the_logits_in_batches_of_any_size(clip_folder, pictures, logits, batch_size):
    of_clip = ClipScore(clip_folder, device="cpu", batch_size=batch_size)
    of_pick = PickScore(clip_folder, clip_folder, device="cpu", batch_size=batch_size)
    scores = RewardManager([of_clip, of_pick])(PROMPTS, pictures, {"id": [1, 2, 3, 4]})
    assert scores.names == ("clip_score", "pick_score")
    torch.testing.assert_close(scores.values[:, 0], logits.diag().double() / 100, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores.values[:, 1], logits.diag().double() / 26, rtol=1e-4, atol=1e-6)
    assert len(set(scores.values[:, 0].tolist())) == 4


def test_scores_stay_exact_where_training_rounds(clip_folder, pictures):
    reward = ClipScore(clip_folder, device="cpu")
    plain = reward(PROMPTS, pictures)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward(PROMPTS, pictures) == plain


def test_the_dtype_is_that_of_the_weights(clip_folder, pictures):
    reward = ClipScore(clip_folder, device="cpu", dtype="bfloat16")
    rounded, exact = reward(PROMPTS, pictures), ClipScore(clip_folder, device="cpu")(PROMPTS, pictures)
    assert reward.model.dtype == torch.bfloat16 and rounded == pytest.approx(exact, abs=0.02) and rounded != exact


def test_pictures_of_other_modes_are_read(clip_folder, pictures):
    reward = ClipScore(clip_folder, device="cpu")
    assert reward(["a"], [pictures[0].convert("RGBA")]) == pytest.approx(reward(["a"], [pictures[0]]))
    assert reward([], []) == []


def test_ready_objects_are_found_by_name_and_load_nothing_before_they_are_called(make_image):
    manager = RewardManager(["blip3o_hf.rewards.clip:clip_score", "blip3o_hf.rewards.clip:pick_score"])
    assert manager.rewards == [clip_score, pick_score] and manager.names == ("clip_score", "pick_score")
    assert "MIT" in clip_score.licence and "not stated" in pick_score.licence
    with pytest.raises(OSError, match=r"'openai/clip-vit-large-patch14' is no folder here and was never loaded"):
        manager(["a"], [make_image()])


def test_an_incomplete_checkpoint_is_refused(clip_folder, tmp_path, make_image):
    model = CLIPModel.from_pretrained(clip_folder)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "visual_projection.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"must hold every tensor of the model.*visual_projection"):
        PickScore(str(tmp_path), clip_folder)(["a"], [make_image()])


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"`batch_size` must be a whole number of at least 1\. Got 0"):
        ClipScore(batch_size=0)
