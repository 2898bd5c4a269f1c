"""Values of recipes and overrides are read by the type of their key, and errors name the key."""

import re

import pytest
from transformers.trainer_utils import IntervalStrategy

from blip3o_hf.checks import find_class
from blip3o_hf.cli import main
from blip3o_hf.shapes.recipe_data import _KEYS, ShapesData
from blip3o_hf.training.chain import load_chain
from blip3o_hf.training.plan import plan
from blip3o_hf.training.recipe_values import read_value, read_yaml, typed, write_yaml
from blip3o_hf.training.recipes import ARGUMENT_KEYS, STAGES, load_recipe, override

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
        ("data.length=1e3", 1000),
        ("data.cache=null", None),
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
        ("training.max_steps=", "`training.max_steps` must be a whole number. Got ''. Example: training.max_steps=8."),
        ("training.learning_rate=nan", "`training.learning_rate` must be a number. Got 'nan'."),
        ("training.learning_rates={queries: fast}", "`training.learning_rates.queries` must be a number. Got 'fast'."),
        ("training.seed=-3", "`training.seed` must be from 0 to 4294967295. Got -3. Leave it out for the default."),
        ("training.optim=adamw_toch", "Unknown value of `training.optim` 'adamw_toch'. Did you mean 'adamw_torch'?"),
        ("training.save_strategy=never", "Unknown value of `training.save_strategy` 'never'. Available: no, steps"),
        ("training.log_level=loud", "Unknown value of `training.log_level` 'loud'. Available: detail, debug, info,"),
        ("data.max_bad_share=lots", "`data.max_bad_share` must be a number. Got 'lots'."),
        ("data.pictures.max_bad_share=2", "`data.pictures.max_bad_share` must be from 0 to 1. Got 2."),
        ("data.length=1.5", "`data.length` must be a whole number. Got 1.5. Example: data.length=8."),
        ("data.sources.0.weight=abc", "`data.sources.0.weight` must be a number. Got 'abc'."),
        ("data.sources.0.seed=-1", "`data.sources.0.seed` must be at least 0. Got -1."),
        ("data.sources=photos", "`data.sources` must be a list. Got 'photos'."),
        ("inputs.model=", "`inputs.model` must be a text. Got ''."),
        ("output_dir=", "`output_dir` must be a text. Got ''."),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {sources: [{path: a, weight: heavy}]}", "`data.sources.0.weight` must be a number. Got 'heavy'."),
        ("data: {sources: [{path: a}], max_bad_share: lots}", "`data.max_bad_share` must be a number. Got 'lots'."),
        ("data: {pictures: {sources: [{path: a}], seed: x}}", "`data.pictures.seed` must be a whole number. Got 'x'."),
        ("data: {sources: [3]}", "`data.sources.0` must be a mapping. Got 3."),
        ("evaluation: {sources: photos}", "`evaluation.sources` must be a list. Got 'photos'."),
        ("training: {max_steps: null}", "`training.max_steps` must be a whole number. Got None."),
        ("training: {seed: -3}", "`training.seed` must be from 0 to 4294967295. Got -3."),
        ("inputs: {model: null}", "`inputs.model` must be a text. Got None."),
    ],
)
def test_a_file_s_value_of_another_type_names_its_key(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_recipe(write(f"{MINIMAL}{text}\n"))


STAGES_OF_TYPES = {
    "generation": [
        ("model.noise_shift=abc", "`model.noise_shift` must be a number. Got 'abc'."),
        ("model.num_queries=0", "`model.num_queries` must be at least 1. Got 0."),
        ("model.transformer.num_layers=abc", "`model.transformer.num_layers` must be a whole number. Got 'abc'."),
        ("model.lora=3", "`model.lora` must be a mapping. Got 3."),
        ("model.lora.rank=large", "`model.lora.rank` must be a whole number. Got 'large'."),
        ("evaluation.plan=3", "`evaluation.plan` must be true or false. Got 3."),
        ("evaluation.guidance_scale=x", "`evaluation.guidance_scale` must be a number. Got 'x'."),
        ("evaluation.prompts=a kite", "`evaluation.prompts` must be a list. Got 'a kite'."),
        ("evaluation.prompts=[a kite, '']", "`evaluation.prompts` must be at least one text, and each must say somet"),
        ("evaluation.per_family=x", "`evaluation.per_family` must be a whole number. Got 'x'."),
        ("data.long_caption_rate=x", "`data.long_caption_rate` must be a number. Got 'x'."),
    ],
    "joint": [
        ("data.understanding_rate=half", "`data.understanding_rate` must be a number. Got 'half'."),
        ("model.understanding_weight=x", "`model.understanding_weight` must be a number. Got 'x'."),
        ("data.labels_images=3", "`data.labels_images` must be true or false. Got 3."),
    ],
    "understanding": [
        ("model.vocab_size=x", "`model.vocab_size` must be a whole number. Got 'x'."),
        ("model.text.hidden_size=x", "`model.text.hidden_size` must be a whole number. Got 'x'."),
    ],
    "decoder": [("model.feature_noise=x", "`model.feature_noise` must be a number. Got 'x'.")],
    "diffusion_decoder": [("model.feature_dropout=x", "`model.feature_dropout` must be a number. Got 'x'.")],
    "encoder": [("model.vision.hidden_size=x", "`model.vision.hidden_size` must be a whole number. Got 'x'.")],
    "vae": [
        ("model.kl_weight=x", "`model.kl_weight` must be a number. Got 'x'."),
        ("model.block_out_channels=[16, x]", "`model.block_out_channels.1` must be a whole number. Got 'x'."),
    ],
}


@pytest.mark.parametrize(
    ("stage", "text", "message"), [(stage, *case) for stage, cases in STAGES_OF_TYPES.items() for case in cases]
)
def test_a_stage_refuses_a_value_by_its_key_and_so_does_a_plan(write, stage, text, message):
    recipe = load_recipe(write(f"stage: {stage}\noutput_dir: somewhere\n"), [text])
    for check in (recipe.checked, recipe.open_stage):
        with pytest.raises(ValueError, match=re.escape(message)):
            check()
    assert message in str(plan(recipe)) and len(plan(recipe).missing) == 1


@pytest.mark.parametrize("name", STAGES)
def test_every_setting_of_a_stage_has_a_type(name):
    stage = find_class(name, STAGES, "a test")
    assert set(stage.model_keys) - set(ARGUMENT_KEYS) <= set(stage.types["model"])
    assert set(stage.data_keys) <= set(stage.types.get("data", ()))
    assert set(stage.evaluation_keys) <= set(stage.types.get("evaluation", ()))
    assert set(ShapesData.types) == {key for keys in _KEYS.values() for key in keys}


def test_a_stage_reads_numbers_as_a_section_does(write):
    text = "model: {num_queries: 6.4e1, noise_shift: '2'}\ndata: {length: 1e3}\nevaluation: {prompts: [1, a]}\n"
    recipe = load_recipe(write("stage: generation\noutput_dir: somewhere\n" + text)).checked()
    assert recipe.model == {"num_queries": 64, "noise_shift": 2.0}
    assert recipe.data == {"length": 1000} and recipe.evaluation == {"prompts": ["1", "a"]}


def test_a_plan_refuses_what_the_run_would_refuse(write, capsys):
    path = str(write(MINIMAL))
    for text, message in (
        ("stage=generaton", "missing: recipe, Unknown key 'generaton' in key 'stage' of "),
        ("training.seed=-3", "`training.seed` must be from 0 to "),
        ("model.dim=wide", "missing: recipe, `model.dim` must be a whole number. Got 'wide'."),
        ("data.sources={}", "`data.sources` must be a list. Got {}."),
    ):
        assert main(["train", path, text, "--plan"]) in (1, 2)
        printed = capsys.readouterr()
        assert message in printed.out + printed.err
        assert main(["train", path, text]) == 2
        error = capsys.readouterr().err
        assert message.removeprefix("missing: recipe, ") in error and error.count("\n") == 1


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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stage: generation\nstage: decoder\n", "found the key 'stage' twice"),
        ("training: {seed: 1, seed: 2}\n", "found the key 'seed' twice"),
        ("stage: " + "[" * 50_000, "YAML is read up to 64 levels"),
        ("\x00\x01", "unacceptable character"),
    ],
)
def test_a_recipe_that_is_no_plain_mapping_is_named(tmp_path, text, reason):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"A recipe must be valid YAML. {path} is not: .*") as caught:
        load_recipe(path)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "contract"),
    [
        ("training.max_steps", -1, "must be at least 1"),
        ("training.global_batch_size", -1, "must be from 1 to 1073741824"),
        ("training.evaluation_steps", -1, "must be at least 0"),
        ("training.per_device_train_batch_size", 10**30, "must be from 1 to 1048576"),
        ("data.max_pixels", 10**99, "must be from 1 to 10000000000"),
        ("training.learning_rate", float("inf"), "must be a number"),
        ("training.muon_learning_rate", -1.0, "must be at least 0"),
        ("training.dataloader_num_workers", 10**6, "must be from 0 to 1024"),
        ("training.save_steps", 0, "must be more than 0"),
        ("training.logging_steps", 0, "must be more than 0"),
    ],
)
def test_numbers_are_in_the_range_of_their_key(key, value, contract):
    with pytest.raises(ValueError, match=f"`{key}` {contract}. Got {value!r}"):
        typed(value, float, key)
    with pytest.raises(ValueError, match=f"`{key}` {contract}. Got"):
        read_value(str(value).replace("inf", ".inf"), float, key)


def test_numbers_in_a_mapping_are_in_the_range_of_its_key():
    with pytest.raises(ValueError, match=r"`training.learning_rates.queries` must be at least 0\. Got -1\."):
        typed({"queries": -1}, dict[str, float], "training.learning_rates")
