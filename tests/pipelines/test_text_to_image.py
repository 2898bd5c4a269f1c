"""`pipeline("text-to-image")`: the images of `Blip3oPipeline`, through the interface of transformers."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.pipelines import any_to_any
from transformers.pipelines.pt_utils import KeyDataset
from transformers.utils import is_torchvision_available

from blip3o_hf import Blip3oPipeline, Blip3oTextToImagePipeline, packaged_model_path

TINY = packaged_model_path()
PROMPTS = ["two red circles", "a blue square above a green triangle"]
FEW = {"num_inference_steps": 4}


@pytest.fixture(scope="module")
def draw():
    return pipeline("text-to-image", model=TINY, **FEW)


@pytest.fixture(scope="module")
def reference():
    pipe = Blip3oPipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(image):
    return np.asarray(image).astype(int)


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_draws_what_the_diffusers_pipeline_draws(draw, reference):
    result = draw(PROMPTS[0], seed=3)
    expected = reference(PROMPTS[0], generator=seeded(3), **FEW)
    assert isinstance(result["image"], Image.Image)
    assert (pixels(result["image"]) == pixels(expected.images[0])).all()
    assert torch.equal(result["image_features"], expected.image_features[0])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists_generators_and_datasets(draw, batch_size, assert_close):
    alone = [draw(prompt, seed=5)["image_features"] for prompt in PROMPTS]
    dataset = Dataset.from_dict({"caption": PROMPTS})
    for prompts in (PROMPTS, (prompt for prompt in PROMPTS), KeyDataset(dataset, "caption")):
        results = list(draw(prompts, seed=5, batch_size=batch_size))
        for result, features in zip(results, alone, strict=True):
            assert result["image"].size == (64, 64)
            assert_close(result["image_features"], features, 1e-3)


def test_images_of_one_prompt_have_seeds_of_their_own(draw, assert_close):
    several = draw(PROMPTS, seed=5, num_images_per_prompt=3, batch_size=2)
    assert [len(results) for results in several] == [3, 3]
    for number in range(3):
        alone = draw(PROMPTS[1], seed=5 + number)["image_features"]
        assert_close(several[1][number]["image_features"], alone, 1e-3)


def test_a_generator_goes_on(draw):
    generator = torch.Generator().manual_seed(0)
    first, second = (draw(PROMPTS[0], generator=generator)["image_features"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(draw(PROMPTS[0], generator=torch.Generator().manual_seed(0))["image_features"], first)


@pytest.mark.parametrize(("output_type", "kind"), [("pil", Image.Image), ("np", np.ndarray), ("pt", torch.Tensor)])
def test_output_types(draw, output_type, kind):
    image = draw(PROMPTS[0], seed=0, output_type=output_type)["image"]
    assert isinstance(image, kind)
    size = {"pil": (64, 64), "np": (64, 64, 3), "pt": (3, 64, 64)}[output_type]
    assert (image.size if output_type == "pil" else tuple(image.shape)) == size


def test_a_model_and_its_processor_may_be_passed(reference):
    model = AutoModelForImageTextToText.from_pretrained(TINY)
    draw = pipeline("text-to-image", model=model, processor=AutoProcessor.from_pretrained(TINY))
    image = draw(PROMPTS[0], seed=1, **FEW)["image"]
    assert (pixels(image) == pixels(reference(PROMPTS[0], generator=seeded(1), **FEW).images[0])).all()


def test_bfloat16_and_a_device(reference):
    draw = pipeline("text-to-image", model=TINY, dtype=torch.bfloat16, device="cpu", **FEW)
    assert draw.drawing.decoder.dtype is draw.model.dtype is torch.bfloat16
    image = draw(PROMPTS[0], seed=1)["image"]
    expected = reference(PROMPTS[0], generator=seeded(1), **FEW).images[0]
    assert abs(pixels(image) - pixels(expected)).mean() < 10


def test_a_repository_without_a_decoder_makes_features(tmp_path, reference, caplog):
    reference.model.save_pretrained(tmp_path)
    reference.processor.save_pretrained(tmp_path)
    draw = pipeline("text-to-image", model=str(tmp_path), **FEW)
    features = draw(PROMPTS[0], seed=1, output_type="features")
    assert features.keys() == {"image_features"}
    size = reference.model.config.feature_size
    assert features["image_features"].shape == (reference.model.config.feature_dim, size, size)
    with pytest.raises(ValueError, match="This pipeline has no decoder, so it makes image features and no pixels"):
        draw(PROMPTS[0])


def conversation(reference, caption):
    return [{"role": "user", "content": reference.processor.instruction.replace("{caption}", caption)}]


def test_generate_draws_what_a_conversation_asks_for(reference):
    model, processor = AutoModelForImageTextToText.from_pretrained(TINY), AutoProcessor.from_pretrained(TINY)
    chats = [conversation(reference, prompt) for prompt in PROMPTS]
    inputs = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )
    pixels = model.generate(**inputs, generation_mode="image", generator=seeded(1, 2), **FEW)
    expected = reference(PROMPTS, generator=seeded(1, 2), output_type="pt", **FEW).images
    assert torch.allclose(pixels, expected, atol=1e-4)
    images = processor.post_process_multimodal_output(pixels, generation_mode="image")
    assert [image.size for image in images] == [(64, 64), (64, 64)]
    with pytest.raises(ValueError, match=r"Unknown generation mode 'picture'\. Available: text, image\."):
        model.generate(**inputs, generation_mode="picture")


def test_generate_without_a_decoder_says_so(tmp_path, reference):
    reference.model.save_pretrained(tmp_path)
    reference.processor.save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Drawing needs the processor and the decoder of the model's repository"):
        model.generate(**reference.processor.encode_prompts(PROMPTS), generation_mode="image")


def test_any_to_any_goes_both_ways(reference, monkeypatch):
    if not is_torchvision_available():
        # The task asks for torchvision, and the rest of it runs without.
        monkeypatch.setattr(any_to_any, "requires_backends", lambda *args: None)
    unified = pipeline("any-to-any", model=TINY)
    drawn = unified(
        text=conversation(reference, PROMPTS[0]),
        generation_mode="image",
        generate_kwargs={"generator": torch.Generator().manual_seed(3), **FEW},
    )
    expected = reference(PROMPTS[0], generator=seeded(3), **FEW).images[0]
    assert abs(pixels(drawn[0]["generated_image"]) - pixels(expected)).max() <= 1
    question = [{"type": "image", "image": expected}, {"type": "text", "text": "how many circles are there?"}]
    answered = unified(text=[{"role": "user", "content": question}], max_new_tokens=8, return_full_text=False)
    chat = pipeline("image-text-to-text", model=TINY)
    again = chat(text=[{"role": "user", "content": question}], max_new_tokens=8, return_full_text=False)
    assert answered[0]["generated_text"] == again[0]["generated_text"] != ""


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sed": 1}, ValueError, "Unknown key 'sed' in a call for an image. Did you mean 'seed'?"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "Noise comes from a `seed` or from a `generator`."),
        ({"generator": [torch.Generator()]}, TypeError, "`generator` must be one torch.Generator. Got list."),
        ({"output_type": "jpg"}, ValueError, "`output_type` must be one of pil, np, pt, features, latent. Got 'jpg'."),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be"),
    ],
)
def test_bad_arguments_are_named(draw, arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        draw(PROMPTS[0], **arguments)


@pytest.mark.parametrize("prompt", [3, {"text": "a"}, None])
def test_a_prompt_is_a_string(draw, prompt):
    with pytest.raises(TypeError, match=r"A prompt must be a string\. Got"):
        draw(prompt)


def test_another_model_is_refused():
    with pytest.raises(TypeError, match=r"This pipeline draws with a BLIP3-o\. Got Linear\."):
        Blip3oTextToImagePipeline(torch.nn.Linear(1, 1))
