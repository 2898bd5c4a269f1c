"""A run that is killed at random moments and resumed each time ends as if nothing had happened."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.processes import run_script
from tests.training.distributed_cases import CASES, make_recipe

NUM_STEPS = 30


@pytest.mark.slow
@pytest.mark.parametrize(("case", "num_kills"), [("single", 20), ("zero2", 20)])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(inputs, tmp_path, case, num_kills):
    pytest.importorskip("deepspeed")
    recipe = asdict(make_recipe(inputs, tmp_path, CASES[case]))
    del recipe["source"]
    recipe["training"] |= {"max_steps": NUM_STEPS, "save_steps": 1, "save_total_limit": 2}
    recipe["evaluation"] = {"per_family": 1, "num_inference_steps": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [tmp_path / "recipe.yaml", tmp_path, CASES[case].num_processes, num_kills]
    run_script("training/killed_runs.py", *arguments, timeout=1200, DS_ACCELERATOR="cpu")

    kills = json.loads((tmp_path / "kills.json").read_text())
    assert len(kills) == num_kills
    assert sum(any(name.startswith("checkpoint-") for name in kill["left"]) for kill in kills) >= num_kills // 4
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tensors = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert Path("model.safetensors") in tensors and Path("pipeline/model/model.safetensors") in tensors
    for path in tensors:
        expected, actual = load_file(whole / path), load_file(killed / path)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[name], value) for name, value in expected.items()), path

    def files(folder):
        """Of the result; events of finished runs are named by their time."""
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))

    assert files(killed) == files(whole)
    histories = [
        json.loads((folder / "checkpoints" / f"checkpoint-{NUM_STEPS}" / "trainer_state.json").read_text())
        for folder in (killed, whole)
    ]
    assert [entry["loss"] for entry in histories[0]["log_history"]] == [
        entry["loss"] for entry in histories[1]["log_history"]
    ]
