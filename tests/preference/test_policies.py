"""Other weights take the place of a model's own while another policy is asked, and never longer."""

import copy

import pytest
import torch
from torch import nn

from blip3o_hf.preference.policies import Policies

INPUT = torch.linspace(-1, 1, 12).view(3, 4)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 2))


@pytest.fixture
def policies(model):
    """With an older policy and a reference, both of which are what the model was before it was changed."""
    found = Policies(model, has_old=True, has_reference=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    return found


@pytest.mark.parametrize("name", ["as_old", "as_reference"])
def test_within_the_block_alone_the_model_is_another(model, policies, name):
    own = {key: (value, value.data_ptr()) for key, value in model.state_dict().items()}
    before = model(INPUT)
    with getattr(policies, name)():
        other = model(INPUT)
    assert not torch.allclose(other, before) and torch.equal(model(INPUT), before)
    with pytest.raises(KeyError), getattr(policies, name)():
        raise KeyError
    assert torch.equal(model(INPUT), before)
    assert all(value.data_ptr() == own[key][1] for key, value in model.state_dict().items())


def test_the_old_policy_keeps_a_share_of_itself(model, policies):
    first = {name: value.clone() for name, value in policies.old.items()}
    policies.follow(0.75)
    for name, value in model.named_parameters():
        torch.testing.assert_close(policies.old[name], 0.75 * first[name] + 0.25 * value)
    policies.follow(0.0)
    assert all(torch.equal(policies.old[name], value) for name, value in model.named_parameters())


def test_what_is_frozen_is_not_kept_and_neither_half_precision(model):
    model[0].requires_grad_(False)
    model.bfloat16()
    policies = Policies(model, has_old=True)
    assert set(policies.old) == {"2.weight", "2.bias"}
    assert all(value.dtype is torch.float32 for value in policies.old.values())
    with policies.as_old():
        assert model[2].weight.dtype is torch.bfloat16


def test_without_an_older_policy_the_old_one_is_the_model(model):
    with Policies(model).as_old():
        inside = model(INPUT)
    assert torch.equal(inside, model(INPUT))


def test_half_precision_copies_of_one_policy_do_not_serve_another(model, policies):
    old = copy.deepcopy(model)
    old.load_state_dict(policies.old)
    with torch.autocast("cpu", torch.bfloat16):
        expected = [each(INPUT).detach() for each in (old, model)]
    for name in ("as_old", "as_reference"):
        with torch.autocast("cpu", torch.bfloat16):
            first = model(INPUT)
            with torch.no_grad(), getattr(policies, name)():
                inside = model(INPUT)
            after = model(INPUT)
            assert torch.equal(inside, expected[0]) and torch.equal(after, expected[1])
            assert torch.equal(first, after)
        gradients = torch.autograd.grad(after.float().sum(), list(model.parameters()))
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_reference_of_none_is_refused(model):
    with (
        pytest.raises(ValueError, match=r"There is no reference\. Set `beta` above 0"),
        Policies(model).as_reference(),
    ):
        pass


def test_weights_of_another_model_are_refused(policies):
    saved = policies.weights()
    policies.load_old(saved)
    with pytest.raises(ValueError, match=r"2\.bias is None, and \(2,\) in the model\. Resume with the settings"):
        policies.load_old({name: value for name, value in saved.items() if name != "2.bias"})
    with pytest.raises(ValueError, match=r"0\.bias is \(3,\), and \(8,\) in the model"):
        policies.load_old({**saved, "0.bias": torch.zeros(3)})
