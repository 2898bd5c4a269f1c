"""Learning from rewards by Flow-GRPO: policy gradients of sampling steps with noise."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..checks import check_name, check_sizes
from ..schedulers.stochastic_step import SDE_TYPES, StochasticStep, check_noise_level, stochastic_step
from ..training.trainer import seeded_generator
from .losses import clip_of, clipped_ratio_loss, guarded_log_ratio, mean_square
from .reward_config import FlowRewardConfig
from .reward_task import Drawn, FlowRewardTask, compared
from .reward_trainer import FlowRewardTrainer
from .rollouts import NoisySteps

WINDOW_SCHEDULES = ("fixed", "random", "progressive")
CLIP_OF_ALL, CLIP_OF_WINDOW = 6.5, 0.65
"""kappa of all steps (Flow-GRPO's 1e-4 at D = 65,536), and of a window (Flow-GRPO-Fast's 1e-5)."""
WINDOWS = 5
"""Last of the numbers that seed places of windows, so that nothing else is drawn from the same."""
GUARDED_CLIP = 0.13
"""Of GRPO-Guard: 2e-6 at D = 65,536."""


@dataclass
class FlowGRPOConfig(FlowRewardConfig):
    """
    [`~preference.reward_config.FlowRewardConfig`] plus:

    Args:
        noise_level: a of the steps with noise.
        sde_type: their form, `ddim`, `flow` or `cps`; see [`~schedulers.stochastic_step.stochastic_step`].
        sde_window_size: so many steps in a row have noise and are learned from, the others are Euler's; `None` for
            all of the range.
        sde_window_range: the first step that may have noise, and the one after the last; by default all but the last
            step, after which no noise would be left. `flow` is off in the first step (see there): take (1, ...).
        window_schedule: where in the range the window is: at its beginning (`fixed`), anywhere (`random`, anew in each
            step), or `progressive`: one step further every `window_interval` steps.
        window_interval: of `progressive`.
        share_start: the pictures of a prompt start from one noise, so that they differ by the steps with noise alone,
            and what these did is told from where a picture began.
        clip_scale: kappa: ratios are clipped at kappa / D, D being the numbers of a picture's features. By default
            6.5, 0.65 for a window, 0.13 with `guard`.
        guard: ratios of GRPO-Guard (arXiv 2510.22319), which have no bias and one scale at all steps.
        beta: weight of the divergence from the reference, a mean over D; 0 for no reference.
    """

    noise_level: float = field(default=0.7)
    sde_type: str = field(default="ddim")
    sde_window_size: int | None = field(default=None)
    sde_window_range: tuple[int, int] | list[int] | None = field(default=None)
    window_schedule: str = field(default="fixed")
    window_interval: int = field(default=25)
    share_start: bool = field(default=False)
    clip_scale: float | None = field(default=None)
    guard: bool = field(default=False)

    def __post_init__(self):
        super().__post_init__()
        check_name("`sde_type`", self.sde_type, SDE_TYPES)
        check_name("`window_schedule`", self.window_schedule, WINDOW_SCHEDULES)
        check_sizes(2, rollout_steps=self.rollout_steps)
        check_sizes(window_interval=self.window_interval)
        self.check_above(noise_level=self.noise_level)
        check_noise_level(self.noise_level, self.sde_type)
        given = self.sde_window_range
        is_pair = given is None or (len(given) == 2 and all(type(number) is int for number in given))
        first, last = self.noisy_range if is_pair else (-1, -1)
        if not 0 <= first < last < self.rollout_steps:
            raise ValueError(
                f"`sde_window_range` must be two steps, 0 <= first < last <= {self.rollout_steps - 1}: after the last "
                f"of `rollout_steps` no noise is left. Got {self.sde_window_range}. Leave it out for all others."
            )
        if self.sde_window_size is not None:
            check_sizes(sde_window_size=self.sde_window_size)
            if self.sde_window_size > last - first:
                raise ValueError(
                    f"A window of steps must fit its range. Got sde_window_size={self.sde_window_size} for the steps "
                    f"from {first} to before {last}. Take at most {last - first}."
                )
        if self.clip_scale is not None:
            self.check_above(clip_scale=self.clip_scale)
        if self.guard and self.sde_type == "cps":
            raise ValueError(
                "GRPO-Guard corrects probabilities of normal steps. Got sde_type='cps', which has none. Use 'ddim'."
            )

    @property
    def noisy_range(self) -> tuple[int, int]:
        """First step that may have noise, and the one after the last."""
        first, last = self.sde_window_range or (0, self.rollout_steps - 1)
        return first, last

    def window(self, step: int) -> tuple[int, int]:
        """First step with noise, and the one after the last, of the pictures that are drawn at a step of training."""
        first, last = self.noisy_range
        if self.sde_window_size is None:
            return first, last
        places = last - first - self.sde_window_size + 1
        moved = 0
        if self.window_schedule == "random":
            moved = int(torch.randint(places, (1,), generator=seeded_generator(self.seed, step, WINDOWS)))
        elif self.window_schedule == "progressive":
            moved = min(step // self.window_interval, places - 1)
        return first + moved, first + moved + self.sde_window_size

    def clip(self, num_dimensions: int) -> float:
        """Largest distance of ratios from 1, for features of so many numbers."""
        scale = CLIP_OF_ALL if self.sde_window_size is None else CLIP_OF_WINDOW
        scale = GUARDED_CLIP if self.guard else scale
        return clip_of(scale if self.clip_scale is None else self.clip_scale, num_dimensions)


class FlowGRPOTask(FlowRewardTask):
    """Of [`FlowGRPOTrainer`]."""

    name = "flow_grpo"
    config_class = FlowGRPOConfig
    arguments: FlowGRPOConfig  # ty: ignore[incompatible-mutable-override]  # `setup` takes no other

    def draw(self, prompts, generators):
        arguments = self.arguments
        steps = arguments.window(self.place()[0])
        window = NoisySteps(*steps, arguments.noise_level, arguments.sde_type, arguments.share_start)
        rollout = self.rollouts.trajectories(prompts, generators, window)
        sigmas = torch.tensor(rollout.sigmas).repeat(len(rollout.features), 1)
        samples = rollout.samples.transpose(0, 1).contiguous()
        return {"condition": rollout.condition, "samples": samples, "sigmas": sigmas}, rollout

    def learn(self, model, drawn, generators):
        arguments, samples = self.arguments, drawn["samples"]
        sigmas = drawn["sigmas"][0].tolist()
        number, size = len(sigmas) - 1, len(samples)
        at_step = {
            "condition": drawn["condition"].repeat(number, *[1] * (drawn["condition"].ndim - 1)),
            "clean": samples[:, :-1].transpose(0, 1).flatten(0, 1),
            "sigma": torch.tensor(sigmas[:-1], device=samples.device).repeat_interleave(size),
        }
        at_step["noise"] = at_step["clean"]  # x itself is what the network reads at its level: x = (1 - s) x + s x
        velocity = self._guided(model, at_step)
        steps = self._replayed(velocity, samples, sigmas)
        means = torch.stack([step.mean for step in steps], dim=1)
        if "old_means" not in drawn:  # on the policy that drew, whose first ratio is then exactly 1
            drawn["old_means"] = means.detach()
            drawn["old_log_probs"] = torch.stack([step.log_prob.detach() for step in steps], dim=1)
        advantages = drawn["advantages"]
        clip = arguments.clip(samples[0, 0].numel())
        losses, ratios = [], []
        # GRPO-Guard's ratios have one scale in all steps; divided by its length, a step counts as much as any other
        weights = [1 / (a - b) if arguments.guard else 1.0 for a, b in itertools.pairwise(sigmas)]
        for index, step in enumerate(steps):
            log_ratio = step.log_prob - drawn["old_log_probs"][:, index]
            if arguments.guard:
                log_ratio = guarded_log_ratio(log_ratio, step.mean, drawn["old_means"][:, index], step.std)
            losses.append(clipped_ratio_loss(log_ratio, advantages, clip) * weights[index])
            ratios.append(log_ratio.detach().exp() - 1)
        loss = torch.stack(losses).mean(dim=0)
        self._note(torch.stack(ratios), advantages, clip)
        if arguments.beta:
            loss = loss + arguments.beta * self._divergence(velocity, steps, at_step, samples, sigmas)
        return loss

    def _replayed(self, velocity: Tensor, samples: Tensor, sigmas: Sequence[float]) -> list[StochasticStep]:
        """The steps that were drawn, by these velocities `[W * N, ...]`."""
        arguments, each = self.arguments, velocity.chunk(len(sigmas) - 1)
        return [
            stochastic_step(
                samples[:, index],
                each[index],
                sigmas[index],
                sigmas[index + 1],
                arguments.noise_level,
                arguments.sde_type,
                next_sample=samples[:, index + 1],
            )
            for index in range(len(each))
        ]

    def _guided(self, model, at_step: Drawn) -> Tensor:
        """Velocities, guided as those of the rollout; the null branch learns nothing from this."""
        scale, velocity = self.arguments.rollout_guidance_scale, self.velocity(model, at_step)
        if scale == 1:
            return velocity
        with torch.no_grad():
            condition = torch.zeros_like(at_step["condition"])
            null = self.velocity(self.policies.model, {**at_step, "condition": condition})
        return null + scale * (velocity - null)

    def _divergence(
        self,
        velocity: Tensor,
        steps: Sequence[StochasticStep],
        at_step: Drawn,
        samples: Tensor,
        sigmas: Sequence[float],
    ) -> Tensor:
        """From the reference `[N]`: of normal steps the exact one over D, of `cps` the squared distance of means."""
        with torch.no_grad(), self.policies.as_reference():
            reference_velocity = self._guided(self.policies.model, at_step)
        growth = compared(velocity, reference_velocity)["velocity_growth"]
        references = self._replayed(reference_velocity, samples, sigmas)
        distances = []
        for step, reference in zip(steps, references, strict=True):
            factor = 1.0 if self.arguments.sde_type == "cps" else 1 / (2 * step.std**2)
            distances.append(factor * mean_square(step.mean - reference.mean))
        divergence = torch.stack(distances).mean(dim=0)
        self.metrics[-1] |= {"kl": divergence.mean().item(), "velocity_growth": growth}
        return divergence

    def _note(self, distances: Tensor, advantages: Tensor, clip: float) -> None:
        """Log how far ratios `[W, N]` are from 1, in units of the clip, and how many are cut."""
        low = (distances < -clip) & (advantages < 0)
        high = (distances > clip) & (advantages > 0)
        self.metrics[-1] |= {
            "ratio_over_clip": (distances.abs().mean() / clip).item(),
            "clip_ratio/low_mean": low.float().mean().item(),
            "clip_ratio/high_mean": high.float().mean().item(),
            "clip_ratio/region_mean": (low | high).float().mean().item(),
        }


class FlowGRPOTrainer(FlowRewardTrainer):
    """
    Learns from rewards by Flow-GRPO (arXiv 2505.05470): some sampling steps draw noise, so that each has a
    probability, and those of pictures better than their group become likelier, within PPO's clip. With
    `sde_window_size` the other steps are Euler's, as in Flow-GRPO-Fast and MixGRPO (arXiv 2507.21802). The only one of
    these trainers that is exact under guidance. Arguments as of [`~preference.reward_trainer.FlowRewardTrainer`].

    Example:

    ```python
    >>> from blip3o_hf import FlowGRPOConfig, FlowGRPOTrainer

    >>> def redness(prompts, completions, **columns):
    ...     return [image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in completions]

    >>> args = FlowGRPOConfig("runs/red", sde_window_size=3, window_schedule="random")  # doctest: +SKIP
    >>> prompts = [{"prompt": "a circle"}]
    >>> trainer = FlowGRPOTrainer("blip3o-tiny", redness, args, train_dataset=prompts)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    task_class = FlowGRPOTask


__all__ = ["FlowGRPOConfig", "FlowGRPOTask", "FlowGRPOTrainer"]
