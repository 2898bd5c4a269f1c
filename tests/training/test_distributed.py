"""Two processes train like one: the same losses, whole checkpoints, resume in a later pass; through real engines."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.training.distributed_cases import CASES, STEPS
from tests.training.test_trainer import MODEL, SmallDataset

from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.stages import build_stage, encoder, understanding

ROOT = Path(__file__).parents[2]
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NAMES = [name for name, case in CASES.items() if HAS_DEEPSPEED or case.deepspeed is None]
ENGINES = {
    None: "DistributedDataParallel",
    "zero1": "DeepSpeedEngine",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the earlier stages leave, untrained."""
    root = tmp_path_factory.mktemp("inputs")
    folders = {"encoder": "encoder", "decoder": "decoder", "understanding": "backbone"}
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoder, understanding):
            patch.setattr(module, "ShapesDataset", SmallDataset)
        for name, folder in folders.items():
            needed = {"encoder": str(root / "encoder")} if name == "decoder" else {}
            recipe = Recipe(
                stage=name,
                output_dir=str(root / folder),
                inputs=needed,
                model=MODEL[name],
                data={"length": 4},
                training={"use_cpu": True, "report_to": "none"},
            )
            torch.manual_seed(0)
            stage = build_stage(recipe)
            stage.save(stage.build(), root / folder)
    return root


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory):
    """Every case, run once."""
    out = tmp_path_factory.mktemp("runs")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TORCH_EXTENSIONS_DIR": str(out / "extensions"),
    }
    command = [sys.executable, str(Path(__file__).with_name("distributed_runs.py")), str(inputs), str(out), *NAMES]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-6000:]
    return {name: json.loads((out / f"{name}.json").read_text()) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_losses_and_the_result_are_those_of_one_process(runs, name):
    single, run = runs["single"], runs[name]
    first = CASES[name].stop_after or 0
    assert len(run["losses"]) == STEPS
    torch.testing.assert_close(run["losses"], single["losses"], rtol=1e-5, atol=1e-5)
    assert run["saved_norm"] == pytest.approx(single["saved_norm"], rel=1e-5)
    assert run["resumed_from"] == (f"checkpoint-{first}" if first else None)


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].num_processes > 1])
def test_the_engine_is_the_one_that_was_asked_for(runs, name):
    engine = CASES[name].deepspeed
    assert runs[name]["engine"] == ENGINES[engine]
    assert runs[name]["distributed_type"] == ("DEEPSPEED" if engine else "MULTI_CPU")
    assert runs[name]["num_processes"] == 2
