"""What a folder of weights or features holds, found only from its configs and the headers of its files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ..checkpoints.headers import read_header
from ..checkpoints.weight_files import weight_files
from ..reading import read_json

_TAGS = ("blip3o", "text-to-image", "image-text-to-text", "any-to-any", "diffusers", "transformers")


@dataclass
class Part:
    """A row of the table of parts."""

    name: str
    architecture: str
    num_parameters: int


@dataclass
class Contents:
    """
    What a folder holds.

    Args:
        kind: `pipeline`, `model` (of a BLIP3-o), `adapter`, `decoder` (a pipeline of its own), or another `part`.
        library, pipeline_tag, tags: as the Hub knows them.
        has_processor, has_decoder: of a pipeline: whether it reads prompts, and gives pixels.
        module, class_name: where the class of a part is imported from.
        parts: what has weights.
        dtypes: of what is stored, as safetensors names them.
        num_bytes: of all files of weights.
    """

    kind: str = "part"
    library: str = "blip3o_hf"
    pipeline_tag: str = "text-to-image"
    tags: list[str] = field(default_factory=lambda: list(_TAGS))
    has_processor: bool = False
    has_decoder: bool = False
    module: str = ""
    class_name: str = ""
    parts: list[Part] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    num_bytes: int = 0

    @classmethod
    def of(cls, folder: Path) -> "Contents":
        """
        Look into a folder.

        Raises:
            FileNotFoundError: when it holds no config of a pipeline, a model or an adapter.
        """
        if (folder / "model_index.json").is_file():
            index = _settings(folder / "model_index.json")
            pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
            components = {name: class_name for name, (_, class_name) in pairs.items() if isinstance(class_name, str)}
            if index.get("_class_name") == "Blip3oDecoderPipeline":
                found = cls("decoder", pipeline_tag="image-to-image", tags=["blip3o", "diffusers"])
            else:
                found = cls("pipeline", has_processor="processor" in components)
                found.has_decoder = bool({"decoder", "unet"} & components.keys())
            for name, class_name in components.items():
                found._add(folder / name, name, class_name)
            found._add(folder / "target_encoder", "target encoder", "")
            return found
        if (folder / "adapter_config.json").is_file():
            found = cls("adapter", tags=[*_TAGS, "lora", "peft"])
            config = _settings(folder / "adapter_config.json")
            found._add(folder, "adapter", f"LoRA, rank {config.get('r')}", "adapter_model")
            return found
        config = _settings(folder / "config.json")
        if not config:
            raise FileNotFoundError(
                f"A card describes weights. {folder} holds no model_index.json, adapter_config.json or config.json. "
                f"Name the folder of a saved pipeline, model or adapter."
            )
        if config.get("model_type") == "blip3o":
            found = cls("model")
        elif "_class_name" in config:
            found = cls(pipeline_tag="image-to-image", tags=["blip3o", "diffusers"], class_name=config["_class_name"])
            found.module = "blip3o_hf" if found.class_name.startswith("Blip3o") else "diffusers"
        else:
            found = cls(pipeline_tag="image-feature-extraction", tags=["blip3o", "transformers"])
            found.class_name = (config.get("architectures") or ["AutoModel"])[0]
            found.module = "blip3o_hf" if found.class_name.startswith("EvaClip") else "transformers"
            if (folder / "chat_template.jinja").is_file():
                found.pipeline_tag = "image-text-to-text"
        if found.module and found.module != "blip3o_hf":
            found.library = found.module
        found._add(folder, "model", found.class_name)
        return found

    def _add(self, folder: Path, name: str, class_name: str, stem: str | None = None) -> None:
        """Count what is stored in a folder, in files of this stem or in all; the parts of a BLIP3-o one by one."""
        sizes: dict[str, int] = {}
        for path in weight_files(folder, stem):
            self.num_bytes += path.stat().st_size
            for key, tensor in read_header(path).items():
                sizes[key] = math.prod(tensor.shape)
                self.dtypes.add(tensor.dtype)
        if not sizes:
            return
        config = _settings(folder / "config.json")
        if config.get("model_type") != "blip3o":
            architecture = class_name or " ".join(config.get("architectures") or [])
            self.parts.append(Part(name, architecture, sum(sizes.values())))
            return
        totals: dict[str, int] = {}
        for key, number in sizes.items():
            part = key.partition(".")[0]
            totals[part] = totals.get(part, 0) + number
        self.parts += [Part(part, _architecture(part, config), number) for part, number in totals.items()]

    @property
    def stored_as(self) -> str:
        """Names of all dtypes."""
        names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
        return " and ".join(sorted(names.get(dtype, dtype) for dtype in self.dtypes)) or "no weights"

    @property
    def size(self) -> str:
        """Of all files of weights, in MB or GB of powers of ten."""
        return f"{self.num_bytes / 1e9:.1f} GB" if self.num_bytes >= 1e9 else f"{self.num_bytes / 1e6:.1f} MB"


def _architecture(part: str, config: Mapping[str, Any]) -> str:
    """One line about a part of a BLIP3-o, as far as its config says it."""
    if part == "backbone":
        backbone = config.get("backbone_config", {})
        text = backbone.get("text_config", backbone)
        sizes = (("wide", "hidden_size"), ("layers", "num_hidden_layers"), ("tokens in the vocabulary", "vocab_size"))
        return _line(backbone.get("model_type", ""), text, sizes)
    if part == "queries":
        return f"{config['num_queries']} query tokens"
    if part == "transformer":
        sizes = (("wide", "dim"), ("layers", "num_layers"), ("heads", "num_attention_heads"))
        tokens = f", {config['feature_size'] ** 2} tokens of {config['feature_dim']} channels"
        return _line("Next-DiT", config.get("transformer_config") or {}, sizes) + tokens
    return f"linear, to {config['feature_dim']} channels"


def _line(name: str, config: Mapping[str, Any], sizes: Sequence[tuple[str, str]]) -> str:
    known = [f"{config[key]:,} {what}" for what, key in sizes if isinstance(config.get(key), int)]
    return f"{name}: {', '.join(known)}" if known else name


@dataclass(frozen=True)
class Features:
    """
    One kind of precomputed features in a folder.

    Args:
        kind: such as `targets`.
        num_records: that have a row.
        num_rows: of different content.
        shape: of a row; empty where there is none.
        dtype: on disk.
        made_by: what the rows depend on, by name.
    """

    kind: str
    num_records: int
    num_rows: int
    shape: tuple[int, ...]
    dtype: str
    made_by: Mapping[str, Any]

    @property
    def row(self) -> str:
        """Of the table in a card."""
        sizes = f"{self.num_records:,} | {self.num_rows:,} | {' x '.join(map(str, self.shape))}"
        return f"| {self.kind} | {sizes} | {self.dtype} |"

    @property
    def fingerprint(self) -> list[str]:
        """Lines of a card."""
        return [f"- {name}: {value}" for name, value in self.made_by.items()]

    @classmethod
    def of(cls, folder: Path) -> list["Features"]:
        """All kinds that a folder holds; none where it is not one that `blip3o-hf precompute` wrote."""
        manifest = _settings(folder / "manifest.json")
        if not isinstance(manifest, dict):
            return []
        indices = {kind: folder / f"index-{kind}.safetensors" for kind in manifest}
        return [cls._read(index, kind, manifest[kind]) for kind, index in indices.items() if index.is_file()]

    @classmethod
    def _read(cls, index: Path, kind: str, entry: Mapping[str, Any]) -> "Features":
        with safe_open(index, "np") as file:
            num_records, num_rows = (file.get_slice(name).get_shape()[0] for name in ("addresses", "contents"))
            names = json.loads(file.metadata()["names"])
        shape: tuple[int, ...] = ()
        for name in names:
            with safe_open(index.with_name(name), "np") as file:
                shape = tuple(file.get_slice("values").get_shape()[1:])
            if shape:  # a shard of links alone has no rows
                break
        return cls(kind, num_records, num_rows, shape, entry.get("dtype", ""), entry.get("fingerprint", {}))


def _settings(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
