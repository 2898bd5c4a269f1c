"""What a study measures of pictures and answers is what it says."""

import numpy as np
import pytest

from blip3o_hf import packaged_model_path
from blip3o_hf.shapes import EVALUATION_FAMILIES, render, sample_scene
from blip3o_hf.shapes.benchmark import ASKED_KINDS, held_out_prompts, plans_of
from blip3o_hf.shapes.study_benchmark import StudyBenchmark
from blip3o_hf.shapes.study_measures import Answers, Distance, Diversity, Drawing

FAST = {"num_inference_steps": 2, "plan": False}


class Painter:
    """A pipeline whose pictures are those of a function of a text and its generator; it keeps what it was asked."""

    def __init__(self, paint):
        self.paint, self.asked = paint, []

    def set_progress_bar_config(self, **kwargs):
        pass

    def __call__(self, texts, generator, **call):
        self.asked += [(text, each.initial_seed(), call) for text, each in zip(texts, generator, strict=True)]
        images = [self.paint(text, each) for text, each in zip(texts, generator, strict=True)]
        return type("Output", (), {"images": images, "attempts": None, "accepted": None})


def with_painter(measure, paint):
    """A measure with a stand-in for the pipeline of every run, which is returned, too."""
    painter = Painter(paint)
    measure.pipeline = lambda run: painter
    return measure, painter


def of_scenes(prompts, texts=None):
    """Paints the scene of each prompt, or of the text beside it."""
    scenes = dict(zip(texts or [prompt.text for prompt in prompts], prompts, strict=True))
    rng = np.random.default_rng(0)
    return lambda text, generator: render(sample_scene(scenes[text], rng, split="test"))


def noise(text, generator):
    return np.random.default_rng(generator.initial_seed()).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def grey(text, generator):
    return np.full((64, 64, 3), 128, dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with the packaged model as its result."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pipeline").symlink_to(packaged_model_path(), target_is_directory=True)
    return folder


def test_the_packaged_model_draws_and_answers(run):
    drawn = Drawing({"per_family": 1, "num_inference_steps": 4, "plan": True})(run)
    assert set(drawn) == {"overall", *EVALUATION_FAMILIES}
    assert drawn["overall"] == [value for family in EVALUATION_FAMILIES for value in drawn[family]]
    assert np.mean(drawn["overall"]) > 0.5
    answered = Answers({"per_kind": 1})(run)
    assert len(answered["overall"]) == len(ASKED_KINDS) and np.mean(answered["overall"]) > 0.7


def test_drawing_is_of_held_out_prompts_and_the_verifier_s(tmp_path):
    prompts = held_out_prompts(2, seed=1)
    measure, painter = with_painter(Drawing({"per_family": 2, **FAST}), of_scenes(prompts))
    drawn = measure(tmp_path)
    assert drawn["overall"] == [1.0] * len(prompts) and all(
        drawn[family] == [1.0] * 2 for family in EVALUATION_FAMILIES
    )
    assert [text for text, *_ in painter.asked] == [prompt.text for prompt in prompts]
    assert [seed for _, seed, _ in painter.asked] == list(range(1, len(prompts) + 1))
    assert all(call == {"num_attempts": 1, **FAST} for *_, call in painter.asked)
    assert set(with_painter(Drawing({"per_family": 1}), grey)[0](tmp_path)["overall"]) == {0.0}


def test_families_are_measured_together_where_a_study_names_them(tmp_path):
    prompts = held_out_prompts(2, seed=1)
    painted = of_scenes([prompt for prompt in prompts if prompt.family != "counting"])
    counted = {prompt.text for prompt in prompts if prompt.family == "counting"}
    groups = {"weak": ["counting", "position"]}
    measure, _ = with_painter(
        Drawing({"per_family": 2, "groups": groups}),
        lambda text, generator: painted(text, generator) if text not in counted else grey(text, generator),
    )
    assert measure(tmp_path)["weak"] == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"A group has a name of its own\. Got `overall`, which is measured anyway"):
        Drawing({"groups": {"overall": ["counting"]}})
    message = "Unknown family of the group `weak`: 'count'. Did you mean 'counting'"
    with pytest.raises(ValueError, match=message):
        Drawing({"groups": {"weak": ["count"]}})


