"""Words in pictures: distances, scores, and RapidOCR itself where it is installed."""

import sys

import pytest
from PIL import Image, ImageDraw, ImageFont

from blip3o_hf.evaluation.benchmarks.ocr import OcrBenchmark, RapidOcrReader, edit_distance, text_score

ROWS = [
    {"id": "a", "prompt": "a sign that says Hello World", "text": "Hello World"},
    {"id": "b", "prompt": "x", "text": "42"},
]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("flaw", "lawn", 2)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("read", "wanted", "score"),
    [
        ("hello WORLD", "Hello World", 1),
        ("Hello\nWorld", "Hello World", 1),
        ("", "Hello", 0),
        ("Helo", "Hello", 0.8),
        ("Hello and far more words", "Hello", 0),
        ("STRASSE", "straße", 1),
    ],
)
def test_text_score(read, wanted, score):
    assert text_score(read, wanted) == pytest.approx(score)


def test_scores_are_means_over_prompts(write_lines, draw):
    class Reads:
        name = "told"
        said = iter(["hello world", "4"])

        def __call__(self, image):
            return next(self.said)

    benchmark = OcrBenchmark(write_lines(ROWS))
    scores = benchmark.score(draw(benchmark), reader=Reads())
    assert [(score.name, score.figure.value) for score in scores] == [
        ("Written words, reader told: 1 - edit distance / length", 0.75),
        ("Written words, reader told: exact", 0.5),
    ]


@pytest.mark.parametrize(("text", "error"), [("  ", "must have a text to read"), (None, "must have `text`")])
def test_prompts_without_words_are_refused(write_lines, text, error):
    with pytest.raises(ValueError, match=error):
        OcrBenchmark(write_lines([{**ROWS[0], "text": text}]))


def test_without_rapidocr_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r"pip install 'blip3o-hf\[ocr\]'"):
        RapidOcrReader()


@pytest.mark.slow
def test_rapidocr_reads_what_was_written(write_lines, draw):
    pytest.importorskip("rapidocr")
    benchmark = OcrBenchmark(write_lines(ROWS))
    pictures = draw(benchmark)
    image = Image.new("RGB", (512, 256), "white")
    ImageDraw.Draw(image).text((40, 40), "Hello\nWorld", fill="black", font=ImageFont.load_default(size=56))
    image.save(pictures.path(benchmark.items[0]))
    Image.new("RGB", (256, 256), "white").save(pictures.path(benchmark.items[1]))
    mean, exact = benchmark.score(pictures)
    assert mean.figure.value == exact.figure.value == 0.5
    assert mean.name.startswith("Written words, reader rapidocr ")
