"""The embedded default: checkpoints that ship inside the package."""

from pathlib import Path

_FOLDER = Path(__file__).parent
_MODEL_FILES = ("model_index.json", "config.json", "adapter_config.json")
_IN_A_RUN = ("pipeline", "generation/pipeline")


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


def find_pipeline(folder: Path) -> Path | None:
    """The folder of a saved pipeline: this one, or where a training run leaves it below its own folder."""
    for place in (folder, *(folder / name for name in _IN_A_RUN)):
        if (place / "model_index.json").is_file():
            return place
    return None


def resolve_model(name_or_path: str) -> str:
    """
    A name of a packaged checkpoint, a folder, or an id on the Hub, to what `from_pretrained` takes.

    The folder may be that of a training run (`runs/mine`, or `runs/mine/pipeline` of a run by `finetune`): then it is
    the pipeline that the run left. `~` is the home folder.

    Raises:
        FileNotFoundError: when it is neither a packaged name, nor a folder, nor written like a Hub id.
    """
    if name_or_path in packaged_models():
        return packaged_model_path(name_or_path)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        is_model = any((path / name).is_file() for name in _MODEL_FILES)
        return str(path if is_model else find_pipeline(path) or path)
    of_run = find_pipeline(path.parent) if path.name == "pipeline" and path.parent.is_dir() else None
    if of_run is not None:
        return str(of_run)
    if name_or_path.count("/") == 1 and not name_or_path.startswith((".", "/", "~")) and not path.exists():
        return name_or_path
    raise FileNotFoundError(
        f"No model found at {name_or_path!r}. Looked for a packaged checkpoint "
        f"({', '.join(packaged_models()) or 'none'}), and for a folder {path.absolute()}. Pass one of these names, "
        f"the folder of a saved model or of a training run, or a Hub id like 'owner/name'."
    )
