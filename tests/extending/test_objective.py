"""Objectives that this file alone defines: a model trains on them, samples, is saved, and is loaded again."""

import pytest
import torch

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, objectives, register_objective
from blip3o_hf.objectives import get_objective
from blip3o_hf.objectives.feature_flow import FeatureFlow, velocity
from blip3o_hf.objectives.feature_regression import regression_loss


class AbsoluteFlow(FeatureFlow):
    """Flow matching with an L1 loss."""

    name = "absolute_flow"

    def loss(self, prediction, target, noise=None, sigma=None):
        return (prediction - velocity(target, noise)).abs().mean()


class CleanFlow(FeatureFlow):
    """Flow matching of a transformer that predicts the clean features."""

    name = "clean_flow"

    def loss(self, prediction, target, noise=None, sigma=None):
        return regression_loss(prediction, target)

    def predicted_velocity(self, prediction, noisy, sigma):
        return (noisy - prediction) / sigma


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(objectives, "_registered", {})
    for objective in (AbsoluteFlow(), CleanFlow()):
        register_objective(objective)


BOTH = pytest.mark.parametrize("name", ["absolute_flow", "clean_flow"])


def train(model, prompts, steps=30):
    """Losses of a few steps on two images, with one noise at one level."""
    target_features, noise = torch.randn(2, 2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    inputs = {**prompts, "target_features": target_features, "noise": noise, "sigma": torch.tensor([0.4, 0.8])}
    parameters = [*model.transformer.parameters(), *model.queries.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    model.backbone.requires_grad_(False)
    losses = []
    for _ in range(steps):
        loss = model.train()(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@BOTH
def test_it_trains_samples_and_is_saved(make_pipeline, processor, tmp_path, name):
    pipe = make_pipeline(objective=name, condition_dropout=0.0)
    losses = train(pipe.model, processor.encode_prompts(["two red circles", "a blue square"]))
    assert losses[-1] < 0.7 * losses[0]

    def draw(pipe):
        output = pipe("two red circles", output_type="pt", generator=torch.Generator().manual_seed(0))
        return output.image_features

    drawn = draw(pipe)
    assert drawn.isfinite().all()
    pipe.save_pretrained(tmp_path)
    loaded = Blip3oPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.model.config.objective == name
    assert type(loaded.model.objective) is type(get_objective(name))
    assert torch.equal(draw(loaded), drawn)


def test_its_loss_is_that_of_the_model(make_model, processor, assert_close):
    model = make_model(objective="absolute_flow")
    prompts = processor.encode_prompts(["two red circles"])
    target, noise = (torch.randn(1, 16, 4, 4) for _ in range(2))
    output = model(**prompts, target_features=target, noise=noise, sigma=torch.tensor([0.3]))
    assert_close(output.loss, (output.prediction - (noise - target)).abs().mean())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_one_step_gives_the_clean_features_that_were_predicted(make_pipeline, assert_close, guidance_scale):
    pipe = make_pipeline(objective="clean_flow")
    condition = torch.randn(1, pipe.model.config.num_queries, pipe.model.config.hidden_size)
    noise = torch.randn(1, *pipe.feature_shape)
    with torch.no_grad():
        drawn = pipe.denoise(noise, condition, num_inference_steps=1, guidance_scale=guidance_scale)
        both = torch.cat([condition, torch.zeros_like(condition)])
        predicted, null = pipe.transformer(noise.repeat(2, 1, 1, 1), torch.tensor(1000.0), both).sample.chunk(2)
    assert_close(drawn, null + guidance_scale * (predicted - null))


def test_a_model_names_an_objective_that_is_known(make_model, monkeypatch, tmp_path):
    make_model(objective="clean_flow").save_pretrained(tmp_path)
    monkeypatch.setattr(objectives, "_registered", {})
    with pytest.raises(ValueError, match=r"Unknown objective 'clean_flow'\."):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.parametrize("objective", [CleanFlow, "clean_flow", None])
def test_what_is_registered_is_an_object(objective):
    with pytest.raises(TypeError, match=r"An objective is an object of a subclass of Objective\. Got .*brackets\."):
        register_objective(objective)


@pytest.mark.parametrize("name", ["feature_flow", "", None])
def test_an_objective_has_a_name_of_its_own(name):
    objective = CleanFlow()
    objective.name = name
    with pytest.raises(ValueError, match=r"An objective needs its own name, which is stored in configs\. Got "):
        register_objective(objective)
