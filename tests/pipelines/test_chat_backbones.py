"""A conversation with any backbone: what was kept between turns changes nothing, whatever kind of cache there is."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from blip3o_hf.models.configuration_blip3o import Blip3oConfig
from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.models.processing_blip3o import Blip3oProcessor
from blip3o_hf.pipelines.chat import NO_ANSWER, Blip3oChat
from blip3o_hf.pipelines.pipeline_blip3o import Blip3oPipeline
from blip3o_hf.schedulers.scheduling_feature_flow import Blip3oFlowScheduler

sys.path.insert(0, str(Path(__file__).parents[1]))
from backbone_folders import FAMILIES, make_folder

TEXT_ONLY = {
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "mistral": {"sliding_window": 8},
    "rwkv": {"attention_hidden_size": 32, "context_length": 512},
}
SIZES = {"dim": 32, "num_layers": 1, "num_attention_heads": 2, "multiple_of": 16, "gate_init": 0.5}


@pytest.fixture(scope="module", params=[*FAMILIES, *TEXT_ONLY])
def pipe(request, tokenizer, tmp_path_factory, make_decoder, make_processor):
    settings = {"transformer_config": SIZES, "num_queries": 4, "feature_dim": 16, "feature_size": 4}
    torch.manual_seed(0)
    if request.param in TEXT_ONLY:
        text = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
        text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
        text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": 0}
        config = AutoConfig.for_model(request.param, **{**text, **TEXT_ONLY[request.param]})
        model = Blip3oForConditionalGeneration(Blip3oConfig(backbone_config=config, **settings))
        processor = make_processor("llama")
    else:
        folder = make_folder(request.param, tmp_path_factory.mktemp(request.param), tokenizer)
        processor = Blip3oProcessor.from_backbone(folder)
        config = Blip3oConfig(image_positions="backbone", **settings)
        model = Blip3oForConditionalGeneration.from_backbone(folder, config, processor)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    pipe = Blip3oPipeline(
        model=model.eval(),
        processor=processor,
        scheduler=Blip3oFlowScheduler(),
        decoder=make_decoder(),
        default_num_inference_steps=2,
    )
    pipe.set_progress_bar_config(disable=True)
    model.generation_config.suppress_tokens = processor.tokenizer.all_special_ids
    return pipe


def talk(chat, pictures):
    """Turns of every kind; a text-only backbone is shown nothing."""
    sees = chat.pipe.model.config.has_vision
    replies = [chat.ask("How many circles are there?", pictures[:1] if sees else (), max_new_tokens=5)]
    if sees:
        replies.append(chat.draw("two red circles", generator=torch.Generator().manual_seed(1)))
    replies.append(chat.ask("Are there three green triangles?", pictures[1:] if sees else (), max_new_tokens=5))
    replies.append(chat.ask("How many?", max_new_tokens=5))
    return replies


def test_what_is_kept_between_turns_changes_nothing(pipe, make_image):
    pictures = [make_image(0), make_image(1).resize((80, 40)), make_image(2).resize((24, 24))]
    kept, chat = Blip3oChat(pipe), Blip3oChat(pipe, reuse_cache=False)
    for ours, theirs in zip(talk(kept, pictures), talk(chat, pictures), strict=True):
        assert ours.text == theirs.text
        if ours.image is not None:
            torch.testing.assert_close(ours.image_features, theirs.image_features, rtol=0, atol=1e-4)
    # The last answer is the backbone's own, on the whole conversation in one pass.
    inputs = pipe.processor.apply_chat_template(
        chat.messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    start = pipe.processor.tokenizer.convert_tokens_to_ids("[IMG]")
    unspoken = [*pipe.model.generation_config.suppress_tokens, start]
    answer = pipe.model.generate(**inputs, max_new_tokens=5, do_sample=False, suppress_tokens=unspoken)
    (text,) = pipe.processor.post_process_image_text_to_text(answer[:, inputs["input_ids"].shape[1] :])
    assert kept.messages[-1]["content"] == (text.strip() or NO_ANSWER)


def test_a_picture_is_drawn_from_the_whole_conversation(pipe, make_image, assert_close):
    """The pipeline on the same history, read by the model itself, gives the same features."""
    shown = make_image(3) if pipe.model.config.has_vision else ()
    chat = Blip3oChat(pipe)
    chat.ask("How many circles are there?", shown, max_new_tokens=5)
    history = list(chat.messages)
    reply = chat.draw("two red circles", generator=torch.Generator().manual_seed(1))
    inputs = pipe.processor.encode_prompts(["two red circles"], histories=[history])
    with torch.no_grad():
        condition = pipe.model.encode_condition(**inputs)
    output = pipe(condition=condition, generator=torch.Generator().manual_seed(1), output_type="features")
    assert_close(reply.image_features, output.image_features, 1e-4)
