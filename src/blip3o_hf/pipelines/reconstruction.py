"""Images again: through the target encoder and the decoder, or through the whole model; and variations of them."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.utils import BaseOutput
from PIL import Image

from ..checkpoints.published_config import is_published
from ..checks import check_name
from ..data.images import as_input_image
from ..data.records import RECONSTRUCT
from ..models.target_encoder import crop, extract_features, load_target_encoder, normalize
from .pipeline_blip3o import Blip3oPipeline, Blip3oPipelineOutput
from .sampling_arguments import as_number

MODES = ("autoencoder", "unified")
# Arguments of the pipeline that are of no use where features are only decoded.
DECODED_WITHOUT = ("num_inference_steps", "guidance_scale", "guidance_interval", "plan", "num_attempts", "checker")
DECODED_WITHOUT += ("negative_prompt", "attention_kwargs")
_TARGET_ENCODER = "target_encoder"


@dataclass
class Blip3oReconstructionOutput(BaseOutput):
    """
    Args:
        images: the reconstructions.
        originals: the images as the target encoder sees them, resized and cropped, at the size of the reconstructions.
        image_features (`torch.Tensor` `[N, C, h, w]`): what the decoder made pixels of.
        feature_cosine: for each image the cosine, averaged over the grid, between its features and those of its
            reconstruction, encoded again; 1 is the same.
        psnr: for each image the peak signal-to-noise ratio in dB of its pixels in [0, 1]; higher is nearer.
    """

    images: list[Image.Image]
    originals: list[Image.Image]
    image_features: torch.Tensor
    feature_cosine: list[float]
    psnr: list[float]


class Blip3oReconstructionPipeline:
    """
    Draws an image again, and measures how near it comes (paper section 6, the first step of its future work).

    `autoencoder`: the target encoder's features through the decoder: no generator of features can do better.
        `unified`: the backbone sees the image, and the queries condition the flow, as they do for an edit.

    Args:
        pipe ([`Blip3oPipeline`]): with a decoder.
        encoder, image_processor: the target encoder it was trained with, from
            [`~models.target_encoder.load_target_encoder`].

    Example:

    ```python
    >>> from blip3o_hf import Blip3oPipeline, Blip3oReconstructionPipeline, packaged_model_path

    >>> path = packaged_model_path("blip3o-tiny")
    >>> image = Blip3oPipeline.from_pretrained(path)("a red circle").images[0]
    >>> reconstruct = Blip3oReconstructionPipeline.from_pretrained(path)
    >>> reconstruct(image).feature_cosine[0] > 0.9
    True

    ```
    """

    def __init__(self, pipe: Blip3oPipeline, encoder, image_processor):
        self.pipe = pipe
        self.encoder = encoder
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, encoder: str | os.PathLike | None = None, **kwargs
    ) -> "Blip3oReconstructionPipeline":
        """
        A pipeline with the target encoder of its repository.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            encoder: folder or Hub id of the target encoder, where the repository has none.
            kwargs: for the pipeline.

        Raises:
            ValueError: when there is no target encoder.
        """
        pipe = Blip3oPipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)
        return cls.from_pipe(pipe, encoder)

    @classmethod
    def from_pipe(cls, pipe: Blip3oPipeline, encoder: str | os.PathLike | None = None):
        """
        The same with a loaded pipeline; without `encoder`, the encoder is searched in the pipeline's own repository.
        """
        repository = str(encoder or pipe.config.get("_name_or_path") or "")
        subfolder = "" if encoder is not None or is_published(repository) else _TARGET_ENCODER
        try:
            parts = load_target_encoder(repository, subfolder, pipe.model.dtype, pipe.model.config.feature_size)
        except OSError as error:
            raise ValueError(
                f"A reconstruction needs the target encoder of the model. {repository or 'This pipeline'} "
                f"has none. Pass `encoder`, its folder or Hub id."
            ) from error
        return cls(pipe, parts[0].to(pipe.device), parts[1])

    @torch.no_grad()
    def encode_images(self, images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """Target features `[N, C, h, w]`, which the pipeline decodes or starts from (`strength`)."""
        return self._features(self._pixels(images))

    @torch.no_grad()
    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image],
        mode: str = "autoencoder",
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt: str = RECONSTRUCT,
        **sampling: Any,
    ) -> Blip3oReconstructionOutput:
        """
        Args:
            images: one or several, of any size.
            mode: `"autoencoder"` or `"unified"`.
            generator: one for all images, or one for each; of the flow, and of a diffusion decoder.
            prompt: what `unified` asks for.
            sampling: arguments of the pipeline, such as `num_inference_steps` and `guidance_scale`.

        Raises:
            TypeError, ValueError: on an unknown mode, or bad images.
        """
        check_name("mode", mode, MODES)
        pixels = self._pixels(images)
        features = self._features(pixels)
        if mode == "autoencoder":
            sampling = {name: value for name, value in sampling.items() if name not in DECODED_WITHOUT}
            output = self.pipe(image_features=features, generator=generator, output_type="pt", **sampling)
        else:
            given = _listed(images)
            output = self.pipe(
                [prompt] * len(given),
                image=[[image] for image in given],
                generator=generator,
                output_type="pt",
                **sampling,
            )
        drawn = output.images.float().cpu()
        shown = F.interpolate(pixels, drawn.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
        again = self._features(F.interpolate(drawn, pixels.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1))
        cosine = F.cosine_similarity(again.float(), features.float(), dim=1).mean(dim=(1, 2))
        errors = (drawn - shown).square().mean(dim=(1, 2, 3))
        return Blip3oReconstructionOutput(
            images=self._pictures(drawn),
            originals=self._pictures(shown),
            image_features=output.image_features,
            feature_cosine=cosine.tolist(),
            psnr=[-10 * math.log10(max(error, 1e-10)) for error in errors.tolist()],
        )

    def vary(
        self,
        image: Image.Image,
        prompt: str = RECONSTRUCT,
        strength: float = 0.6,
        num_images: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        **sampling: Any,
    ) -> Blip3oPipelineOutput:
        """
        Variations of an image: its features with noise, denoised towards a prompt.

        Args:
            image: what to vary.
            prompt: what to draw; by default the backbone sees the image, and draws it again.
            strength: noise level in (0, 1]; more is further away.
            num_images: how many.
            generator: one for all, or one for each.
            sampling: arguments of the pipeline.
        """
        num_images = as_number(num_images)
        seen: dict[str, Any] = {"image": [[image]]} if prompt == RECONSTRUCT else {}
        return self.pipe(
            prompt,
            image_features=self.encode_images(image).repeat_interleave(num_images, dim=0),
            strength=strength,
            num_images_per_prompt=num_images,
            generator=generator,
            **seen,
            **sampling,
        )

    def _pixels(self, images: Image.Image | Sequence[Image.Image]) -> torch.Tensor:
        """Images as the encoder sees them, `[N, 3, H, W]` in [0, 1]."""
        given = _listed(images)
        if not given:
            raise ValueError("There must be at least one image. Got an empty list. Pass one, or several.")
        return crop(self.image_processor, [as_input_image(image) for image in given])

    def _features(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = normalize(self.image_processor, pixels.to(self.encoder.device))
        return extract_features(self.encoder, pixels, self.pipe.model.config.feature_size)

    @staticmethod
    def _pictures(images: torch.Tensor) -> list[Image.Image]:
        return [Image.fromarray(image) for image in (images * 255).round().byte().permute(0, 2, 3, 1).numpy()]


def _listed(images: Any) -> list:
    """Images as a list; what is no list of them as the only entry of one."""
    is_one = isinstance(images, (Image.Image, str, os.PathLike)) or getattr(images, "ndim", 4) < 4
    return [images] if is_one or not isinstance(images, Iterable) else list(images)


def interpolate(first: torch.Tensor, second: torch.Tensor, num_steps: int) -> torch.Tensor:
    """
    Points on the line from one condition, or image's features, to another, both included.

    Args:
        first, second (`[1, ...]`): from `encode_prompt`, or from `encode_images`.
        num_steps: at least 2.

    Returns:
        `torch.Tensor` `[num_steps, ...]`, for `pipe(condition=...)` or `pipe(image_features=...)`.

    Raises:
        ValueError: on two shapes, or fewer than 2 steps.
        TypeError: when they are no tensors, or the steps are no whole number.
    """
    num_steps = as_number(num_steps)
    contract = "Interpolation needs two tensors of the same shape [1, ...], and at least 2 steps. Got "
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor) or type(num_steps) is not int:
        kinds = [type(value).__name__ for value in (first, second)]
        raise TypeError(f"{contract}{kinds[0]}, {kinds[1]} and {num_steps!r:.60}.")
    if first.shape != second.shape or first.shape[:1] != (1,) or num_steps < 2:
        raise ValueError(f"{contract}{list(first.shape)}, {list(second.shape)} and {num_steps}.")
    shares = torch.linspace(0, 1, num_steps, device=first.device, dtype=first.dtype)
    return torch.cat([torch.lerp(first, second, share) for share in shares])


__all__ = ["Blip3oReconstructionOutput", "Blip3oReconstructionPipeline", "interpolate"]
