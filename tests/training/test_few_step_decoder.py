"""A trained diffusion decoder learns to draw in a few steps: what it learns from, what is left, and with adapters."""

import copy
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UNet2DConditionModel,
)
from peft import LoraConfig
from PIL import Image

from blip3o_hf import Blip3oDecoderPipeline, Blip3oTrainer
from blip3o_hf.pipelines.pipeline_blip3o_decoder import PixelDenoiser
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.results import assemble_pipeline
from blip3o_hf.training.stages.diffusion_decoder import SCHEDULE
from blip3o_hf.training.tasks import FewStepDecoderTask

WIDTH = 16


@pytest.fixture(scope="module")
def encoder(make_tower):
    return make_tower(patch_size=4)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folder of a decoder of 32 pixels."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=[8, 8], layers_per_block=1, norm_num_groups=4, sample_size=32).eval()
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=[16, 16],
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        attention_head_dim=2,
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 24,
    ).eval()
    Blip3oDecoderPipeline(unet, vae, EulerDiscreteScheduler(**SCHEDULE)).save_pretrained(folder / "decoder")
    return folder


@pytest.fixture
def start(parts, encoder, brief, rows):
    """`start(folder, task={...}, peft_config=..., **arguments)`: a Trainer of a decoder of few steps."""

    def make(folder="run", task=None, peft_config=None, **settings):
        torch.manual_seed(0)
        decoder = Blip3oDecoderPipeline.from_pretrained(parts / "decoder")
        return Blip3oTrainer(
            decoder.unet,
            brief(folder, **{"learning_rate": 1e-3, "lr_scheduler_type": "constant", **settings}),
            train_dataset=rows,
            eval_dataset=rows,
            target_encoder=encoder,
            task=FewStepDecoderTask(decoder.vae, decoder.scheduler, **{"teacher_steps": 5, **(task or {})}),
            peft_config=peft_config,
        )

    return make


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def tokens_of(trainer, number=3):
    pictures = [Image.new("RGB", (32, 32), (80 * index, 10, 200)) for index in range(number)]
    return trainer.task.given({"encoder_pixel_values": trainer.task.target_encoder.pixel_values(pictures)})


