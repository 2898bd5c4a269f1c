"""What a study of the tiny world measures of a run: drawing, diversity, distance to true pictures, answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..assets import packaged_model_path
from ..checks import check_name
from ..evaluation.distances import FeatureStatistics, frechet_distance
from ..models.target_encoder import TargetEncoder, extract_features, load_target_encoder, normalize, stack_images
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..study.measuring import RunMeasure, check_sized
from . import EVALUATION_FAMILIES, Prompt, benchmark, render, sample_example
from .verify import detect, verify

SEED = 1
"""Of the held-out prompts, and of the first noise."""
CALL = ("num_inference_steps", "guidance_scale", "plan")
FROM_PLANS = "from_plans"


class _SizedMeasure(RunMeasure):
    """Base of all: `sizes` are settings that are whole numbers, and what each must be at least."""

    sizes: Mapping[str, int] = {}
    keys: tuple[str, ...] = ()

    def __init__(self, settings: Mapping[str, Any]):
        check_sized(settings, self.sizes, self.keys, type(self).__name__)
        super().__init__(settings)


class _PipelineMeasure(_SizedMeasure):
    """
    Base of those that draw.

    Settings: `num_inference_steps`, `guidance_scale` and `plan` of the call; the pipeline's own by default. With
    `from_plans` it is given the plan of a true scene in the place of each prompt: a long text that leaves nothing
    open, also to a backbone that cannot plan. Every picture is drawn once.
    """

    keys = (*CALL, FROM_PLANS)

    def pipeline(self, run: Path) -> Blip3oPipeline:
        """That of a run."""
        return Blip3oPipeline.from_pretrained(run / "pipeline")

    def texts(self, prompts: Sequence[Prompt]) -> list[str]:
        """What is drawn for prompts."""
        if self.settings.get(FROM_PLANS):
            return benchmark.plans_of(prompts, SEED)
        return [prompt.text for prompt in prompts]

    def draw(self, pipe: Blip3oPipeline, prompts: Sequence[str], seed: int) -> list[np.ndarray]:
        """A picture for each prompt, from noise `seed`, `seed + 1`, ..."""
        call = {key: self.settings[key] for key in CALL if key in self.settings}
        return benchmark.draw(pipe, prompts, seed=seed, num_attempts=1, **call).images


class Drawing(_PipelineMeasure):
    """
    Whether each held-out prompt is drawn right: `overall`, and by family. Settings: `per_family`, 25 by default; and
    `groups`, names of further values with the families of each, such as `{weak: [counting, position]}`.
    """

    sizes = {"per_family": 1}
    keys = (*_PipelineMeasure.keys, "groups")

    def __init__(self, settings):
        super().__init__(settings)
        self.groups: Mapping[str, Sequence[str]] = settings.get("groups", {})
        for name, families in self.groups.items():
            if name in ("overall", *EVALUATION_FAMILIES):
                raise ValueError(f"A group has a name of its own. Got `{name}`, which is measured anyway. Rename it.")
            for family in families:
                check_name(f"family of the group `{name}`:", family, EVALUATION_FAMILIES)

    def __call__(self, run):
        prompts = benchmark.held_out_prompts(self.settings.get("per_family", 25), seed=SEED)
        images = self.draw(self.pipeline(run), self.texts(prompts), SEED)
        passed = [float(verify(image, prompt).passed) for image, prompt in zip(images, prompts, strict=True)]
        families = {
            family: [ok for ok, prompt in zip(passed, prompts, strict=True) if prompt.family == family]
            for family in EVALUATION_FAMILIES
        }
        groups = {name: [ok for family in chosen for ok in families[family]] for name, chosen in self.groups.items()}
        return {"overall": passed, **families, **groups}


class Diversity(_PipelineMeasure):
    """
    How different the pictures of one prompt are: `features`, by how much two of them differ in each of the target
    encoder's features (root mean square); `layouts`, how many different arrangements of objects there are, as a share
    of the pictures. Settings: `num_prompts` (8) and `num_pictures` of each (64).
    """

    sizes = {"num_prompts": 1, "num_pictures": 2}

    def __call__(self, run):
        number = self.settings.get("num_pictures", 64)
        prompts = benchmark.held_out_prompts(-(-self.settings.get("num_prompts", 8) // len(EVALUATION_FAMILIES)), SEED)
        pipe, eye = self.pipeline(run), encoder()
        distances, layouts = [], []
        for text in self.texts(prompts)[: self.settings.get("num_prompts", 8)]:
            images = self.draw(pipe, [text] * number, SEED)
            found = features(eye, images)
            distances.append(float(np.sqrt(2 * found.var(axis=0, ddof=1).mean())))
            layouts.append(len({_layout(image) for image in images}) / number)
        return {"features": distances, "layouts": layouts}


class Distance(_PipelineMeasure):
    """
    `frechet`: the Frechet distance between pictures of held-out prompts and true pictures of other ones, in the target
    encoder's features. Settings: `num_pictures`, 1,000 by default.
    """

    sizes = {"num_pictures": 2}

    def __call__(self, run):
        number = self.settings.get("num_pictures", 1000)
        per_family = -(-number // len(EVALUATION_FAMILIES))
        prompts = benchmark.held_out_prompts(per_family, seed=SEED + 1)[:number]
        images = self.draw(self.pipeline(run), self.texts(prompts), SEED)
        return {"frechet": [distance_to_true(images, prompts)]}


class Answers(_SizedMeasure):
    """Whether each held-out question is answered exactly: `overall`. Settings: `per_kind`, 25 by default."""

    sizes = {"per_kind": 1}

    def __call__(self, run):
        pipe = Blip3oPipeline.from_pretrained(run / "pipeline")
        number = self.settings.get("per_kind", 25)
        items = [item for kind in benchmark.ASKED_KINDS for item in benchmark.held_out_questions(kind, number, SEED)]
        return {"overall": [float(is_right) for is_right in benchmark.answered(pipe.model, pipe.processor, items)]}


def encoder() -> TargetEncoder:
    """The packaged one, so that pictures of all designs are compared in one space."""
    return TargetEncoder(*load_target_encoder(str(packaged_model_path()), "target_encoder"))


@torch.no_grad()
def features(eye: TargetEncoder, images: Sequence[np.ndarray]) -> np.ndarray:
    """`[N, C * h * w]`, float64."""
    found = []
    for start in range(0, len(images), 64):
        pixels = normalize(eye.image_processor, stack_images(list(images[start : start + 64])))
        found.append(extract_features(eye.model, pixels).flatten(1).double().numpy())
    return np.concatenate(found)


def distance_to_true(images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> float:
    """The Frechet distance of pictures of prompts to true pictures of other prompts of the same families."""
    true = [
        render(sample_example(np.random.default_rng((SEED, 13, index)), split="test", family=prompt.family).scene)
        for index, prompt in enumerate(prompts)
    ]
    eye = encoder()
    drawn, real = (FeatureStatistics.of(pooled(features(eye, each))) for each in (images, true))
    return frechet_distance(drawn, real)


def pooled(features: np.ndarray) -> np.ndarray:
    """The mean over places, `[N, C]`: of all numbers, few pictures tell no covariance."""
    return features.reshape(len(features), -1, 64).mean(axis=2)


def _layout(image: np.ndarray) -> tuple[Any, ...]:
    """The objects of a picture and their places, on a grid of 8 pixels."""
    seen = detect(Image.fromarray(image))
    return tuple(
        sorted(
            (each.shape, each.color, each.size, *(int(value // 8) for value in each.center)) for each in seen.objects
        )
    )


__all__ = ["Answers", "Distance", "Diversity", "Drawing", "distance_to_true", "encoder", "features", "pooled"]
