"""The task `flow_map`: a trained flow becomes a model of few steps."""

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...checks import check_name, check_sizes, is_finite_number
from ...models.modeling_blip3o import Blip3oForConditionalGeneration
from ...models.transformer_next_dit import Blip3oTransformer2DModel
from ...objectives.feature_flow import FeatureFlow
from ...objectives.noise_levels import sigma_from_uniform
from ...pipelines.denoising import FeatureDenoiser
from ...schedulers.scheduling_feature_flow import Blip3oFlowScheduler
from ..arguments import FROZEN_DTYPES, Blip3oTrainingArguments
from .generation import GenerationTask

TARGETS = ("trajectory", "mean_flow")
FROM_NOISE, TO_CLEAN = 0.35, 0.25
"""Shares of intervals that begin at noise, and that end at clean features, beside those that do so by chance."""
INSTANTS = 0.25
"""Share of intervals of no length, at which MeanFlow learns the velocity itself."""
ADAPTIVE = 1e-2
"""Errors are divided by themselves and this, as MeanFlow weights them: so no interval outweighs the others."""
VALIDATED_STEPS = (1, 4)


class FlowMapTask(GenerationTask):
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
        check_sizes(teacher_steps=teacher_steps)
        if not is_finite_number(teacher_guidance_scale, 0):
            raise ValueError(
                f"`teacher_guidance_scale` must be positive. Got {teacher_guidance_scale!r:.40}. 1 is no guidance."
            )
        self.targets, self.teacher_steps = targets, teacher_steps
        self.takes_targets = targets == "mean_flow"
        self.teacher_guidance_scale = teacher_guidance_scale
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
        self.teacher = copy.deepcopy(model.transformer).eval().requires_grad_(False)
        for parameter in self.teacher.parameters():
            parameter.data = parameter.data.to(FROZEN_DTYPES[self.arguments.frozen_dtype])
        model.transformer = model.transformer.as_flow_map()
        model.config.transformer_config = {**model.config.transformer_config, "is_flow_map": True}
        model.config.condition_dropout = 0.0  # there is no null condition to learn
        super().choose(model)

    @property
    def frozen_parts(self):
        return [*super().frozen_parts, self.teacher]

    def collate(self, records):
        return super().collate(records) if self.takes_targets else self._prompts(records)

    def _prompts(self, records: Sequence[Any]) -> dict[str, Any]:
        """Prompts, or their conditions from a cache, without targets."""
        if "conditions" in self.cached.kinds:
            return {"condition": torch.stack([record.condition for record in records]).float()}
        return self.encode_prompts(*zip(*((r.prompt, r.images, r.history) for r in records), strict=True))

    # Losses

    def counts(self, batch):
        return {"records": _number(batch)}

    def loss(self, model, batch, generators):
        generators = generators[: _number(batch)]
        draws = self.arguments.noise_draws
        if self.takes_targets:
            batch = self.with_features(batch)
            features = self.model.normalize_features(batch.pop("target_features"))
            condition = self._condition(batch)
            noisy, sigma, sigma_to, target = self._mean_flow(features, condition, generators, draws)
        else:
            condition = self._condition(batch)
            noisy, sigma, sigma_to, target = self._intervals(condition, generators, draws)
        predicted = self._map(model, condition.repeat_interleave(draws, dim=0), noisy, sigma, sigma_to).float()
        predicted = self.model.objective.predicted_velocity(predicted, noisy, sigma.view(-1, 1, 1, 1))
        errors = (predicted - target).square().flatten(1).mean(dim=1)
        return self.share("records") * (errors / (errors.detach() + ADAPTIVE)).mean()

    @torch.no_grad()
    def _condition(self, batch: dict[str, Any]) -> Tensor:
        condition = batch["condition"] if "condition" in batch else self.model.encode_condition(**batch)
        return condition.to(self.model.transformer.dtype)

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
        config = self.model.config
        shape = (config.feature_dim, config.feature_size, config.feature_size)
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(condition)
        path, levels = self.path(noise, condition)
        begin, end = (
            torch.tensor(ends, device=noise.device)
            for ends in zip(*(_ends(each, draws, self.teacher_steps) for each in generators), strict=True)
        )
        rows = torch.arange(len(noise), device=noise.device)[:, None].expand_as(begin)
        noisy, later = path[begin, rows].flatten(0, 1), path[end, rows].flatten(0, 1)
        sigma, sigma_to = levels[begin].flatten(), levels[end].flatten()
        return noisy, sigma, sigma_to, (noisy - later) / (sigma - sigma_to).view(-1, 1, 1, 1)

    @torch.no_grad()
    def path(self, noise: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """
        What the flow makes of noise.

        Args:
            noise (`[N, C, h, w]`): at level 1.
            condition (`[N, num_queries, hidden]`): of each.

        Returns:
            Normalised features at all levels, float32 `[teacher_steps + 1, N, C, h, w]`, and the levels.
        """
        scheduler = Blip3oFlowScheduler(shift=self.model.config.noise_shift, integer_timesteps=False)
        scheduler.set_timesteps(self.teacher_steps, device=noise.device)
        flow: Any = SimpleNamespace(transformer=self.teacher, objective=self.model.objective)
        denoiser = FeatureDenoiser(flow, scheduler, condition.to(self.teacher.dtype))
        points = [noise.float()]
        for index, timestep in enumerate(scheduler.timesteps):
            velocity = self._guided(denoiser, points[-1].to(self.teacher.dtype), index)
            points.append(scheduler.step(velocity.float(), timestep, points[-1], return_dict=False)[0])
        return torch.stack(points), scheduler.sigmas.to(noise.device)

    def _guided(self, denoiser: FeatureDenoiser, noisy: Tensor, index: int) -> Tensor:
        if not denoiser.is_guided(self.teacher_guidance_scale):
            return denoiser.predict(noisy, index)
        conditional, null = denoiser.predict_both(noisy, index)
        return null + self.teacher_guidance_scale * (conditional - null)

    def _mean_flow(
        self, features: Tensor, condition: Tensor, generators: Sequence[torch.Generator], draws: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pictures with noise, the two noise levels of each interval, and what the identity of MeanFlow asks for."""
        features, condition = (each.repeat_interleave(draws, dim=0) for each in (features, condition))
        uniform = torch.cat([torch.rand(draws, 3, generator=each) for each in generators]).to(features)
        noise = torch.cat([torch.randn(draws, *features.shape[1:], generator=each) for each in generators])
        noise, config = noise.to(features), self.model.config
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
            found = transformer(
                noisy, 1000 * sigma, condition, r_timestep=to
            ).sample  # whole numbers have no derivative
            return self.model.objective.predicted_velocity(found, noisy, sigma.view(-1, 1, 1, 1))

        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward derivative
            growth = torch.func.jvp(predicted, (noisy, sigma), (velocity, torch.ones_like(sigma)))[1]
        lengths = (sigma - sigma_to) * growth.flatten(1).norm(dim=1)
        shrink = (velocity.flatten(1).norm(dim=1) / lengths.clamp(min=1e-12)).clamp(max=1.0)
        return growth * shrink.view(-1, 1, 1, 1)

    def validate(self, model, dataset):
        """
        Mean squared errors of clean features that the map draws of held-out prompts in few steps, of what the flow
        makes of the same noise, in variances of the latter.
        """
        sums, number = dict.fromkeys(VALIDATED_STEPS, 0.0), 0
        for records in self.batches(dataset):
            batch = self.on_device(self._prompts(records), model)
            condition, config = self._condition(batch), self.model.config
            generators = [torch.Generator().manual_seed(number + index) for index in range(len(records))]
            shape = (config.feature_dim, config.feature_size, config.feature_size)
            noise = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(condition)
            clean = self.path(noise, condition)[0][-1]
            for steps in VALIDATED_STEPS:
                error = (self._drawn(noise, condition, steps) - clean).square().mean() / clean.var()
                sums[steps] += error.item() * len(records)
            number += len(records)
        losses = {f"loss_of_{steps}_steps": value / number for steps, value in sums.items()} if number else {}
        return {**losses, "loss": sum(losses.values()) / len(losses)} if losses else {}

    @torch.no_grad()
    def _drawn(self, noise: Tensor, condition: Tensor, steps: int) -> Tensor:
        """Clean features that the map draws."""
        scheduler = Blip3oFlowScheduler(shift=self.model.config.noise_shift, integer_timesteps=False)
        scheduler.set_timesteps(steps, device=noise.device)
        denoiser = FeatureDenoiser(self.model, scheduler, condition)
        for index, timestep in enumerate(scheduler.timesteps):
            noise = scheduler.step(denoiser.predict(noise, index), timestep, noise, return_dict=False)[0]
        return noise.float()


def _ends(generator: torch.Generator, draws: int, steps: int) -> tuple[list[int], list[int]]:
    """Where intervals of a path of so many steps begin and end."""
    chance = torch.rand(draws, 4, generator=generator)
    begin = torch.where(chance[:, 0] < FROM_NOISE, 0, (chance[:, 1] * steps).long())
    end = torch.where(chance[:, 2] < TO_CLEAN, steps, begin + 1 + (chance[:, 3] * (steps - begin)).long())
    return begin.tolist(), end.clamp(max=steps).tolist()


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


def check_holds_all(arguments: Blip3oTrainingArguments) -> None:
    """
    Raises:
        ValueError: when an engine spreads weights over processes, of which a task makes whole copies.
    """
    plugin = arguments.deepspeed_plugin
    if (plugin is not None and plugin.zero_stage == 3) or arguments.fsdp:
        raise ValueError(
            "What is learned from is a copy of the weights, of which each process must hold all. Got ZeRO-3 or FSDP. "
            "Use DDP or ZeRO-2."
        )


def _number(batch: Mapping[str, Any]) -> int:
    """Of the records of a batch."""
    return len(batch["condition"] if "condition" in batch else batch["input_ids"])


__all__ = ["ADAPTIVE", "FlowMapTask", "check_holds_all"]
