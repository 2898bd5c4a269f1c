"""The examples of docstrings run, and print what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import blip3o_hf

PACKAGE = Path(blip3o_hf.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not doctest.testmod(import_module(name)).failed
