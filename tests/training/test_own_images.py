"""Fine-tuning on one's own images: what moves, what stays, what is left behind."""

import json

import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.objectives.phrases import phrase_loss
from blip3o_hf.training.recipes import Recipe

PACKAGED = packaged_model_path("blip3o-tiny")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several sizes and modes, with captions."""
    folder = tmp_path_factory.mktemp("photos")
    rows = []
    kinds = {"RGB": (90, 64), "L": (64, 64), "RGBA": (40, 120), "P": (300, 200)}
    for index, (mode, size) in enumerate(kinds.items()):
        Image.effect_noise(size, 60).convert(mode).save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "caption": f"a grey noise number {index}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def make_recipe(photos, tmp_path):
    def make(model=None, sources=None, **training):
        return Recipe(
            stage="generation",
            output_dir=str(tmp_path / "out"),
            inputs={"model": "blip3o-tiny"},
            model=model or {},
            data={"sources": sources or [{"path": str(photos)}]},
            training={
                "max_steps": 2,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-2,
                "use_cpu": True,
                "disable_tqdm": True,
                "report_to": "none",
                "remove_unused_columns": False,
                **training,
            },
        )

    return make


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("train", [["queries", "transformer"], ["transformer"], ["queries"]])
def test_only_the_parts_that_train_move(make_recipe, train):
    trainer = make_recipe({"train": train}).trainer()
    before = weights(trainer.model)
    trainer.train()
    moved = {name.partition(".")[0] for name, value in weights(trainer.model).items() if (value != before[name]).any()}
    assert moved == set(train)
    packaged = weights(Blip3oForConditionalGeneration.from_pretrained(PACKAGED, dtype=torch.float32))
    assert all(torch.equal(before[name], value) for name, value in packaged.items())


def test_frozen_parts_may_be_in_bfloat16(make_recipe):
    trainer = make_recipe({"frozen_dtype": "bfloat16"}, bf16=True).trainer()
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype is (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert trainer.task.target_encoder.model.dtype is torch.bfloat16
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())


def test_edits_and_reconstructions_train_beside_captions(make_recipe, photos, tmp_path):
    rows = [
        {"images": ["0.png"], "target": "1.png", "prompt": "make it square"},
        {"images": ["0.png", "2.png"], "target": "3.png", "prompt": "put both together"},
    ]
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    edits = {"path": str(tmp_path / "edits.jsonl"), "image_root": str(photos)}
    sources = [edits, {"path": str(photos)}, {"path": str(photos), "reconstruct": True}]
    recipe = make_recipe(sources=sources, max_steps=1, per_device_train_batch_size=10)
    trainer = recipe.trainer()
    records = [trainer.train_dataset[index] for index in range(10)]
    assert {record.kind for record in records} == {"editing", "generation", "reconstruction"}
    assert len(trainer.task.collate(records)["pixel_values"]) == sum(len(record.images) for record in records)
    trainer.train()
    assert torch.isfinite(torch.tensor(trainer.state.log_history[0]["train_loss"]))


def test_queries_of_a_backbone_that_trains_learn_to_say_captions(make_recipe, photos):
    everything = ["queries", "transformer", "backbone"]
    recipe = make_recipe({"train": everything, "caption_weight": 0.5}, max_steps=12, learning_rate=3e-3)
    trainer = recipe.trainer()
    task, records = trainer.task, [trainer.train_dataset[index] for index in range(2)]
    batch = {**task.collate(records)}
    words = task.processor.tokenizer(f" {records[0].prompt}", add_special_tokens=False)["input_ids"]
    assert batch["phrase_ids"][0, 0, : len(words)].tolist() == words
    batch = task.with_features(batch)
    features_and_words = {name: tensor for name, tensor in batch.items() if name != "phrase_ids"}

    def losses():
        """Of features, of captions, and of both as the task adds them up."""
        generators = [[torch.Generator().manual_seed(n) for n in range(2)] for _ in range(2)]
        with torch.no_grad():
            output = trainer.model.eval()(**features_and_words, generator=generators[0], output_query_logits=True)
            whole = task.loss(trainer.model, {**batch}, generators[1])
        return output.loss, phrase_loss(output.query_logits, batch["phrase_ids"]), whole

    of_features, of_captions, whole = losses()
    assert torch.isclose(whole, of_features + 0.5 * of_captions)
    trainer.train()
    assert losses()[1] < of_captions - 0.5


def test_a_frozen_backbone_cannot_learn_captions(make_recipe):
    with pytest.raises(ValueError, match=r"Only a backbone that trains learns to say captions\. .* Add 'backbone' to"):
        make_recipe({"caption_weight": 0.5}).trainer()


def test_answers_are_refused_by_name(make_recipe, tmp_path):
    (tmp_path / "chat.jsonl").write_text(json.dumps({"turns": [["1 + 1?", "2"]]}) + "\n")
    trainer = make_recipe(sources=[{"path": str(tmp_path / "chat.jsonl")}]).trainer()
    with pytest.raises(ValueError, match=r"Generation learns from images with captions\. .*chat\.jsonl:1 is a record"):
        trainer.train()


def test_one_command_leaves_recipes_and_a_pipeline_that_draws(photos, tmp_path):
    out = tmp_path / "mine"
    command = ["finetune", "--data", str(photos), "--output", str(out), "--steps", "2", "--decoder-steps", "2"]
    command += ["--batch-size", "2", "--prompts", "a grey noise", "--", "training.save_steps=1"]
    assert main(command) == 0
    assert main([*command[:-2], "--resume", *command[-2:]]) == 0
    recipe = yaml.safe_load((out / "generation.yaml").read_text())
    assert recipe["inputs"] == {"model": "blip3o-tiny", "decoder": str(out / "decoder")}
    assert recipe["training"]["max_steps"] == 2 and recipe["training"]["muon_learning_rate"] > 0
    assert "backbone" in recipe["model"]["train"] and recipe["model"]["caption_weight"] > 0
    pipe = Blip3oPipeline.from_pretrained(out / "generation" / "pipeline")
    before = Blip3oPipeline.from_pretrained(PACKAGED)
    for name in ("decoder", "transformer"):
        old, new = (weights(getattr(each, name)) for each in (before, pipe))
        assert any(not torch.equal(new[key].float(), value.float()) for key, value in old.items()), name
    assert pipe("a grey noise", num_inference_steps=2).images[0].size == (64, 64)
    assert Image.open(out / "generation" / "samples-2.png").width > 64
    checkpoint = Blip3oForConditionalGeneration.from_pretrained(out / "generation" / "checkpoints" / "checkpoint-2")
    assert (out / "generation" / "checkpoints" / "checkpoint-2" / "tokenizer.json").is_file()
    assert checkpoint.config.num_queries == pipe.model.config.num_queries


@pytest.mark.parametrize(
    "overrides",
    [["model.train=[queries,transformer]", "model.caption_weight=0"], ["model.lora={parts: [transformer], rank: 2}"]],
)
def test_a_small_backbone_stays_frozen_where_it_is_told_to(photos, tmp_path, overrides):
    out = tmp_path / "mine"
    command = ["finetune", "--data", str(photos), "--output", str(out), "--steps", "1", "--decoder-steps", "0"]
    assert main([*command, "--batch-size", "2", "--", *overrides]) == 0
    recipe = yaml.safe_load((out / "generation.yaml").read_text())
    assert "backbone" not in recipe["model"].get("train", []) and "learning_rates" not in recipe["training"]


def test_curves_and_samples_go_to_tensorboard(make_recipe, tmp_path):
    trainer = make_recipe(report_to="tensorboard", logging_steps=1).trainer()
    trainer.train()
    trainer.evaluate_with(lambda trainer: {"score": 0.5, "samples": Image.new("RGB", (24, 16), "red")})
    trainer.evaluate()
    (events,) = {path.parent for path in tmp_path.rglob("events.out.*")}
    board = EventAccumulator(str(events)).Reload()
    assert "train/loss" in board.Tags()["scalars"]
    assert board.Scalars("eval/score")[-1].value == 0.5
    (samples,) = board.Images("eval/samples")
    assert (samples.width, samples.height, samples.step) == (24, 16, trainer.state.global_step)
    assert not any("eval_samples" in entry for entry in trainer.state.log_history)


def test_samples_go_to_weights_and_biases(make_recipe, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    trainer = make_recipe(report_to="wandb").trainer()
    trainer.train()
    trainer.evaluate_with(lambda trainer: {"score": 0.5, "samples": Image.new("RGB", (24, 16), "red")})
    trainer.evaluate()
    wandb.finish()
    (samples,) = tmp_path.rglob("media/images/eval/samples_*.png")
    assert Image.open(samples).size == (24, 16)


def test_data_that_does_not_exist_stops_before_anything_is_written(tmp_path, capsys):
    assert main(["finetune", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "There is none at" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
