"""Benchmarks: one shape for all, and the layouts and rules of those that the field reports."""

from typing import Any

from ...checks import find_class

BENCHMARKS: dict[str, str] = {
    "dpg": f"{__name__}.dpg:DpgBenchmark",
    "gedit": f"{__name__}.editing:GEditBenchmark",
    "geneval": f"{__name__}.geneval:GenEvalBenchmark",
    "geneval2": f"{__name__}.geneval2:GenEval2Benchmark",
    "imgedit": f"{__name__}.editing:ImgEditBenchmark",
    "mjhq": f"{__name__}.mjhq:MjhqBenchmark",
    "ocr": f"{__name__}.ocr:OcrBenchmark",
    "own": f"{__name__}.own:OwnBenchmark",
    "shapes": "blip3o_hf.shapes.picture_benchmark:ShapesBenchmark",
    "unigenbench-en": f"{__name__}.unigenbench:UniGenBenchmark",
    "unigenbench-zh": f"{__name__}.unigenbench:UniGenChineseBenchmark",
    "wise-legacy": f"{__name__}.wise:WiseLegacyBenchmark",
    "wise-verified": f"{__name__}.wise:WiseVerifiedBenchmark",
}
"""Classes by the names that commands take, as `module:Class`."""


def find_benchmark(name: str) -> Any:
    """
    The class of a benchmark by its name, or by `module:Class`.

    Raises:
        ValueError: when there is none.
    """
    return find_class(name, BENCHMARKS, "the benchmark's name")


__all__ = ["BENCHMARKS", "find_benchmark"]
