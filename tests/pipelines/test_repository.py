"""A saved pipeline as a repository: variants, shards, and what the library hands on to the parts."""

import inspect
import json

import pytest
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils.hub_utils import PushToHubMixin
from transformers import PreTrainedModel

from blip3o_hf.models.decoder_patch import Blip3oPatchDecoder
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.modeling_eva_clip import EvaClipVisionModel
from blip3o_hf.models.transformer_next_dit import Blip3oTransformer2DModel
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline


@pytest.mark.parametrize("max_shard_size", [None, "20KB"])
def test_variants_stand_beside_each_other(make_pipeline, tmp_path, max_shard_size):
    whole, half = make_pipeline(), make_pipeline().to(torch.bfloat16)
    with torch.no_grad():
        half.model.queries.weight.fill_(0.5)
    whole.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    half.save_pretrained(tmp_path, variant="bf16", max_shard_size=max_shard_size)
    assert {path: path.read_bytes() for path in kept} == kept
    for variant, saved, name in (
        (None, whole, "model.safetensors.index.json"),
        ("bf16", half, "model.safetensors.index.bf16.json"),
    ):
        index = json.loads((tmp_path / name).read_text())
        assert all(
            (tmp_path / file).is_file() and ("bf16" in file) == (variant is not None)
            for file in index["weight_map"].values()
        )
        for loaded in (
            Blip3oPipeline.from_pretrained(tmp_path, variant=variant, dtype=saved.dtype).model,
            Blip3oForConditionalGeneration.from_pretrained(tmp_path, variant=variant, dtype=saved.dtype),
        ):
            expected = saved.model.state_dict()
            assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_large_weights_are_written_in_shards(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1


@pytest.mark.parametrize(
    "cls",
    [
        Blip3oForConditionalGeneration,
        EvaClipVisionModel,
        Blip3oTransformer2DModel,
        Blip3oPatchDecoder,
        Blip3oPipeline,
        Blip3oDecoderPipeline,
    ],
)
@pytest.mark.parametrize("method", ["save_pretrained", "push_to_hub"])
def test_overridden_methods_name_what_the_library_names(cls, method):
    """The libraries look at signatures to know what they may pass on."""
    bases = (PreTrainedModel, ModelMixin, SchedulerMixin, DiffusionPipeline, PushToHubMixin)
    library = next((base for base in cls.__mro__ if base in bases and hasattr(base, method)), None)
    if library is None:
        return
    named = inspect.signature(getattr(cls, method)).parameters
    passed = {"safe_serialization", "variant", "max_shard_size", "save_peft_format", "repo_id", "push_to_hub"}
    for name in inspect.signature(getattr(library, method)).parameters.keys() & passed:
        assert name in named, f"{cls.__name__}.{method} hides {name}"
