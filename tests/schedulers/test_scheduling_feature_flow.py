"""The sampler: the released schedule, the identity with the path, orders of accuracy, diffusers' habits."""

import inspect
import re

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from blip3o_hf.objectives.feature_flow import add_noise
from blip3o_hf.objectives.noise_levels import shift_sigma
from blip3o_hf.schedulers.scheduling_feature_flow import (
    SOLVERS,
    Blip3oFlowScheduler,
    Blip3oFlowSchedulerOutput,
)

# The timesteps that the released pipeline hands to its network over 30 steps.
RELEASED_30 = [
    1000, 966, 933, 900, 866, 833, 800, 766, 733, 700, 666, 633, 600, 566, 533,
    500, 466, 433, 400, 366, 333, 300, 266, 233, 200, 166, 133, 100, 66, 33,
]  # fmt: skip


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for _ in range(2)]


class TestSchedule:
    def test_thirty_steps_are_those_of_the_released_pipeline(self):
        scheduler = Blip3oFlowScheduler()
        scheduler.set_timesteps(30)
        expected = np.append(np.linspace(1.0, 1 / 30, 30), 0).astype(np.float32)
        assert torch.equal(scheduler.sigmas, torch.from_numpy(expected))
        assert scheduler.timesteps.dtype == torch.float32
        assert scheduler.timesteps.tolist() == RELEASED_30
        rounded = (scheduler.sigmas[:-1] * 1000).round()
        assert (rounded != scheduler.timesteps).sum() == 10

    def test_uncut_timesteps(self):
        scheduler = Blip3oFlowScheduler(integer_timesteps=False)
        scheduler.set_timesteps(30)
        assert torch.equal(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
        assert scheduler.timesteps.trunc().tolist() == RELEASED_30

    @pytest.mark.parametrize("steps", [1, 2, 7, 1000, 1500])
    def test_every_schedule_runs_from_noise_to_clean(self, steps):
        scheduler = Blip3oFlowScheduler(shift=2.5)
        scheduler.set_timesteps(steps)
        assert scheduler.sigmas.shape == (steps + 1,) and scheduler.timesteps.shape == (steps,)
        assert scheduler.sigmas[0] == 1 and scheduler.sigmas[-1] == 0
        assert (scheduler.sigmas.diff() < 0).all()
        assert scheduler.num_inference_steps == steps

    def test_shift_is_that_of_the_training_noise_levels(self):
        plain, shifted = Blip3oFlowScheduler(), Blip3oFlowScheduler(shift=3.0)
        plain.set_timesteps(30)
        shifted.set_timesteps(30)
        torch.testing.assert_close(shifted.sigmas, shift_sigma(plain.sigmas, 3.0), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
    def test_explicit_sigmas_are_used_as_they_are(self, kind):
        scheduler = Blip3oFlowScheduler(shift=3.0)
        scheduler.set_timesteps(sigmas=kind([0.75, 0.5, 0.125]))
        assert scheduler.sigmas.tolist() == [0.75, 0.5, 0.125, 0.0]
        assert scheduler.timesteps.tolist() == [750, 500, 125]
        assert scheduler.num_inference_steps == 3

    @pytest.mark.parametrize(
        "sigmas",
        [[], [1.0, 0.5, 0.0], [1.5, 0.5], [0.5, 0.5], [0.2, 0.5], [float("nan"), 0.5], [[1.0], [0.5]]],
    )
    def test_wrong_sigmas_are_refused(self, sigmas):
        text = "`sigmas` must be a list of strictly descending noise levels in (0, 1]. Got "
        with pytest.raises(ValueError, match=re.escape(text) + r".*Leave out the final 0, which is appended\."):
            Blip3oFlowScheduler().set_timesteps(sigmas=sigmas)

    @pytest.mark.parametrize("steps", [0, -3, 2.0, "30", True])
    def test_wrong_numbers_of_steps_are_refused(self, steps):
        text = f"`num_inference_steps` must be an integer of at least 1, got {steps!r}."
        with pytest.raises(ValueError, match=re.escape(text)):
            Blip3oFlowScheduler().set_timesteps(steps)

    def test_inconsistent_arguments_are_refused(self):
        with pytest.raises(
            ValueError, match=r"A schedule needs a number of steps or its noise levels\. Got neither\."
        ):
            Blip3oFlowScheduler().set_timesteps()
        with pytest.raises(ValueError, match="Got 1 levels and num_inference_steps=2"):
            Blip3oFlowScheduler().set_timesteps(2, sigmas=[1.0])

    def test_numpy_integers_count_as_integers(self):
        scheduler = Blip3oFlowScheduler()
        scheduler.set_timesteps(np.int64(4))
        assert scheduler.timesteps.tolist() == [1000, 750, 500, 250]


class TestPath:
    @pytest.mark.parametrize("shift", [1.0, 3.0])
    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("begin", [0, 1, 5, 11])
    def test_the_exact_velocity_reproduces_the_objectives_path(self, solver, begin, shift):
        target, noise = pair(2, 3, 4)
        scheduler = Blip3oFlowScheduler(solver=solver, shift=shift)
        scheduler.set_timesteps(12)
        scheduler.set_begin_index(begin)
        sample = add_noise(target, noise, scheduler.sigmas[begin])
        for index in range(begin, 12):
            sample = scheduler.step(noise - target, scheduler.timesteps[index], sample).prev_sample
            expected = add_noise(target, noise, scheduler.sigmas[index + 1])
            torch.testing.assert_close(sample, expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(sample, target, rtol=1e-5, atol=2e-6)

    @pytest.mark.parametrize("integer_timesteps", [True, False])
    def test_scale_noise_is_the_objectives_path(self, integer_timesteps):
        target, noise = pair(3, 4)
        scheduler = Blip3oFlowScheduler(integer_timesteps=integer_timesteps)
        values = torch.tensor([0.0, 333.0, 1000.0])
        assert torch.equal(scheduler.scale_noise(target, values, noise), add_noise(target, noise, values / 1000))
        scheduler.set_timesteps(30)
        for index in (0, 1, 13, 29):
            expected = add_noise(target, noise, scheduler.sigmas[index])
            timestep = scheduler.timesteps[index]
            assert torch.equal(scheduler.scale_noise(target, timestep, noise), expected)
            assert torch.equal(scheduler.scale_noise(target, timestep.item(), noise), expected)
            assert torch.equal(scheduler.add_noise(target, noise, timestep.repeat(3)), expected)
        mixed = scheduler.scale_noise(target, torch.stack([scheduler.timesteps[1], *values[:2]]), noise)
        sigma = torch.tensor([scheduler.sigmas[1], 0.0, scheduler.sigmas[20] if integer_timesteps else 0.333])
        assert torch.equal(mixed, add_noise(target, noise, sigma))

    @pytest.mark.parametrize("timestep", [-1.0, 1001.0, float("nan"), torch.tensor([1.0, 2.0])])
    def test_scale_noise_refuses_other_timesteps(self, timestep):
        text = "`timestep` holds one value, or one per sample (3), between 0 and 1000."
        with pytest.raises(ValueError, match=re.escape(text)):
            Blip3oFlowScheduler().scale_noise(*pair(3, 4)[:1], timestep, pair(3, 4)[1])


# For features from N(MEAN, STD^2) the velocity field and its solutions are known in closed form:
# x(sigma) = (1 - sigma) MEAN + s(sigma) z with s(sigma)^2 = (1 - sigma)^2 STD^2 + sigma^2.
MEAN, STD = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.3, 0.8, 1.5])


def gaussian_velocity(x, sigma):
    slope = (sigma - (1 - sigma) * STD**2) / ((1 - sigma) ** 2 * STD**2 + sigma**2)
    return -MEAN + slope * (x - (1 - sigma) * MEAN)


def gaussian_error(solver, steps, sigmas=None):
    scheduler = Blip3oFlowScheduler(solver=solver)
    scheduler.set_timesteps(None if sigmas is not None else steps, sigmas=sigmas)
    z = torch.linspace(-2, 2, 9)[:, None].expand(9, 3)
    start = scheduler.sigmas[0]
    sample = (1 - start) * MEAN + ((1 - start) ** 2 * STD**2 + start**2).sqrt() * z
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        sample = scheduler.step(gaussian_velocity(sample, sigma), timestep, sample).prev_sample
    return (sample - (MEAN + STD * z)).abs().max().item()


class TestOrder:
    def test_euler_is_of_first_order(self):
        ratio = gaussian_error("euler", 32) / gaussian_error("euler", 64)
        assert 1.7 < ratio < 2.3

    @pytest.mark.parametrize("steps", [8, 16, 32, 64])
    @pytest.mark.parametrize("solver", ["adams_bashforth2", "dpmsolver++2m"])
    def test_multistep_solvers_beat_euler_on_the_default_levels(self, solver, steps):
        assert gaussian_error(solver, steps) < gaussian_error("euler", steps) / 4

    def test_adams_bashforth_is_of_second_order_in_sigma(self):
        errors = [gaussian_error("adams_bashforth2", steps) for steps in (16, 32, 64)]
        assert 3.5 < errors[0] / errors[1] < 5 and 3.5 < errors[1] / errors[2] < 5

        def uneven(steps):
            grid = torch.linspace(1, 0, steps + 1)[:-1]
            return 0.95 * (grid + 0.3 * torch.sin(torch.pi * grid) ** 2 / torch.pi)

        errors = [gaussian_error("adams_bashforth2", None, uneven(steps)) for steps in (32, 64)]
        assert errors[0] / errors[1] > 3

    def test_dpmsolver_is_of_second_order_in_lambda(self):
        # Even steps in sigma are uneven in lambda near both ends, which costs a factor log(S): 3, not 4.
        def even_in_lambda(steps):
            return torch.sigmoid(torch.linspace(5, -5, steps, dtype=torch.float64)).float()

        errors = [gaussian_error("dpmsolver++2m", None, even_in_lambda(steps)) for steps in (32, 64, 128)]
        assert 3.5 < errors[0] / errors[1] < 5 and 3.5 < errors[1] / errors[2] < 5
        errors = [gaussian_error("dpmsolver++2m", steps) for steps in (64, 128, 256)]
        assert errors[0] / errors[1] > 2.7 and errors[1] / errors[2] > 2.7

    def test_adams_bashforth_is_exact_for_a_velocity_linear_in_sigma(self):
        sigmas = [0.9, 0.7, 0.65, 0.3]
        scheduler = Blip3oFlowScheduler(solver="adams_bashforth2")
        scheduler.set_timesteps(sigmas=sigmas)
        sample = torch.tensor([0.9**2])
        sample = scheduler.step(torch.tensor([1.8]), scheduler.timesteps[0], sample).prev_sample
        start_error = sample - 0.7**2
        for index, (sigma, after) in enumerate(zip(sigmas[1:], [0.65, 0.3, 0.0], strict=True), start=1):
            sample = scheduler.step(torch.tensor([2 * sigma]), scheduler.timesteps[index], sample).prev_sample
            torch.testing.assert_close(sample, after**2 + start_error, rtol=0, atol=1e-6)

    def test_dpmsolver_agrees_with_diffusers_where_both_are_second_order(self):
        sigmas = [0.95, 0.8, 0.55, 0.3, 0.1]
        ours = Blip3oFlowScheduler(solver="dpmsolver++2m", integer_timesteps=False)
        ours.set_timesteps(sigmas=sigmas)
        theirs = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            algorithm_type="dpmsolver++",
            solver_order=2,
        )
        theirs.set_timesteps(len(sigmas))
        theirs.sigmas, theirs.timesteps = ours.sigmas.clone(), ours.timesteps.clone()
        sample, _ = pair(9, 3)
        mine, other = sample, sample
        for timestep, sigma in zip(ours.timesteps, sigmas, strict=True):
            mine = ours.step(gaussian_velocity(mine, sigma), timestep, mine).prev_sample
            other = theirs.step(gaussian_velocity(other, sigma), timestep, other).prev_sample
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


