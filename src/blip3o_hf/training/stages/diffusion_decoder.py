"""The stage `diffusion_decoder`: the UNet learns to draw the image that features came from."""

from collections.abc import Callable, Sequence

import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn

from ...data.records import targets
from ...models.target_encoder import (
    crop,
    extract_features,
    feature_channels,
    load_target_encoder,
    normalize,
    square_image_processor,
)
from ...pipelines.pipeline_blip3o_decoder import (
    Blip3oDecoderPipeline,
    feature_tokens,
    has_decoder,
    image_conditions,
)
from ...pipelines.published_pipeline import ORIGINAL_DECODER
from .base import Stage

# The training noise of the published decoder (Emu2's and SDXL's).
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


class DiffusionDecoderStage(Stage):
    """
    The diffusion decoder on frozen features (paper sections 3.1 and 5.1, after Emu2): the UNet predicts the noise in
    the VAE's latents of the image whose features it attends to. Encoder and VAE are frozen. Leaves a decoder.

    It goes on from the decoder in `inputs.decoder`, which may be a published BLIP3-o, or puts a new UNet on the VAE in
    `inputs.vae`. A share `feature_dropout` of the images has null features instead, the features of an image of zeros
    after normalisation, so that guidance works with these as `null_features`.
    """

    name = "diffusion_decoder"
    inputs = ("encoder",)
    optional_inputs = ("decoder", "vae")
    model_keys = ("unet", "feature_dropout", "feature_size", "image_size", "frozen_dtype")

    def __init__(self, recipe):
        super().__init__(recipe)
        if ("decoder" in recipe.inputs) == ("vae" in recipe.inputs):
            raise ValueError(
                f"Stage '{self.name}' starts from a decoder or from a VAE. {self.where} names "
                f"{'both' if 'vae' in recipe.inputs else 'neither'}. Put a diffusion decoder under 'inputs.decoder' "
                f"to train it further, or a VAE under 'inputs.vae' and the UNet's sizes under 'model.unet'."
            )
        if ("vae" in recipe.inputs) != ("unet" in recipe.model):
            raise ValueError(
                f"A new UNet needs its sizes, and a trained one keeps them. {self.where} has "
                f"{'none' if 'vae' in recipe.inputs else 'both'}. Give 'model.unet' with 'inputs.vae' and only then."
            )
        self.dropout = recipe.model.get("feature_dropout", 0.1)
        self.feature_size = recipe.model.get("feature_size", 8)
        self.frozen_dtype = self._dtype(recipe.model.get("frozen_dtype", "float32"))

    def build(self):
        self.encoder, self.image_processor = load_target_encoder(self.folders["encoder"], dtype=self.frozen_dtype)
        unet, self.vae, self.scheduler = self._new_parts() if "vae" in self.folders else self._load_parts()
        decoder = Blip3oDecoderPipeline(unet, self.vae, self.scheduler)
        decoder.check_channels(feature_channels(self.encoder))
        if self.scheduler.config.prediction_type != "epsilon":
            raise ValueError(
                f"This stage trains decoders that predict noise. The scheduler in {self.recipe.inputs['decoder']} has "
                f"prediction_type={self.scheduler.config.prediction_type!r}. Use one with 'epsilon'."
            )
        size = self.recipe.model.get("image_size", decoder.image_size()[0])
        self.latent_size = size // decoder.vae_scale_factor
        self.conditions = image_conditions(size, size)
        self.picture_processor = square_image_processor(size)
        self.noise_schedule = DDPMScheduler.from_config(self.scheduler.config)
        self.vae.requires_grad_(False).eval()
        if self.arguments.activation_checkpointing:
            unet.enable_gradient_checkpointing()
            self.arguments.activation_checkpointing = False  # done, in the way of diffusers
        return unet.requires_grad_(True)

    def _load_parts(self):
        folder = self.folders["decoder"]
        subfolder = ORIGINAL_DECODER if has_decoder(folder, subfolder=ORIGINAL_DECODER) else None
        dtypes = {"unet": {"torch_dtype": torch.float32}, "vae": {"torch_dtype": self.frozen_dtype}}
        decoder = Blip3oDecoderPipeline.from_pretrained(folder, subfolder=subfolder, part_arguments=dtypes)
        return decoder.unet, decoder.vae, decoder.scheduler

    def _new_parts(self):
        vae = AutoencoderKL.from_pretrained(self.folders["vae"], torch_dtype=self.frozen_dtype)
        width, own = feature_channels(self.encoder), dict(self.recipe.model["unet"])
        own.setdefault("addition_time_embed_dim", 256)
        unet = UNet2DConditionModel(
            **own,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            cross_attention_dim=width,
            addition_embed_type="text_time",
            projection_class_embeddings_input_dim=width + 6 * own["addition_time_embed_dim"],
        )
        return unet, vae, EulerDiscreteScheduler(**SCHEDULE)

    @property
    def frozen_parts(self):
        return [*super().frozen_parts, self.vae]

    def collate(self, records):
        images = targets(records)
        return {
            "encoder_pixel_values": normalize(self.image_processor, crop(self.image_processor, images)),
            "pixel_values": normalize(self.picture_processor, crop(self.picture_processor, images)),
        }

    def loss(self, model: nn.Module, batch, generators: Sequence[torch.Generator]):
        latents = extract_features(self.vae, batch["pixel_values"], self.latent_size)
        features = self._features(batch["encoder_pixel_values"])
        null = self._features(torch.zeros_like(batch["encoder_pixel_values"][:1]))
        generators = generators[: len(latents)]

        def draw(random: Callable[..., torch.Tensor], *arguments) -> torch.Tensor:
            return torch.stack([random(*arguments, generator=own) for own in generators]).to(latents.device)

        noise = draw(torch.randn, latents.shape[1:])
        timesteps = draw(torch.randint, self.noise_schedule.config.num_train_timesteps, ())
        keep = draw(torch.rand, ()) >= self.dropout
        tokens = torch.where(keep[:, None, None], features, null)
        conditions = {
            "text_embeds": tokens.mean(dim=1),
            "time_ids": self.conditions.to(tokens).expand(len(tokens), -1),
        }
        noisy = self.noise_schedule.add_noise(latents, noise, timesteps)
        prediction = model(noisy, timesteps, encoder_hidden_states=tokens, added_cond_kwargs=conditions).sample
        return torch.nn.functional.mse_loss(prediction.float(), noise)

    def _features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return feature_tokens(extract_features(self.encoder, pixel_values, self.feature_size))

    def save(self, model, folder, weights=None):
        unet = UNet2DConditionModel.from_config(model.config)
        unet.load_state_dict(model.state_dict() if weights is None else weights)
        Blip3oDecoderPipeline(unet, self.vae, self.scheduler).save_pretrained(folder)
