"""What a run of a study is scored by while it trains: pictures of plans, so that no backbone need plan."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..evaluation.benchmark import Benchmark
from . import benchmark
from .study_measures import SEED, distance_to_true
from .verify import verify


class PlansBenchmark(Benchmark):
    """
    Rates of right pictures of plans of held-out scenes, by family and `overall`, and `frechet`, the distance of these
    pictures to true ones. In a recipe: `evaluation.benchmark: blip3o_hf.shapes.study_benchmark:PlansBenchmark`.
    """

    keys = {"drawing": ("per_family",)}
    types: ClassVar[Mapping[str, Any]] = {"per_family": int}

    def drawing(self, pipe):
        prompts = benchmark.held_out_prompts(self.settings.get("per_family", 16), seed=SEED)
        drawing = benchmark.draw(pipe, benchmark.plans_of(prompts, SEED), seed=SEED, plan=False, num_attempts=1)
        passed = [verify(image, prompt).passed for image, prompt in zip(drawing.images, prompts, strict=True)]
        rates = benchmark.rates_by_family(prompts, passed)
        values = {name: rate.value for name, rate in {**rates, "overall": benchmark.overall(rates)}.items()}
        return {**values, "frechet": distance_to_true(drawing.images, prompts)}


__all__ = ["PlansBenchmark"]
