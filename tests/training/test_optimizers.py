"""Muon gets hidden matrices and nothing else; two optimizers behind one interface resume as one."""

import copy
import re

import pytest
import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from blip3o_hf.training.arguments import Blip3oTrainingArguments
from blip3o_hf.training.optimizers import CombinedOptimizer, build_optimizer


@pytest.fixture
def make_arguments(tmp_path):
    def make(**settings):
        return Blip3oTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)

    return make


def names_of(optimizer, model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]}


def train(model, optimizer, steps, seed, schedule=None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = sum((p * torch.randn(p.shape, generator=generator)).sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        optimizer.zero_grad()


@pytest.fixture
def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3))


def test_without_muon_adamw_trains_what_requires_gradient(model, make_arguments):
    model.backbone.requires_grad_(False)
    settings = {"learning_rate": 0.25, "weight_decay": 0.125, "adam_beta1": 0.5, "adam_beta2": 0.75}
    optimizer = build_optimizer(model, make_arguments(adam_epsilon=1e-3, **settings))
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"], group["eps"]) == (0.25, 0.125, (0.5, 0.75), 1e-3)
    trainable = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert names_of(optimizer, model) == trainable


def test_parts_have_learning_rates_of_their_own(model, make_arguments):
    rates = {"queries": 0.5, "transformer": 0.25, "transformer.layers.0": 0.125}
    optimizer = build_optimizer(model, make_arguments(learning_rate=1.0, learning_rates=rates))
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate_of) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        part = max((part for part in rates if name.startswith(part)), key=len, default=None)
        assert rate_of[id(parameter)] == rates.get(part, 1.0), name


def test_with_muon_learning_rates_are_adamw_s(model, make_arguments):
    arguments = make_arguments(learning_rate=1.0, muon_learning_rate=2.0, learning_rates={"queries": 0.5})
    muon, adamw = build_optimizer(model, arguments).optimizers
    assert {group["lr"] for group in muon.param_groups} == {2.0}
    assert {group["lr"] for group in adamw.param_groups} == {0.5, 1.0}


def test_a_learning_rate_of_a_part_that_does_not_train_is_refused(model, make_arguments):
    model.backbone.requires_grad_(False)
    message = "`learning_rates` must name parts that train. Got 'backbone'. What trains here: queries, transformer."
    with pytest.raises(ValueError, match=re.escape(message)):
        build_optimizer(model, make_arguments(learning_rates={"backbone": 0.5}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spike_factor": 1.0}, "`spike_factor` must be above 1. Got 1.0."),
        ({"max_grad_norm": 0.0}, "`max_grad_norm` must be above 0, since every stage clips its gradients. Got 0.0."),
    ],
)
def test_arguments_that_leave_training_unguarded_are_refused(make_arguments, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_arguments(**settings)


def test_muon_gets_hidden_matrices_and_adamw_everything_else(model, make_arguments):
    arguments = make_arguments(learning_rate=0.25, muon_learning_rate=0.5, weight_decay=0.125)
    optimizer = build_optimizer(model, arguments)
    muon, adamw = optimizer.optimizers
    assert type(muon) is torch.optim.Muon
    assert type(adamw) is torch.optim.AdamW
    assert (muon.param_groups[0]["lr"], adamw.param_groups[0]["lr"]) == (0.5, 0.25)
    assert muon.param_groups[0]["weight_decay"] == adamw.param_groups[0]["weight_decay"] == 0.125
    by_muon, by_adamw = names_of(muon, model), names_of(adamw, model)
    assert not by_muon & by_adamw
    assert by_muon | by_adamw == {name for name, _ in model.named_parameters()}
    shapes = {name: parameter.ndim for name, parameter in model.named_parameters()}
    assert all(shapes[name] == 2 for name in by_muon)
    assert "backbone.model.language_model.layers.0.mlp.up_proj.weight" in by_muon
    assert "transformer.layers.0.attn2.to_out.0.weight" in by_muon


@pytest.mark.parametrize("tied", [True, False])
def test_muon_never_gets_embeddings_queries_or_edges(make_model, make_arguments, tied):
    model = make_model(tied=tied)
    muon, _ = build_optimizer(model, make_arguments(muon_learning_rate=0.5)).optimizers
    by_muon = names_of(muon, model)
    edges = {"queries.weight", "backbone.model.language_model.embed_tokens.weight"}
    edges |= set() if tied else {"backbone.lm_head.weight"}
    edges |= {name for name, _ in model.named_parameters() if "patch_embed" in name or "norm_out" in name}
    edges |= {name for name, _ in model.named_parameters() if "caption_projection" in name}
    assert len(edges) > 8
    assert not by_muon & edges


def test_muon_leaves_the_edges_of_clip_and_of_the_decoder_alone(make_decoder, make_arguments):
    tower = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    clip = CLIPModel(
        CLIPConfig(
            vision_config={**tower, "image_size": 16, "patch_size": 4},
            text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8},
        )
    )
    for model in (clip, make_decoder()):
        muon, adamw = build_optimizer(model, make_arguments(muon_learning_rate=0.5)).optimizers
        edges = ("embedding", "_projection", "position", "proj_in", "proj_out")
        expected = {name for name, p in model.named_parameters() if any(edge in name for edge in edges)}
        assert expected and expected <= names_of(adamw, model)
        assert any("fc1.weight" in name for name in names_of(muon, model))


