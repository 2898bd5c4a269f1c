"""A complete card, for folders that a test pushes."""

from pathlib import Path

from tests.processes import ROOT


def put_card(folder: Path, **front_matter: str) -> None:
    """The card of blip3o-tiny as README.md, without its picture, and with more front matter."""
    text = (ROOT / "model_cards" / "blip3o-tiny.md").read_text()
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith("![")]
    lines[1:1] = [f"{key}: {value}\n" for key, value in front_matter.items()]
    (folder / "README.md").write_text("".join(lines))
