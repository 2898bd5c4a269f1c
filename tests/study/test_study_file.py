"""A study's file is checked whole before anything runs."""

from pathlib import Path

import pytest
import yaml

from blip3o_hf.study.study_file import load_study
from blip3o_hf.training.recipes import load_recipe


def changed(content, where, value):
    """The content with another value at a place such as `arms.plain.recipe`; `None` deletes it."""
    *path, last = where.split(".")
    section = content
    for key in path:
        section = section[key]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return content


def test_a_study_is_read_as_it_stands(content, make_study):
    study = make_study(content)
    assert (study.title, study.folder, study.seeds) == ("Two ways", Path("runs"), (0, 7))
    assert [arm.name for arm in study.ordered()] == ["eye", "plain", "further"]
    assert study.is_part("eye") and not study.is_part("plain")
    assert study.arm("plain").search.by == "overall" and study.arm("plain").title == ""
    assert study.comparisons[0].paper == "section 0"


@pytest.mark.parametrize("name", ["smoke", "laptop", "tuning", "digits", "paper"])
def test_a_study_of_the_package_can_run(name):
    study = load_study(f"study/{name}")
    asked = {arm for comparison in study.comparisons for arm in (comparison.of, comparison.against)}
    measured = {arm.name for measure in study.measures for arm in study.arms if measure.is_of(arm)}
    assert asked and asked <= measured
    searched = [arm for arm in study.arms if arm.search]
    begun_at = {need for arm in study.arms for need in arm.needs}  # by all that are compared
    assert name == "smoke" or all(arm.search or arm.name in begun_at for arm in study.arms)
    starts = {(arm.search.key, arm.search.values) for arm in searched if not any(n != "vae" for n in arm.needs)}
    assert name == "smoke" or len(starts) <= 2  # one search for all that begin alike


def test_examples_are_those_of_all_processes_where_the_recipe_says_so():
    study = load_study("study/paper")
    assert study.pictures("clip_flow") == 48_000 * 512


def test_both_kinds_of_data_of_a_joint_recipe_have_the_seed():
    study = load_study("study/paper")
    data = study.load(study.arm("joint"), 43).data
    assert (data["pictures"]["seed"], data["conversations"]["seed"]) == (1043, 1043) and "seed" not in data


