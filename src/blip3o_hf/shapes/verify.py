"""Decides from pixels alone whether a picture shows what a prompt says: the exact score of generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .language import Prompt
from .render import sprite_mask
from .scene import BACKGROUNDS, COLORS, IMAGE_SIZE, SHAPES, SIZES, SceneObject, offset_along

MIN_SHAPE_IOU = 0.8
"""Overlap with the best template below which a component is no shape at all."""
MAX_COLOR_DISTANCE = 60.0
"""RGB distance between a component's interior colour, or the background's, and the nearest named colour."""
MAX_COLOR_SPREAD = 45.0
"""Root mean square RGB distance of an interior from the line between background and colour."""
MIN_COMPONENT_PIXELS = 12
"""Smaller specks are ignored; the smallest object covers about 90 pixels."""
MIN_RELATION_OFFSET = 8
"""Pixels between the centres along a relation's axis; half of what a caption needs to state it."""

_FOREGROUND_DISTANCE = 80.0
_EXTENT_RANGE = (10, 28)
_COLOR_NAMES, _COLOR_VALUES = tuple(COLORS), np.array(list(COLORS.values()), np.float32)
_BACKGROUND_NAMES, _BACKGROUND_VALUES = tuple(BACKGROUNDS), np.array(list(BACKGROUNDS.values()), np.float32)


@dataclass(frozen=True)
class DetectedObject:
    """One recognised shape; `box` is `(left, top, right, bottom)` of its pixels, `center` is `(x, y)`."""

    shape: str
    color: str
    size: str
    box: tuple[int, int, int, int]
    center: tuple[float, float]


@dataclass(frozen=True)
class Detection:
    """What a picture shows.

    Args:
        background: `"white"`, `"black"`, or `None` when the border is neither.
        objects: The recognised objects, in reading order of their topmost pixels.
        junk: One sentence for each larger component that is no object of this world.
    """

    background: str | None
    objects: tuple[DetectedObject, ...]
    junk: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether a picture shows exactly what a prompt says, and the first reason why not, or `"ok"`."""

    passed: bool
    reason: str


def as_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """The picture as float32 `[64, 64, 3]` in [0, 255].

    Raises:
        TypeError: If the image is neither a PIL image nor a uint8 or float array.
        ValueError: If it has another shape, or float values outside [0, 1].
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"An image is a PIL image or a numpy array, got {type(image).__name__}. Convert it with `np.asarray`."
        )
    if image.shape != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(
            f"An image of the tiny world has shape (64, 64, 3), got {image.shape}. "
            "Put the channels last and resize it to 64x64."
        )
    if image.dtype == np.uint8:
        return image.astype(np.float32)
    if not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"An image array is uint8 or float, got {image.dtype}. Use `.astype('uint8')`.")
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"A float image lies in [0, 1], got [{low:g}, {high:g}]. Rescale and clip it first.")
    return image.astype(np.float32) * 255.0


