"""How fast a transformer draws features, by what is left to compute and by how it is computed. See README.md.

`loop` compares the denoising loop with a plain one on the same random weights: the same pictures in less time.
"""
# ruff: noqa: T201 - a script that reports on standard output

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.attention import LuminaFeedForward
from tqdm import tqdm

from blip3o_hf import Blip3oFlowScheduler
from blip3o_hf.models import transformer_next_dit
from blip3o_hf.models.condition_cache import Blip3oConditionCache
from blip3o_hf.models.transformer_next_dit import Blip3oTransformer2DModel
from blip3o_hf.objectives.feature_flow import FeatureFlow
from blip3o_hf.pipelines.denoising import FeatureDenoiser

SIZES = {
    "middle": {"dim": 512, "num_layers": 12, "num_attention_heads": 8, "condition_dim": 512},
    "tiny": {"dim": 64, "num_layers": 2, "num_attention_heads": 4, "condition_dim": 64},
    "8b": {},
}
GUIDANCE = 3.0
BASES = ("diffusers", "plain")


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


def rotate_pairs(hidden_states: torch.Tensor, rotary_emb: torch.Tensor) -> torch.Tensor:
    """The rotary embedding in products of real numbers."""
    cos, sin = rotary_emb[:, None].unbind(-1)
    first, second = hidden_states.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return rotated.flatten(-2).type_as(hidden_states)


@contextmanager
def plain_rotation() -> Iterator[None]:
    """The transformer rotates in real numbers."""
    with patch.object(transformer_next_dit, "apply_rotary", rotate_pairs):
        yield


@torch.no_grad()
def features(
    kind: type[FeatureDenoiser], transformer: Blip3oTransformer2DModel, condition: torch.Tensor, steps: int
) -> torch.Tensor:
    """Features of a condition by a guided loop, from the same noise always."""
    scheduler = Blip3oFlowScheduler()
    scheduler.set_timesteps(steps, device=condition.device)
    denoiser = kind(Model(transformer), scheduler, condition)
    shape = (len(condition), transformer.config.in_channels, 8, 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(condition)
    for index, timestep in enumerate(scheduler.timesteps):
        conditional, null = denoiser.predict_both(latents, index)
        latents = scheduler.step(null + GUIDANCE * (conditional - null), timestep, latents, return_dict=False)[0]
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
    rows = torch.arange(8)
    table = transformer_next_dit.rotary_table(8, 8, model.config.hidden_size // model.config.num_attention_heads)
    rotary = torch.view_as_complex(table).unflatten(0, (len(rows), len(rows)))
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
    before = plain()
    print(
        f"{arguments.size}, batch {arguments.batch_size}, {arguments.steps} guided steps, {arguments.threads} threads"
    )
    for name, way in ways.items():
        ratios = [
            median(own / other for own, other in zip(seconds[name], seconds[base], strict=True)) for base in BASES
        ]
        difference = (
            "other weights" if name == "diffusers" else f"{float((way() - before).norm() / before.norm()):.1e}"
        )
        shares = f"{ratios[0]:.3f} of diffusers, {ratios[1]:.3f} of plain"
        print(f"{name:9} {median(seconds[name]):7.3f} CPU s, {shares}, difference {difference}")


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
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
