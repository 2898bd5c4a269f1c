"""Values of recipes and overrides are read by the type of their key, and errors name the key."""

import re

import pytest
from transformers.trainer_utils import IntervalStrategy

from blip3o_hf.training.chain import load_chain
from blip3o_hf.training.recipe_values import read_yaml, write_yaml
from blip3o_hf.training.recipes import load_recipe, override

MINIMAL = "stage: decoder\noutput_dir: somewhere\n"


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding=encoding)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.learning_rate=1e-4", 1e-4),
        ("training.learning_rate=1E+2", 100.0),
        ("training.learning_rate='1e-4'", 1e-4),
        ("training.max_steps=1e3", 1000),
        ("training.max_steps=3", 3),
        ("training.bf16=true", True),
        ("training.bf16=yes", True),
        ("training.ema_decay=null", None),
        ("training.save_strategy=no", "no"),
        ("training.report_to=none", "none"),
        ("training.report_to=[tensorboard, wandb]", ["tensorboard", "wandb"]),
        ("training.run_name=1e-4", "1e-4"),
        ("training.learning_rates={queries: 1e-3}", {"queries": 1e-3}),
        ("training.deepspeed=recipes/deepspeed/zero2.json", "recipes/deepspeed/zero2.json"),
        ("model.caption_weight=2e-1", 0.2),
        ("model.train=[queries]", ["queries"]),
        ("model.transformer.norm_eps=1e-5", 1e-5),
        ("data.prompt_template=a photo: {caption}", "a photo: {caption}"),
        ("data.prompt_template={caption}, watercolor", "{caption}, watercolor"),
        ("data.prompt_template={caption}", "{caption}"),
        ("data.prompt_template='{caption}, oil'", "{caption}, oil"),
        ("data.path=shards/{000..127}.tar", "shards/{000..127}.tar"),
        ("data.path=[a, b]", ["a", "b"]),
        ("inputs.model=runs/mine: the second", "runs/mine: the second"),
        ("output_dir=2024", "2024"),
    ],
)
def test_an_override_is_read_by_the_type_of_its_key(text, value):
    content = {}
    override(content, text)
    for part in text.partition("=")[0].split("."):
        content = content[part]
    assert content == value and type(content) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "training.learning_rate=fast",
            "`training.learning_rate` must be a number. Got 'fast'. Example: training.lea",
        ),
        (
            "training.max_steps=1.5",
            "`training.max_steps` must be a whole number. Got 1.5. Example: training.max_steps=8",
        ),
        ("training.bf16=maybe", "`training.bf16` must be true or false. Got 'maybe'."),
        ("model.train=queries", "`model.train` must be a list. Got 'queries'. Example: model.train=[a, b]."),
        ("model.x={a, b: c", "The value of `model.x` must be YAML. Got '{a, b: c'"),
        ("data.sources.5.path=x", "`data.sources` is a list of 1, numbered from 0, and has no '5'."),
        ("stage.name=x", "An override must name a value. `stage` is 'decoder', and has no 'name'."),
        ("=3", "An override must be written key=value. Got '=3'."),
    ],
)
def test_an_override_that_cannot_be_names_the_key(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        override({"stage": "decoder", "data": {"sources": [{"path": "a"}]}}, text)


def test_an_override_reaches_into_a_list():
    content = {"data": {"sources": [{"path": "a"}, {"path": "b"}]}}
    override(content, "data.sources.1.prompt_template=a photo: {caption}")
    assert content["data"]["sources"] == [{"path": "a"}, {"path": "b", "prompt_template": "a photo: {caption}"}]


def test_a_file_s_numbers_may_be_written_without_a_dot(write):
    text = "training: {learning_rate: 1e-4, max_steps: 1e3, save_strategy: no, adam_epsilon: '1e-8'}\n"
    recipe = load_recipe(write(MINIMAL + text + "data: {sources: [{path: a, min_size: 6.4e1}]}\n"))
    assert recipe.training == {
        "learning_rate": 1e-4,
        "max_steps": 1000,
        "save_strategy": "no",
        "adam_epsilon": 1e-8,
    }
    assert recipe.data["sources"][0]["min_size"] == 64
    assert recipe.training_arguments().save_strategy in (IntervalStrategy.NO, "no")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_and_a_chain_are_read_whatever_mark_they_begin_with(write, tmp_path, encoding):
    assert load_recipe(write(MINIMAL + "model: {note: größer}\n", encoding)).model == {"note": "größer"}
    chain = tmp_path / "chain.yaml"
    chain.write_text("folder: größer\nstages: [{recipe: a.yaml}]\n", encoding=encoding)
    assert load_chain(chain).folder == "größer"


def test_a_chain_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "chain.yaml").write_text("stages: [\n")
    with pytest.raises(ValueError, match=r"A chain must be valid YAML\. .*chain\.yaml is not: "):
        load_chain(tmp_path / "chain.yaml")


def test_what_is_written_is_read_as_it_was(tmp_path):
    content = {"rate": 1e-05, "text": "1e-5", "prompts": ["a: b", "größer", "no"], "steps": 3}
    write_yaml(content, tmp_path / "a.yaml")
    assert read_yaml(tmp_path / "a.yaml") == content


def test_a_section_must_be_a_mapping(write):
    with pytest.raises(ValueError, match=r"Section 'training' of a recipe must be a mapping of keys\. .* has 3 there"):
        load_recipe(write(MINIMAL + "training: 3\n"))


def test_a_key_without_its_section_gets_one(write):
    with pytest.raises(ValueError, match=r"Unknown key 'learning_rate' in .*Did you mean 'training\.learning_rate'\?"):
        load_recipe(write(MINIMAL), ["learning_rate=1e-4"])


def test_the_home_folder_is_expanded_once(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load_recipe(write(MINIMAL), ["output_dir=~/runs"])
    assert recipe.output_dir == str(tmp_path / "runs")
    assert recipe.training_arguments().output_dir == str(tmp_path / "runs" / "checkpoints")
