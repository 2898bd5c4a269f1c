"""From image features to pixels: the interface of every decoder, and the choice of the decoder of a pipeline."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from diffusers.models.modeling_utils import get_parameter_dtype
from torch import nn

from ..models.configuration_blip3o import Blip3oConfig
from ..objectives.latent_flow import unscale_latents, vae_scale_factor
from ..objectives.objective import Objective
from .pipeline_blip3o_decoder import Blip3oDecoderPipeline, feature_tokens
from .sampling_arguments import SamplingSettings, check_generators

DECODER_ARGUMENTS = {
    "null_features": "null_features",
    "height": "height",
    "width": "width",
    "num_inference_steps": "decoder_num_inference_steps",
    "guidance_scale": "decoder_guidance_scale",
    "guidance_interval": "decoder_guidance_interval",
}
"""What a decoder may take beside features and a generator: names in `decode`, and in the pipeline's `__call__`."""


class Blip3oFeatureDecoder:
    """
    The interface of a decoder. A new decoder is a separate class, outside of this package:

    ```python
    class MyDecoder(Blip3oFeatureDecoder, ModelMixin, ConfigMixin):
        @register_to_config
        def __init__(self, in_channels: int): ...

        def image_size(self, features): ...

        def decode(self, features): ...
    ```

    Its module must import `ModelMixin` by name, and must be importable where a saved pipeline is loaded: diffusers
    finds the class by the path of its module.

    Attributes:
        settings: what `decode` takes beside features, of the names in `DECODER_ARGUMENTS` and `generator`. The
            pipeline passes these alone, and refuses the others.
    """

    settings: ClassVar[tuple[str, ...]] = ()

    def taken(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `settings` that this decoder takes."""
        return {name: settings[name] for name in self.settings if name in settings}

    def decode(self, features: torch.Tensor, **settings: Any) -> torch.Tensor:
        """
        Args:
            features (`[N, C, h, w]`): on the target encoder's own scale, in the decoder's precision and on its device.
            settings: those in `settings`, each of them `None` where the caller did not choose.

        Returns:
            `torch.Tensor` `[N, 3, H, W]` in [-1, 1], 1 is white.
        """
        raise NotImplementedError

    def image_size(self, features: torch.Tensor, **sizes: int | None) -> tuple[int, int]:
        """
        Height and width in pixels of the images that `decode` would give. Features may be on the meta device; `sizes`
        are those of `height` and `width` that are in `settings`.
        """
        raise NotImplementedError

    def check_inputs(self, features: torch.Tensor, **settings: Any) -> None:
        """
        Raise an error for the first argument of `decode` that breaks its contract; by default none does. Features that
        are yet to be generated come on the meta device.
        """


class PartDecoder(Blip3oFeatureDecoder):
    """
    A decoder that is one part of a pipeline, `pipe.decoder`; features are brought to where its weights are.

    Args:
        part: the module.
        execution_device: tells where a part works that is offloaded, or has no weights.
    """

    # `decode` and `image_size` of a subclass have the arguments that its `settings` name; `taken` leaves others out.

    part: Any

    def __init__(self, part: nn.Module, execution_device: Callable[[], torch.device]):
        self.part = part
        self.execution_device = execution_device

    def _input(self, features: torch.Tensor) -> torch.Tensor:
        """Features on the device and in the precision of the part."""
        parameter = next(self.part.parameters(), None)
        if parameter is None:
            return features.to(self.execution_device())
        is_offloaded = hasattr(self.part, "_hf_hook") or hasattr(self.part, "_diffusers_hook")
        device = self.execution_device() if is_offloaded else parameter.device
        return features.to(device, get_parameter_dtype(self.part))


class PatchDecoder(PartDecoder):
    """A [`Blip3oPatchDecoder`], or another module whose output has the images as `sample`."""

    def decode(self, features: torch.Tensor) -> torch.Tensor:  # ty: ignore[incompatible-method-override]
        return self.part(self._input(features)).sample

    def image_size(self, features: torch.Tensor) -> tuple[int, int]:  # ty: ignore[incompatible-method-override]
        side = self.part.config.sample_size * self.part.config.patch_size
        return side, side


class VaeDecoder(PartDecoder):
    """An `AutoencoderKL` of diffusers, for objectives whose features are its scaled latents (paper section 3.3)."""

    def decode(self, features: torch.Tensor) -> torch.Tensor:  # ty: ignore[incompatible-method-override]
        config = self.part.config
        shift_factor = getattr(config, "shift_factor", None)
        return self.part.decode(unscale_latents(self._input(features), config.scaling_factor, shift_factor)).sample

    def image_size(self, features: torch.Tensor) -> tuple[int, int]:  # ty: ignore[incompatible-method-override]
        height, width = (side * vae_scale_factor(self.part) for side in features.shape[-2:])
        return height, width


class OwnDecoder(PartDecoder):
    """A user's own [`Blip3oFeatureDecoder`] that is a module."""

    @property
    def settings(self) -> tuple[str, ...]:  # ty: ignore[incompatible-property-override]
        return self.part.settings

    def decode(self, features: torch.Tensor, **settings: Any) -> torch.Tensor:
        hook = getattr(self.part, "_hf_hook", None)
        if hook is not None:  # CPU offloading brings weights back for `forward` alone
            hook.pre_forward(self.part)
        return self.part.decode(self._input(features), **settings)

    def image_size(self, features: torch.Tensor, **sizes: int | None) -> tuple[int, int]:
        return self.part.image_size(features, **sizes)

    def check_inputs(self, features: torch.Tensor, **settings: Any) -> None:
        self.part.check_inputs(features, **settings)


class DiffusionDecoder(Blip3oFeatureDecoder):
    """
    The paper's decoder (section 5.1): a UNet that attends to the features, and a VAE.

    Args:
        pipeline: on the modules that decode.
        defaults: steps, guidance scale and guidance interval where the caller did not choose.
        prepare_null_features: makes the features that guidance leads away from, given a generator.
        config: of the model that generates features.
    """

    settings = (*DECODER_ARGUMENTS, "generator")

    def __init__(
        self,
        pipeline: Blip3oDecoderPipeline,
        defaults: SamplingSettings,
        prepare_null_features: Callable[..., torch.Tensor],
        config: Blip3oConfig,
    ):
        self.pipeline = pipeline
        self.defaults = defaults
        self.prepare_null_features = prepare_null_features
        self.config = config

    def decode(
        self,
        features: torch.Tensor,
        null_features: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        **sampling: Any,
    ) -> torch.Tensor:
        chosen = self.defaults.chosen(**sampling)
        if chosen.guidance_scale > 1 and null_features is None:
            null_features = self.prepare_null_features(chosen.generator)
        size = self.pipeline.image_size(height, width)
        latents = self.pipeline.prepare_latents(len(features), *size, chosen.generator)
        return self.pipeline.decode_latents(self.pipeline.denoise(latents, features, null_features, **vars(chosen)))

    def image_size(
        self, features: torch.Tensor, height: int | None = None, width: int | None = None, **sizes: int | None
    ) -> tuple[int, int]:
        return self.pipeline.image_size(height, width)

    def check_inputs(
        self,
        features: torch.Tensor,
        null_features: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        **sampling: Any,
    ) -> None:
        chosen = self.defaults.chosen(**sampling)
        size = self.pipeline.image_size(height, width)
        self.pipeline.check_sampling(*size, chosen, self.defaults, prefix="decoder_")
        self.pipeline.check_features(features, null_features)
        tokens, expected = feature_tokens(features).shape[1], self.config.feature_size**2
        if tokens != expected:
            raise ValueError(
                f"`image_features` must hold the model's {expected} tokens, as its null features do. Got "
                f"{list(features.shape)}. Features of another size are for `Blip3oDecoderPipeline`."
            )
        check_generators(chosen.generator, len(features), 1)


def check_decoder_parts(decoder: Any, **diffusion_parts: Any) -> None:
    """
    Raise `ValueError` unless `unet`, `vae` and `decoder_scheduler`, the `diffusion_parts`, come all together and
    without `decoder`, or not at all.
    """
    present = [name for name, part in diffusion_parts.items() if part is not None]
    if present and (len(present) < len(diffusion_parts) or decoder is not None):
        received = [*present, "decoder"] if decoder is not None else present
        raise ValueError(
            f"A pipeline decodes by diffusion with `unet`, `vae` and `decoder_scheduler`, or in one pass with "
            f"`decoder`. Got {', '.join(received)}. Pass all three, or `decoder` alone."
        )


def decoder_of_part(
    part: nn.Module, objective: Objective, execution_device: Callable[[], torch.device]
) -> PartDecoder:
    """The decoder that the one part `decoder` of a pipeline is, for features of an objective."""
    if isinstance(part, Blip3oFeatureDecoder):
        return OwnDecoder(part, execution_device)
    return (VaeDecoder if objective.is_latent else PatchDecoder)(part, execution_device)


__all__ = [
    "DECODER_ARGUMENTS",
    "Blip3oFeatureDecoder",
    "DiffusionDecoder",
    "OwnDecoder",
    "PartDecoder",
    "PatchDecoder",
    "VaeDecoder",
    "check_decoder_parts",
    "decoder_of_part",
]
