"""Whether drawn pictures are read as what they were asked for, by their likeness to real ones that a folder holds."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..data.images import decoded
from ..data.sources import open_source
from ..evaluation.benchmark import Benchmark, seeded_batches
from ..evaluation.distances import FeatureStatistics, frechet_distance
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..training.recipe_values import typed
from .measuring import RunMeasure, check_sized

BATCH = 32
SIZES = {"per_caption": 1, "size": 1, "neighbors": 1}
"""Settings that are whole numbers, and what each must be at least."""
CALL = {"num_inference_steps": int, "guidance_scale": float}


class Recognizer:
    """
    Reads a picture as the caption that most of its nearest neighbours have, among real pictures of few captions, such
    as handwritten digits. All are compared as small grey pictures.

    Args:
        images: folder of the real pictures with their captions, which no training has seen.
        size: height and width of the small pictures, pixels.
        neighbors: how many decide.

    Raises:
        ValueError: when there are fewer than two captions.
    """

    def __init__(self, images: str, size: int = 8, neighbors: int = 5):
        source = open_source({"path": images})
        records = [decoded(source[index]) for index in range(len(source))]
        self.size, self.neighbors = size, neighbors
        self.known = self.features([np.asarray(record.target) for record in records])
        names = [record.prompt or "" for record in records]
        self.captions = tuple(sorted(set(names)))
        if len(self.captions) < 2:
            raise ValueError(
                f"Pictures are told apart by at least two captions. {images} has {len(self.captions)}. Name another "
                f"folder."
            )
        self.labels = np.array([self.captions.index(name) for name in names])

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Pictures `[H, W, 3]` as rows `[N, size * size]` of grey values in [0, 1]."""
        small = [
            Image.fromarray(image).convert("L").resize((self.size, self.size), Image.Resampling.BOX)
            for image in images
        ]
        return np.stack([np.asarray(image, dtype=np.float64).ravel() / 255 for image in small])

    def read(self, images: Sequence[np.ndarray]) -> list[str]:
        """The caption of each picture."""
        return [self.captions[label] for label in self._labels(self.features(images))]

    def frechet(self, images: Sequence[np.ndarray]) -> float:
        """The Frechet distance of pictures to the real ones, in their small grey pixels."""
        return frechet_distance(*(FeatureStatistics.of(each) for each in (self.features(images), self.known)))

    def _labels(self, features: np.ndarray) -> np.ndarray:
        squares = (features**2).sum(axis=1)[:, None] + (self.known**2).sum(axis=1) - 2 * features @ self.known.T
        nearest = np.argsort(squares, axis=1, kind="stable")[:, : self.neighbors]
        return np.array([np.bincount(self.labels[row]).argmax() for row in nearest])


def _drawn(pipe: Blip3oPipeline, captions: Sequence[str], **call: Any) -> list[np.ndarray]:
    """A picture for each caption, from the noise 0, 1, ..."""
    batches = seeded_batches(captions, 0, BATCH, "drawing")
    return [np.asarray(image) for batch, own in batches for image in pipe(list(batch), generator=own, **call).images]


def _recognized(settings: Mapping[str, Any], pipe: Blip3oPipeline) -> tuple[list[float], float]:
    """Whether each picture is read right, and the distance of all to real ones."""
    keys = {key: settings[key] for key in ("size", "neighbors") if key in settings}
    recognizer = Recognizer(settings["images"], **keys)
    pipe.set_progress_bar_config(disable=True)
    asked = [caption for caption in recognizer.captions for _ in range(settings.get("per_caption", 20))]
    images = _drawn(pipe, asked, **{key: settings[key] for key in CALL if key in settings})
    right = [float(read == caption) for read, caption in zip(recognizer.read(images), asked, strict=True)]
    return right, recognizer.frechet(images)


def _check(settings: Mapping[str, Any], name: str) -> None:
    check_sized(settings, SIZES, ("images", *CALL), name)
    if not settings.get("images"):
        raise ValueError(f"{name} reads pictures by real ones. Its settings have no `images`. Name their folder.")
    for key, kind in CALL.items():
        if key in settings:
            typed(settings[key], kind, key)


class RecognitionBenchmark(Benchmark):
    """
    The share of drawn pictures that are read right, `overall`, and `frechet`, their distance to real ones. In a
    recipe: `evaluation.benchmark: blip3o_hf.study.recognition:RecognitionBenchmark`, with `images`, the folder of real
    pictures, and `per_caption` (20), `size` and `neighbors` as [`Recognizer`] has them.
    """

    keys: ClassVar[Mapping[str, tuple[str, ...]]] = {"drawing": ("images", *SIZES)}
    types: ClassVar[Mapping[str, Any]] = {"images": str, **dict.fromkeys(SIZES, int)}

    def __init__(self, settings):
        _check(settings, "RecognitionBenchmark")
        super().__init__(settings)

    def drawing(self, pipe):
        right, frechet = _recognized(self.settings, pipe)
        return {"overall": float(np.mean(right)), "frechet": frechet}


class Recognition(RunMeasure):
    """
    Whether each drawn picture is read right, `overall`, and `frechet`, the distance of all to real ones. Settings:
    those of [`RecognitionBenchmark`], and `num_inference_steps` and `guidance_scale` of the call.
    """

    def __init__(self, settings):
        _check(settings, "Recognition")
        super().__init__(settings)

    def __call__(self, run):
        right, frechet = _recognized(self.settings, Blip3oPipeline.from_pretrained(run / "pipeline"))
        return {"overall": right, "frechet": [frechet]}


__all__ = ["Recognition", "RecognitionBenchmark", "Recognizer"]
