"""The committed manifests are made again by their commands."""

from pathlib import Path

import pytest

from blip3o_hf.assets import packaged_model_path
from blip3o_hf.cli import main
from blip3o_hf.evaluation.manifests import Manifest, model_hash

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "examples" / "manifests").glob("*.json"))


def test_there_are_three():
    assert len(MANIFESTS) >= 3


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_each_is_of_the_packaged_model(path):
    assert Manifest.read(path).inputs["model"] == model_hash(packaged_model_path())


@pytest.mark.slow
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_each_regenerates(path, monkeypatch, capsys):
    """Equal to the bit on the machine that wrote it; another processor may round otherwise."""
    monkeypatch.chdir(ROOT)
    assert main(["regenerate", str(path), "--tolerance", "0.02"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(("equal", "differs within tolerance"))
