"""Prompts carry the paper's instruction, end with the token that starts an image, and are padded on the left."""

import re

import pytest
import torch
from PIL import Image

from blip3o_hf.models.processing_blip3o import (
    GENERATION_INSTRUCTION,
    PLAN_INSTRUCTION,
    Blip3oProcessor,
    message_images,
)

CAPTIONS = ["two red circles", "one small blue square above three green triangles"]


def real_ids(inputs, index):
    return inputs["input_ids"][index][inputs["attention_mask"][index].bool()].tolist()


def test_a_prompt_is_the_instruction_in_chat_form_and_ends_with_the_image_token(processor):
    inputs = processor.encode_prompts(CAPTIONS[:1])
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == (  # in the small letters that this tokenizer reads
        "<|im_start|>system\nyou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nplease generate image based on the following caption: two red circles<|im_end|>\n"
        "<|im_start|>assistant\n[IMG]"
    )
    assert inputs["input_ids"][0, -1] == processor.tokenizer.convert_tokens_to_ids("[IMG]")
    assert set(inputs) == {"input_ids", "attention_mask"}


def test_one_string_is_one_prompt(processor):
    alone, listed = processor.encode_prompts(CAPTIONS[0]), processor.encode_prompts(CAPTIONS[:1])
    assert torch.equal(alone["input_ids"], listed["input_ids"])


def test_a_batch_is_its_prompts_padded_on_the_left(processor):
    inputs = processor.encode_prompts(CAPTIONS)
    assert inputs["attention_mask"][0, 0] == 0
    assert (inputs["attention_mask"][:, -1] == 1).all()
    for index, caption in enumerate(CAPTIONS):
        assert real_ids(inputs, index) == processor.encode_prompts(caption)["input_ids"][0].tolist()
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == processor.tokenizer.pad_token_id).all()


def test_raw_prompts_are_taken_as_they_are(processor):
    inputs = processor.encode_prompts([" ", CAPTIONS[0]], raw=True)
    tokenizer = processor.tokenizer
    assert tokenizer.decode(real_ids(inputs, 0)) == " [IMG]"
    assert tokenizer.decode(real_ids(inputs, 1)) == f"{CAPTIONS[0]}[IMG]"


def test_a_caption_may_hold_braces(processor):
    assert "the {caption} of {0}" in processor.render_prompt("the {caption} of {0}")


def test_input_images_take_one_placeholder_per_patch(processor, make_image):
    inputs = processor.encode_prompts(CAPTIONS, images=[[make_image(0), make_image(1)], []])
    placeholders = (inputs["input_ids"] == processor.image_token_id).sum(-1)
    assert placeholders.tolist() == [128, 0]
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8], [1, 8, 8]]
    assert len(inputs["pixel_values"]) == 128
    single = processor.encode_prompts(CAPTIONS[:1], images=[make_image(0)])
    assert torch.equal(single["pixel_values"], inputs["pixel_values"][:64])


def told(image):
    """What was said and shown before."""
    shown = [{"type": "image", "image": image}, {"type": "text", "text": "How many circles are there?"}]
    return [{"role": "user", "content": shown}, {"role": "assistant", "content": "There are three."}]


def test_a_history_comes_before_its_prompt_and_its_images_before_the_prompt_s(processor, make_image):
    inputs = processor.encode_prompts(
        CAPTIONS, images=[[make_image(1)], []], histories=[told(make_image(0)), told(make_image(2))[1:]]
    )
    texts = [processor.tokenizer.decode(real_ids(inputs, index)) for index in (0, 1)]
    patches = "<|vision_start|>" + "<|image_pad|>" * 64 + "<|vision_end|>"
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    request = (
        processor.render_prompt(CAPTIONS[0], 1).removeprefix(system).replace("<|image_pad|>", "<|image_pad|>" * 64)
    )
    expected = (
        f"{system}<|im_start|>user\n{patches}How many circles are there?<|im_end|>\n"
        f"<|im_start|>assistant\nThere are three.<|im_end|>\n{request}"
    )
    assert texts[0] == f"{expected.lower()}[IMG]"
    assert texts[1].count("there are three.") == 1 and "<|image_pad|>" not in texts[1]
    alone = processor.image_processor([make_image(0), make_image(1)], return_tensors="pt")
    assert torch.equal(inputs["pixel_values"], alone["pixel_values"])


