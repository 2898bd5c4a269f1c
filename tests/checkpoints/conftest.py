"""A folder for a published checkpoint, and what a model of one reads."""

import pytest
import torch
from tests.published_layout import CHANNELS, TOKEN_IDS, write_published_checkpoint


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "published"


@pytest.fixture
def published(folder):
    """`published(**settings of write_published_checkpoint)`: writes a checkpoint, returns its tensors."""

    def write(**settings):
        return write_published_checkpoint(folder, **settings)

    return write


@pytest.fixture
def inputs():
    input_ids = torch.tensor([[65, 66, 67, TOKEN_IDS["[IMG]"]], [70, 71, 72, TOKEN_IDS["[IMG]"]]])
    features = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1))
    return {"input_ids": input_ids, "target_features": features, "noise": features.flip(0), "sigma": torch.ones(2) / 2}
