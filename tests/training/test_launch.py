"""The files that say on how many processes to train: every one is read by its library, and one of each is run."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from tests.processes import ROOT, run
from tests.training.distributed_cases import CASES, make_recipe

from blip3o_hf.models.modeling_blip3o import Blip3oForConditionalGeneration
from blip3o_hf.training.arguments import Blip3oTrainingArguments

RECIPES = ROOT / "recipes"
DEEPSPEED = sorted((RECIPES / "deepspeed").glob("*.json"))
ACCELERATE = sorted((RECIPES / "accelerate").glob("*.yaml"))
SLURM = RECIPES / "launch" / "slurm.sh"
JOB = {
    "RECIPE": "recipes/tiny/generation.yaml",
    "ENGINE": "zero2",
    "GPUS_PER_NODE": "8",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]",
}

needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")


@needs_deepspeed
@pytest.mark.parametrize("path", DEEPSPEED, ids=lambda path: path.stem)
def test_deepspeed_takes_its_values_from_the_recipe(path, tmp_path):
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    arguments = Blip3oTrainingArguments(
        output_dir=str(tmp_path), deepspeed=str(path), use_cpu=True, bf16=True, max_grad_norm=0.5
    )
    settings = arguments.hf_deepspeed_config.config
    assert "auto" not in json.dumps(settings)
    assert settings["gradient_clipping"] == 0.5 and settings["bf16"] == {"enabled": True}
    zero = DeepSpeedZeroConfig(**settings["zero_optimization"])
    assert f"zero{int(zero.stage)}" == path.stem.partition("_")[0]
    assert (zero.offload_optimizer is not None) == path.stem.endswith("offload")
    assert DeepSpeedConfig(settings).zero_enabled
    assert zero.stage < 3 or zero.gather_16bit_weights_on_model_save


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_accelerate_reads_its_files(path):
    config = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert {key: getattr(config, key) for key in content if key != "compute_environment"} == {
        key: value for key, value in content.items() if key != "compute_environment"
    }
    engine = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert config.distributed_type == engine
    if engine == "DEEPSPEED":
        assert content["deepspeed_config"]["deepspeed_config_file"] == f"recipes/deepspeed/{path.stem}.json"
        assert RECIPES / "deepspeed" / f"{path.stem}.json" in DEEPSPEED


def test_fsdp_is_the_same_from_both_files(tmp_path):
    launched = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    settings = json.loads((RECIPES / "accelerate" / "fsdp2.json").read_text())
    assert {key.removeprefix("fsdp_"): value for key, value in launched.items()} == settings


def submit(tmp_path, environment, *words):
    """Run the Slurm script with stand-ins for the cluster's commands, which print what they are called with."""
    commands = {
        "scontrol": "seq -f node%g 1 20000",
        "srun": 'shift; SLURM_NODEID=1 "$@"',
        "accelerate": 'echo "$@"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environment}
    return subprocess.run(["bash", str(SLURM), *words], env=environment, capture_output=True, text=True)


def test_slurm_starts_accelerate_on_every_node(tmp_path):
    result = submit(tmp_path, JOB, "training.seed=1", "--resume")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "launch",
        *("--config_file", "recipes/accelerate/zero2.yaml", "--deepspeed_multinode_launcher", "standard"),
        *("--num_machines", "2", "--num_processes", "16", "--machine_rank", "1"),
        *("--main_process_ip", "node1", "--main_process_port", "29500"),
        *("--module", "blip3o_hf.cli", "train", "recipes/tiny/generation.yaml", "training.seed=1", "--resume"),
    ]


@pytest.mark.parametrize("name", JOB)
def test_slurm_names_a_missing_parameter(tmp_path, name):
    result = submit(tmp_path, {key: value for key, value in JOB.items() if key != name})
    assert result.returncode != 0 and result.stdout == ""
    assert f"{name}: " in result.stderr


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_accelerate_launch_trains_on_two_processes(inputs, tmp_path, engine):
    recipe = asdict(make_recipe(inputs, tmp_path / "run", CASES["ddp"]))
    del recipe["source"]
    recipe["evaluation"] = {"per_family": 1, "num_inference_steps": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--config_file"]
    train = [RECIPES / "accelerate" / f"{engine}.yaml", Path(__file__).with_name("launched.py"), "train"]
    environment = {
        "PYTHONPATH": str(ROOT / "src"),
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"),
    }
    printed = run([*launch, *train, tmp_path / "recipe.yaml"], timeout=500, **environment)
    assert printed.count("generation: 6 steps") == 1
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-6" / "global_step6").is_dir()
    for folder in ("run", "run/checkpoints/checkpoint-6", "run/pipeline/model"):
        Blip3oForConditionalGeneration.from_pretrained(tmp_path / folder)
