"""The rules of the tiny world, in which "draws what the prompt says" can be measured on a laptop.

A scene is one to four coloured shapes on a plain 64x64 background. Boxes lie on a lattice of 8x8 cells of
8 px, so they align with the patches of a vision encoder, and any two boxes are at least one cell apart.
Whole combinations, relations, scenes and prompt texts are held out by fixed rules, never by a random draw, so
that every process and every run agrees on what the model has not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

IMAGE_SIZE = 64
CELL = 8
GRID = IMAGE_SIZE // CELL
MAX_OBJECTS = 4

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (215, 30, 35),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (250, 230, 40),
    "purple": (150, 40, 180),
    "orange": (245, 130, 20),
}
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
SIZES = {"small": 16, "large": 24}
RELATIONS = ("left of", "right of", "above", "below")
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SPLITS = ("train", "test")

MIN_STATED_OFFSET = 16
"""A caption may state a relation when the centres differ by this many pixels along its axis."""

HELD_OUT_COMBINATIONS = frozenset(
    {("purple", "triangle"), ("yellow", "square"), ("green", "cross"), ("orange", "circle")}
)
HELD_OUT_RELATIONS = frozenset(
    {
        ("circle", "above", "square"),
        ("square", "below", "circle"),
        ("cross", "left of", "triangle"),
        ("triangle", "right of", "cross"),
    }
)
"""Pairs of shapes never seen in this arrangement; each stands with its inverse."""

SEEN_COLORS = {
    shape: tuple(color for color in COLORS if (color, shape) not in HELD_OUT_COMBINATIONS) for shape in SHAPES
}
"""For each shape, the colours it may have in a training scene."""


@dataclass(frozen=True)
class SceneObject:
    """One shape on the lattice.

    Args:
        shape: One of `SHAPES`.
        color: A key of `COLORS`.
        size: `"small"` (16 px) or `"large"` (24 px).
        row: Top cell of the box, 0 to 7.
        col: Left cell of the box, 0 to 7.
    """

    shape: str
    color: str
    size: str
    row: int
    col: int

    @property
    def pixels(self) -> int:
        """Side of the square box in pixels."""
        return SIZES[self.size]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """`(left, top, right, bottom)` in pixels, right and bottom exclusive."""
        left, top = self.col * CELL, self.row * CELL
        return left, top, left + self.pixels, top + self.pixels

    @property
    def center(self) -> tuple[float, float]:
        """`(x, y)` in pixels, y pointing down."""
        half = SIZES[self.size] / 2
        return self.col * CELL + half, self.row * CELL + half


@dataclass(frozen=True)
class Scene:
    """Objects on a background; two scenes with equal `key` show the same picture.

    Args:
        objects: One to four objects, in any order.
        background: `"white"` or `"black"`.
    """

    objects: tuple[SceneObject, ...]
    background: str

    @property
    def key(self) -> str:
        """Canonical text of the scene, independent of the order of its objects."""
        parts = sorted(f"{o.shape},{o.color},{o.size},{o.row},{o.col}" for o in self.objects)
        return f"{self.background}:" + ";".join(parts)

    @classmethod
    def from_key(cls, key: str) -> "Scene":
        """The scene that has a `key`.

        >>> Scene.from_key("black:circle,red,small,0,4").objects[0].col
        4
        """
        background, _, parts = key.partition(":")
        fields = [part.split(",") for part in parts.split(";")]
        return cls(tuple(SceneObject(*words, int(row), int(col)) for *words, row, col in fields), background)


def in_reading_order(objects: Sequence[SceneObject]) -> tuple[SceneObject, ...]:
    """The objects from top to bottom, those of one row from left to right."""
    return tuple(sorted(objects, key=lambda o: (o.row, o.col)))


def offset_along(a: tuple[float, float], b: tuple[float, float], relation: str) -> float:
    """Pixels by which centre `a` lies on the `relation` side of centre `b`; negative on the other side.

    >>> offset_along((8.0, 8.0), (40.0, 16.0), "left of")
    32.0
    """
    if relation == "left of":
        return b[0] - a[0]
    if relation == "right of":
        return a[0] - b[0]
    if relation == "above":
        return b[1] - a[1]
    return a[1] - b[1]


def stated_relation(a: SceneObject, b: SceneObject) -> str | None:
    """The relation of `a` to `b` that a caption may state, or `None` when no axis dominates.

    The centres must differ by at least 16 px along the axis, and strictly more than along the other one.
    """
    (ax, ay), (bx, by) = a.center, b.center
    dx, dy = ax - bx, ay - by
    if abs(dx) == abs(dy) or max(abs(dx), abs(dy)) < MIN_STATED_OFFSET:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def is_held_out_text(text: str) -> bool:
    """Whether a prompt text (one in five) is kept from training captions."""
    return crc32(text.encode()) % 5 == 0


def is_held_out_scene(scene: Scene) -> bool:
    """Whether a scene (one in ten) is kept from training, whatever is said about it."""
    return crc32(scene.key.encode()) % 10 == 0


def has_held_out_combination(scene: Scene) -> bool:
    """Whether any object has a colour and shape that never meet in training."""
    return any((o.color, o.shape) in HELD_OUT_COMBINATIONS for o in scene.objects)


def has_held_out_relation(scene: Scene) -> bool:
    """Whether any two objects stand in a relation that never occurs in training."""
    objects = scene.objects
    return any(
        (a.shape, stated_relation(a, b), b.shape) in HELD_OUT_RELATIONS
        for i, a in enumerate(objects)
        for b in objects[i + 1 :]
    )


def is_training_scene(scene: Scene) -> bool:
    """Whether a scene obeys all three rules on scenes: combinations, relations and the scene itself."""
    return not (has_held_out_combination(scene) or has_held_out_relation(scene) or is_held_out_scene(scene))
