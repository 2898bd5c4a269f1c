"""Adapters learn from rewards: the reference is the model without them, and a pipeline draws with what is saved."""

import pytest
import torch
from peft import LoraConfig
from tests.preference.runs import KINDS, changed, weights

from blip3o_hf.models.adapters import lora_config

every_kind = pytest.mark.parametrize("kind", KINDS)


def adapted(make_model, **settings):
    """A model, and what a trainer of adapters on it takes."""
    model = make_model()
    config = lora_config(model, **{"rank": 2, "train_queries": False, **settings})
    return {"model": model, "parts": {"peft_config": config}}


@every_kind
def test_adapters_learn_and_a_pipeline_draws_with_them(start, make_model, make_pipeline, kind, tmp_path):
    trainer = start(kind, **adapted(make_model), max_steps=2, save_strategy="no", learning_rate=1e-2)
    before = weights(trainer)
    trainer.train()
    names = changed(trainer, before)
    assert names and all(name.startswith("base_model.model.transformer.") and "lora_" in name for name in names)

    policies, base = trainer.task.policies, make_model()
    generator = torch.Generator().manual_seed(0)
    noisy = {
        "condition": torch.randn(2, 5, 32, generator=generator),
        "clean": torch.randn(2, 16, 4, 4, generator=generator),
        "noise": torch.randn(2, 16, 4, 4, generator=generator),
        "sigma": torch.tensor([0.3, 0.9]),
    }
    with torch.no_grad():
        arguments = (noisy["condition"], noisy["clean"], noisy["noise"], noisy["sigma"])
        names = ("condition", "target_features", "noise", "sigma")
        expected = base(**dict(zip(names, arguments, strict=True))).prediction
        own = trainer.task.velocity(policies.model, noisy)
        assert torch.equal(trainer.task.reference_velocity(noisy), expected)
        assert torch.equal(trainer.task.velocity(policies.model, noisy), own) and not torch.allclose(own, expected)
    assert all(parameter.requires_grad for name, parameter in policies.model.named_parameters() if "lora_" in name)

    trainer.save_model(str(tmp_path / "adapter"))
    pipe = make_pipeline()
    draw = {"prompt": "a red circle", "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "features"}

    def drawn(pipe):
        return pipe(**draw, generator=torch.Generator().manual_seed(0)).image_features

    plain = drawn(pipe)
    pipe.load_lora_weights(str(tmp_path / "adapter"))
    trainer.model.eval()
    torch.testing.assert_close(drawn(pipe), drawn(trainer.pipeline()), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(drawn(pipe), plain, atol=1e-3)


def test_the_policy_that_draws_is_older_adapters(start, make_model):
    settings = {"max_steps": 2, "save_strategy": "no", "old_policy_slope": 1.0, "old_policy_max": 0.5}
    trainer = start("nft", **adapted(make_model), **settings)
    first = trainer.task.policies.weights()
    trainer.train()
    policies = trainer.task.policies
    assert policies.old and all("lora_" in name for name in policies.old)
    assert any(not torch.equal(value, first[name]) for name, value in policies.old.items())
    new = policies.weights()
    with policies.as_old():
        assert all(torch.equal(value, policies.old[name]) for name, value in policies.weights().items())
    assert all(torch.equal(value, new[name]) for name, value in policies.weights().items())


@every_kind
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"train_queries": True},
            r"This `peft_config` trains queries, too\. Pass lora_config\(model, train_queries=False",
        ),
        ({"parts": ("transformer", "backbone")}, r"Conditions must stay as they are .* trains backbone, too"),
        ({"dropout": 0.1}, r"Got lora_dropout=0\.1, with which each pass is by another one\. Leave dropout out"),
    ],
)
def test_adapters_that_change_conditions_are_refused(start, make_model, kind, settings, message):
    with pytest.raises(ValueError, match=message):
        start(kind, **adapted(make_model, **settings))


def test_so_are_layers_of_the_backbone_by_any_pattern(start):
    parts = {"peft_config": LoraConfig(target_modules=["q_proj"])}
    with pytest.raises(
        ValueError, match=r"This `peft_config` trains backbone\..*q_proj\.lora_A\.default\.weight, too"
    ):
        start("nft", parts=parts)