def test_frozen_parameters_are_left_out(model, make_arguments):
    model.backbone.requires_grad_(False)
    optimizer = build_optimizer(model, make_arguments(muon_learning_rate=0.5))
    assert not any(name.startswith("backbone.") for name in names_of(optimizer, model))


def make_combined(model):
    matrices = [p for p in model.parameters() if p.ndim == 2 and p.shape != (5, 4)]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return CombinedOptimizer([torch.optim.Muon(matrices, lr=0.05), torch.optim.AdamW(others, lr=0.01)])


def test_the_combination_steps_like_its_parts(small):
    apart = copy.deepcopy(small)
    train(small, make_combined(small), steps=3, seed=1)
    generator = torch.Generator().manual_seed(1)
    parts = make_combined(apart).optimizers
    for _ in range(3):
        sum((p * torch.randn(p.shape, generator=generator)).sum() for p in apart.parameters()).backward()
        for part in parts:
            part.step()
            part.zero_grad()
    for ours, theirs in zip(small.parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_schedule_reaches_every_part(small):
    optimizer = make_combined(small)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(small, optimizer, steps=1, seed=1, schedule=schedule)
    assert [part.param_groups[0]["lr"] for part in optimizer.optimizers] == [0.025, 0.005]
    start = [p.detach().clone() for p in small.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(small, optimizer, steps=1, seed=2)
    for parameter, before in zip(small.parameters(), start, strict=True):
        assert torch.equal(parameter, before)


def test_zero_grad_clears_every_part(small):
    optimizer = make_combined(small)
    sum(p.sum() for p in small.parameters()).backward()
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in small.parameters())


def test_a_closure_gives_the_loss(small):
    assert make_combined(small).step(lambda: 3.5) == 3.5


def test_a_loaded_state_goes_on_identically(small, tmp_path):
    """Through a file, as a checkpoint does, and with the schedule still in charge of the learning rates."""

    def make(model):
        optimizer = make_combined(model)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    optimizer, schedule = make(small)
    train(small, optimizer, 2, 1, schedule)
    resumed = copy.deepcopy(small)
    torch.save((optimizer.state_dict(), schedule.state_dict()), tmp_path / "state.pt")
    train(small, optimizer, 3, 2, schedule)

    new_optimizer, new_schedule = make(resumed)
    optimizer_state, schedule_state = torch.load(tmp_path / "state.pt", weights_only=True)
    new_optimizer.load_state_dict(optimizer_state)
    new_schedule.load_state_dict(schedule_state)
    train(resumed, new_optimizer, 3, 2, new_schedule)
    for parameter, expected in zip(resumed.parameters(), small.parameters(), strict=True):
        assert torch.equal(parameter, expected)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [part.param_groups[0]["lr"] for part in new_optimizer.optimizers] == rates
