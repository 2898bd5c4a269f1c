"""The task `diffusion_decoder`: the UNet learns to draw the image that features came from."""

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, LCMScheduler, UNet2DConditionModel
from torch import nn

from ...checks import is_finite_number
from ...data.records import targets
from ...models.target_encoder import crop, extract_features, feature_channels, normalize, square_image_processor
from ...objectives.noise_levels import shift_sigma
from ...pipelines.pipeline_blip3o_decoder import (
    Blip3oDecoderPipeline,
    feature_tokens,
    image_conditions,
    predict_from_features,
)
from .base import Task

PREDICTION_TYPES = ("epsilon", "v_prediction")


class DiffusionDecoderTask(Task):
    """
    The diffusion decoder on frozen features (paper sections 3.1 and 5.1, after Emu2): the UNet predicts the noise in
    the VAE's latents of the image whose features it attends to, or their velocity (arXiv 2202.00512), as its
    scheduler's `prediction_type` says. Encoder and VAE are frozen.

    A share of the images has null features instead, the features of an image of zeros after normalisation, so that
    guidance works with these as `null_features`.

    Args:
        vae: frozen.
        scheduler: of the decoder, whose `prediction_type` is `epsilon` or `v_prediction`.
        feature_dropout: that share, in [0, 1].
        image_size: height and width in pixels of the images; by default the decoder's own.
        noise_shift: positive. Above 1 more of the images are near pure noise, as
            [`~objectives.noise_levels.shift_sigma`] moves levels. There features alone say where things are; at less
            noise the latents show it, so that a new UNet does not learn to read it from features.
    """

    name = "diffusion_decoder"
    reads_prompts = False

    def __init__(
        self,
        vae: AutoencoderKL,
        scheduler,
        feature_dropout: float = 0.1,
        image_size: int | None = None,
        noise_shift: float = 1.0,
    ):
        if not is_finite_number(noise_shift, 0):
            raise ValueError(f"`noise_shift` must be positive. Got {noise_shift!r:.40}. 1 draws all levels as often.")
        self.vae = vae.requires_grad_(False).eval()
        self.scheduler = scheduler
        self.feature_dropout = feature_dropout
        self.image_size = image_size
        self.noise_shift = noise_shift

    def needs_encoder(self, arguments):
        return True

    def check(self, model):
        assert self.target_encoder is not None  # see `needs_encoder`
        decoder = Blip3oDecoderPipeline(model, self.vae, self.scheduler)
        decoder.check_channels(feature_channels(self.target_encoder.model))
        if isinstance(self.scheduler, LCMScheduler):
            raise ValueError(
                "A decoder of few steps has forgotten the diffusion that it was made of. Got one that LCMScheduler "
                "samples. Start from the decoder that it was made of."
            )
        if self.scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"This stage trains decoders that predict noise or velocity. The scheduler of this one has "
                f"prediction_type={self.scheduler.config.prediction_type!r}. Use one with 'epsilon' or 'v_prediction'."
            )
        size = self.image_size or decoder.image_size()[0]
        self.latent_size = size // decoder.vae_scale_factor
        self.conditions = image_conditions(size, size)
        self.picture_processor = square_image_processor(size)
        self.noise_schedule = DDPMScheduler.from_config(self.scheduler.config)
        if self.arguments.activation_checkpointing:
            model.enable_gradient_checkpointing()
            self.arguments.activation_checkpointing = False  # done, in the way of diffusers

    def choose(self, model):
        model.requires_grad_(True)

    @property
    def frozen_parts(self):
        return [*super().frozen_parts, self.vae]

    def collate(self, records):
        assert self.target_encoder is not None  # see `needs_encoder`
        images = targets(records)
        return {
            "encoder_pixel_values": self.target_encoder.pixel_values(images),
            "pixel_values": normalize(self.picture_processor, crop(self.picture_processor, images)),
        }

    def counts(self, batch):
        return {"records": len(batch["pixel_values"])}

    def loss(self, model: nn.Module, batch, generators: Sequence[torch.Generator]):
        latents = extract_features(self.vae, batch["pixel_values"], self.latent_size)
        features = self._features(batch["encoder_pixel_values"])
        null = self._features(torch.zeros_like(batch["encoder_pixel_values"][:1]))
        generators = generators[: len(latents)]

        def draw(random: Callable[..., torch.Tensor], *arguments) -> torch.Tensor:
            drawn = [random(*arguments, generator=generator) for generator in generators]
            return torch.stack(drawn).to(latents.device)

        noise = draw(torch.randn, latents.shape[1:])
        timesteps = self.shifted(draw(torch.randint, self.noise_schedule.config.num_train_timesteps, ()))
        keep = draw(torch.rand, ()) >= self.feature_dropout
        tokens = torch.where(keep[:, None, None], features, null)
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        is_noise = self.scheduler.config.prediction_type == "epsilon"
        target = noise if is_noise else self.noise_schedule.get_velocity(latents, noise, timesteps)
        prediction = self.predict(model, noisy, timesteps, tokens)
        return self.share("records") * torch.nn.functional.mse_loss(prediction, target)

    def shifted(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Timesteps `[N]` moved by `noise_shift`; the last stays the last."""
        last = self.noise_schedule.config.num_train_timesteps
        return (shift_sigma((timesteps + 1) / last, self.noise_shift) * last).round().long() - 1

    def predict(
        self, unet: nn.Module, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """What a UNet predicts of latents at timesteps `[N]` of their own, given features, float32."""
        sizes = self.conditions.to(tokens).expand(len(tokens), -1)
        return predict_from_features(unet, noisy, timesteps, tokens, sizes).float()

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        assert self.target_encoder is not None  # see `needs_encoder`
        return feature_tokens(self.target_encoder.features(pixel_values))

    def save(self, model, folder, weights=None):
        unet = UNet2DConditionModel.from_config(model.config)
        unet.load_state_dict(model.state_dict() if weights is None else weights)
        Blip3oDecoderPipeline(unet, self.vae, self.saved_scheduler).save_pretrained(folder)

    @property
    def saved_scheduler(self):
        """What is saved with the UNet to sample it."""
        return self.scheduler
