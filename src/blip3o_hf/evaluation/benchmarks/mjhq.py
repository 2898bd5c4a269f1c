"""MJHQ-30K: pictures by category, for distances to its own pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...hub.results import Figure, Score
from ...reading import read_json
from .base import Item, PictureBenchmark, Pictures, field_of
from .layouts import SUFFIXES, flat_problems, save_png

CATEGORIES = (
    "animals",
    "art",
    "fashion",
    "food",
    "indoor",
    "landscape",
    "logo",
    "people",
    "plants",
    "vehicles",
)


class Distance(Protocol):
    """A distance between two sets of pictures."""

    name: str
    """Of the distance with all that it depends on, such as the extractor and the size; it is in every score's name."""

    def __call__(self, drawn: Sequence[Path], real: Sequence[Path]) -> Figure:
        """
        Args:
            drawn: pictures of the model.
            real: those of the benchmark, in the same order.
        """


class MjhqBenchmark(PictureBenchmark):
    """
    MJHQ-30K (Playground), of which the prompts are `meta_data.json`: id to category and prompt.

    Its own pictures are not part of this package.
    """

    name = "mjhq"
    title = "MJHQ-30K"
    about = (
        "One picture of each of 30,000 prompts in ten categories, compared with the benchmark's own pictures by a "
        "distance, over all and in each category. Distances depend on the number of pictures, their size, the filter "
        "that made it, and the extractor: compare only numbers of the same protocol."
    )
    pattern = "meta_data.json"
    judged_by = ("distance", "reference")

    def read_items(self, path):
        if path.is_dir():
            path = path / self.pattern
        rows = read_json(path)
        if not isinstance(rows, dict):
            raise ValueError(f"MJHQ's prompts are a mapping by id. {path} is none. Take its file `meta_data.json`.")
        return [_item(name, row, path) for name, row in rows.items()]

    def write_layout(self, pictures, folder):
        for item in pictures.items:
            save_png(pictures.open(item), folder / picture_path(item))

    def problems(self, folder):
        return flat_problems(folder, [picture_path(item) for item in self.items])

    def score(self, pictures: Pictures, **judges: Any) -> list[Score]:
        """
        Args:
            pictures: as in the base.
            judges: `distance`, a [`Distance`], and `reference`, the folder of the benchmark's own pictures, each
                `<category>/<id>` with any ending of a picture; without a distance there is no score.
        """
        distance, reference = judges.get("distance"), judges.get("reference")
        if distance is None:
            return []
        pictures.check_complete()
        if reference is None:
            raise ValueError("MJHQ's distances need its own pictures. None are given. Give `reference`, their folder.")
        real = {item.id: reference_path(Path(reference), item) for item in pictures.items}
        rows = []
        for name, items in {"overall": list(pictures.items), **by_category(pictures.items)}.items():
            figure = distance([pictures.path(item) for item in items], [real[item.id] for item in items])
            label = f"MJHQ-30K pictures, {distance.name}: {name}"
            rows.append(Score("text-to-image", label, figure, len(items), metric=distance.name))
        return rows


def by_category(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by their category, in the order of `CATEGORIES`, of others behind them."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.row["category"], []).append(item)
    names = [*(name for name in CATEGORIES if name in groups), *(name for name in groups if name not in CATEGORIES)]
    return {name: groups[name] for name in names}


def picture_path(item: Item) -> str:
    """Of a drawn picture in the layout."""
    return f"{item.row['category']}/{item.id}.png"


def reference_path(folder: Path, item: Item) -> Path:
    """
    The benchmark's own picture of a prompt.

    Raises:
        FileNotFoundError: when there is none.
    """
    paths = [folder / item.row["category"] / f"{item.id}{suffix}" for suffix in SUFFIXES]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"Each prompt needs the benchmark's own picture. There is none at {paths[0].with_suffix('')} with "
        f"{', '.join(SUFFIXES)}. Unpack `mjhq30k_imgs.zip` there."
    )


def _item(name: str, row: Any, path: Path) -> Item:
    where = f"{name!r:.40} in {path}"
    if not isinstance(row, Mapping):
        raise ValueError(f"Each id must have a category and a prompt. {where} has {row!r:.40}. Correct the file.")
    category = field_of(row, "category", str, where)
    if Path(category).name != category or category.startswith("."):
        raise ValueError(f"A category names a folder. {where} has {category!r:.40}. Correct the file.")
    return Item(name, field_of(row, "prompt", str, where), dict(row))
