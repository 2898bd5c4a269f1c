"""What a recipe resolves to; that every recipe parses, and how a bad one is refused, stands in tests/repo."""

import re
from dataclasses import fields

import pytest

from blip3o_hf.training.arguments import Blip3oTrainingArguments
from blip3o_hf.training.recipes import ARGUMENT_KEYS, Recipe, load_recipe, training_keys

MINIMAL = "stage: decoder\noutput_dir: somewhere\n"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_a_recipe_is_read_as_written(write):
    path = write(
        MINIMAL
        + "inputs: {encoder: there}\nmodel: {dim: 16}\ndata: {length: 8}\n"
        + "training: {max_steps: 3, learning_rate: 1.0e-3}\nevaluation: {per_kind: 2}\n"
    )
    assert load_recipe(path) == Recipe(
        stage="decoder",
        output_dir="somewhere",
        inputs={"encoder": "there"},
        model={"dim": 16},
        data={"length": 8},
        training={"max_steps": 3, "learning_rate": 1e-3},
        evaluation={"per_kind": 2},
        source=str(path),
    )


def test_overrides_add_sections_and_read_values_as_yaml(write):
    overrides = ["model.transformer.num_layers=6", "training.bf16=true", "training.learning_rate=0.5", "data.note=a=b"]
    recipe = load_recipe(write(MINIMAL), overrides)
    assert recipe.model == {"transformer": {"num_layers": 6}}
    assert recipe.training == {"bf16": True, "learning_rate": 0.5}
    assert recipe.data == {"note": "a=b"}


def test_training_arguments_put_checkpoints_under_the_output_folder(write, tmp_path):
    recipe = load_recipe(write(MINIMAL), [f"output_dir={tmp_path}", "training.max_steps=7", "training.use_cpu=true"])
    arguments = recipe.training_arguments()
    assert arguments.output_dir == str(tmp_path / "checkpoints")
    assert arguments.max_steps == 7
    assert (arguments.noise_draws, arguments.ema_decay, arguments.muon_learning_rate) == (1, None, None)


def test_every_training_field_but_the_output_folder_may_be_set(write):
    names = {field.name for field in fields(Blip3oTrainingArguments)} - {"output_dir", "feature_cache", *ARGUMENT_KEYS}
    assert training_keys() == names
    with pytest.raises(ValueError, match=r"Unknown key 'output_dir' in section 'training' of \S+\."):
        load_recipe(write(MINIMAL), ["training.output_dir=x"])


def test_invalid_yaml_is_refused_with_its_place(write):
    pattern = r"A recipe must be valid YAML. \S+recipe.yaml is not: .+line 1, column 8.+ Correct that line\."
    with pytest.raises(ValueError, match=f"(?s)^{pattern}$"):
        load_recipe(write("stage: [\noutput_dir: x\n"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            (
                {"ema_decay": decay},
                f"`ema_decay` must be between 0 and 1. Got {decay}. Typical values are 0.995 to 0.9999; leave it "
                "out to keep no average.",
            )
            for decay in (0.0, 1.0, 1.5)
        ),
        ({"noise_draws": 0}, "`noise_draws` must be at least 1. Got 0. Use 1 for the plain loss."),
    ],
)
def test_bad_training_arguments_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oTrainingArguments(output_dir=str(tmp_path), **settings)
