"""Published checkpoints give a processor that words prompts as the reference does."""

import re

import pytest
import torch
from tests.checkpoints.published_doors import load
from tests.published_layout import HIDDEN, NUM_QUERIES, SPECIAL_TOKENS, TOKEN_IDS
from transformers import AutoProcessor, pipeline
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from blip3o_hf import Blip3oProcessor


@pytest.mark.parametrize("image_processor", [True, False])
@pytest.mark.parametrize("tokenizer", ["fast", "slow"])
def test_a_processor_is_built_from_a_published_folder(published, folder, make_image, tokenizer, image_processor):
    published(tokenizer=tokenizer, image_processor=image_processor)
    processor = Blip3oProcessor.from_pretrained(folder)
    assert type(processor.image_processor) is Qwen2VLImageProcessorPil
    longest = 112 * 112 if image_processor else 12845056
    assert processor.image_processor.size["longest_edge"] == longest
    assert processor.image_processor.size["shortest_edge"] == 56 * 56
    for token in SPECIAL_TOKENS:
        assert processor.tokenizer.convert_tokens_to_ids(token) == TOKEN_IDS[token]
    inputs = processor.encode_prompts(["the cat"], images=[make_image()])
    assert inputs["input_ids"][0, -1] == TOKEN_IDS["[IMG]"]
    # 64 pixels become 56 or 84, in cells of 28.
    cells = int(inputs["image_grid_thw"].prod()) // 4
    assert (inputs["input_ids"] == TOKEN_IDS["<|image_pad|>"]).sum() == cells > 0
    assert load(folder).encode_condition(**inputs).shape == (1, NUM_QUERIES, HIDDEN)


PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nPlease generate image based on the following caption: the cat<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def test_prompts_are_those_of_the_reference(published, folder):
    """Training closes the assistant's turn before the image; drawing does not. The tokenizer's own template is not
    the reference's."""
    published()
    processor = Blip3oProcessor.from_pretrained(folder)

    def text(inputs):
        return processor.tokenizer.decode(inputs["input_ids"][0])

    assert text(processor.encode_prompts(["the cat"])) == PROMPT + "[IMG]"
    assert text(processor.encode_prompts(["the cat"], training=True)) == PROMPT + "<|im_end|>\n[IMG]"
    raw = processor.encode_prompts(["the cat"], raw=True, training=True)
    assert text(raw) == "the cat[IMG]"


def test_a_tokenizer_without_its_vocabulary_is_refused(published, folder):
    """The library would read every prompt as empty."""
    published(tokenizer="slow")
    (folder / "merges.txt").unlink()
    message = (
        f"A tokenizer must have its vocabulary: tokenizer.json, or vocab.json and merges.txt. {folder} has neither. "
        f"Download them."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oProcessor.from_pretrained(folder)
    (folder / "vocab.json").unlink()
    with pytest.raises(ValueError, match=re.escape(message)):
        Blip3oProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_a_damaged_file_of_the_processor_is_refused_by_its_place(published, folder, name):
    published()
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(ValueError, match=re.escape(f"{folder}/{name} does not. Save or download it again.")):
        Blip3oProcessor.from_pretrained(folder)


def test_our_own_processors_draw_and_train_on_the_same_prompt(processor):
    drawn, trained = (processor.encode_prompts(["a circle"], training=training) for training in (False, True))
    assert torch.equal(drawn["input_ids"], trained["input_ids"])


def test_settings_of_the_processor_are_taken_and_saved(published, folder, tmp_path):
    published()
    processor = Blip3oProcessor.from_pretrained(folder, instruction="Draw {caption}", max_prompt_length=90)
    processor.save_pretrained(tmp_path / "ours")
    loaded = Blip3oProcessor.from_pretrained(tmp_path / "ours")
    for each in (processor, loaded):
        assert each.instruction == "Draw {caption}"
        assert each.max_prompt_length == 90
        assert each.training_turn_end == "<|im_end|>\n"
    expected, actual = (each.encode_prompts(["the cat"], training=True) for each in (processor, loaded))
    assert torch.equal(actual["input_ids"], expected["input_ids"])


def test_a_processor_saved_beside_published_weights_is_taken_as_it_is(published, folder, make_processor):
    published()
    make_processor(instruction="Draw {caption}").save_pretrained(folder)
    processor = Blip3oProcessor.from_pretrained(folder)
    assert processor.instruction == "Draw {caption}"
    assert processor.training_turn_end == ""


def test_the_pipeline_of_transformers_answers_from_a_published_folder(published, folder, make_image):
    published(image_processor=False)
    assert type(AutoProcessor.from_pretrained(folder)) is Blip3oProcessor
    content = [{"type": "image", "image": make_image()}, {"type": "text", "text": "the cat"}]
    answer = pipeline("image-text-to-text", model=str(folder))(
        text=[{"role": "user", "content": content}], max_new_tokens=2, return_full_text=False
    )
    assert isinstance(answer[0]["generated_text"], str)
