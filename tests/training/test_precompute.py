"""Training from a cache is training: the same losses and weights, without encoders; the cache survives everything."""

import json
import pickle
import re
import shutil
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from tests.training.precompute_runs import compute, in_processes
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from blip3o_hf.hub.cards import card_problems, update_card
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.models.target_encoder import TargetEncoder
from blip3o_hf.shapes import recipe_data
from blip3o_hf.training.feature_cache import FeatureCache
from blip3o_hf.training.precompute import precompute
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.stages import generation

TOWER = {"image_size": 32, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
ONLY_TRANSFORMER = {"train": ["transformer"], "condition_dropout": 0.2}
TRANSFORMER = {"dim": 16, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 16, "gate_init": 0.5}
NEW_MODEL = {"num_queries": 3, "feature_size": 8, "standardize_features": True, "transformer": TRANSFORMER}
TRAINING = {
    "max_steps": 5,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    # A large epsilon makes AdamW linear in the gradient, so that rounding is not blown up where it is tiny.
    "learning_rate": 0.1,
    "adam_epsilon": 1.0,
    "lr_scheduler_type": "constant",
    "noise_draws": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "remove_unused_columns": False,
}
WORLD = {"length": 12, "seed": 1}


@pytest.fixture(scope="module", autouse=True)
def _little_validation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_data, "HELD_OUT", 3)
        patch.setattr(generation, "STATISTICS_IMAGES", 6)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, make_pipeline, make_processor):
    """A whole model with its target encoder, and its backbone with a processor."""
    root = tmp_path_factory.mktemp("inputs")
    pipeline = make_pipeline(decoder=None, feature_size=8)
    pipeline.save_pretrained(root / "model")
    pipeline.model.backbone.save_pretrained(root / "backbone")
    make_processor().save_pretrained(root / "backbone")
    write_encoder(root / "model" / "target_encoder", seed=0)
    write_encoder(root / "encoder", seed=0)
    return root


def write_encoder(folder, seed):
    torch.manual_seed(seed)
    CLIPVisionModel(CLIPVisionConfig(**TOWER, num_attention_heads=2)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)


