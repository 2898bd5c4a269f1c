"""What several tests of the tiny world need."""

import pytest


@pytest.fixture
def few_wordings(monkeypatch):
    """The wordings that the reader of these tests can parse, with no word added and none left out."""
    monkeypatch.setattr("blip3o_hf.shapes.wording.further_wordings", dict)
    monkeypatch.setattr("blip3o_hf.shapes.wording.roughened", lambda rng, text: text)
