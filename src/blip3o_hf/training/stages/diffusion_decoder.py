"""The stage `diffusion_decoder`: the UNet learns to draw the image that features came from."""

from functools import cached_property

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

from ...checkpoints.decoder_files import has_decoder
from ...checkpoints.published_names import PUBLISHED_DECODER
from ...checks import check_name
from ...models.target_encoder import TargetEncoder, feature_channels
from ...pipelines.pipeline_blip3o_decoder import Blip3oDecoderPipeline
from ..arguments import FROZEN_DTYPES
from ..inputs import load_encoder
from ..recipe_values import hints_of
from ..tasks.diffusion_decoder import PREDICTION_TYPES, DiffusionDecoderTask
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
    The diffusion decoder (paper sections 3.1 and 5.1): that in `inputs.decoder`, which may be a published BLIP3-o, or
    a new UNet on the VAE in `inputs.vae`, which predicts `model.prediction_type`. Leaves a decoder.
    """

    name = "diffusion_decoder"
    inputs = ("encoder",)
    optional_inputs = ("decoder", "vae")
    task_keys = ("feature_dropout", "image_size", "noise_shift")
    model_keys = (*task_keys, "unet", "prediction_type", "feature_size", "frozen_dtype")
    types = {
        "model": {
            "unet": dict,
            "prediction_type": str,
            "feature_size": int,
            **hints_of(DiffusionDecoderTask.__init__, *task_keys),
        },
        "model.unet": hints_of(UNet2DConditionModel.__init__),
    }

    def __init__(self, recipe):
        super().__init__(recipe)
        if ("decoder" in recipe.inputs) == ("vae" in recipe.inputs):
            raise ValueError(
                f"Stage '{self.name}' starts from a decoder or from a VAE. {self.recipe_name} names "
                f"{'both' if 'vae' in recipe.inputs else 'neither'}. Put a diffusion decoder under 'inputs.decoder' "
                f"to train it further, or a VAE under 'inputs.vae' and the UNet's sizes under 'model.unet'."
            )
        if "prediction_type" in recipe.model:
            check_name("prediction type", recipe.model["prediction_type"], PREDICTION_TYPES)
            if "vae" not in recipe.inputs:
                raise ValueError(
                    f"What a trained UNet predicts is in its scheduler. {self.recipe_name} gives "
                    f"'model.prediction_type' with 'inputs.decoder'. Leave it out."
                )
        if ("vae" in recipe.inputs) != ("unet" in recipe.model):
            raise ValueError(
                f"A new UNet needs its sizes, and a trained one keeps them. {self.recipe_name} has "
                f"{'none' if 'vae' in recipe.inputs else 'both'}. Give 'model.unet' with 'inputs.vae' and only then."
            )

    @cached_property
    def _encoder(self) -> TargetEncoder:
        size = self.recipe.model.get("feature_size", 8)
        return load_encoder(self.folders["encoder"], "", size, self.arguments)

    def target_encoder(self):
        return self._encoder

    def build(self):
        unet, self.vae, self.scheduler = self._new_parts() if "vae" in self.folders else self._load_parts()
        return unet, None

    def task(self):
        return DiffusionDecoderTask(self.vae, self.scheduler, **self._given(self.task_keys))

    def _load_parts(self):
        folder = self.folders["decoder"]
        subfolder = PUBLISHED_DECODER if has_decoder(folder, subfolder=PUBLISHED_DECODER) else None
        dtypes = {
            "unet": {"torch_dtype": torch.float32},
            "vae": {"torch_dtype": FROZEN_DTYPES[self.arguments.frozen_dtype]},
        }
        decoder = Blip3oDecoderPipeline.from_pretrained(folder, subfolder=subfolder, part_arguments=dtypes)
        return decoder.unet, decoder.vae, decoder.scheduler

    def _new_parts(self):
        dtype = FROZEN_DTYPES[self.arguments.frozen_dtype]
        vae = AutoencoderKL.from_pretrained(self.folders["vae"], torch_dtype=dtype)
        width, sizes = feature_channels(self._encoder.model), dict(self.recipe.model["unet"])
        sizes.setdefault("addition_time_embed_dim", 256)
        unet = UNet2DConditionModel(
            **sizes,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            cross_attention_dim=width,
            addition_embed_type="text_time",
            projection_class_embeddings_input_dim=width + 6 * sizes["addition_time_embed_dim"],
        )
        schedule = {**SCHEDULE, **self._given(("prediction_type",))}
        return unet, vae, EulerDiscreteScheduler(**schedule)
