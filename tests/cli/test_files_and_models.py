"""Files and models that cannot be are refused in one line, before any work."""

import time
from pathlib import Path

import pytest
from PIL import Image

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.cli.files import check_picture_path
from blip3o_hf.evaluation.sheets import curves
from blip3o_hf.files import check_can_write

UNREACHABLE = "http://127.0.0.1:9"


def error_of(capsys, *words):
    assert main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize("name", ["a.psd", "a.txt", "a", "a.fits"])
def test_a_format_that_is_only_read_is_no_output(tmp_path, capsys, name):
    error = error_of(capsys, "generate", "a circle", "-o", tmp_path / name)
    assert f"The output must be a picture file. {name!r} has no ending of a picture format." in error


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.webp", "a.gif"])
def test_usual_formats_are_outputs(tmp_path, name):
    assert check_picture_path(tmp_path / name) == tmp_path / name


def test_eps_is_refused_as_everywhere_else(tmp_path, capsys):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.eps")
    assert "a.eps: not a readable image" in error_of(capsys, "describe", tmp_path / "a.eps")


WRITES = {
    "generate": ["generate", "a circle", "-o", "{}/x.png"],
    "generate by default": ["generate", "a circle", "-n", "2", "--output={}/x.png"],
    "demo": ["demo", "-o", "{}/x.png"],
    "chat": ["chat", "--save", "{}/talk"],
    "data": ["data", "check", ".", "--histogram", "{}/x.png"],
    "evaluate": ["evaluate", "--output", "{}/x.json"],
    "finetune": ["finetune", "--data", ".", "--output", "{}/run"],
    "convert": ["convert", "none", "{}/converted"],
    "export": ["export", packaged_model_path(), "{}/exported"],
}


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("name", sorted(WRITES))
def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(capsys, monkeypatch, name):
    """In /proc nothing can be made, also by the user who may write anywhere else."""
    monkeypatch.setattr("blip3o_hf.pipelines.pipeline_blip3o.Blip3oPipeline.from_pretrained", None)
    error = error_of(capsys, *(word.format("/proc") for word in WRITES[name]))
    assert "must be a folder that can be written. Got /proc" in error and "Choose another." in error


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("folder", ["/proc/x", "{}/file/x", "{}/file"])
@pytest.mark.parametrize("command", ["train", "finetune"])
def test_a_run_that_cannot_be_written_ends_in_one_line(tmp_path, capsys, command, folder):
    (tmp_path / "file").write_text("")
    folder = folder.format(tmp_path)
    words = {
        "train": ["train", "tiny/decoder", f"output_dir={folder}", "inputs.encoder=none/none"],
        "finetune": ["finetune", "--data", tmp_path / "none", "--output", folder],
    }[command]
    error = error_of(capsys, *words)
    key = {"train": "`output_dir`", "finetune": "`output`"}[command]
    wanted = "a folder that can be written" if "proc" in folder else "a folder"
    assert f"blip3o-hf {command}: {key} must be {wanted}. Got {folder}, and " in error


def test_a_plan_says_that_the_folder_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["train", "tiny/decoder", f"output_dir={tmp_path}/file/x", "--plan"]) == 1
    assert f"output_dir: MISSING, it must be a folder. Got {tmp_path}/file/x" in capsys.readouterr().out


def test_a_check_for_a_folder_leaves_nothing(tmp_path):
    assert check_can_write(tmp_path / "a" / "b", "it") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/no/such", "./none", "../none/x.safetensors", "~/none", "/no/such:0.5"])
def test_a_path_of_a_lora_with_nothing_there_is_no_hub_id(tmp_path, capsys, monkeypatch, path):
    monkeypatch.setattr("blip3o_hf.pipelines.pipeline_blip3o.Blip3oPipeline.from_pretrained", None)
    error = error_of(capsys, "generate", "a circle", "--lora", path, "-o", tmp_path / "a.png")
    assert f"must be of a folder or a file that exists. Got {path.partition(':')[0]}, and there is none" in error


@pytest.mark.parametrize("seed", ["-1", str(2**63), str(10**30)])
@pytest.mark.parametrize("command", [["generate", "a circle"], ["demo"]])
def test_a_seed_out_of_range_is_refused(tmp_path, capsys, command, seed):
    error = error_of(capsys, *command, f"--seed={seed}", "-o", tmp_path / "a.png")
    assert f"--seed must be a whole number from 0 to {2**63 - 1}. Got {seed}." in error


@pytest.mark.parametrize("command", [["generate", "a circle"], ["finetune", "--data=none", "--output=none"]])
def test_a_hub_id_that_cannot_be_loaded_is_said_at_once(capsys, monkeypatch, command):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("blip3o_hf.hub.reach.HfApi", _api_at(UNREACHABLE))
    start = time.monotonic()
    error = error_of(capsys, *command, "--model", "nobody/nothing")
    assert "There is no folder 'nobody/nothing' here, and the Hub did not answer" in error
    assert time.monotonic() - start < 15


def test_offline_a_hub_id_that_was_never_loaded_says_so(capsys):
    error = error_of(capsys, "generate", "a circle", "--model", "nobody/nothing")
    assert "'nobody/nothing' is no folder here and was never loaded, and HF_HUB_OFFLINE is set" in error


def _api_at(endpoint):
    from huggingface_hub import HfApi

    return lambda: HfApi(endpoint=endpoint)


def test_curves_without_scores_have_one_panel(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "eval_loss": 1.5}]
    curves(history, tmp_path / "one.png")
    curves([*history, {"step": 2, "eval_score": 0.5}], tmp_path / "two.png")
    widths = [Image.open(tmp_path / name).width for name in ("one.png", "two.png")]
    assert widths[1] == 2 * widths[0]
