"""The site has every page of the repository and every public name; `make docs` builds it, strictly."""

import importlib.util
import re
from pathlib import Path

import pytest

import blip3o_hf

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "api"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    spec = importlib.util.spec_from_file_location("collect_pages", ROOT / "docs" / "site" / "collect_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("pages")
    (folder / "old.md").write_text("of an earlier build")
    module.collect(folder)
    return folder


def test_pages_keep_their_paths_and_their_text(pages):
    assert (pages / "docs" / "notation.md").read_text() == (ROOT / "docs" / "notation.md").read_text()
    assert (pages / "docs" / "app.png").read_bytes() == (ROOT / "docs" / "app.png").read_bytes()
    assert not (pages / "old.md").exists()


def test_a_linked_source_file_is_a_page(pages):
    assert "](tiny/generation.yaml.md)" in (pages / "recipes" / "README.md").read_text()
    shown = (pages / "recipes" / "tiny" / "generation.yaml.md").read_text()
    assert (ROOT / "recipes" / "tiny" / "generation.yaml").read_text() in shown


def test_links_of_the_site_lead_somewhere(pages):
    for page in pages.rglob("*.md"):
        links = re.findall(r"\]\(([^)#\s:]+)[)#]", page.read_text())
        assert not [link for link in links if not (page.parent / link).is_file()], page


def test_every_page_has_a_place_in_the_site(pages):
    named = (ROOT / "mkdocs.yml").read_text()
    written = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    sources = {name for name in written if (ROOT / name).suffix == ".md" and not (ROOT / name).is_file()}
    assert not [name for name in written - sources if name not in named]


def test_reference_has_every_public_name():
    documented = re.findall(
        r"^::: blip3o_hf\.(\w+)$", "\n".join(page.read_text() for page in REFERENCE.glob("*.md")), re.MULTILINE
    )
    assert sorted(documented) == sorted(set(blip3o_hf.__all__) - {"__version__"})


def test_reference_names_what_exists():
    for page in REFERENCE.glob("*.md"):
        for name in re.findall(r"^::: ([\w.]+)\.(\w+)$", page.read_text(), re.MULTILINE):
            assert getattr(importlib.import_module(name[0]), name[1]).__doc__