def test_a_model_that_cannot_plan_is_given_plans(tmp_path):
    prompts = held_out_prompts(1, seed=1)
    texts = plans_of(prompts, 1)
    measure, painter = with_painter(Drawing({"per_family": 1, "from_plans": True}), of_scenes(prompts, texts))
    assert measure(tmp_path)["overall"] == [1.0] * len(prompts)
    assert [text for text, *_ in painter.asked] == texts


def test_a_pipeline_without_noise_has_no_diversity(tmp_path):
    settings = {"num_prompts": 3, "num_pictures": 4}
    measure, painter = with_painter(Diversity(settings), grey)
    same = measure(tmp_path)
    assert same == {"features": [0.0] * 3, "layouts": [0.25] * 3}
    prompts = held_out_prompts(1, seed=1)[:3]
    assert [text for text, *_ in painter.asked] == [prompt.text for prompt in prompts for _ in range(4)]
    assert [seed for _, seed, _ in painter.asked] == [1, 2, 3, 4] * 3
    scenes = with_painter(Diversity(settings), of_scenes(prompts))[0](tmp_path)
    assert min(scenes["features"]) > 0.01 and max(scenes["layouts"]) > 0.5


def test_true_pictures_are_near_to_true_ones_and_noise_is_far(tmp_path):
    number = 120
    prompts = held_out_prompts(-(-number // len(EVALUATION_FAMILIES)), seed=2)[:number]
    measure, painter = with_painter(Distance({"num_pictures": number}), of_scenes(prompts))
    (near,) = measure(tmp_path)["frechet"]
    (far,) = with_painter(Distance({"num_pictures": number}), noise)[0](tmp_path)["frechet"]
    assert len(painter.asked) == number
    assert 0 < near < far / 20


def test_a_training_is_scored_by_plans_or_by_prompts():
    prompts = held_out_prompts(2, seed=1)
    for is_planned, texts in ((True, plans_of(prompts, 1)), (False, [prompt.text for prompt in prompts])):
        painter = Painter(of_scenes(prompts, texts))
        scores = StudyBenchmark({"per_family": 2, "from_plans": is_planned}).drawing(painter)
        assert scores["overall"] == 1 and all(scores[family] == 1 for family in EVALUATION_FAMILIES)
        assert [text for text, *_ in painter.asked] == texts and scores["frechet"] > 0
    assert [text for text, *_ in painter.asked] != plans_of(prompts, 1)


@pytest.mark.parametrize(
    ("measure", "settings", "message"),
    [
        (Drawing, {"per_famly": 1}, "Unknown key 'per_famly' in the settings of Drawing. Did you mean 'per_family'"),
        (Drawing, {"num_pictures": 1}, "Unknown key 'num_pictures' in the settings of Drawing"),
        (Drawing, {"per_family": 0}, r"`per_family` must be a whole number of at least 1\. Got 0"),
        (Diversity, {"num_pictures": 1}, r"`num_pictures` must be a whole number of at least 2\. Got 1"),
        (Diversity, {"num_prompts": "8"}, r"`num_prompts` must be a whole number of at least 1\. Got '8'"),
        (Distance, {"num_pictures": 1}, r"`num_pictures` must be a whole number of at least 2\. Got 1"),
        (Answers, {"per_kind": 0.5}, r"`per_kind` must be a whole number of at least 1\. Got 0\.5"),
        (Answers, {"plan": False}, "Unknown key 'plan' in the settings of Answers"),
    ],
)
def test_settings_that_measure_nothing_are_refused(measure, settings, message):
    with pytest.raises(ValueError, match=message):
        measure(settings)
