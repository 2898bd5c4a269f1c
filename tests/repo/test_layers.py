"""The layer contract of setup.cfg, and that no package escapes it."""

import configparser
import re
from pathlib import Path

from importlinter.cli import lint_imports

import blip3o_hf

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "setup.cfg"


def test_imports_go_downwards_only(capsys):
    failed = lint_imports(config_filename=str(CONTRACT), no_cache=True, no_logo=True)
    assert not failed, capsys.readouterr().out


def test_every_package_has_a_layer():
    parser = configparser.ConfigParser()
    parser.read(CONTRACT)
    layers = parser["importlinter:contract:layers"]["layers"]
    named = set(re.findall(r"blip3o_hf\.(\w+)", layers))
    package = Path(blip3o_hf.__file__).parent
    present = {path.parent.name for path in package.glob("*/__init__.py")}
    assert present <= named, f"packages without a layer: {sorted(present - named)}"