class TestStep:
    def test_euler_agrees_with_diffusers_bit_for_bit(self):
        theirs, ours = FlowMatchEulerDiscreteScheduler(), Blip3oFlowScheduler(integer_timesteps=False)
        sigmas = np.linspace(1.0, 1 / 30, 30)
        theirs.set_timesteps(sigmas=sigmas)
        ours.set_timesteps(sigmas=sigmas)
        assert torch.equal(theirs.sigmas, ours.sigmas) and torch.equal(theirs.timesteps, ours.timesteps)
        sample, _ = pair(9, 3)
        mine, other = sample, sample
        for timestep, sigma in zip(ours.timesteps, ours.sigmas, strict=False):
            mine = ours.step(gaussian_velocity(mine, sigma), timestep, mine).prev_sample
            other = theirs.step(gaussian_velocity(other, sigma), timestep, other).prev_sample
            assert torch.equal(mine, other)

    def test_shifted_schedule_agrees_with_diffusers(self):
        theirs, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), Blip3oFlowScheduler(shift=3.0)
        theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / 30, 30))
        ours.set_timesteps(30)
        assert torch.equal(theirs.sigmas, ours.sigmas)

    @pytest.mark.parametrize("solver", SOLVERS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_steps_are_computed_in_float32_and_returned_in_the_model_dtype(self, solver, dtype):
        velocity, sample = (x.to(dtype) for x in pair(2, 4))
        half, full = Blip3oFlowScheduler(solver=solver), Blip3oFlowScheduler(solver=solver)
        half.set_timesteps(3)
        full.set_timesteps(3)
        for timestep in half.timesteps:
            after = half.step(velocity, timestep, sample).prev_sample
            expected = full.step(velocity.float(), timestep, sample.float()).prev_sample
            assert after.dtype == dtype and torch.equal(after, expected.to(dtype))
            sample = after

    def test_output_forms(self):
        velocity, sample = pair(1, 4)
        outputs = []
        for return_dict in (True, False):
            scheduler = Blip3oFlowScheduler()
            scheduler.set_timesteps(2)
            generator = torch.Generator().manual_seed(0)
            before = generator.get_state()
            outputs.append(scheduler.step(velocity, 1000.0, sample, generator=generator, return_dict=return_dict))
            assert torch.equal(generator.get_state(), before)
        assert isinstance(outputs[0], Blip3oFlowSchedulerOutput) and isinstance(outputs[1], tuple)
        assert torch.equal(outputs[0].prev_sample, outputs[1][0])

    @pytest.mark.parametrize("start", [500.0, 500, torch.tensor(500), torch.tensor([500.0]), torch.tensor(500.0)])
    def test_the_first_timestep_finds_its_place(self, start):
        velocity, sample = pair(1, 4)
        scheduler = Blip3oFlowScheduler()
        scheduler.set_timesteps(4)
        assert scheduler.step_index is None and scheduler.begin_index is None
        scheduler.step(velocity, start, sample)
        assert scheduler.step_index == 3

    def test_begin_index_wins_over_the_timestep(self):
        velocity, sample = pair(1, 4)
        scheduler = Blip3oFlowScheduler()
        scheduler.set_timesteps(4)
        scheduler.set_begin_index(3)
        assert scheduler.begin_index == 3
        torch.testing.assert_close(scheduler.step(velocity, 1000.0, sample).prev_sample, sample - 0.25 * velocity)
        assert scheduler.step_index == 4

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_repeated_timesteps_still_count_as_steps(self, solver):
        target, noise = pair(1, 4)
        scheduler = Blip3oFlowScheduler(solver=solver)
        scheduler.set_timesteps(1500)
        assert len(scheduler.timesteps.unique()) < 1500
        sample = noise
        for timestep in scheduler.timesteps:
            sample = scheduler.step(noise - target, timestep, sample).prev_sample
        torch.testing.assert_close(sample, target, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("solver", SOLVERS)
    def test_a_new_schedule_forgets_the_previous_run(self, solver):
        scheduler = Blip3oFlowScheduler(solver=solver)
        runs = []
        for _ in range(2):
            scheduler.set_timesteps(5)
            sample, _ = pair(9, 3)
            for timestep, sigma in zip(scheduler.timesteps[:4], scheduler.sigmas, strict=False):
                sample = scheduler.step(gaussian_velocity(sample, sigma), timestep, sample).prev_sample
            runs.append(sample)
        assert torch.equal(*runs)

    def test_wrong_steps_are_refused(self):
        velocity, sample = pair(1, 4)
        scheduler = Blip3oFlowScheduler()
        with pytest.raises(ValueError, match=r"`step` needs a schedule\. None is set\. Call `set_timesteps` first"):
            scheduler.step(velocity, 1000.0, sample)
        scheduler.set_timesteps(2)
        with pytest.raises(ValueError, match=r"`timestep` must be one of `scheduler.timesteps`\. Got 999\.0"):
            scheduler.step(velocity, 999.0, sample)
        with pytest.raises(ValueError, match=r"`timestep` must be one of `scheduler.timesteps`"):
            scheduler.step(velocity, scheduler.timesteps, sample)
        for timestep in scheduler.timesteps:
            scheduler.step(velocity, timestep, sample)
        with pytest.raises(ValueError, match=r"The schedule has 2 steps\. All of them were taken"):
            scheduler.step(velocity, 500.0, sample)


class TestAsADiffusersScheduler:
    def test_save_and_load(self, tmp_path):
        scheduler = Blip3oFlowScheduler(shift=3.0, solver="dpmsolver++2m", integer_timesteps=False)
        scheduler.save_pretrained(tmp_path)
        loaded = Blip3oFlowScheduler.from_pretrained(tmp_path)
        copied = Blip3oFlowScheduler.from_config(scheduler.config, shift=1.5)
        for key in ("num_train_timesteps", "shift", "solver", "integer_timesteps"):
            assert loaded.config[key] == scheduler.config[key]
        assert copied.config.shift == 1.5 and copied.config.solver == "dpmsolver++2m"
        scheduler.set_timesteps(10)
        loaded.set_timesteps(10)
        assert torch.equal(loaded.sigmas, scheduler.sigmas)

    def test_compatible_schedulers_exchange_configs(self):
        scheduler = Blip3oFlowScheduler(shift=3.0)
        assert FlowMatchEulerDiscreteScheduler in scheduler.compatibles
        for other in scheduler.compatibles:
            assert other.from_config(scheduler.config).config.shift == 3.0
        assert Blip3oFlowScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=2.0).config).config.shift == 2.0

    def test_the_habits_pipelines_rely_on(self):
        scheduler = Blip3oFlowScheduler()
        sample, _ = pair(1, 4)
        assert len(scheduler) == 1000 and scheduler.order == 1 and scheduler.init_noise_sigma == 1.0
        assert scheduler.scale_model_input(sample, 1000.0) is sample
        assert len(scheduler.timesteps) == 1000 and scheduler.num_inference_steps is None
        assert "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
        assert "generator" in inspect.signature(scheduler.step).parameters
        scheduler.set_timesteps(3, device="meta")
        assert scheduler.timesteps.device.type == "meta" and scheduler.sigmas.device.type == "cpu"

    def test_unknown_solver_names_the_nearest_one(self):
        text = (
            "Unknown solver 'adams_bashforth'. Did you mean 'adams_bashforth2'? "
            "Available: euler, adams_bashforth2, dpmsolver++2m."
        )
        with pytest.raises(ValueError, match=re.escape(text)):
            Blip3oFlowScheduler(solver="adams_bashforth")
        with pytest.raises(ValueError, match=re.escape("Unknown solver None. Available: euler")):
            Blip3oFlowScheduler(solver=None)

    def test_wrong_settings_are_refused(self):
        with pytest.raises(ValueError, match=r"`shift` must be positive, got 0\. Use 1\.0 for the unshifted schedule"):
            Blip3oFlowScheduler(shift=0)
        with pytest.raises(ValueError, match="`num_train_timesteps` must be a positive integer, got 0"):
            Blip3oFlowScheduler(num_train_timesteps=0)
