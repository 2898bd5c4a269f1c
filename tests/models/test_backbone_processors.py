"""A processor made from a backbone gives its model what the backbone's own processor would."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from blip3o_hf.models.backbone_processors import BEGIN, fitted_template
from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor

sys.path.insert(0, str(Path(__file__).parents[1]))
from backbone_folders import FAMILIES, make_folder, make_image_processor

OWN = {"llava": LlavaProcessor, "idefics3": Idefics3Processor, "gemma3": Gemma3Processor}
TEXT = "How many circles are there?"


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = make_folder(family, tmp_path_factory.mktemp(family), tokenizer)
        return made[family]

    return folder


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def processor(family, folders):
    return Blip3oProcessor.from_backbone(folders(family))


@pytest.fixture
def pictures(make_image):
    return [make_image(0), make_image(1).resize((80, 40)), make_image(2).resize((24, 24))]


def content(*pictures):
    return [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": TEXT}]


@pytest.mark.parametrize("family", OWN)
def test_inputs_are_those_of_the_backbone_s_own_processor(family, folders, processor, pictures):
    folder = folders(family)
    own = OWN[family].from_pretrained(folder)
    messages = [{"role": "user", "content": content(*pictures)}]
    settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = own.apply_chat_template(messages, **settings)
    inputs = processor.apply_chat_template(messages, **settings)
    for name in ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "token_type_ids"):
        assert (name in inputs) == (name in expected), name
        if name in inputs:
            torch.testing.assert_close(inputs[name], expected[name])


@pytest.mark.parametrize(("family", "own"), [("smolvlm", SmolVLMProcessor), ("internvl", InternVLProcessor)])
def test_images_are_written_as_the_backbone_s_own_processor_writes_them(processor, pictures, own):
    """Theirs cannot be built without torchvision."""
    nested = [pictures] if own is SmolVLMProcessor else pictures
    returned = processor.image_processor(nested, return_tensors="pt")
    names = {"image_seq_len": 4, "image_seq_length": 4, "image_token": processor.image_token}
    names |= {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    names |= {"start_image_token": "<img>", "end_image_token": "</img>"}
    for index in range(len(pictures)):
        expected = own.replace_image_token(SimpleNamespace(**names), returned, index)
        assert processor.replace_image_token(returned, index) == expected


def test_images_of_a_batch_reach_the_model(processor, folders, family, pictures, assert_close):
    config = Blip3oConfig(
        transformer_config={"dim": 32, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 16},
        num_queries=4,
        image_positions="backbone",
    )
    model = Blip3oForConditionalGeneration.from_backbone(folders(family), config, processor).eval()
    images = [pictures[:1], [], pictures[1:]]
    captions = ["two red circles", "a circle", "one small blue square above three green triangles"]
    inputs = processor.encode_prompts(captions, images=images)
    shown = (inputs["input_ids"] == processor.image_token_id).sum(-1)
    assert shown[1] == 0 and shown[0] > 0 and shown[2] > shown[0]
    with torch.no_grad():
        batch = model.encode_condition(**inputs)
        for index, caption in enumerate(captions):
            alone = model.encode_condition(**processor.encode_prompts([caption], images=[images[index]]))
            assert_close(batch[index : index + 1], alone)
        blank = [[Image.new("RGB", picture.size) for picture in own] for own in images]
        other = model.encode_condition(**processor.encode_prompts(captions, images=blank))
    changed = (batch - other).abs().amax((1, 2)) > 1e-4
    assert changed.tolist() == [True, False, True]


def test_answers_of_a_batch_are_those_of_each_alone(processor, folders, family, pictures):
    """Padding is on the left, whatever the tokenizer's file says."""
    config = Blip3oConfig(transformer_config={"dim": 32, "num_layers": 1, "num_attention_heads": 2})
    model = Blip3oForConditionalGeneration.from_backbone(folders(family), config, processor).eval()
    assert AutoTokenizer.from_pretrained(folders(family)).padding_side == "right"
    texts = ["How many?", TEXT + " " + TEXT]
    asked = [
        [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
        for picture, text in zip(pictures, texts, strict=False)
    ]

    def answers(messages):
        settings = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        inputs = processor.apply_chat_template(messages, processor_kwargs={"padding": True}, **settings)
        tokens = model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
        return tokens[:, inputs["input_ids"].shape[1] :].tolist()

    assert answers(asked) == [answers([each])[0] for each in asked]


def test_a_saved_processor_is_the_same_again(processor, pictures, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = Blip3oProcessor.from_pretrained(tmp_path)
    before = processor.encode_prompts(["a circle"], images=[pictures])
    after = loaded.encode_prompts(["a circle"], images=[pictures])
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_words_alone_reach_every_backbone(processor):
    inputs = processor.encode_prompts(["two red circles"])
    assert "two red circles" in processor.tokenizer.decode(inputs["input_ids"][0])


# Templates


def test_a_template_begins_as_the_tokenizer_would(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders("llava"))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    assert fitted_template(template, tokenizer) == template
    tokenizer.bos_token, tokenizer.add_bos_token = "<|im_start|>", True
    begins = tokenizer("circle")["input_ids"][0] == tokenizer.bos_token_id
    assert fitted_template(template, tokenizer) == (BEGIN + template if begins else template)
    assert begins


def test_an_image_processor_that_tells_no_number_of_tokens_is_refused(make_processor, make_image):
    processor = Blip3oProcessor(make_image_processor("llava"), make_processor().tokenizer)
    message = (
        "An image processor must tell how many tokens an image has: by `image_grid_thw`, or by a fixed number. "
        "CLIPImageProcessorPil returns pixel_values. Set `num_image_tokens`."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        processor.encode_prompts(["a circle"], images=[make_image()])


def test_padding_is_on_the_left_whatever_a_file_says(make_processor, tmp_path):
    processor = make_processor()
    processor.save_pretrained(tmp_path)
    for path in tmp_path.glob("tokenizer_config.json"):
        path.write_text(path.read_text().replace('"padding_side": "left"', '"padding_side": "right"'))
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "right"
    loaded = Blip3oProcessor.from_pretrained(tmp_path)
    mask = loaded(text=["a circle", "a much longer caption"], padding=True, return_tensors="pt")["attention_mask"]
    assert mask[0].tolist() == sorted(mask[0].tolist()) and not mask[0].all()
    mask = loaded(text=["a circle", "a much longer caption"], padding=True, padding_side="right")["attention_mask"]
    assert mask[0] == sorted(mask[0], reverse=True)
