"""The Trainer as a user of transformers calls it: datasets in, a whole repository out, and the same as a recipe."""

import logging
import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset, load_from_disk
from peft import LoraConfig
from PIL import Image
from transformers import TrainingArguments

from blip3o_hf import Blip3oPipeline, Blip3oProcessor, Blip3oTrainer, Blip3oTrainingArguments, packaged_model_path
from blip3o_hf.data.records import Record
from blip3o_hf.data.tolerance import TooManyBadItems
from blip3o_hf.hub.cards import card_problems
from blip3o_hf.models.adapters import lora_config
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.target_encoder import load_target_encoder
from blip3o_hf.training.callbacks import DrawPromptsCallback
from blip3o_hf.training.inputs import warn_of_overlap
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.tasks import GenerationTask

TINY = "blip3o-tiny"
COLORS = ("red", "green", "blue", "yellow", "purple", "orange")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six images with captions, as `imagefolder` reads them."""
    folder = tmp_path_factory.mktemp("photos")
    lines = ["file_name,caption"]
    for index, color in enumerate(COLORS):
        Image.new("RGB", (70 + index, 64), color).save(folder / f"{index}.png")
        lines.append(f"{index}.png,a {color} sheet of paper")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def dataset(photos):
    return load_dataset("imagefolder", data_dir=str(photos), split="train", cache_dir=str(photos / ".cache"))


@pytest.fixture
def make_args(tmp_path):
    def make(folder="run", **settings):
        settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 2, **settings}
        shared = {"learning_rate": 1e-3, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
        return Blip3oTrainingArguments(str(tmp_path / folder), **shared, **settings)

    return make


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# What goes in, what comes out


def test_the_call_of_transformers_trains_resumes_exactly_and_leaves_what_draws(dataset, make_args):
    model = Blip3oForConditionalGeneration.from_pretrained(packaged_model_path(TINY))
    processor = Blip3oProcessor.from_pretrained(packaged_model_path(TINY))
    held_out = dataset.select([5])
    trainer = Blip3oTrainer(
        model=model,
        args=make_args(),
        train_dataset=dataset.select(range(5)),
        eval_dataset=held_out,
        processing_class=processor,
    )
    before = weights(model)
    trainer.train()
    moved = {name.partition(".")[0] for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == {"queries", "transformer"}
    metrics = trainer.evaluate()
    assert trainer.evaluate() == metrics
    assert 0 < metrics["eval_loss"] < 20 and "eval_loss_at_noise_0.5" in metrics

    resumed = Blip3oTrainer(TINY, make_args("again"), train_dataset=dataset.select(range(5)))
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert losses(resumed)[-2:] == losses(trainer)[-2:]
    assert same(weights(resumed.model), weights(model))

    trainer.save_model()
    for folder in (trainer.args.output_dir, f"{trainer.args.output_dir}/checkpoint-4"):
        pipe = Blip3oPipeline.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        assert same(weights(pipe.model), weights(model))
        assert pipe("a red sheet of paper", num_inference_steps=1, num_attempts=1).images[0].size == (64, 64)
        load_target_encoder(folder, "target_encoder")


@pytest.mark.parametrize("kind", ["saved", "stream", "rows", "records", "text"])
def test_a_dataset_of_any_kind_gives_the_same_training(dataset, make_args, tmp_path, kind):
    expected = Blip3oTrainer(TINY, make_args("expected", max_steps=1, save_strategy="no"), train_dataset=dataset)
    row = expected.task([expected.train_dataset[0]])
    if kind == "saved":
        dataset.save_to_disk(tmp_path / "saved")
        given = load_from_disk(tmp_path / "saved")
    elif kind == "stream":
        given = dataset.to_iterable_dataset()
    elif kind == "text":
        given = dataset.rename_column("caption", "text")
    elif kind == "rows":
        given = [dict(item) for item in dataset]
    else:
        given = [Record(f"r:{index}", item["image"], item["caption"]) for index, item in enumerate(dataset)]
    trainer = Blip3oTrainer(TINY, make_args(max_steps=1, save_strategy="no"), train_dataset=given)
    items = [next(iter(trainer.train_dataset))] if kind == "stream" else [trainer.train_dataset[0]]
    batch = trainer.task(items)
    by_caption = {expected.train_dataset[index].prompt: index for index in range(6)}
    caption = items[0]["caption"] if isinstance(items[0], dict) else items[0].prompt
    row = expected.task([expected.train_dataset[by_caption[caption]]])
    assert batch.keys() == row.keys() and all(torch.equal(batch[name], row[name]) for name in row)
    trainer.train()
    assert len(losses(trainer)) == 1


def test_python_and_recipe_give_the_same_losses_bit_for_bit(photos, make_args, tmp_path):
    settings = {
        "max_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 2,
        "muon_learning_rate": 1e-2,
        "ema_decay": 0.9,
        "noise_draws": 2,
    }
    shared = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
    data = {"seed": 3, "sources": [{"path": str(photos)}]}
    inputs = {"model": TINY}
    recipe = Recipe(
        "generation",
        str(tmp_path / "r"),
        inputs,
        {"train": ["queries"]},
        data,
        {**settings, **shared, "learning_rate": 1e-3},
    )
    by_recipe = recipe.trainer()
    by_recipe.train()
    by_python = Blip3oTrainer(TINY, make_args(train=["queries"], save_strategy="no", **settings), train_dataset=data)
    by_python.train()
    assert losses(by_python) == losses(by_recipe)
    assert same(weights(by_python.model), weights(by_recipe.model))


def test_a_model_that_learned_other_pictures_does_not_plan_them(dataset, make_args):
    """The plans of blip3o-tiny are about shapes: drawn from, they would hide what was learned."""
    saved = {}
    for settings in (None, {"default_plan": True, "default_num_attempts": 4}):
        args = make_args(f"run-{settings is None}", max_steps=1)
        trainer = Blip3oTrainer("blip3o-tiny", args, train_dataset=dataset, pipeline_settings=settings)
        trainer.save_model()
        config = Blip3oPipeline.from_pretrained(args.output_dir).config
        saved[settings is None] = config.default_plan, config.default_num_attempts, config.plan_top_p
    assert saved == {True: (False, 1, None), False: (True, 4, None)}


def test_lora_is_what_a_pipeline_loads(dataset, make_args):
    model = Blip3oForConditionalGeneration.from_pretrained(packaged_model_path(TINY))
    config = lora_config(model, parts=["transformer"], rank=2)
    trainer = Blip3oTrainer(model, make_args(), train_dataset=dataset, peft_config=config)
    assert trainer.what_trains.startswith("backbone: ") and {"queries", "transformer"} == {
        name.split(".")[2] for name, parameter in trainer.model.named_parameters() if parameter.requires_grad
    }
    trainer.train()
    trainer.save_model()
    pipe = Blip3oPipeline.from_pretrained(packaged_model_path(TINY))
    pipe.load_lora_weights(trainer.args.output_dir)
    assert pipe.get_active_adapters()


def test_prompts_are_drawn_while_it_trains(dataset, make_args):
    trainer = Blip3oTrainer(TINY, make_args(max_steps=2, save_strategy="no"), train_dataset=dataset)
    trainer.add_callback(DrawPromptsCallback(trainer, ["a red circle", "a blue square"], steps=1))
    trainer.train()
    found = sorted(path.name for path in trainer.samples_folder.glob("samples-*.png"))
    assert found == ["samples-1.png", "samples-2.png"]
    trainer.save_model()
    assert (trainer.samples_folder / "samples.png").is_file()


def test_conversations_train_the_backbone(make_args):
    rows = Dataset.from_list(
        [
            {"messages": [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]},
            {"messages": [{"role": "user", "content": "And 2 + 2?"}, {"role": "assistant", "content": "4"}]},
        ]
    )
    trainer = Blip3oTrainer(TINY, make_args(max_steps=1), train_dataset=rows, eval_dataset=rows, task="understanding")
    before = weights(trainer.model)
    trainer.train()
    changed = {name for name, value in weights(trainer.model).items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("backbone.") for name in changed)
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_task_of_one_s_own_is_an_object(dataset, make_args):
    class Doubled(GenerationTask):
        name = "doubled"

        def loss(self, model, batch, generators):
            return 2 * super().loss(model, batch, generators)

    args = {"max_steps": 1, "save_strategy": "no"}
    plain = Blip3oTrainer(TINY, make_args(**args), train_dataset=dataset)
    doubled = Blip3oTrainer(TINY, make_args(**args), train_dataset=dataset, task=Doubled())
    plain.train()
    doubled.train()
    assert losses(doubled)[0] == pytest.approx(2 * losses(plain)[0])


# The card


def test_the_card_tells_of_arguments_and_data_and_is_kept(dataset, make_args):
    trainer = Blip3oTrainer(TINY, make_args(max_steps=1, ema_decay=0.9), train_dataset=dataset)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(license="apache-2.0", tags="paper")
    folder = trainer.args.output_dir
    text = (trainer.samples_folder / "README.md").read_text()
    assert "`Blip3oTrainer` (task `generation`)" in text and "ema_decay: 0.9" in text and "6 records" in text
    assert [line for line in text.splitlines() if str(folder) in line] == []
    assert "`blip3o-tiny`, which ships with `blip3o_hf`" in text
    assert card_problems(folder) == []


# Bad input


def test_a_list_of_rows_is_looked_at_as_a_dataset_is(make_args):
    """A conversation cut before its first answer would train on nothing."""
    turns = [{"role": "user", "content": "what is this " * 500}, {"role": "assistant", "content": "red"}]
    trainer = Blip3oTrainer("blip3o-tiny", make_args(), train_dataset=[{"messages": turns}] * 4, task="understanding")
    with pytest.raises(TooManyBadItems, match=r"train_dataset\[\d\]: no room for the first answer"):
        trainer.train()


def test_a_dataset_without_captions_names_its_columns(dataset, make_args):
    message = "caption"
    with pytest.raises(ValueError, match=message) as caught:
        Blip3oTrainer(TINY, make_args(), train_dataset=dataset.rename_column("caption", "words"))
    assert "words" in str(caught.value) and "image" in str(caught.value)


@pytest.mark.parametrize("given", [7, object()])
def test_what_is_no_dataset_is_refused(make_args, given):
    message = f"`train_dataset` must be a dataset with captions and images: .* Got {type(given).__name__}. Example: "
    with pytest.raises(TypeError, match=message):
        Blip3oTrainer(TINY, make_args(), train_dataset=given)


def test_arguments_of_transformers_are_taken(dataset, tmp_path):
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    trainer = Blip3oTrainer(TINY, args, train_dataset=dataset)
    assert isinstance(trainer.args, Blip3oTrainingArguments) and trainer.args.max_steps == 1
    assert not trainer.args.remove_unused_columns


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove_unused_columns": True}, "`remove_unused_columns` must be False"),
        ({"train": ["transfomer"]}, "Unknown key 'transfomer' in `train`. Did you mean 'transformer'?"),
        ({"frozen_dtype": "float16"}, "Unknown key 'float16' in `frozen_dtype`."),
    ],
)
def test_arguments_that_cannot_be_are_refused(make_args, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_args(**settings)


def test_something_must_train(dataset, make_args):
    with pytest.raises(
        ValueError, match=r"Something must train. All parameters of this Blip3oForConditionalGeneration"
    ):
        Blip3oTrainer(TINY, make_args(train=[]), train_dataset=dataset)


def test_adapters_must_match_something(dataset, make_args):
    config = LoraConfig(target_modules=["nothing_here"])
    with pytest.raises(
        ValueError, match=r"`peft_config` must name layers of the model. .*nothing_here.* matches none"
    ):
        Blip3oTrainer(TINY, make_args(), train_dataset=dataset, peft_config=config)


def test_a_processor_of_another_model_is_refused(dataset, make_args, make_pipeline):
    pipe = make_pipeline()
    model = Blip3oForConditionalGeneration.from_pretrained(packaged_model_path(TINY))
    processor = pipe.processor
    processor.tokenizer.add_tokens([f"<extra-{index}>" for index in range(5000)])
    with pytest.raises(ValueError, match=r"The processor must be that of the model. The tokenizer's largest id is"):
        Blip3oTrainer(model, make_args(), train_dataset=dataset, processing_class=processor)


def test_a_model_without_a_target_encoder_says_what_to_pass(dataset, make_args, make_pipeline, tmp_path):
    pipe = make_pipeline()
    pipe.model.save_pretrained(tmp_path / "model")
    pipe.processor.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"Generation learns from a target encoder's features. .* Pass `target_encoder`"
    ):
        Blip3oTrainer(str(tmp_path / "model"), make_args(), train_dataset=dataset)


def test_evaluation_needs_something_to_evaluate_on(dataset, make_args):
    trainer = Blip3oTrainer(TINY, make_args(), train_dataset=dataset)
    with pytest.raises(ValueError, match=r"An evaluation needs held-out data. There is none. Pass `eval_dataset`."):
        trainer.evaluate()


def test_a_push_in_the_background_is_not_offered(dataset, make_args):
    trainer = Blip3oTrainer(TINY, make_args(), train_dataset=dataset)
    with pytest.raises(
        ValueError, match=r"A push is checked first, and goes to the main branch. .* run `blip3o-hf push FOLDER"
    ):
        trainer.push_to_hub(blocking=False)


def test_records_in_both_sets_are_counted(dataset, make_args, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    trainer = Blip3oTrainer(TINY, make_args(), train_dataset=dataset, eval_dataset=dataset.select([1, 2]))
    assert warn_of_overlap(trainer.train_dataset, trainer.eval_dataset) == 2
    apart = Blip3oTrainer(TINY, make_args(), train_dataset=dataset.select([0, 3]), eval_dataset=dataset.select([1, 2]))
    assert warn_of_overlap(apart.train_dataset, apart.eval_dataset) == 0


# The best checkpoint


@pytest.mark.parametrize("decay", [None, 0.5])
def test_the_best_checkpoint_is_kept_and_loaded_in_the_end(dataset, make_args, decay):
    args = make_args(
        save_steps=1,
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        ema_decay=decay,
        train=["queries", "transformer", "backbone"],
    )
    trainer = Blip3oTrainer(TINY, args, train_dataset=dataset, eval_dataset=dataset.select([5]))
    evaluated = {}

    def score(trainer):
        evaluated[trainer.state.global_step] = weights(trainer.unwrapped_model)
        return {"score": -abs(trainer.state.global_step - 2)}

    trainer.evaluate_with(score)
    trainer.train()
    folder = Path(args.output_dir)
    assert Path(trainer.state.best_model_checkpoint) == folder / "checkpoint-2"
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert not same(evaluated[4], evaluated[2])
    with trainer.averaged():
        assert same(weights(trainer.unwrapped_model), evaluated[2])
    trainer.save_model()
    assert same(weights(Blip3oPipeline.from_pretrained(args.output_dir).model), evaluated[2])
