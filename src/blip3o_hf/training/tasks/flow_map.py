"""The task `flow_map`: a trained flow becomes a model of few steps."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...checks import check_name
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.transformer_next_dit import Blip3oTransformer2DModel
from ...objectives.feature_flow import FeatureFlow
from ...objectives.noise_levels import sigma_from_uniform
from ...pipelines.denoising import FeatureDenoiser
from ...schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from .base import drawn_noise
from .few_steps import FewStepsTask, check_holds_all, frozen_copy
from .generation import GenerationTask

TARGETS = ("trajectory", "mean_flow")
FROM_NOISE, TO_CLEAN = 0.35, 0.25
"""Shares of intervals that begin at noise, and that end at clean features, beside those that do so by chance."""
INSTANTS = 0.25
"""Share of intervals of no length, at which MeanFlow learns the velocity itself."""


class FlowMapTask(FewStepsTask, GenerationTask):
    """
    The transformer of a trained flow learns the mean velocity between two noise levels, so that one to four
    evaluations do what took tens. Guidance then costs nothing: the flow is followed with guidance, and the map needs
    no null condition.

    - `trajectory`: the flow is followed from noise in `teacher_steps` steps, and the map learns to go from any level
      of this path to any later one. Of the records it reads their prompts alone.
    - `mean_flow`: the identity of MeanFlow (arXiv 2505.13447, equation 6) at pictures with noise, with the flow's
      velocity in the place of noise less picture.

    `arguments.noise_draws` is how many intervals of each path, or of each picture, are learned from at once.

    Args:
        targets: `trajectory` or `mean_flow`.
        teacher_steps: steps of the flow. The map draws in any number of steps; best in one that divides this.
        teacher_guidance_scale: of the flow.
    """

    name = "flow_map"
    default_parts = ("transformer",)
    makes_flow_maps = True
    teacher: Blip3oTransformer2DModel

    def __init__(
        self, targets: str = "trajectory", teacher_steps: int = 12, teacher_guidance_scale: float = 2.0
    ) -> None:
        check_name("kind of `targets`", targets, TARGETS)
        self._teach_by(teacher_steps, teacher_guidance_scale)
        self.targets, self.takes_targets = targets, targets == "mean_flow"
        followed = f"followed in {teacher_steps} steps" if targets == "trajectory" else "asked at pictures with noise"
        self.details = (
            f"The flow it was made of was {followed}, with guidance {teacher_guidance_scale:g} (`{targets}`)."
        )

    def needs_encoder(self, arguments):
        return self.takes_targets and super().needs_encoder(arguments)

    def setup(self, model, processor, target_encoder, arguments, peft_config=None):
        _check_maps(model, arguments, peft_config)
        return super().setup(model, processor, target_encoder, arguments, peft_config)

    def choose(self, model):
        self.model = model
        self.teacher = frozen_copy(model.transformer, self.arguments)
        model.transformer = model.transformer.as_flow_map()
        model.config.transformer_config = {**model.config.transformer_config, "is_flow_map": True}
        model.config.condition_dropout = 0.0  # there is no null condition to learn
        super().choose(model)

    def collate(self, records):
        return super().collate(records) if self.takes_targets else self.collate_prompts(records)

    def validation_batch(self, records):
        return self.collate_prompts(records)

    # Losses

    def counts(self, batch):
        return {"records": _number(batch)}

    def loss(self, model, batch, generators):
        generators = generators[: _number(batch)]
        draws = self.arguments.noise_draws
        if self.takes_targets:
            batch = self.with_features(batch)
            features = self.model.normalize_features(batch.pop("target_features"))
            (condition,) = self.given(batch)
            noisy, sigma, sigma_to, target = self._mean_flow(features, condition, generators, draws)
        else:
            (condition,) = self.given(batch)
            noisy, sigma, sigma_to, target = self._intervals(condition, generators, draws)
        predicted = self._map(model, condition.repeat_interleave(draws, dim=0), noisy, sigma, sigma_to).float()
        predicted = self.model.objective.predicted_velocity(predicted, noisy, sigma.view(-1, 1, 1, 1))
        return self.mean_error(predicted, target)

    @torch.no_grad()
    def given(self, batch):
        condition = batch["condition"] if "condition" in batch else self.model.encode_condition(**batch)
        return (condition.to(self.model.transformer.dtype),)

    def noise_shape(self):
        config = self.model.config
        return config.feature_dim, config.feature_size, config.feature_size

    def _map(self, model: nn.Module, condition: Tensor, noisy: Tensor, sigma: Tensor, sigma_to: Tensor) -> Tensor:
        """The mean velocity that the map predicts, by the model's own forward, so that engines see it."""
        zeros = self.model.denormalize_features(torch.zeros_like(noisy))
        noise = noisy / sigma.view(-1, 1, 1, 1)  # zeros and this noise mix to what the transformer is to see
        output = model(condition=condition, target_features=zeros, noise=noise, sigma=sigma, sigma_to=sigma_to)
        return output.prediction

    def _intervals(
        self, condition: Tensor, generators: Sequence[torch.Generator], draws: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where intervals of paths begin, the two noise levels of each, and the mean velocities between."""
        noise = drawn_noise(self.noise_shape(), generators).to(condition)
        path, levels = self.path(noise, condition)
        begin, end = (
            torch.stack(ends).to(noise.device)
            for ends in zip(*(_ends(each, draws, self.teacher_steps) for each in generators), strict=True)
        )
        rows = torch.arange(len(noise), device=noise.device)[:, None].expand_as(begin)
        noisy, later = path[begin, rows].flatten(0, 1), path[end, rows].flatten(0, 1)
        sigma, sigma_to = levels[begin].flatten(), levels[end].flatten()
        return noisy, sigma, sigma_to, (noisy - later) / (sigma - sigma_to).view(-1, 1, 1, 1)

    @torch.no_grad()
    def path(self, noise: Tensor, *given: Tensor) -> tuple[Tensor, Tensor]:
        """
        What the flow makes of noise.

        Args:
            noise (`[N, C, h, w]`): at level 1.
            given (`[N, num_queries, hidden]`): the condition of each.

        Returns:
            Normalised features at all levels, float32 `[teacher_steps + 1, N, C, h, w]`, and the levels.
        """
        (condition,) = given
        scheduler, points = self._scheduler(self.teacher_steps, noise), [noise.float()]
        flow: Any = SimpleNamespace(transformer=self.teacher, objective=self.model.objective)
        denoiser = FeatureDenoiser(flow, scheduler, condition.to(self.teacher.dtype))
        for index, timestep in enumerate(scheduler.timesteps):
            velocity = denoiser.predict_at(points[-1].to(self.teacher.dtype), index, self.teacher_guidance_scale)
            points.append(scheduler.step(velocity.float(), timestep, points[-1], return_dict=False)[0])
        return torch.stack(points), scheduler.sigmas.to(noise.device)

    def _scheduler(self, steps: int, noise: Tensor) -> Blip3oFlowScheduler:
        """So many Euler steps, as the model was trained."""
        scheduler = Blip3oFlowScheduler(shift=self.model.config.noise_shift, integer_timesteps=False)
        scheduler.set_timesteps(steps, device=noise.device)
        return scheduler

    def _mean_flow(
        self, features: Tensor, condition: Tensor, generators: Sequence[torch.Generator], draws: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures with noise, the two noise levels of each interval, and what the identity of MeanFlow asks for."""
        features, condition = (each.repeat_interleave(draws, dim=0) for each in (features, condition))
        uniform = torch.cat([torch.rand(draws, 3, generator=each) for each in generators]).to(features)
        noise, config = drawn_noise(self.noise_shape(), generators, draws).to(features), self.model.config
        levels = sigma_from_uniform(uniform[:, :2].flatten(), config.noise_distribution, config.noise_shift)
        sigma, sigma_to = levels.unflatten(0, (-1, 2)).aminmax(dim=1)[::-1]
        sigma_to = torch.where(uniform[:, 2] < INSTANTS, sigma, sigma_to)
        noisy = self.model.objective.add_noise(features, noise, sigma)
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            velocity = self._teacher_velocity(noisy, sigma, condition)
            growth = self._growth(noisy, sigma, sigma_to, condition, velocity)
        return noisy, sigma, sigma_to, velocity - (sigma - sigma_to).view(-1, 1, 1, 1) * growth

    def _teacher_velocity(self, noisy: Tensor, sigma: Tensor, condition: Tensor) -> Tensor:
        """The flow's, with guidance, at levels of its own for each."""

        def velocity(condition: Tensor) -> Tensor:
            dtype = self.teacher.dtype
            predicted = self.teacher(noisy.to(dtype), self.model.training_timestep(sigma), condition.to(dtype)).sample
            return self.model.objective.predicted_velocity(predicted.float(), noisy, sigma.view(-1, 1, 1, 1))

        if self.teacher_guidance_scale == 1:
            return velocity(condition)
        null = velocity(torch.zeros_like(condition))
        return null + self.teacher_guidance_scale * (velocity(condition) - null)

    def _growth(self, noisy: Tensor, sigma: Tensor, sigma_to: Tensor, condition: Tensor, velocity: Tensor) -> Tensor:
        """How the map's prediction changes along the path, by the forward derivative; no longer than a velocity."""
        transformer, to = self.model.transformer, self.model.training_timestep(sigma_to)

        def predicted(noisy: Tensor, sigma: Tensor) -> Tensor:
            timestep = 1000 * sigma  # not cut to whole numbers, which have no derivative
            found = transformer(noisy, timestep, condition, r_timestep=to).sample
            return self.model.objective.predicted_velocity(found, noisy, sigma.view(-1, 1, 1, 1))

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            growth = torch.func.jvp(predicted, (noisy, sigma), (velocity, torch.ones_like(sigma)))[1]
        lengths = (sigma - sigma_to) * growth.flatten(1).norm(dim=1)
        shrink = (velocity.flatten(1).norm(dim=1) / lengths.clamp(min=1e-12)).clamp(max=1.0)
        return growth * shrink.view(-1, 1, 1, 1)

    def drawn(self, model, noise, steps, *given):
        (condition,) = given
        noise, scheduler = noise.to(condition), self._scheduler(steps, noise)
        denoiser = FeatureDenoiser(self.model, scheduler, condition)
        for index, timestep in enumerate(scheduler.timesteps):
            noise = scheduler.step(denoiser.predict(noise, index), timestep, noise, return_dict=False)[0]
        return noise.float()


def _ends(generator: torch.Generator, draws: int, steps: int) -> tuple[Tensor, Tensor]:
    """Where intervals of a path of so many steps begin and end."""
    chance = torch.rand(draws, 4, generator=generator)
    begin = torch.where(chance[:, 0] < FROM_NOISE, 0, (chance[:, 1] * steps).long())
    end = torch.where(chance[:, 2] < TO_CLEAN, steps, begin + 1 + (chance[:, 3] * (steps - begin)).long())
    return begin, end.clamp(max=steps)


def _check_maps(model: Blip3oForConditionalGeneration, arguments: Any, peft_config: Any) -> None:
    """Raise a `ValueError` where no transformer of a flow would become a map."""
    if peft_config is not None or tuple(arguments.train or ("transformer",)) != ("transformer",):
        raise ValueError(
            f"What becomes a flow map is the whole transformer. Got train={arguments.train} and "
            f"{'adapters' if peft_config is not None else 'no adapters'}. Leave both out."
        )
    if not model.config.uses_transformer:
        raise ValueError(
            f"A flow map is made of a flow. This model has the objective {model.config.objective!r}, which draws in "
            f"one pass already. Start from a model with a transformer."
        )
    if getattr(type(model.objective), "add_noise", None) is not FeatureFlow.add_noise:
        raise ValueError(
            f"A flow map follows straight paths from noise. The objective {model.config.objective!r} adds noise in "
            f"another way. Start from a model of another objective."
        )
    check_holds_all(arguments)


def _number(batch: Mapping[str, Any]) -> int:
    """Of the records of a batch."""
    return len(batch["condition"] if "condition" in batch else batch["input_ids"])


__all__ = ["FlowMapTask"]
