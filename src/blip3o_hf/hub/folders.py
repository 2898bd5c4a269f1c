"""What a folder is, and whether it may be shared: a push sends what is finished, safe to open and free of secrets."""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError, safe_open

from ..files import is_inside
from ..reading import read_json
from .cards import CARD, card_problems
from .secret_scan import PICKLES, SECRET_NAMES, has_secret, is_pickle

KINDS = {
    "pipeline": "model",
    "model": "model",
    "LoRA": "model",
    "processor": "model",
    "features": "dataset",
}
"""What a folder can be, and the type of the repository that holds such folders."""

_LEFT_OUT = (".git", ".cache", ".DS_Store", "__pycache__")
_ALLOWED_HIDDEN = (".gitattributes",)
_UNFINISHED = re.compile(r"(\.(incomplete|tmp|temp|part|partial|lock)|~)$")
_TRAINING_STATE = re.compile(
    r"(^|/)(checkpoint-\d+/|global_step\d+/|optimizer[^/]*$|scheduler\.(pt|bin)$|scaler\.pt$|rng_state[^/]*$"
    r"|random_states[^/]*$|trainer_state\.json$|training_args\.bin$|[^/]*\.distcp$)"
)
_MODEL_INDEX = "model_index.json"
_MANIFEST = "manifest.json"
_NAMED_AT_MOST = 5


@dataclass(frozen=True)
class PushFile:
    """
    Args:
        path: relative to the folder, and in the repository, with `/`.
        size: in bytes.
    """

    path: str
    size: int


@dataclass(frozen=True)
class PushFolder:
    """
    A folder that may be shared.

    Args:
        folder: where it lies.
        kind: one of [`KINDS`].
        files: all that goes up, in this order: weights, settings, what names other files, and the card. Whoever reads
            the repository between two commits never meets a file that names a missing one.
    """

    folder: Path
    kind: str
    files: tuple[PushFile, ...]

    @property
    def repo_type(self) -> str:
        """`"model"` or `"dataset"`."""
        return KINDS[self.kind]

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size for file in self.files)


