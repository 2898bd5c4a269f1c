"""Every stage at toy size: what trains, what stays frozen, what is left behind, and resume = uninterrupted."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, TrainerCallback

from blip3o_hf.checks import find_class
from blip3o_hf.data.records import Record
from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.models.target_encoder import crop, extract_features, load_target_encoder, normalize, stack_images
from blip3o_hf.objectives.phrases import phrase_loss
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from blip3o_hf.shapes import recipe_data
from blip3o_hf.shapes.conversations import ShapesConversations
from blip3o_hf.shapes.dataset import ShapesDataset
from blip3o_hf.shapes.stages import encoder
from blip3o_hf.training import callbacks, checkpoints
from blip3o_hf.training.callbacks import SpikeCallback
from blip3o_hf.training.checkpoints import delete_incomplete, keep_newest, last_complete_checkpoint, mark_complete
from blip3o_hf.training.conversations import IGNORED, Conversations
from blip3o_hf.training.recipes import STAGES, Recipe
from blip3o_hf.training.runs import HISTORY, run_recipe
from blip3o_hf.training.stages import generation
from blip3o_hf.training.step_shares import shares_of_step
from blip3o_hf.training.tasks import GenerationTask
from blip3o_hf.training.tasks.decoder import recolor
from blip3o_hf.training.trainer import seeded_generator, trainable_summary

OTHERS = ("vae", "diffusion_decoder", "few_step_decoder", "flow_map", "nft", "grpo", "dpo")
NAMES = ("encoder", "decoder", "understanding", "alignment", "generation", "joint")
INPUTS = {
    **dict.fromkeys(("decoder", "understanding"), ("encoder",)),
    "alignment": ("backbone", "encoder"),
    **dict.fromkeys(("generation", "joint"), ("backbone", "encoder", "decoder")),
}
FOLDERS = {"encoder": "encoder", "decoder": "decoder", "backbone": "understanding"}
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MODEL = {
    "encoder": {
        "vision": {**TOWER, "image_size": 64, "patch_size": 8},
        "text": {**TOWER, "max_position_embeddings": 128},
        "projection_dim": 16,
        "patch_weight": 0.5,
    },
    "decoder": {"dim": 16, "num_layers": 1, "num_attention_heads": 2, "feature_noise": 0.3},
    "understanding": {
        "vocab_size": 320,
        "max_length": 900,
        "text": {**TOWER, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 1024},
    },
    "generation": {
        "num_queries": 4,
        "transformer": {
            "dim": 16,
            "num_layers": 1,
            "num_attention_heads": 2,
            "multiple_of": 16,
            "gate_init": 0.5,
        },
    },
}
MODEL["joint"] = {**MODEL["generation"], "max_length": 900, "understanding_weight": 0.5}
MODEL["alignment"] = {**MODEL["generation"], "max_length": 900}
TRAINING = {
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "muon_learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "ema_decay": 0.9,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
    "remove_unused_columns": False,
}


class SmallDataset(ShapesDataset):
    """Spares the stages their corpora of thousands of examples."""

    def __init__(self, length, **settings):
        super().__init__(min(length, 40), **settings)


class StepCallback(TrainerCallback):
    """Calls a function after every step."""

    def __init__(self, call):
        self.call = call

    def on_step_end(self, args, state, control, **kwargs):
        self.call()


@pytest.fixture(scope="module", autouse=True)
def _small_corpora():
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoder, recipe_data):
            patch.setattr(module, "ShapesDataset", SmallDataset)
        patch.setattr(generation, "STATISTICS_IMAGES", 40)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def make_recipe(root):
    """`make_recipe(name, folder=..., **training)`, on the results in `root`."""

    def make(name, folder=None, data=None, model=None, **training):
        return Recipe(
            stage=name,
            output_dir=str(root / name if folder is None else folder),
            inputs={key: str(root / FOLDERS[key]) for key in INPUTS.get(name, ())},
            model={**MODEL[name], **(model or {})},
            data={"length": 12, "seed": 1, **({"text_rate": 0.5} if name == "understanding" else {}), **(data or {})},
            training={**TRAINING, **({"noise_draws": 2} if name == "generation" else {}), **training},
        )

    return make


def parameters_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_tensors(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.fixture(scope="module")
def results(make_recipe):
    """All four stages, trained one after the other for four steps."""
    runs = {}
    for name in NAMES:
        trainer = make_recipe(name).trainer()
        start = parameters_of(trainer.model)
        trainer.train()
        runs[name] = SimpleNamespace(trainer=trainer, start=start, folder=trainer.save_result())
    return runs


# What is left behind


def test_every_stage_takes_its_steps_at_a_finite_loss(results):
    for name, run in results.items():
        assert run.trainer.state.global_step == 4, name
        losses = [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]
        assert len(losses) == 4, name
        assert np.isfinite(losses).all(), name


def test_the_encoder_stage_leaves_a_vision_tower(results, assert_close):
    run = results["encoder"]
    encoder, image_processor = load_target_encoder(str(run.folder))
    images = [ShapesDataset(2)[index].image for index in range(2)]
    features = extract_features(encoder, normalize(image_processor, stack_images(images)))
    assert features.shape == (2, 16, 8, 8)
    with run.trainer.averaged():
        assert_same_tensors(parameters_of(encoder), parameters_of(run.trainer.model.vision_model))
        expected = extract_features(run.trainer.model.vision_model, normalize(image_processor, stack_images(images)))
    assert_close(features, expected)


def test_the_decoder_stage_leaves_a_decoder(results):
    run = results["decoder"]
    decoder = Blip3oPatchDecoder.from_pretrained(run.folder)
    with run.trainer.averaged():
        assert_same_tensors(parameters_of(decoder), parameters_of(run.trainer.model))


def test_the_understanding_stage_leaves_a_model_that_answers(results):
    run = results["understanding"]
    model = AutoModelForImageTextToText.from_pretrained(run.folder)
    processor = Blip3oProcessor.from_pretrained(run.folder)
    with run.trainer.averaged():
        assert_same_tensors(parameters_of(model), parameters_of(run.trainer.model))
    content = [{"type": "image", "image": ShapesDataset(1)[0].image}, {"type": "text", "text": "How many?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**inputs, max_new_tokens=3)
    assert inputs["input_ids"].shape[1] < answer.shape[1] <= inputs["input_ids"].shape[1] + 3
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


def test_the_understanding_stage_goes_on_from_a_backbone(make_recipe, results, tmp_path):
    recipe = make_recipe("understanding", tmp_path)
    recipe.inputs = {"backbone": str(results["understanding"].folder)}
    recipe.model = {"max_length": 900}
    trainer = recipe.trainer()
    kept = AutoModelForImageTextToText.from_pretrained(results["understanding"].folder)
    assert_same_tensors(parameters_of(trainer.model), parameters_of(kept))
    trainer.task.save(kept, tmp_path / "again")
    prompt = Blip3oProcessor.from_pretrained(tmp_path / "again").render_prompt("a red circle")
    assert prompt == results["understanding"].trainer.task.processor.render_prompt("a red circle")


@pytest.mark.parametrize(
    ("inputs", "has_text", "received"),
    [
        (("backbone",), True, "backbone and 'model.text'"),
        (("encoder",), False, "encoder and no 'model.text'"),
        (("backbone", "encoder"), True, "backbone, encoder and 'model.text'"),
        ((), True, "none and 'model.text'"),
    ],
)
def test_the_understanding_stage_wants_one_backbone(make_recipe, results, tmp_path, inputs, has_text, received):
    recipe = make_recipe("understanding", tmp_path)
    recipe.source = "r.yaml"
    folders = {"backbone": "understanding", "encoder": "encoder"}
    recipe.inputs = {name: str(results[folders[name]].folder) for name in inputs}
    if not has_text:
        del recipe.model["text"]
    message = f"r.yaml has the inputs {received}. Name 'inputs.backbone' alone, or 'inputs.encoder' with the sizes"
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.open_stage()


def test_the_generation_stage_leaves_a_model_that_draws(results):
    run = results["generation"]
    model = Blip3oForConditionalGeneration.from_pretrained(run.folder)
    with run.trainer.averaged():
        assert_same_tensors(parameters_of(model), parameters_of(run.trainer.model))
    pipeline = Blip3oPipeline(
        model=model,
        processor=Blip3oProcessor.from_pretrained(run.folder),
        scheduler=Blip3oFlowScheduler(),
        decoder=Blip3oPatchDecoder.from_pretrained(results["decoder"].folder),
    )
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("two red circles", num_inference_steps=2).images[0].size == (64, 64)
    assert model.generation_config.eos_token_id == pipeline.processor.tokenizer.eos_token_id


# What trains and what does not


@pytest.mark.parametrize("name", NAMES)
def test_trainable_parameters_move_and_have_gradients_frozen_ones_do_not(results, name):
    run = results[name]
    eye = ("backbone.model.vision_tower.", "backbone.model.multi_modal_projector.")
    frozen = {
        "understanding": ("model.vision_tower.",),
        "generation": ("backbone.",),
        "joint": eye,
        "alignment": (*eye, "transformer."),
    }.get(name, ("no parameter",))
    is_frozen = {key: key.startswith(frozen) for key in run.start}
    moved = {key: not torch.equal(value, run.start[key]) for key, value in parameters_of(run.trainer.model).items()}
    for key, parameter in run.trainer.model.named_parameters():
        assert parameter.requires_grad is not is_frozen[key], key
    assert not any(moved[key] for key in moved if is_frozen[key])
    still = [key for key in moved if not moved[key] and not is_frozen[key]]
    assert still == []


def test_the_frozen_backbone_gets_no_gradient_and_is_the_understanding_stage_s(results):
    backbone = results["generation"].trainer.model.backbone
    assert all(parameter.grad is None for parameter in backbone.parameters())
    trained = AutoModelForImageTextToText.from_pretrained(results["understanding"].folder)
    assert_same_tensors(parameters_of(backbone), parameters_of(trained))


def test_the_target_encoder_stays_as_it_was(results):
    trained, _ = load_target_encoder(str(results["encoder"].folder))
    for name in ("decoder", "generation", "joint"):
        assert_same_tensors(parameters_of(results[name].trainer.task.target_encoder.model), parameters_of(trained))


def test_joint_training_adds_the_losses_of_both_tasks(results, assert_close):
    trainer = results["joint"].trainer
    task, model, dataset = trainer.task, trainer.model.eval(), trainer.train_dataset
    batch = task.collate([dataset[index] for index in range(2)])
    assert len(batch["input_ids"]) == 1 and len(batch["conversations"]["input_ids"]) == 1

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    both = gradients(task.loss(model, dict(batch), [seeded_generator(0)]))
    conversations = batch.pop("conversations")
    pictures = gradients(GenerationTask.loss(task, model, dict(batch), [seeded_generator(0)]))
    answers = gradients(model(**conversations).loss)
    assert not any(name.startswith(("queries", "transformer", "backbone.model.visual")) for name in answers)
    assert both.keys() == pictures.keys() | answers.keys()
    for name, gradient in both.items():
        assert_close(gradient, pictures.get(name, 0.0) + 0.5 * answers.get(name, torch.zeros_like(gradient)))


def test_alignment_asks_a_quarter_of_the_queries_for_all_words_about_an_object(results, assert_close):
    trainer = results["alignment"].trainer
    task, model, pairs = trainer.task, trainer.model.eval(), trainer.train_dataset
    plans = [pairs[index].picture for index in range(6)]
    batch = task.collate_pictures(plans)
    tokenizer = task.processor.tokenizer
    with torch.no_grad():
        condition = model.encode_condition(batch["input_ids"], batch["attention_mask"])
        shares = model.get_output_embeddings()(condition).log_softmax(-1)
        phrase_ids = batch.pop("phrase_ids")
        loss = phrase_loss(model(**batch, output_query_logits=True).query_logits, phrase_ids)
    expected = []
    for plan, row in zip(plans, shares, strict=True):
        for index, query in enumerate(row):
            text = f" {' '.join(plan.phrases[index])}" if index < len(plan.phrases) else "<|im_end|>"
            expected.append(-query[tokenizer(text, add_special_tokens=False)["input_ids"]].mean())
    assert_close(loss, torch.stack(expected).mean())


def test_alignment_reads_conversations_without_images_apart(results, assert_close):
    """They are not padded to the length of those with images; the loss is the same."""
    trainer = results["alignment"].trainer
    task, model, processor = trainer.task, trainer.model.eval(), trainer.processing_class
    scenes = ShapesDataset(12, seed=1, num_questions=2)
    records = ShapesConversations(scenes, processor, text_rate=0.5, request_rate=0.2, history_rate=0.5)
    records = [records[index] for index in range(12)]
    words, shown = task.collate_conversations(records)
    assert len(words["input_ids"]) + len(shown["input_ids"]) == 12
    assert "pixel_values" not in words and words["input_ids"].shape[1] < shown["input_ids"].shape[1]
    with torch.no_grad():
        together = task.conversations.collate(records)
        batch = task.collate_pictures([trainer.train_dataset[0].picture])
        batch.pop("phrase_ids")
        apart = model(**batch, conversations=[words, shown], output_query_logits=True).text_loss
        assert_close(apart, model.backbone(**together).loss)
    assert [len(task.collate_conversations(some)) for some in (records[:1], records)] == [1, 2]


@pytest.mark.parametrize("name", ["joint", "alignment"])
def test_a_batch_of_pairs_in_two_parts_has_its_gradient(results, name):
    trainer = results[name].trainer
    task, model, pairs = trainer.task, trainer.model.eval(), trainer.train_dataset
    pairs = [pairs[index] for index in (0, 3, 2, 1)]

    def gradients(parts):
        batches = [task.collate(part) for part in parts]
        model.zero_grad()
        first = 0
        counts = [task.counts(batch) for batch in batches]
        for batch, shares in zip(batches, shares_of_step(counts, Accelerator(cpu=True)), strict=True):
            task.shares = shares
            generators = [seeded_generator(first + index) for index in range(4)]
            (task.loss(model, batch, generators) / len(parts)).backward()
            first += 2
        task.shares = {}
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    whole, spread = gradients([pairs]), gradients([pairs[:2], pairs[2:]])
    largest = max(gradient.norm() for gradient in whole.values())
    assert whole.keys() == spread.keys()
    assert all((spread[key] - gradient).norm() < 1e-4 * largest for key, gradient in whole.items())


@pytest.mark.parametrize("rate", [0.0, 0.2, 1.0])
def test_joint_training_wants_both_kinds_in_every_batch(make_recipe, results, tmp_path, rate):
    message = f"`data.understanding_rate` {rate} of 2 records leaves none of one kind. Choose a share between 0 and 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_recipe("joint", tmp_path, data={"understanding_rate": rate}).open_stage()


def test_noise_draws_multiply_the_transformer_s_batch_alone(make_recipe, results, tmp_path):
    trainer = make_recipe("generation", tmp_path, noise_draws=3).trainer()
    task, model, dataset = trainer.task, trainer.model, trainer.train_dataset
    batches = []
    model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    task.loss(model, dict(task.collate([dataset[0], dataset[1]])), [seeded_generator(0), seeded_generator(1)])
    assert batches == [6]


def test_standardized_features_have_mean_zero_and_deviation_one(make_recipe, results, tmp_path):
    trainer = make_recipe("generation", tmp_path, model={"standardize_features": True}).trainer()
    data, target_encoder = ShapesDataset(40, seed=2), trainer.task.target_encoder
    pixels = target_encoder.pixel_values([Image.fromarray(data[index].image) for index in range(40)])
    features = trainer.model.normalize_features(target_encoder.features(pixels))
    torch.testing.assert_close(features.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-3)
    torch.testing.assert_close(features.std((0, 2, 3)), torch.ones(16), rtol=0, atol=1e-3)


# Resume


def optimizer_tensors(trainer):
    """The state of every parameter in the Muon and in the AdamW part."""
    tensors = {}
    for part, optimizer in enumerate(trainer.optimizer.optimizer.optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{part}.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_equals_the_uninterrupted_one(results, make_recipe, tmp_path, name):
    whole = results[name].trainer
    recipe = make_recipe(name, tmp_path / name)
    shutil.copytree(f"{whole.args.output_dir}/checkpoint-2", tmp_path / name / "checkpoints" / "checkpoint-2")
    resumed = recipe.trainer()
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(resumed.args.output_dir))
    assert resumed.state.global_step == 4
    assert_same_tensors(parameters_of(resumed.model), parameters_of(whole.model))
    assert_same_tensors(optimizer_tensors(resumed), optimizer_tensors(whole))
    assert resumed.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()
    with whole.averaged(), resumed.averaged():
        assert_same_tensors(parameters_of(resumed.model), parameters_of(whole.model))


def test_the_same_recipe_starts_from_the_same_weights(make_recipe, results, tmp_path):
    first = make_recipe("decoder", tmp_path / "a", seed=7).trainer()
    torch.rand(3)
    again = make_recipe("decoder", tmp_path / "b", seed=7).trainer()
    other = make_recipe("decoder", tmp_path / "c", seed=8).trainer()
    assert_same_tensors(parameters_of(again.model), parameters_of(first.model))
    assert not torch.equal(other.model.proj_in.weight, first.model.proj_in.weight)


def test_checkpoints_are_marked_complete_and_the_newest_is_found(results):
    folder = results["decoder"].trainer.args.output_dir
    assert last_complete_checkpoint(folder) == f"{folder}/checkpoint-4"


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path):
    message = f"To resume, there must be a complete checkpoint. There is none in {tmp_path}. Start without --resume."
    (tmp_path / "checkpoint-30").mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        last_complete_checkpoint(tmp_path)
    for step in (4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        mark_complete(tmp_path / f"checkpoint-{step}")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def touch(folder, *steps, complete=True):
    for step in steps:
        (folder / f"checkpoint-{step}" / "deep").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "deep" / "weights").touch()
        if complete:
            mark_complete(folder / f"checkpoint-{step}")


def steps_in(folder):
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.iterdir())


@pytest.mark.parametrize(("number", "left"), [(None, [5, 10, 90, 100]), (2, [90, 100]), (1, [100]), (0, [100])])
def test_the_newest_complete_checkpoints_are_kept(tmp_path, number, left):
    touch(tmp_path, 100, 5, 90, 10)
    touch(tmp_path, 110, complete=False)
    keep_newest(tmp_path, number)
    assert steps_in(tmp_path) == [*left, 110]


def test_what_an_interrupted_run_left_is_deleted(tmp_path):
    touch(tmp_path, 5, 10)
    touch(tmp_path, 7, 15, complete=False)
    delete_incomplete(tmp_path)
    assert steps_in(tmp_path) == [5, 10]


def test_a_deletion_that_is_cut_off_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    touch(tmp_path, 5, 10)

    def fail(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", fail)
    with pytest.raises(KeyboardInterrupt):
        keep_newest(tmp_path, 1)
    assert not (tmp_path / "checkpoint-5" / "COMPLETE").exists()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_an_older_checkpoint_is_deleted_only_once_the_newer_one_is_complete(
    make_recipe, results, tmp_path, monkeypatch
):
    trainer = make_recipe("decoder", tmp_path, save_total_limit=1).trainer()
    folder = tmp_path / "checkpoints"

    def mark(checkpoint):
        if checkpoint.name == "checkpoint-4":
            assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
            raise KeyboardInterrupt
        mark_complete(checkpoint)

    monkeypatch.setattr(callbacks, "mark_complete", mark)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-2")
    monkeypatch.undo()
    resumed = make_recipe("decoder", tmp_path, save_total_limit=1).trainer()
    resumed.train(resume_from_checkpoint=True)
    assert steps_in(folder) == [4]
    assert_same_tensors(parameters_of(resumed.model), parameters_of(results["decoder"].trainer.model))


def test_a_finished_run_that_is_resumed_takes_no_further_step(make_recipe, results, tmp_path):
    """Four steps end in the middle of a pass over the data."""
    whole = results["decoder"].trainer
    resumed = make_recipe("decoder", tmp_path).trainer()
    resumed.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    assert resumed.state.global_step == 4
    assert_same_tensors(parameters_of(resumed.model), parameters_of(whole.model))
    with whole.averaged(), resumed.averaged():
        assert_same_tensors(parameters_of(resumed.model), parameters_of(whole.model))


def test_the_average_must_be_in_the_checkpoint(make_recipe, results, tmp_path):
    shutil.copytree(f"{results['decoder'].trainer.args.output_dir}/checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "ema.safetensors").unlink()
    trainer = make_recipe("decoder", tmp_path).trainer()
    message = f"There is no {tmp_path}/checkpoint-2/ema.safetensors. Resume with the same engine and number of"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_what_a_killed_run_was_writing_is_deleted(make_recipe, results, tmp_path):
    (tmp_path / ".partial-x.png").touch()
    make_recipe("decoder", tmp_path, max_steps=1, save_strategy="no").trainer().train()
    assert not any(tmp_path.glob(".*"))


# Going on from a whole model, and LoRA


@pytest.fixture
def make_tuning_recipe(make_recipe, results):
    """A recipe that goes on from the model that the generation stage left."""

    def make(folder, lora=None, **training):
        recipe = make_recipe("generation", folder, **training)
        recipe.source = "r.yaml"
        recipe.inputs["model"] = str(results["generation"].folder)
        del recipe.inputs["backbone"]
        recipe.model = {} if lora is None else {"lora": lora}
        return recipe

    return make


def moved(model, start):
    return {name for name, value in parameters_of(model).items() if not torch.equal(value, start[name])}


def test_the_generation_stage_goes_on_from_a_whole_model(make_tuning_recipe, results, tmp_path):
    trainer = make_tuning_recipe(tmp_path, max_steps=2, save_strategy="no").trainer()
    start = parameters_of(trainer.model)
    assert_same_tensors(
        start, parameters_of(Blip3oForConditionalGeneration.from_pretrained(results["generation"].folder))
    )
    trainer.train()
    assert moved(trainer.model, start) == {name for name in start if not name.startswith("backbone.")}


def test_lora_trains_adapters_and_leaves_what_a_pipeline_loads(make_tuning_recipe, results, tmp_path):
    lora = {"parts": ["transformer", "backbone"], "rank": 2, "alpha": 4, "dropout": 0.1, "train_queries": True}
    rates = {"learning_rates": {"queries": 1e-3}}
    trainer = make_tuning_recipe(tmp_path, lora, **rates).trainer()
    start = parameters_of(trainer.model)
    trainer.train()
    trained = moved(trainer.model, start)
    assert trained == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "queries" in name for name in trained)

    folder = trainer.save_result()
    model = PeftModel.from_pretrained(
        Blip3oForConditionalGeneration.from_pretrained(results["generation"].folder), folder
    )
    with trainer.averaged():
        expected = parameters_of(trainer.model)
    assert_same_tensors(*({name: own[name] for name in trained} for own in (parameters_of(model), expected)))
    pipeline = Blip3oPipeline(
        model=Blip3oForConditionalGeneration.from_pretrained(results["generation"].folder),
        processor=Blip3oProcessor.from_pretrained(folder),
        scheduler=Blip3oFlowScheduler(),
        decoder=None,
    )
    pipeline.load_lora_weights(folder)
    inputs = pipeline.processor.encode_prompts(["a red circle"])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.model.encode_condition(**inputs), model.encode_condition(**inputs))

    resumed = make_tuning_recipe(tmp_path / "b", lora, **rates).trainer()
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert_same_tensors(parameters_of(resumed.model), parameters_of(trainer.model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda recipe: recipe.model["lora"].update(rnk=2),
            "Unknown key 'rnk' in section 'model.lora' of r.yaml. Did you mean 'rank'? Available: alpha, dropout, ",
        ),
        (
            lambda recipe: recipe.inputs.update(backbone=recipe.inputs.pop("model")),
            "LoRA adapts a whole trained model, and `model.lora` says what trains. r.yaml has 'model.lora' with",
        ),
        (
            lambda recipe: recipe.model.update(train=["queries"]),
            "r.yaml has 'model.lora' with model.train. Name a BLIP3-o under 'inputs.model', and leave",
        ),
    ],
)
def test_a_lora_recipe_that_cannot_be_is_refused(make_tuning_recipe, tmp_path, change, message):
    recipe = make_tuning_recipe(tmp_path, {"rank": 2})
    change(recipe)
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.open_stage()


# Spikes


def spoil(trainer, monkeypatch, factors):
    """Multiply the loss of each step by a factor."""
    plain, factors = trainer.compute_loss, iter(factors)
    monkeypatch.setattr(trainer, "compute_loss", lambda *args, **kwargs: plain(*args, **kwargs) * next(factors))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_left_out(make_recipe, results, tmp_path, monkeypatch, factor):
    trainer = make_recipe("decoder", tmp_path, max_steps=3, lr_scheduler_type="constant").trainer()
    spoil(trainer, monkeypatch, [1.0, factor, 1.0])
    seen = []
    trainer.add_callback(StepCallback(lambda: seen.append(parameters_of(trainer.model))))
    trainer.train()
    assert_same_tensors(seen[1], seen[0])
    assert all(torch.isfinite(value).all() for value in seen[2].values())
    assert any(not torch.equal(seen[2][name], seen[1][name]) for name in seen[2])


def test_a_spike_is_left_out_and_does_not_move_the_median(make_recipe, results, tmp_path, monkeypatch):
    trainer = make_recipe("decoder", tmp_path, max_steps=14, spike_factor=20.0).trainer()
    spoil(trainer, monkeypatch, [*[1.0] * 11, 1e4, 1e4, 1.0])
    spikes = next(c for c in trainer.callback_handler.callbacks if isinstance(c, SpikeCallback))
    trainer.train()
    assert (spikes.skipped, spikes.in_a_row, len(spikes.norms)) == (2, 0, 12)


def test_training_that_has_diverged_stops(make_recipe, results, tmp_path, monkeypatch):
    trainer = make_recipe("decoder", tmp_path, max_skipped_steps=2).trainer()
    spoil(trainer, monkeypatch, [1.0, *[float("nan")] * 3])
    message = "2 updates in a row had none, the last at step 3 with a norm of nan. Lower the learning rate"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        trainer.train()


# Logs


def test_logs_tell_the_speed(results):
    for run in results.values():
        logs = [entry for entry in run.trainer.state.log_history if "loss" in entry]
        assert len(logs) == 4 and all(entry["examples_per_second"] > 0 for entry in logs)


def test_the_summary_tells_what_trains(results):
    trainer = results["generation"].trainer
    lines = trainable_summary(trainer.model).splitlines()
    frozen = sum(parameter.numel() for parameter in trainer.model.backbone.parameters())
    assert lines[0] == f"backbone: {frozen:,} parameters, 0 train"
    assert lines[1] == "queries: 64 parameters, 64 train"
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    assert lines[-1] == f"all: {frozen + trained:,} parameters, {trained:,} train"


def test_validation_losses_are_the_same_at_every_call_and_change_nothing(results):
    run = results["generation"]
    model, task, held_out = run.trainer.model.eval(), run.trainer.task, run.trainer.eval_dataset
    state = torch.random.get_rng_state()
    with torch.no_grad():
        losses = task.validate(model, held_out)
        assert task.validate(model, held_out) == losses
    assert torch.equal(torch.random.get_rng_state(), state)
    total = losses.pop("loss")
    assert set(losses) == {f"loss_at_noise_{sigma}" for sigma in (0.1, 0.3, 0.5, 0.7, 0.9)}
    assert total == pytest.approx(np.mean(list(losses.values())))
    assert all(0 < loss < 10 for loss in losses.values())
    assert len(set(losses.values())) == 5


# Accumulation


def test_four_batches_of_one_train_like_one_batch_of_four(make_recipe, results, tmp_path, assert_close):
    """A large epsilon makes AdamW linear in the gradient, so that rounding is not blown up where it is tiny."""
    settings = {"muon_learning_rate": None, "learning_rate": 1.0, "adam_epsilon": 1.0, "ema_decay": None}
    weights = []
    for batch, steps in ((4, 1), (1, 4)):
        recipe = make_recipe(
            "decoder",
            tmp_path / str(batch),
            model={"feature_noise": 0.0},
            max_steps=2,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            save_strategy="no",
            **settings,
        )
        trainer = recipe.trainer()
        start = trainer.model.proj_out.weight.detach().clone()
        trainer.train()
        assert (trainer.model.proj_out.weight - start).abs().max() > 1e-4
        weights.append(parameters_of(trainer.model))
    for name, value in weights[0].items():
        assert_close(weights[1][name], value)


# The average, the evaluation and the log


def test_the_average_is_applied_within_its_block_alone(results):
    trainer = results["decoder"].trainer
    raw = parameters_of(trainer.model)
    with trainer.averaged():
        inside = parameters_of(trainer.model)
    shadow = dict(zip(inside, trainer.average.average, strict=True))
    assert_same_tensors(inside, shadow)
    assert not torch.equal(inside["proj_in.weight"], raw["proj_in.weight"])
    assert_same_tensors(parameters_of(trainer.model), raw)
    with pytest.raises(KeyError), trainer.averaged():
        raise KeyError
    assert_same_tensors(parameters_of(trainer.model), raw)


def test_without_a_decay_no_average_is_kept(make_recipe, results, tmp_path):
    trainer = make_recipe("decoder", tmp_path, ema_decay=None).trainer()
    assert trainer.average is None
    raw = parameters_of(trainer.model)
    with trainer.averaged():
        assert_same_tensors(parameters_of(trainer.model), raw)


def test_evaluation_runs_on_the_average_and_changes_no_training(make_recipe, results, tmp_path):
    plain = make_recipe("decoder", tmp_path / "plain").trainer()
    plain.train()
    trainer = make_recipe("decoder", tmp_path, evaluation_steps=2).trainer()
    seen, histories = [], []

    def evaluate(of):
        assert of is trainer
        model, step = of.model, of.state.global_step
        assert not model.training
        assert not torch.is_grad_enabled()
        shadow = trainer.average.average
        assert all(torch.equal(p, s) for p, s in zip(model.parameters(), shadow, strict=True))
        seen.append(step)
        return {"score": step / 8}

    trainer.evaluate_with(evaluate)
    trainer.on_log_history(lambda history: histories.append(len(history)))
    trainer.train()
    assert trainer.model.training
    assert seen == [2, 4]
    logged = [(entry["step"], entry["eval_score"]) for entry in trainer.state.log_history if "eval_score" in entry]
    assert logged == [(2, 0.25), (4, 0.5)]
    assert histories == list(range(1, len(trainer.state.log_history) + 1))
    assert_same_tensors(parameters_of(trainer.model), parameters_of(plain.model))


def test_evaluation_steps_of_zero_never_interrupt_training(make_recipe, results, tmp_path):
    trainer = make_recipe("decoder", tmp_path, max_steps=2).trainer()
    trainer.evaluate_with(lambda trainer: pytest.fail("evaluated"))
    trainer.train()


@pytest.mark.parametrize(("steps", "evaluated"), [(0, [4]), (2, [2, 4]), (3, [3, 4])])
def test_the_end_of_a_run_is_evaluated_once(make_recipe, results, tmp_path, steps, evaluated):
    summary = run_recipe(make_recipe("decoder", tmp_path, evaluation_steps=steps))
    history = json.loads((tmp_path / HISTORY).read_text())
    found = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    assert [entry["step"] for entry in found] == evaluated
    assert summary.scores == {name[5:]: found[-1][name] for name in found[-1] if name.startswith("eval_")}


# Batches


def test_pixels_are_what_the_image_processor_makes(results):
    _, image_processor = load_target_encoder(str(results["encoder"].folder))
    images = [ShapesDataset(3)[index].image for index in range(3)]
    expected = image_processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(image_processor, stack_images(images)), expected, rtol=0, atol=1e-5)
    photos = [Image.effect_noise(size, 80).convert("RGB") for size in ((200, 100), (64, 90), (31, 31))]
    expected = image_processor(photos, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(normalize(image_processor, crop(image_processor, photos)), expected, rtol=0, atol=1e-5)


class Painter(torch.nn.Module):
    """A decoder that has learned its pictures by heart."""

    def __init__(self, sample):
        super().__init__()
        self.sample = sample

    def forward(self, features):
        return self


def test_decoder_targets_are_white_at_one_and_black_at_minus_one(make_recipe, results, tmp_path):
    trainer = make_recipe("decoder", tmp_path).trainer()
    task, record = trainer.task, trainer.train_dataset[0]
    painted = torch.from_numpy(np.asarray(record.target).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert painted.abs().max() == 1.0
    assert task.loss(Painter(painted), task.collate([record]), []) < 1e-12
    assert task.loss(Painter(painted + 0.5), task.collate([record]), []).item() == pytest.approx(0.25)


def test_recoloring_keeps_greys_range_and_the_sum_of_channels():
    images = torch.rand(64, 3, 4, 4)
    images[:, :, 0] = images[:, :1, 0]
    mixed = recolor(images, 1.0)
    torch.testing.assert_close(mixed[:, :, 0], images[:, :, 0])
    torch.testing.assert_close(mixed.sum(1), images.sum(1))
    assert mixed.min() >= 0 and mixed.max() <= 1 + 1e-6
    assert (mixed - images).abs().amax(dim=(1, 2, 3)).gt(1e-3).float().mean() > 0.8
    assert torch.equal(recolor(images, 0.0), images)


def test_conversations_are_the_chat_template_s_and_only_answers_are_learned(results):
    task, dataset = results["understanding"].trainer.task, results["understanding"].trainer.train_dataset
    records = [dataset[index] for index in range(8)]
    assert {len(record.images) for record in records} == {0, 1}
    batch = task.collate(records)
    tokenizer = task.processor.tokenizer
    shown = (batch["input_ids"] == task.processor.image_token_id).sum(-1)
    assert shown.tolist() == [64 * len(record.images) for record in records]
    assert len(batch["pixel_values"]) == sum(len(record.images) for record in records)
    for index, record in enumerate(records):
        messages = [
            {"role": role, "content": content}
            for turn in record.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        if record.images:
            slots = "<|vision_start|>" + "<|image_pad|>" * 64 + "<|vision_end|>"
            messages[0]["content"] = slots + messages[0]["content"]
        real = batch["attention_mask"][index].bool()
        text = tokenizer.decode(batch["input_ids"][index][real])
        assert text + "\n" == task.processor.apply_chat_template(messages).lower()  # as the tokenizer reads it
        labels = batch["labels"][index]
        learned = tokenizer.decode(labels[labels != IGNORED])
        assert learned == "".join(answer + "<|im_end|>" for _, answer in record.turns)
        assert (labels[~real] == IGNORED).all()


def test_a_batch_of_text_alone_is_collated(results):
    task = results["understanding"].trainer.task
    records = [Record(f"r:{i}", turns=(("What is 1 + 1?", "2"),)) for i in range(2)]
    assert torch.isfinite(task.loss(results["understanding"].trainer.model, task.collate(records), []))


def test_a_conversation_without_room_for_its_images_is_named(results):
    processor = results["understanding"].trainer.task.processor
    record = Record("a.jsonl:7", images=(Image.new("RGB", (64, 64)),), turns=(("What?", "Nothing."),))
    message = "The images of a conversation must fit `max_length`, 50 tokens. Those of a.jsonl:7 do not."
    with pytest.raises(ValueError, match=re.escape(message)):
        Conversations(processor, 50).collate([record])


# Bad input


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("decoder", (), "Stage 'decoder' starts from an encoder or from a whole model. r.yaml names neither. Put"),
        ("decoder", ("encoder", "model"), "starts from an encoder or from a whole model. r.yaml names both."),
        (
            "generation",
            ("encoder",),
            "starts from a whole model or from a backbone. r.yaml names neither. Put a",
        ),
        (
            "joint",
            ("backbone", "model"),
            "Stage 'joint' starts from a whole model or from a backbone. r.yaml names",
        ),
        (
            "generation",
            ("backbone",),
            "Stage 'generation' on a new backbone needs a target encoder. r.yaml names",
        ),
    ],
)
def test_a_stage_without_its_inputs_is_refused(name, inputs, message, tmp_path):
    recipe = Recipe(stage=name, output_dir="x", inputs=dict.fromkeys(inputs, str(tmp_path)), source="r.yaml")
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.open_stage()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"train": ["queries", "transfomer"]},
            "Unknown key 'transfomer' in `train`. Did you mean 'transformer'?",
        ),
        ({"frozen_dtype": "float16"}, "Unknown key 'float16' in `frozen_dtype`. Did you mean"),
        ({"num_queries": 8}, "A model that is trained further keeps its sizes. r.yaml sets 'model.num_queries' and"),
    ],
)
def test_settings_that_a_trained_model_does_not_take_are_refused(model, message, tmp_path):
    recipe = Recipe("generation", "x", inputs={"model": str(tmp_path)}, model=model, source="r.yaml")
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.open_stage()


def test_an_unknown_stage_names_the_nearest_one():
    message = (
        "Unknown key 'decodr' in key 'stage' of r.yaml. Did you mean 'decoder'? Available: alignment, decoder, "
        "diffusion_decoder, dpo, encoder, few_step_decoder, flow_map, generation, grpo, joint, nft, understanding, "
        "vae."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Recipe(stage="decodr", output_dir="x", source="r.yaml").open_stage()


def test_an_input_folder_that_does_not_exist_is_named(tmp_path):
    recipe = Recipe(stage="decoder", output_dir="x", inputs={"encoder": f"{tmp_path}/none"})
    message = (
        f"Stage 'decoder' starts from 'encoder' in {tmp_path}/none. There is no such folder. Run the stage that "
        "writes it first, or name a Hub repository."
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        recipe.open_stage()


def test_every_stage_is_known_by_its_name():
    assert set(STAGES) == {*NAMES, *OTHERS}
    assert all(find_class(name, STAGES, "a test").name == name for name in STAGES)
