"""What several tests of the tiny world need."""

import pytest

from blip3o_hf import Blip3oPipeline, packaged_model_path


@pytest.fixture(autouse=True)
def few_wordings(request, monkeypatch):
    """The wordings that the readers of these tests can parse, with no word added and none left out."""
    if "all_wordings" not in request.fixturenames:
        monkeypatch.setattr("blip3o_hf.shapes.wording.further_wordings", dict)
        for function in ("roughened", "renamed"):
            monkeypatch.setattr(f"blip3o_hf.shapes.wording.{function}", lambda rng, text: text)


@pytest.fixture
def all_wordings():
    """Every wording, words of no use included: for tests that do not parse them."""


@pytest.fixture(scope="module")
def tiny():
    """The pipeline of the packaged model."""
    return Blip3oPipeline.from_pretrained(packaged_model_path("blip3o-tiny"))
