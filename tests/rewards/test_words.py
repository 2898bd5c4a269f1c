"""The reward for written words reads the column `text`, and only the pictures that need words."""

import sys

import pytest
from PIL import Image, ImageDraw, ImageFont

from blip3o_hf.rewards.manager import RewardManager
from blip3o_hf.rewards.words import OcrReward, ocr_reward


class Told:
    """A reader of pictures whose words are their widths."""

    name = "told"

    def __init__(self):
        self.number = 0

    def __call__(self, image):
        self.number += 1
        return {8: "hello world", 9: "helo", 10: ""}[image.width]


def pictures(*widths):
    return [Image.new("RGB", (width, 8)) for width in widths]


def test_words_are_scored_and_pictures_without_words_are_not_read():
    reader = Told()
    scores = RewardManager([OcrReward(reader)])(
        ["a"] * 4, pictures(8, 9, 10, 8), {"text": ["Hello World", "hello", "hello", None], "id": [1, 2, 3, 4]}
    )
    assert scores.names == ("ocr_reward",) and scores.values[:3, 0].tolist() == pytest.approx([1.0, 0.8, 0.0])
    assert scores.values[3].isnan() and reader.number == 3


def test_the_column_must_be_there_and_hold_texts():
    reward = OcrReward(Told())
    with pytest.raises(ValueError, match=r"ocr_reward reads the column `text`.* The dataset has none\. Add it"):
        RewardManager([reward])(["a"], pictures(8))
    with pytest.raises(TypeError, match=r"`text` holds texts, or None for prompts without words\. Got 42\."):
        reward(["a"], pictures(8), text=[42])
    with pytest.raises(ValueError, match="A wanted text must have letters"):
        reward(["a"], pictures(8), text=["  "])


def test_a_missing_reader_is_said_at_the_first_picture_that_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    reward = OcrReward()
    assert reward(["a"], pictures(8), text=[None]) == [None]
    with pytest.raises(ImportError, match=r"pip install 'blip3o-hf\[ocr\]'"):
        reward(["a"], pictures(8), text=["hello"])


def test_rapidocr_reads_a_drawn_word():
    pytest.importorskip("rapidocr")
    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((20, 20), "HELLO", fill="black", font=ImageFont.load_default(48))
    right, wrong = ocr_reward(["", ""], [image, image], text=["Hello", "goodbye"])
    assert right == 1.0 and wrong < 0.5
