"""Two processes train like one: the same losses, whole checkpoints, resume in a later pass; through real engines."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.distributed_cases import CASES, RESUMED, STEPS
from tests.training.test_trainer import MODEL, SmallDataset
from transformers import AutoModelForImageTextToText

from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.training.recipes import Recipe
from blip3o_hf.training.stages import build_stage, encoder, understanding

ROOT = Path(__file__).parents[2]
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
NAMES = [name for name, case in CASES.items() if HAS_DEEPSPEED or not (case.engine or "").startswith("zero")]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What the earlier stages leave, untrained."""
    root = tmp_path_factory.mktemp("distributed") / "inputs"
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
def out(inputs):
    return inputs.parent / "runs"


@pytest.fixture(scope="module")
def runs(inputs, out):
    """Every case, run once."""
    out.mkdir()
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


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RESUMED])
def test_the_losses_and_the_result_are_those_of_one_process(runs, out, name):
    torch.testing.assert_close(runs[name]["losses"], runs["single"]["losses"], rtol=1e-5, atol=1e-5)
    assert len(runs[name]["losses"]) == STEPS
    for folder in ("", f"checkpoints/checkpoint-{STEPS}"):
        actual, expected = weights(out / name / folder), weights(out / "single" / folder)
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: key + text)


@pytest.mark.parametrize("name", [name for name in NAMES if name in RESUMED])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(runs, out, name):
    whole, step = CASES[name].resumes
    assert runs[name]["losses"] == runs[whole]["losses"]
    written = sorted(path.name for path in (out / name / "checkpoints").iterdir())
    assert written == [f"checkpoint-{later}" for later in range(step + 2, STEPS + 1, 2)]
    for folder in ("", f"checkpoints/checkpoint-{STEPS}"):
        actual, expected = weights(out / name / folder), weights(out / whole / folder)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in RESUMED])
def test_checkpoints_and_result_are_whole_repositories(runs, out, name):
    average = Blip3oForConditionalGeneration.from_pretrained(out / name)
    raw = Blip3oForConditionalGeneration.from_pretrained(out / name / "checkpoints" / f"checkpoint-{STEPS}")
    assert not torch.equal(average.queries.weight, raw.queries.weight)
    backbone = AutoModelForImageTextToText.from_pretrained(out.parent / "inputs" / "backbone")
    for key, value in backbone.state_dict().items():
        assert torch.equal(average.backbone.state_dict()[key], value)


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].num_processes > 1])
def test_the_engine_is_the_one_that_was_asked_for(runs, name):
    engines = {None: ("DistributedDataParallel", "MULTI_CPU"), "fsdp2": ("FSDPBlip3oForConditionalGeneration", "FSDP")}
    engine = runs[name]["engine"], runs[name]["distributed_type"]
    assert engine == engines.get(CASES[name].engine, ("DeepSpeedEngine", "DEEPSPEED"))
    assert runs[name]["num_processes"] == 2
