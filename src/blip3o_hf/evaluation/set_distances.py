"""Distances between two folders of pictures, with all that somebody else needs to measure them again."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checks import check_sizes
from ..hub.provenance import now, public_name, versions
from ..hub.results import Evaluation, Figure, Score
from .cached_features import features_of
from .distances import (
    SUBSETS,
    FeatureStatistics,
    KernelDistance,
    check_subset_size,
    cmmd,
    frechet_distance,
    kernel_distance,
)
from .extractors import CMMD_CLIP, FD_DINOV2, Extractor
from .folders import PictureFolder, Preparation

OVERALL = "overall"
FEW = 10_000
NAMED_SIZES = 5
_ROWS = 4096
ABOUT = (
    "Distances between the pictures of a folder and those of a reference; smaller is nearer, 0 is the same. The "
    "Frechet distance compares means and covariances of features, and is too large for few pictures. The kernel "
    "distance (KID) has no such bias; it is the mean over subsets, and the number behind +- is the standard deviation "
    "over them. The third number is the kernel and scale of CMMD. Distances compare only with those of the same "
    "extractor, size, resize filter, format of files and number of pictures."
)


@dataclass(frozen=True)
class SetDistance:
    """
    Args:
        name: `overall`, or that of a category.
        count, reference_count: pictures of both sets.
        frechet: see [`~evaluation.distances.frechet_distance`].
        kernel: see [`~evaluation.distances.kernel_distance`].
        cmmd: see [`~evaluation.distances.cmmd`].
    """

    name: str
    count: int
    reference_count: int
    frechet: float
    kernel: KernelDistance
    cmmd: float


@dataclass(frozen=True)
class SetComparison:
    """
    Two folders of pictures and how they are compared.

    Args:
        pictures, reference: the folders.
        extractor: what gives the features.
        prepare: how pictures are resized before.
        by_folder: also compare each subfolder with that of the same name.
        subsets, subset_size, seed: of the kernel distance.

    Raises:
        ValueError: when pictures of several sizes are to be taken as they are, or the categories of the two differ.
    """

    pictures: PictureFolder
    reference: PictureFolder
    extractor: Extractor
    prepare: Preparation
    by_folder: bool = False
    subsets: int = SUBSETS
    subset_size: int | None = None
    seed: int = 0

    def __post_init__(self):
        check_sizes(subsets=self.subsets)
        check_sizes(0, seed=self.seed)
        self._check_sizes()
        for name, numbers, reference_numbers in self._groups():
            if min(len(numbers), len(reference_numbers)) < 2:
                raise ValueError(
                    f"A distance needs at least 2 pictures in each set. Got {len(numbers)} and "
                    f"{len(reference_numbers)} ({name}). Add pictures."
                )
            if self.subset_size is not None:
                check_subset_size(self.subset_size, min(len(numbers), len(reference_numbers)))

    def _check_sizes(self) -> None:
        sizes = list(dict.fromkeys([*self.pictures.sizes, *self.reference.sizes]))
        if self.prepare.size is None and len(sizes) > 1:
            raise ValueError(
                f"Without a size, all pictures of both folders must have the same. Got {', '.join(sizes[:5])}"
                f"{', ...' if len(sizes) > 5 else ''}. State the size to which they are resized."
            )

    def _groups(self) -> Iterator[tuple[str, Sequence[int], Sequence[int]]]:
        """Names of groups of pictures, and which of both folders are in them."""
        if self.by_folder:
            groups, others = self.pictures.categories(), self.reference.categories()
            if alone := sorted(groups.keys() ^ others.keys()):
                raise ValueError(
                    f"By folder, both must have the same subfolders. Only one of {self.pictures.folder} and "
                    f"{self.reference.folder} has {', '.join(alone[:10])}. Add what is missing."
                )
            if OVERALL in groups:
                raise ValueError(
                    f"The row of all pictures is called {OVERALL!r}. {self.pictures.folder} has a subfolder of that "
                    f"name. Rename it."
                )
            yield from ((name, groups[name], others[name]) for name in sorted(groups))
        yield OVERALL, range(len(self.pictures.files)), range(len(self.reference.files))

    def measure(
        self, cache: Path | None = None, batch_size: int = 32, progress: bool = False
    ) -> tuple[list[SetDistance], int]:
        """
        Args:
            cache, batch_size, progress: as in [`~evaluation.cached_features.features_of`].

        Returns:
            The distances of the categories, where they are wanted, and then of all pictures; the dimension of the
            features.
        """
        both = [
            features_of(folder, self.extractor, self.prepare, cache, batch_size, progress)
            for folder in (self.pictures, self.reference)
        ]
        distances = [
            self._distance(name, both[0][list(numbers)], both[1][list(others)])
            for name, numbers, others in self._groups()
        ]
        return distances, both[0].shape[1]

    def _distance(self, name: str, first: np.ndarray, second: np.ndarray) -> SetDistance:
        statistics = (
            FeatureStatistics.of_batches(each[start : start + _ROWS] for start in range(0, len(each), _ROWS))
            for each in (first, second)
        )
        return SetDistance(
            name,
            len(first),
            len(second),
            frechet_distance(*statistics),
            kernel_distance(first, second, self.subsets, self.subset_size, self.seed),
            cmmd(first, second),
        )

    def notes(self, dim: int) -> list[str]:
        """
        What a reader of the numbers should know, in sentences.

        Args:
            dim: of the features.
        """
        counts = [len(folder.files) for folder in (self.pictures, self.reference)]
        notes = []
        fewest = {name: min(len(numbers), len(others)) for name, numbers, others in self._groups()}
        singular = [name for name, number in fewest.items() if number <= dim]
        if singular:
            notes.append(
                f"{fewest[singular[0]]:,} pictures ({', '.join(singular[:5])}{', ...' if len(singular) > 5 else ''}) "
                f"are no more than the {dim:,} dimensions of a feature: their covariance is singular, and the Frechet "
                f"distance far too large. Take more pictures, or use the kernel distance."
            )
        if OVERALL not in singular and min(counts) < FEW:
            notes.append(
                f"with {min(counts):,} pictures the Frechet distance has a bias upwards; compare it with distances of "
                f"as many pictures only."
            )
        if counts[0] != counts[1]:
            notes.append(f"the folder has {counts[0]:,} pictures and the reference {counts[1]:,}.")
        formats = [" and ".join(folder.formats) for folder in (self.pictures, self.reference)]
        if formats[0] != formats[1]:
            notes.append(f"the folder holds {formats[0]} and the reference {formats[1]}; the loss of JPEG counts.")
        sizes = [folder.sizes[0] for folder in (self.pictures, self.reference)]
        if sizes[0] != sizes[1]:
            notes.append(f"most pictures of the folder have {sizes[0]} pixels, and of the reference {sizes[1]}.")
        shared = {file.sha256 for file in self.pictures.files} & {file.sha256 for file in self.reference.files}
        if shared:
            notes.append(f"both hold the same file {len(shared):,} times.")
        return notes

    def report(self, distances: Sequence[SetDistance], dim: int, command: str) -> Evaluation:
        """
        Distances as a results file.

        Args:
            distances, dim: what `measure` returned.
            command: that measures them again.
        """
        return Evaluation(
            benchmark=f"Distance to {public_name(str(self.reference.folder))}",
            about=ABOUT,
            command=command,
            date=now(),
            settings=self.settings(dim) | {"subset size": {each.name: each.kernel.subset_size for each in distances}},
            versions={**versions(), "numpy": np.__version__},
            scores=tuple(score for distance in distances for score in self._scores(distance)),
        )

    def settings(self, dim: int) -> dict:
        """What the distances depend on."""
        folders = {"pictures": self.pictures, "reference": self.reference}
        return {
            "extractor": {"name": self.extractor.name, "about": self.extractor.about, **self.extractor.settings},
            "feature dim": dim,
            "resolution": self.prepare.size or self.pictures.sizes[0],
            "resize": self.prepare.resize if self.prepare.size else None,
            "subsets": self.subsets,
            "seed": self.seed,
            **{name: _described(folder) for name, folder in folders.items()},
        }

    def metric_names(self) -> tuple[str, str, str]:
        """The three distances, by the names that they have for this extractor."""
        name, encoder = self.extractor.name, self.extractor.settings.get("encoder")
        frechet = {("inception", None): "FID", ("dinov2", FD_DINOV2): "FD-DINOv2"}.get((name, encoder))
        kernel = "KID x 1000" if name == "inception" else "kernel distance x 1000"
        third = "CMMD" if (name, encoder) == ("clip", CMMD_CLIP) else "MMD as in CMMD"
        return frechet or "Frechet distance", kernel, third

    def _scores(self, distance: SetDistance) -> Iterator[Score]:
        values = (distance.frechet, 1000 * distance.kernel.mean, distance.cmmd)
        metrics = ("frechet_distance", "kernel_distance", "cmmd")
        deviation = {"standard deviation": Figure(1000 * distance.kernel.deviation)}
        for name, metric, value in zip(self.metric_names(), metrics, values, strict=True):
            beside: Mapping[str, Figure] = deviation if metric == "kernel_distance" else {}
            label = f"{distance.name}, {name}"
            yield Score("text-to-image", label, Figure(value), distance.count, beside, metric)


def _described(folder: PictureFolder) -> dict:
    return {
        "folder": public_name(str(folder.folder)),
        "sha256": folder.sha256,
        "pictures": len(folder.files),
        "formats": folder.formats,
        "sizes": folder.sizes[:NAMED_SIZES],
    }