def test_empty_histories_are_none(processor):
    plain = processor.encode_prompts(CAPTIONS)
    assert torch.equal(processor.encode_prompts(CAPTIONS, histories=[[], ()])["input_ids"], plain["input_ids"])


def test_truncation_cuts_the_caption_and_not_what_was_said_before(make_processor, make_image):
    history = told(make_image())[1:] * 2
    whole = make_processor().encode_prompts(CAPTIONS[1:], histories=[history])
    processor = make_processor(max_prompt_length=whole["input_ids"].shape[1] - 2)
    inputs = processor.encode_prompts(CAPTIONS[1:], histories=[history], truncation=True)
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    assert text.count("there are three.") == 2 and CAPTIONS[1] not in text
    with pytest.raises(ValueError, match="A prompt must fit the context"):
        processor.encode_prompts(CAPTIONS[1:], histories=[history])


def test_histories_must_be_one_for_each_prompt(processor):
    message = (
        "`histories` must hold one entry per prompt. Got 1 for 2 prompts. Use an empty list for a prompt with nothing "
        "before it."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        processor.encode_prompts(CAPTIONS, histories=[[]])


def test_images_of_messages_come_in_their_order(make_image):
    first, second, third = (make_image(seed) for seed in range(3))
    drawn = {"role": "assistant", "content": [{"type": "image", "image": third}]}
    shown = [{"type": "image", "image": second}, *told(first)[0]["content"]]
    messages = [*told(first), {"role": "user", "content": shown}, drawn]
    found = message_images(messages)
    assert len(found) == 4
    assert all(ours is theirs for ours, theirs in zip(found, (first, second, first, third), strict=True))


def test_the_chat_template_keeps_a_system_turn_and_places_images(processor):
    text = processor.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
            {"role": "assistant", "content": "A circle."},
        ]
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA circle.<|im_end|>\n"
    )


def test_understanding_inputs_mark_image_tokens(processor, make_image):
    inputs = processor(text=["<|image_pad|>How many?"], images=[make_image()], return_tensors="pt")
    assert inputs["mm_token_type_ids"].sum() == 64
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == processor.image_token_id)
    assert set(inputs) <= set(processor.model_input_names)


def test_answers_are_decoded_without_special_tokens(processor):
    ids = processor.tokenizer(["two red circles<|im_end|>"])["input_ids"]
    assert processor.post_process_image_text_to_text(ids) == ["two red circles"]
    assert processor.post_process_image_text_to_text(ids, skip_special_tokens=False) == ["two red circles<|im_end|>"]