def test_overrides_may_hold_lists_that_arms_share(content, make_study):
    shared = ["training.weight_decay=0.5", ["training.warmup_steps=1"]]
    content["arms"]["plain"]["overrides"] = [shared, "inputs.encoder={eye}"]
    content["arms"]["plain"]["search"]["overrides"] = [shared]
    study = make_study(content)
    flat = ("training.weight_decay=0.5", "training.warmup_steps=1")
    assert study.arm("plain").overrides == (*flat, "inputs.encoder={eye}")
    assert study.arm("plain").search.overrides == flat


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("title", None, r"A study must have the key 'title'\. .*study.yaml has not\. Add it\."),
        ("folder", None, "must have the key 'folder'"),
        ("seeds", None, "must have the key 'seeds'"),
        ("arms", None, r"A study compares `arms`\. .*study.yaml has none\. See recipes/study/"),
        ("arms", {}, "A study compares `arms`"),
        ("seed", [1], "Unknown key 'seed' in .*Did you mean 'seeds'"),
        ("more", [], "Unknown key 'more' in .*study.yaml"),
        ("title", ["a"], r"`title` must be a text\. Got \['a'\]"),
        ("seeds", 3, r"`seeds` must be a list\. Got 3"),
        ("seeds", ["a"], r"`seeds\.0` must be a whole number\. Got 'a'"),
        ("seeds", [], r"A study needs different seeds\. Got \[\]\. Write seeds: \[0, 1, 2\]\."),
        ("seeds", [1, 2, 1], r"A study needs different seeds\. Got \[1, 2, 1\]"),
        ("seeds", [-1], r"`training\.seed` must be from 0 to .* Got -1"),
        ("arms", ["plain"], r"`arms` must be a mapping"),
        ("arms.plain", "decoder.yaml", r"`arms\.plain` must be a mapping"),
        ("arms.Plain-One", {"recipe": "decoder.yaml"}, r"small letters, digits and _\. Got 'Plain-One' in `arms`"),
        ("arms.plain.search.direction", "up", "Unknown direction of `arms.plain.search`: 'up'"),
        ("arms.plain.recipe", None, r"`arms\.plain` must have the key 'recipe'\. Got overrides, search\. Add it\."),
        ("arms.plain.recip", "a", r"Unknown key 'recip' in `arms\.plain`\. Did you mean 'recipe'"),
        ("arms.plain.overrides", "a=b", r"`arms\.plain\.overrides` must be a list\. Got 'a=b'"),
        ("arms.plain.overrides", [{}], r"`arms\.plain\.overrides\.0` must be a text"),
        ("arms.plain.overrides", ["inputs.encoder={eyes}"], r"part or arm in the overrides of `plain`: 'eyes'"),
        ("arms.plain.overrides", ["inputs.model={further}"], r"must not wait for one another\. further, plain of"),
        ("arms.plain.overrides", ["inputs.model={plain}"], r"must not wait for one another\. further, plain of"),
        ("arms.plain.overrides", ["training.max_step=1"], "Unknown key 'max_step'"),
        ("arms.plain.overrides", ["model.dims=1"], "Unknown key 'dims' in section 'model'"),
        ("arms.plain.search", {"key": "a"}, r"`arms\.plain\.search` must have a `key` and its `values`\. Got key\."),
        ("arms.plain.search.values", [], r"must have a `key` and its `values`"),
        ("arms.plain.search.value", [1], r"Unknown key 'value' in `arms\.plain\.search`\. Did you mean 'values'"),
        ("arms.plain.search.key", "training.rate", "Unknown key 'rate'"),
        ("arms.plain.search.values", ["fast"], r"`training\.learning_rate` must be a number\. Got 'fast'"),
        ("arms.plain.search.overrides", ["training.max_steps=0"], r"`training\.max_steps` must be at least 1"),
        (
            "arms.plain.search.key",
            "training.max_steps",
            r"must leave seeds and budgets as they are\. That of `plain` is",
        ),
        ("arms.plain.search.key", "data.seed", r"is of data\.seed\. Make an arm for each value\."),
        ("parts.plain", {"recipe": "encoder.yaml"}, "must have different names. Got eye, plain, further, plain"),
        ("parts.eye.overrides", ["inputs.a={plain}"], r"Unknown part in the overrides of `eye`: 'plain'"),
        ("measures.result.kind", None, r"`measures\.result` must have the key 'kind'"),
        ("measures.result.kind", "tests.study.stand_ins:Nothing", "has no class 'Nothing'"),
        ("measures.result.kind", "no_such_module:A", "finds no module 'no_such_module'"),
        ("measures.result.settings", [1], r"`measures\.result\.settings` must be a mapping"),
        ("measures.result.arms", ["plane"], r"Unknown arm of `result`: 'plane'\. Did you mean 'plain'"),
        ("measures.result.arms", ["eye"], r"Unknown arm of `result`: 'eye'"),
        ("plots.curves.arms", ["none"], r"Unknown arm of `curves`: 'none'"),
        ("plots.curves.score", None, r"`plots\.curves` must have the key 'score'"),
        ("comparisons.rates.of", "eye", "Unknown arm of the comparison `rates`: 'eye'"),
        ("comparisons.rates.against", "x", "Unknown arm of the comparison `rates`: 'x'"),
        ("comparisons.rates.value", "results.rate", r"measure of the comparison `rates`: 'results'\. Did you mean"),
        ("comparisons.rates.direction", "up", r"direction of the comparison `rates`: 'up'\. Available: higher, lower"),
        ("comparisons.rates.budget", "even", r"budget of the comparison `rates`: 'even'\. Available: equal, free"),
        ("comparisons.rates.hypothesis", None, r"`comparisons\.rates` must have the key 'hypothesis'"),
        ("comparisons.rates.budget", None, r"that saw as many pictures\. In `rates`, plain sees 24 and further 48\."),
    ],
)
def test_what_is_wrong_is_said(content, make_study, where, value, message):
    with pytest.raises(ValueError, match=message):
        make_study(changed(content, where, value))


def test_settings_of_a_measure_are_checked(content, make_study):
    content["measures"]["result"] = {"kind": "blip3o_hf.shapes.study_measures:Drawing", "settings": {"per_famly": 1}}
    with pytest.raises(ValueError, match="Unknown key 'per_famly' in the settings of Drawing"):
        make_study(content)


