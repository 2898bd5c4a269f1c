"""A new BLIP3-o on the backbone of another one: what was trained is kept, what draws is new."""

import json

import pytest
import torch
from tests.processes import ROOT
from transformers import AutoConfig, GenerationConfig

from blip3o_hf import packaged_model_path
from blip3o_hf.evaluation.answers import answer
from blip3o_hf.models.configuration_blip3o import Blip3oConfig, backbone_config_of
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.models.target_encoder import load_target_encoder
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.shapes.benchmark import ASKED_KINDS, held_out_questions
from blip3o_hf.training.recipes import load_recipe
from blip3o_hf.training.results import assemble_pipeline
from blip3o_hf.training.runs import run_recipe

TINY = packaged_model_path()
SMALL = {"dim": 32, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 16}


@pytest.fixture(scope="module")
def whole():
    return Blip3oForConditionalGeneration.from_pretrained(TINY).eval()


@pytest.fixture(scope="module")
def built(whole):
    """With fewer queries and a small transformer."""
    config = Blip3oConfig(
        backbone_config=backbone_config_of(AutoConfig.from_pretrained(TINY)),
        transformer_config=SMALL,
        num_queries=8,
        feature_dim=whole.config.feature_dim,
    )
    processor = Blip3oProcessor.from_backbone(TINY)
    return Blip3oForConditionalGeneration.from_backbone(TINY, config, processor).eval(), processor


def test_the_config_of_a_backbone_is_that_inside_a_whole_model(whole, tmp_path):
    found = backbone_config_of(AutoConfig.from_pretrained(TINY))
    assert type(found) is type(whole.backbone.config) and found.model_type != "blip3o"
    found.save_pretrained(tmp_path)
    assert backbone_config_of(AutoConfig.from_pretrained(tmp_path)).to_diff_dict() == found.to_diff_dict()


def test_the_backbone_is_kept_bit_for_bit_and_the_rest_is_new(whole, built):
    model, processor = built
    old, new = whole.backbone.state_dict(), model.backbone.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[name], value) for name, value in new.items())
    assert model.config.num_queries == 8
    assert model.transformer.num_parameters() < whole.transformer.num_parameters() / 10
    kept = Blip3oProcessor.from_pretrained(TINY)
    assert processor.tokenizer.get_vocab() == kept.tokenizer.get_vocab()
    assert processor.to_dict() == kept.to_dict()


def test_new_queries_and_transformer_are_drawn_not_copied(whole):
    again = Blip3oForConditionalGeneration.from_backbone(TINY, whole.config)
    for new, old in ((again.transformer, whole.transformer), (again.queries, whole.queries)):
        weights, trained = new.state_dict(), old.state_dict()
        assert weights.keys() == trained.keys()
        drawn = [name for name, value in weights.items() if value.ndim > 1 and value.std() > 0]
        assert drawn and not any(torch.equal(weights[name], trained[name]) for name in drawn)


def test_it_answers_as_before_also_when_it_is_saved(whole, built, tmp_path):
    model, processor = built
    items = [item for kind in ASKED_KINDS[:4] for item in held_out_questions(kind, 1)]
    asked = [images for images, _ in items], [question.text for _, question in items]
    expected = answer(whole, processor, *asked, 24)
    assert answer(model, processor, *asked, 24) == expected and all(expected)
    assert model.generation_config.to_dict() == whole.generation_config.to_dict()
    model.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).max_new_tokens == whole.generation_config.max_new_tokens
    assert answer(Blip3oForConditionalGeneration.from_pretrained(tmp_path), processor, *asked, 24) == expected


def test_the_decoder_of_a_whole_repository_is_taken(built):
    pipe = assemble_pipeline(*built, decoder=TINY)
    expected = Blip3oPipeline.from_pretrained(TINY).decoder
    assert type(pipe.decoder) is type(expected)
    found, wanted = pipe.decoder.state_dict(), expected.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_recipe_takes_all_it_needs_from_the_packaged_model(tmp_path, whole):
    overrides = ["inputs={}", *(f"inputs.{name}=blip3o-tiny" for name in ("backbone", "encoder", "decoder"))]
    overrides += [f"model.transformer={json.dumps(SMALL)}", "model.num_queries=8", f"output_dir={tmp_path}"]
    training = {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 2, "compile_transformer": False}
    training |= {"lr_scheduler_kwargs": {"num_decay_steps": 1}, "evaluation_steps": 0}
    overrides += [f"training.{name}={json.dumps(value)}" for name, value in training.items()]
    overrides += [
        "data.length=8",
        "evaluation={benchmark: null, num_inference_steps: 2, plan: false, num_attempts: 1}",
    ]
    summary = run_recipe(load_recipe(ROOT / "recipes" / "tiny" / "generation.yaml", overrides))
    assert (summary.steps, summary.batch_size) == (1, 2)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history[-1]["step"] == 1 and any("train_loss" in each or "loss" in each for each in history)
    pipe = Blip3oPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    old, new = whole.backbone.state_dict(), pipe.model.backbone.state_dict()
    assert all(torch.equal(old[name], value) for name, value in new.items())
    assert pipe.model.generation_config.max_new_tokens == whole.generation_config.max_new_tokens
    image = pipe("a red circle", generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize("name", ["decoder", "few_step_decoder"])
def test_a_decoder_is_trained_on_the_target_encoder_of_a_whole_repository(name, tmp_path):
    inputs = ["inputs.encoder=blip3o-tiny", *(["inputs.decoder=blip3o-tiny"] if name != "decoder" else [])]
    stage = load_recipe(ROOT / "recipes" / "tiny" / f"{name}.yaml", [*inputs, f"output_dir={tmp_path}"]).open_stage()
    expected = load_target_encoder(str(TINY), "target_encoder")[0].state_dict()
    found = stage.target_encoder().model.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[each], expected[each]) for each in found)
