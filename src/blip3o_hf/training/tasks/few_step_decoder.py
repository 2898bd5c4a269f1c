"""The task `few_step_decoder`: a trained diffusion decoder learns to draw in a few steps, without guidance."""

import copy
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, UNet2DConditionModel
from peft import PeftModel
from torch import Tensor, nn

from ...checks import check_sizes, is_finite_number
from ..arguments import FROZEN_DTYPES
from .diffusion_decoder import DiffusionDecoderTask
from .flow_map import ADAPTIVE, check_holds_all

VALIDATED_STEPS = (1, 4)


class FewStepDecoderTask(DiffusionDecoderTask):
    """
    The UNet learns, at every level of noise, what its own diffusion with guidance ends at: so that four evaluations do
    what took a hundred. The diffusion is followed from noise by DDIM (arXiv 2010.02502), and the UNet learns from
    `arguments.noise_draws` points of each path. What is left is sampled by diffusers' `LCMScheduler`, as latent
    consistency models are (arXiv 2310.04378): each step predicts the end and adds the next level's noise.

    Pictures give features alone; the VAE's latents of them are not read.

    Args:
        vae: frozen.
        scheduler: of the decoder, whose `prediction_type` is `epsilon`.
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
        check_sizes(teacher_steps=teacher_steps)
        if not is_finite_number(teacher_guidance_scale, 0):
            raise ValueError(
                f"`teacher_guidance_scale` must be positive. Got {teacher_guidance_scale!r:.40}. 1 is no guidance."
            )
        self.teacher_steps, self.teacher_guidance_scale = teacher_steps, teacher_guidance_scale
        self.details = (
            f"The diffusion it was made of was followed in {teacher_steps} steps with guidance "
            f"{teacher_guidance_scale:g}; `LCMScheduler` samples it, without guidance."
        )

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        check_holds_all(arguments)
        frozen = FROZEN_DTYPES[arguments.frozen_dtype]
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        model = super().setup(model, processor, target_encoder, arguments, peft_config)
        for parameter in (*self.teacher.parameters(), *model.parameters()):
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(frozen)
        return model

    def check(self, model):
        super().check(model)
        levels = self.scheduler.config.num_train_timesteps
        if levels % self.teacher_steps:
            raise ValueError(
                f"`teacher_steps` must divide the {levels} timesteps of the decoder's training. Got "
                f"{self.teacher_steps}. Take 25 or 50."
            )

    @property
    def frozen_parts(self):
        return [*super().frozen_parts, self.teacher]

    def collate(self, records):
        return {"encoder_pixel_values": super().collate(records)["encoder_pixel_values"]}

    def counts(self, batch):
        return {"records": len(batch["encoder_pixel_values"])}

    def loss(self, model, batch, generators):
        tokens, null = self._tokens(batch)
        generators, draws = generators[: len(tokens)], self.arguments.noise_draws
        noise = self._noise(generators, tokens)
        path, timesteps = self.path(noise, tokens, null)
        chosen = torch.stack([torch.randint(self.teacher_steps, (draws,), generator=each) for each in generators])
        chosen = chosen.to(tokens.device)
        rows = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(chosen)
        noisy, end = path[chosen, rows].flatten(0, 1), path[-1].repeat_interleave(draws, dim=0)
        predicted = self._end(model, noisy, timesteps[chosen].flatten(), tokens.repeat_interleave(draws, dim=0))
        errors = (predicted - end).square().flatten(1).mean(dim=1)
        return self.share("records") * (errors / (errors.detach() + ADAPTIVE)).mean()

    def _tokens(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features of the pictures, and null features for each."""
        tokens = self._features(batch["encoder_pixel_values"])
        return tokens, self._features(torch.zeros_like(batch["encoder_pixel_values"][:1])).expand_as(tokens)

    def _noise(self, generators: Sequence[torch.Generator], like: Tensor) -> Tensor:
        shape = (self.vae.config.latent_channels, self.latent_size, self.latent_size)
        return torch.stack([torch.randn(shape, generator=each) for each in generators]).to(like.device)

    @torch.no_grad()
    def path(self, noise: Tensor, tokens: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
        """
        What the diffusion makes of noise.

        Args:
            noise (`[N, C, h, w]`): to begin with.
            tokens, null (`[N, L, C]`): features, and what guidance leads away from.

        Returns:
            Latents at all levels and their end, float32 `[teacher_steps + 1, N, C, h, w]`, and the timesteps
            `[teacher_steps]` of all but the end.
        """
        scheduler = DDIMScheduler.from_config(
            self.scheduler.config, clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
        )
        scheduler.set_timesteps(self.teacher_steps, device=noise.device)
        points, guided = [noise.float()], self.teacher_guidance_scale != 1
        for timestep in scheduler.timesteps:
            times = timestep.expand(len(noise))
            predicted = self._predicted(self.teacher, points[-1], times, tokens)
            if guided:
                away = self._predicted(self.teacher, points[-1], times, null)
                predicted = away + self.teacher_guidance_scale * (predicted - away)
            points.append(scheduler.step(predicted, timestep, points[-1], return_dict=False)[0])
        return torch.stack(points), scheduler.timesteps

    def _predicted(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """The noise that a UNet finds, float32."""
        dtype = next(unet.parameters()).dtype
        conditions = {
            "text_embeds": tokens.mean(dim=1).to(dtype),
            "time_ids": self.conditions.to(noisy.device, dtype).expand(len(tokens), -1),
        }
        output = unet(noisy.to(dtype), timesteps, encoder_hidden_states=tokens.to(dtype), added_cond_kwargs=conditions)
        return output.sample.float()

    def _end(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """Where a path ends that is at these latents, as a UNet says."""
        kept = self.noise_schedule.alphas_cumprod.to(noisy.device)[timesteps].view(-1, 1, 1, 1)
        return (noisy - (1 - kept).sqrt() * self._predicted(unet, noisy, timesteps, tokens)) / kept.sqrt()

    def validate(self, model, dataset):
        """
        Mean squared errors of latents that the UNet draws in few steps, of what its diffusion makes of the same noise,
        in variances of the latter.
        """
        sums, number = dict.fromkeys(VALIDATED_STEPS, 0.0), 0
        for records in self.batches(dataset):
            tokens, null = self._tokens(self.on_device(self.collate(records), model))
            generators = [torch.Generator().manual_seed(number + index) for index in range(len(records))]
            noise = self._noise(generators, tokens)
            end = self.path(noise, tokens, null)[0][-1]
            for steps in VALIDATED_STEPS:
                drawn = self._drawn(model, noise, tokens, steps)
                sums[steps] += ((drawn - end).square().mean() / end.var()).item() * len(records)
            number += len(records)
        losses = {f"loss_of_{steps}_steps": value / number for steps, value in sums.items()} if number else {}
        return {**losses, "loss": sum(losses.values()) / len(losses)} if losses else {}

    @torch.no_grad()
    def _drawn(self, model: nn.Module, noise: Tensor, tokens: Tensor, steps: int) -> Tensor:
        scheduler = self.few_step_scheduler()
        scheduler.set_timesteps(steps, device=noise.device)
        generator = torch.Generator(noise.device).manual_seed(0)
        latents = noise
        for timestep in scheduler.timesteps:
            predicted = self._predicted(model, latents, timestep.expand(len(noise)), tokens)
            latents = scheduler.step(predicted, timestep, latents, generator=generator, return_dict=False)[0]
        return latents

    def save(self, model, folder, weights=None):
        scheduler = self.scheduler
        self.scheduler = self.few_step_scheduler()
        try:
            super().save(*_merged(model, weights, folder))
        finally:
            self.scheduler = scheduler

    def save_checkpoint(self, model, folder, weights=None):
        if isinstance(model, PeftModel):
            model.save_pretrained(folder, state_dict=weights)  # what a run goes on from: adapters
        else:
            self.save(model, folder, weights)

    def few_step_scheduler(self) -> LCMScheduler:
        """What samples the UNet: on its own noise, at levels of the paths that it learned from."""
        return LCMScheduler.from_config(
            self.scheduler.config,
            clip_sample=False,
            set_alpha_to_one=True,
            original_inference_steps=self.teacher_steps,
        )


def _merged(model: nn.Module, weights: dict[str, Tensor] | None, folder):
    """The arguments of `save`, with adapters merged into the UNet that they are on."""
    if not isinstance(model, PeftModel):
        return model, folder, weights
    whole = copy.deepcopy(model)
    if weights is not None:
        whole.load_state_dict(weights)
    unet = whole.merge_and_unload()
    return unet, folder, None


__all__ = ["FewStepDecoderTask"]
