"""Trainers that learn from rewards, all of them on the same tiny model."""

import pytest
import torch
from tests.conftest import FEATURE_DIM
from tests.preference.runs import KINDS, ROWS, darkness
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


@pytest.fixture(scope="session")
def target_encoder(tmp_path_factory):
    """Folder of a vision tower whose features fit the tiny model."""
    folder = tmp_path_factory.mktemp("target_encoder")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=FEATURE_DIM,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(config).save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(folder)
    return str(folder)


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
