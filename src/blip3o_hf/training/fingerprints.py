"""
What cached features and conditions depend on, as short fingerprints, so that those of another model are never used.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import PreTrainedConfig

from ..checkpoints.weight_files import weight_files
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor

SAMPLES = 4096
ENCODER_FILES = ("config.json", "preprocessor_config.json")
# Keys of saved configs that say how a file was written, not what it means.
INCIDENTAL = ("architectures", "dtype", "torch_dtype", "transformers_version")


def digest(parts: Iterable[bytes]) -> bytes:
    """Eight bytes that stand for these parts in this order."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Of a config, without what changes from one saving to the next."""

    def essential(value):
        if isinstance(value, Mapping):
            kept = {str(key): item for key, item in value.items() if key not in INCIDENTAL}
            return {key: essential(item) for key, item in sorted(kept.items()) if not key.startswith("_")}
        return value

    return digest([json.dumps(essential(settings), default=str).encode()]).hex()


def tensors_digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """
    Of named tensors: names, shapes, and at most 8192 values of each, evenly spread.

    Training changes every value of a tensor, so a sample tells two models apart without reading gigabytes.
    """

    def parts():
        for name, tensor in tensors:
            sample = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // SAMPLES)]
            yield f"{name} {list(tensor.shape)}".encode()
            yield sample.float().cpu().numpy().tobytes()

    return digest(parts()).hex()


def _saved_tensors(folder: Path) -> Iterable[tuple[str, torch.Tensor]]:
    for path in weight_files(folder):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                yield name, file.get_tensor(name)


def encoder_fingerprint(source: str, subfolder: str) -> dict[str, str]:
    """
    Of a target encoder, from its files alone; it is not loaded.

    Args:
        source, subfolder: as in [`~models.target_encoder.load_target_encoder`].
    """
    folder = (
        Path(source)
        if Path(source).is_dir()
        else Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
    )
    if (folder / subfolder).is_dir():
        folder = folder / subfolder
    files = {name: folder / name for name in ENCODER_FILES if (folder / name).is_file()}
    return {
        "weights of the target encoder": tensors_digest(_saved_tensors(folder)),
        **{
            f"{name} of the target encoder": settings_digest(json.loads(path.read_bytes()))
            for name, path in files.items()
        },
    }


def condition_fingerprint(model: Blip3oForConditionalGeneration, processor: Blip3oProcessor) -> dict[str, str]:
    """Of everything between a prompt and its condition."""
    vocabulary = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    backbone_config = model.config.backbone_config
    assert isinstance(backbone_config, PreTrainedConfig)  # the config has read it
    for state in ("padding", "truncation"):  # of the last call
        vocabulary.pop(state, None)
    return {
        "weights of the backbone": tensors_digest(model.backbone.state_dict().items()),
        "weights of the queries": tensors_digest(model.queries.state_dict().items()),
        "config of the backbone": settings_digest(backbone_config.to_dict()),
        "processor": settings_digest({**processor.to_dict(), "chat_template": processor.chat_template}),
        "tokenizer": digest([json.dumps(vocabulary).encode()]).hex(),
    }
