"""The embedded default: checkpoints that ship inside the package."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def packaged_models() -> list[str]:
    """Names of the checkpoints that ship inside the package."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json"))


def packaged_model_path(name: str = "blip3o-tiny") -> str:
    """
    Folder of a packaged checkpoint, for any `from_pretrained`.

    Args:
        name: one of [`packaged_models`].

    Raises:
        ValueError: when no such checkpoint ships with the package.
    """
    if name not in packaged_models():
        raise ValueError(
            f"No checkpoint of that name ships with blip3o_hf. Got {name!r}. "
            f"Available: {', '.join(packaged_models()) or 'none'}."
        )
    return str(_FOLDER / name)


def resolve_model(name_or_path: str) -> str:
    """
    A name of a packaged checkpoint, a folder, or an id on the Hub, to what `from_pretrained` takes.

    Raises:
        FileNotFoundError: when it is neither a packaged name, nor a folder, nor written like a Hub id.
    """
    if name_or_path in packaged_models():
        return packaged_model_path(name_or_path)
    path = Path(name_or_path)
    if path.is_dir():
        return str(path)
    if name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~")) and not path.exists():
        return name_or_path
    raise FileNotFoundError(
        f"No model found at {name_or_path!r}. Looked for a packaged checkpoint "
        f"({', '.join(packaged_models()) or 'none'}), and for a folder {path.absolute()}. Pass one of these names, "
        f"the folder of a saved model, or a Hub id like 'owner/name'."
    )
