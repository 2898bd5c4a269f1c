"""From noise to image features: the noise levels of sampling and the steps between them.

Solves d x / d sigma = v(x, sigma) from sigma = 1 (noise) to sigma = 0 (features), where the network's v was
trained on noise - target (paper section 3.2). The default is the released pipeline: Euler steps on
linspace(1, 1/S, S), with timesteps cut to integers on their way to the network.

The file's path is written into saved pipelines; keep it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from ..checks import check_name, is_finite_number

SOLVERS = ("euler", "adams_bashforth2", "dpmsolver++2m")


@dataclass
class Blip3oFlowSchedulerOutput(BaseOutput):
    """One solver step.

    Args:
        prev_sample (`torch.Tensor`): the sample at the next, lower noise level; the next model input.
    """

    prev_sample: torch.Tensor


class Blip3oFlowScheduler(SchedulerMixin, ConfigMixin):
    """Deterministic sampler for velocities along x = (1 - sigma) * target + sigma * noise.

    Args:
        num_train_timesteps (`int`, defaults to 1000): timestep = num_train_timesteps * sigma, the unit in
            which the network receives the noise level.
        shift (`float`, defaults to 1.0): moves the default noise levels towards noise (> 1) or towards clean
            (< 1): sigma' = shift * sigma / (1 + (shift - 1) * sigma).
        solver (`str`, defaults to `"euler"`): `"euler"`; `"adams_bashforth2"`, second-order multistep on the
            velocity; `"dpmsolver++2m"`, second-order multistep on the predicted clean features. All of them
            call the network once per step.
        integer_timesteps (`bool`, defaults to `True`): cut `timesteps` to integers (966.67 becomes 966, not
            967), as the released pipeline does. `sigmas`, with which the steps are computed, are never cut.

    Raises:
        ValueError: if the solver is unknown, or `shift` or `num_train_timesteps` is not positive.

    Example:
        >>> scheduler = Blip3oFlowScheduler()
        >>> scheduler.set_timesteps(3)
        >>> scheduler.timesteps
        tensor([1000.,  666.,  333.])
    """

    _compatibles = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        solver: str = "euler",
        integer_timesteps: bool = True,
    ):
        check_name("solver", solver, SOLVERS)
        if not is_finite_number(shift, 0):
            raise ValueError(f"`shift` must be positive, got {shift!r:.60}. Use 1.0 for the unshifted schedule.")
        if not _is_count(num_train_timesteps):
            raise ValueError(
                f"`num_train_timesteps` must be a positive integer, got {num_train_timesteps!r}. "
                "BLIP3-o models are trained with 1000."
            )
        # The grid of training, for readers of `timesteps`; `step` asks for a schedule of its own.
        self.set_timesteps(num_train_timesteps)
        self.num_inference_steps: int | None = None

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @property
    def step_index(self) -> int | None:
        """Index of the next step; None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, if a pipeline set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this step of the schedule, as image-to-image does; call it after `set_timesteps`."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | np.ndarray | torch.Tensor | None = None,
    ) -> None:
        """Lay out the noise levels of one run and forget the steps of the previous one.

        Sets `sigmas`, float32 [S + 1] ending in 0, and `timesteps`, float32 [S]. `sigmas` stay on the CPU,
        where the coefficients of the steps are computed; `timesteps` go to `device`.

        Args:
            num_inference_steps: S, at least 1. The noise levels are linspace(1, 1/S, S), shifted.
            device: device of `timesteps`.
            sigmas: [S], noise levels to use as they are (no shift), strictly descending, in (0, 1]; the
                final 0 is appended.

        Raises:
            ValueError: if neither or inconsistent arguments are given, or the values break these contracts.
        """
        if num_inference_steps is None and sigmas is None:
            raise ValueError(
                "A schedule needs a number of steps or its noise levels. Got neither. "
                "Pass `num_inference_steps` or `sigmas`."
            )
        if num_inference_steps is not None and not _is_count(num_inference_steps):
            raise ValueError(
                f"`num_inference_steps` must be an integer of at least 1, got {num_inference_steps!r}. "
                "The released pipeline uses 30."
            )
        if sigmas is not None:
            levels = _checked_sigmas(sigmas)
            if num_inference_steps is not None and num_inference_steps != len(levels):
                raise ValueError(
                    "`sigmas` holds one noise level per step. "
                    f"Got {len(levels)} levels and num_inference_steps={num_inference_steps}. "
                    "Pass only `sigmas`."
                )
        else:
            assert num_inference_steps is not None
            levels = np.linspace(1.0, 1.0 / num_inference_steps, int(num_inference_steps)).astype(np.float32)
            shift = self.config.shift
            levels = torch.from_numpy(shift * levels / (1 + (shift - 1) * levels))

        timesteps = levels * self.config.num_train_timesteps
        if self.config.integer_timesteps:
            timesteps = timesteps.trunc()
        self.num_inference_steps = len(levels)
        self.sigmas = torch.cat([levels, levels.new_zeros(1)])
        self.timesteps = timesteps.to(device)
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._previous_output: torch.Tensor | None = None

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Return `sample`: on the straight path the network sees the sample as it is."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> Blip3oFlowSchedulerOutput | tuple[torch.Tensor]:
        """Move the sample to the next noise level.

        Args:
            model_output: [B, ...], the velocity d x / d sigma at `sample`.
            timestep: an entry of `timesteps`. It finds the first step of a run unless `set_begin_index` did;
                from there the steps are counted, since truncated timesteps may repeat.
            sample: [B, ...], at the current noise level.
            generator: accepted as pipelines pass it; every solver here is deterministic.
            return_dict: return a `Blip3oFlowSchedulerOutput` rather than a tuple.

        Returns:
            The sample at the next noise level, computed in float32, in the dtype of `model_output`.

        Raises:
            ValueError: if no schedule is set, it is used up, or `timestep` is not in it.
        """
        if self.num_inference_steps is None:
            raise ValueError("`step` needs a schedule. None is set. Call `set_timesteps` first.")
        if self._step_index is None:
            self._step_index = self._first_index(timestep) if self._begin_index is None else self._begin_index
        if self._step_index >= self.num_inference_steps:
            raise ValueError(
                f"The schedule has {self.num_inference_steps} steps. All of them were taken. "
                "Call `set_timesteps` before each run."
            )
        solve = {
            "euler": self._euler,
            "adams_bashforth2": self._adams_bashforth2,
            "dpmsolver++2m": self._dpmsolver_2m,
        }[self.config.solver]
        prev_sample = solve(model_output.float(), sample.float()).to(model_output.dtype)
        self._step_index += 1
        return Blip3oFlowSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _euler(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        sigma, sigma_next = self._levels(self._step_index)
        return sample + (sigma_next - sigma) * velocity

    def _adams_bashforth2(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """Extrapolate the velocity linearly to the middle of the step; the first step of a run is Euler's."""
        previous, self._previous_output = self._previous_output, velocity
        if previous is None:
            return self._euler(velocity, sample)
        sigma, sigma_next = self._levels(self._step_index)
        sigma_previous, _ = self._levels(self._step_index - 1)
        step, step_previous = sigma_next - sigma, sigma - sigma_previous
        return sample + step * (velocity + step / (2 * step_previous) * (velocity - previous))

    def _dpmsolver_2m(self, velocity: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """DPM-Solver++(2M), https://huggingface.co/papers/2211.01095, for alpha = 1 - sigma.

        With r = sigma_next / sigma the exact update for a constant clean prediction D is
        x' = r x + (1 - r) D. The second order extrapolates D linearly in lambda = log(alpha / sigma), which
        needs three finite values of it: where one of the levels is 1 or 0 the step stays first order.
        Its errors fall with the steps in lambda, so on levels even in sigma it gains less than
        `_adams_bashforth2` does.
        """
        sigma, sigma_next = self._levels(self._step_index)
        clean = sample - sigma * velocity
        previous, self._previous_output = self._previous_output, clean
        if previous is not None and sigma_next > 0:
            sigma_previous, _ = self._levels(self._step_index - 1)
            if sigma_previous < 1:
                step = _log_signal_to_noise(sigma_next) - _log_signal_to_noise(sigma)
                step_previous = _log_signal_to_noise(sigma) - _log_signal_to_noise(sigma_previous)
                clean = clean + step / (2 * step_previous) * (clean - previous)
        ratio = sigma_next / sigma
        return ratio * sample + (1 - ratio) * clean

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Forward process: (1 - sigma) * sample + sigma * noise.

        Args:
            sample: [B, ...], clean features.
            timestep: scalar, [1] or [B], in 0 ... num_train_timesteps. An entry of `timesteps` stands for its
                uncut sigma (the first one, if several were cut to the same value), any other value for
                timestep / num_train_timesteps.
            noise: [B, ...], from N(0, 1).

        Returns:
            [B, ...] in the dtype of `sample`.

        Raises:
            ValueError: if a timestep is out of range or there is not one per sample.
        """
        timestep = torch.as_tensor(timestep).detach().to("cpu", torch.float32).reshape(-1)
        last = self.config.num_train_timesteps
        if len(timestep) not in (1, len(sample)) or not ((timestep >= 0) & (timestep <= last)).all():
            raise ValueError(
                f"`timestep` holds one value, or one per sample ({len(sample)}), between 0 and {last}. "
                f"Got {timestep.tolist()}. Take them from `scheduler.timesteps`."
            )
        sigma = timestep / last
        if self.num_inference_steps is not None:
            is_entry = timestep[:, None] == self.timesteps.cpu()[None, :]
            sigma = torch.where(is_entry.any(1), self.sigmas[is_entry.int().argmax(1)], sigma)
        sigma = sigma.to(sample.device, sample.dtype).reshape(-1, *[1] * (sample.ndim - 1))
        return (1 - sigma) * sample + sigma * noise.to(sample)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`scale_noise` under the name and argument order of the older diffusers schedulers."""
        return self.scale_noise(original_samples, timesteps, noise)

    def _levels(self, index: int) -> tuple[float, float]:
        sigma, sigma_next = self.sigmas[index : index + 2].tolist()
        return sigma, sigma_next

    def _first_index(self, timestep: float | torch.Tensor) -> int:
        timestep = torch.as_tensor(timestep).to("cpu", torch.float32)
        matches = (self.timesteps.cpu() == timestep).nonzero() if timestep.numel() == 1 else ()
        if len(matches) == 0:
            raise ValueError(
                "`timestep` must be one of `scheduler.timesteps`. "
                f"Got {timestep.tolist()}, the schedule is {self.timesteps.tolist()[:4]} and so on. "
                "Loop over `scheduler.timesteps`, or start further down with `set_begin_index`."
            )
        return int(matches[0])


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _log_signal_to_noise(sigma: float) -> float:
    return math.log((1 - sigma) / sigma)


def _checked_sigmas(sigmas: Sequence[float] | np.ndarray | torch.Tensor) -> torch.Tensor:
    if not isinstance(sigmas, torch.Tensor):
        sigmas = torch.from_numpy(np.asarray(sigmas, dtype=np.float32).copy())
    sigmas = sigmas.detach().to("cpu", torch.float32)
    is_valid = (
        sigmas.ndim == 1
        and len(sigmas) > 0
        and bool((sigmas > 0).all() and (sigmas <= 1).all() and (sigmas.diff() < 0).all())
    )
    if not is_valid:
        raise ValueError(
            "`sigmas` must be a list of strictly descending noise levels in (0, 1]. "
            f"Got {sigmas.tolist()}. Leave out the final 0, which is appended."
        )
    return sigmas
