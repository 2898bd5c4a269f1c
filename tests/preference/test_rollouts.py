"""Groups of pictures of prompts: each from its own noise, the same on every machine and in every batch."""

import numpy as np
import pytest
import torch

from blip3o_hf.pipelines.planning import spawn
from blip3o_hf.preference.reward_task import diversity
from blip3o_hf.preference.rollouts import Rollout, Rollouts
from blip3o_hf.training.trainer import seeded_generator

PROMPTS = ["a red circle", "two blue squares"]


def of_step(step, first=0, number=2):
    """A generator for each prompt of a step."""
    return [seeded_generator(0, step, first + index) for index in range(number)]


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline()


def test_each_picture_is_that_of_the_pipeline_without_guidance(pipe):
    rollouts = Rollouts(pipe, num_generations=3, num_steps=4)
    rollout = rollouts(PROMPTS, of_step(5))
    assert len(rollout.features) == 6 and rollout.num_generations == 3
    for position, prompt in enumerate(PROMPTS):
        for index, generator in enumerate(spawn(of_step(5)[position], 3)):
            alone = pipe(
                prompt,
                num_inference_steps=4,
                guidance_scale=1.0,
                generator=generator,
                output_type="features",
            ).image_features
            drawn = pipe.model.denormalize_features(rollout.features[3 * position + index])
            torch.testing.assert_close(drawn, alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.condition[0], rollout.condition[2])
    torch.testing.assert_close(rollout.condition[::3], pipe.encode_prompt(PROMPTS))


def test_a_prompt_is_drawn_the_same_in_any_batch_and_anew_in_each_step(pipe):
    rollouts = Rollouts(pipe, num_generations=2, num_steps=2)
    both, second = rollouts(PROMPTS, of_step(3)).features, rollouts(PROMPTS[1:], of_step(3, 1, 1)).features
    torch.testing.assert_close(both[2:], second, atol=1e-6, rtol=1e-6)
    assert torch.equal(rollouts(PROMPTS, of_step(3)).features, both)
    assert not torch.allclose(rollouts(PROMPTS, of_step(4)).features, both)
    assert not torch.allclose(both[0], both[1])


def test_pictures_are_those_of_the_decoder(pipe):
    rollouts = Rollouts(pipe, num_generations=2, num_steps=2)
    rollout = rollouts(PROMPTS, of_step(0))
    pictures = rollouts.pictures(rollout)
    features = pipe.model.denormalize_features(rollout.features)
    expected = pipe(image_features=features).images
    assert [np.asarray(p).tolist() for p in pictures] == [np.asarray(p).tolist() for p in expected]


def test_the_group_of_a_prompt_is_drawn_from_one_plan(pipe):
    plain = Rollouts(pipe, num_generations=2, num_steps=2)(PROMPTS, of_step(0))
    write, plans = pipe.write_plans, []
    pipe.write_plans = lambda prompts, **given: plans.extend(write(prompts, max_new_tokens=6, **given)) or plans[-1:]
    pipe.register_to_config(default_plan=True, plan_top_p=0.9)
    found = [Rollouts(pipe, num_generations=2, num_steps=2)(PROMPTS, of_step(0)) for _ in range(2)]
    assert len(plans) == 4 and plans[:2] == plans[2:]
    torch.testing.assert_close(found[0].condition[::2], torch.cat([pipe.encode_prompt([plan]) for plan in plans[:2]]))
    assert torch.equal(found[0].condition[0], found[0].condition[1])
    assert torch.equal(found[0].features, found[1].features) and not torch.allclose(found[0].features, plain.features)


def test_what_is_no_policy_is_refused(pipe, make_pipeline):
    with pytest.raises(ValueError, match=r"`num_generations` must be a whole number of at least 2\. Got 1"):
        Rollouts(pipe, num_generations=1)
    with pytest.raises(ValueError, match=r"The objective 'feature_regression' has none\. Take a model with a flow"):
        Rollouts(make_pipeline(objective="feature_regression"))


def test_diversity_is_the_distance_of_two_pictures_of_a_prompt():
    features = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    rollout = Rollout(torch.zeros(6, 1, 1), features, 3, ())
    expected = []
    for group in features.flatten(1).unflatten(0, (2, 3)):
        squares = [(group[i] - group[j]).square().mean() for i, j in ((0, 1), (0, 2), (1, 2))]
        expected.append(torch.stack(squares).mean().sqrt().item())
    assert diversity(rollout) == pytest.approx(sum(expected) / 2, rel=1e-5)
    same = Rollout(torch.zeros(6, 1, 1), features[:1].expand(6, -1, -1, -1), 3, ())
    assert diversity(same) == 0
