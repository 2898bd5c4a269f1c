"""Teachers on this machine: pipelines in the same groups always, classes of your own, and the tiny world."""

import sys
import types

import pytest
from PIL import Image
from tests.collection.test_collect import dropped, manifests, tars

from blip3o_hf.cli import main
from blip3o_hf.cli.collect import _options
from blip3o_hf.collection.collect import Collector
from blip3o_hf.collection.folder import CollectionFolder, opened
from blip3o_hf.collection.prompts import Prompt
from blip3o_hf.collection.teachers import Answer, DrawingRequest, PipelineTeacher
from blip3o_hf.shapes.teacher import ShapesTeacher


class GroupPipe:
    """A pipeline whose pictures depend on what is drawn beside them."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompt, generator, **options):
        self.calls.append((prompt, [each.initial_seed() for each in generator], options))
        shade = sum(map(len, prompt)) % 256
        images = [Image.new("RGB", (8, 8), (shade, each.initial_seed() * 20 % 256, 0)) for each in generator]
        return types.SimpleNamespace(images=images)


WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
PROMPTS = [Prompt(f"{number:06d}", "a", text) for number, text in enumerate(WORDS)]


def test_an_interrupted_group_is_drawn_again_as_a_whole(tmp_path, monkeypatch):
    with opened(tmp_path / "whole") as folder:
        Collector(folder, PROMPTS, shard_size=7).run(PipelineTeacher(GroupPipe(), "pipe", {"steps": 2}, group_size=4))
    keep, kept = CollectionFolder.keep, []

    def stop(self, name, *rest):
        if len(kept) == 6:
            raise KeyboardInterrupt
        kept.append(name)
        keep(self, name, *rest)

    monkeypatch.setattr(CollectionFolder, "keep", stop)
    with opened(tmp_path / "cut") as folder, pytest.raises(KeyboardInterrupt):
        Collector(folder, PROMPTS, shard_size=7).run(PipelineTeacher(GroupPipe(), "pipe", {"steps": 2}, group_size=4))
    monkeypatch.undo()
    pipe = GroupPipe()
    with opened(tmp_path / "cut") as folder:
        Collector(folder, PROMPTS, shard_size=7).run(PipelineTeacher(pipe, "pipe", {"steps": 2}, group_size=4))
    assert [(call[0], call[1]) for call in pipe.calls] == [
        (["five", "six", "seven"], [4, 5, 6]),
        (["eight", "nine", "ten", "eleven"], [7, 8, 9, 10]),
    ]
    assert pipe.calls[0][2] == {"steps": 2}
    assert tars(tmp_path / "cut") == tars(tmp_path / "whole")


def test_a_teacher_of_your_own_is_a_class(tmp_path, monkeypatch, capsys):
    class Painter:
        group_size = 0

        def __init__(self, options):
            self.settings = {"kind": "mine", **options}

        def draw(self, requests):
            for request in requests:
                yield request.id, Answer.of_image(Image.new("RGB", (8, 8), (0, request.seed * 20, 255)))

    module = types.ModuleType("own_teachers")
    module.Painter = Painter
    monkeypatch.setitem(sys.modules, "own_teachers", module)
    command = ["--number", "4", "--categories", "shapes", "--terms", "mine", "--set", "tone=2"]
    assert main(["collect", str(tmp_path / "out"), "--teacher", "own_teachers:Painter", *command]) == 0
    assert manifests(tmp_path / "out")[0]["teacher"] == {"kind": "mine", "tone": 2}
    assert manifests(tmp_path / "out")[0]["pairs"] == 4
    Painter.draw = lambda self, requests: [(requests[0].id, Answer(problem="tired"))]
    assert main(["collect", str(tmp_path / "b"), "--teacher", "own_teachers:Painter", *command]) == 2
    assert "A teacher must answer each request once, by its id. It left out 3" in capsys.readouterr().err


def test_what_the_safety_checker_of_a_pipeline_refuses_is_no_picture():
    class CheckedPipe(GroupPipe):
        def __call__(self, prompt, generator, **options):
            drawn = super().__call__(prompt, generator, **options)
            drawn.nsfw_content_detected = ["two" in each for each in prompt]
            return drawn

    requests = [DrawingRequest(str(seed), text, seed) for seed, text in enumerate(WORDS[:3])]
    answers = dict(PipelineTeacher(CheckedPipe(), "pipe").draw(requests))
    assert answers["1"].problem == "refused by the teacher: the safety checker of the pipeline"
    assert answers["0"].data and answers["2"].data and not answers["1"].is_billed


def test_an_answer_is_a_picture_or_a_problem():
    for given in ({}, {"data": b"a", "problem": "b"}):
        with pytest.raises(ValueError, match="must be a picture or a problem"):
            Answer(**given)


def test_the_tiny_world_draws_its_categories_and_refuses_the_rest(tmp_path):
    command = ["collect", str(tmp_path / "out"), "--number", "12", "--teacher", "shapes", "--terms", "mine"]
    assert main([*command, "--categories", "shapes"]) == 0
    assert [one["pairs"] for one in manifests(tmp_path / "out")] == [12] and not dropped(tmp_path / "out")
    said = dict(
        ShapesTeacher({}).draw(
            [
                DrawingRequest("word", "a dog on a sofa", 0),
                DrawingRequest("held out", "a purple triangle on a white background", 0),
                DrawingRequest("many", "three red circles and two blue squares on a black background", 0),
            ]
        )
    )
    assert {name: answer.problem.partition(": ")[2] for name, answer in said.items()} == {
        "word": "the tiny world has no words for it",
        "held out": "it is held out from training",
        "many": "a scene has 4 objects at most",
    }

    with pytest.raises(ValueError, match="has no settings"):
        ShapesTeacher({"size": 3})


@pytest.mark.parametrize("name", ["prompt", "model", "n", "generator", "num_images_per_prompt"])
def test_settings_do_not_replace_what_a_collection_decides(collect, endpoint, tmp_path, capsys, name):
    assert collect(tmp_path / "out", "--set", f"{name}=3") == 2
    assert f"Got {name!r} as a setting of the teacher. Leave it out." in capsys.readouterr().err
    assert endpoint.bodies == []
    with pytest.raises(ValueError, match="one picture for each prompt"):
        PipelineTeacher(GroupPipe(), "pipe", {name: 3})


def test_settings_are_json_or_texts():
    assert _options(["a=1", "b=0.5", "c=true", "size=8x8", 'd="1"', "e=x=y"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "size": "8x8",
        "d": "1",
        "e": "x=y",
    }
    with pytest.raises(ValueError, match="must be written KEY=VALUE"):
        _options(["size"])
