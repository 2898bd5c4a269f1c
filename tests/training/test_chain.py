"""A chain runs its stages in order, once each, goes on after a kill, and tells what each took."""

import json
import sys
from types import SimpleNamespace

import pytest
import yaml

from blip3o_hf.cli import main
from blip3o_hf.training.chain import Summary, load_chain, table

RECIPES = {
    "first": {"stage": "encoder", "output_dir": "runs/a/first"},
    "second": {"stage": "decoder", "output_dir": "runs/a/second", "inputs": {"encoder": "runs/a/first"}},
}


@pytest.fixture
def chain(tmp_path):
    for name, recipe in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    stages = [
        {"recipe": "first.yaml", "short": ["training.max_steps=2"]},
        {"recipe": "second.yaml", "show": "overall"},
    ]
    path = tmp_path / "chain.yaml"
    path.write_text(yaml.safe_dump({"folder": "runs/a", "stages": stages}))
    return path


def summary(stage, **scores):
    return Summary(stage, f"{stage}.yaml", 2000, 32, 100.4, 190.0, 2, scores)


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """The commands that a chain gave; each leaves what its stage would, unless told to fail."""
    given, fails = [], []

    def run(command):
        given.append(command[command.index("train") + 1 :])
        if fails:
            return fails.pop()
        folder = next(word.partition("=")[2] for word in command if word.startswith("output_dir="))
        (tmp_path / folder).mkdir(parents=True)
        summary("encoder" if folder.endswith("first") else "decoder", overall=0.5).write(tmp_path / folder)
        return 0

    monkeypatch.setattr("blip3o_hf.training.chain.run_command", run)
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(given=given, fails=fails)


def test_stages_run_in_order_in_the_folder_given_and_the_table_tells_of_them(chain, commands, capsys):
    assert main(["chain", str(chain), "--output", "out", "--threads", "1", "data.seed=3"]) == 0
    (first, second), printed = commands.given, capsys.readouterr().out
    assert first == [str(chain.parent / "first.yaml"), "output_dir=out/first", "data.seed=3", "--threads", "1"]
    assert set(second[1:3]) == {"output_dir=out/second", "inputs.encoder=out/first"}
    assert "stage 2 of 2" in printed
    assert "| decoder | `decoder.yaml` | 2,000 steps of 32 | 100 s | 190 s | 2 | overall 0.500 |" in printed
    assert "| all |  |  | 201 s | 380 s |  |  |" in printed


def test_a_short_run_has_settings_and_a_folder_of_its_own(chain, commands):
    assert main(["chain", str(chain), "--short"]) == 0
    assert commands.given[0][1:] == ["training.max_steps=2", "output_dir=runs/a-short/first"]


def test_a_finished_stage_is_not_run_again_and_an_interrupted_one_goes_on(chain, commands, capsys, tmp_path):
    commands.fails.append(137)
    assert main(["chain", str(chain), "--output", "out"]) == 137
    assert "Give the same command again to go on." in capsys.readouterr().out
    checkpoint = tmp_path / "out/first/checkpoints/checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").touch()
    # What the stage left is in the way of the stand-in, which makes the folder.
    commands.given.clear()
    with pytest.raises(FileExistsError):
        main_raising(chain)
    assert commands.given[0][-1] == "--resume"
    summary("encoder").write(tmp_path / "out/first")
    commands.given.clear()
    assert main(["chain", str(chain), "--output", "out"]) == 0
    assert [command[0] for command in commands.given] == [str(chain.parent / "second.yaml")]


def main_raising(chain):
    """The command, whose errors of the system the command line would print."""
    from blip3o_hf.cli import build_parser

    arguments = build_parser().parse_args(["chain", str(chain), "--output", "out"])
    return arguments.run(arguments)


def test_what_a_stage_took_is_read_back(tmp_path):
    one = summary("generation", overall=0.97, counting=0.9)
    one.write(tmp_path)
    assert Summary.read(tmp_path) == one and Summary.read(tmp_path / "none") is None
    assert json.loads((tmp_path / "summary.json").read_text())["scores"]["counting"] == 0.9
    assert one.times == "100 s of wall time, 190 s of CPU time"
    assert table([one], [""]).splitlines()[2].endswith("| 2 |  |")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stages: []", "A chain lists its `stages`"),
        ("- a", "A chain lists its `stages`"),
        ("{folder: a, stages: [{recipe: b}], stage: c}", "Unknown key 'stage' in .*Did you mean 'stages'"),
        ("{folder: a, stages: [{recip: b}]}", r"Unknown key 'recip' in .stages.0.\. Did you mean 'recipe'"),
    ],
)
def test_what_is_no_chain_is_refused(tmp_path, content, message):
    path = tmp_path / "chain.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_chain(path)
    with pytest.raises(FileNotFoundError, match=r"A chain is a YAML file\. There is none at"):
        load_chain(tmp_path / "none.yaml")


def test_a_stage_is_run_by_this_python(chain, commands, monkeypatch):
    seen = []
    monkeypatch.setattr("blip3o_hf.training.chain.run_command", lambda command: seen.append(command) or 1)
    assert main(["chain", str(chain)]) == 1
    assert seen[0][:4] == [sys.executable, "-m", "blip3o_hf.cli", "train"]
