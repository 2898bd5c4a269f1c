"""TRL trains understanding: its trainers take the model, its processor and its saved folder as any other."""

import copy

import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from peft import LoraConfig

from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration

pytest.importorskip("trl", reason="TRL is optional: pip install trl")
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

LORA = {"r": 4, "target_modules": r".*language_model.*(q_proj|v_proj)", "task_type": "CAUSAL_LM"}
ASK, ANSWER = "How many circles are there?", "There are three circles."


def turn(role, text, has_image=False):
    return {"role": role, "content": [*([{"type": "image"}] if has_image else []), {"type": "text", "text": text}]}


@pytest.fixture
def images(make_image):
    return [[make_image(seed)] for seed in range(4)]


@pytest.fixture
def make_data(images):
    def make(kind):
        pair = [turn("user", ASK, True)], [turn("assistant", ANSWER)]
        if kind == "text":
            return Dataset.from_dict({"messages": [[turn("user", ASK), turn("assistant", ANSWER)]] * 4})
        columns = {
            "messages": {"messages": [pair[0] + pair[1]] * 4},
            "completion": {"prompt": [pair[0]] * 4, "completion": [pair[1]] * 4},
            "preference": {
                "prompt": [pair[0]] * 4,
                "chosen": [pair[1]] * 4,
                "rejected": [[turn("assistant", "It is red.")]] * 4,
            },
        }[kind]
        data = Dataset.from_dict({**columns, "images": images})
        return data.cast_column("images", [ImageColumn()])

    return make


def settings(config, folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "max_length": None,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return config(**{**defaults, **changes})


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("kind", ["messages", "completion", "text"])
def test_sft_trains_the_backbone_alone(make_model, processor, make_data, tmp_path, kind):
    model = make_model(tied=False)
    before = copy.deepcopy(model.state_dict())
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=make_data(kind),
        args=settings(SFTConfig, tmp_path),
    )
    trainer.train()
    changed = moved(model, before)
    assert changed and all(name.startswith("backbone.") for name in changed)
    trainer.save_model(tmp_path / "out")
    loaded = Blip3oForConditionalGeneration.from_pretrained(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_the_loss_is_that_of_the_model(make_model, processor, make_data, tmp_path):
    """TRL runs the base model and the output layer by itself; this model's own forward is the backbone's."""
    model = make_model(tied=False)
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=make_data("messages"),
        args=settings(SFTConfig, tmp_path, max_steps=1, logging_steps=1, learning_rate=0.0),
    )
    (batch,) = list(trainer.get_train_dataloader())[:1]
    expected = model.train()(**{name: value for name, value in batch.items() if value is not None}).loss.item()
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_sft_with_lora_and_checkpointing(make_model, processor, make_data, tmp_path):
    model = make_model(tied=False)
    before = copy.deepcopy(model.state_dict())
    trainer = SFTTrainer(
        model=model,
        processing_class=processor,
        train_dataset=make_data("messages"),
        args=settings(SFTConfig, tmp_path, gradient_checkpointing=True),
        peft_config=LoraConfig(**LORA),
    )
    trainer.train()
    trained = {
        n for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_B" in n and p.abs().max() > 0
    }
    assert len(trained) == 4
    base = trainer.model.unload()
    assert moved(base, before) == set()


def test_sft_takes_the_path_of_a_saved_model(make_model, processor, make_data, tmp_path):
    make_model(tied=False).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    trainer = SFTTrainer(
        model=str(tmp_path / "model"),
        train_dataset=make_data("messages"),
        args=settings(SFTConfig, tmp_path, max_steps=1),
    )
    assert type(trainer.model) is Blip3oForConditionalGeneration
    trainer.train()


@pytest.mark.parametrize("peft", [None, LORA])
def test_dpo_prefers_the_chosen_answer(make_model, processor, make_data, tmp_path, peft):
    model = make_model(tied=False)
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model) if peft is None else None,
        processing_class=processor,
        train_dataset=make_data("preference"),
        args=settings(DPOConfig, tmp_path, max_steps=4, logging_steps=1, beta=0.5),
        peft_config=None if peft is None else LoraConfig(**peft),
    )
    trainer.train()
    margins = [row["rewards/margins"] for row in trainer.state.log_history if "rewards/margins" in row]
    assert margins[-1] > margins[0]