def test_a_path_is_what_the_decoder_draws_with_guidance(start, parts, assert_close):
    trainer = start(task={"teacher_guidance_scale": 2.5})
    tokens, null = tokens_of(trainer)
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    path, timesteps = trainer.task.path(noise, tokens, null)
    assert path.shape == (6, 3, 4, 16, 16) and torch.equal(path[0], noise) and timesteps[0] == 999
    decoder = Blip3oDecoderPipeline.from_pretrained(parts / "decoder")
    scheduler = DDIMScheduler.from_config(
        decoder.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
    )
    scheduler.set_timesteps(5)
    grids = [each.transpose(1, 2).unflatten(2, (8, 8)) for each in (tokens, null)]
    denoiser = PixelDenoiser(decoder.unet, decoder.vae_scale_factor, scheduler, noise, *grids)
    latents = noise
    with torch.no_grad():
        for index, timestep in enumerate(scheduler.timesteps):
            prediction, away = denoiser.predict_both(latents, index)
            latents = scheduler.step(away + 2.5 * (prediction - away), timestep, latents, return_dict=False)[0]
    assert_close(path[-1], latents)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_end_that_a_unet_predicts_is_that_of_the_sampler(kind, start, assert_close):
    trainer = start()
    trainer.task.scheduler.register_to_config(prediction_type=kind)
    tokens, _ = tokens_of(trainer)
    noisy = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    scheduler = LCMScheduler.from_config(trainer.task.scheduler.config, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(1)
    timestep = scheduler.timesteps[0]
    with torch.no_grad():
        predicted = trainer.task.predict(trainer.model, noisy, timestep.expand(3), tokens)
        end = trainer.task._end(trainer.model, noisy, timestep.expand(3), tokens)
    assert_close(scheduler.step(predicted, timestep, noisy).denoised, end)


def test_the_unet_learns_where_its_paths_end_and_its_teacher_stays(start, parts):
    trainer = start(max_steps=60, save_steps=60, learning_rate=3e-3)
    teacher, before = weights(trainer.task.teacher), trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss_of_1_steps"] < 0.85 * before["eval_loss_of_1_steps"]
    assert all(torch.equal(teacher[name], value) for name, value in trainer.task.teacher.state_dict().items())


def test_what_is_left_is_sampled_by_the_scheduler_of_few_steps(start, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    trainer = start()
    trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    caplog.clear()
    decoder = Blip3oDecoderPipeline.from_pretrained(tmp_path / "result")
    assert not [record for record in caplog.records if "config attributes" in record.getMessage()]
    decoder.set_progress_bar_config(disable=True)
    assert isinstance(decoder.scheduler, LCMScheduler)
    assert torch.equal(decoder.scheduler.alphas_cumprod, trainer.task.noise_schedule.alphas_cumprod)
    calls = []
    decoder.unet.register_forward_hook(lambda *args: calls.append(len(args[2].sample)))
    features = torch.randn(2, WIDTH, 8, 8)
    draw = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "np"}
    images = decoder(features, generator=torch.Generator().manual_seed(0), **draw).images
    assert calls == [2] * 4 and images.shape == (2, 32, 32, 3) and np.isfinite(images).all()
    assert isinstance(trainer.task.scheduler, EulerDiscreteScheduler)  # that of the diffusion, to go on with


def test_a_whole_pipeline_with_it_draws_in_four_steps_without_guidance(start, tmp_path, make_model, make_processor):
    trainer = start()
    trainer.save_model(str(tmp_path / "decoder"))
    pipe = assemble_pipeline(make_model(feature_size=8), make_processor(), str(tmp_path / "decoder"))
    assert (pipe.config.default_decoder_num_inference_steps, pipe.config.default_decoder_guidance_scale) == (4, 1.0)
    pipe.set_progress_bar_config(disable=True)
    calls = []
    pipe.unet.register_forward_hook(lambda *args: calls.append(len(args[2].sample)))
    assert pipe("a red circle", num_inference_steps=2).images[0].size == (32, 32)
    assert calls == [1] * 4
    plain = assemble_pipeline(
        make_model(feature_size=8),
        make_processor(),
        str(tmp_path / "decoder"),
        {"default_decoder_num_inference_steps": 2},
    )
    assert plain.config.default_decoder_num_inference_steps == 2


def test_a_tiny_autoencoder_gives_drafts(parts):
    decoder = Blip3oDecoderPipeline.from_pretrained(parts / "decoder")
    decoder.set_progress_bar_config(disable=True)
    sizes = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    decoder.vae = AutoencoderTiny(**sizes, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()
    draw = {"guidance_scale": 1.0, "num_inference_steps": 2}
    assert decoder(torch.randn(1, WIDTH, 8, 8), **draw).images[0].size == (32, 32)


def test_adapters_train_alone_and_are_merged_into_what_is_left(start, parts, tmp_path):
    adapters = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    trainer = start(peft_config=adapters)
    trained = {name for name, each in trainer.model.named_parameters() if each.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    old = Blip3oDecoderPipeline.from_pretrained(parts / "decoder").unet.state_dict()
    new = Blip3oDecoderPipeline.from_pretrained(tmp_path / "result").unet.state_dict()
    assert old.keys() == new.keys()
    changed = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert changed and all(".attn" in name and name.endswith("weight") for name in changed)
    merged = copy.deepcopy(trainer.model).merge_and_unload().state_dict()
    assert all(torch.equal(new[name], value) for name, value in merged.items())


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(start):
    whole = start("whole")
    whole.train()
    half = start("half", max_steps=2)
    half.train()
    rest = start("half")
    rest.train(resume_from_checkpoint=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in rest.model.state_dict().items())


def test_a_run_with_adapters_goes_on_exactly_from_adapters_alone(start, tmp_path):
    adapters = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k"])
    whole = start("whole", peft_config=adapters)
    whole.train()
    half = start("half", max_steps=2, peft_config=adapters)
    half.train()
    left = {path.name for path in (tmp_path / "half" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in left and "unet" not in left
    rest = start("half", peft_config=adapters)
    rest.train(resume_from_checkpoint=True)
    expected = whole.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in rest.model.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_few_steps_are_at_levels_of_the_paths(start, steps):
    task = start(task={"teacher_steps": 5}).task
    scheduler = task.saved_scheduler
    scheduler.set_timesteps(steps)
    tokens, null = tokens_of(SimpleNamespace(task=task), 1)
    _, timesteps = task.path(torch.randn(1, 4, 16, 16), tokens, null)
    assert set(scheduler.timesteps.tolist()) <= set(timesteps.tolist()) and scheduler.timesteps[0] == 999


def test_a_decoder_of_few_steps_is_made_of_a_diffusion(start, encoder, tmp_path):
    trainer = start()
    trainer.save_model(str(tmp_path / "few"))
    recipe = {"inputs": {"encoder": encoder, "decoder": str(tmp_path / "few")}, "data": {"length": 4}}
    training = {"max_steps": 1, "use_cpu": True, "report_to": "none"}
    for stage in ("few_step_decoder", "diffusion_decoder"):
        with pytest.raises(ValueError, match="A decoder of few steps has forgotten the diffusion that it was made of"):
            Recipe(stage, str(tmp_path / stage), model={"image_size": 32}, training=training, **recipe).trainer()
    with pytest.raises(ValueError, match=r"`teacher_steps` must divide the 1000 timesteps .* Got 7\. Take 25 or 50\."):
        start(task={"teacher_steps": 7})


def test_the_stage_trains_the_decoder_of_its_recipe(parts, encoder, tmp_path):
    for name, lora in (("whole", None), ("adapters", {"rank": 2})):
        recipe = Recipe(
            "few_step_decoder",
            str(tmp_path / name),
            inputs={"encoder": encoder, "decoder": str(parts / "decoder")},
            model={"teacher_steps": 2, "feature_size": 8, "image_size": 32, "lora": lora},
            data={"length": 4},
            training={"max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True, "report_to": "none"},
        )
        trainer = recipe.trainer()
        trained = [each for each, value in trainer.model.named_parameters() if value.requires_grad]
        assert all("lora_" in each for each in trained) == (lora is not None)
        trainer.train()
        trainer.save_result()
        assert isinstance(Blip3oDecoderPipeline.from_pretrained(tmp_path / name).scheduler, LCMScheduler)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_steps": 0}, r"`teacher_steps` must be a whole number of at least 1\. Got 0"),
        ({"teacher_guidance_scale": -1.0}, r"`teacher_guidance_scale` must be positive\. Got -1\.0"),
    ],
)
def test_settings_are_checked(settings, message, parts):
    decoder = Blip3oDecoderPipeline.from_pretrained(parts / "decoder")
    with pytest.raises(ValueError, match=message):
        FewStepDecoderTask(decoder.vae, decoder.scheduler, **settings)
