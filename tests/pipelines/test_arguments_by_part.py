"""Arguments of `from_pretrained` for one part are refused for a part that there is not."""

import re

import pytest
import torch
from diffusers import PipelineQuantizationConfig
from tests.pipelines.test_pipeline_blip3o_decoder import make_decoder_pipeline
from tests.published_layout import write_published_checkpoint
from transformers import BitsAndBytesConfig

from blip3o_hf.pipelines.pipeline_blip3o import PARTS, Blip3oPipeline
from blip3o_hf.pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline
from blip3o_hf.pipelines.reconstruction import Blip3oReconstructionPipeline

OURS = "Available: model, processor, scheduler, decoder, unet, vae, decoder_scheduler, default (argument `{}`)."


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    return tmp_path


def test_the_parts_are_those_of_the_pipeline(pipeline):
    assert set(PARTS) == pipeline.components.keys()


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("cls", [Blip3oPipeline, Blip3oReconstructionPipeline])
def test_a_dtype_for_an_unknown_part_is_refused(folder, cls, name):
    message = f"Unknown part 'modl'. Did you mean 'model'? {OURS.format(name)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        cls.from_pretrained(folder, **{name: {"modl": torch.float16}})


def test_default_and_parts_that_are_not_there_are_known(folder):
    dtypes = {"default": torch.bfloat16, "unet": torch.float16, "scheduler": torch.float16}
    pipeline = Blip3oPipeline.from_pretrained(folder, dtype=dtypes)
    assert (pipeline.model.dtype, pipeline.decoder.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_for_an_unknown_part_of_a_decoder_is_refused(tmp_path, name):
    make_decoder_pipeline().save_pretrained(tmp_path)
    message = f"Unknown part 'unt'. Did you mean 'unet'? Available: unet, vae, scheduler, default (argument `{name}`)."
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(tmp_path, **{name: {"unt": torch.float16}})
    message = "Unknown part 'unt'. Did you mean 'unet'? Available: unet, vae (argument `part_arguments`)."
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oDecoderPipeline.from_pretrained(tmp_path, part_arguments={"unt": {"dtype": torch.float16}})


def test_parts_of_a_published_checkpoint(tmp_path):
    write_published_checkpoint(tmp_path, diffusion_decoder=True)
    with pytest.raises(ValueError, match=re.escape(OURS.format("dtype"))):
        Blip3oPipeline.from_pretrained(tmp_path, dtype={"modl": torch.float16})
    dtypes = {"model": "bfloat16", "unet": torch.float16, "default": torch.float32}
    pipeline = Blip3oPipeline.from_pretrained(tmp_path, dtype=dtypes)
    assert (pipeline.model.dtype, pipeline.unet.dtype) == (torch.bfloat16, torch.float16)
    assert pipeline.vae.dtype == torch.float32


@pytest.mark.parametrize("attribute", ["quant_mapping", "components_to_quantize"])
def test_a_quantisation_of_an_unknown_part_is_refused(folder, attribute):
    config = PipelineQuantizationConfig(quant_mapping={"model": BitsAndBytesConfig()})
    config.quant_mapping = None
    setattr(config, attribute, ["transformer"])
    with pytest.raises(ValueError, match=rf"Unknown part 'transformer'. .*\(`{attribute}` of `quantization_config`\)"):
        Blip3oPipeline.from_pretrained(folder, quantization_config=config)