def test_a_saved_processor_is_the_same_again(make_processor, make_image, tmp_path):
    processor = make_processor(
        instruction="Draw this: {caption}", plan_instruction="Plan this: {caption}", max_prompt_length=333
    )
    processor.save_pretrained(tmp_path)
    loaded = Blip3oProcessor.from_pretrained(tmp_path)
    assert loaded.instruction == "Draw this: {caption}"
    assert loaded.plan_instruction == "Plan this: {caption}"
    assert loaded.max_prompt_length == 333
    assert loaded.image_start_token == "[IMG]"
    images = [make_image(), make_image(1)]
    before, after = processor.encode_prompts(CAPTIONS, images), loaded.encode_prompts(CAPTIONS, images)
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_the_longest_prompt_that_fits_is_taken(make_processor):
    length = make_processor().encode_prompts(CAPTIONS[1])["input_ids"].shape[1]
    assert make_processor(max_prompt_length=length).encode_prompts(CAPTIONS)["input_ids"].shape == (2, length)
    message = (
        f"A prompt must fit the context: at most {length - 1} tokens with its template. Prompt 1 has {length}. "
        "Shorten it: 'one small blue square above three green triangles'..."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_processor(max_prompt_length=length - 1).encode_prompts(CAPTIONS)


def test_truncation_cuts_the_end_of_captions_and_never_the_template(make_processor):
    length = make_processor().encode_prompts(CAPTIONS[1])["input_ids"].shape[1]
    processor = make_processor(max_prompt_length=length - 2)
    inputs = processor.encode_prompts(CAPTIONS, truncation=True)
    assert inputs["input_ids"].shape == (2, length - 2)
    assert real_ids(inputs, 0) == real_ids(processor.encode_prompts(CAPTIONS[:1]), 0)
    text = processor.tokenizer.decode(inputs["input_ids"][1])
    kept = text.removesuffix("<|im_end|>\n<|im_start|>assistant\n[IMG]").partition("caption: ")[2]
    assert kept and CAPTIONS[1].startswith(kept) and kept != CAPTIONS[1]
    with pytest.raises(ValueError, match="A prompt must fit the context: at most 5 tokens with its template"):
        make_processor(max_prompt_length=5).encode_prompts(CAPTIONS, truncation=True)


@pytest.mark.parametrize(
    ("prompts", "images", "error", "message"),
    [
        (
            ["a circle", 3],
            None,
            TypeError,
            "A prompt must be a string. Got int. Pass one string, or a list of strings.",
        ),
        ([" \n"], None, ValueError, "A prompt must say something. Got ' \\n'. Describe the image to draw."),
        ("", None, ValueError, "A prompt must say something. Got ''. Describe the image to draw."),
        (
            ["a circle", "a square"],
            [[]],
            ValueError,
            "`images` must hold one entry per prompt. Got 1 for 2 prompts. Use an empty list for a prompt "
            "without images.",
        ),
    ],
)
def test_bad_prompts_are_refused(processor, prompts, images, error, message):
    with pytest.raises(error, match=re.escape(message)):
        processor.encode_prompts(prompts, images)


@pytest.mark.parametrize(
    ("name", "usual"),
    [
        ("instruction", f"The paper's is {GENERATION_INSTRUCTION!r}."),
        ("plan_instruction", f"By default it is {PLAN_INSTRUCTION!r}."),
    ],
)
def test_an_instruction_without_a_place_for_the_caption_is_refused(make_processor, name, usual):
    message = f"`{name}` must contain '{{caption}}', the place of the prompt. Got 'Draw it'. {usual}"
    with pytest.raises(ValueError, match=re.escape(message)):
        make_processor(**{name: "Draw it"})


def test_a_tokenizer_without_the_image_token_is_refused(make_processor):
    message = (
        "The tokenizer must know the token that starts an image. It has no '<draw>'. Add it with "
        "`tokenizer.add_special_tokens` and resize the backbone's embeddings."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make_processor(image_start_token="<draw>")


# Words, and images of one size


def test_words_that_were_never_read_are_named_in_their_order(make_processor):
    processor = make_processor(has_whole_words=True)
    assert processor.unknown_words("Two RED circles, above a small Blue square!") == []
    text = "a Fluffy red circle, fluffy and magnificent; 12 circles"
    assert processor.unknown_words(text) == ["fluffy", "and", "magnificent", "12"]
    assert make_processor().unknown_words(text) == []


def test_whole_words_instructions_and_sizes_of_images_are_saved(make_processor, tmp_path):
    check = "Is this {caption}?"
    make_processor("llava", has_whole_words=True, check_instruction=check).save_pretrained(tmp_path)
    loaded = Blip3oProcessor.from_pretrained(tmp_path)
    assert (loaded.has_whole_words, loaded.num_image_tokens, loaded.check_instruction) == (True, 16, check)
    with pytest.raises(ValueError, match=r"`check_instruction` must contain '\{caption\}'"):
        make_processor(check_instruction="Is this it?")


def test_every_image_has_as_many_tokens_where_the_backbone_says_so(make_processor, make_image):
    processor = make_processor("llava")
    large = Image.new("RGB", (100, 60))
    inputs = processor.encode_prompts(CAPTIONS, images=[[make_image()], [make_image(), large]])
    shown = (inputs["input_ids"] == processor.image_token_id).sum(-1)
    assert shown.tolist() == [16, 32] and inputs["pixel_values"].shape == (3, 3, 32, 32)
    assert "mm_token_type_ids" not in processor(text=["a"], images=None, return_tensors="pt")


def test_a_fitted_prompt_is_what_training_reads_of_a_longer_one(make_processor):
    processor = make_processor(max_prompt_length=60)
    long = "two red circles above a small blue square " * 8
    fitted = processor.fitted_prompt(long)
    assert 0 < len(fitted) < len(long) and long.startswith(fitted)
    cut = processor.encode_prompts([long], truncation=True)["input_ids"]
    assert torch.equal(processor.encode_prompts([fitted])["input_ids"], cut)
    assert processor.fitted_prompt("two red circles") == "two red circles"
    assert make_processor().fitted_prompt(long) == long
