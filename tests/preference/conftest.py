"""Trainers that learn from rewards, all of them on the same tiny model."""

import pytest
import torch
from tests.preference.runs import KINDS, ROWS, darkness


@pytest.fixture(scope="session")
def target_encoder(make_tower):
    """Folder of a vision tower whose features fit the tiny model."""
    return make_tower()


@pytest.fixture
def start(make_model, make_processor, make_decoder, target_encoder, tmp_path):
    """
    `start(kind, folder, **settings)`: a trainer of `KINDS`; `parts` are arguments of the trainer, the others settings.
    """

    def make(kind="nft", folder="run", rewards=darkness, rows=ROWS, model=None, callbacks=(), parts=None, **settings):
        torch.manual_seed(0)
        trainer_class, config_class = KINDS[kind]
        settings = {
            "max_steps": 4,
            "num_generations": 3,
            "rollout_steps": 3,
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-3,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            **({"beta": 1e-3} if kind == "grpo" else {}),
            **settings,
        }
        own = {} if isinstance(model, str) else {"processing_class": make_processor(), "decoder": make_decoder()}
        return trainer_class(
            make_model() if model is None else model,
            rewards,
            config_class(str(tmp_path / folder), **settings),
            train_dataset=rows,
            callbacks=list(callbacks),
            **{**own, "target_encoder": target_encoder, **(parts or {})},
        )

    return make
