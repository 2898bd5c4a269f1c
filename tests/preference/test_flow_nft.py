"""The trainer of rewards: what it draws, learns, keeps and refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.processes import run_script
from transformers import TrainerCallback

from blip3o_hf import packaged_model_path
from blip3o_hf.preference.flow_nft import FlowNFTConfig, FlowNFTTrainer

ROWS = [{"prompt": prompt, "tag": index} for index, prompt in enumerate(["a red circle", "two blue squares"] * 2)]


def darkness(prompts, completions, tag, **columns):
    assert len(tag) == len(prompts) == len(completions)
    return [1 - float(np.asarray(image).mean()) / 255 for image in completions]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


@pytest.fixture
def start(make_model, make_processor, make_decoder, tmp_path):
    """`start(folder, **settings)`: a trainer on a tiny model, always the same one."""

    def make(folder="run", rewards=darkness, rows=ROWS, model=None, callbacks=(), **settings):
        torch.manual_seed(0)
        settings = {
            "max_steps": 4,
            "num_generations": 3,
            "rollout_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            **settings,
        }
        arguments = FlowNFTConfig(str(tmp_path / folder), **settings)
        model = make_model() if model is None else model
        return FlowNFTTrainer(
            model,
            rewards,
            arguments,
            train_dataset=rows,
            processing_class=make_processor(),
            decoder=make_decoder(),
            callbacks=list(callbacks),
            target_encoder=f"{packaged_model_path()}/target_encoder",  # which is saved with the model
        )

    return make


def weights(trainer):
    return {name: value.clone() for name, value in trainer.unwrapped_model.state_dict().items()}


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("loss_type", ["nft", "awm"])
def test_only_the_transformer_learns_and_rewards_are_logged_by_trl_s_names(start, loss_type):
    trainer = start(loss_type=loss_type)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("transformer.") for name in changed)
    names = ("reward", "reward_std", "frac_reward_zero_std", "rewards/darkness/mean", "rewards/darkness/std", "kl")
    for name in names:
        assert len(history(trainer, name)) == 4 and np.isfinite(history(trainer, name)).all()
    assert history(trainer, "kl")[0] == 0 < history(trainer, "kl")[-1]


def test_without_a_learning_rate_nothing_changes_and_the_old_policy_is_the_new_one(start):
    trainer = start(learning_rate=0.0)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    new = trainer.unwrapped_model.state_dict()
    assert all(torch.equal(value, new[name]) for name, value in trainer.task.policies.old.items())


def test_the_old_policy_follows_as_fast_as_it_is_told(start):
    trainer = start(old_policy_slope=1.0, old_policy_max=0.75, max_steps=1)
    first = weights(trainer)
    trainer.train()
    new = trainer.unwrapped_model.state_dict()
    for name, value in trainer.task.policies.old.items():
        torch.testing.assert_close(value, torch.lerp(first[name], new[name], 0.25))


def test_a_resumed_run_equals_the_uninterrupted_one(start):
    whole = start("whole")
    whole.train()
    part = start("part", callbacks=[StopAt(2)])
    part.train()
    again = start("part")
    again.train(resume_from_checkpoint=True)
    expected = weights(whole)
    for name, value in weights(again).items():
        assert torch.equal(value, expected[name]), name
    assert history(again, "reward")[-2:] == history(whole, "reward")[-2:]


def test_a_checkpoint_without_the_policy_that_draws_is_refused(start):
    start(max_steps=2).train()
    trainer = start()
    folder = trainer.args.output_folder / "checkpoint-2"
    (folder / "old_policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold the policy that draws\. There is no .*old_policy"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_equal_rewards_teach_nothing_but_to_stay(start):
    def same(prompts, completions, **columns):
        return [0.5] * len(prompts)

    trainer = start(rewards=same, beta=0.0)
    before = weights(trainer)
    trainer.train()
    assert history(trainer, "frac_reward_zero_std") == [1.0] * 4
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, before[name], atol=1e-4, rtol=0)


def test_rewards_of_held_out_prompts_are_evaluated_on_the_same_noise(start):
    trainer = start()
    found = [trainer.evaluate([{"prompt": "a green cross", "tag": 1}])["eval_reward"] for _ in range(2)]
    assert found[0] == found[1] and 0 < found[0] < 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "`num_generations` must be a whole number of at least 2. Got 1."),
        ({"loss_type": "ppo"}, "Unknown `loss_type` 'ppo'. Available: nft, awm."),
        ({"mix_beta": 0}, "`mix_beta` must be a number above 0. Got 0."),
        ({"beta": -1.0}, "`beta` must be at least 0. Got -1.0."),
        ({"old_policy_max": 1.0}, r"`old_policy_max` must be in \[0, 1\)\. Got 1\.0"),
        ({"train": ["queries"]}, r"What learns is the transformer of a flow\. Got train=\['queries'\]"),
        ({"rows": []}, "`train_dataset` must have a prompt. It is empty."),
        ({"rows": [{"text": "a"}]}, r"a text under `prompt`\. train_dataset\[0\] has None\. Correct it"),
        ({"rows": "photos"}, "`train_dataset` must be prompts: a dataset of `datasets` or a list of rows. Got str."),
    ],
)
def test_bad_settings_and_prompts_are_refused(start, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        start(**settings)


def test_what_has_no_policy_is_refused(start, make_model):
    with pytest.raises(ValueError, match=r"the objective 'feature_regression'\. Leave `train` out, and take a model"):
        start(model=make_model(objective="feature_regression"))


def test_rows_of_one_batch_have_the_same_columns(start):
    rows = [{"prompt": "a"}, {"prompt": "b", "tag": 1}]
    with pytest.raises(ValueError, match=r"All rows must have the same columns. tag are not in all."):
        start(rows=rows, rewards=lambda prompts, completions, **columns: [0.0] * len(prompts)).train()


def test_two_processes_learn_what_one_learns(make_pipeline, tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    shutil.copytree(f"{packaged_model_path()}/target_encoder", tmp_path / "model" / "target_encoder")
    run_script("preference/nft_ranks.py", tmp_path / "model", tmp_path, timeout=240)
    one, two = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (1, 2))
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["reward"] == pytest.approx(two["reward"], rel=1e-4)
    before = pipe.model.state_dict()
    for prefix in ("", "old-"):
        first, second = (load_file(tmp_path / f"{prefix}{number}.safetensors") for number in (1, 2))
        assert any(not torch.equal(value, before[name]) for name, value in first.items())
        for name, value in first.items():
            torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-4)
