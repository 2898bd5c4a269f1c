"""The scores of a run by a benchmark that the field knows, as `blip3o-hf evaluate` measures them."""

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from ..checks import check_keys
from ..evaluation.benchmarks import find_benchmark
from ..evaluation.manifests import MANIFEST, Manifest
from ..training.chain import run_command
from .measuring import RunFailed, RunMeasure


class BenchmarkScores(RunMeasure):
    """
    Each score of a benchmark, by its name without the judge's, such as `overall`: one number for the whole run. The
    pictures and their manifest stay in the run's folder, under `benchmarks`, in a folder for these options; drawing
    goes on there after an interruption.

    Settings: `benchmark`, its name or `module:Class`; `options` of `blip3o-hf evaluate`, without the dashes, such as
    `{prompts: geneval2_data.jsonl, judge: Qwen/Qwen3-VL-8B-Instruct, truncate: true}`.
    """

    def __init__(self, settings: Mapping[str, Any]):
        check_keys(settings, ("benchmark", "options"), "the settings of BenchmarkScores")
        if not settings.get("benchmark"):
            raise ValueError(
                "BenchmarkScores are of one benchmark. Its settings have no `benchmark`. Name it, such as geneval2."
            )
        find_benchmark(settings["benchmark"])
        super().__init__(settings)

    def __call__(self, run):
        name = self.settings["benchmark"]
        given = {str(key).replace("_", "-"): value for key, value in self.settings.get("options", {}).items()}
        options = [
            f"--{key}" if value is True else f"--{key}={value}" for key, value in given.items() if value is not False
        ]
        digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:8]
        folder = run / "benchmarks" / f"{name.rpartition(':')[2]}-{digest}"
        command = ["evaluate", name, *options, "--model", str(run / "pipeline"), "--output", str(folder)]
        code = run_command([sys.executable, "-m", "blip3o_hf.cli", *command])
        if code:
            raise RunFailed(
                f"The benchmark {name} of {run} ended with exit code {code}. Give the same command again to go on."
            )
        scores = Manifest.read(folder / MANIFEST).evaluation.scores
        if not scores:
            raise ValueError(
                f"A study compares scores. {name} gave none of {run}. Add what scores it to `options`: "
                f"docs/evaluation.md."
            )
        return {score.name.rpartition(": ")[2]: [score.figure.value] for score in scores}


__all__ = ["BenchmarkScores"]