def label_components(mask: np.ndarray) -> list[np.ndarray]:
    """Split a mask into 8-connected components by joining the runs of neighbouring rows.

    Args:
        mask: Boolean `[height, width]`.

    Returns:
        One int array `[num_runs, 3]` of (row, start, stop) for each component, in reading order.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    rows, starts = np.nonzero(steps == 1)
    runs = list(zip(rows.tolist(), starts.tolist(), np.nonzero(steps == -1)[1].tolist(), strict=True))
    parent = list(range(len(runs)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above = 0
    for i, (row, start, stop) in enumerate(runs):
        while runs[above][0] < row - 1 or (runs[above][0] == row - 1 and runs[above][2] < start):
            above += 1
        j = above
        while runs[j][0] == row - 1 and runs[j][1] <= stop:
            a, b = find(i), find(j)
            parent[max(a, b)] = min(a, b)
            j += 1
    components: dict[int, list] = {}
    for i, run in enumerate(runs):
        components.setdefault(find(i), []).append(run)
    return [np.array(component) for component in components.values()]


@lru_cache(maxsize=4096)
def _template(shape: str, size: str, height: int, width: int) -> np.ndarray:
    """The visible part of a sprite, stretched to a box: boolean `[height, width]`."""
    mask = sprite_mask(shape, size)
    rows, cols = np.nonzero(mask >= 0.5)
    box = (int(cols.min()), int(rows.min()), int(cols.max()) + 1, int(rows.max()) + 1)
    stretched = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(stretched) >= 0.5


def _shape_of(mask: np.ndarray) -> tuple[str, float]:
    """The shape whose template overlaps most with a mask cropped to its box, and the overlap (IoU)."""
    best, best_iou = SHAPES[0], -1.0
    for shape in SHAPES:
        for size in SIZES:
            template = _template(shape, size, *mask.shape)
            iou = np.count_nonzero(mask & template) / np.count_nonzero(mask | template)
            if iou > best_iou:
                best, best_iou = shape, iou
    return best, best_iou


def _recognise(pixels: np.ndarray, background: np.ndarray, runs: np.ndarray) -> DetectedObject | str:
    """The object that a component is, or a sentence that says why it is none."""
    top, left = int(runs[0, 0]), int(runs[:, 1].min())
    bottom, right = int(runs[-1, 0]) + 1, int(runs[:, 2].max())
    component = f"component at ({left}, {top}, {right}, {bottom})"
    covered = np.zeros((bottom - top + 2, right - left + 2), bool)
    for row, start, stop in runs.tolist():
        covered[row - top + 1, start - left + 1 : stop - left + 1] = True
    interior = covered[1:-1, 1:-1] & covered[:-2, 1:-1] & covered[2:, 1:-1] & covered[1:-1, :-2] & covered[1:-1, 2:]
    crop = pixels[top:bottom, left:right]
    contrast = crop[interior] - background
    if len(contrast) < MIN_COMPONENT_PIXELS:
        return f"{component} is too thin for an object"
    # A soft edge fades towards the background, so the colour is taken where the contrast is strongest.
    strength = (contrast**2).sum(axis=1)
    mean = contrast[strength >= np.median(strength)].mean(axis=0)
    distances = np.sqrt(((_COLOR_VALUES - background - mean) ** 2).sum(axis=1))
    nearest = int(distances.argmin())
    if distances[nearest] > MAX_COLOR_DISTANCE:
        return f"{component} has no named colour"
    # Coverage is measured along the line from the background to the colour; what lies beside it is foreign.
    projection = mean / float(mean @ mean)
    beside = contrast - (contrast @ projection)[:, None] * mean
    if float((beside**2).sum(axis=1).mean()) > MAX_COLOR_SPREAD**2:
        return f"{component} has more than one colour"
    coverage = (crop - background) @ projection
    mask = (coverage >= 0.5) & covered[1:-1, 1:-1]
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    if not all(_EXTENT_RANGE[0] <= extent <= _EXTENT_RANGE[1] for extent in mask.shape):
        return f"{component} has the size of no object"
    shape, iou = _shape_of(mask)
    if iou < MIN_SHAPE_IOU:
        return f"{component} has no known shape"
    box = (left + int(cols[0]), top + int(rows[0]), left + int(cols[-1]) + 1, top + int(rows[-1]) + 1)
    size = min(SIZES, key=lambda name: abs(SIZES[name] - 2 - max(mask.shape)))
    center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return DetectedObject(shape, _COLOR_NAMES[nearest], size, box, center)


def detect(image: Image.Image | np.ndarray) -> Detection:
    """Find the background and the objects of a picture.

    Args:
        image: PIL image, uint8 array or float array in [0, 1], of shape `[64, 64, 3]`.

    Returns:
        What the picture shows; without a clear background, nothing else is looked for.
    """
    pixels = as_pixels(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    median = np.median(border, axis=0)
    distances = np.sqrt(((_BACKGROUND_VALUES - median) ** 2).sum(axis=1))
    nearest = int(distances.argmin())
    if distances[nearest] > MAX_COLOR_DISTANCE:
        return Detection(None, (), ())
    background = _BACKGROUND_VALUES[nearest]
    mask = ((pixels - background) ** 2).sum(axis=2) > _FOREGROUND_DISTANCE**2
    objects, junk = [], []
    for runs in label_components(mask):
        if int((runs[:, 2] - runs[:, 1]).sum()) < MIN_COMPONENT_PIXELS:
            continue
        found = _recognise(pixels, background, runs)
        (junk if isinstance(found, str) else objects).append(found)
    return Detection(_BACKGROUND_NAMES[nearest], tuple(objects), tuple(junk))


def mismatch(objects: Sequence[SceneObject | DetectedObject], background: str, prompt: Prompt) -> str | None:
    """What is not as a prompt says, in words; `None` where everything is.

    Args:
        objects: Those of a scene, or those seen in a picture.
        background: `"white"` or `"black"`.
        prompt: The prompt with its meaning.
    """
    if len(objects) != prompt.num_objects:
        return f"{len(objects)} objects instead of {prompt.num_objects}"
    for group in prompt.objects:
        count = sum(group.holds(o) for o in objects)
        if count != group.count:
            place = "" if group.place is None else f" at the {group.place}"
            return f"{count} of {group.name}{place} instead of {group.count}"
    if prompt.relation is not None:
        first, second = (next(o for o in objects if group.holds(o)) for group in prompt.objects[:2])
        if offset_along(first.center, second.center, prompt.relation) < MIN_RELATION_OFFSET:
            return f"the {first.shape} is not {prompt.relation} the {second.shape}"
    if prompt.background not in (None, background):
        return f"the background is {background} instead of {prompt.background}"
    return None


def verify(image: Image.Image | np.ndarray, prompt: Prompt) -> Verdict:
    """Whether a picture shows exactly what a prompt says: these objects and nothing more.

    Args:
        image: PIL image, uint8 array or float array in [0, 1], of shape `[64, 64, 3]`.
        prompt: The prompt with its meaning.

    Raises:
        TypeError, ValueError: If the image is none, see `as_pixels`.
    """
    seen = detect(image)
    if seen.background is None:
        return Verdict(False, "the background is neither white nor black")
    if seen.junk:
        return Verdict(False, f"junk: {seen.junk[0]}")
    reason = mismatch(seen.objects, seen.background, prompt)
    return Verdict(reason is None, reason or "ok")
