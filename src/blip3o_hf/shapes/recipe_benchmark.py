"""The tiny world's benchmark as what a recipe's model is scored by."""

from collections.abc import Mapping
from typing import Any, ClassVar

from PIL import Image

from ..evaluation.benchmark import Benchmark
from ..evaluation.sheets import contact_sheet
from . import benchmark

SEED = 1
SHOWN = 32


class ShapesBenchmark(Benchmark):
    """Rates of right pictures, right answers and right reconstructions on held-out scenes, by their kinds."""

    keys = {"drawing": ("per_family",), "answers": ("per_kind",), "decoding": ("per_family",)}
    types: ClassVar[Mapping[str, Any]] = {"per_family": int, "per_kind": int}

    def _prompts(self):
        return benchmark.held_out_prompts(self.settings.get("per_family", 16), seed=SEED)

    def drawing(self, pipe):
        prompts = self._prompts()
        rates, drawing, _ = benchmark.score_generation(pipe, prompts, seed=SEED)
        shown = range(0, len(prompts), max(1, len(prompts) // SHOWN))
        sheet = contact_sheet(
            [Image.fromarray(drawing.images[i]) for i in shown], [prompts[i].text for i in shown], columns=8, size=128
        )
        return {**_values(rates), "samples": sheet}

    def answers(self, model, processor):
        return _values(benchmark.score_understanding(model, processor, self.settings.get("per_kind", 32), seed=SEED))

    def decoding(self, encoder, decoder):
        def decode(features):
            return decoder(features).sample

        return _values(
            benchmark.ceiling_rates(encoder.model, encoder.image_processor, decode, self._prompts(), seed=SEED)
        )


def _values(rates: dict) -> dict[str, float]:
    return {name: rate.value for name, rate in {**rates, "overall": benchmark.overall(rates)}.items()}
