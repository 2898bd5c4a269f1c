"""Calls at the same time on one pipeline, and what callbacks and other threads may change in a call."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

from blip3o_hf.pipelines.chat import Blip3oChat
from blip3o_hf.pipelines.checking import BackboneChecker
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler

PROMPTS = ["two red circles", "a small blue square"]


def draw(pipeline, prompt=PROMPTS, steps=4, seed=0, **settings):
    settings = {"output_type": "features", **settings}
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt, num_inference_steps=steps, generator=generator, **settings).image_features


def in_another_thread(action):
    """What `action()` returns, or the error that it raises, in a thread of its own."""
    results = []

    def run():
        try:
            results.append(action())
        except RuntimeError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return results[0]


def at_step(step, action):
    """A callback that does `action(pipe)` once."""

    def callback(pipe, index, timestep, tensors):
        if index == step:
            action(pipe)
        return tensors

    return callback


# Two calls at once


SCHEDULERS = {
    "euler": Blip3oFlowScheduler,
    "adams_bashforth2": lambda: Blip3oFlowScheduler(solver="adams_bashforth2"),
    "diffusers": FlowMatchEulerDiscreteScheduler,
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("where", ["another thread", "a callback"])
def test_a_call_in_the_midst_of_another_changes_neither(make_pipeline, name, where):
    pipeline = make_pipeline(scheduler=SCHEDULERS[name]())
    expected = draw(pipeline), draw(pipeline, PROMPTS[:1], steps=3, seed=1, guidance_scale=2.0)
    inner = []

    def act(pipe):
        def again():
            return draw(pipe, PROMPTS[:1], steps=3, seed=1, guidance_scale=2.0)

        inner.append(in_another_thread(again) if where == "another thread" else again())
        assert (pipe.guidance_scale, pipe.num_timesteps) == (3.0, 4) and pipe.current_timestep is not None

    outer = draw(pipeline, callback_on_step_end=at_step(1, act))
    assert torch.equal(outer, expected[0]) and torch.equal(inner[0], expected[1])
    assert torch.equal(draw(pipeline), expected[0])


def test_many_threads_draw_as_one_does(pipeline):
    expected = [draw(pipeline, seed=seed, steps=2 + seed) for seed in range(3)]
    barrier, drawn = threading.Barrier(3), {}

    def run(seed):
        barrier.wait()
        drawn[seed] = draw(pipeline, seed=seed, steps=2 + seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(drawn[seed], expected[seed]) for seed in range(3))


@pytest.mark.parametrize("kind", ["cache", "adapters"])
def test_a_call_that_changes_the_model_is_alone(pipeline, kind):
    settings = {}
    if kind == "cache":
        pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    else:
        settings["attention_kwargs"] = {"scale": 0.5}
    expected, refused = draw(pipeline, **settings), []
    callback = at_step(1, lambda pipe: refused.append(in_another_thread(lambda: draw(pipe))))
    assert torch.equal(draw(pipeline, callback_on_step_end=callback, **settings), expected)
    assert isinstance(refused[0], RuntimeError)
    assert "Calls at the same time must not change what all of them use" in str(refused[0])
    assert torch.equal(in_another_thread(lambda: draw(pipeline, **settings)), expected)


def test_a_pipeline_that_drew_is_copied_and_pickled(pipeline):
    expected = draw(pipeline)
    assert torch.equal(draw(copy.deepcopy(pipeline)), expected)
    assert torch.equal(draw(pickle.loads(pickle.dumps(pipeline))), expected)


def test_a_conversation_has_one_turn_at_a_time(pipeline):
    chat, refused = Blip3oChat(pipeline), []

    def act(pipe):
        refused.append(in_another_thread(lambda: chat.ask("how many circles are there?", max_new_tokens=2)))

    chat.draw("two red circles", num_inference_steps=2, callback_on_step_end=at_step(0, act))
    assert isinstance(refused[0], RuntimeError)
    assert "`ask` must not be called while another thread is running a call of the same" in str(refused[0])
    assert len(chat.messages) == 2
    assert in_another_thread(lambda: chat.ask("how many?", max_new_tokens=2)).text
    assert len(chat.messages) == 4


# Interrupts


def test_an_interrupt_leaves_out_the_remaining_steps(pipeline):
    steps, latents = [], []

    def callback(pipe, index, timestep, tensors):
        steps.append(index)
        latents.append(tensors["latents"])
        assert not pipe.interrupt
        if index == 1:
            pipe._interrupt = True
            assert pipe.interrupt
        return tensors

    features = draw(pipeline, callback_on_step_end=callback)
    assert steps == [0, 1] and torch.equal(features, pipeline.model.denormalize_features(latents[-1]))
    assert pipeline.interrupt
    plain = draw(pipeline)
    assert not pipeline.interrupt and not torch.equal(features, plain)


def test_another_thread_interrupts(pipeline):
    def stop(pipe):
        in_another_thread(lambda: setattr(pipe, "_interrupt", True))

    steps = []

    def callback(pipe, index, timestep, tensors):
        steps.append(index)
        stop(pipe)
        return tensors

    images = pipeline(PROMPTS, callback_on_step_end=callback).images
    assert steps == [0] and len(images) == 2
    pipeline._interrupt = True  # nothing runs, and nothing is interrupted
    draw(pipeline, callback_on_step_end=at_step(3, lambda pipe: steps.append(3)))
    assert steps == [0, 3]


def test_an_interrupted_picture_is_not_drawn_again(pipeline):
    settings = {"num_attempts": 3, "checker": lambda images, texts: [0.0] * len(images)}
    interrupt = at_step(1, lambda pipe: setattr(pipe, "_interrupt", True))
    assert pipeline("two red circles", callback_on_step_end=interrupt, **settings).attempts == [1]
    assert pipeline("two red circles", **settings).attempts == [3]


def test_an_interrupted_turn_is_not_drawn_again(pipeline, monkeypatch):
    monkeypatch.setattr(BackboneChecker, "__call__", lambda self, images, texts: [0.0])
    interrupt = at_step(1, lambda pipe: setattr(pipe, "_interrupt", True))
    reply = Blip3oChat(pipeline).draw("two red circles", num_attempts=3, callback_on_step_end=interrupt)
    assert reply.attempts == 1
    assert Blip3oChat(pipeline).draw("two red circles", num_attempts=3).attempts == 3


# Guidance


def test_guidance_is_switched_off_from_a_step_on(pipeline, assert_close):
    expected = draw(pipeline, guidance_interval=(0.6, 1.0))  # the steps at 1000 and 750
    for callback in (
        SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1),
        SDCFGCutoffCallback(cutoff_step_ratio=0.25),
        MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.25)]),
        at_step(1, lambda pipe: setattr(pipe, "_guidance_scale", 1.0)),
    ):
        assert torch.equal(draw(pipeline, callback_on_step_end=callback), expected)
        assert pipeline.guidance_scale == 1.0
    assert not torch.equal(draw(pipeline), expected)


def test_guidance_is_switched_on_and_changed(pipeline, assert_close):
    expected = draw(pipeline, guidance_interval=(0.0, 0.6))
    switch = at_step(1, lambda pipe: setattr(pipe, "_guidance_scale", np.float32(3)))
    assert_close(draw(pipeline, guidance_scale=1.0, callback_on_step_end=switch), expected)


def test_a_condition_is_replaced_in_a_callback(pipeline, assert_close):
    other = pipeline.encode_prompt("a green triangle").repeat(2, 1, 1)

    def callback(pipe, index, timestep, tensors):
        assert tensors.keys() == {"latents", "prompt_embeds"}
        return {"prompt_embeds": other} if index == 0 else {}

    names = ["latents", "prompt_embeds"]
    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": names}
    changed = draw(pipeline, **given)
    first = []
    draw(pipeline, callback_on_step_end=lambda pipe, index, timestep, tensors: first.append(tensors["latents"]))

    def swap(pipe, index, timestep, tensors):
        return {"latents": first[0]} if index == 0 else {}

    assert_close(changed, draw(pipeline, ["a green triangle"] * 2, callback_on_step_end=swap))
    given["callback_on_step_end"] = lambda pipe, index, timestep, tensors: {"prompt_embeds": other[:, :2]}
    with pytest.raises(
        ValueError, match=r"`prompt_embeds` of a callback must keep their shape, \[2, 5, 32\]. Got \[2"
    ):
        draw(pipeline, **given)


def test_what_a_run_tells_of_itself(pipeline):
    assert (pipeline.guidance_scale, pipeline.num_timesteps, pipeline.current_timestep) == (None, None, None)
    timesteps = []

    def callback(pipe, index, timestep, tensors):
        assert torch.equal(pipe.current_timestep, timestep) and (pipe.num_timesteps, pipe.guidance_scale) == (4, 2.5)
        timesteps.append(float(timestep))

    draw(pipeline, guidance_scale=2.5, callback_on_step_end=callback)
    assert timesteps == [1000, 750, 500, 250]
    assert (pipeline.num_timesteps, pipeline.current_timestep) == (4, None)
