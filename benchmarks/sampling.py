"""How fast a transformer draws features, by what is left to compute and by how it is computed. See README.md.

`loop` compares the denoising loop with a plain one on the same random weights: the same pictures in less time.
`device` measures the same loop on an accelerator: eager, compiled, with CUDA graphs, in few steps. `growth` tells what
batches, tokens and half precision do to its time. `presets` scores solvers, steps and guidance of a trained model:
other pictures, in less time still. `report` prints the tables of all that was measured, and draws.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    LuminaNextDiT2DModel,
    UNet2DConditionModel,
)
from diffusers.models.attention import LuminaFeedForward
from full_size import SIZES as FULL_SIZES
from kept import keep
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from blip3o_hf import Blip3oDecoderPipeline, Blip3oFlowScheduler, Blip3oPipeline
from blip3o_hf.assets import resolve_model
from blip3o_hf.cli.files import save_picture
from blip3o_hf.evaluation.benchmark import seeded_batches
from blip3o_hf.evaluation.sheets import contact_sheet
from blip3o_hf.evaluation.statistics import Rate
from blip3o_hf.files import written_whole
from blip3o_hf.models import transformer_next_dit
from blip3o_hf.models.condition_cache import Blip3oConditionCache
from blip3o_hf.models.transformer_next_dit import Blip3oTransformer2DModel
from blip3o_hf.objectives.feature_flow import FeatureFlow
from blip3o_hf.pipelines.denoising import FeatureDenoiser
from blip3o_hf.shapes import Prompt, benchmark, render, sample_scene
from blip3o_hf.shapes.study_measures import distance_to_true, encoder
from blip3o_hf.shapes.verify import verify

SIZES = {
    "middle": {"dim": 512, "num_layers": 12, "num_attention_heads": 8, "condition_dim": 512},
    "tiny": {"dim": 64, "num_layers": 2, "num_attention_heads": 4, "condition_dim": 64},
    "8b": {},
}
GUIDANCE = 3.0
BASES = ("diffusers", "plain")
RESULTS = Path(__file__).parent / "results" / "sampling.json"
PLOT = Path(__file__).parents[1] / "docs" / "speed.png"
SHEET = Path(__file__).parents[1] / "docs" / "speed_pictures.png"
DECODER_SHEET = Path(__file__).parents[1] / "docs" / "speed_decoders.png"
SEED, BATCH = 1, 32
EXACT_STEPS, EXACT_PROMPTS = 200, 32
"""Euler's steps that stand for the exact equation, and how many prompts are followed so far."""
DECODER_MANY = (("own", 50, 3.0), ("own", 50, 1.0), ("dpm", 20, 3.0), ("dpm", 10, 3.0), ("dpm", 4, 3.0))
DECODER_FEW = (("own", 4, 1.0), ("own", 2, 1.0), ("own", 1, 1.0))
"""Scheduler, steps and guidance of decoders of many steps, and of few."""
WORK = {
    "30 steps, decoder 50 steps, both with guidance": {"transformer": 60, "UNet": 100, "VAE": 1},
    "flow map in 4, decoder 50 steps with guidance": {"transformer": 4, "UNet": 100, "VAE": 1},
    "flow map in 4, decoder in 4": {"transformer": 4, "UNet": 4, "VAE": 1},
    "flow map in 1, decoder in 1": {"transformer": 1, "UNet": 1, "VAE": 1},
}
"""Evaluations of each part for a picture."""


class Model:
    """What a denoiser asks of a model."""

    def __init__(self, transformer: Blip3oTransformer2DModel):
        self.transformer, self.objective = transformer, FeatureFlow()


class PlainDenoiser(FeatureDenoiser):
    """Keys and values of the condition are kept, and nothing else is done before the loop."""

    def _velocity(self, latents: torch.Tensor, index: int, batch: str, condition: dict[str, Any]) -> torch.Tensor:
        prediction = self.transformer(latents, self.timesteps[index], **condition).sample
        return self.objective.predicted_velocity(prediction, latents, self.sigmas[index])

    def _guided_arguments(self) -> dict[str, Any]:
        if "guided" not in self.computed:
            null = self.transformer.precompute_condition(self.null_condition)
            cache = self._plain_arguments()["condition_cache"]
            joined = Blip3oConditionCache.cat([null.repeat_interleave(len(self.condition)), cache])
            self.computed["guided"] = {"condition_cache": joined}
        return self.computed["guided"]


