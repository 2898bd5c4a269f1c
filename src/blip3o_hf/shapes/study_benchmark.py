"""What a run of a study is scored by while it trains."""

from collections.abc import Mapping
from typing import Any, ClassVar

from ..evaluation.benchmark import Benchmark
from . import benchmark
from .study_measures import SEED, distance_to_true
from .verify import verify


class StudyBenchmark(Benchmark):
    """
    Rates of right pictures of held-out prompts, by family and `overall`, and `frechet`, the distance of these pictures
    to true ones. The model is given plans of true scenes, so that no backbone need plan; with `from_plans: false` the
    prompts themselves. In a recipe: `evaluation.benchmark: blip3o_hf.shapes.study_benchmark:StudyBenchmark`.
    """

    keys = {"drawing": ("per_family", "from_plans")}
    types: ClassVar[Mapping[str, Any]] = {"per_family": int, "from_plans": bool}

    def drawing(self, pipe):
        prompts = benchmark.held_out_prompts(self.settings.get("per_family", 16), seed=SEED)
        is_planned = self.settings.get("from_plans", True)
        texts = benchmark.plans_of(prompts, SEED) if is_planned else [prompt.text for prompt in prompts]
        drawing = benchmark.draw(pipe, texts, seed=SEED, plan=False, num_attempts=1)
        passed = [verify(image, prompt).passed for image, prompt in zip(drawing.images, prompts, strict=True)]
        rates = benchmark.rates_by_family(prompts, passed)
        values = {name: rate.value for name, rate in {**rates, "overall": benchmark.overall(rates)}.items()}
        return {**values, "frechet": distance_to_true(drawing.images, prompts)}


__all__ = ["StudyBenchmark"]
