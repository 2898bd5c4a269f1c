"""What all trainers of rewards share: what learns, what is logged and evaluated, and how runs go on."""

import math

import numpy as np
import pytest
import torch
from tests.preference.runs import KINDS, StopAt, changed, darkness, history, weights

from blip3o_hf import objectives
from blip3o_hf.models.adapters import lora_config
from blip3o_hf.objectives.feature_flow import FeatureFlow
from blip3o_hf.pipelines.denoising import FeatureDenoiser
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler

HELD_OUT = [{"prompt": prompt, "tag": 0} for prompt in ("a green cross", "three circles", "a yellow square")]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@pytest.mark.parametrize("bf16", [False, True])
def test_only_the_transformer_learns_and_values_have_trl_s_names(start, kind, bf16):
    trainer = start(kind, max_steps=3, save_strategy="no", bf16=bf16)
    before = weights(trainer)
    trainer.train()
    names = changed(trainer, before)
    assert names and all(name.startswith("transformer.") for name in names)
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rewards/darkness/mean", "rewards/darkness/std"):
        assert len(history(trainer, name)) == 3 and np.isfinite(history(trainer, name)).all()
    assert history(trainer, "kl")[0] == 0 < history(trainer, "kl")[-1] < 1
    assert history(trainer, "velocity_growth")[0] == 1 != history(trainer, "velocity_growth")[-1]
    assert min(history(trainer, "diversity")) > 0


@every_kind
def test_without_a_learning_rate_nothing_changes(start, kind):
    trainer = start(kind, learning_rate=0.0, max_steps=2, save_strategy="no", num_iterations=2)
    before, rewards = weights(trainer), trainer.evaluate(HELD_OUT)["eval_reward"]
    trainer.train()
    assert not changed(trainer, before)
    assert trainer.evaluate(HELD_OUT)["eval_reward"] == rewards
    assert history(trainer, "kl") == [0, 0]


TWICE = {"num_iterations": 2, "gradient_accumulation_steps": 2, "save_steps": 1}
RESUMED = [*((kind, 1, False, TWICE) for kind in KINDS), ("nft", 2, True, {}), ("grpo", 2, True, {})]


@pytest.mark.parametrize(
    ("kind", "stop", "is_lora", "settings"),
    RESUMED,
    ids=[
        f"{kind}, {'adapters' if is_lora else 'between updates from one drawing'}" for kind, _, is_lora, _ in RESUMED
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(start, make_model, kind, stop, is_lora, settings):
    def trainer(folder, **more):
        model = make_model()
        parts = {"peft_config": lora_config(model, rank=2, train_queries=False)} if is_lora else {}
        return start(kind, folder, model=model, parts=parts, **{**settings, **more})

    whole = trainer("whole", save_strategy="no")
    whole.train()
    trainer("part", callbacks=[StopAt(stop)]).train()
    again = trainer("part", save_strategy="no")
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 and not changed(again, weights(whole))
    for name in ("reward", "loss"):
        assert history(again, name) == history(whole, name)


def test_pictures_that_are_missing_in_a_checkpoint_are_named(start):
    settings = {"num_iterations": 2, "save_steps": 1}
    start("grpo", callbacks=[StopAt(1)], **settings).train()
    trainer = start("grpo", **settings)
    folder = trainer.args.output_folder / "checkpoint-1"
    smaller = start("grpo", per_device_train_batch_size=1, **settings)
    with pytest.raises(ValueError, match=r"These settings need 3 in a micro-batch, and .*checkpoint-1 has 6\. Resume"):
        smaller.train(resume_from_checkpoint=str(folder))
    (folder / "drawn-0-0.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"must hold the pictures that it learns from\. There is no .*drawn-0-0"
    ):
        trainer.train(resume_from_checkpoint=str(folder))


@every_kind
def test_equal_rewards_teach_nothing(start, kind):
    """0.1, whose mean is not 0.1 after rounding; and `None` is no picture that is better or worse than these."""

    def same(prompts, completions, **columns):
        return [None if index % 4 == 1 else 0.1 for index in range(len(prompts))]

    settings = {"num_generations": 4, "max_steps": 2, "save_strategy": "no"}
    trainer = start(kind, rewards=same, **settings, **({} if kind == "dpo" else {"beta": 0.0}))
    before = weights(trainer)
    trainer.train()
    assert history(trainer, "frac_reward_zero_std") == [1.0] * 2 and max(history(trainer, "reward_std")) < 1e-12
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, before[name], atol=1e-4, rtol=0)
    if kind == "dpo":
        assert history(trainer, "frac_pairs") == [0, 0] and not history(trainer, "rewards/accuracies")


@every_kind
def test_rewards_that_do_not_apply_are_left_out(start, kind):
    def sometimes(prompts, completions, **columns):
        return [value if index % 3 else None for index, value in enumerate(darkness(prompts, completions))]

    def never(prompts, completions, **columns):
        return [math.nan] * len(prompts)

    trainer = start(
        kind, rewards=[sometimes, never], max_steps=2, save_strategy="no", parts={"eval_dataset": HELD_OUT}
    )
    trainer.train()
    found = trainer.evaluate()
    assert found["eval_reward"] == pytest.approx(found["eval_rewards/sometimes"]) and 0 < found["eval_reward"] < 1
    assert all(value.isfinite().all() for value in weights(trainer).values())
    assert len(history(trainer, "rewards/sometimes/mean")) == 2 and not history(trainer, "rewards/never/mean")
    assert history(trainer, "reward") == pytest.approx(history(trainer, "rewards/sometimes/mean"))


@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_where_no_reward_applies_nothing_is_learned(start, kind):
    def never(prompts, completions, **columns):
        return [None] * len(prompts)

    trainer = start(kind, rewards=never, max_steps=2, save_strategy="no", **({} if kind == "dpo" else {"beta": 0.0}))
    before = weights(trainer)
    trainer.train()
    assert not history(trainer, "reward") and np.isfinite(history(trainer, "loss")).all()
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, before[name], atol=1e-4, rtol=0)


