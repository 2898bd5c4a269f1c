"""The programs in examples/ run as they are, on a few images and for a few steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "finetune_your_images.ipynb"


@pytest.fixture
def photos(tmp_path):
    """Ten images with captions, as `imagefolder` reads them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file_name,caption"]
    for number in range(10):
        Image.new("RGB", (64, 64), (25 * number, 0, 0)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,a red sheet number {number}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return str(folder)


def run(folder, *command):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / ".hf"), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_prompts_are_drawn(tmp_path):
    printed = run(tmp_path, sys.executable, str(EXAMPLES / "text_to_image.py"), "two red circles", "a blue square")
    assert "1.png: a blue square" in printed
    assert Image.open(tmp_path / "0.png").size == Image.open(tmp_path / "1.png").size == (64, 64)


def test_a_chat_draws_and_answers(tmp_path):
    printed = run(tmp_path, sys.executable, str(EXAMPLES / "chat.py"))
    assert printed.count("> ") == 3 and list(tmp_path.glob("turn-*.png"))


def test_a_model_is_fine_tuned_and_goes_on(tmp_path, photos):
    command = [sys.executable, str(EXAMPLES / "finetune.py"), photos, "--output", "mine", "--batch-size", "2"]
    printed = run(tmp_path, *command, "--steps", "1", "--prompts", "a red sheet")
    assert "eval_loss" in printed and (tmp_path / "mine" / "samples-1.png").is_file()
    run(tmp_path, *command, "--steps", "2", "--resume")
    state = json.loads((tmp_path / "mine" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert (tmp_path / "mine" / "model_index.json").is_file()


def test_adapters_are_trained_and_drawn_with(tmp_path, photos):
    command = [sys.executable, str(EXAMPLES / "lora.py"), photos, "a red sheet"]
    run(tmp_path, *command, "--output", "style", "--steps", "1", "--batch-size", "2")
    assert Image.open(tmp_path / "style" / "picture.png").size == (64, 64)
    assert (tmp_path / "style" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.slow
def test_several_processes_train_together(tmp_path, photos):
    command = ["bash", str(EXAMPLES / "launch.sh"), "2", photos, "--output", "mine", "--steps", "1"]
    run(tmp_path, *command, "--batch-size", "2")
    assert (tmp_path / "mine" / "model_index.json").is_file()


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(cell for cell in cells() if cell["cell_type"] == "code"):
        code = re.sub(r"^STEPS = \d+", "STEPS = 1", "".join(cell["source"]), flags=re.MULTILINE)
        exec(compile(code, f"cell {number}", "exec"), names)
    assert names["pipe"]("a red ball on grey").images[0].size == (64, 64)


def test_the_notebook_is_committed_without_outputs():
    for cell in cells():
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_the_readme_lists_every_example():
    text = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.is_dir() or path.name == "README.md" or f"({path.name})" in text, path.name
