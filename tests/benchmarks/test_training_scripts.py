"""The scripts that measure training run at toy size, and what they count is right."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def training_step(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("training_step")


@pytest.fixture
def training_memory(training_step):
    return importlib.import_module("training_memory")


def test_training_step_reports_time_memory_and_gradients(training_step, tmp_path, monkeypatch, capsys):
    report = tmp_path / "report.json"
    numbers = [f"--{name}=1" for name in ("images", "memory-images", "rounds", "threads")]
    options = ["--size=tiny", *numbers, f"--output={report}", "--paths", "cached targets"]
    monkeypatch.setattr(sys, "argv", [training_step.__file__, *options])
    training_step.main()
    results = json.loads(report.read_text())
    assert results["gradient_differences"]["of all tensors"] < 1e-5
    assert results["gradient_differences"]["of the queries"] < 1e-5
    for kind in ("seconds", "flops_per_image", "memory_bytes"):
        assert list(results[kind]) == ["cached targets"]
    memory = results["memory_bytes"]["cached targets"]
    assert memory["peak"] > memory["weights"] + memory["states"]
    printed = capsys.readouterr().out
    assert "| cached targets |" in printed
    assert "| difference of gradients / the largest |" in printed


def test_naive_steps_do_the_work_that_ours_save(training_step):
    size = training_step.SIZES["tiny"]
    flops = {path: training_step.count_flops(path, size) for path in ("naive, no encoder", "cached targets")}
    assert flops["naive, no encoder"] > 1.5 * flops["cached targets"]


def test_peak_memory_counts_what_lives_at_once(training_memory):
    before = torch.zeros(1000)
    with training_memory.PeakMemory() as memory:
        first = before + 1
        del first
        second = before.view(10, 100) * 2
        before.add_(second.flatten())
    assert memory.now == 4000
    assert memory.peak == 4000
    with training_memory.PeakMemory() as memory:
        _ = (before + 1) + (before + 2)
    assert memory.peak == 12000


@pytest.mark.parametrize("recipe", ["lora, both", "decoder's UNet, cached latents"])
def test_memory_without_tensors_is_that_of_real_ones(training_memory, recipe):
    setting = training_memory.Setting(recipe, "tiny", images=2)
    need = training_memory.compute(setting)
    parts = training_memory.build(setting)
    parameters, trained = training_memory.parameters_of(parts)
    with training_memory.PeakMemory() as memory:
        training_memory.run(setting, parts)
    assert need.activations == pytest.approx(memory.peak, rel=0.03)  # kernels of CPUs keep different things
    assert need.weights == sum(parameter.nbytes for parameter in parameters)
    assert need.gradients == sum(parameter.nbytes for parameter in trained)
    assert need.states == 2 * need.gradients


def test_training_memory_prints_a_table(training_memory, monkeypatch, capsys):
    name = "dit alone, cached conditions"
    monkeypatch.setattr(training_memory, "RECIPES", {name: training_memory.RECIPES[name]})
    monkeypatch.setattr(sys, "argv", ["training_memory.py", "--size", "tiny", "--threads", "1"])
    training_memory.main()
    row = capsys.readouterr().out.strip().splitlines()[-1]
    assert row.startswith(f"| {name} | 0.2 |")
    assert "| 16 / 16 | 16 / 16 | 16 / 16 |" in row


def test_the_check_refuses_full_sizes(training_memory, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["training_memory.py", "--check", "--size", "8b"])
    with pytest.raises(SystemExit):
        training_memory.main()
    assert "Size 8b is too large for that. Choose scaled or tiny." in capsys.readouterr().err
