"""Pictures are read by the real ones that they are most like."""

import json

import numpy as np
import pytest
from PIL import Image

from blip3o_hf.study.recognition import Recognition, RecognitionBenchmark, Recognizer

KINDS = {"left": (slice(None), slice(0, 8)), "right": (slice(None), slice(8, 16)), "top": (slice(0, 8), slice(None))}


def picture(name, seed):
    """A bright half on a dark ground, with noise."""
    values = np.random.default_rng(seed).integers(0, 60, (16, 16, 3))
    values[KINDS[name]] += 150
    return values.astype(np.uint8)


class Painter:
    """A pipeline that draws what it is asked for, but for one caption; it keeps its calls."""

    def __init__(self, wrong=""):
        self.wrong, self.asked, self.calls = wrong, [], []

    def set_progress_bar_config(self, **settings):
        pass

    def __call__(self, captions, generator, **call):
        self.asked += captions
        self.calls.append(call)
        names = ["left" if caption == self.wrong else caption for caption in captions]
        images = [picture(name, 1000 + each.initial_seed()) for name, each in zip(names, generator, strict=True)]
        return type("Output", (), {"images": [Image.fromarray(image) for image in images]})


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A folder of pictures with captions."""
    folder = tmp_path_factory.mktemp("real")
    rows = []
    for index in range(30):
        name = list(KINDS)[index % 3]
        Image.fromarray(picture(name, index)).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "caption": name})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_pictures_are_read_by_their_neighbours(real):
    recognizer = Recognizer(real, size=4, neighbors=3)
    assert recognizer.captions == ("left", "right", "top")
    names = ["top", "left", "right", "left"]
    assert recognizer.read([picture(name, 500 + index) for index, name in enumerate(names)]) == names
    near = recognizer.frechet([picture(list(KINDS)[index % 3], 300 + index) for index in range(60)])
    assert 0 <= near < recognizer.frechet([picture("top", 300 + index) for index in range(60)]) / 5
    everyone = Recognizer(real, size=4, neighbors=30)
    assert set(everyone.read([picture(name, 600) for name in KINDS])) == {"left"}  # all together know nothing


def test_a_run_is_measured_by_what_it_draws(real, tmp_path, monkeypatch):
    painter = Painter(wrong="top")
    monkeypatch.setattr("blip3o_hf.study.recognition.Blip3oPipeline.from_pretrained", lambda folder: painter)
    values = Recognition({"images": real, "per_caption": 12, "num_inference_steps": 2})(tmp_path)
    assert values["overall"] == [1.0] * 24 + [0.0] * 12 and len(values["frechet"]) == 1
    assert painter.asked == [name for name in ("left", "right", "top") for _ in range(12)]
    assert painter.calls == [{"num_inference_steps": 2}] * 2
    scores = RecognitionBenchmark({"images": real, "per_caption": 12}).drawing(Painter(wrong="top"))
    assert scores == {"overall": pytest.approx(2 / 3), "frechet": pytest.approx(values["frechet"][0])}
    assert RecognitionBenchmark({"images": real}).drawing(Painter())["overall"] == 1


@pytest.mark.parametrize("kind", [Recognition, RecognitionBenchmark])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"reads pictures by real ones\. Its settings have no `images`\. Name their folder\."),
        ({"image": "a"}, "Unknown key 'image' in the settings of Recognition.*Did you mean 'images'"),
        ({"images": "a", "neighbors": 0}, r"`neighbors` must be a whole number of at least 1\. Got 0"),
        ({"images": "a", "num_inference_steps": "ten"}, r"`num_inference_steps` must be a whole number\. Got 'ten'"),
        ({"images": "a", "size": 2.5}, r"`size` must be a whole number of at least 1\. Got 2\.5"),
    ],
)
def test_settings_that_read_nothing_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(settings)


def test_one_caption_tells_nothing_apart(tmp_path):
    Image.fromarray(picture("top", 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a half")
    with pytest.raises(ValueError, match=r"at least two captions\. .* has 1\. Name another folder\."):
        Recognizer(str(tmp_path))
