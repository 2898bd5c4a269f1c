"""A pipeline that version 0.1.0 saved opens at every door and draws what it drew then."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from blip3o_hf import Blip3oForConditionalGeneration, Blip3oPipeline, Blip3oProcessor

SAVED = str(Path(__file__).parent / "fixtures" / "pipeline-0.1.0")
PROMPT = "two red circles"


@pytest.fixture(scope="module")
def expected():
    """What 0.1.0 drew: features and images of a prompt with seed 0, and features of an edit with seed 1."""
    return load_file(Path(SAVED, "expected.safetensors"))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("door", [Blip3oPipeline, DiffusionPipeline, AutoPipelineForText2Image])
def test_pipelines_draw_what_they_drew(door, expected, assert_close):
    pipe = door.from_pretrained(SAVED)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(PROMPT, generator=seeded(0), output_type="pt")
    assert_close(output.image_features, expected["features"])
    assert_close(output.images, expected["images"])
    assert output.plans is None and output.attempts is None
    pixels = np.arange(32 * 32 * 3, dtype=np.uint32).reshape(32, 32, 3).astype(np.uint8)
    edited = pipe("make it red", image=Image.fromarray(pixels), generator=seeded(1), output_type="features")
    assert_close(edited.image_features, expected["edited"])


def test_the_task_of_transformers_draws_what_it_drew(expected, assert_close):
    made = pipeline("text-to-image", model=SAVED)(PROMPT, seed=0)
    assert_close(made["image_features"], expected["features"][0])


@pytest.mark.parametrize(
    ("model", "processor"),
    [(Blip3oForConditionalGeneration, Blip3oProcessor), (AutoModelForImageTextToText, AutoProcessor)],
)
def test_model_and_processor_give_the_condition_that_was_drawn_from(model, processor, expected, assert_close):
    model, processor = model.from_pretrained(SAVED), processor.from_pretrained(SAVED)
    with torch.no_grad():
        condition = model.encode_condition(**processor.encode_prompts([PROMPT]))
    pipe = Blip3oPipeline.from_pretrained(SAVED)
    output = pipe(condition=condition, generator=seeded(0), output_type="features")
    assert_close(output.image_features, expected["features"])
