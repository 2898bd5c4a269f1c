"""Model cards: what a reader of the Hub is told about a model."""

from pathlib import Path

import yaml
from huggingface_hub import ModelCard

REQUIRED_FIELDS = ("license", "library_name", "pipeline_tag", "tags")


def card_problems(folder: Path) -> list[str]:
    """
    What the card of a folder lacks, each in a sentence.

    Args:
        folder: that is to be pushed; its card is its `README.md`.
    """
    path = Path(folder) / "README.md"
    if not path.is_file():
        return [f"There is no {path}."]
    try:
        data = ModelCard.load(path).data
    except (ValueError, yaml.YAMLError) as error:
        return [f"The front matter of {path} cannot be read ({' '.join(str(error).split())})."]
    return [f"The front matter of {path} has no {name}." for name in REQUIRED_FIELDS if not data.get(name)]
