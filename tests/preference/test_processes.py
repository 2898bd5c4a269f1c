"""Two processes learn from rewards what one learns, with DDP and with DeepSpeed."""

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tests.preference.runs import KINDS
from tests.processes import run_script

ENGINES = [f"{kind}-zero2" for kind in KINDS] + ["grpo-zero2-lora", "nft-zero2-lora"]


@pytest.fixture(scope="module")
def run(make_pipeline, target_encoder, tmp_path_factory):
    """`run(cases)`: the folder of what cases left, after one and after two processes."""
    root = tmp_path_factory.mktemp("processes")
    make_pipeline().save_pretrained(root / "model")
    shutil.copytree(target_encoder, root / "model" / "target_encoder")

    def call(cases):
        environment = {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(root / "extensions")}
        run_script("preference/reward_ranks.py", root / "model", root, *cases, timeout=600, **environment)
        return root

    return call


def check(folder, case, engine, before):
    one, two = (json.loads((folder / f"{case}-{number}.json").read_text()) for number in (1, 2))
    assert two.pop("engine") == engine != one.pop("engine")
    for name in ("loss", "reward", "kl"):
        assert one[name] and two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6)
    first, second = (load_file(folder / f"{case}-{number}.safetensors") for number in (1, 2))
    assert first.keys() == second.keys() and any("old." in name for name in first) == case.startswith("nft")
    assert any(name not in before or not torch.equal(value, before[name]) for name, value in first.items())
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-5, rtol=1e-4)


def test_two_processes_learn_what_one_learns(run, make_model):
    folder, before = run([",".join(KINDS)]), make_model().state_dict()
    for kind in KINDS:
        check(folder, kind, "DistributedDataParallel", before)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_so_they_do_under_zero_2_and_with_adapters(run, make_model):
    folder, before = run(ENGINES), make_model().state_dict()
    for case in ENGINES:
        check(folder, case, "DeepSpeedEngine", before)