@contextmanager
def plain_rotation() -> Iterator[None]:
    """The transformer rotates in real numbers."""
    with patch.object(transformer_next_dit, "apply_rotary", transformer_next_dit.rotate_pairs):
        yield


@torch.no_grad()
def features(
    kind: type[FeatureDenoiser],
    transformer: Blip3oTransformer2DModel,
    condition: torch.Tensor,
    steps: int,
    guided: bool = True,
) -> torch.Tensor:
    """Features of a condition by a loop, from the same noise always."""
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(steps, device=condition.device)
    denoiser = kind(Model(transformer), scheduler, condition)
    shape = (len(condition), transformer.config.in_channels, 8, 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(condition)
    for index, timestep in enumerate(scheduler.timesteps):
        velocity = denoiser.predict_at(latents, index, GUIDANCE if guided else 1.0)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents


def lumina(transformer: Blip3oTransformer2DModel) -> LuminaNextDiT2DModel:
    """
    The transformer of diffusers that the reference's is a copy of, at the same sizes; its weights are its own. Its
    feed-forward has the width of the reference's, which later releases of diffusers changed.
    """
    config = transformer.config
    model = LuminaNextDiT2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=config.in_channels,
        hidden_size=config.dim,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_kv_heads=config.num_attention_heads,
        multiple_of=config.multiple_of,
        learn_sigma=False,
        cross_attention_dim=config.dim,
    )
    width = transformer.layers[0].feed_forward.linear_1.out_features
    for layer in model.layers:
        layer.feed_forward = LuminaFeedForward(dim=config.dim, inner_dim=width, multiple_of=1)
    return model.eval()


