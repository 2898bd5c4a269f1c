"""A trained flow becomes a map of few steps: what it learns from, what changes, and what is left."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image
from tests.conftest import FEATURE_DIM, FEATURE_SIZE
from torch.nn.attention import SDPBackend, sdpa_kernel

from blip3o_hf import Blip3oPipeline, Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.checkpoints.published_config import published_config
from blip3o_hf.models.adapters import lora_config
from blip3o_hf.pipelines.denoising import FeatureDenoiser
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from blip3o_hf.training.recipes import load_recipe
from blip3o_hf.training.runs import run_recipe
from blip3o_hf.training.tasks.flow_map import FlowMapTask, _ends

PROMPTS = ("two red circles", "a small blue square", "three green triangles", "a yellow circle")
SHAPE = (FEATURE_DIM, FEATURE_SIZE, FEATURE_SIZE)


@pytest.fixture(scope="module")
def encoder(make_tower):
    return make_tower()


@pytest.fixture
def start(make_model, make_processor, make_decoder, encoder, brief, rows):
    """`start(folder, task={...}, model=..., peft_config=..., **arguments)`: a Trainer that makes a flow map."""

    def make(folder="run", task=None, model=None, peft_config=None, **settings):
        torch.manual_seed(0)
        return Blip3oTrainer(
            make_model() if model is None else model,
            brief(folder, **{"learning_rate": 3e-3, **settings}),
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=make_processor(),
            target_encoder=encoder,
            decoder=make_decoder(),
            task=FlowMapTask(**{"teacher_steps": 4, **(task or {})}),
            peft_config=peft_config,
        )

    return make


def condition_of(trainer):
    inputs = trainer.processing_class.encode_prompts(list(PROMPTS))
    return trainer.task.model.encode_condition(**inputs).detach()


def noise(number, seed=0):
    return torch.randn(number, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_a_new_map_is_the_flow_that_it_is_made_of(make_model):
    flow = make_model().transformer
    flow_map = flow.as_flow_map()
    states, condition = noise(2), torch.randn(2, 5, 32)
    times = torch.tensor([900.0, 300.0])
    expected = flow(states, times, condition).sample
    for to in (None, 0.0, torch.tensor([10.0, 299.0])):
        torch.testing.assert_close(flow_map(states, times, condition, r_timestep=to).sample, expected)
    with pytest.raises(ValueError, match=r"received one with is_flow_map=True\. Start from the model"):
        flow_map.as_flow_map()
    with pytest.raises(
        ValueError, match=r"`r_timestep` is for a flow map; received it for a transformer with is_flow"
    ):
        flow(states, times, condition, r_timestep=0.0)


def test_a_path_is_what_the_pipeline_draws_with_guidance(start, make_pipeline):
    trainer = start(task={"teacher_steps": 5, "teacher_guidance_scale": 3.0})
    condition, begin = condition_of(trainer), noise(4)
    path, levels = trainer.task.path(begin, condition)
    assert path.shape == (6, 4, *SHAPE) and (levels[0], levels[-1]) == (1, 0) and torch.equal(path[0], begin)
    pipe = make_pipeline(scheduler=Blip3oFlowScheduler(integer_timesteps=False))
    drawn = pipe.generate_features(condition, 5, 3.0, latents=begin)
    torch.testing.assert_close(path[-1], drawn, atol=1e-5, rtol=1e-4)


def test_intervals_begin_and_end_on_a_path_and_follow_it(start):
    trainer = start()
    task, condition = trainer.task, condition_of(trainer)
    generators = [torch.Generator().manual_seed(index) for index in range(4)]
    noisy, sigma, sigma_to, velocity = task._intervals(condition, generators, draws=8)
    assert len(noisy) == 32 and (sigma > sigma_to).all() and (sigma_to >= 0).all()
    begin = torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    path, levels = task.path(begin, condition)
    for row in range(32):
        first = int((levels == sigma[row]).nonzero())
        last = int((levels == sigma_to[row]).nonzero())
        torch.testing.assert_close(noisy[row], path[first, row // 8])
        arrived = noisy[row] - (sigma[row] - sigma_to[row]) * velocity[row]
        torch.testing.assert_close(arrived, path[last, row // 8], atol=1e-5, rtol=1e-4)


def test_ends_are_in_order_and_often_the_whole_path():
    begin, end = _ends(torch.Generator().manual_seed(0), 4000, 12)
    begin, end = np.array(begin), np.array(end)
    assert (begin < end).all() and begin.min() == 0 and end.max() == 12 and set(begin) == set(range(12))
    assert 0.1 < ((begin == 0) & (end == 12)).mean() < 0.25


@pytest.mark.parametrize("targets", ["trajectory", "mean_flow"])
def test_a_map_learns_and_nothing_else_changes(start, make_model, targets, tmp_path):
    trainer = start(task={"targets": targets}, max_steps=40, save_steps=40, noise_draws=8)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    if targets == "trajectory":
        assert after["eval_loss_of_1_steps"] < 0.5 * before["eval_loss_of_1_steps"]
        assert after["eval_loss"] < 0.7 * before["eval_loss"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.isfinite(losses).all()
    old = make_model().state_dict()
    new = trainer.task.model.state_dict()
    changed = {name.split(".")[0] for name, value in old.items() if not torch.equal(value, new[name])}
    assert changed == {"transformer"}
    assert set(new) - set(old) == {name for name in new if "interval_embedder" in name}
    teacher = {f"transformer.{name}": value for name, value in trainer.task.teacher.state_dict().items()}
    assert all(torch.equal(old[name], value) for name, value in teacher.items())


def test_what_is_left_draws_in_one_step_without_guidance(start, tmp_path):
    trainer = start()
    trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    pipe = Blip3oPipeline.from_pretrained(tmp_path / "result")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.config.is_flow_map and pipe.config.default_guidance_scale == 1.0
    assert pipe.config.default_num_inference_steps == 4
    assert pipe.model.config.condition_dropout == 0
    calls = []
    pipe.transformer.register_forward_hook(lambda *args: calls.append(len(args[2].sample)))
    pipe("two red circles", num_inference_steps=1)
    assert calls == [1]
    text = (tmp_path / "result" / "README.md").read_text()
    assert "followed in 4 steps, with guidance 2 (`trajectory`)" in text
    pipe.scheduler = Blip3oFlowScheduler.from_config(pipe.scheduler.config, solver="adams_bashforth2")
    message = r"A flow map is sampled by Euler steps\. Got Blip3oFlowScheduler with solver='adams_bashforth2'\. Set"
    with pytest.raises(ValueError, match=message):
        pipe("two red circles", num_inference_steps=2)
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    with pytest.raises(ValueError, match="Got UniPCMultistepScheduler with solver=None"):
        pipe("two red circles", num_inference_steps=2)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe("two red circles", num_inference_steps=2)
    with pytest.raises(ValueError, match=r"drawn without guidance: it learned .* Got guidance_scale=3\. Leave it out"):
        pipe("two red circles", num_inference_steps=2, guidance_scale=3.0)
    with pytest.raises(ValueError, match=r"with flow matching on plain features\. Got a flow map\."):
        published_config(pipe.model.config)


def test_sampling_tells_the_map_where_each_step_goes(start):
    trainer = start()
    model = trainer.task.model
    torch.nn.init.normal_(model.transformer.time_caption_embed.interval_embedder.linear_2.weight)
    condition, state = condition_of(trainer)[:2], noise(2)
    scheduler = Blip3oFlowScheduler(shift=3.0, integer_timesteps=False)
    scheduler.set_timesteps(3)
    denoiser = FeatureDenoiser(model, scheduler, condition)
    with torch.no_grad():
        for index in range(3):
            level, to = 1000 * scheduler.sigmas[index], 1000 * scheduler.sigmas[index + 1]
            expected = model.transformer(state, level, condition, r_timestep=to).sample
            torch.testing.assert_close(denoiser.predict(state, index), expected, atol=1e-5, rtol=1e-4)
            other = model.transformer(state, level, condition).sample
            assert (other - expected).abs().max() > 1e-3


def test_mean_flow_asks_for_what_its_identity_says(start):
    trainer = start(task={"targets": "mean_flow"})
    task, condition = trainer.task, condition_of(trainer)
    for transformer in (task.model.transformer, task.teacher):  # slow in time, so that differences are derivatives
        weight = transformer.time_caption_embed.timestep_embedder.linear_1.weight
        weight.data.unflatten(1, (2, -1))[..., :64] = 0
    generators = [torch.Generator().manual_seed(index) for index in range(4)]
    noisy, sigma, sigma_to, target = task._mean_flow(noise(4, seed=9), condition, generators, draws=6)
    condition = condition.repeat_interleave(6, dim=0)
    assert (sigma >= sigma_to).all()
    with torch.no_grad():
        velocity = task._teacher_velocity(noisy, sigma, condition)
        instants = sigma == sigma_to
        assert instants.any() and (~instants).any()
        torch.testing.assert_close(target[instants], velocity[instants])
        span, step = (sigma - sigma_to).view(-1, 1, 1, 1), 1e-3
        with sdpa_kernel(SDPBackend.MATH):
            ahead, behind = (
                task.model.transformer(
                    noisy + sign * step * velocity,
                    1000 * (sigma + sign * step),
                    condition,
                    r_timestep=1000 * sigma_to,
                ).sample
                for sign in (1, -1)
            )
        growth = (ahead - behind) / (2 * step)
        lengths = (span * growth).flatten(1).norm(dim=1)
        near = (lengths < velocity.flatten(1).norm(dim=1)) & (sigma < 0.99)  # where nothing is cut
        assert (near & ~instants).sum() > 5
        expected = velocity - span * growth
        scale = velocity.flatten(1).norm(dim=1).mean()
        assert ((target - expected).flatten(1).norm(dim=1)[near] < 0.02 * scale).all()
    change = (target - velocity).flatten(1).norm(dim=1)
    assert (change <= 1.001 * velocity.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("targets", ["trajectory", "mean_flow"])
def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(start, targets):
    settings = {"task": {"targets": targets}, "lr_scheduler_type": "constant"}
    whole = start("whole", **settings)
    whole.train()
    half = start("half", max_steps=2, **settings)
    half.train()
    rest = start("half", **settings)
    rest.train(resume_from_checkpoint=True)
    expected, found = whole.task.model.state_dict(), rest.task.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in found.items())


@pytest.mark.parametrize("targets", ["trajectory", "mean_flow"])
def test_a_frozen_backbone_in_half_precision_is_enough(start, targets):
    trainer = start(task={"targets": targets}, frozen_dtype="bfloat16", max_steps=1)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    assert {each.dtype for each in trainer.task.teacher.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in trainer.task.model.transformer.parameters()} == {torch.float32}


def test_another_condition_in_the_middle_of_a_run_changes_what_follows(start):
    trainer = start()
    model, conditions = trainer.task.model, condition_of(trainer)
    scheduler = Blip3oFlowScheduler(integer_timesteps=False)
    scheduler.set_timesteps(3)
    denoiser, state = FeatureDenoiser(model, scheduler, conditions[:2]), noise(2)
    with torch.no_grad():
        denoiser.predict(state, 0)
        denoiser.condition = conditions[2:]
        fresh = FeatureDenoiser(model, scheduler, conditions[2:])
        torch.testing.assert_close(denoiser.predict(state, 1), fresh.predict(state, 1))


def test_what_is_no_flow_becomes_no_map(start, make_model):
    with pytest.raises(
        ValueError, match=r"What becomes a flow map is the whole transformer\. Got train=\['queries'\]"
    ):
        start(train=["queries"])
    model = make_model()
    with pytest.raises(ValueError, match=r"Got train=None and adapters\. Leave both out\."):
        start(model=model, peft_config=lora_config(model))
    regression = make_model(objective="feature_regression", num_queries=FEATURE_SIZE**2)
    with pytest.raises(ValueError, match=r"objective 'feature_regression', which draws in one pass already"):
        start(model=regression)
    trainer = start()
    with pytest.raises(ValueError, match="received one with is_flow_map=True"):
        start(model=trainer.task.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "trajectories"}, "Unknown kind of `targets` 'trajectories'.*Did you mean 'trajectory'"),
        ({"teacher_steps": 0}, r"`teacher_steps` must be a whole number of at least 1\. Got 0"),
        ({"teacher_guidance_scale": 0}, r"`teacher_guidance_scale` must be positive\. Got 0\. 1 is no guidance\."),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        FlowMapTask(**settings)


def test_a_map_does_not_learn_what_a_flow_learns(start, make_processor, make_decoder, encoder, tmp_path):
    model = start().task.model
    message = r"A flow map cannot learn what a flow learns: it would forget its steps\. Got a model of few steps\."
    with pytest.raises(ValueError, match=message):
        Blip3oTrainer(
            model,
            Blip3oTrainingArguments(str(tmp_path / "flow"), use_cpu=True, report_to="none"),
            train_dataset=[{"image": Image.new("RGB", (32, 32)), "caption": "a"}],
            processing_class=make_processor(),
            target_encoder=encoder,
            decoder=make_decoder(),
        )


def test_the_recipe_needs_no_encoder_and_makes_a_map_of_the_packaged_model(tmp_path):
    overrides = [
        "inputs.model=blip3o-tiny",
        f"output_dir={tmp_path / 'run'}",
        "data.length=8",
        "training.max_steps=1",
        "training.warmup_steps=0",
    ]
    overrides += ["training.evaluation_steps=0", "training.per_device_train_batch_size=2", "training.noise_draws=2"]
    overrides += ["model.teacher_steps=2", "evaluation={benchmark: null, num_inference_steps: 4}"]
    recipe = load_recipe("tiny/flow_map", overrides)
    assert run_recipe(recipe).steps == 1
    pipe = Blip3oPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    assert pipe.transformer.config.is_flow_map and pipe.config.default_num_inference_steps == 4
