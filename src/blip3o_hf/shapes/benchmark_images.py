"""The tiny world's benchmark of what a model does with pictures: describe, edit, and draw them again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..evaluation.answers import answer
from ..evaluation.benchmark import seeded_batches
from ..evaluation.statistics import Rate
from ..models.modeling_blip3o import Blip3oForConditionalGeneration
from ..models.processing_blip3o import Blip3oProcessor
from ..pipelines.pipeline_blip3o import Blip3oPipeline
from ..pipelines.reconstruction import Blip3oReconstructionPipeline
from . import (
    EDIT_KINDS,
    Edit,
    Scene,
    edit_scene,
    parse_description,
    pick,
    render,
    sample_edit,
    sample_example,
    shows_objects,
    shows_scene,
    verify_edit,
)
from .benchmark import Drawing, draw
from .conversations import DESCRIBE

ABOUT_IMAGES = (
    "A caption counts when it names every object of a held-out picture with its number, colour and shape, the "
    "background, and nothing else. A reconstruction passes when every object has its shape, colour and size in its "
    "place, to one cell of the 8 x 8 grid, and nothing else is there; `autoencoder` is target encoder and decoder "
    "alone, `unified` goes through the backbone and the flow. An edit is *followed* when what was asked for is there, "
    "*preserved* when every other object is as it was; its score counts both. *Objects* counts pictures with all the "
    "right objects by number, colour and shape, wherever they stand. Scenes before and after are held out. "
    "*Chance* is here the rate of clean pictures of another edit of the same scene."
)


def held_out_scenes(num: int, seed: int = 0) -> list[Scene]:
    """Held-out scenes; one seed always gives the same ones."""
    return [sample_example(np.random.default_rng((seed, 21, index)), split="test").scene for index in range(num)]


def held_out_edits(num_per_kind: int, seed: int = 0) -> list[Edit]:
    """Held-out edits, `num_per_kind` of each kind; one seed always gives the same ones."""
    return [
        sample_edit(np.random.default_rng((seed, 22, position, index)), split="test", kind=kind)[0]
        for position, kind in enumerate(EDIT_KINDS)
        for index in range(num_per_kind)
    ]


def score_captions(
    model: Blip3oForConditionalGeneration,
    processor: Blip3oProcessor,
    scenes: Sequence[Scene],
    batch_size: int = 64,
) -> Rate:
    """How many plain captions say what the scene holds, and nothing else."""
    passed = 0
    for start in tqdm(range(0, len(scenes), batch_size), desc="describing", leave=False):
        batch = scenes[start : start + batch_size]
        said = answer(model, processor, [render(scene) for scene in batch], [DESCRIBE] * len(batch))
        passed += sum(_is_said(text, scene) for text, scene in zip(said, batch, strict=True))
    return Rate(passed, len(scenes))


def _is_said(text: str, scene: Scene) -> bool:
    meant = parse_description(text)
    kinds = [(o.color, o.shape) for o in scene.objects]
    return meant == ({kind: kinds.count(kind) for kind in kinds}, scene.background)


def draw_edits(
    pipe: Blip3oPipeline, edits: Sequence[Edit], seed: int = 0, batch_size: int = 32, **call: Any
) -> Drawing:
    """One image for each edit; image `i` has the generator seeded `seed + i`."""
    given = [[Image.fromarray(render(edit.source))] for edit in edits]
    return draw(pipe, [edit.text for edit in edits], seed, batch_size, images=given, **call)


def edit_rates(images: Sequence[np.ndarray], edits: Sequence[Edit]) -> dict[str, dict[str, Rate]]:
    """Rates by kind of edit: `both`, `followed`, `preserved`, and `objects`, all right ones wherever they stand."""
    columns: dict[str, dict[str, Rate]] = {"both": {}, "followed": {}, "preserved": {}, "objects": {}}
    for image, edit in zip(images, edits, strict=True):
        verdict = verify_edit(image, edit)
        values = {"both": verdict.passed, "followed": verdict.followed, "preserved": verdict.preserved}
        values["objects"] = shows_objects(image, edit.target)
        for name, rates in columns.items():
            rates[edit.kind] = rates.get(edit.kind, Rate(0, 0)) + Rate(int(values[name]), 1)
    return columns


def other_edits(edits: Sequence[Edit], seed: int = 0) -> list[np.ndarray]:
    """For each edit the clean picture of another one of its scene: what a model that ignores the instruction makes."""
    pictures = []
    for index, edit in enumerate(edits):
        rng = np.random.default_rng((seed, 23, index))
        other = None
        while other is None:
            other = edit_scene(edit.source, rng, pick(rng, EDIT_KINDS))
        pictures.append(render(other.target))
    return pictures


def score_reconstruction(
    reconstruct: Blip3oReconstructionPipeline,
    scenes: Sequence[Scene],
    mode: str,
    seed: int = 0,
    batch_size: int = 32,
    **call: Any,
) -> tuple[Rate, Rate, float, float]:
    """Rates of exact reconstructions and of those with the right objects, and the means of cosine and PSNR in dB."""
    passed, similar, cosines, psnr = 0, 0, [], []
    reconstruct.pipe.set_progress_bar_config(disable=True)
    for batch, generators in seeded_batches(scenes, seed, batch_size, f"reconstructing, {mode}"):
        output = reconstruct([Image.fromarray(render(scene)) for scene in batch], mode, generators, **call)
        passed += sum(shows_scene(image, scene) for image, scene in zip(output.images, batch, strict=True))
        similar += sum(shows_objects(image, scene) for image, scene in zip(output.images, batch, strict=True))
        cosines += output.feature_cosine
        psnr += output.psnr
    return Rate(passed, len(scenes)), Rate(similar, len(scenes)), float(np.mean(cosines)), float(np.mean(psnr))
