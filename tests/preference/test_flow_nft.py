"""DiffusionNFT: its losses, the older policy that draws, and what it refuses."""

import numpy as np
import pytest
import torch
from tests.preference.runs import changed, history, weights


@pytest.mark.parametrize("loss_type", ["nft", "awm", "positives"])
def test_each_loss_changes_the_transformer_alone(start, loss_type):
    trainer = start(loss_type=loss_type, max_steps=2, save_strategy="no")
    before = weights(trainer)
    trainer.train()
    names = changed(trainer, before)
    assert names and all(name.startswith("transformer.") for name in names)
    assert np.isfinite(history(trainer, "loss")).all()


def test_without_a_learning_rate_nothing_changes_and_the_old_policy_is_the_new_one(start):
    trainer = start(learning_rate=0.0, max_steps=2, save_strategy="no")
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    new = trainer.unwrapped_model.state_dict()
    assert all(torch.equal(value, new[name]) for name, value in trainer.task.policies.old.items())


def test_the_old_policy_follows_as_fast_as_it_is_told(start):
    trainer = start(old_policy_slope=1.0, old_policy_max=0.75, max_steps=1, save_strategy="no")
    first = weights(trainer)
    trainer.train()
    new = trainer.unwrapped_model.state_dict()
    for name, value in trainer.task.policies.old.items():
        torch.testing.assert_close(value, torch.lerp(first[name], new[name], 0.25))


def test_the_old_policy_is_the_one_that_drew_as_long_as_its_pictures_are_learned_from(start):
    trainer = start(num_iterations=2, max_steps=3, save_strategy="no", old_policy_max=0.0)
    seen, learn = [], trainer.task.learn

    def watched(*given):
        seen.append(trainer.task.policies.old["transformer.norm_out.linear_1.weight"].clone())
        return learn(*given)

    trainer.task.learn = watched
    trainer.train()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_a_checkpoint_without_the_policy_that_draws_is_refused(start):
    start(max_steps=2).train()
    trainer = start()
    folder = trainer.args.output_folder / "checkpoint-2"
    (folder / "old_policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold the policy that draws\. There is no .*old_policy"):
        trainer.train(resume_from_checkpoint=str(folder))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "`num_generations` must be a whole number of at least 2. Got 1."),
        ({"loss_type": "ppo"}, "Unknown `loss_type` 'ppo'. Available: nft, awm, positives."),
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
