"""Flow-GRPO: trajectories with noise in some steps, and ratios of their probabilities."""

import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.preference.runs import StopAt, changed, history, weights

from blip3o_hf.preference.flow_grpo import FlowGRPOConfig
from blip3o_hf.preference.rollouts import NoisySteps, Rollouts
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from blip3o_hf.training.trainer import seeded_generator

PROMPTS = ["a red circle", "two blue squares"]


def generators(step=0):
    return [seeded_generator(7, step, index) for index in range(len(PROMPTS))]


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline(Blip3oFlowScheduler(integer_timesteps=False))


@torch.no_grad()
def euler(pipe, condition, latents, levels):
    """Euler's steps along noise levels."""
    for sigma, after in itertools.pairwise(levels):
        timestep = pipe.model.training_timestep(torch.tensor([sigma]))
        latents = latents + (after - sigma) * pipe.transformer(latents, timestep, condition).sample
    return latents


# What is drawn


@pytest.mark.parametrize("sde_type", ["ddim", "flow"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_with_little_noise_pictures_are_those_of_euler(pipe, sde_type, scale):
    rollouts = Rollouts(pipe, num_generations=2, num_steps=4, guidance_scale=scale)
    found = rollouts.trajectories(PROMPTS, generators(), NoisySteps(0, 3, 1e-4, sde_type)).features
    torch.testing.assert_close(found, rollouts(PROMPTS, generators()).features, atol=2e-3, rtol=1e-3)
    noisy = rollouts.trajectories(PROMPTS, generators(), NoisySteps(0, 3, 0.7, sde_type)).features
    assert (noisy - found).abs().mean() > 0.05


def test_steps_outside_of_the_window_are_euler_s(pipe):
    rollouts = Rollouts(pipe, num_generations=2, num_steps=5)
    found = rollouts.trajectories(PROMPTS, generators(), NoisySteps(2, 4, 0.7, "ddim"))
    assert found.samples.shape == (3, 4, 16, 4, 4) and found.sigmas == pytest.approx((0.6, 0.4, 0.2))
    first = rollouts.trajectories(PROMPTS, generators(), NoisySteps(0, 1, 0.7, "ddim")).samples[0]
    reached = euler(pipe, found.condition, first, (1.0, 0.8, 0.6))
    torch.testing.assert_close(reached, found.samples[0], atol=1e-5, rtol=1e-5)
    end = euler(pipe, found.condition, found.samples[2], (0.2, 0.0))
    torch.testing.assert_close(end, found.features, atol=1e-5, rtol=1e-5)


def test_noise_of_a_picture_does_not_depend_on_what_else_is_drawn(pipe):
    rollouts, noisy = Rollouts(pipe, num_generations=2, num_steps=3), NoisySteps(0, 2, 0.7, "ddim")
    both = rollouts.trajectories(PROMPTS, generators(), noisy)
    second = rollouts.trajectories(PROMPTS[1:], generators()[1:], noisy)
    torch.testing.assert_close(both.samples[:, 2:], second.samples, atol=1e-5, rtol=1e-5)


def test_the_network_is_told_of_noise_levels_as_in_training(make_pipeline):
    """Where the sampler cuts what it is told: 666, and 667 in training."""
    pipe, told = make_pipeline(), []
    pipe.transformer.register_forward_pre_hook(lambda module, given: told.append(given[1].item()))
    rollouts = Rollouts(pipe, num_generations=2, num_steps=3)
    rollouts.trajectories(PROMPTS[:1], generators()[:1], NoisySteps(0, 2, 0.7, "ddim"))
    assert told == [1000.0, 667.0, 333.0] == pipe.model.training_timestep(rollouts.levels()).tolist()
    told.clear()
    rollouts(PROMPTS[:1], generators()[:1])
    assert told == [1000.0, 666.0, 333.0]


# What is learned


@pytest.mark.parametrize(
    "settings",
    [
        {"sde_type": "ddim"},
        {"sde_type": "cps", "rollout_guidance_scale": 2.0},
        {"sde_type": "flow", "sde_window_range": (1, 3), "beta": 0.0},
        {"guard": True, "sde_window_size": 2, "window_schedule": "random"},
    ],
    ids=["ddim", "cps and guidance", "flow", "guard"],
)
def test_ratios_are_exactly_1_for_the_policy_that_drew_and_no_longer_after_an_update(start, settings):
    trainer = start("grpo", num_iterations=2, rollout_steps=4, save_strategy="no", **settings)
    before = weights(trainer)
    trainer.train()
    ratios = history(trainer, "ratio_over_clip")
    assert ratios[0] == ratios[2] == 0 < min(ratios[1], ratios[3])
    assert history(trainer, "clip_ratio/region_mean")[::2] == [0, 0]
    names = changed(trainer, before)
    assert names and all(name.startswith("transformer.") for name in names)
    assert np.isfinite(history(trainer, "loss")).all()
    divergences = history(trainer, "kl")
    assert len(divergences) == (0 if trainer.args.beta == 0 else 4)
    assert not divergences or divergences[0] == 0 < divergences[1]


def replay(start, **settings):
    """A trainer, what it drew, and what `learn` asks the network for the first step with noise."""
    trainer = start("grpo", save_strategy="no", **settings)
    task = trainer.task
    task.place = lambda: (0, 0)
    drawn, _ = task.draw(PROMPTS, generators())
    first = drawn["samples"][:, 0]
    sigma = drawn["sigmas"][:, 0].contiguous()
    return trainer, drawn, {"condition": drawn["condition"], "clean": first, "noise": first, "sigma": sigma}


def test_velocities_are_guided_as_in_the_rollout_and_the_null_branch_learns_nothing(start):
    trainer, drawn, at_step = replay(start, rollout_guidance_scale=2.0, noise_level=1e-3)
    task, model = trainer.task, trainer.model
    null_step = {**at_step, "condition": torch.zeros_like(at_step["condition"])}
    found = task._guided(model, at_step)
    null = task.velocity(model, null_step).detach()
    expected = null + 2.0 * (task.velocity(model, at_step) - null)
    torch.testing.assert_close(found, expected)
    parameters = list(model.transformer.parameters())
    pairs = [torch.autograd.grad(each.square().mean(), parameters, allow_unused=True) for each in (found, expected)]
    for actual, wanted in zip(*pairs, strict=True):
        assert (actual is None) == (wanted is None)
        if actual is not None:
            torch.testing.assert_close(actual, wanted, atol=1e-6, rtol=1e-4)
    (step,) = task._replayed(found, drawn["samples"][:, :2], drawn["sigmas"][0, :2].tolist())
    assert (step.mean - drawn["samples"][:, 1]).abs().max() < 6 * step.std  # the noise, and nothing else


def test_a_likelier_step_of_a_better_picture_has_a_smaller_loss(start):
    """After a step along the gradient, advantages times log-probabilities are larger: signs are right."""
    trainer, drawn, _ = replay(start, beta=0.0)
    task, model = trainer.task, trainer.model
    drawn["advantages"] = torch.tensor([1.0, -1.0, 0.0, 0.0, 2.0, -2.0])

    def gain():
        at_step = {
            "condition": drawn["condition"].repeat(2, 1, 1),
            "clean": drawn["samples"][:, :-1].transpose(0, 1).flatten(0, 1),
            "sigma": drawn["sigmas"][0, :-1].repeat_interleave(6),
        }
        velocity = task.velocity(model, {**at_step, "noise": at_step["clean"]})
        steps = task._replayed(velocity, drawn["samples"], drawn["sigmas"][0].tolist())
        return sum((drawn["advantages"] * step.log_prob).mean().item() for step in steps)

    before = gain()
    task.metrics.append({})
    task.learn(model, drawn, generators()).mean().backward()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            if parameter.grad is not None:
                parameter -= 1e-2 * parameter.grad / 10
    assert gain() > before


# Settings


def config(tmp_path, **settings):
    return FlowGRPOConfig(str(tmp_path), use_cpu=True, report_to="none", rollout_steps=10, **settings)


def test_windows_are_where_they_are_told(tmp_path):
    assert config(tmp_path).window(5) == (0, 9)
    fixed = config(tmp_path, sde_window_size=2, sde_window_range=[1, 6])
    assert {fixed.window(step) for step in range(9)} == {(1, 3)}
    moving = config(
        tmp_path, sde_window_size=2, sde_window_range=(1, 6), window_schedule="progressive", window_interval=3
    )
    assert [moving.window(step)[0] for step in range(17)] == [1] * 3 + [2] * 3 + [3] * 3 + [4] * 8
    drawn = config(tmp_path, sde_window_size=2, sde_window_range=(1, 6), window_schedule="random", seed=5)
    again = config(tmp_path, sde_window_size=2, sde_window_range=(1, 6), window_schedule="random", seed=5)
    found = [drawn.window(step) for step in range(60)]
    assert set(found) == {(first, first + 2) for first in (1, 2, 3, 4)}
    assert found == [again.window(step) for step in range(60)]


def test_a_resumed_run_has_the_windows_of_the_whole_one(start):
    """The levels of the pictures that are kept are those of the step that drew them, not of a later one."""
    settings = {"sde_window_size": 1, "window_schedule": "random", "rollout_steps": 6, "num_iterations": 2}
    trainer = start("grpo", callbacks=[StopAt(3)], save_steps=3, max_steps=4, **settings)
    trainer.train()
    kept = load_file(trainer.args.output_folder / "checkpoint-3" / "drawn-0-0.safetensors")
    first, last = trainer.args.window(2)
    torch.testing.assert_close(kept["sigmas"][0], torch.linspace(1, 0, 7)[first : last + 1])


def test_the_clip_is_relative_to_the_size_of_features(tmp_path):
    assert config(tmp_path).clip(65_536) == pytest.approx(1e-4, rel=0.01)
    assert config(tmp_path, sde_window_size=3).clip(65_536) == pytest.approx(1e-5, rel=0.01)
    assert config(tmp_path, guard=True).clip(65_536) == pytest.approx(2e-6, rel=0.01)
    assert config(tmp_path, guard=True, clip_scale=1.0).clip(256) == 1 / 256


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_level": 0}, "`noise_level` must be a number above 0. Got 0."),
        ({"sde_type": "ode"}, "Unknown `sde_type` 'ode'. Available: ddim, flow, cps."),
        ({"window_schedule": "later"}, "Unknown `window_schedule` 'later'."),
        ({"window_interval": 0}, "`window_interval` must be a whole number of at least 1. Got 0."),
        ({"rollout_steps": 1}, "`rollout_steps` must be a whole number of at least 2. Got 1."),
        ({"sde_window_range": (0, 3)}, r"0 <= first < last <= 2: after the last .* Got \(0, 3\)\. Leave it out"),
        ({"sde_window_range": (2, 2)}, r"Got \(2, 2\)"),
        ({"sde_window_range": [1]}, r"`sde_window_range` must be two steps, .* Got \[1\]\."),
        ({"sde_window_range": (0.5, 2)}, r"`sde_window_range` must be two steps, .* Got \(0\.5, 2\)\."),
        ({"sde_window_size": 0}, "`sde_window_size` must be a whole number of at least 1. Got 0."),
        ({"sde_window_size": 3}, r"Got sde_window_size=3 for the steps from 0 to before 2\. Take at most 2\."),
        ({"clip_scale": -1.0}, "`clip_scale` must be a number above 0. Got -1.0."),
        (
            {"guard": True, "sde_type": "cps"},
            r"GRPO-Guard corrects .* Got sde_type='cps', which has none\. Use 'ddim'",
        ),
    ],
)
def test_bad_settings_are_refused(start, settings, message):
    with pytest.raises(ValueError, match=message):
        start("grpo", **settings)


def test_pictures_of_a_prompt_may_start_from_one_noise(make_pipeline):
    rollouts = Rollouts(make_pipeline(), num_generations=3, num_steps=4)
    generators = [seeded_generator(0, index) for index in range(2)]
    alike = rollouts.trajectories(["a", "b"], generators, NoisySteps(0, 2, 0.7, "ddim", starts_alike=True)).samples
    start, after = alike[0].unflatten(0, (2, 3)), alike[1].unflatten(0, (2, 3))
    assert torch.equal(start[:, 0], start[:, 2]) and not torch.equal(start[0], start[1])
    assert not torch.equal(after[:, 0], after[:, 2])
    generators = [seeded_generator(0, index) for index in range(2)]
    apart = rollouts.trajectories(["a", "b"], generators, NoisySteps(0, 2, 0.7, "ddim")).samples
    assert torch.equal(apart[0][0], alike[0][0]) and not torch.equal(apart[0][0], apart[0][1])
