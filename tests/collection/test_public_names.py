"""What is written down names no folder of this machine."""

import types

import torch
from tests.collection.test_collect import manifests

from blip3o_hf.evaluation import extractors


def test_a_check_by_a_folder_is_written_by_its_name(collect, tmp_path, monkeypatch):
    monkeypatch.setattr("blip3o_hf.cli.collect._check_of", lambda arguments: lambda images, texts: [1.0] * len(texts))
    assert collect(tmp_path / "out", "--check", str(tmp_path / "models" / "judge"), number=2) == 0
    assert manifests(tmp_path / "out")[0]["check"] == "judge"
    assert str(tmp_path) not in (tmp_path / "out" / "collection.json").read_text()


def test_an_encoder_in_a_folder_is_written_by_its_name(tmp_path, monkeypatch):
    processor = types.SimpleNamespace(crop_size={"height": 4}, size=None)
    monkeypatch.setattr(extractors.AutoImageProcessor, "from_pretrained", lambda *_, **__: processor)
    found = extractors._of_squares(
        "clip",
        "embeddings",
        str(tmp_path / "tower"),
        torch.nn.Linear(1, 1),
        torch.device("cpu"),
        lambda pixels: pixels,
    )
    assert found.settings["encoder"] == "tower" and found.about == "embeddings, tower"
