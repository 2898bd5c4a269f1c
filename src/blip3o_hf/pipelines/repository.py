"""A pipeline as a repository: how it is written, pushed to the Hub, and which classes it is opened with."""

import inspect
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..checkpoints.headers import read_header
from ..checkpoints.weight_files import TRANSFORMERS_STEM, index_name, shard_index, weight_files
from ..checks import is_finite_number
from ..models.plain_weights import plain_parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object

PACKAGE = "blip3o_hf"
# Arguments of `save_pretrained` that are for `push_to_hub`.
PUSH_ARGUMENTS = ("repo_id", "commit_message", "private", "token", "create_pr", "license")


class Blip3oRepositoryMixin(Base):
    """What `Blip3oPipeline` adds to the saving of diffusers; the weights are stored once, for transformers too."""

    library: ClassVar[str] = PACKAGE
    """The name under which diffusers finds the classes of the parts; code that a repository carries sets another."""
    card_writer: ClassVar[Callable[[str | os.PathLike, str], None] | None] = None
    """Writes the card of a saved pipeline, given its folder and where it was loaded from; the package registers it."""
    pusher: ClassVar[Callable[..., str] | None] = None
    """Sends a saved pipeline to the Hub, as [`~hub.push.push_saved`]; the package registers it."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs,
    ) -> None:
        """
        Save every component to its subfolder, and at the root what transformers looks for: the model's config, its
        processor, and an index that points into `model/`. Weights are stored once. `model_index.json` names the
        parts that the pipeline has. A folder without a README.md gets a card; one that is there stays as it is.

        Args:
            save_directory: created if it does not exist.
            safe_serialization: a pickle is not written.
            variant: in the names of all weights, such as `"fp16"`. Variants stand beside each other in one folder.
            max_shard_size: of a file of weights, such as `"5GB"`; what is larger is written in shards.
            push_to_hub: also push the folder with its card, under the checks of `blip3o-hf push`; with `repo_id` (by
                default the folder's name), `license`, `commit_message`, `private`, `token` and `create_pr` as in
                `push_to_hub`.
            kwargs: as in diffusers.

        Raises:
            ValueError: with `safe_serialization=False`, when a part carries adapters, or when the folder must not be
                pushed.
        """
        if not safe_serialization:
            raise ValueError(
                "Pipelines are written as safetensors alone. Got safe_serialization=False. Leave the argument out."
            )
        push_arguments = {name: kwargs.pop(name) for name in PUSH_ARGUMENTS if push_to_hub and name in kwargs}
        others = {name: part for name, part in self.components.items() if name != "model"}  # which sees to its own
        with plain_parts(others, save_directory, variant):
            super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size, **kwargs)
        self.write_root(save_directory, variant)
        if self.card_writer is not None and not Path(save_directory, "README.md").exists():
            self.card_writer(save_directory, self.config.get("_name_or_path") or "")
        if push_to_hub:  # with the root, which diffusers knows nothing of
            repo_id = push_arguments.pop("repo_id", Path(save_directory).resolve().name)
            if self.pusher is None or push_arguments.get("create_pr"):
                self.push_to_hub(repo_id, variant=variant, **push_arguments)
            else:
                push_arguments.pop("create_pr", None)
                self.pusher(save_directory, repo_id, **push_arguments)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
        license: str | None = None,
    ) -> str:
        """
        Push what `save_pretrained` writes, under the checks of `blip3o-hf push`: a licence and a complete card above
        all. A card that the repository has stays; else the one that `save_pretrained` writes goes up.

        Args:
            repo_id, commit_message, private, token, variant: as in diffusers.
            create_pr, subfolder: with either, diffusers sends the files by itself, with its own card and unchecked.
            safe_serialization: a pickle is not written.
            license: id of the Hub such as `"apache-2.0"`, for the card; needed where none states it.

        Returns:
            `str`: the url of the commit.

        Raises:
            ValueError: when no licence is stated, or something else is wrong with the card; nothing is sent.
            PushError: when the Hub did not take the files.
        """
        if self.pusher is None or create_pr or subfolder is not None:
            if license is not None:
                raise ValueError(
                    f"A licence is stated in a card that this package writes; here, diffusers writes the card. Got "
                    f"license={license!r}. Leave it out; or leave out `create_pr` and `subfolder`, so that this "
                    f"package writes the card."
                )
            return super().push_to_hub(
                repo_id, commit_message, private, token, create_pr, safe_serialization, variant, subfolder
            )
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, repo_id.rpartition("/")[2])
            self.save_pretrained(folder, safe_serialization, variant)
            return self.pusher(
                folder,
                repo_id,
                takes_card=True,
                license=license,
                private=private,
                commit_message=commit_message,
                token=token,
            )

    def write_root(self, folder: str | os.PathLike, variant: str | None = None) -> None:
        """What `save_pretrained` writes besides the components: the root of a folder that holds these already."""
        root = Path(folder)
        model_index = json.loads((root / self.config_name).read_text())
        model_index = {
            name: [PACKAGE, value[1]] if isinstance(value, list) and value[0] == self.library else value
            for name, value in model_index.items()
            if value != [None, None]
        }
        (root / self.config_name).write_text(json.dumps(model_index, indent=2, sort_keys=True) + "\n")
        if self.processor is not None:
            self.processor.save_pretrained(root)
        for name in ("config.json", "generation_config.json"):
            if (root / "model" / name).is_file():
                (root / name).write_bytes((root / "model" / name).read_bytes())
        weight_map: dict[str, str] = {}
        total_size = 0
        for path in weight_files(root / "model", TRANSFORMERS_STEM, variant):
            total_size += path.stat().st_size
            weight_map |= dict.fromkeys(read_header(path), f"model/{path.name}")
        index = shard_index(weight_map, total_size)
        (root / index_name(TRANSFORMERS_STEM, variant)).write_text(json.dumps(index, indent=2) + "\n")
        forget_folders(root)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """As in diffusers; a repository that carries code (`hub/standalone.py`) is opened with that of this class."""
        settings = super()._dict_from_json_file(json_file)
        class_name = settings.get("_class_name") if isinstance(settings, dict) else None
        if isinstance(class_name, list) and len(class_name) == 2:
            file, settings["_class_name"] = class_name
            for name, value in settings.items():
                if isinstance(value, list) and value[:1] == [f"{file}_part"]:
                    settings[name] = [cls.library, value[1]]
        elif not isinstance(class_name, str):
            raise ValueError(
                f"A {cls.config_name} names the class of its pipeline. {json_file} does not. Save or download it "
                f"again."
            )
        parameters = inspect.signature(cls.__init__).parameters
        for name, value in settings.items():
            is_share = is_finite_number(value, 0) and value <= 1
            if name == "plan_top_p" and value is not None and not is_share:
                raise ValueError(
                    f"`plan_top_p` of a pipeline must be a share in (0, 1]. That of {json_file} is {value!r:.60}. "
                    f"Save or download it again."
                )
            if name.startswith("default_") and name in parameters:
                settings[name] = _typed_default(name, value, type(parameters[name].default), json_file)
        return settings


def _typed_default(name: str, value: Any, kind: type, json_file: str | os.PathLike) -> bool | int | float:
    """A default of a pipeline as the type it has; a `ValueError` where it has another, or is not finite."""
    is_fitting = is_finite_number(value) if kind is float else type(value) is kind
    if not is_fitting:
        words: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number"}
        raise ValueError(
            f"`{name}` of a pipeline must be {words[kind]}. That of {json_file} is {value!r:.60}. Save or download it "
            f"again."
        )
    return kind(value)


def forget_folders(root: str | os.PathLike) -> None:
    """Take out of the configs of a saved pipeline where on this machine its parts were loaded from."""
    for path in (Path(root, "model_index.json"), *Path(root).glob("*/config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        name = config.get("_name_or_path") or ""
        if Path(name).is_absolute() or name.count("/") > 1 or (name and Path(name).exists()):
            del config["_name_or_path"]
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


__all__ = ["Blip3oRepositoryMixin", "forget_folders"]
