"""The paper's three designs, on backbones that know nothing of BLIP3-o yet, and the diffusion decoder."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.data.records import Record
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import CHAT_TEMPLATE, Blip3oProcessor
from blip3o_hf.models.target_encoder import crop, extract_features, load_target_encoder, normalize
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline, image_conditions
from blip3o_hf.shapes.dataset import ShapesDataset
from blip3o_hf.training.checkpoints import last_complete_checkpoint
from blip3o_hf.training.conversations import Conversations
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.tasks import DiffusionDecoderTask
from blip3o_hf.training.trainer import seeded_generator

ENCODER = str(Path(packaged_model_path("blip3o-tiny")) / "target_encoder")
LLAMA_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + date_string + '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}"
    "{{- '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
LLAMA_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
QWEN_TOKENS += ["<|image_pad|>", "<|video_pad|>"]
TRANSFORMER = {"dim": 16, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 16, "gate_init": 0.5}
UNET = {
    "sample_size": 8,
    "block_out_channels": [16, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "addition_time_embed_dim": 4,
}


class Backbones:
    """Tiny Llama and Qwen2.5-VL as the Hub has them: no `[IMG]`, no processor of ours."""

    def __init__(self, root, make_backbone_config):
        self.root = root
        self.make_config = make_backbone_config

    def tokenizer(self, tokens, **settings) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **settings)
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        return tokenizer

    def llama(self) -> Path:
        folder = self.root / "llama"
        names = {"bos_token": LLAMA_TOKENS[0], "eos_token": LLAMA_TOKENS[3]}
        tokenizer = self.tokenizer(LLAMA_TOKENS, **names, chat_template=LLAMA_TEMPLATE)
        config = self.make_config("llama")
        config.vocab_size, config.max_position_embeddings = len(tokenizer), 1024
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 256, 259, None
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def qwen(self) -> Path:
        folder = self.root / "qwen"
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        tokenizer = self.tokenizer(QWEN_TOKENS, **names, chat_template=CHAT_TEMPLATE)
        config = self.make_config("qwen")
        config.text_config.vocab_size = len(tokenizer) + 13  # padded, as published
        config.text_config.pad_token_id = tokenizer.pad_token_id
        for name in ("image", "video"):
            setattr(config, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}_pad|>"))
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        size = {"shortest_edge": 256, "longest_edge": 65536}
        Qwen2VLImageProcessorPil(patch_size=8, merge_size=1, temporal_patch_size=1, size=size).save_pretrained(folder)
        return folder


@pytest.fixture(scope="module")
def backbones(tmp_path_factory, make_backbone_config):
    made = Backbones(tmp_path_factory.mktemp("backbones"), make_backbone_config)
    return {"llama": made.llama(), "qwen": made.qwen()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("designs")


@pytest.fixture(scope="module")
def make_trainer(root):
    """`make_trainer(stage, folder, inputs, model, data=..., **training)`."""

    def make(stage, folder, inputs, model, data=None, **training):
        settings = {
            "max_steps": 2,
            "save_steps": 1,
            "logging_steps": 1,
            "per_device_train_batch_size": 3,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "disable_tqdm": True,
            "report_to": "none",
            "remove_unused_columns": False,
            **training,
        }
        recipe = Recipe(
            stage,
            str(folder),
            {key: str(value) for key, value in inputs.items()},
            model,
            data or {"length": 6},
            settings,
        )
        return recipe.trainer()

    return make


@pytest.fixture(scope="module")
def vae(make_trainer, root):
    """What the stage `vae` leaves."""
    sizes = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    trainer = make_trainer("vae", root / "vae", {}, {**sizes, "sample_size": 64, "kl_weight": 1e-3})
    trainer.train()
    return trainer.save_result()


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def shape(index):
    return Image.fromarray(ShapesDataset(20, seed=5)[index].image)


# Backbones


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_a_backbone_gets_the_token_that_starts_an_image(backbones, name):
    own = AutoTokenizer.from_pretrained(backbones[name])
    processor = Blip3oProcessor.from_backbone(backbones[name])
    assert processor.tokenizer.convert_tokens_to_ids("[IMG]") == len(own)
    assert len(processor.tokenizer) == len(own) + 1
    assert processor.tokenizer.pad_token == {"llama": "<|eot_id|>", "qwen": "<|endoftext|>"}[name]
    inputs = processor.encode_prompts(["a circle", "a much longer caption"])
    assert (inputs["input_ids"][:, -1] == len(own)).all()
    expected = own.apply_chat_template(
        [{"role": "user", "content": processor.instruction.format(caption="a circle")}],
        add_generation_prompt=True,
        tokenize=False,
        **({"date_string": "26 Jul 2024"} if name == "llama" else {}),
    )
    real = inputs["attention_mask"][0].bool()
    assert processor.tokenizer.decode(inputs["input_ids"][0][real]) == expected + "[IMG]"


def test_a_template_with_a_date_takes_another_when_asked(backbones):
    processor = Blip3oProcessor.from_backbone(backbones["llama"])
    messages = [{"role": "user", "content": "Hi"}]
    assert "Today: 1 May 2030" in processor.apply_chat_template(messages, date_string="1 May 2030")


@pytest.mark.parametrize(("name", "added"), [("llama", 1), ("qwen", 0)])
def test_the_new_token_starts_at_the_mean_and_the_backbone_stays_as_it_was(backbones, make_config, name, added):
    auto = AutoModelForCausalLM if name == "llama" else AutoModelForImageTextToText
    own = auto.from_pretrained(backbones[name])
    processor = Blip3oProcessor.from_backbone(backbones[name])
    model = Blip3oForConditionalGeneration.from_backbone(backbones[name], make_config(name), processor)
    new = len(processor.tokenizer) - 1
    before, after = own.get_input_embeddings().weight, model.get_input_embeddings().weight
    assert len(after) == len(before) + added == model.config.backbone_config.get_text_config().vocab_size
    torch.testing.assert_close(after[new], before[:new].mean(dim=0))
    assert torch.equal(after[:new], before[:new])
    rest = {key: value for key, value in weights(own).items() if "embed_tokens" not in key and "lm_head" not in key}
    assert all(torch.equal(model.backbone.state_dict()[key], value) for key, value in rest.items())


def test_a_backbone_that_has_the_token_keeps_it(tmp_path, processor, make_model, make_config):
    backbone = make_model().backbone
    backbone.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = Blip3oProcessor.from_backbone(tmp_path)
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    model = Blip3oForConditionalGeneration.from_backbone(tmp_path, make_config(), again)
    assert torch.equal(model.get_input_embeddings().weight, backbone.get_input_embeddings().weight)


def test_conversations_need_the_marks_of_chatml(backbones):
    with pytest.raises(ValueError, match="Conversations are learned in ChatML, with turns between"):
        Conversations(Blip3oProcessor.from_backbone(backbones["llama"]), 100)


# The three designs


DESIGNS = {
    "regression": {
        "objective": "feature_regression",
        "num_queries": 64,
        "train": ["backbone", "queries", "transformer"],
    },
    "flow": {"objective": "feature_flow", "num_queries": 4, "transformer": TRANSFORMER},
    "latents": {"objective": "latent_flow", "num_queries": 4, "transformer": {**TRANSFORMER, "patch_size": 2}},
}


@pytest.fixture(scope="module", params=DESIGNS)
def design(request, make_trainer, backbones, vae, root):
    """Name, trainer after two steps on Llama, weights before, and the folder left."""
    name = request.param
    encoder = vae if name == "latents" else ENCODER
    inputs = {"backbone": backbones["llama"], "encoder": encoder}
    if name == "latents":
        inputs["decoder"] = vae
    trainer = make_trainer("generation", root / name, inputs, DESIGNS[name])
    before = weights(trainer.model)
    trainer.train()
    return name, trainer, before, trainer.save_result()


def test_what_trains_in_each_design(design):
    name, trainer, before, _ = design
    changed = {key.partition(".")[0] for key in moved(trainer.model, before)}
    assert (
        changed
        == {
            "regression": {"backbone", "queries", "feature_head"},
            "flow": {"queries", "transformer"},
            "latents": {"queries", "transformer"},
        }[name]
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and np.isfinite(losses).all()


def test_every_design_is_validated_on_held_out_records(design):
    name, trainer, _, _ = design
    with torch.no_grad():
        losses = trainer.task.validate(trainer.model.eval(), trainer.eval_dataset)
    assert len(losses) == (2 if name == "regression" else 6) and np.isfinite(list(losses.values())).all()


def test_every_design_draws_from_the_folder_it_left(design, tmp_path):
    name, _, _, folder = design
    pipe = Blip3oPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    if name == "latents":
        assert pipe("a circle", num_inference_steps=2).images[0].size == (64, 64)
        encoder, _ = load_target_encoder(str(folder / "pipeline"), "target_encoder")
        assert isinstance(encoder, AutoencoderKL)
    else:
        features = pipe("a circle", num_inference_steps=2, output_type="features").image_features
        assert features.shape == (1, 64, 8, 8) and features.isfinite().all()
    assert pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]") == 260


def test_a_vae_gives_scaled_latents_that_decode_to_the_image_it_would_reconstruct(vae, assert_close):
    encoder, image_processor = load_target_encoder(str(vae))
    images = normalize(image_processor, crop(image_processor, [shape(index) for index in range(4)]))
    assert images.shape == (4, 3, 64, 64) and images.min() == -1 and images.max() == 1
    latents = extract_features(encoder, images)
    assert latents.shape == (4, 4, 8, 8)
    assert 0.5 < latents.std() < 2
    expected = encoder(images).sample
    assert_close(encoder.decode(latents / encoder.config.scaling_factor).sample, expected, 1e-4)


def test_latents_are_never_pooled(vae):
    encoder, image_processor = load_target_encoder(str(vae), feature_size=4)
    images = normalize(image_processor, crop(image_processor, [shape(index) for index in range(4)]))
    assert images.shape[-1] == 32 and extract_features(encoder, images, 4).shape[-1] == 4
    with pytest.raises(ValueError, match="Latents keep their size: 8 x 8 were asked for, and the images gave 4 x 4"):
        extract_features(encoder, images, 8)


# Long prompts and large images


def test_the_recipe_limits_prompts_and_input_images(make_trainer, backbones, tmp_path, make_image):
    limits = {"max_length": 200, "max_input_pixels": 1024}
    trainer = make_trainer(
        "generation", tmp_path, {"backbone": backbones["qwen"], "encoder": ENCODER}, {**DESIGNS["flow"], **limits}
    )
    image = make_image().resize((200, 100))
    batch = trainer.task.collate([Record("a", image, "a very long caption " * 50), Record("b", image, "c", (image,))])
    assert batch["input_ids"].shape[1] <= 196
    assert batch["image_grid_thw"].prod() * 8 * 8 <= 1024


@pytest.mark.parametrize("name", ["regression", "flow"])
def test_frozen_parts_may_be_in_half_precision_and_activations_recomputed(make_trainer, backbones, tmp_path, name):
    """As the full-size recipes do; the frozen part rounds, so only the same run with activations kept is compared."""
    inputs = {"backbone": backbones["qwen"], "encoder": ENCODER}
    model = {**DESIGNS[name], "frozen_dtype": "bfloat16", "train": ["queries", "transformer"]}
    found = []
    for recompute in (False, True):
        folder = tmp_path / str(recompute)
        trainer = make_trainer("generation", folder, inputs, model, activation_checkpointing=recompute, bf16=True)
        assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}
        assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
        trainer.train()
        with torch.no_grad():
            assert np.isfinite(list(trainer.task.validate(trainer.model.eval(), trainer.eval_dataset).values())).all()
        found.append(trainer.state.log_history[0]["loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-2)


# Every kind of record


def test_generation_editing_and_reconstruction_train_in_one_batch(make_trainer, backbones, tmp_path, make_image):
    trainer = make_trainer(
        "generation", tmp_path, {"backbone": backbones["qwen"], "encoder": ENCODER}, DESIGNS["flow"]
    )
    images = [make_image(seed) for seed in range(4)]
    records = [
        Record("generation", images[0], "a circle"),
        Record("editing", images[1], "make it red", (images[2], images[3])),
        Record("reconstruction", images[2], images=(images[2],)),
    ]
    assert [record.kind for record in records] == ["generation", "editing", "reconstruction"]
    task, model = trainer.task, trainer.model.train()
    model.config.condition_dropout = 0.0
    batch = task.collate(records)
    assert len(batch["image_grid_thw"]) == 3

    def gradients(records, numbers):
        model.zero_grad()
        task.loss(model, dict(task.collate(records)), [seeded_generator(number) for number in numbers]).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together = gradients(records, range(3))
    assert {name.partition(".")[0] for name in together} == {"queries", "transformer"}
    assert all(p.requires_grad == (name in together) for name, p in model.named_parameters())
    alone = [gradients([record], [number]) for number, record in enumerate(records)]
    for name, gradient in together.items():
        mean = sum(own[name] for own in alone) / 3
        torch.testing.assert_close(gradient, mean, rtol=0, atol=2e-5 * max(1.0, mean.abs().max().item()))
    no_image = gradients([Record("editing", images[1], "make it red")], [1])
    assert not torch.allclose(no_image["queries.weight"], alone[1]["queries.weight"], rtol=1e-3)


# The diffusion decoder


@pytest.fixture(scope="module")
def make_decoder_trainer(make_trainer, vae):
    def make(folder, inputs=None, model=None, **training):
        inputs = {"encoder": ENCODER, "vae": vae} if inputs is None else inputs
        model = {"unet": UNET, "image_size": 64} if model is None else model
        return make_trainer("diffusion_decoder", folder, inputs, model, **training)

    return make


@pytest.fixture(scope="module")
def decoder_run(make_decoder_trainer, root):
    trainer = make_decoder_trainer(root / "diffusion", max_steps=4, save_steps=2)
    before = weights(trainer.model)
    trainer.train()
    return trainer, before, trainer.save_result()


def test_the_decoder_trains_its_unet_alone_and_leaves_a_decoder(decoder_run, vae):
    trainer, before, folder = decoder_run
    assert moved(trainer.model, before) == set(before)
    for part in trainer.task.frozen_parts:
        assert all(p.grad is None and not p.requires_grad for p in part.parameters())
    decoder = Blip3oDecoderPipeline.from_pretrained(folder)
    decoder.set_progress_bar_config(disable=True)
    saved = AutoencoderKL.from_pretrained(vae).state_dict()
    assert all(torch.equal(decoder.vae.state_dict()[name], value) for name, value in saved.items())
    assert isinstance(decoder.scheduler, EulerDiscreteScheduler)
    features = torch.randn(1, 64, 8, 8)
    images = decoder(features, torch.zeros_like(features), num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all()


def test_the_decoder_goes_on_from_a_decoder_and_resumes_exactly(decoder_run, make_decoder_trainer, tmp_path):
    whole, _, folder = decoder_run
    further = make_decoder_trainer(tmp_path / "further", {"encoder": ENCODER, "decoder": folder}, {"image_size": 64})
    assert not moved(further.model, weights(whole.model))
    shutil.copytree(f"{whole.args.output_dir}/checkpoint-2", tmp_path / "resumed" / "checkpoints" / "checkpoint-2")
    resumed = make_decoder_trainer(tmp_path / "resumed", max_steps=4, save_steps=2)
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(resumed.args.output_dir))
    assert not moved(resumed.model, weights(whole.model))


def test_the_noise_of_training_is_that_of_sampling(decoder_run, assert_close):
    """What the sampler hands to the UNet at a step is what training hands to it at that timestep."""
    task = decoder_run[0].task
    sampler = EulerDiscreteScheduler.from_config(task.scheduler.config)
    sampler.set_timesteps(50)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in sampler.timesteps[[0, 20, 49]]:
        sampler._step_index = None
        noisy = sampler.scale_model_input(sampler.add_noise(latents, noise, timestep[None]), timestep)
        expected = task.noise_schedule.add_noise(latents, noise, timestep.long().repeat(3))
        assert_close(noisy, expected)


def test_the_loss_of_the_decoder_is_the_error_of_the_noise_given_features_or_null(decoder_run, assert_close):
    task = decoder_run[0].task
    records = [Record(str(index), shape(index), "x") for index in range(3)]
    calls = []

    class Unet(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states, added_cond_kwargs):
            calls.append((sample, timestep, encoder_hidden_states, added_cond_kwargs))
            self.sample = torch.zeros_like(sample)
            return self

    def loss(numbers, dropout, rows=slice(None)):
        task.feature_dropout = dropout
        generators = [seeded_generator(number) for number in numbers]
        value = task.loss(Unet(), task.collate(records[rows]), generators)
        task.feature_dropout = 0.1
        return value.item()

    noise = torch.stack([torch.randn(4, 8, 8, generator=seeded_generator(number)) for number in range(3)])
    assert loss(range(3), 0.0) == pytest.approx(noise.square().mean().item(), rel=1e-5)
    images = task.target_encoder.pixel_values([record.target for record in records])
    features = extract_features(task.target_encoder.model, images).flatten(2).transpose(1, 2)
    assert_close(calls[0][2], features)
    assert_close(calls[0][3]["text_embeds"], features.mean(dim=1))
    assert torch.equal(calls[0][3]["time_ids"].long(), image_conditions(64, 64).expand(3, -1))
    loss([1], 0.0, slice(1, 2))  # an image draws its noise, whatever else is in the batch
    assert_close(calls[1][0], calls[0][0][1:2])
    assert calls[1][1].item() == calls[0][1][1].item()
    loss(range(3), 1.0)
    null = extract_features(task.target_encoder.model, torch.zeros(1, 3, 64, 64)).flatten(2).transpose(1, 2)
    assert_close(calls[2][2], null.expand(3, -1, -1))


def test_the_loss_of_one_batch_falls(decoder_run):
    trainer, _, _ = decoder_run
    task, unet = trainer.task, trainer.model.train()
    batch = task.collate([Record(str(index), shape(index), "x") for index in range(4)])
    optimizer = torch.optim.Adam(unet.parameters(), 5e-3)
    losses = []
    for _ in range(25):
        loss = task.loss(unet, dict(batch), [seeded_generator(7, index) for index in range(4)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_recomputed_activations_give_the_same_gradients(make_decoder_trainer, decoder_run, tmp_path):
    weights_of = []
    for name, recompute in (("plain", False), ("recomputed", True)):
        trainer = make_decoder_trainer(tmp_path / name, activation_checkpointing=recompute, max_steps=1)
        trainer.train()
        assert trainer.model.is_gradient_checkpointing is recompute
        weights_of.append(weights(trainer.model))
    for name, value in weights_of[0].items():
        torch.testing.assert_close(weights_of[1][name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "model", "message"),
    [
        (["encoder"], {}, "Stage 'diffusion_decoder' starts from a decoder or from a VAE. r.yaml names neither."),
        (["encoder", "vae", "decoder"], {"unet": {}}, "from a decoder or from a VAE. r.yaml names both."),
        (["encoder", "decoder"], {"unet": {}}, "A new UNet needs its sizes, and a trained one keeps them. r.yaml has"),
        (["encoder", "vae"], {}, "A new UNet needs its sizes, and a trained one keeps them. r.yaml has none."),
    ],
)
def test_a_decoder_stage_without_its_parts_is_refused(inputs, model, message, tmp_path):
    recipe = Recipe("diffusion_decoder", "x", dict.fromkeys(inputs, str(tmp_path)), model, source="r.yaml")
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.open_stage()


def test_a_decoder_that_predicts_something_else_is_refused(make_decoder_trainer, decoder_run, tmp_path):
    copy = shutil.copytree(decoder_run[2], tmp_path / "decoder")
    EulerDiscreteScheduler.from_pretrained(copy, subfolder="scheduler", prediction_type="sample").save_pretrained(
        copy / "scheduler"
    )
    with pytest.raises(
        ValueError, match=r"This stage trains decoders that predict noise or velocity\. The scheduler of"
    ):
        make_decoder_trainer(tmp_path / "out", {"encoder": ENCODER, "decoder": copy}, {"image_size": 64})


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (
            "vae",
            {"unet": {}, "prediction_type": "v"},
            "Unknown prediction type 'v'. Available: epsilon, v_prediction.",
        ),
        ("decoder", {"prediction_type": "epsilon"}, "What a trained UNet predicts is in its scheduler. r.yaml gives"),
    ],
)
def test_a_prediction_type_is_that_of_a_new_unet(inputs, settings, message, tmp_path):
    recipe = Recipe(
        "diffusion_decoder", "x", dict.fromkeys(["encoder", inputs], str(tmp_path)), settings, source="r.yaml"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe.open_stage()


def test_a_new_unet_can_learn_velocity_and_is_sampled_by_it(make_decoder_trainer, tmp_path):
    """The true velocity is without loss, and the saved sampler ends at the true latents with it."""
    settings = {"prediction_type": "v_prediction", "feature_dropout": 0.0, "noise_shift": 4.0}
    trainer = make_decoder_trainer(tmp_path / "run", model={"unet": UNET, "image_size": 64, **settings})
    task, schedule = trainer.task, trainer.task.noise_schedule
    batch = task.collate([Record(str(index), shape(index), "x") for index in range(2)])
    latents = extract_features(task.vae, batch["pixel_values"], 8)

    class Unet(torch.nn.Module):
        def forward(self, sample, timestep, **conditions):
            kept = schedule.alphas_cumprod[timestep].view(-1, 1, 1, 1)
            noise = (sample - kept.sqrt() * latents) / (1 - kept).sqrt()
            self.sample = kept.sqrt() * noise - (1 - kept).sqrt() * latents
            return self

    assert task.loss(Unet(), dict(batch), [seeded_generator(index) for index in range(2)]).item() < 1e-9
    trainer.save_model(str(tmp_path / "result"))
    sampler = EulerDiscreteScheduler.from_pretrained(tmp_path / "result", subfolder="scheduler")
    sampler.set_timesteps(10)
    noisy = torch.randn(latents.shape, generator=seeded_generator(9)) * sampler.init_noise_sigma
    for timestep in sampler.timesteps:
        velocity = Unet()(sampler.scale_model_input(noisy, timestep), timestep.long()).sample
        noisy = sampler.step(velocity, timestep, noisy).prev_sample
    torch.testing.assert_close(noisy, latents, rtol=0, atol=1e-2)


def test_a_shift_trains_nearer_to_pure_noise(decoder_run):
    task = decoder_run[0].task
    timesteps = torch.arange(1000)
    assert torch.equal(task.shifted(timesteps), timesteps)
    shifted = DiffusionDecoderTask(task.vae, task.scheduler, noise_shift=4.0)
    shifted.noise_schedule = task.noise_schedule
    moved = shifted.shifted(timesteps)
    assert moved.min() >= 0 and moved[-1] == 999 and (moved.diff() >= 0).all()
    assert moved[499] == 799  # half of all are in the last fifth


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "4", True])
def test_a_shift_that_is_none_is_refused(value, decoder_run):
    task = decoder_run[0].task
    with pytest.raises(ValueError, match=r"`noise_shift` must be positive\. Got .*\. 1 draws all levels as often\."):
        DiffusionDecoderTask(task.vae, task.scheduler, noise_shift=value)


def test_a_result_can_have_a_diffusion_decoder(make_trainer, backbones, decoder_run, tmp_path):
    inputs = {"backbone": backbones["qwen"], "encoder": ENCODER, "decoder": decoder_run[2]}
    trainer = make_trainer("generation", tmp_path, inputs, DESIGNS["flow"])
    pipe = trainer.pipeline()
    assert pipe.decoder is None and pipe.decoder_pipeline is not None
    assert isinstance(pipe.decoder_scheduler, EulerDiscreteScheduler)
