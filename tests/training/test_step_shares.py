"""One batch, micro-batches and processes have one gradient, also where their records are of different lengths."""

import json

import pytest
import torch
from PIL import Image
from tests.processes import run_script
from tests.training.distributed_cases import ENGINES
from tests.training.step_shares_runs import conversations, losses, make_trainer
from transformers import TrainerCallback

COLORS = ("red", "green", "blue", "yellow")
SPREADS = ((2, 2), (1, 4))


class GradientCallback(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def pictures():
    captions = ("red", "a green sheet of paper that fills the whole picture", "a blue one", "yellow, and no more")
    return [
        {"image": Image.new("RGB", (64, 64), color), "caption": caption}
        for color, caption in zip(COLORS, captions, strict=True)
    ]


def pairs():
    return {"pictures": pictures(), "conversations": conversations()}


CASES = {
    "understanding": ((4, 1), SPREADS, {"train_dataset": conversations()}),
    "generation": ((4, 1), SPREADS, {"train_dataset": pictures()}),
    "captions": (
        (4, 1),
        SPREADS,
        {
            "task": "generation",
            "train_dataset": pictures(),
            "train": ["queries", "transformer", "backbone"],
            "caption_weight": 0.5,
        },
    ),
    "joint": ((4, 1), ((2, 2),), {"train_dataset": pairs()}),
    "decoder": ((4, 1), SPREADS, {"train_dataset": pictures()}),
    "short last batch": ((3, 1), ((2, 2),), {"task": "generation", "train_dataset": pictures()[:3]}),
    "short last batch of answers": (
        (3, 1),
        ((2, 2),),
        {"task": "understanding", "train_dataset": conversations()[:3]},
    ),
}


def first_gradients(folder, batch_size, accumulation, settings):
    trainer = make_trainer(folder, batch_size, accumulation, max_steps=1, max_grad_norm=1e9, **settings)
    callback = GradientCallback()
    trainer.add_callback(callback)
    trainer.train()
    return callback.gradients, losses(trainer)[0]


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_have_the_gradient_of_one_batch(name, tmp_path):
    whole, spreads, settings = CASES[name]
    settings = {"task": name, **settings}
    expected, loss = first_gradients(tmp_path, *whole, settings)
    largest = max(value.norm() for value in expected.values())
    for spread in spreads:
        found, found_loss = first_gradients(tmp_path, *spread, settings)
        assert found_loss == pytest.approx(loss, rel=1e-4)
        assert found.keys() == expected.keys()
        for parameter, value in expected.items():
            assert (found[parameter] - value).norm() <= 1e-4 * largest, (spread, parameter)


def test_the_loss_of_answers_is_the_mean_over_the_tokens_of_the_step(tmp_path):
    trainer = make_trainer(tmp_path, 1, 4, max_steps=1)
    task, model = trainer.task, trainer.model.eval()
    batch = task(conversations())
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[labels >= 0].float(), labels[labels >= 0]).item()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(expected, rel=1e-4)


def test_two_processes_on_every_engine_have_the_losses_of_one_batch(tmp_path):
    pytest.importorskip("deepspeed")
    whole = make_trainer(tmp_path / "whole", 4, 1)
    whole.train()
    run_script("training/step_shares_runs.py", tmp_path, timeout=300)
    for engine in ENGINES:
        found = json.loads((tmp_path / f"{engine}.json").read_text(encoding="utf-8"))
        assert found == pytest.approx(losses(whole), rel=2e-3), engine