@every_kind
def test_held_out_prompts_and_real_pictures_are_evaluated_on_the_same_noise(start, kind, make_image):
    real = [{"image": make_image(index), "caption": "two red circles"} for index in range(3)]
    trainer = start(kind, parts={"eval_dataset": HELD_OUT, "real_dataset": real}, per_device_eval_batch_size=2)
    first, second = trainer.evaluate(), trainer.evaluate()
    names = {"eval_reward", "eval_rewards/darkness", "eval_diversity", "eval_loss", "eval_real_loss"}
    assert set(first) == names | {"epoch"} and all(map(math.isfinite, first.values())) and first == second
    assert first["eval_loss"] == -first["eval_reward"] and first["eval_real_loss"] > 0.1


@pytest.mark.parametrize("kind", ["nft", "grpo"])
def test_the_scheduler_of_the_model_s_repository_draws(start, kind, make_pipeline, tmp_path):
    make_pipeline(Blip3oFlowScheduler(shift=3.0, solver="adams_bashforth2")).save_pretrained(tmp_path / "model")
    trainer = start(kind, model=str(tmp_path / "model"), max_steps=1, save_strategy="no")
    trainer.train()
    torch.testing.assert_close(trainer.task.rollouts.levels(), torch.tensor([1.0, 6 / 7, 0.6]))
    assert np.isfinite(history(trainer, "loss")).all() and np.isfinite(history(trainer, "grad_norm")).all()


class CleanFlow(FeatureFlow):
    """A flow whose model predicts clean features."""

    name = "clean_flow"

    def predicted_velocity(self, prediction, noisy, sigma):
        return (noisy - prediction) / sigma


@every_kind
def test_velocities_are_those_of_the_objective(start, make_model, kind, monkeypatch):
    monkeypatch.setattr(objectives, "_registered", {})
    objectives.register_objective(CleanFlow())
    trainer = start(kind, model=make_model(objective="clean_flow"), max_steps=1, save_strategy="no", learning_rate=0.0)
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(2, 5, 32, generator=generator)
    latents = torch.randn(2, 16, 4, 4, generator=generator)
    sigma = torch.full((2,), 0.5)
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(sigmas=[0.5])
    with torch.no_grad():
        expected = FeatureDenoiser(trainer.model, scheduler, condition).predict(latents, 0)
        at_noise = {"condition": condition, "clean": latents, "noise": latents, "sigma": sigma}
        found = trainer.task.velocity(trainer.model, at_noise)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@every_kind
def test_the_same_columns_are_in_all_rows_of_a_step(start, kind):
    rows = [{"prompt": "a"}, {"prompt": "b", "tag": 1}]
    with pytest.raises(ValueError, match=r"All rows must have the same columns. tag are not in all."):
        start(kind, rows=rows).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_iterations": 0}, "`num_iterations` must be a whole number of at least 1. Got 0."),
        ({"rollout_guidance_scale": 0}, "`rollout_guidance_scale` must be a number above 0. Got 0."),
        ({"scale_rewards": "all"}, "Unknown `scale_rewards` 'all'. Available: group, batch, none."),
        ({"multi_objective_aggregation": "mean"}, "Unknown `multi_objective_aggregation` 'mean'."),
        ({"advantage_clip": float("nan")}, "`advantage_clip` must be a number above 0. Got nan."),
        ({"reward_weights": [1.0, 2.0]}, "`weights` must be a finite number for each of 1 rewards."),
        ({"rewards": []}, "There must be a reward. Got none."),
        (
            {"reward_patience": 2},
            "`reward_patience` watches the reward of held-out prompts. There is no `eval_dataset`.",
        ),
    ],
)
@every_kind
def test_bad_settings_are_refused(start, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        start(kind, **settings)


def test_a_config_of_another_trainer_is_refused(start, tmp_path):
    trainer_class, _ = KINDS["grpo"]
    _, other = KINDS["nft"]
    with pytest.raises(TypeError, match=r"This trainer takes a FlowGRPOConfig. Got FlowNFTConfig."):
        trainer_class(start().model, darkness, other(str(tmp_path)), processing_class=start().processing_class)
