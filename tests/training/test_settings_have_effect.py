"""A setting takes effect, or is refused with what to do in its place."""

import json
import re
from dataclasses import fields

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import Adafactor, TrainingArguments

from blip3o_hf import Blip3oTrainer, Blip3oTrainingArguments
from blip3o_hf.cli import main
from blip3o_hf.training.arguments import WITHOUT_EFFECT
from blip3o_hf.training.finetune import finetune_recipes
from blip3o_hf.training.optimizers import build_optimizer


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for color in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), color).save(folder / f"{color}.png")
        (folder / f"{color}.txt").write_text(f"a {color} sheet")
    return folder


@pytest.fixture
def make_args(tmp_path):
    def make(**settings):
        shared = {"max_steps": 1, "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        return Blip3oTrainingArguments(str(tmp_path), **{**shared, **settings})

    return make


# Optimizers


@pytest.mark.parametrize(
    ("settings", "kind", "expected"),
    [
        ({}, torch.optim.AdamW, {"fused": None}),
        ({"optim": "adamw_torch_fused"}, torch.optim.AdamW, {"fused": True}),
        ({"optim": "sgd", "optim_args": "momentum=0.5"}, torch.optim.SGD, {"momentum": 0.5}),
        ({"optim": "adafactor"}, Adafactor, {"relative_step": False}),
    ],
)
def test_the_optimizer_is_the_one_that_was_asked_for(make_args, settings, kind, expected):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    rates = {"learning_rate": 0.25, "weight_decay": 0.125, "learning_rates": {"1": 0.5}}
    optimizer = build_optimizer(model, make_args(**rates, **settings))
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.125
        assert {name: group[name] for name in expected} == {
            name: type(value)(group[name]) if value is not None else None for name, value in expected.items()
        }


def test_an_optimizer_of_one_s_own_is_taken(make_args):
    model = nn.Linear(3, 4)
    optimizer = build_optimizer(model, make_args(), (torch.optim.SGD, {"lr": 0.5}))
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["lr"] == 0.5
    with pytest.raises(ValueError, match=r"Muon trains matrices, .* and the optimizer SGD\. Leave one of them out\."):
        build_optimizer(model, make_args(muon_learning_rate=0.1), (torch.optim.SGD, {"lr": 0.5}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"optim": "galore_adamw"},
            "`optim` must be an optimizer that takes groups of parameters. Got 'galore_adamw'",
        ),
        ({"optim": "sgd", "muon_learning_rate": 0.1}, "Got `muon_learning_rate` 0.1 and `optim` 'sgd'. Leave one"),
        (
            {"label_smoothing_factor": 0.1},
            "`label_smoothing_factor` has none in this Trainer: the tasks define the losses",
        ),
        ({"average_tokens_across_devices": False}, "`average_tokens_across_devices` has none in this Trainer"),
        ({"eval_accumulation_steps": 3}, "`eval_accumulation_steps` has none in this Trainer: the tasks evaluate"),
        ({"include_for_metrics": ["loss"]}, "`include_for_metrics` has none in this Trainer"),
        ({"hub_strategy": "all_checkpoints"}, "`hub_strategy` must be 'end' or 'every_save'. Got 'all_checkpoints'"),
        ({"hub_always_push": True}, "`hub_always_push` has none in this Trainer: only results are pushed"),
    ],
)
def test_what_would_change_nothing_is_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_args(**settings)


def test_the_settings_without_effect_are_settings():
    assert set(WITHOUT_EFFECT) <= {field.name for field in fields(TrainingArguments)}


@pytest.mark.parametrize("name", ["compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"])
def test_functions_that_would_not_be_called_are_refused(make_args, photos, name):
    with pytest.raises(
        ValueError, match=f"An argument must have an effect. `{name}` has none: the task defines losses"
    ):
        Blip3oTrainer("blip3o-tiny", make_args(), train_dataset=str(photos), **{name: print})


def test_too_few_data_for_one_batch_are_refused(make_args, photos):
    args = make_args(per_device_train_batch_size=4, dataloader_drop_last=True)
    trainer = Blip3oTrainer("blip3o-tiny", args, train_dataset=str(photos))
    message = (
        r"Training needs a batch for every process\. There are 3 records, and a step of all processes takes 4\. Make"
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()
    trainer.args.dataloader_drop_last = False
    assert trainer.train().global_step == 1


# Overrides of `finetune`


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "learning_rate=1e-4",
            "Unknown key 'learning_rate' in the overrides of finetune. Did you mean 'training.lear",
        ),
        ("prompt_template=a {caption}", "Did you mean 'data.prompt_template'?"),
        ("foo=bar", "Unknown key 'foo' in the overrides of finetune."),
        ("trainning.max_steps=3", "Unknown key 'trainning' in the overrides of finetune. Did you mean 'training'?"),
        ("training.max_step=3", "Unknown key 'max_step' in section 'training'"),
        ("training.max_steps=many", "`training.max_steps` must be a whole number. Got 'many'."),
        ("training=3", "An override must name a key, as training.KEY=value. Got training=3."),
        (
            "data.prompt_templat=x",
            "Unknown key 'prompt_templat' in the settings of the data. Did you mean 'prompt_tem",
        ),
        ("model.caption_weigt=1", "Unknown key 'caption_weigt' in the settings of the model. Did you mean 'caption_w"),
        ("training.optim=sgd", "Got `muon_learning_rate` 0.01 and `optim` 'sgd'."),
    ],
)
def test_a_key_of_finetune_takes_effect_or_is_refused_before_anything_is_written(
    photos, tmp_path, capsys, override, message
):
    out = tmp_path / "mine"
    assert main(["finetune", "--data", str(photos), "--output", str(out), "--steps", "1", override]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_settings_about_the_machine_are_both_stages(photos):
    settings = {"save_steps": 7, "seed": 3, "learning_rate": 0.5}
    recipes = finetune_recipes(photos, "out", training_settings=settings)
    assert {name: recipes["generation"]["training"][name] for name in settings} == settings
    training = recipes["decoder"]["training"]
    assert (training["save_steps"], training["seed"]) == (7, 3) and training["learning_rate"] != 0.5
    assert json.dumps(recipes)