@torch.no_grad()
def features_of_lumina(
    model: LuminaNextDiT2DModel, projection: torch.nn.Module, condition: torch.Tensor, steps: int
) -> torch.Tensor:
    """A guided loop as the reference has it: nothing is kept from step to step, not the condition's projection."""
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(steps)
    latents = torch.randn((len(condition), model.config.in_channels, 8, 8), generator=torch.Generator().manual_seed(0))
    both = torch.cat([torch.zeros_like(condition), condition])
    mask = torch.ones(both.shape[:2])
    table = transformer_next_dit.rotary_table(8, 8, model.config.hidden_size // model.config.num_attention_heads)
    rotary = torch.view_as_complex(table).unflatten(0, (8, 8))
    for timestep in scheduler.timesteps:
        times = timestep.expand(len(both))
        velocity = model(torch.cat([latents] * 2), times, projection(both), mask, rotary, {}, return_dict=False)[0]
        null, conditional = velocity.chunk(2)
        latents = scheduler.step(null + GUIDANCE * (conditional - null), timestep, latents, return_dict=False)[0]
    return latents


def interleaved(ways: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each way, one after another in turn; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in tqdm(range(repeats + 1), desc="loops", leave=False):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if round_:
                seconds[name].append(time.process_time() - start)
    return seconds


def compare_loops(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    transformer = Blip3oTransformer2DModel(**SIZES[arguments.size], gate_init=0.5).eval()
    condition = torch.randn(arguments.batch_size, 64, transformer.config.condition_dim)

    def plain() -> torch.Tensor:
        with plain_rotation():
            return features(PlainDenoiser, transformer, condition, arguments.steps)

    ways = {"plain": plain, "eager": lambda: features(FeatureDenoiser, transformer, condition, arguments.steps)}
    stock = lumina(transformer)
    ways["diffusers"] = lambda: features_of_lumina(stock, transformer.caption_projection, condition, arguments.steps)
    if arguments.compile:
        compiled = Blip3oTransformer2DModel(**SIZES[arguments.size], gate_init=0.5).eval()
        compiled.load_state_dict(transformer.state_dict())
        compiled.compile_repeated_blocks(fullgraph=True)
        ways["compiled"] = lambda: features(FeatureDenoiser, compiled, condition, arguments.steps)
    seconds = interleaved(ways, arguments.repeats)
    before, rows = plain(), []
    print(
        f"{arguments.size}, batch {arguments.batch_size}, {arguments.steps} guided steps, {arguments.threads} threads"
    )
    for name, way in ways.items():
        ratios = {base: ratio(seconds[name], seconds[base]) for base in BASES}
        difference = None if name == "diffusers" else float((way() - before).norm() / before.norm())
        rows.append({"way": name, "cpu_s": median(seconds[name]), "ratios": ratios, "difference": difference})
        print(rows[-1])
    settings = {"size": arguments.size, "batch": arguments.batch_size, "steps": arguments.steps}
    keep(arguments, "loop", {**settings, "threads": arguments.threads, "repeats": arguments.repeats, "rows": rows})


def ratio(own: list[float], others: list[float]) -> float:
    """The median of ratios of runs that followed one another."""
    return median(one / other for one, other in zip(own, others, strict=True))


def measure_device(arguments: argparse.Namespace) -> None:
    """Wall time and memory of loops on a device, against the time that reading the weights takes."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    torch.manual_seed(0)

    def made(compiled: str = "") -> Blip3oTransformer2DModel:
        with torch.device(device):
            transformer = Blip3oTransformer2DModel(**SIZES[arguments.size], gate_init=0.5).eval()
        for parameter in transformer.parameters():
            parameter.data = parameter.data.to(dtype)
        if compiled:
            transformer.compile_repeated_blocks(fullgraph=True, mode=compiled)
        return transformer

    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    rows = []
    for name, compiled in (("eager", ""), ("compiled", "default"), ("CUDA graphs", "reduce-overhead")):
        transformer = made(compiled)
        weights = sum(each.numel() * each.element_size() for each in transformer.parameters())
        condition = torch.randn(arguments.batch_size, 64, transformer.config.condition_dim).to(device, dtype)
        for steps, guided in ((30, True), (4, False), (1, False)):
            times = []
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for _ in range(arguments.repeats + 2):
                wait()
                start = time.perf_counter()
                features(FeatureDenoiser, transformer, condition, steps, guided)
                wait()
                times.append(time.perf_counter() - start)
            rows.append(
                {
                    "way": f"{name}, {steps} steps{' with guidance' if guided else ''}",
                    "wall_s": median(times[2:]),
                    "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
                    "of_bandwidth": median(times[2:]) / (steps * weights / (1e9 * arguments.bandwidth)),
                }
            )
            print(rows[-1])
    place = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    settings = {"size": arguments.size, "batch": arguments.batch_size, "dtype": arguments.dtype, "device": place}
    keep(arguments, "device", {**settings, "bandwidth_gb_s": arguments.bandwidth, "rows": rows})


@torch.no_grad()
def measure_growth(arguments: argparse.Namespace) -> None:
    """CPU time of a guided evaluation by batch, by tokens and by precision, against one picture in float32."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    transformer = Blip3oTransformer2DModel(**SIZES[arguments.size], gate_init=0.5).eval()
    half = copy.deepcopy(transformer)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)

    def evaluation(model: Blip3oTransformer2DModel, number: int, side: int, autocast: bool = False) -> Callable:
        dtype = next(model.parameters()).dtype
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(2 * number, model.config.in_channels, side, side, generator=generator).to(dtype)
        condition = torch.randn(2 * number, 64, model.config.condition_dim, generator=generator).to(dtype)
        cache = model.precompute_condition(condition)

        def run() -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return model(states, 500.0, condition_cache=cache).sample.float()

        return run

    ways = {f"batch {number}": evaluation(transformer, number, 8) for number in (1, 4, 16)}
    ways |= {f"{side * side} tokens": evaluation(transformer, 1, side) for side in (4, 12, 16)}
    ways["bfloat16 autocast"] = evaluation(transformer, 1, 8, autocast=True)
    ways["bfloat16 weights"] = evaluation(half, 1, 8)
    seconds = interleaved(ways, arguments.repeats)
    base, rows = "batch 1", []
    exact = ways[base]()
    for name, way in ways.items():
        result = way()
        difference = float((result - exact).norm() / exact.norm()) if result.shape == exact.shape else None
        rows.append(
            {
                "way": name,
                "cpu_s": median(seconds[name]),
                "ratio": ratio(seconds[name], seconds[base]),
                "difference": difference,
            }
        )
        print(rows[-1])
    keep(arguments, "growth", {"size": arguments.size, "threads": arguments.threads, "rows": rows})


@dataclass(frozen=True)
class Preset:
    """
    How to sample.

    Args:
        solver: of the scheduler.
        steps: how many.
        guidance: scale; 1 halves the work of a step.
        shift: of the noise levels.
        interval: noise levels between which guidance applies.
    """

    solver: str
    steps: int
    guidance: float
    shift: float
    interval: tuple[float, float] = (0.0, 1.0)

    def call(self) -> dict[str, Any]:
        """Arguments of a pipeline."""
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "guidance_interval": self.interval,
        }

    def scheduler(self, trained: Blip3oFlowScheduler) -> Blip3oFlowScheduler:
        return Blip3oFlowScheduler.from_config(trained.config, solver=self.solver, shift=self.shift)

    def evaluations(self, trained: Blip3oFlowScheduler) -> int:
        """Of the transformer, by rows: a guided step has two for each picture."""
        scheduler = self.scheduler(trained)
        scheduler.set_timesteps(self.steps)
        low, high = self.interval
        guided = [low <= time / scheduler.config.num_train_timesteps <= high for time in scheduler.timesteps.tolist()]
        return self.steps + (sum(guided) if self.guidance > 1 else 0)


def presets_of(shift: float, is_flow_map: bool) -> list[Preset]:
    """Those that are compared: a flow map has neither guidance nor another solver."""
    if is_flow_map:
        return [Preset("euler", steps, 1.0, shift) for steps in (1, 2, 4)]
    return [
        Preset(solver, steps, guidance, each)
        for solver, each in (("euler", shift), ("adams_bashforth2", shift), ("euler", 1.0))
        for steps in (1, 2, 4, 6, 10, 30)
        for guidance in (1.0, 2.0)
        if steps > 1 or (solver, each) == ("euler", shift)  # the first step of all solvers is Euler's from noise
    ] + [
        Preset("euler", steps, 2.0, shift, interval) for steps in (4, 10, 30) for interval in ((0.0, 0.8), (0.5, 1.0))
    ]


def score_presets(arguments: argparse.Namespace) -> None:
    """Score, time and error of each preset, from prompts and from the model's own plans of them."""
    torch.set_num_threads(arguments.threads)
    pipe = Blip3oPipeline.from_pretrained(resolve_model(arguments.model), dtype=getattr(torch, arguments.dtype))
    pipe.set_progress_bar_config(disable=True)
    prompts = benchmark.held_out_prompts(arguments.per_family, seed=SEED)
    written = {"prompts": lambda: [prompt.text for prompt in prompts], "plans": lambda: written_plans(pipe, prompts)}
    texts = {kind: written[kind]() for kind in arguments.texts}
    shift, rows = pipe.scheduler.config.shift, []
    trained = presets_of(shift, pipe.transformer.config.is_flow_map)
    for kind, given in texts.items():
        conditions = torch.cat([pipe.encode_prompt(given[at : at + BATCH]) for at in range(0, len(given), BATCH)])
        exact = {
            guidance: drawn(pipe, conditions[:EXACT_PROMPTS], Preset("euler", EXACT_STEPS, guidance, shift))[1]
            for guidance in sorted({preset.guidance for preset in trained})
            if not pipe.transformer.config.is_flow_map
        }
        for preset in tqdm(trained, desc=kind):
            start = time.process_time()
            images, found = drawn(pipe, conditions, preset)
            seconds = (time.process_time() - start) / len(prompts)
            rate, error = right(images, prompts), None
            if exact and preset.interval == (0.0, 1.0):
                wanted = exact[preset.guidance]
                error = float((found[: len(wanted)] - wanted).norm() / wanted.norm())
            rows.append(
                {
                    "from": kind,
                    "solver": preset.solver,
                    "steps": preset.steps,
                    "guidance": preset.guidance,
                    "shift": preset.shift,
                    "guided": preset.interval,
                    "evaluations": preset.evaluations(pipe.scheduler),
                    "score": rate.value,
                    "interval": rate.interval,
                    "frechet": distance_to_true(images, prompts),
                    "error": error,
                    "cpu_ms": 1000 * seconds,
                }
            )
            print(rows[-1])
    settings = {"prompts": len(prompts), "seed": SEED, "threads": arguments.threads, "dtype": arguments.dtype}
    keep(arguments, f"presets {arguments.name}", {**settings, "rows": rows})


@torch.no_grad()
def draw_sheet(arguments: argparse.Namespace) -> None:
    """The same plans and noise by several models in several steps, side by side: a row for each."""
    prompts = benchmark.held_out_prompts(1, seed=SEED)
    images, captions, plans = [], [], None
    for name, folder in (each.split("=", 1) for each in arguments.models):
        pipe = Blip3oPipeline.from_pretrained(resolve_model(folder))
        pipe.set_progress_bar_config(disable=True)
        plans = written_plans(pipe, prompts) if plans is None else plans
        conditions, is_map = pipe.encode_prompt(plans), pipe.transformer.config.is_flow_map
        for steps in (4, 2, 1) if is_map else (30, 4, 2, 1):
            guidance = 1.0 if is_map or steps < 30 else 2.0
            found, _ = drawn(pipe, conditions, Preset("euler", steps, guidance, pipe.scheduler.config.shift))
            shown = [prompt.text if not images else "" for prompt in prompts[1:]]  # once, above all rows
            captions += [f"{name}, {steps} step{'s' if steps > 1 else ''}", *shown]
            images += [Image.fromarray(picture) for picture in found]
    save_picture(contact_sheet(images, captions, columns=len(prompts), size=96), arguments.output)
    print(arguments.output)


@torch.no_grad()
def measure_equality(arguments: argparse.Namespace) -> None:
    """How far the features of solvers and steps are from those of the exact equation, for a published checkpoint."""
    torch.set_num_threads(arguments.threads)
    pipe = Blip3oPipeline.from_pretrained(resolve_model(arguments.model))
    pipe.set_progress_bar_config(disable=True)
    prompts = [prompt.text for prompt in benchmark.held_out_prompts(arguments.per_family, seed=SEED)]
    if pipe.processor is None:  # a checkpoint without its tokenizer: conditions of noise
        shape = (len(prompts), pipe.model.config.num_queries, pipe.transformer.config.condition_dim)
        conditions = torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
    else:
        conditions = torch.cat([pipe.encode_prompt(prompts[at : at + BATCH]) for at in range(0, len(prompts), BATCH)])
    config, trained = pipe.scheduler.config, pipe.scheduler
    guidance = pipe.config.default_guidance_scale

    def found(solver: str, steps: int) -> torch.Tensor:
        pipe.scheduler = Blip3oFlowScheduler.from_config(config, solver=solver)
        noise = torch.randn(len(conditions), *pipe.feature_shape, generator=torch.Generator().manual_seed(SEED))
        drawn_features = pipe.generate_features(conditions, steps, guidance, latents=noise)
        pipe.scheduler = trained
        return drawn_features

    exact = found("euler", arguments.exact_steps)
    rows = []
    for solver in ("euler", "adams_bashforth2"):
        for steps in (4, 6, 8, 10, 12, 15, 20, 30):
            error = float((found(solver, steps) - exact).norm() / exact.norm())
            rows.append({"solver": solver, "steps": steps, "error": error})
            print(rows[-1])
    settings = {"prompts": len(prompts), "guidance": guidance, "exact_steps": arguments.exact_steps}
    keep(arguments, f"equality {arguments.name}", {**settings, "rows": rows})


def drawn(pipe: Blip3oPipeline, conditions: torch.Tensor, preset: Preset) -> tuple[list[np.ndarray], torch.Tensor]:
    """A picture of each condition, and its features; always from the same noise."""
    images: list[np.ndarray] = []
    before, found = pipe.scheduler, []
    pipe.scheduler = preset.scheduler(before)
    for batch, generators in seeded_batches(conditions, SEED, BATCH, f"{preset.steps} steps"):
        output = pipe(condition=batch, **preset.call(), generator=generators, num_attempts=1)
        images += [np.asarray(image) for image in output.images]
        found.append(output.image_features)
    pipe.scheduler = before
    return images, torch.cat(found)


def score_decoders(arguments: argparse.Namespace) -> None:
    """Score and time of diffusion decoders on features of true pictures of held-out prompts."""
    torch.set_num_threads(arguments.threads)
    prompts = benchmark.held_out_prompts(arguments.per_family, seed=SEED)
    scenes = [
        sample_scene(prompt, np.random.default_rng((SEED, index)), split="test")
        for index, prompt in enumerate(prompts)
    ]
    eye = encoder()
    pictures = [Image.fromarray(render(scene)) for scene in scenes]
    pixels = eye.pixel_values(pictures)
    found = torch.cat([eye.features(pixels[at : at + BATCH]) for at in range(0, len(pixels), BATCH)])
    null = eye.features(torch.zeros_like(pixels[:1]))
    first_of_family = slice(None, None, arguments.per_family)
    rows, shown = [], pictures[first_of_family]
    columns = len(shown)
    captions = ["true", *(prompt.text for prompt in prompts[first_of_family][1:])]
    for name, folder in (each.split("=", 1) for each in arguments.decoders):
        decoder = Blip3oDecoderPipeline.from_pretrained(folder)
        decoder.set_progress_bar_config(disable=True)
        trained = decoder.scheduler
        for solver, steps, guidance in DECODER_FEW if isinstance(trained, LCMScheduler) else DECODER_MANY:
            decoder.scheduler = trained if solver == "own" else DPMSolverMultistepScheduler.from_config(trained.config)
            start, images = time.process_time(), []
            for batch, generators in seeded_batches(found, SEED, BATCH, f"{name}, {steps} steps"):
                draw = {"num_inference_steps": steps, "guidance_scale": guidance, "generator": generators}
                images += [np.asarray(image) for image in decoder(batch, null, **draw).images]
            seconds = (time.process_time() - start) / len(found)
            rate = right(images, prompts)
            shown += [Image.fromarray(image) for image in images[first_of_family]]
            guided = f", guidance {guidance:g}" if guidance > 1 else ""
            captions += [f"{name}, {steps} step{'s' if steps > 1 else ''}{guided}", *[""] * (columns - 1)]
            rows.append(
                {
                    "decoder": name,
                    "scheduler": type(decoder.scheduler).__name__,
                    "steps": steps,
                    "guidance": guidance,
                    "evaluations": steps * (2 if guidance > 1 else 1),
                    "score": rate.value,
                    "interval": rate.interval,
                    "cpu_ms": 1000 * seconds,
                }
            )
            print(rows[-1])
    save_picture(contact_sheet(shown, captions, columns=columns, size=96), arguments.sheet)
    keep(arguments, "decoders", {"prompts": len(prompts), "seed": SEED, "threads": arguments.threads, "rows": rows})


def right(images: list[np.ndarray], prompts: list[Prompt]) -> Rate:
    """How many pictures show their prompts."""
    passed = [verify(image, prompt).passed for image, prompt in zip(images, prompts, strict=True)]
    return Rate(sum(passed), len(passed))


def written_plans(pipe: Blip3oPipeline, prompts: list[Prompt]) -> list[str]:
    """What the model writes of prompts before it draws."""
    batches = seeded_batches([prompt.text for prompt in prompts], SEED, BATCH, "plans")
    return [plan for batch, generators in batches for plan in pipe.write_plans(batch, generators=generators)]


def count_work(arguments: argparse.Namespace) -> None:
    """Floating-point operations of a picture of 1024 x 1024 by the parts of the 8B, counted and not run."""
    with torch.device("meta"), torch.no_grad():
        transformer = Blip3oTransformer2DModel()
        unet = UNet2DConditionModel(**FULL_SIZES["8b"].unet)
        vae = AutoencoderKL(**FULL_SIZES["8b"].vae)
        tokens = torch.randn(1, 64, transformer.config.in_channels)
        conditions = {"text_embeds": tokens[:, 0], "time_ids": torch.randn(1, 6)}
        cache = transformer.precompute_condition(torch.randn(1, 64, transformer.config.condition_dim))
        calls: dict[str, Callable[[], Any]] = {
            "transformer": lambda: transformer(torch.randn(1, 1792, 8, 8), torch.tensor(1.0), condition_cache=cache),
            "UNet": lambda: unet(torch.randn(1, 4, 128, 128), torch.tensor(1.0), tokens, added_cond_kwargs=conditions),
            "VAE": lambda: vae.decode(torch.randn(1, 4, 128, 128)),
        }
        once = {name: teraflops(call) for name, call in calls.items()}
    print("| | transformer | UNet | VAE | sum, TFLOP |\n| --- | --: | --: | --: | --: |")
    for name, evaluations in WORK.items():
        parts = [number * once[part] for part, number in evaluations.items()]
        cells = " | ".join(f"{number} x {once[part]:.2f}" for part, number in evaluations.items())
        print(f"| {name} | {cells} | {sum(parts):.0f} |")


def teraflops(call: Callable[[], Any]) -> float:
    """Of matrix products, attention and convolutions, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e12


def write_report(arguments: argparse.Namespace) -> None:
    """Print the tables, and plot score against time."""
    results = {name: kept["value"] for name, kept in json.loads(arguments.output.read_text()).items()}
    if "loop" in results:
        print("| loop | CPU s | of diffusers' | of the plain one | difference |\n| --- | --: | --: | --: | --: |")
        for row in results["loop"]["rows"]:
            difference = "other weights" if row["difference"] is None else f"{row['difference']:.0e}"
            shares = " | ".join(f"{row['ratios'][base]:.2f}" for base in BASES)
            print(f"| {row['way']} | {row['cpu_s']:.2f} | {shares} | {difference} |")
    if "growth" in results:
        print("\n| evaluation | CPU ms | of one picture in float32 | difference |\n| --- | --: | --: | --: |")
        for row in results["growth"]["rows"]:
            difference = "" if row["difference"] is None else f"{row['difference']:.0e}"
            print(f"| {row['way']} | {1000 * row['cpu_s']:.0f} | {row['ratio']:.2f} | {difference} |")
    if "device" in results:
        found = results["device"]
        print(f"\n{found['size']} on {found['device']}, {found['dtype']}, batch {found['batch']}\n")
        print("| loop | wall ms | of reading the weights | peak GiB |\n| --- | --: | --: | --: |")
        for row in found["rows"]:
            peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
            print(f"| {row['way']} | {1000 * row['wall_s']:.0f} | {row['of_bandwidth']:.1f} | {peak} |")
    if "decoders" in results:
        print("\n| decoder | scheduler | steps | guidance | evaluations | score | CPU ms |")
        print("| --- | --- | --: | --: | --: | --: | --: |")
        for row in results["decoders"]["rows"]:
            low, high = row["interval"]
            settings = f"{row['scheduler']} | {row['steps']} | {row['guidance']:g} | {row['evaluations']}"
            score = f"{row['score']:.3f} [{low:.3f}, {high:.3f}]"
            print(f"| {row['decoder']} | {settings} | {score} | {row['cpu_ms']:.0f} |")
    for name, value in results.items():
        if name.startswith("equality "):
            print(f"\n{name.removeprefix('equality ')}, distance to {value['exact_steps']} steps of Euler's\n")
            print("| solver | steps | distance |\n| --- | --: | --: |")
            for row in value["rows"]:
                print(f"| {row['solver']} | {row['steps']} | {row['error']:.2f} |")
    models = {name.removeprefix("presets "): value for name, value in results.items() if name.startswith("presets ")}
    for name, value in models.items():
        print(f"\n{name}, {value['prompts']} held-out prompts, one picture each\n")
        print("| from | solver | shift | steps | guidance | at levels | rows | score | distance | error | CPU ms |")
        print("| --- | --- | --: | --: | --: | --- | --: | --: | --: | --: | --: |")
        for row in value["rows"]:
            low, high = row["interval"]
            error = "" if row.get("error") is None else f"{row['error']:.2f}"  # earlier results have none
            low_level, high_level = row.get("guided", (0, 1))
            print(
                f"| {row['from']} | {row['solver']} | {row['shift']:g} | {row['steps']} | {row['guidance']:g} | "
                f"{low_level:g} to {high_level:g} | {row['evaluations']} | "
                f"{row['score']:.3f} [{low:.3f}, {high:.3f}] | {row['frechet']:.3f} | {error} | {row['cpu_ms']:.1f} |"
            )
    if models:
        plot_presets(models, arguments.plot)
        print(f"\n{arguments.plot}")


def plot_presets(models: dict[str, Any], path: Path) -> None:
    """Score against time of each preset, a panel for prompts and one for plans."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for panel, kind in zip(panels, ("prompts", "plans"), strict=True):
        for name, value in models.items():
            rows = [row for row in value["rows"] if row["from"] == kind]
            if all(row["score"] == 0 for row in rows):  # a model that never read such texts
                continue
            for guidance in sorted({row["guidance"] for row in rows}):
                chosen = [row for row in rows if row["guidance"] == guidance]
                points = [(row["cpu_ms"], row["score"]) for row in chosen]
                panel.scatter(*zip(*points, strict=True), label=f"{name}, guidance {guidance:g}", s=22)
                for row in chosen:
                    if row["solver"] == "euler" and row["shift"] > 1:
                        panel.annotate(str(row["steps"]), (row["cpu_ms"], row["score"]), fontsize=7)
        panel.set(title=f"from {kind}", xlabel="CPU ms a picture, one thread", xscale="log")
    panels[0].set_ylabel("score")
    panels[1].legend(fontsize=8)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    loop = commands.add_parser("loop", help="the denoising loop against a plain one")
    loop.add_argument("--size", choices=SIZES, default="middle")
    loop.add_argument("--batch-size", type=int, default=1)
    loop.add_argument("--steps", type=int, default=30)
    loop.add_argument("--repeats", type=int, default=7)
    loop.add_argument("--threads", type=int, default=1)
    loop.add_argument("--compile", action="store_true", help="also with compiled blocks")
    loop.set_defaults(run=compare_loops)
    on_device = commands.add_parser("device", help="the loop on an accelerator")
    on_device.add_argument("--device", default="cuda")
    on_device.add_argument("--size", choices=SIZES, default="8b")
    on_device.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    on_device.add_argument("--batch-size", type=int, default=1)
    on_device.add_argument("--repeats", type=int, default=10)
    on_device.add_argument(
        "--bandwidth", type=float, default=4800, help="of the device's memory, GB/s (default: H200)"
    )
    on_device.set_defaults(run=measure_device)
    growth = commands.add_parser("growth", help="batches, tokens and half precision")
    growth.add_argument("--size", choices=SIZES, default="middle")
    growth.add_argument("--repeats", type=int, default=7)
    growth.add_argument("--threads", type=int, default=1)
    growth.set_defaults(run=measure_growth)
    presets = commands.add_parser("presets", help="score and time of solvers, steps and guidance of a model")
    presets.add_argument("--model", default="blip3o-tiny")
    presets.add_argument("--name", default="blip3o-tiny", help="in the results")
    presets.add_argument("--texts", nargs="+", choices=("prompts", "plans"), default=["prompts", "plans"])
    presets.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    presets.add_argument("--per-family", type=int, default=50, help="prompts of each family")
    presets.add_argument("--threads", type=int, default=1)
    presets.set_defaults(run=score_presets)
    sheet = commands.add_parser("sheet", help="pictures of several models in several steps, side by side")
    sheet.add_argument("models", nargs="+", metavar="NAME=MODEL")
    sheet.add_argument("--output", type=Path, default=SHEET, help="PNG file (default: %(default)s)")
    sheet.set_defaults(run=draw_sheet)
    equality = commands.add_parser("equality", help="distance to the exact equation by solver and steps")
    equality.add_argument("--model", required=True, help="folder of a published checkpoint, or of a pipeline")
    equality.add_argument("--name", required=True, help="in the results")
    equality.add_argument("--per-family", type=int, default=4, help="prompts of each family")
    equality.add_argument("--exact-steps", type=int, default=960, help="Euler's, that stand for the exact equation")
    equality.add_argument("--threads", type=int, default=1)
    equality.set_defaults(run=measure_equality)
    decoders = commands.add_parser("decoders", help="score and time of diffusion decoders")
    decoders.add_argument("decoders", nargs="+", metavar="NAME=FOLDER", help="of the toy world")
    decoders.add_argument("--per-family", type=int, default=25, help="prompts of each family")
    decoders.add_argument("--threads", type=int, default=1)
    decoders.add_argument("--sheet", type=Path, default=DECODER_SHEET, help="PNG file (default: %(default)s)")
    decoders.set_defaults(run=score_decoders)
    work = commands.add_parser("work", help="operations of a picture of the 8B, counted")
    work.set_defaults(run=count_work)
    report = commands.add_parser("report", help="tables of all that was measured, and the plot")
    report.add_argument("--plot", type=Path, default=PLOT)
    report.set_defaults(run=write_report)
    for each in (loop, on_device, growth, presets, equality, decoders, report):
        each.add_argument("--output", type=Path, default=RESULTS, help="the results")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
