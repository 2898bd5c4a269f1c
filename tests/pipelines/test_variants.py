"""A save replaces the files of its own variant and no others, in one file or in shards; each keeps its dtype."""

import itertools
import json

import pytest
import torch
from diffusers import ModelMixin
from tests.pipelines.test_pipeline_blip3o_decoder import make_decoder_pipeline
from torch import nn

from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.modeling_eva_clip import EvaClipVisionConfig, EvaClipVisionModel
from blip3o_hf.models.target_encoder import TargetEncoder
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline

SAVES = list(itertools.product((None, "bf16"), (None, "20KB")))  # variant and max_shard_size
FEW = [
    [(None, "20KB"), (None, None)],
    [(None, None), (None, "20KB")],
    [("bf16", "20KB"), (None, None)],
    [("bf16", "20KB"), (None, "20KB"), ("bf16", None), (None, None)],
]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def make_encoder():
    torch.manual_seed(0)
    return EvaClipVisionModel(EvaClipVisionConfig(**TOWER, image_size=16, patch_size=4)).eval()


def parts_of(whole):
    parts = whole.components.items() if hasattr(whole, "components") else [("", whole)]
    return {name: part for name, part in parts if isinstance(part, nn.Module)}


def assert_loads(folder, cls, expected, variant):
    """What was saved is what is loaded; those of transformers in its own dtype, those of diffusers in float32."""
    loaded = parts_of(cls.from_pretrained(folder, variant=variant))
    for name, part in parts_of(expected).items():
        dtype = torch.float32 if isinstance(part, ModelMixin) else part.dtype
        assert loaded[name].dtype == dtype
        tensors = part.state_dict()
        assert all(torch.equal(value, tensors[key].to(dtype)) for key, value in loaded[name].state_dict().items())


def check(make, saves, folder):
    whole, half = make(), make().to(torch.bfloat16)
    for variant, max_shard_size in saves:
        saved = half if variant else whole
        with torch.no_grad():  # every save has other weights than the one before
            for parameter in itertools.chain.from_iterable(part.parameters() for part in parts_of(saved).values()):
                parameter.add_(1)
        shards = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        saved.save_pretrained(folder, variant=variant, **shards)
    for variant in {variant for variant, _ in saves}:
        assert_loads(folder, type(whole), half if variant else whole, variant)
        if isinstance(whole, Blip3oPipeline):  # transformers opens the root and the part
            model = Blip3oForConditionalGeneration
            assert_loads(folder, model, half.model if variant else whole.model, variant)
            assert_loads(folder / "model", model, half.model if variant else whole.model, variant)
    assert not list(folder.rglob(".*"))


@pytest.mark.parametrize("saves", FEW)
@pytest.mark.parametrize("kind", ["model", "transformer", "patch", "encoder", "decoder"])
def test_every_variant_stays_loadable(make_model, make_decoder, kind, saves, tmp_path):
    make = {
        "model": make_model,
        "transformer": lambda: make_model().transformer,
        "patch": make_decoder,
        "encoder": make_encoder,
        "decoder": make_decoder_pipeline,
    }[kind]
    check(make, saves, tmp_path)


@pytest.mark.parametrize("saves", FEW)
def test_every_variant_of_a_pipeline_stays_loadable(make_pipeline, saves, tmp_path):
    check(make_pipeline, saves, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("saves", itertools.product(SAVES, repeat=3))
def test_every_variant_of_a_pipeline_stays_loadable_after_any_saves(make_pipeline, saves, tmp_path):
    check(make_pipeline, saves, tmp_path)


def test_a_variant_whose_name_begins_like_another_stays(make_decoder, tmp_path):
    decoder = make_decoder()
    decoder.save_pretrained(tmp_path, variant="fp16", max_shard_size="10KB")
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors*")}
    decoder.save_pretrained(tmp_path, variant="fp")
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_files_of_other_variants_come_back_after_a_save_that_failed(make_decoder, tmp_path, monkeypatch):
    decoder = make_decoder()
    decoder.save_pretrained(tmp_path, variant="bf16", max_shard_size="10KB")
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors*")}
    monkeypatch.setattr(ModelMixin, "state_dict", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.save_pretrained(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.safetensors*")} == kept


def test_a_target_encoder_replaces_what_was_there(tmp_path):
    encoder = make_encoder()
    encoder.save_pretrained(tmp_path, max_shard_size="5KB")

    class Settings:
        def save_pretrained(self, folder):
            pass

    TargetEncoder(encoder, Settings()).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("model*")] == ["model.safetensors"]


# Precision


def test_a_variant_does_not_change_the_dtype_of_the_default(make_pipeline, tmp_path):
    whole, half = make_pipeline(), make_pipeline().to(torch.bfloat16)
    whole.save_pretrained(tmp_path)
    half.save_pretrained(tmp_path, variant="bf16")
    for file in ("config.json", "model/config.json"):
        assert json.loads((tmp_path / file).read_text())["dtype"] == "float32"
    assert Blip3oPipeline.from_pretrained(tmp_path).model.dtype == torch.float32
    for name in ("dtype", "torch_dtype"):
        for asked, expected in ((None, torch.bfloat16), ("auto", torch.bfloat16), (torch.float32, torch.float32)):
            arguments = {"variant": "bf16", name: asked}
            assert Blip3oForConditionalGeneration.from_pretrained(tmp_path, **arguments).dtype == expected
    half.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_settings_of_a_variant_other_than_its_dtype_are_written(make_model, tmp_path):
    """At any depth, where the backbone's own config names a dtype, too."""
    make_model().save_pretrained(tmp_path / "first")
    model = Blip3oForConditionalGeneration.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    assert before["backbone_config"]["dtype"] == "float32"
    half = Blip3oForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.config.noise_shift = 3.0
    half.save_pretrained(tmp_path, variant="bf16")
    assert json.loads((tmp_path / "config.json").read_text()) == {**before, "noise_shift": 3.0}


def test_a_default_of_rounded_weights_is_loaded_in_the_dtype_of_its_config(make_model, tmp_path):
    """As `blip3o-hf export` writes it: rounded, and computed with in full precision."""
    make_model().to(torch.bfloat16).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    assert Blip3oForConditionalGeneration.from_pretrained(tmp_path).dtype == torch.float32


def test_an_index_of_earlier_shards_is_gone(tmp_path):
    """It would be found first."""
    pipeline = make_decoder_pipeline()
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    pipeline.save_pretrained(tmp_path)
    files = sorted(path.name for path in (tmp_path / "unet").glob("*.safetensors*"))
    assert files == ["diffusion_pytorch_model.safetensors"]
    Blip3oDecoderPipeline.from_pretrained(tmp_path)
