"""Features of pictures for distances between sets: extractors by name, and your own."""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, AutoModel, CLIPVisionModelWithProjection

from ..checkpoints.loading import load_complete
from ..checks import find_function, unknown_name
from ..hub.provenance import public_name
from ..hub.reach import check_reachable
from ..models.target_encoder import crop, extract_features, load_target_encoder, normalize, stack_images

Extract = Callable[[Sequence[Image.Image]], Any]
CMMD_CLIP = "openai/clip-vit-large-patch14-336"
FD_DINOV2 = "facebook/dinov2-large"


@dataclass(frozen=True)
class Extractor:
    """
    What gives the features of pictures.

    Args:
        name: a key of [`EXTRACTORS`], or `module:function`.
        about: what the features are, in a sentence.
        extract: takes RGB pictures, and gives their features `[N, D]` as an array or a tensor.
        settings: what the features depend on, the weights among it; they are written beside a distance.
    """

    name: str
    about: str
    extract: Extract
    settings: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """
        Features `[N, D]` in float32.

        Raises:
            ValueError: when they are no such array.
        """
        features = self.extract(images)
        if isinstance(features, torch.Tensor):
            features = features.detach().float().cpu().numpy()
        features = np.asarray(features)
        if features.ndim != 2 or len(features) != len(images) or features.dtype.kind not in "fiu":
            raise ValueError(
                f"An extractor gives numbers of shape [{len(images)}, dim] for {len(images)} pictures. {self.name} "
                f"gave {features.dtype} {list(features.shape)}. Correct it."
            )
        return features.astype(np.float32)


def load_extractor(name: str, encoder: str | None = None, device: torch.device | str | None = None) -> Extractor:
    """
    An extractor by its name.

    Args:
        name: a key of [`EXTRACTORS`], or `module:function` for your own, a function of pictures that returns features
            `[N, D]`.
        encoder: folder or Hub id of its weights. `target_encoder` needs it; `clip` and `dinov2` have one of their own.
        device: where it computes; by default the accelerator, where there is one.

    Raises:
        ValueError: when there is no such extractor, or it takes no `encoder`.
        ImportError: naming the extra to install.
    """
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    if ":" in name:
        _check_no_encoder(name, encoder)
        return _own(name)
    if name not in EXTRACTORS:
        raise ValueError(f"{unknown_name('extractor', name, EXTRACTORS)} Your own is written module:function.")
    return EXTRACTORS[name](encoder, torch.device(device))


def _check_no_encoder(name: str, encoder: str | None) -> None:
    if encoder is not None:
        raise ValueError(f"The extractor {name} has its own weights. Got the encoder {encoder!r}. Leave it out.")


def _target_encoder(encoder: str | None, device: torch.device) -> Extractor:
    """The features that a model learns to generate: mean and standard deviation over the places of the picture."""
    if encoder is None:
        raise ValueError(
            "The extractor target_encoder needs an encoder. Got none. Pass its folder; that of the packaged model is "
            "its subfolder target_encoder."
        )
    model, image_processor = load_target_encoder(encoder)
    if isinstance(model, AutoencoderKL):
        raise ValueError(
            f"The extractor target_encoder needs a vision tower. {encoder} is a VAE, whose latents say little once "
            f"averaged. Choose another encoder or extractor."
        )
    model.to(device)

    def extract(images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = normalize(image_processor, crop(image_processor, images))
        places = extract_features(model, pixels.to(device)).flatten(2)
        return torch.cat([places.mean(dim=2), places.std(dim=2)], dim=1)

    return Extractor(
        "target_encoder",
        "mean and standard deviation of the target features over the 8 x 8 places",
        extract,
        {"weights": weights_sha256(model)},
    )


def _clip(encoder: str | None, device: torch.device) -> Extractor:
    """Image embeddings of CLIP, as CMMD (Jayasumana et al., 2024) takes them."""
    encoder = _reachable(encoder or CMMD_CLIP)
    load = CLIPVisionModelWithProjection.from_pretrained
    model, _ = load_complete(load, encoder, may_hold_more=True)  # ty: ignore[invalid-argument-type]  # or also a report

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=pixels).image_embeds

    return _of_squares("clip", "image embeddings of CLIP", encoder, model, device, embed)


def _dinov2(encoder: str | None, device: torch.device) -> Extractor:
    """The class token of DINOv2 ViT-L/14, as FD-DINOv2 (Stein et al., 2023) takes it."""
    encoder = _reachable(encoder or FD_DINOV2)
    model, _ = load_complete(AutoModel.from_pretrained, encoder)

    def embed(pixels: torch.Tensor) -> torch.Tensor:
        return model(pixel_values=pixels).pooler_output

    return _of_squares("dinov2", "class tokens of DINOv2", encoder, model, device, embed)


def _reachable(encoder: str) -> str:
    """
    Raises:
        OSError: when it is no folder here, and the Hub does not have it or cannot be reached.
    """
    if not Path(encoder).is_dir():
        check_reachable(encoder)
    return encoder


def _of_squares(
    name: str,
    about: str,
    encoder: str,
    model: nn.Module,
    device: torch.device,
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> Extractor:
    """An extractor that sees the whole picture: resized to a square with the bicubic filter, nothing cut off."""
    image_processor = AutoImageProcessor.from_pretrained(encoder, backend="pil")
    size = (getattr(image_processor, "crop_size", None) or image_processor.size)["height"]
    model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def extract(images: Sequence[Image.Image]) -> torch.Tensor:
        squares = [np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)) for image in images]
        return embed(normalize(image_processor, stack_images(squares)).to(device))

    shown = public_name(encoder)
    settings = {"encoder": shown, "weights": weights_sha256(model), "input": f"{size} x {size}, bicubic"}
    return Extractor(name, f"{about}, {shown}", extract, settings)


def _inception(encoder: str | None, device: torch.device) -> Extractor:
    """The 2048 features of the Inception-v3 of TensorFlow's FID, through torch-fidelity."""
    _check_no_encoder("inception", encoder)
    torch_fidelity = _import("torch_fidelity", "inception", "fidelity")
    model = torch_fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)

    @torch.no_grad()
    def extract(images: Sequence[Image.Image]) -> torch.Tensor:
        if len({image.size for image in images}) > 1:
            return torch.cat([extract([image]) for image in images])
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        return model(pixels.to(device))[0]

    settings = {"torch_fidelity": str(torch_fidelity.__version__), "weights": weights_sha256(model)}
    return Extractor("inception", "Inception-v3 of FID, 2048 features", extract, settings)


EXTRACTORS: dict[str, Callable[[str | None, torch.device], Extractor]] = {
    "target_encoder": _target_encoder,
    "inception": _inception,
    "dinov2": _dinov2,
    "clip": _clip,
}
"""Functions that load an extractor, by its name."""


def _import(module: str, extractor: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The extractor {extractor} needs {module}. Importing it failed: {error}. Install it with pip install "
            f"'blip3o-hf[{extra}]', or choose another extractor."
        ) from error


def _own(name: str) -> Extractor:
    """
    A function of the user's, `module:function`; the bytes of its file stand for it.

    Raises:
        ValueError: when there is no such module or function.
    """
    function = find_function(name, "the extractors")
    module = importlib.import_module(name.partition(":")[0])
    source = inspect.getsourcefile(module)
    settings = {"file": hashlib.sha256(Path(source).read_bytes()).hexdigest()} if source else {}
    return Extractor(name, f"what {name} gives", function, settings)


def weights_sha256(model: nn.Module) -> str:
    """Of the names, shapes and values of all weights."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {list(tensor.shape)} {tensor.dtype}\0".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return state.hexdigest()
