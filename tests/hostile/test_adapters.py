"""An adapter from elsewhere holds finite numbers, and patterns whose search ends."""

import time

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from blip3o_hf import Blip3oPipeline
from blip3o_hf.assets import packaged_model_path
from blip3o_hf.models.adapters import LORA_WEIGHT_NAME_SAFE, from_peft


@pytest.fixture(scope="module")
def pipe():
    return Blip3oPipeline.from_pretrained(packaged_model_path())


@pytest.fixture
def saved(pipe, tmp_path):
    """The folder of a LoRA."""
    layer = "transformer.layers.0.attn1.to_q"
    size = pipe.model.transformer.config.dim if hasattr(pipe.model.transformer.config, "dim") else 128
    tensors = {f"{layer}.lora_A.weight": torch.zeros(2, size), f"{layer}.lora_B.weight": torch.zeros(size, 2)}
    save_file(tensors, tmp_path / LORA_WEIGHT_NAME_SAFE)
    pipe.load_lora_weights(tmp_path, adapter_name="sound")
    pipe.delete_adapters("sound")
    return tmp_path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_of_a_lora_are_finite(pipe, saved, value):
    tensors = load_file(saved / LORA_WEIGHT_NAME_SAFE)
    name = min(tensors)
    tensors[name][0, 0] = value
    save_file(tensors, saved / LORA_WEIGHT_NAME_SAFE)
    with pytest.raises(ValueError, match=f"must hold finite numbers. {name} of .* holds NaN or infinity"):
        pipe.load_lora_weights(saved)
    assert pipe.get_list_adapters() == {}


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "8", None])
def test_alpha_of_a_lora_is_a_number(saved, alpha):
    tensors = {f"base_model.model.{k}": v for k, v in load_file(saved / LORA_WEIGHT_NAME_SAFE).items()}
    with pytest.raises(ValueError, match=r"alpha must be a finite number. That of transformer\.layers\.0\.attn1"):
        from_peft(tensors, LoraConfig(lora_alpha=alpha), "it")


def test_a_config_that_peft_cannot_read_is_named(pipe, tmp_path):
    save_file(
        {"base_model.model.transformer.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": true}')
    with pytest.raises(ValueError, match=rf"{tmp_path} must be as `save_pretrained` wrote it\. .* KeyError: True"):
        pipe.load_lora_weights(tmp_path)


@pytest.mark.parametrize("pattern", ["(([a-z0-9._])+)+!", "(a|a)*b", "a" * 501, ".*.*.*.*x", "(x+){9}"])
def test_no_pattern_of_a_lora_takes_long(saved, pattern):
    tensors = {f"base_model.model.{k}": v for k, v in load_file(saved / LORA_WEIGHT_NAME_SAFE).items()}
    start = time.process_time()
    with pytest.raises(ValueError, match="names layers, in at most 500 characters with three repetitions"):
        from_peft(tensors, LoraConfig(alpha_pattern={pattern: 4}), "it")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("pattern", [r"layers\.\d+\.attn1\.to_q", "to_q", r"^layers\.0\.attn1\.(to_q|v)", "[+*]?to_q"])
def test_patterns_that_name_layers_are_taken(saved, pattern):
    tensors = {f"base_model.model.{k}": v for k, v in load_file(saved / LORA_WEIGHT_NAME_SAFE).items()}
    _, metadata = from_peft(tensors, LoraConfig(lora_alpha=2, alpha_pattern={pattern: 4}), "it")
    assert metadata["transformer.lora_alpha"] == 4
