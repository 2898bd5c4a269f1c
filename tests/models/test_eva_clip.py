"""EVA-CLIP loads from our folders and from published checkpoints, whole or not at all, and feeds the features."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from blip3o_hf.checkpoints.published_names import TARGET_ENCODER
from blip3o_hf.models.configuration_eva_clip import EvaClipVisionConfig
from blip3o_hf.models.image_processing_eva_clip import EvaClipImageProcessor
from blip3o_hf.models.modeling_eva_clip import EvaClipVisionModel
from blip3o_hf.models.target_encoder import extract_features, load_target_encoder

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}


@pytest.fixture
def model():
    """Weights that no initialisation would give, so that a reload cannot pass by initialising alike."""
    torch.manual_seed(0)
    model = EvaClipVisionModel(EvaClipVisionConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def published(model, tmp_path):
    """`published(num_shards=1, **changes)`: a checkpoint in the published layout, with `changes` to its tensors."""

    def write(num_shards=1, **changes):
        tower = {**model.state_dict(), **{name.replace("__", "."): value for name, value in changes.items()}}
        tensors = {TARGET_ENCODER + name: value for name, value in tower.items() if value is not None}
        tensors = {"model.embed_tokens.weight": torch.zeros(4, 8), **tensors, "lm_head.weight": torch.zeros(4, 8)}
        folder = tmp_path / "published"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "blip3o_qwen", "hidden_size": 8}))
        if num_shards == 1:
            save_file(tensors, folder / "model.safetensors")
            return folder
        names = [f"model-{index + 1:05}-of-{num_shards:05}.safetensors" for index in range(num_shards)]
        keys = list(tensors)
        parts = [keys[:1], *(keys[1:][index :: num_shards - 1] for index in range(num_shards - 1))]
        for name, part in zip(names, parts, strict=True):
            save_file({key: tensors[key] for key in part}, folder / name)
        weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    return write


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


# The tower


def test_the_default_is_eva_clip_e_14_plus():
    with torch.device("meta"):
        model = EvaClipVisionModel(EvaClipVisionConfig())
    assert model.num_parameters() == 4_350_208_256
    assert model.pos_embed.shape == (1, 1025, 1792)
    assert model.blocks[0].attn.head_dim == 112


def test_the_tower_is_the_reference_s_formula(model, pixels):
    """Written out once more: class token first, learned positions, and norms on what the layers add."""
    config = model.config
    patches = torch.nn.functional.unfold(pixels, config.patch_size, stride=config.patch_size).transpose(1, 2)
    x = patches @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias
    x = torch.cat([model.cls_token.repeat(2, 1, 1), x], dim=1) + model.pos_embed
    for block in model.blocks:
        query, key, value = block.attn.qkv(x).reshape(2, 65, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = (query @ key.mT / 8**0.5).softmax(dim=-1)
        x = x + block.norm1(block.attn.proj((scores @ value).permute(0, 2, 1, 3).reshape(2, 65, 16)))
        hidden = block.mlp.fc1(x)
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
        x = x + block.norm2(block.mlp.fc2(hidden))
    torch.testing.assert_close(model(pixels).last_hidden_state, x, rtol=0, atol=1e-5)


def test_eager_equals_sdpa(model, pixels, assert_close):
    model.set_attn_implementation("sdpa")
    fast = model(pixels).last_hidden_state
    model.set_attn_implementation("eager")
    assert_close(fast, model(pixels).last_hidden_state)


def test_hidden_states_and_attentions_are_recorded(model, pixels):
    model.set_attn_implementation("eager")
    output = model(pixels, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert [weights.shape for weights in output.attentions] == [(2, 2, 65, 65)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 65))


def test_gradient_checkpointing_changes_nothing(model, pixels):
    def gradients():
        model.zero_grad()
        model(pixels).last_hidden_state.square().mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.train()
    plain = gradients()
    runs = []
    model.blocks[0].mlp.fc1.register_forward_hook(lambda *args: runs.append(1))
    model.activation_checkpointing_enable()
    checkpointed = gradients()
    assert len(runs) == 2, "the backward pass must run the block again"
    for name, gradient in plain.items():
        assert torch.equal(checkpointed[name], gradient), name


def test_a_batch_equals_its_singles(model, pixels, assert_close):
    singles = torch.cat([model(image[None]).last_hidden_state for image in pixels])
    assert_close(model(pixels).last_hidden_state, singles)


def test_loading_without_weights_initialises_every_parameter():
    """The path of `from_pretrained`, on which PyTorch's own initialisation does not run."""
    with torch.device("meta"):
        model = EvaClipVisionModel(EvaClipVisionConfig(**SIZES))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    assert [name for name, parameter in model.named_parameters() if parameter.isnan().any()] == []
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("shape", [(1, 3, 28, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_size_are_refused(shape, model):
    message = (
        f"The encoder reads images of shape [batch, 3, 32, 32]. Got {list(shape)}. Prepare images with the encoder's "
        f"image processor."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_attention_heads": 3}, "`num_attention_heads` must divide `hidden_size`. Got 3 for 1792. EVA-CLIP-E-14"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must divide `hidden_size`. Got 0 for 1792. EVA-CLIP-E-14"),
        ({"image_size": 450}, "`patch_size` must divide `image_size`. Got 14 for 450. EVA-CLIP-E-14-plus has 14 for"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(setting, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionConfig(**setting)


# Our own folders


@pytest.mark.parametrize("load", [EvaClipVisionModel.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_tower_is_bit_equal(load, dtype, model, tmp_path):
    model.to(dtype).save_pretrained(tmp_path)
    reloaded = load(tmp_path)
    assert type(reloaded) is EvaClipVisionModel
    assert_same_weights(reloaded, model)
    assert not reloaded.training
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == reloaded.config.to_dict()


def test_a_saved_tower_in_shards_is_bit_equal(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(EvaClipVisionModel.from_pretrained(tmp_path), model)


def test_a_saved_tower_that_lacks_a_tensor_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["blocks.1.norm2.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = f"A checkpoint must hold every tensor of the model. {tmp_path} lacks 1: blocks.1.norm2.bias."
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(tmp_path)


def test_a_saved_tower_of_another_shape_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "image_size": 28}))
    message = (
        f"A checkpoint's tensors must have the model's shapes. {tmp_path} has 1 that do not: pos_embed is "
        f"[1, 65, 16], the config asks for [1, 50, 16]. Use the config that was saved with these weights, or "
        f"download them again."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(tmp_path)
    reloaded, info = EvaClipVisionModel.from_pretrained(
        tmp_path, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert [name for name, *_ in info["mismatched_keys"]] == ["pos_embed"]
    assert reloaded.pos_embed.shape == (1, 50, 16)


def test_a_damaged_file_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short: it has \d+ bytes, and \S+ ends at byte"):
        EvaClipVisionModel.from_pretrained(tmp_path)


def test_a_pickle_is_never_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"has only pytorch_model\.bin\. Reading a pickle can run any program"):
        EvaClipVisionModel.from_pretrained(tmp_path, use_safetensors=False)


# Published checkpoints


@pytest.mark.parametrize("model_type", ["blip3o_qwen", "blip3o_qwen_inference"])
def test_a_published_checkpoint_in_one_file(model_type, model, published, pixels):
    folder = published()
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)
    assert_same_weights(loaded, model)
    assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)
    assert {name: getattr(loaded.config, name) for name in SIZES} == SIZES
    assert loaded.name_or_path == str(folder)
    assert not loaded.training


def test_of_shards_only_those_with_the_tower_are_read(model, published):
    folder = published(num_shards=4)
    (folder / "model-00001-of-00004.safetensors").unlink()
    assert_same_weights(EvaClipVisionModel.from_pretrained(str(folder), num_attention_heads=2), model)


def test_a_published_checkpoint_in_the_hub_s_cache(model, published, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--blip3o"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    published(num_shards=3).rename(repository / "snapshots" / commit)
    loaded = EvaClipVisionModel.from_pretrained(
        "someone/blip3o", num_attention_heads=2, cache_dir=tmp_path / "hub", local_files_only=True
    )
    assert_same_weights(loaded, model)
    assert loaded.name_or_path == "someone/blip3o"


def test_a_published_checkpoint_in_a_subfolder(model, published):
    folder = published(num_shards=3)
    loaded = EvaClipVisionModel.from_pretrained(folder.parent, subfolder=folder.name, num_attention_heads=2)
    assert_same_weights(loaded, model)


def test_arguments_of_the_library_apply_to_a_published_checkpoint(published):
    loaded, info = EvaClipVisionModel.from_pretrained(
        published(),
        num_attention_heads=4,
        layer_norm_eps=1e-5,
        dtype=torch.bfloat16,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.num_attention_heads == 4
    assert loaded.blocks[0].norm1.eps == 1e-5
    assert loaded.config._attn_implementation == "eager"
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_published_tower_is_saved_in_our_layout(model, published, tmp_path):
    EvaClipVisionModel.from_pretrained(published(), num_attention_heads=2).save_pretrained(tmp_path / "ours")
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) == set(model.state_dict())
    assert_same_weights(EvaClipVisionModel.from_pretrained(tmp_path / "ours"), model)


def test_training_a_loaded_tower_leaves_its_file_alone(model, published):
    folder = published()
    loaded = EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)
    with torch.no_grad():
        loaded.cls_token.add_(1.0)
    assert torch.equal(load_file(folder / "model.safetensors")[TARGET_ENCODER + "cls_token"], model.cls_token)


def test_the_number_of_heads_must_be_known(published):
    folder = published()
    message = (
        f"The number of attention heads must be known, and a checkpoint does not tell it. {folder} has a tower of "
        f"width 16; only that of EVA-CLIP-E-14-plus, 1792, has a default. Pass num_attention_heads=... to "
        f"from_pretrained."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=re.escape("`num_attention_heads` must divide `hidden_size`. Got 3 for 16.")):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=3)


def test_the_width_of_eva_clip_e_14_plus_has_16_heads(tmp_path):
    tower = EvaClipVisionModel(
        EvaClipVisionConfig(intermediate_size=2, num_hidden_layers=1, image_size=4, patch_size=2)
    ).bfloat16()
    save_file(
        {TARGET_ENCODER + name: value for name, value in tower.state_dict().items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip3o_qwen"}))
    loaded = EvaClipVisionModel.from_pretrained(tmp_path)
    assert loaded.config.num_attention_heads == 16
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_missing_tensor_is_named(num_shards, published):
    folder = published(num_shards, blocks__0__attn__qkv__bias=None, cls_token=None)
    message = (
        f"A checkpoint must hold every tensor of the model and no other. {folder} lacks 2: "
        f"{TARGET_ENCODER}blocks.0.attn.qkv.bias, {TARGET_ENCODER}cls_token. Download it again"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


def test_a_tensor_that_only_the_index_knows_is_named(published):
    folder = published(num_shards=3, cls_token=None)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"][TARGET_ENCODER + "cls_token"] = "model-00002-of-00003.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = f"{TARGET_ENCODER}cls_token in model-00002-of-00003.safetensors, which has no tensor of that name."
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


def test_a_tensor_too_many_is_named(published):
    folder = published(2, blocks__0__attn__q_bias=torch.zeros(16))
    message = f"has 1 too many: {TARGET_ENCODER}blocks.0.attn.q_bias (in model-0000"
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


def test_a_saved_tower_of_no_numbers_is_refused_by_name(model, tmp_path):
    with torch.no_grad():
        model.cls_token.fill_(torch.nan)
    model.save_pretrained(tmp_path)
    message = f"Weights must be finite numbers. cls_token (in model.safetensors) of {tmp_path} holds NaN or infinity."
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(tmp_path)


def test_a_wrong_shape_is_named(published):
    folder = published(blocks__1__mlp__fc2__weight=torch.zeros(16, 41))
    message = (
        f"A checkpoint's tensors must have the model's shapes. {folder} has 1 that do not: blocks.1.mlp.fc2.weight is "
        f"[16, 41], the config asks for [16, 40]. Use the config that was saved with these weights, or "
        f"download them again."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


def test_positions_that_fit_no_square_image_are_refused(published):
    folder = published(pos_embed=torch.zeros(1, 60, 16))
    with pytest.raises(ValueError, match=re.escape("pos_embed is [1, 60, 16], the config asks for [1, 50, 16].")):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pos_embed": None, "patch_embed__proj__weight": None}, "patch_embed.proj.weight, pos_embed"),
        ({"blocks__0__mlp__fc1__weight": torch.zeros(40)}, "blocks.0.mlp.fc1.weight"),
    ],
)
def test_a_tower_without_the_tensors_that_tell_its_sizes_is_refused(changes, named, published):
    folder = published(**changes)
    message = (
        f"The sizes of a tower are read from the shapes of patch_embed.proj.weight, pos_embed, "
        f"blocks.0.mlp.fc1.weight. {folder} lacks {named}, or has it with other dimensions. Save or download it again."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


def test_a_checkpoint_without_a_tower_is_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path)
    message = (
        f"A checkpoint must hold an EVA-CLIP tower: tensors named {TARGET_ENCODER}*. {tmp_path} holds none. Use a "
        f"published BLIP3-o checkpoint, or a folder that EvaClipVisionModel.save_pretrained wrote."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(tmp_path)


def test_a_missing_shard_is_named(published):
    folder = published(num_shards=4)
    (folder / "model-00003-of-00004.safetensors").unlink()
    message = " in model-00003-of-00004.safetensors, which is missing. Download it."
    with pytest.raises(ValueError, match=re.escape(message)):
        EvaClipVisionModel.from_pretrained(folder, num_attention_heads=2)


def test_a_folder_without_safetensors_is_refused(published):
    folder = published()
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{folder} has only pytorch_model.bin. Reading a pickle can run")):
        EvaClipVisionModel.from_pretrained(folder)


def test_a_damaged_published_checkpoint_is_refused(published):
    folder = published()
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"model\.safetensors is cut short: it has \d+ bytes, and \S+ ends at byte"):
        EvaClipVisionModel.from_pretrained(folder)


# Images


def positions(height, width):
    """An image whose first channel says the row of each pixel, and whose second the column, modulo 256."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([rows, columns, np.zeros_like(rows)], axis=-1))


@pytest.mark.parametrize(
    ("spare", "offset", "clip_offset"), [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 1), (5, 2, 2), (7, 4, 3), (8, 4, 4)]
)
def test_the_crop_s_offset_is_rounded_half_to_even(spare, offset, clip_offset):
    settings = {
        "size": {"shortest_edge": 8},
        "crop_size": {"height": 8, "width": 8},
        "do_rescale": False,
        "do_normalize": False,
    }
    for processor, expected in (
        (EvaClipImageProcessor(**settings), offset),
        (CLIPImageProcessorPil(**settings), clip_offset),
    ):
        for axis, size in ((0, (8 + spare, 8)), (1, (8, 8 + spare))):
            cropped = processor(positions(*size), return_tensors="np")["pixel_values"][0]
            assert cropped.shape == (3, 8, 8)
            assert cropped[axis].min() == expected
            assert cropped[1 - axis].min() == 0


@pytest.mark.parametrize(("width", "height"), [(640, 480), (300, 500), (1000, 451), (451, 1001)])
def test_images_are_prepared_as_the_reference_does(width, height):
    """PIL and NumPy alone: longer side rounded down, antialiased bicubic, crop half to even, CLIP's statistics."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    short = min(width, height)
    size = (448 * width // short, 448 * height // short)
    resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    left, top = (round((side - 448) / 2) for side in size)
    cropped = resized[top : top + 448, left : left + 448] / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.from_numpy((cropped - mean) / std).permute(2, 0, 1).float()
    actual = EvaClipImageProcessor()(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_images_of_other_modes_become_rgb():
    rgb = positions(448, 448)
    processor = EvaClipImageProcessor()
    grey = processor(rgb.convert("L"), return_tensors="pt")["pixel_values"]
    assert torch.equal(grey, processor(rgb.convert("L").convert("RGB"), return_tensors="pt")["pixel_values"])
    transparent = rgb.copy()
    transparent.putalpha(0)
    white = processor(Image.new("RGB", rgb.size, "white"), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(transparent, return_tensors="pt")["pixel_values"], white)


def test_the_image_processor_is_saved_under_its_own_name(tmp_path):
    EvaClipImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    reloaded = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    assert type(reloaded) is EvaClipImageProcessor
    assert dict(reloaded.crop_size) == {"height": 32, "width": 32}


# The target encoder


def test_features_are_averaged_down_to_the_grid(model):
    """32 x 32 patches to 8 x 8, without the class token (the reference's `early_pool2d_4`)."""
    torch.manual_seed(0)
    model = EvaClipVisionModel(EvaClipVisionConfig(**{**SIZES, "image_size": 128})).eval()
    pixels = torch.randn(1, 3, 128, 128)
    features = extract_features(model, pixels)
    tokens = model(pixels).last_hidden_state[0, 1:].reshape(32, 32, 16)
    assert features.shape == (1, 16, 8, 8)
    expected = tokens[4:8, 12:16].mean(dim=(0, 1))
    torch.testing.assert_close(features[0, :, 1, 3], expected)


TOWERS = {
    "eva": lambda: EvaClipVisionModel(EvaClipVisionConfig(**SIZES)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES)),
    "siglip": lambda: SiglipVisionModel(SiglipVisionConfig(**SIZES)),
}


@pytest.mark.parametrize("name", TOWERS)
def test_any_vision_tower_is_a_target_encoder(name, pixels, tmp_path):
    tower = TOWERS[name]().eval()
    tower.save_pretrained(tmp_path)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (EvaClipImageProcessor if name == "eva" else CLIPImageProcessorPil)(**size).save_pretrained(tmp_path)
    encoder, image_processor = load_target_encoder(str(tmp_path))
    assert type(encoder) is type(tower)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert isinstance(image_processor, EvaClipImageProcessor) == (name == "eva")
    assert torch.equal(extract_features(encoder, pixels), extract_features(tower, pixels))


@pytest.mark.parametrize(("whole", "config"), [(CLIPModel, CLIPConfig), (SiglipModel, SiglipConfig)])
def test_of_a_model_with_text_the_vision_tower_is_the_encoder(whole, config, pixels, tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = whole(config(text_config={**text, "vocab_size": 32}, vision_config=SIZES)).eval()
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    encoder, _ = load_target_encoder(str(tmp_path))
    assert torch.equal(extract_features(encoder, pixels), extract_features(model.vision_model, pixels))


def test_a_target_encoder_that_lacks_a_tensor_is_refused(tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**SIZES)).save_pretrained(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=re.escape("A checkpoint must hold every tensor of the model.")):
        load_target_encoder(str(tmp_path))
