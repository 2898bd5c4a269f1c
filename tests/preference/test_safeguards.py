"""Safeguards stop a run at their limit, say why, and show the curve."""

import math

import pytest
from PIL import Image
from tests.preference.runs import darkness, history
from transformers import TrainerControl, TrainerState, TrainingArguments

from blip3o_hf.preference.safeguards import SAFEGUARDS

VALUES = {  # by the name of each limit: the limit, and values the last of which is beyond it
    "max_kl": (0.5, [0.1, 0.5, 0.6]),
    "max_velocity_growth": (1.5, [1.0, 1.5, 1.6]),
    "min_diversity": (0.7, [2.0, 1.4, 1.3]),
    "reward_patience": (2, [0.3, 0.5, 0.4, 0.5]),
    "max_real_loss_growth": (1.1, [1.0, 1.1, 1.2]),
}


@pytest.mark.parametrize("name", SAFEGUARDS)
def test_each_stops_at_its_limit_and_not_before(name, tmp_path, caplog):
    limit, values = VALUES[name]
    guard = SAFEGUARDS[name](limit, tmp_path / "safeguards")
    arguments, state = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"), TrainerState()
    for step, value in enumerate(values, start=1):
        control = TrainerControl()
        for logs in ({"other": 1.0}, {guard.metric: math.nan}, {guard.metric: value}):
            state.global_step = step
            state.log_history.append({"step": step, **logs})
            guard.on_log(arguments, state, control, logs=logs)
        assert control.should_training_stop == (step == len(values)), (step, value)
    assert guard.tripped_at == len(values)
    assert Image.open(tmp_path / "safeguards" / f"{guard.metric}.png").size > (100, 100)
    (warning,) = [record.getMessage() for record in caplog.records if "The run stops" in record.getMessage()]
    assert warning.startswith(f"The run stops at step {len(values)}: {guard.metric} is {values[-1]:.4g} after")
    assert f"beyond the limit {limit:.4g}. {guard.advice}" in warning and guard.advice.endswith(".")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("nft", {"max_kl": 1e-12, "beta": 1e-3}),
        ("grpo", {"max_kl": 1e-12, "max_velocity_growth": 1000.0}),
        ("dpo", {"max_kl": 1e-12}),
        ("grpo", {"max_velocity_growth": 1e-3}),
        ("dpo", {"max_velocity_growth": 1e-3}),
        ("nft", {"min_diversity": 0.7}),
    ],
)
def test_a_run_stops_and_can_go_on_without(start, monkeypatch, kind, settings):
    falling = iter([2.0, 1.5, 1.3, 1.2, 1.1, 1.0])
    monkeypatch.setattr("blip3o_hf.preference.reward_task.diversity", lambda rollout: next(falling))
    trainer = start(kind, max_steps=6, save_strategy="no", **settings)
    trainer.train()
    (name, *_) = settings
    metric = SAFEGUARDS[name].metric
    stopped = trainer.state.global_step
    assert 1 <= stopped < 6
    assert len([entry for entry in trainer.state.log_history if metric in entry]) == stopped
    assert (trainer.args.output_folder / "safeguards" / f"{metric}.png").is_file()


def test_held_out_rewards_and_real_losses_stop_a_run(start, make_image):
    real = [{"image": make_image(0), "caption": "two red circles"}]
    parts = {"eval_dataset": [{"prompt": "a green cross", "tag": 1}], "real_dataset": real}
    settings = {"max_steps": 6, "save_strategy": "no", "evaluation_steps": 1}

    def same(prompts, completions, **columns):
        return [0.5] * len(prompts)

    patient = start("nft", rewards=same, parts=parts, reward_patience=2, **settings)
    patient.train()
    assert patient.state.global_step == 3
    assert all(len(history(patient, name)) == 3 for name in ("kl", "loss", "eval_reward"))  # of steps, and beside them
    strict = start("nft", rewards=darkness, parts=parts, max_real_loss_growth=1e-3, **settings)
    strict.train()
    assert strict.state.global_step == 1


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            "nft",
            {"max_kl": 0.1, "beta": 0.0},
            r"`max_kl` compares with the reference, .* `max_kl` 0\.1 and `beta` 0\. Set",
        ),
        ("grpo", {"max_velocity_growth": 2.0, "beta": 0.0}, r"`max_velocity_growth` compares with the reference"),
        ("nft", {"max_kl": 0}, "`max_kl` must be a number above 0. Got 0."),
        ("nft", {"min_diversity": "much"}, "`min_diversity` must be a number above 0. Got 'much'."),
        ("nft", {"reward_patience": 1.5}, "`reward_patience` must be a whole number of at least 1. Got 1.5."),
        ("nft", {"max_real_loss_growth": 1.1}, r"There is no `real_dataset`\. Pass one, or leave it out"),
    ],
)
def test_limits_of_nothing_are_refused(start, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        start(kind, **settings)
