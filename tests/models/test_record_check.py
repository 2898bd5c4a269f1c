"""What the check lets pass, the processor and collation take; what they refuse, it refuses first, by address."""

import pytest
from PIL import Image

from blip3o_hf.data.records import BadItem, Record
from blip3o_hf.models.record_check import RecordCheck
from blip3o_hf.training.conversations import IGNORED, Conversations


def image(width=24, height=16):
    return Image.new("RGB", (width, height), "red")


EARLIER = [{"type": "image", "image": image(40, 40)}, {"type": "text", "text": "a"}]
TALKS = [
    Record("k", turns=(("How many circles are there?", "There are three."),)),
    Record("k", turns=(("How many circles are there?", "There are three."), ("Sure?", "There are."))),
    Record("k", turns=(("How many?", "There are three."),), images=(image(), image(64, 24))),
    Record(
        "k",
        turns=(("How many?", "three"),),
        history=({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    ),
    Record(
        "k",
        turns=(("How many?", "three"), ("circles?", "yes")),
        images=(image(),),
        history=(
            {"role": "user", "content": [{"type": "image", "image": image(40, 40)}, {"type": "text", "text": "a"}]},
        ),
    ),
]


@pytest.mark.parametrize("backbone", ["qwen", "llava"])
@pytest.mark.parametrize("number", range(len(TALKS)))
def test_a_talk_passes_where_an_answer_is_left(make_processor, backbone, number):
    processor, talk = make_processor(backbone), TALKS[number]
    whole = Conversations(processor, 1000).collate([talk])["labels"][0].tolist()
    start = next(place for place, label in enumerate(whole) if label != IGNORED)
    assert RecordCheck(processor).answer_start(talk) == start
    with pytest.raises(
        BadItem, match=f"no room for the first answer: .* at least {start + 1} tokens are needed, and .* {start};"
    ):
        RecordCheck(processor, max_length=start)(talk)
    for length, is_cut in ((start + 1, True), (len(whole) - 1, True), (len(whole), False)):
        check = RecordCheck(processor, max_length=length)
        assert check(talk) is talk and check.is_cut(talk) is is_cut
        labels = Conversations(processor, length).collate([talk])["labels"]
        assert (labels != IGNORED).any()


@pytest.mark.parametrize("backbone", ["qwen", "llava"])
@pytest.mark.parametrize("images", [(), (image(),), (image(), image(80, 16))])
def test_a_prompt_passes_where_its_caption_can_be_cut_to_fit(make_processor, backbone, images):
    processor = make_processor(backbone)
    record = Record("k", target=image(), prompt="two red circles above a small blue square " * 3, images=images)
    arguments = {"images": [list(images)] if images else None, "training": True, "truncation": True}
    lengths = range(1, processor.encode_prompts([record.prompt], **arguments)["input_ids"].shape[1] + 1)

    def is_taken(length):
        processor.max_prompt_length = length
        try:
            processor.encode_prompts([record.prompt], **arguments)
        except ValueError:
            return False
        return True

    shortest = next(length for length in lengths if is_taken(length))
    processor.max_prompt_length = shortest
    assert RecordCheck(processor)(record) is record
    processor.max_prompt_length = shortest - 1
    with pytest.raises(BadItem, match="k: no room for the prompt: with everything before it, "):
        RecordCheck(processor)(record)


def test_special_tokens_of_the_tokenizer_and_impossible_images_are_refused(make_processor):
    processor = make_processor()
    check = RecordCheck(processor)
    tokens = {str(token) for token in processor.tokenizer.added_tokens_decoder.values() if token.special}
    assert tokens <= set(check.special_tokens) and {"[IMG]", "<|image_pad|>"} <= set(check.special_tokens)
    for token in check.special_tokens:
        for record in (Record("k", target=image(), prompt=f"a {token}"), Record("k", turns=(("a", f"b{token}"),))):
            with pytest.raises(BadItem) as caught:
                check(record)
            assert str(caught.value) == f"k: the text holds the special token {token}; take it out"
    for record in (
        Record("k", target=image(), prompt="a", images=(image(3000, 10),)),
        Record("k", turns=(("a", "b"),), images=(image(10, 3000),)),
    ):
        with pytest.raises(BadItem, match="k: an input image cannot be read: absolute aspect ratio must be smaller"):
            check(record)


def test_input_images_are_refused_for_a_backbone_of_text(make_processor):
    check = RecordCheck(make_processor(), reads_images=False)
    assert check(Record("k", target=image(), prompt="a")).key == "k"
    for record in (
        Record("k", target=image(), prompt="a", images=(image(),)),
        Record("k", turns=(("a", "b"),), images=(image(),)),
    ):
        with pytest.raises(BadItem, match="k: it has input images, and the model's backbone reads text only"):
            check(record)
