"""The recipes that teach to see, edit and talk, at toy size: they go on from a whole model, and from each other."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.test_trainer import MODEL, SmallDataset

from blip3o_hf.data.records import RECONSTRUCT
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import message_images
from blip3o_hf.shapes import recipe_data, shows_scene
from blip3o_hf.training.recipes import Recipe, load_recipe
from blip3o_hf.training.stages import GenerationStage

TINY = Path(__file__).parents[2] / "recipes" / "tiny"
SMALL = (
    "training.max_steps=2",
    "training.logging_steps=1",
    "training.save_steps=2",
    "training.per_device_train_batch_size=5",
    "training.bf16=false",
    "training.disable_tqdm=true",
    "model.max_length=900",
)


@pytest.fixture(scope="module", autouse=True)
def _small_corpora():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_data, "ShapesDataset", SmallDataset)
        patch.setattr(recipe_data, "HELD_OUT", 6)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("edits")


@pytest.fixture(scope="module")
def start(inputs, root):
    """A whole model, untrained, as the stage `generation` leaves it."""
    folders = {name: str(inputs / name) for name in ("backbone", "encoder")}
    settings = {"use_cpu": True, "report_to": "none"}
    recipe = Recipe("generation", str(root / "start"), folders, MODEL["generation"], {"length": 4}, settings)
    trainer = recipe.trainer()
    trainer.task.save(trainer.model, root / "start")
    return root / "start"


def train(name, model, inputs, folder, *overrides):
    """Two steps of a recipe: the trainer, weights before, and the folder left."""
    keys = ("encoder", "decoder") if "decoder" in (TINY / name).read_text() else ("encoder",)
    recipe = load_recipe(TINY / name, [f"output_dir={folder}", *SMALL, *overrides])
    recipe.inputs = {"model": str(model), **{key: str(inputs / key) for key in keys}}
    recipe.model = {key: value for key, value in recipe.model.items() if key not in GenerationStage.size_keys}
    trainer = recipe.trainer()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    return trainer, before, trainer.save_result()


@pytest.fixture(scope="module")
def aligned(start, inputs, root):
    return train("alignment.yaml", start, inputs, root / "aligned")


@pytest.fixture(scope="module")
def drawing(aligned, inputs, root):
    compiled = "training.compile_transformer=false"
    shares = ("data.edit_rate=0.4", "data.reconstruction_rate=0.3", "data.plan_rate=0.3", "data.history_rate=0.4")
    return train("generation.yaml", aligned[2], inputs, root / "drawing", compiled, "training.warmup_steps=1", *shares)


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def moved(trainer, before):
    return {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}


def test_alignment_goes_on_from_a_whole_model(aligned, start):
    trainer, before, folder = aligned
    given = Blip3oForConditionalGeneration.from_pretrained(start).state_dict()
    assert all(torch.equal(before[name], value) for name, value in given.items())
    assert trainer.state.global_step == 2 and len(losses(trainer)) == 2 and np.isfinite(losses(trainer)).all()
    changed = moved(trainer, before)
    assert "queries.weight" in changed and any("language_model.layers" in name for name in changed)
    assert not any(name.startswith("transformer.") or ".vision_tower." in name for name in changed)
    given, left = (
        Blip3oForConditionalGeneration.from_pretrained(place).config.to_diff_dict() for place in (start, folder)
    )
    assert left == given


def test_alignment_is_validated_on_every_task(aligned):
    with torch.no_grad():
        found = aligned[0].task.validate(aligned[0].model.eval(), aligned[0].eval_dataset)
    assert set(found) == {"loss", "loss_of_answers", "loss_of_phrases"} and np.isfinite(list(found.values())).all()


def test_an_alignment_batch_holds_images_histories_and_both_kinds_of_words(aligned):
    task, pairs = aligned[0].task, aligned[0].train_dataset
    plans = [pairs[index].picture for index in range(30)]
    assert any(plan.images for plan in plans) and any(plan.history for plan in plans)
    batch = task.collate_pictures(plans)
    num_images = sum(len(plan.images) + len(message_images(plan.history)) for plan in plans)
    assert len(batch["pixel_values"]) == num_images > 10
    assert (batch["input_ids"] == task.processor.image_token_id).sum() == 64 * num_images
    conversations = [pairs[index].conversation for index in range(30)]
    assert {len(record.images) for record in conversations} == {0, 1, 2}


def test_generation_learns_edits_reconstructions_and_histories(drawing):
    trainer, before, folder = drawing
    assert trainer.state.global_step == 2 and len(losses(trainer)) == 2 and np.isfinite(losses(trainer)).all()
    assert {name.partition(".")[0] for name in moved(trainer, before)} == {"queries", "transformer"}
    Blip3oForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        found = trainer.task.validate(trainer.model.eval(), trainer.eval_dataset)
    assert len(found) == 6 and np.isfinite(list(found.values())).all()


def test_a_generation_batch_is_what_its_records_say(drawing):
    task, data = drawing[0].task, drawing[0].train_dataset
    records = [data[index] for index in range(40)]
    for index, record in enumerate(records):
        assert shows_scene(record.target, data.task(index).scene)
    prompts = [record.prompt for record in records]
    assert RECONSTRUCT in prompts and any(record.images and record.prompt != RECONSTRUCT for record in records)
    shown = [record for record in records if record.history]
    requests = [
        message["content"] for record in shown for message in record.history if isinstance(message["content"], str)
    ]
    # Pictures that were drawn before were asked for in the words of the processor.
    opening = task.processor.instruction.partition("{caption}")[0]
    assert any(request.startswith(opening) for request in requests)
    batch = task.collate(records[:8])
    images = [(*message_images(record.history), *record.images) for record in records[:8]]
    pixels = task.processor.image_processor([image for own in images for image in own], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], pixels["pixel_values"])
    assert (batch["input_ids"] == task.processor.image_token_id).sum(-1).tolist() == [64 * len(own) for own in images]


def test_what_is_shown_reaches_the_gradient_of_the_queries(drawing):
    """The flow's loss of an edit depends on the picture that is edited."""
    task, model, data = drawing[0].task, drawing[0].model.eval(), drawing[0].train_dataset
    record = next(record for record in map(data.__getitem__, range(40)) if record.images)
    batch = task.collate([record])
    with torch.no_grad():
        names = ("input_ids", "attention_mask", "pixel_values")
        given = {name: batch[name] for name in names}
        shown = model.encode_condition(**given)
        other = model.encode_condition(**{**given, "pixel_values": given["pixel_values"].flip(-1)})
    assert not torch.equal(shown, other)


