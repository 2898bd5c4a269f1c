"""The rules of the house that no linter knows: names of files, cheap imports, documents that tell the truth."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import blip3o_hf
from blip3o_hf.assets import packaged_models

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "blip3o_hf"
ASSETS = PACKAGE / "assets"
MODULES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.md"),
        *(ROOT / "model_cards").glob("*.md"),
    ]
)
MAX_ASSET_BYTES = 10 * 1000**2
HEAVY = ("torch", "transformers", "diffusers", "datasets", "matplotlib")


def loaded_by(code):
    """Which heavy libraries a fresh interpreter has loaded after running `code`."""
    report = f"{code}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    result = subprocess.run(
        [sys.executable, "-c", report], env=environment, capture_output=True, text=True, check=True
    )
    return ast.literal_eval(result.stdout.splitlines()[-1])


# Source


def test_no_drawer_for_anything():
    names = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py", "constants.py"}
    assert not [str(path) for path in MODULES if path.name in names or path.parent.name + ".py" in names]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_images_are_opened_in_one_place():
    """Where kinds of files, numbers of pixels and broken data are looked after."""
    opening = re.compile(r"\bImage\.open\(|\bload_image\(|\bimread\(|\bImageFile\b")
    found = [str(path.relative_to(PACKAGE)) for path in MODULES if opening.search(_code(path))]
    assert found == ["data/images.py"]


def _code(path):
    """The source without texts and comments."""
    return ast.unparse(_WithoutTexts().visit(ast.parse(path.read_text())))


class _WithoutTexts(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node


def test_names_of_the_package_resolve():
    assert set(blip3o_hf.__all__) <= set(dir(blip3o_hf))
    for name in blip3o_hf.__all__:
        assert getattr(blip3o_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Blip3oPipelin'"):
        blip3o_hf.Blip3oPipelin


def test_type_checkers_see_the_same_names():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == blip3o_hf._EXPORTS


def test_version_is_that_of_the_metadata():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{blip3o_hf.__version__}"' in text
    assert f"## {blip3o_hf.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "code",
    [
        "import blip3o_hf",
        "import blip3o_hf.cli",
        "from blip3o_hf.cli import build_parser; build_parser()",
        "from blip3o_hf import packaged_model_path",
        "from blip3o_hf.objectives import check_objective",
        "from blip3o_hf.checkpoints import headers, weight_files",
        "from blip3o_hf.hub.contents import Contents",
    ],
)
def test_light_imports_stay_light(code):
    assert loaded_by(code) == []


# Packaged models


def test_packaged_models_are_small():
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert sum(sizes.values()) <= MAX_ASSET_BYTES


def test_packaged_weights_are_safetensors():
    other = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".msgpack", ".onnx"}
    assert not [str(path) for path in ASSETS.rglob("*") if path.suffix in other]


def test_every_packaged_model_has_weights_and_a_card():
    for name in packaged_models():
        assert list((ASSETS / name).rglob("*.safetensors"))
        assert (ROOT / "model_cards" / f"{name}.md").is_file()


# Documents


def test_readme_names_the_commands():
    text = (ROOT / "README.md").read_text()
    for target in ("demo", "test", "docs"):
        assert f"make {target}" in text
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines and "make test" in lines


def test_readme_snippets_use_names_that_exist():
    text = (ROOT / "README.md").read_text()
    names = {name.strip() for line in re.findall(r"from blip3o_hf import (.+)", text) for name in line.split(",")}
    assert names and names <= set(blip3o_hf.__all__)
    cli = importlib.import_module("blip3o_hf.cli")
    assert set(re.findall(r"^blip3o-hf ([\w-]+)", text, re.MULTILINE)) <= set(cli.COMMANDS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text())
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    if not packaged_models():
        missing = [link for link in missing if "model_cards/" not in link]  # the card comes with the model
    assert not missing


def test_paper_index_names_files_that_exist():
    text = (ROOT / "docs" / "paper_index.md").read_text()
    named = re.findall(r"`([\w/]+\.(?:py|yaml))`", text)
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).is_file() and not (PACKAGE / name).is_file()]


def test_constraints_pin_every_dependency_within_its_range():
    tomllib = pytest.importorskip("tomllib")
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins), "plain name==version lines only"
    pinned = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    shipped = [text for name in ("test", "dev", "demo", "browser", "docs") for text in extras[name]]
    for text in [*project["dependencies"], *shipped]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name != canonicalize_name(project["name"]):
            assert requirement.specifier.contains(pinned[name]), text
