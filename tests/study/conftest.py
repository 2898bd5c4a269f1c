"""A small study of two arms and a part, whose runs are stand-ins."""

import copy

import pytest
import yaml
from tests.study.stand_ins import Clock, Result, Runs

from blip3o_hf.study.study_file import load_study

RECIPES = {
    "encoder": {
        "stage": "encoder",
        "output_dir": "unused",
        "data": {"length": 8},
        "training": {"max_steps": 3, "per_device_train_batch_size": 2},
    },
    "decoder": {
        "stage": "decoder",
        "output_dir": "unused",
        "data": {"length": 8},
        "training": {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3},
    },
}
STUDY = {
    "title": "Two ways",
    "folder": "runs",
    "seeds": [0, 7],
    "parts": {"eye": {"recipe": "encoder.yaml"}},
    "arms": {
        "further": {"recipe": "decoder.yaml", "title": "trained further", "overrides": ["inputs.model={plain}/model"]},
        "plain": {
            "recipe": "decoder.yaml",
            "overrides": ["inputs.encoder={eye}"],
            "search": {
                "key": "training.learning_rate",
                "values": [0.001, 0.003, 0.002],
                "overrides": ["training.max_steps=1"],
            },
        },
    },
    "measures": {"result": {"kind": "tests.study.stand_ins:Result"}},
    "comparisons": {
        "rates": {
            "value": "result.rate",
            "of": "plain",
            "against": "further",
            "direction": "higher",
            "hypothesis": "A rate | is above none.",
            "paper": "section 0",
            "budget": "free",
        }
    },
    "plots": {"curves": {"score": "overall", "arms": ["plain", "further"]}},
}


@pytest.fixture
def content():
    """Of the study's file, to change."""
    return copy.deepcopy(STUDY)


@pytest.fixture
def make_study(tmp_path, monkeypatch):
    """`make_study(content, *overrides)`: the study of a file in the folder where the test runs."""
    monkeypatch.chdir(tmp_path)
    for name, recipe in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))

    def make(content, *overrides):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_study(tmp_path / "study.yaml", overrides)

    return make


@pytest.fixture
def runs(monkeypatch):
    """The stand-in of what trains."""
    clock = Clock()
    runs = Runs(clock)
    monkeypatch.setattr("blip3o_hf.training.chain.run_command", runs)
    monkeypatch.setattr("blip3o_hf.study.results.flops_per_step", lambda study, arm: 2e9)
    monkeypatch.setattr(Result, "asked", [])
    monkeypatch.setattr(Result, "clock", clock)
    return runs