def test_tasks_of_other_stages_are_unknown_keys(inputs, tmp_path):
    recipe = Recipe(
        "decoder", str(tmp_path), {"encoder": str(inputs / "encoder")}, MODEL["decoder"], {"edit_rate": 0.5}, {}
    )
    with pytest.raises(ValueError, match="Unknown key 'edit_rate' in section 'data'"):
        recipe.open_stage()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_positions": "sequental"}, "Unknown image_positions 'sequental'. Did you mean 'sequential'?"),
        ({"condition_dropout": 1.5}, "`condition_dropout` must be in [0, 1). Got 1.5."),
    ],
)
def test_settings_that_a_recipe_changes_in_a_whole_model_are_checked(start, inputs, tmp_path, settings, message):
    folders = {"model": str(start), "encoder": str(inputs / "encoder")}
    arguments = {"use_cpu": True, "report_to": "none"}
    stage = Recipe("generation", str(tmp_path), folders, settings, {"length": 4}, arguments).open_stage()
    with pytest.raises(ValueError, match=re.escape(message)):
        stage.build()


def test_rates_that_are_no_shares_are_refused_by_the_stage(start, inputs, tmp_path):
    folders = {"model": str(start), "encoder": str(inputs / "encoder")}
    data = {"length": 4, "edit_rate": 0.7, "reconstruction_rate": 0.7}
    stage = Recipe("generation", str(tmp_path), folders, {}, data, {"use_cpu": True, "report_to": "none"}).open_stage()
    with pytest.raises(ValueError, match="`edit_rate` and `reconstruction_rate` are shares of the records"):
        stage.trainer()
