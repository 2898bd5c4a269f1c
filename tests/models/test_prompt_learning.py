"""PEFT's prompt learning works as on the backbone alone: what it puts before a prompt is read."""

import copy

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

SIZES = {"num_layers": 2, "token_dim": 32, "num_attention_heads": 4, "num_transformer_submodules": 1}
KEYS = {**SIZES, "token_dim": 16, "num_attention_heads": 2}  # those of keys and values, with two heads for four
CONFIGS = {
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **SIZES),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **KEYS),
}


def wrapped(model, kind):
    torch.manual_seed(5)
    model = get_peft_model(model, CONFIGS[kind]())
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model.eval()


# PEFT itself cannot put tokens before the prompts of a Qwen2.5-VL, whose positions it does not know.
@pytest.mark.parametrize(
    ("kind", "backbone"), [("prompt tuning", "llama"), ("prefix tuning", "llama"), ("prefix tuning", "qwen")]
)
def test_answers_are_those_of_the_backbone_with_the_same_prompt(make_model, processor, kind, backbone):
    model = make_model(backbone=backbone)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    inputs = processor.encode_prompts(["How many circles are there?", "Is it red?"], raw=True)
    settings = {**inputs, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    plain = model.generate(**settings)
    alone = wrapped(copy.deepcopy(model.backbone), kind).generate(**settings)
    ours = wrapped(model, kind)
    assert torch.equal(ours.generate(**settings), alone)
    assert not torch.equal(alone, plain)
    assert torch.equal(ours.get_base_model().generate(**settings), plain)
