"""Files of a diffusion decoder: the folders of its UNet, VAE and scheduler, and which of their weights to read."""

import os
import re
from collections.abc import Collection
from pathlib import Path

from huggingface_hub import snapshot_download

from .headers import StoredTensor
from .lookup import DOWNLOAD_ARGUMENTS, LocalFiles, checkpoint_files
from .published_names import PUBLISHED_DECODER
from .settings import read_settings
from .stored_weights import read_tensors
from .weight_files import DIFFUSERS_STEM, index_name, weight_files

CONFIG_FILES = {"unet": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
_WEIGHTS = re.compile(rf"{DIFFUSERS_STEM}(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_PREFERRED_VARIANTS = ("bf16", "fp16")


def has_decoder(source: str | os.PathLike, **kwargs) -> bool:
    """
    Whether there is any part of a diffusion decoder.

    Args:
        source: folder or Hub id.
        kwargs: arguments of `from_pretrained` that say where to look.
    """
    files = checkpoint_files(source, **kwargs)
    return any(files.path(f"{name}/{config}") for name, config in CONFIG_FILES.items())


def local_decoder(
    source: str | os.PathLike,
    subfolder: str | None = None,
    parts: Collection[str] = tuple(CONFIG_FILES),
    variant: str | None = None,
    **kwargs,
) -> Path:
    """
    The folder on this machine that holds a decoder; from the Hub, nothing but configs and safetensors is fetched.

    Args:
        source: folder or Hub id.
        subfolder: where in it the decoder lies.
        parts: which of `unet`, `vae` and `scheduler` are needed.
        variant: of the weights, for the Hub; by default all are fetched.
        kwargs: arguments of `from_pretrained` that say how to download.

    Raises:
        ValueError: when the config of a part is missing or damaged.
    """
    folder = Path(source)
    if not folder.is_dir():
        if str(source).count("/") != 1 or str(source).startswith((".", "/")):
            raise ValueError(
                f"A decoder comes from a folder or from the Hub. Got {str(source)!r}, which is no folder here and no "
                f"Hub id (owner/name). Check the path."
            )
        weights = ["*.safetensors"]
        if variant is not None:
            weights = [f"*.{variant}.safetensors", f"*.{variant}-*.safetensors"]
        prefix = f"{subfolder}/" if subfolder else ""
        patterns = [f"{prefix}{part}/{pattern}" for part in parts for pattern in ("*.json", *weights)]
        options = {name: kwargs[name] for name in DOWNLOAD_ARGUMENTS if name in kwargs}
        folder = Path(snapshot_download(str(source), allow_patterns=patterns, **options))
    folder = folder / subfolder if subfolder else folder
    configs = [f"{part}/{CONFIG_FILES[part]}" for part in parts]
    absent = [config for config in configs if not (folder / config).is_file()]
    if absent:
        raise ValueError(
            f"A decoder must have {', '.join(f'{name}/{file}' for name, file in CONFIG_FILES.items())}. {folder} "
            f"lacks {', '.join(absent)}. Name the folder that holds these parts (in a published checkpoint it is "
            f"`{PUBLISHED_DECODER}`), or pass the part: from_pretrained(folder, {absent[0].split('/')[0]}=...)."
        )
    for config in configs:
        read_settings(folder / config)
    return folder


def decoder_weights(folder: Path, variant: str | None = None) -> tuple[str | None, dict[str, StoredTensor]]:
    """
    The variant of the weights of a UNet or VAE to load, and its tensors.

    Args:
        folder: of the model, such as `diffusion-decoder/unet`.
        variant: the one asked for. By default files without a variant; where there are none, `bf16`, then `fp16`,
            then the first in alphabetical order.

    Raises:
        ValueError: when there are no such safetensors, or one is damaged or missing.
    """
    variant = _choose_variant(folder, variant)
    tensors = read_tensors(LocalFiles(folder), stem=DIFFUSERS_STEM, variant=variant)
    if tensors is None:
        raise ValueError(
            f"Shards need an index that names the file of every tensor. {folder} has none for "
            f"{f'the variant {variant}' if variant else 'the files without a variant'}: "
            f"{index_name(DIFFUSERS_STEM, variant)}. Download it."
        )
    return variant, tensors


def _choose_variant(folder: Path, variant: str | None) -> str | None:
    """The variant of the weights in `folder` to load; `None` for files without one."""
    names = [path.name for path in weight_files(folder)]
    available = {match["variant"] for match in map(_WEIGHTS.fullmatch, names) if match}
    if not available:
        pickles = sorted(path.name for path in folder.iterdir() if path.name.endswith(_PICKLES))
        found = f"only {', '.join(pickles)}, and loading a pickle can run any code" if pickles else "no weights"
        raise ValueError(
            f"Weights must be safetensors files ({DIFFUSERS_STEM}.safetensors). {folder} has {found}. Convert or "
            f"download the safetensors files."
        )
    if variant is not None and variant not in available:
        raise ValueError(
            f"`variant` must name weight files that exist. Got {variant!r}; {folder} has "
            f"{', '.join(sorted(name or 'files without a variant' for name in available))}. Leave it out to take "
            f"what is there."
        )
    order = [None, *_PREFERRED_VARIANTS, *sorted(name for name in available if name)]
    return variant or next(name for name in order if name in available)


__all__ = ["CONFIG_FILES", "decoder_weights", "has_decoder", "local_decoder"]