def read_folder(folder: str | os.PathLike, token: str | None = None) -> PushFolder:
    """
    Find out what a folder is and check that it may be shared. Nothing is sent.

    Args:
        folder: what `save_pretrained`, `save_lora`, PEFT or a command wrote (`train`, `convert`, `export`,
            `precompute`), with a card (`README.md`).
        token (*optional*): one that must not stand in any file; those of well-known form are found without it.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when the folder is nothing this package writes, lacks weights, files or card, or holds what must
            not be shared.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"A push needs a folder. There is none at {folder}. Pass the folder of a saved model.")
    files = _files(folder)
    names = {file.path for file in files}
    for is_forbidden, contract, way_out in _FORBIDDEN:
        _refuse(folder, names, is_forbidden, contract, way_out)
    kind = _kind(folder, names)
    if kind is None:
        raise ValueError(_unknown(folder, names))
    _refuse_incomplete(folder, names, kind)
    _refuse_damaged(folder, names)
    _refuse_contents(folder, names, token)
    if problems := card_problems(folder):
        pushed = kind if KINDS[kind] == "model" else KINDS[kind]
        raise ValueError(
            f"A pushed {pushed} needs a card that says what it is. {' '.join(problems)} Complete it and push again."
        )
    return PushFolder(folder, kind, tuple(sorted(files, key=lambda file: (_rank(file.path), file.path))))


def _files(folder: Path) -> list[PushFile]:
    files = []
    for directory, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        parent = Path(directory)
        linked = [name for name in folders if (parent / name).is_symlink()]
        broken = [name for name in names if not (parent / name).is_file()]
        if linked or broken:
            path = (parent / [*linked, *broken][0]).relative_to(folder)
            raise ValueError(
                f"A pushed folder must hold its files itself. {folder}/{path} is a link to a folder or to nothing. "
                f"Copy what it points to into its place."
            )
        for name in names:
            if name not in _LEFT_OUT:
                path = parent / name
                _refuse_outside(path, folder)
                files.append(PushFile(path.relative_to(folder).as_posix(), path.stat().st_size))
    return files


def _refuse_outside(path: Path, folder: Path) -> None:
    """A link may point into the folder, or into the cache of the Hub, where every file of a download is one."""
    if not path.is_symlink():
        return
    if not is_inside(path, [folder, HF_HUB_CACHE]):
        raise ValueError(
            f"A pushed folder must hold its files itself. {path} is a link to {path.resolve()}, outside of it. "
            f"If that is to be shared, copy it into its place; if not, delete the link."
        )


def _rank(path: str) -> int:
    """The place of a file in the order of upload."""
    name = path.rpartition("/")[2]
    if path == CARD:
        return 3
    if name.endswith(".index.json") or name in (_MODEL_INDEX, _MANIFEST) or name.startswith("index-"):
        return 2
    return 0 if name.endswith(".safetensors") else 1


def _kind(folder: Path, names: set[str]) -> str | None:
    has_weights = any(name.endswith(".safetensors") for name in names)
    if _MODEL_INDEX in names and has_weights:
        return "pipeline"
    if _MANIFEST in names and any(f"index-{kind}.safetensors" in names for kind in _json(folder / _MANIFEST)):
        return "features"
    at_root = {name for name in names if name.endswith(".safetensors") and "/" not in name}
    adapters = {name for name in at_root if _is_adapter(folder / name)}
    if "config.json" in names and (at_root - adapters or "model.safetensors.index.json" in names):
        return "model"
    if adapters:
        return "LoRA"
    if names & {"processor_config.json", "preprocessor_config.json"} and not has_weights:
        return None if "config.json" in names else "processor"
    return None


def _is_adapter(path: Path) -> bool:
    with _opened(path) as file:
        return any(".lora_" in key for key in file.keys())  # noqa: SIM118 (it is no dictionary)


def _json(path: Path) -> dict:
    try:
        content = read_json(path)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"A settings file must hold one JSON object. {path} does not. Save it again.")
    return content


def _unknown(folder: Path, names: set[str]) -> str:
    inside = sorted(name.rpartition("/")[0] for name in names if name.endswith(f"/{_MODEL_INDEX}"))
    hint = (
        f"There is a pipeline in {folder / inside[0]}: push that." if inside else "Pass what `save_pretrained` wrote."
    )
    return (
        f"A push takes the folder of a pipeline, model, LoRA, processor, or of precomputed features, with its weights "
        f"as safetensors. {folder} is none of them: it holds {_listed(names) or 'nothing'}. {hint}"
    )


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(names[:_NAMED_AT_MOST]) + more


def _refuse(folder: Path, names: set[str], is_bad: Callable[[str], object], contract: str, way_out: str) -> None:
    bad = [name for name in names if is_bad(name)]
    if bad:
        raise ValueError(f"{contract} {folder} holds {_listed(bad)}. {way_out}")


def _is_unfinished(name: str) -> bool:
    hidden = [part for part in name.split("/") if part.startswith(".") and part not in _ALLOWED_HIDDEN]
    return bool(_UNFINISHED.search(name) or hidden)


# What no pushed folder may hold, by name: a test, the contract and the way out.
_FORBIDDEN: tuple[tuple[Callable[[str], object], str, str], ...] = (
    (
        _is_unfinished,
        "A pushed folder must hold finished files alone, and no hidden ones.",
        "Delete what a process that ended early left there, or move it elsewhere.",
    ),
    (
        _TRAINING_STATE.search,
        "A push shares a model, not the state of its training.",
        "Push the folder that the run left for use, such as pipeline/, or a copy without this state.",
    ),
    (
        PICKLES.search,
        "Weights are shared as safetensors alone, since a pickle can run any program on its reader's machine.",
        "Save the model again with `save_pretrained`, and push that folder.",
    ),
    (
        SECRET_NAMES.search,
        "A pushed folder must hold no keys, tokens or passwords.",
        "Move it elsewhere. If it is not a secret, rename it.",
    ),
)


def _refuse_contents(folder: Path, names: set[str], token: str | None) -> None:
    """What no file may hold, whatever it is called."""
    _refuse(
        folder,
        names,
        lambda name: is_pickle(folder / name),
        "A pickle can run any program on its reader's machine, so none is shared, under whatever name.",
        "Delete it, or save what it holds as safetensors or JSON.",
    )
    _refuse(
        folder,
        names,
        lambda name: has_secret(folder / name, name, token),
        "No pushed file may hold a key or a token.",
        "Something in it, or its name, looks like one: remove it, and revoke it if others could read the file.",
    )


def _refuse_incomplete(folder: Path, names: set[str], kind: str) -> None:
    """What indices and manifests name must be there, and a run's pipeline is not beside its model."""
    if f"pipeline/{_MODEL_INDEX}" in names:
        raise ValueError(
            f"Weights are shared once. {folder} holds a pipeline beside its own weights. Push {folder / 'pipeline'}."
        )
    for index in sorted(name for name in names if name.endswith(".safetensors.index.json")):
        parent = index.rpartition("/")[0]
        named = {f"{parent}/{file}".lstrip("/") for file in set(_json(folder / index).get("weight_map", {}).values())}
        _require(named, names, folder, index)
    if kind == "pipeline":
        model_index = _json(folder / _MODEL_INDEX)
        pipeline_class = model_index.pop("_class_name", None)
        if isinstance(pipeline_class, list):  # the repository carries its code
            _require({f"{pipeline_class[0]}.py"}, names, folder, _MODEL_INDEX)
        parts = {name for name, value in model_index.items() if isinstance(value, list) and value[1]}
        present = {name.partition("/")[0] for name in names if "/" in name}
        _require(parts, present, folder, _MODEL_INDEX)
        models = {name.partition("/")[0] for name in names if name.count("/") == 1 and name.endswith("/config.json")}
        weighed = {name.partition("/")[0] for name in names if name.endswith(".safetensors") and "/" in name}
        _require({f"{part}/*.safetensors" for part in parts & models - weighed}, set(), folder, _MODEL_INDEX)
    if kind == "features":
        for computed in _json(folder / _MANIFEST):
            index = f"index-{computed}.safetensors"
            _require({index}, names, folder, _MANIFEST)
            with _opened(folder / index) as file:
                _require(json.loads((file.metadata() or {}).get("names", "[]")), names, folder, index)


def _require(named: Iterable[str], names: set[str], folder: Path, source: str) -> None:
    missing = set(named) - names
    if missing:
        raise ValueError(
            f"A pushed folder must hold every file that it names. {folder / source} names {_listed(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} not there. Save or download it again."
        )


def _refuse_damaged(folder: Path, names: set[str]) -> None:
    for name in sorted(names):
        if name.endswith(".safetensors"):
            with _opened(folder / name):
                pass


def _opened(path: Path):
    try:
        return safe_open(path, "np")
    except SafetensorError as error:
        raise ValueError(
            f"Pushed weights must be whole safetensors files. {path} is not ({error}). Save or download it again."
        ) from error
