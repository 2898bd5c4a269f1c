"""Extractors by name and of your own: features of each picture, by itself, with what they depend on."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.evaluation.extractors import load_extractor
from blip3o_hf.models.target_encoder import TargetEncoder

ENCODER = f"{packaged_model_path()}/target_encoder"
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def pictures(make_image):
    return [make_image(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    text = {**SMALL, "vocab_size": 10, "max_position_embeddings": 4}
    vision = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 12}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(folder)
    square = {"height": 28, "width": 28}
    BitImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """`own_module(text)`: the module `mine` with that text."""

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine", raising=False)

    return write


def test_target_features_are_mean_and_deviation_over_the_places(pictures):
    extractor = load_extractor("target_encoder", ENCODER)
    encoder = TargetEncoder.load(ENCODER)
    places = encoder.features(encoder.pixel_values(pictures)).flatten(2)
    expected = torch.cat([places.mean(dim=2), places.std(dim=2)], dim=1)
    np.testing.assert_allclose(extractor(pictures), expected.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["target_encoder", "clip", "dinov2"])
def test_features_of_a_picture_do_not_depend_on_its_batch(name, pictures, request):
    folder = ENCODER if name == "target_encoder" else request.getfixturevalue(f"{name}_folder")
    extractor = load_extractor(name, folder)
    together = extractor(pictures)
    assert together.dtype == np.float32 and len(together) == 3
    np.testing.assert_allclose(together[1:2], extractor(pictures[1:2]), rtol=1e-4, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3
    assert len(extractor.settings["weights"]) == 64


def test_clip_gives_the_embeddings_of_the_whole_model(clip_folder, pictures):
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPImageProcessorPil.from_pretrained(clip_folder)
    resized = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in pictures]
    with torch.no_grad():
        expected = model.get_image_features(**processor(resized, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(load_extractor("clip", clip_folder)(pictures), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_clip_and_dinov2_see_the_whole_picture(clip_folder, dinov2_folder, make_image):
    wide = Image.new("RGB", (128, 32), "white")
    edge = wide.copy()
    edge.paste(make_image().resize((20, 32)), (0, 0))  # outside of the middle square
    for name, folder in (("clip", clip_folder), ("dinov2", dinov2_folder)):
        first, second = load_extractor(name, folder)([wide, edge])
        assert np.abs(first - second).max() > 1e-3


def test_the_weights_are_in_the_settings(clip_folder, tmp_path):
    model = CLIPModel.from_pretrained(clip_folder)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(tmp_path)
    CLIPImageProcessorPil.from_pretrained(clip_folder).save_pretrained(tmp_path)
    weights = [load_extractor("clip", str(folder)).settings["weights"] for folder in (clip_folder, tmp_path)]
    assert weights[0] != weights[1]


def test_a_function_of_your_own(own_module, pictures):
    own_module(
        "import numpy as np\ndef mean(images):\n    return np.stack([np.asarray(i).mean((0, 1)) for i in images])"
    )
    extractor = load_extractor("mine:mean")
    expected = [np.asarray(image).mean(axis=(0, 1)) for image in pictures]
    np.testing.assert_allclose(extractor(pictures), expected, rtol=1e-6)
    assert len(extractor.settings["file"]) == 64


def test_a_function_that_gives_no_features_is_refused(own_module, pictures):
    own_module("import numpy as np\ndef mean(images):\n    return np.zeros(5)")
    with pytest.raises(ValueError, match=r"shape \[3, dim\] for 3 pictures. mine:mean gave float64 \[5\]"):
        load_extractor("mine:mean")(pictures)


def test_inception_is_that_of_torch_fidelity(monkeypatch, pictures):
    """A stand-in with its interface: the real one downloads weights, and needs torchvision."""

    class Stub(torch.nn.Module):
        def __init__(self, name, features_list):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])

        def forward(self, pixels):
            assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
            return (pixels.float().mean(dim=(2, 3)),)

    stub = types.SimpleNamespace(FeatureExtractorInceptionV3=Stub, __version__="0.4.0")
    monkeypatch.setitem(sys.modules, "torch_fidelity", stub)
    mixed = [*pictures, pictures[0].resize((32, 48))]
    features = load_extractor("inception")(mixed)
    np.testing.assert_allclose(features, [np.asarray(image).mean(axis=(0, 1)) for image in mixed], rtol=1e-5)


def test_an_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"inception needs torch_fidelity.*pip install 'blip3o-hf\[fidelity\]'"):
        load_extractor("inception")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("inceptio",), "Unknown extractor 'inceptio'. Did you mean 'inception'?.* module:function"),
        (("target_encoder",), "target_encoder needs an encoder. Got none"),
        (("inception", "somewhere"), "inception has its own weights. Got the encoder 'somewhere'"),
        (("no_such_module:extract",), "finds no module 'no_such_module'"),
        (("math:no_such",), "math has no function 'no_such'"),
    ],
)
def test_names_that_are_none_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        load_extractor(*arguments)


def test_a_model_of_the_hub_that_is_not_there_is_refused():
    with pytest.raises(OSError, match=r"'openai/clip-vit-large-patch14-336' is no folder here and was never loaded"):
        load_extractor("clip")
