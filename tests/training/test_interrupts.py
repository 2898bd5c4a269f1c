"""Ctrl-C ends a run with a whole checkpoint and the command that goes on; a second one ends it at once."""

import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from tests.processes import ROOT

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.evaluation.sheets import curves
from blip3o_hf.training import runs
from blip3o_hf.training.chain import run_command
from blip3o_hf.training.interrupts import InterruptCallback
from blip3o_hf.training.trainer import Blip3oTrainer

TINY = Path(packaged_model_path("blip3o-tiny"))


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "decoder.yaml"
    path.write_text(
        "stage: decoder\n"
        f"output_dir: {tmp_path / 'run'}\n"
        f"inputs: {{model: {TINY}}}\n"
        "data: {length: 64}\n"
        "evaluation: {benchmark: null}\n"
        "training: {max_steps: 6, per_device_train_batch_size: 2, use_cpu: true, report_to: none, save_steps: 100,\n"
        "  logging_steps: 1, learning_rate: 1e-3}\n"
    )
    return path


@pytest.fixture
def press(monkeypatch):
    """`press(step, times)`: Ctrl-C when that step was logged."""

    def press(step, times):
        def show(history, path):
            if len(history) == step:
                for _ in range(times):
                    os.kill(os.getpid(), signal.SIGINT)
            curves(history, path)

        monkeypatch.setattr(runs, "curves", show)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores the signal
    yield press
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_run_is_kept_whole_and_goes_on_by_the_command_it_prints(recipe, press, tmp_path, capsys):
    assert main(["train", str(recipe), f"output_dir={tmp_path / 'whole'}"]) == 0
    before = signal.getsignal(signal.SIGINT)
    press(step=3, times=1)
    assert main(["train", str(recipe), "training.disable_tqdm=true"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-4" and (checkpoint / "COMPLETE").is_file()
    assert not (tmp_path / "run" / "summary.json").exists()
    errors = capsys.readouterr().err.splitlines()
    assert any(line.startswith("decoder: ") for line in errors)  # the name of the progress bar
    assert any(line.startswith("interrupted: everything is saved up to step 4, in ") for line in errors)
    program, *words = shlex.split(errors[-1].partition("go on with: ")[2])
    assert program == "blip3o-hf" and "--resume" in words
    press(step=0, times=0)
    assert main(words) == 0
    name = "diffusion_pytorch_model.safetensors"
    resumed, whole = load_file(tmp_path / "run" / name), load_file(tmp_path / "whole" / name)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_a_second_interrupt_stops_at_once(recipe, press, tmp_path, capsys):
    press(step=2, times=2)
    assert main(["train", str(recipe)]) == 130
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize(
    "becomes", [KeyboardInterrupt, RuntimeError("Error(s) in loading state_dict"), OSError("cut off")]
)
def test_a_second_interrupt_while_a_checkpoint_is_written_leaves_none(
    recipe, press, tmp_path, capsys, monkeypatch, becomes
):
    """A library may make another error of the interruption, or one that says what was being done."""

    def save(self, folder, state_dict=None):
        Path(folder).mkdir(parents=True)
        Path(folder, "model.safetensors").write_bytes(b"half")
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise becomes from None

    monkeypatch.setattr(Blip3oTrainer, "_save", save)
    press(step=2, times=1)
    before = signal.getsignal(signal.SIGINT)
    assert main(["train", str(recipe)]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))


def test_an_error_after_one_interrupt_stays_what_it_is(press):
    interrupts = InterruptCallback()
    with pytest.raises(OSError, match="disk full"), interrupts.listening():
        os.kill(os.getpid(), signal.SIGINT)
        raise OSError("disk full")
    assert interrupts.is_interrupted


def test_in_another_thread_or_where_it_is_ignored_the_signal_stays_as_it_was():
    def enter():
        with InterruptCallback().listening():
            pass

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with InterruptCallback().listening():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_chain_waits_for_the_checkpoint_of_its_stage(tmp_path):
    """The stage takes a second to end after the signal; subprocess alone would kill it after a quarter."""
    stage = "import signal, sys, time\nsignal.signal(2, lambda *a: (time.sleep(1), print('saved'), sys.exit(130)))\n"
    stage += "print('ready', flush=True)\ntime.sleep(30)\n"
    program = "import sys\nfrom blip3o_hf.training.chain import run_command\n"
    program += f"sys.exit(run_command([sys.executable, '-c', {stage!r}]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=20)[0] == "saved\n"
    assert process.returncode == 130
    assert run_command([sys.executable, "-c", "import sys; sys.exit(3)"]) == 3


def test_a_finished_run_is_not_replaced(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "training.max_steps=1"]) == 0
    weights = (tmp_path / "run" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert main(["train", str(recipe), "training.max_steps=2"]) == 2
    assert "A run must not replace a finished one." in capsys.readouterr().err
    assert (tmp_path / "run" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert main(["train", str(recipe), "--resume", "training.max_steps=2"]) == 0


def test_two_processes_do_not_train_in_one_folder(recipe, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with FileLock(tmp_path / "run" / "checkpoints" / ".lock"):
        assert main(["train", str(recipe), "training.max_steps=1"]) == 2
    message = f"Another one is at work in {tmp_path / 'run'}. Wait for it, stop it, or choose another output_dir."
    assert message in capsys.readouterr().err
    assert main(["train", str(recipe), "training.max_steps=1"]) == 0