def test_a_recipe_must_be_there_and_say_how_many_examples_it_sees(content, make_study, tmp_path):
    make_study(content)
    recipe = yaml.safe_load((tmp_path / "decoder.yaml").read_text())
    del recipe["training"]["max_steps"]
    (tmp_path / "open.yaml").write_text(yaml.safe_dump(recipe))
    content["arms"]["plain"]["recipe"] = "open"  # with or without its ending
    with pytest.raises(ValueError, match=r"how many examples they see\. That of `plain` has no training\.max_steps\."):
        make_study(content)
    content["arms"]["plain"]["recipe"] = "nowhere.yaml"
    with pytest.raises(FileNotFoundError, match=r"A recipe is a YAML file\. There is none at .*nowhere\.yaml"):
        make_study(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title: [", r"(?s)A study must be valid YAML\. .*study\.yaml is not: .* Correct that line\."),
        ("title: a\ntitle: b", "found the key 'title' twice"),
        ("- a", "A study compares `arms`"),
        ("title: a\nfolder: b\nseeds: [0]\narms: {1: 2}", r"`arms\.1` must be a mapping"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_study(tmp_path / "study.yaml")
    with pytest.raises(FileNotFoundError, match=r"A study is a YAML file\. There is none at .*none\.yaml"):
        load_study(tmp_path / "none.yaml")


def test_numbers_are_names_too(content, make_study):
    content["arms"][3] = {"recipe": "decoder.yaml", "overrides": ["inputs.model={further}"]}
    study = make_study(content)
    assert study.arms[-1].name == "3" and study.run_folder("3", 0) == Path("runs/runs/3-0")


def test_placeholders_are_folders_of_parts_and_of_arms_of_the_same_seed(content, make_study):
    study = make_study(content, "training.weight_decay=0.5")
    path, overrides = study.recipe(study.arm("further"), 7, ["training.bf16=false"])
    assert path == study.source.parent / "decoder.yaml"
    assert overrides == [
        "inputs.model=runs/runs/plain-7/model",
        "training.seed=7",
        "data.seed=1007",
        "training.bf16=false",
        "training.weight_decay=0.5",
        "output_dir=runs/runs/further-7",
    ]
    assert study.recipe(study.arm("plain"), 7)[1][0] == "inputs.encoder=runs/parts/eye"
    recipe = study.load(study.arm("eye"), 0)
    assert recipe.output_dir == "runs/parts/eye"
    assert (recipe.training["seed"], recipe.data["seed"]) == (0, 1000)
    assert study.recipe(study.arm("eye"), 0, folder=Path("there"))[1][-1] == "output_dir=there"


def test_examples_add_up_along_what_an_arm_starts_from_and_each_arm_counts_once(content, make_study):
    both = ["inputs.model={further}", "inputs.encoder={plain}"]
    content["arms"]["last"] = {"recipe": "decoder.yaml", "overrides": [*both, "training.max_steps=1"]}
    study = make_study(content)
    assert [study.pictures(name) for name in ("plain", "further", "last")] == [24, 48, 54]
    assert make_study(content, "training.gradient_accumulation_steps=1").pictures("last") == 18


def test_values_of_a_search_are_written_as_yaml_reads_them(content, make_study):
    search = content["arms"]["plain"]["search"]
    search |= {"key": "training.ema_decay", "values": [None, 0.9, 1e-05]}
    study = make_study(content)
    arm = study.arm("plain")
    texts = [arm.search.override(value) for value in arm.search.values]
    assert texts[0] == "training.ema_decay=null"
    loaded = [load_recipe(*study.recipe(arm, 0, [text])).training["ema_decay"] for text in texts]
    assert loaded == [None, 0.9, 1e-05]


@pytest.mark.parametrize("key", ["training.seed", "data.seed"])
def test_seeds_cannot_be_overridden_for_all_runs(content, make_study, key):
    with pytest.raises(ValueError, match=rf"given by its `seeds`\. For 0, `eye` would run with .*{key}=5"):
        make_study(content, f"{key}=5")
    content["arms"]["plain"]["overrides"].append(f"{key}=5")  # where the study's own seeds come later
    assert make_study(content).load(make_study(content).arm("plain"), 7).training["seed"] == 7
