"""The task `few_step_decoder`: a trained diffusion decoder learns to draw in a few steps, without guidance."""

import copy

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, SchedulerMixin, UNet2DConditionModel
from peft import PeftModel
from torch import Tensor, nn

from ...objectives.latent_flow import vae_scale_factor
from ...pipelines.pipeline_blip3o_decoder import PixelDenoiser
from ..arguments import FROZEN_DTYPES
from .base import drawn_noise
from .diffusion_decoder import DiffusionDecoderTask
from .few_steps import FewStepsTask, check_holds_all, frozen_copy

SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
"""What the sampler of a decoder of few steps takes over from that of its diffusion: the noise of each timestep."""


class FewStepDecoderTask(FewStepsTask, DiffusionDecoderTask):
    """
    The UNet learns, at every level of noise, what its own diffusion with guidance ends at: so that four evaluations do
    what took a hundred. The diffusion is followed from noise by DDIM (arXiv 2010.02502), and the UNet learns from
    `arguments.noise_draws` points of each path. What is left is sampled by diffusers' `LCMScheduler`, as latent
    consistency models are (arXiv 2310.04378): each step predicts the end and adds the next level's noise.

    Pictures give features alone; the VAE's latents of them are not read.

    Args:
        vae: frozen.
        scheduler: of the decoder, whose `prediction_type` is `epsilon` or `v_prediction`.
        teacher_steps: of the diffusion; a divisor of the number of timesteps that it was trained with. The UNet can
            then be sampled in any smaller number of steps, at levels of these paths.
        teacher_guidance_scale: of the diffusion; 1 is none.
        image_size: height and width in pixels; by default the decoder's own.
    """

    name = "few_step_decoder"
    teacher: UNet2DConditionModel

    def __init__(
        self,
        vae: AutoencoderKL,
        scheduler,
        teacher_steps: int = 25,
        teacher_guidance_scale: float = 3.0,
        image_size: int | None = None,
    ):
        super().__init__(vae, scheduler, 0.0, image_size)
        self._teach_by(teacher_steps, teacher_guidance_scale)
        self.details = (
            f"The diffusion it was made of was followed in {teacher_steps} steps with guidance "
            f"{teacher_guidance_scale:g}; `LCMScheduler` samples it, without guidance."
        )

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        check_holds_all(arguments)
        self.teacher = frozen_copy(model, arguments)
        model = super().setup(model, processor, target_encoder, arguments, peft_config)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(FROZEN_DTYPES[arguments.frozen_dtype])
        return model

    def check(self, model):
        super().check(model)
        levels = self.scheduler.config.num_train_timesteps
        if levels % self.teacher_steps:
            raise ValueError(
                f"`teacher_steps` must divide the {levels} timesteps of the decoder's training. Got "
                f"{self.teacher_steps}. Take 25 or 50."
            )

    def collate(self, records):
        return {"encoder_pixel_values": super().collate(records)["encoder_pixel_values"]}

    def counts(self, batch):
        return {"records": len(batch["encoder_pixel_values"])}

    def loss(self, model, batch, generators):
        tokens, null = self.given(batch)
        generators, draws = generators[: len(tokens)], self.arguments.noise_draws
        path, timesteps = self.path(drawn_noise(self.noise_shape(), generators).to(tokens.device), tokens, null)
        chosen = torch.stack([torch.randint(self.teacher_steps, (draws,), generator=each) for each in generators])
        chosen = chosen.to(tokens.device)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(chosen)
        noisy, end = path[chosen, rows].flatten(0, 1), path[-1].repeat_interleave(draws, dim=0)
        predicted = self._end(model, noisy, timesteps[chosen].flatten(), tokens.repeat_interleave(draws, dim=0))
        return self.mean_error(predicted, end)

    def given(self, batch):
        tokens = self._features(batch["encoder_pixel_values"])
        return tokens, self._features(torch.zeros_like(batch["encoder_pixel_values"][:1])).expand_as(tokens)

    def noise_shape(self):
        return self.vae.config.latent_channels, self.latent_size, self.latent_size

    @torch.no_grad()
    def path(self, noise: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """
        What the diffusion makes of noise.

        Args:
            noise (`[N, C, h, w]`): to begin with.
            given (`[N, L, C]`): features, and what guidance leads away from.

        Returns:
            Latents at all levels and their end, float32 `[teacher_steps + 1, N, C, h, w]`, and the timesteps
            `[teacher_steps]` of all but the end.
        """
        scheduler = DDIMScheduler.from_config(
            self.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
        )
        scheduler.set_timesteps(self.teacher_steps, device=noise.device)
        denoiser, points = self._denoiser(self.teacher, scheduler, noise, *given), [noise.float()]
        scale, dtype = self.teacher_guidance_scale, self.teacher.dtype
        for index, timestep in enumerate(scheduler.timesteps):
            noisy = points[-1].to(dtype)
            predicted = denoiser.predict(noisy, index) if scale == 1 else denoiser.predict_guided(noisy, index, scale)
            points.append(scheduler.step(predicted.float(), timestep, points[-1], return_dict=False)[0])
        return torch.stack(points), scheduler.timesteps

    def _denoiser(
        self, unet: nn.Module, scheduler: SchedulerMixin, noise: Tensor, tokens: Tensor, null: Tensor | None = None
    ) -> PixelDenoiser:
        return PixelDenoiser(unet, vae_scale_factor(self.vae), scheduler, noise, tokens, null)

    def _end(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Where paths end that are at these latents, as a UNet says."""
        dtype = next(unet.parameters()).dtype
        predicted = self.predict(unet, noisy.to(dtype), timesteps, tokens.to(dtype))
        kept = self.noise_schedule.alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
        if self.scheduler.config.prediction_type == "v_prediction":
            return kept.sqrt() * noisy - (1 - kept).sqrt() * predicted
        return (noisy - (1 - kept).sqrt() * predicted) / kept.sqrt()

    def drawn(self, model, noise, steps, *given):
        scheduler, tokens = self.saved_scheduler, given[0]
        scheduler.set_timesteps(steps, device=noise.device)
        denoiser = self._denoiser(model, scheduler, noise, tokens)
        generator = torch.Generator(noise.device).manual_seed(0)
        for index, timestep in enumerate(scheduler.timesteps):
            predicted = denoiser.predict(noise.to(denoiser.condition.dtype), index).float()
            noise = scheduler.step(predicted, timestep, noise, generator=generator, return_dict=False)[0]
        return noise

    def save(self, model, folder, weights=None):
        if isinstance(model, PeftModel):
            model, weights = _merged(model, weights), None
        super().save(model, folder, weights)

    def save_checkpoint(self, model, folder, weights=None):
        if isinstance(model, PeftModel):
            model.save_pretrained(folder, state_dict=weights)  # what a run goes on from: adapters
        else:
            self.save(model, folder, weights)

    @property
    def saved_scheduler(self) -> LCMScheduler:
        """What samples the UNet: on its own noise, at levels of the paths that it learned from."""
        kept = {key: self.scheduler.config[key] for key in SCHEDULE_KEYS if key in self.scheduler.config}
        return LCMScheduler(
            **kept, clip_sample=False, set_alpha_to_one=True, original_inference_steps=self.teacher_steps
        )


def _merged(model: PeftModel, weights: dict[str, Tensor] | None) -> nn.Module:
    """The UNet that adapters are on, with these in it."""
    whole = copy.deepcopy(model)
    if weights is not None:
        whole.load_state_dict(weights)
    return whole.merge_and_unload()


__all__ = ["FewStepDecoderTask"]
