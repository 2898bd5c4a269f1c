"""Pictures are looked at: by a model, a function of your own, and a safety filter."""

import sys
import types

import numpy as np
import pytest
from PIL import Image
from tests.collection.test_collect import dropped, manifests, prompts, tars

from blip3o_hf.collection.checks import problem_of, safety_reasons, verdicts
from blip3o_hf.collection.duplicates import SeenPictures, fingerprint
from blip3o_hf.data.images import as_input_image
from blip3o_hf.shapes import render, sample_example


@pytest.fixture
def own(monkeypatch):
    """A module of a user, with functions that check."""
    module = types.ModuleType("own_checks")
    monkeypatch.setitem(sys.modules, "own_checks", module)
    return module


def test_a_chat_model_says_yes_no_or_neither(collect, endpoint, tmp_path):
    answers = iter(["Yes.", "no", "I cannot tell", "**Yes**"])
    endpoint.say = lambda text, body: next(answers, "yes")
    assert collect(tmp_path / "out", "--check", "openai:judge") == 0
    names = [each["id"] for each in prompts(tmp_path / "out")]
    assert dropped(tmp_path / "out") == {
        names[1]: ("does not show its prompt", "0.0000"),
        names[2]: ("the check said neither yes nor no", "I cannot tell"),
    }
    shown = [body for path, body in endpoint.bodies if path == "/v1/chat/completions"]
    parts = shown[0]["messages"][0]["content"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert prompts(tmp_path / "out")[0]["text"] in parts[1]["text"]
    assert manifests(tmp_path / "out")[0]["check"] == "openai:judge"


def test_functions_of_your_own_check_and_filter(collect, tmp_path, own, capsys):
    own.check = lambda images, texts: np.array([0.25 if "red" in text else 0.75 for text in texts])
    own.safe = lambda images, texts: ["too round" if "circle" in text else None for text in texts]
    words = ["--check", "own_checks:check", "--safety", "own_checks:safe"]
    assert collect(tmp_path / "out", *words) == 0
    found = dropped(tmp_path / "out")
    for each in prompts(tmp_path / "out"):
        reason = found.get(each["id"])
        if "circle" in each["text"]:
            assert reason == ("refused by the safety filter", "too round")
        else:
            assert reason == (("does not show its prompt", "0.2500") if "red" in each["text"] else None)
    assert collect(tmp_path / "other", "--check", "own_checks:none") == 2
    assert "own_checks has no function 'none'" in capsys.readouterr().err
    assert collect(tmp_path / "other", "--check", "no_module:check") == 2
    assert "Python finds no module 'no_module'" in capsys.readouterr().err


def test_a_check_is_asked_once_also_when_a_run_is_interrupted(collect, tmp_path, own, monkeypatch):
    asked = []
    own.check = lambda images, texts: asked.extend(texts) or [len(asked) % 3 / 2] * len(texts)  # depends on the past
    assert collect(tmp_path / "whole", "--check", "own_checks:check") == 0
    assert len(asked) == 20
    asked.clear()
    with monkeypatch.context() as patch:

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr("blip3o_hf.collection.folder._digest", stop)
        assert collect(tmp_path / "cut", "--check", "own_checks:check") == 130
    assert collect(tmp_path / "cut", "--check", "own_checks:check") == 0
    assert len(asked) == 20 and tars(tmp_path / "cut") == tars(tmp_path / "whole")


def test_the_models_own_check_sees_what_is_wrong(collect, endpoint, tmp_path):
    right = endpoint.draw
    endpoint.draw = lambda prompt, seed: right("a yellow cross on a white background" if seed == 1 else prompt, seed)
    assert collect(tmp_path / "out", "--check", "blip3o-tiny", number=3) == 0
    assert [each["reason"] for each in manifests(tmp_path / "out")[0]["dropped"]["items"]] == [
        "does not show its prompt"
    ]
    assert list(dropped(tmp_path / "out")) == [prompts(tmp_path / "out")[1]["id"]]


def test_what_checks_may_say():
    pictures, texts = [None] * 4, [""] * 4
    said = verdicts(lambda *_: [True, 0, float("nan"), 2], pictures, texts)
    assert said == [1.0, 0.0, "nan", "2"]
    assert [problem_of(each) and problem_of(each)[0] for each in said] == [
        None,
        "does not show its prompt",
        *["the check said neither yes nor no"] * 2,
    ]
    with pytest.raises(ValueError, match="It got 4 and answered 1"):
        verdicts(lambda *_: [1.0], pictures, texts)
    for wrong in ([None], [True] * 4):
        with pytest.raises(ValueError, match="A safety filter must give for each of 4 pictures"):
            safety_reasons(lambda *_: wrong, pictures, texts)  # noqa: B023


def test_fingerprints_see_through_jpeg_and_size_and_keep_scenes_apart(tmp_path):
    rng = np.random.default_rng(0)
    scenes = [Image.fromarray(render(sample_example(rng).scene)) for _ in range(40)]
    seen = SeenPictures()
    for number, scene in enumerate(scenes):
        assert seen.find(fingerprint(scene)) is None, number
        seen.add(str(number), fingerprint(scene))
    for number, scene in enumerate(scenes):
        assert seen.find(fingerprint(scene.resize((128, 128), Image.Resampling.BOX))) == str(number)
        scene.resize((256, 256), Image.Resampling.BOX).save(tmp_path / "a.jpg", quality=80)
        assert seen.find(fingerprint(as_input_image(tmp_path / "a.jpg"))) == str(number)
    red, blue = (fingerprint(Image.new("RGB", (64, 64), color)) for color in ("red", "blue"))
    seen.add("red", red)
    assert seen.find(blue) is None and seen.find(red) == "red"