@pytest.fixture
def photos(tmp_path, make_image):
    """Twelve items of every kind: long and short captions, edits, one broken image, one twice."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(10):
        make_image(number).save(folder / f"{number}.png")
    shutil.copy(folder / "0.png", folder / "copy.png")
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    lines = [{"image": f"{n}.png", "caption": f"two red circles {n}", "short": "a circle"} for n in range(6)]
    lines += [{"images": [f"{n}.png"], "target": f"{n + 2}.png", "prompt": "three blue squares"} for n in (6, 7)]
    lines += [{"image": "copy.png", "caption": "two red circles 0"}, {"image": "broken.png", "caption": "nothing"}]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def photo_data(photos):
    settings = {"path": str(photos / "lines.jsonl"), "short_caption": "short", "short_caption_rate": 0.5}
    (photos / "again").mkdir()
    for number in range(2):
        shutil.copy(photos / f"{number}.png", photos / "again")
    again = {"path": str(photos / "again"), "format": "imagefolder", "reconstruct": True}
    return {"seed": 1, "sources": [settings, again], "max_bad_share": 0.5}


@pytest.fixture
def make_recipe(inputs, tmp_path):
    """`make_recipe(data, model=..., start="model")`."""

    def make(data, model=None, start="model", **training):
        names = ("model",) if start == "model" else ("backbone", "encoder")
        return Recipe(
            stage="generation",
            output_dir=str(tmp_path / "out"),
            inputs={name: str(inputs / name) for name in names},
            model=dict(ONLY_TRANSFORMER if model is None else model),
            data=dict(data),
            training={**TRAINING, **training},
            source="r.yaml",
        )

    return make


def trained(recipe):
    """Losses of training and validation, and the weights."""
    trainer = recipe.trainer()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with torch.no_grad():
        held_out = trainer.task.validate(trainer.model.eval(), trainer.eval_dataset)
    return [*losses, *held_out.values()], trainer.model.state_dict()


def assert_same_training(actual, expected):
    assert len(actual[0]) == len(expected[0]) and all(loss > 0 for loss in actual[0])
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    assert actual[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(actual[1][name], value, rtol=1e-5, atol=1e-5, msg=name)


def forbid(monkeypatch, owner, name):
    def fail(*args, **kwargs):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, fail)


# Training


@pytest.mark.parametrize("start", ["model", "backbone"])
def test_with_cached_targets_training_is_the_same_without_the_encoder(make_recipe, tmp_path, monkeypatch, start):
    model = NEW_MODEL if start == "backbone" else {}
    expected = trained(make_recipe(WORLD, model, start))
    precompute(make_recipe(WORLD, model, start), tmp_path / "cache")
    forbid(monkeypatch, TargetEncoder, "load")
    cached = make_recipe({**WORLD, "cache": str(tmp_path / "cache")}, model, start)
    assert_same_training(trained(cached), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_with_cached_conditions_neither_backbone_nor_images_are_read(
    make_recipe, tmp_path, monkeypatch, photo_data, photos, num_workers
):
    evaluation = {"sources": [{"path": str(photos / "lines.jsonl")}]}

    def recipe(**data):
        made = make_recipe({**photo_data, **data}, dataloader_num_workers=num_workers)
        made.evaluation = evaluation
        return made

    expected = trained(recipe())
    summary = precompute(recipe(), tmp_path / "cache", batch_size=4)
    assert len(summary.bad) == 1 and summary.bad[0].startswith(f"{photos / 'lines.jsonl'}:10: not a readable image")
    forbid(monkeypatch, TargetEncoder, "load")
    forbid(monkeypatch, Blip3oForConditionalGeneration, "encode_condition")
    for picture in photos.rglob("[0-9]*.png"):
        picture.write_bytes(b"")
    assert_same_training(trained(recipe(cache=str(tmp_path / "cache"))), expected)


def test_cached_conditions_are_those_of_images_and_histories(make_recipe, tmp_path, monkeypatch):
    data = {**WORLD, "edit_rate": 0.4, "reconstruction_rate": 0.2, "history_rate": 0.6}
    records = [make_recipe(data).trainer().train_dataset[index] for index in range(12)]
    kinds = {(bool(record.images), bool(record.history)) for record in records}
    assert kinds >= {(False, True), (True, False), (True, True)}
    expected = trained(make_recipe(data))
    summary = precompute(make_recipe(data), tmp_path / "cache", batch_size=4)
    assert summary.computed["conditions"] == summary.computed["targets"] == 15
    forbid(monkeypatch, TargetEncoder, "load")
    forbid(monkeypatch, Blip3oForConditionalGeneration, "encode_condition")
    assert_same_training(trained(make_recipe({**data, "cache": str(tmp_path / "cache")})), expected)


@pytest.mark.parametrize("rates", [{"edit_rate": 0.4, "history_rate": 0.6}, {"history_rate": 0.5}, {}])
def test_a_cache_of_other_tasks_is_not_taken(make_recipe, tmp_path, rates):
    precompute(make_recipe({**WORLD, "history_rate": 0.6}), tmp_path / "cache", ["targets"])
    data = make_recipe({**WORLD, **rates, "cache": str(tmp_path / "cache")}).trainer().train_dataset
    with pytest.raises(ValueError, match="has no targets of shapes/train/1/0 "):
        data[0]


def test_a_stream_gives_the_same_records_in_the_same_order(make_recipe, tmp_path, photo_data):
    data = {**photo_data, "streaming": True}
    precompute(make_recipe(data), tmp_path / "cache")
    plain, cached = (
        list(islice(make_recipe({**data, **more}).trainer().train_dataset, 40))
        for more in ({}, {"cache": str(tmp_path / "cache")})
    )
    assert [(record.key, record.prompt) for record in cached] == [(record.key, record.prompt) for record in plain]
    assert len({record.prompt for record in plain if record.key.endswith(":1")}) == 2
    assert all(record.target is None and record.images == () for record in cached)


def test_conditions_of_queries_that_train_are_left_alone(make_recipe, tmp_path):
    precompute(make_recipe(WORLD), tmp_path / "cache")
    stage = make_recipe({**WORLD, "cache": str(tmp_path / "cache")}, model={}).open_stage()
    assert stage.cached.kinds == ("targets",)
    assert stage.trainer().model.queries.weight.requires_grad


def test_conditions_alone_leave_the_targets_to_the_encoder(make_recipe, tmp_path, monkeypatch):
    expected = trained(make_recipe(WORLD))
    precompute(make_recipe(WORLD), tmp_path / "cache", ["conditions"])
    forbid(monkeypatch, Blip3oForConditionalGeneration, "encode_condition")
    recipe = make_recipe({**WORLD, "cache": str(tmp_path / "cache")})
    assert_same_training(trained(recipe), expected)
    recipe.model.pop("train")
    with pytest.raises(ValueError, match=r"A cache of conditions alone is for frozen queries\. The queries train"):
        recipe.trainer()


# What is stored


def test_the_same_content_has_one_row(make_recipe, tmp_path, photo_data):
    summary = precompute(make_recipe(photo_data), tmp_path / "cache", batch_size=3, shard_size=2)
    # Pictures 0 to 5, 8, 9; 0 once more as copy.png, 0 and 1 once more to be reconstructed.
    assert summary.records["targets"] == 11 and summary.computed["targets"] == 8
    # Six long captions, one short one for six items, two edits of different pictures, a long one again, and "" twice.
    assert summary.records["conditions"] == 6 + 6 + 2 + 1 + 2 and summary.computed["conditions"] == 6 + 1 + 2 + 2
    files = sorted((tmp_path / "cache").glob("targets-*.safetensors"))
    assert sum(len(load_file(file)["values"]) for file in files if load_file(file)["values"].dim() > 1) == 8
    assert FeatureCache(tmp_path / "cache").shape("targets") == (16, 8, 8)


def test_a_second_run_computes_only_what_was_added(make_recipe, tmp_path, photos, photo_data, make_image):
    precompute(make_recipe(photo_data), tmp_path / "cache")
    make_image(50).save(photos / "broken.png")
    with open(photos / "lines.jsonl", "a") as lines:
        lines.write(json.dumps({"image": "1.png", "caption": "a new caption"}) + "\n")
    summary = precompute(make_recipe(photo_data), tmp_path / "cache")
    assert summary.computed == {"targets": 1, "conditions": 2} and not summary.bad


def test_the_card_of_a_cache_lacks_a_licence_alone_and_is_renewed_with_it(make_recipe, tmp_path, photos, photo_data):
    folder = tmp_path / "cache"
    precompute(make_recipe(photo_data), folder, ["targets"])
    (problem,) = card_problems(folder)
    assert problem.startswith("`license` is missing from the front matter.")
    text = (folder / "README.md").read_text()
    assert "(`blip3o-hf precompute`):\n\n```yaml\nstage: generation\n" in text and "- the folder `" in text
    assert str(tmp_path) not in text, "paths of this machine"
    assert "| targets | 11 | 8 | 16 x 8 x 8 | float32 |" in text and "| conditions |" not in text
    update_card(folder / "README.md", license="mit")
    precompute(make_recipe(photo_data), folder)
    assert card_problems(folder) == [] and "\n| conditions | 17 | 11 | " in (folder / "README.md").read_text()
    (folder / "README.md").write_text("A person wrote this.")
    precompute(make_recipe(photo_data), folder)
    assert (folder / "README.md").read_text() == "A person wrote this."


def test_targets_now_and_conditions_later(make_recipe, tmp_path):
    first = precompute(make_recipe(WORLD), tmp_path / "cache", ["targets"])
    second = precompute(make_recipe(WORLD), tmp_path / "cache")
    assert first.computed["targets"] > 0 and second.computed["targets"] == 0 and second.computed["conditions"] > 0
    assert make_recipe({**WORLD, "cache": str(tmp_path / "cache")}).open_stage().cached.kinds == (
        "targets",
        "conditions",
    )


def test_bfloat16_rows_are_the_others_rounded(make_recipe, tmp_path):
    for dtype in ("float32", "bfloat16"):
        precompute(make_recipe(WORLD), tmp_path / dtype, dtype=dtype)
    exact, rounded = (
        [make_recipe({**WORLD, "cache": str(tmp_path / dtype)}).trainer().train_dataset[i] for i in range(3)]
        for dtype in ("float32", "bfloat16")
    )
    for one, other in zip(exact, rounded, strict=True):
        assert other.condition.dtype == torch.bfloat16
        assert torch.equal(one.condition.bfloat16(), other.condition)
        assert torch.equal(one.target_features.bfloat16(), other.target_features)


def test_a_cache_can_be_sent_to_a_process(make_recipe, tmp_path):
    precompute(make_recipe(WORLD), tmp_path / "cache", ["targets"])
    cache = FeatureCache(tmp_path / "cache")
    again = pickle.loads(pickle.dumps(cache))
    assert len(again.addresses("targets")) == len(cache.addresses("targets")) == 15
    assert again.read("targets", 0) is None


# Processes


def rows(folder):
    """Every address with its row, by kind, and the number of rows on disk."""
    cache = FeatureCache(folder)
    found = {
        kind: {address: cache.read(kind, address) for address in cache.addresses(kind).tolist()}
        for kind in ("targets", "conditions")
    }
    return found, {kind: sum(len(load_file(f)["contents"]) for f in folder.glob(f"{kind}-*")) for kind in found}


def test_two_processes_go_on_where_a_killed_one_was_and_leave_the_same_rows(inputs, tmp_path):
    summary = in_processes(inputs / "model", tmp_path / "two")
    whole = compute(str(inputs / "model"), tmp_path / "one")
    (expected, number), (actual, actual_number) = rows(tmp_path / "one"), rows(tmp_path / "two")
    for kind, own in expected.items():
        assert len(own) == 27 and own.keys() == actual[kind].keys()
        for address, row in own.items():
            torch.testing.assert_close(actual[kind][address], row, rtol=1e-5, atol=1e-5)
    assert number == actual_number == whole.computed
    assert summary["num_processes"] == 2
    assert summary["computed"] == {kind: count - 4 for kind, count in whole.computed.items()}
    assert {file.name[:12] for file in (tmp_path / "two").glob("targets-*")} == {"targets-0000", "targets-0001"}
    assert not list((tmp_path / "two").glob(".*"))


# Bad input


def test_another_encoder_or_backbone_is_named(make_recipe, inputs, tmp_path):
    precompute(make_recipe(WORLD), tmp_path / "cache")
    other = tmp_path / "other"
    shutil.copytree(inputs / "model", other)
    recipe = make_recipe({**WORLD, "cache": str(tmp_path / "cache")})
    recipe.inputs["model"] = str(other)
    recipe.trainer()

    processor = Blip3oProcessor.from_pretrained(other)
    processor.instruction = "Draw {caption}"
    processor.save_pretrained(other)
    with pytest.raises(
        ValueError, match=r"Cached conditions must be those .*cache does not fit this run: processor was"
    ):
        recipe.trainer()

    write_encoder(other / "target_encoder", seed=1)
    message = "Cached targets must be those of the recipe. .*: weights of the target encoder was '.*' and is now"
    with pytest.raises(ValueError, match=message):
        recipe.trainer()
    with pytest.raises(
        ValueError, match=r"A cache holds the targets of one model.* weights of the target encoder was"
    ):
        precompute(recipe, tmp_path / "cache")
    with pytest.raises(
        ValueError, match=r"dtype was 'float32' and is now 'bfloat16'\. Set that back, or choose another"
    ):
        precompute(make_recipe(WORLD), tmp_path / "cache", dtype="bfloat16")


def test_a_record_that_is_missing_says_what_to_run(make_recipe, tmp_path):
    precompute(make_recipe(WORLD), tmp_path / "cache")
    data = make_recipe({**WORLD, "length": 20, "cache": str(tmp_path / "cache")}).trainer().train_dataset
    data[11]
    message = "every record must be in the cache. .* has no targets of shapes/train/1/12 .* Run `blip3o-hf precompute`"
    with pytest.raises(ValueError, match=message):
        data[12]
    other = {**WORLD, "family_weights": {"counting": 9}, "cache": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match="has no targets of shapes/train/1/0 "):
        make_recipe(other).trainer().train_dataset[0]


def test_statistics_must_be_in_the_cache(make_recipe, tmp_path):
    plain = {**NEW_MODEL, "standardize_features": False}
    precompute(make_recipe(WORLD, plain, "backbone"), tmp_path / "cache")
    recipe = make_recipe({**WORLD, "cache": str(tmp_path / "cache")}, NEW_MODEL, "backbone")
    with pytest.raises(ValueError, match=r"With `model.standardize_features`, the cache must hold the statistics"):
        recipe.trainer()
    precompute(recipe)
    assert recipe.trainer().model.config.feature_mean is not None


def test_a_damaged_shard_is_named(make_recipe, tmp_path):
    precompute(make_recipe(WORLD), tmp_path / "cache", ["targets"])
    (shard,) = (tmp_path / "cache").glob("targets-*.safetensors")
    shard.write_bytes(shard.read_bytes()[:50])
    data = make_recipe({**WORLD, "cache": str(tmp_path / "cache")}).trainer().train_dataset
    message = f"{re.escape(str(shard))} is .*damaged .*Delete .* run `blip3o-hf precompute` again"
    with pytest.raises(ValueError, match=message):
        data[0]
    with pytest.raises(ValueError, match=message):
        precompute(make_recipe(WORLD), tmp_path / "cache", ["targets"])
    shard.unlink()
    assert precompute(make_recipe(WORLD), tmp_path / "cache", ["targets"]).computed["targets"] == 15


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            {"stage": "joint"},
            {},
            "A cache is for the stage 'generation'. r.yaml is of the stage 'joint'. Name a recipe",
        ),
        (
            {"model": {}},
            {"kinds": ["targets", "conditions"]},
            "Conditions can be computed once where the queries are frozen. r.yaml trains queries, transformer. Ask",
        ),
        ({}, {"folder": None}, "A cache needs a folder. None was given, and r.yaml has no `data.cache`. Name one."),
        ({}, {"batch_size": 0}, "`batch_size` must be at least 1. Got 0."),
        ({}, {"dtype": "float16"}, "Unknown key 'float16' in the types of a cache. Did you mean"),
        ({}, {"kinds": ["target"]}, "Unknown key 'target' in the kinds of a cache. Did you mean 'targets'?"),
    ],
)
def test_what_cannot_be_precomputed_is_refused(make_recipe, tmp_path, change, arguments, message):
    recipe = make_recipe(WORLD)
    for name, value in change.items():
        setattr(recipe, name, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        precompute(recipe, **{"folder": tmp_path / "cache", **arguments})
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_no_cache_is_named(make_recipe, tmp_path):
    recipe = make_recipe({**WORLD, "cache": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"There is no .*manifest.json. Run the command on this recipe first."):
        recipe.trainer()
    joint = Recipe("joint", "x", inputs={"model": str(tmp_path)}, data={"cache": "c"}, source="r.yaml")
    with pytest.raises(ValueError, match=r"Unknown key 'cache' in section 'data' of r.yaml"):
        joint.open_stage()
