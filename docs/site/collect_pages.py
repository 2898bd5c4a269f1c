"""Collects the pages of the site: `python docs/site/collect_pages.py build/pages`.

A page keeps its path in the repository, so one and the same link works on GitHub and in the site. `PAGES` are Markdown
files inside and outside of docs/. A source file to which a page links becomes a page that shows its text; an image, or
any other file, is copied.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("*.md", "docs/**/*.md", "recipes/**/*.md", "model_cards/*.md", "examples/*.md", "benchmarks/*.md")
STYLE = "docs/site/wide.css"
LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "bash", ".json": "json"}
LINK = re.compile(r"(?<=\]\()(?P<path>[^)#\s:]+)(?=[)#])")


def collect(folder: Path) -> None:
    """Writes all pages, and what they link to, into a folder; what was in it is deleted."""
    shutil.rmtree(folder, ignore_errors=True)
    write(folder / STYLE, (ROOT / STYLE).read_bytes())
    for page in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        text = page.read_text()
        for target in {linked_file(page, link["path"]) for link in LINK.finditer(text)} - {None}:
            if target.suffix in LANGUAGES:
                name = target.relative_to(ROOT).as_posix()
                shown = f"# {name}\n\n````{LANGUAGES[target.suffix]}\n{target.read_text()}````\n"
                write(folder / f"{name}.md", shown)
            elif target.suffix != ".md":
                write(folder / target.relative_to(ROOT), target.read_bytes())
        write(folder / page.relative_to(ROOT), LINK.sub(lambda link, page=page: site_link(page, link["path"]), text))


def linked_file(page: Path, link: str) -> Path | None:
    """The file of the repository at which a link of this page aims; `None` where there is none, or it is a folder."""
    path = (page.parent / link).resolve()
    return path if path.is_relative_to(ROOT) and path.is_file() else None


def site_link(page: Path, link: str) -> str:
    """The same link in the site: to the page that shows a source file, in place of the file."""
    target = linked_file(page, link)
    return link + ".md" if target is not None and target.suffix in LANGUAGES else link


def write(path: Path, content: str | bytes) -> None:
    """Writes a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
