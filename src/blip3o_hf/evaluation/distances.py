"""Distances between two sets of pictures, from features of any kind: Frechet distance, kernel distance, CMMD."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..checks import check_sizes, is_finite_number

SUBSETS, SUBSET_SIZE = 100, 1000
"""Of the kernel distance, as the field takes them."""
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
_ROWS = 1024
"""Of a kernel matrix that are computed at once."""


@dataclass(frozen=True)
class FeatureStatistics:
    """
    How many features there are, their mean, and how they spread; all in float64. Batches may come one after another:
    the statistics of two parts add up to those of the whole.

    Args:
        count: of the pictures.
        mean (`[D]`): of the features.
        scatter (`[D, D]`): sum of the products of what is left without the mean.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "FeatureStatistics":
        """
        Args:
            features (`[N, D]`): of one batch, or of all pictures.

        Raises:
            ValueError: when they are no finite numbers of that shape.
        """
        features = check_features(features)
        mean = features.mean(axis=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    @classmethod
    def of_batches(cls, batches: Iterable[np.ndarray]) -> "FeatureStatistics":
        """Of features `[n, D]` that come in batches, of which only one is held in memory."""
        total = None
        for batch in batches:
            part = cls.of(batch)
            total = part if total is None else total + part
        if total is None:
            raise ValueError("Statistics need at least one batch of features. Got none. Pass one.")
        return total

    def __add__(self, other: "FeatureStatistics") -> "FeatureStatistics":
        _check_same_dim(len(self.mean), len(other.mean))
        count = self.count + other.count
        offset = other.mean - self.mean
        between = np.outer(offset, offset) * (self.count * other.count / count)
        mean = self.mean + offset * (other.count / count)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """
        The unbiased covariance `[D, D]`.

        Raises:
            ValueError: of a single picture.
        """
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 pictures. Got {self.count}. Add pictures.")
        return self.scatter / (self.count - 1)


def check_features(features: np.ndarray, least: int = 1) -> np.ndarray:
    """
    Features in float64.

    Args:
        features (`[N, D]`): finite numbers.
        least: how many pictures there must be.

    Raises:
        ValueError: when they are no such array.
    """
    array = np.asarray(features)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or array.shape[1] == 0:
        raise ValueError(
            f"Features must be numbers of shape [pictures, dim]. Got {array.dtype} {list(array.shape)}. Flatten or "
            f"average them first."
        )
    if len(array) < least:
        raise ValueError(f"A distance needs at least {least} pictures in each set. Got {len(array)}. Add pictures.")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"Features must be finite. Picture {row} has others. Check its file and the extractor.")
    return array


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """
    The Frechet distance of two normal distributions with these means and covariances; on Inception features it is FID
    (Heusel et al., 2017), on those of DINOv2 it is FD-DINOv2 (Stein et al., 2023).

    |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2)). The last trace is the sum of the singular values of F1 F2^T,
    where C = F^T F, which also holds where covariances are singular: with fewer pictures than dimensions.

    Returns:
        `float`, at least 0; it has the unit of squared features.

    Raises:
        ValueError: when the features have two dimensions, or a set has one picture only.
    """
    _check_same_dim(len(first.mean), len(second.mean))
    covariances = first.covariance, second.covariance
    one, two = (_factor(covariance) for covariance in covariances)
    of_product = np.linalg.svd(one @ two.T, compute_uv=False).sum() if len(one) and len(two) else 0.0
    offset = first.mean - second.mean
    distance = offset @ offset + sum(np.trace(covariance) for covariance in covariances) - 2 * of_product
    return max(0.0, float(distance))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F `[rank, D]` with F^T F = `covariance`; what is zero but for rounding is left out."""
    values, vectors = np.linalg.eigh(covariance)
    is_kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return np.sqrt(values[is_kept])[:, None] * vectors[:, is_kept].T


@dataclass(frozen=True)
class KernelDistance:
    """
    Args:
        mean: over the subsets; it may be below 0, since it is unbiased.
        deviation: standard deviation over the subsets.
        subsets: how many were drawn.
        subset_size: pictures of each set in a subset.
    """

    mean: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    subsets: int = SUBSETS,
    subset_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """
    The kernel distance KID (Binkowski et al., 2018): the unbiased squared MMD with the kernel (x y / D + 1)^3, over
    subsets drawn without replacement. It has no bias for small sets, which the Frechet distance has.

    Args:
        first (`[N, D]`), second (`[M, D]`): features.
        subsets: how many to draw.
        subset_size: pictures in each; by default 1000, or half of the smaller set where that is less.
        seed: of the drawing.

    Raises:
        ValueError: when features or sizes are not as said.
    """
    first, second = _check_pair(first, second)
    smaller = min(len(first), len(second))
    size = min(SUBSET_SIZE, max(2, smaller // 2)) if subset_size is None else subset_size
    check_sizes(1, subsets=subsets)
    check_sizes(0, seed=seed)
    check_subset_size(size, smaller)
    rng = np.random.default_rng(seed)
    values = [
        _unbiased_mmd(*(each[rng.choice(len(each), size, replace=False)] for each in (first, second)))
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(values)), float(np.std(values)), subsets, size)


def check_subset_size(size: int, smaller: int) -> None:
    """
    Raises:
        ValueError: when a subset of the kernel distance is no whole number of at least 2, or more than the `smaller`
            set has.
    """
    check_sizes(2, subset_size=size)
    if size > smaller:
        raise ValueError(f"A subset must fit into both sets. Got {size} of {smaller} pictures. Choose a smaller one.")


def _unbiased_mmd(first: np.ndarray, second: np.ndarray) -> float:
    def kernel(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return (one @ two.T / one.shape[1] + 1) ** 3

    def within(each: np.ndarray) -> float:
        matrix, count = kernel(each, each), len(each)
        return (matrix.sum() - np.trace(matrix)) / (count * (count - 1))

    return within(first) + within(second) - 2 * kernel(first, second).mean()


def cmmd(first: np.ndarray, second: np.ndarray, sigma: float = CMMD_SIGMA) -> float:
    """
    CMMD (Jayasumana et al., 2024): 1000 times the biased squared MMD with the kernel exp(-|x - y|^2 / (2 sigma^2)), of
    features of unit length. It bears this name on embeddings of CLIP ViT-L/14 at 336 pixels.

    Args:
        first (`[N, D]`), second (`[M, D]`): features; they are brought to unit length here.
        sigma: width of the kernel.

    Returns:
        `float`, at least 0 but for rounding.

    Raises:
        ValueError: when features are not as said, or of length 0.
    """
    if not is_finite_number(sigma, above=0):
        raise ValueError(f"`sigma` must be a number above 0. Got {sigma!r:.40}. CMMD has {CMMD_SIGMA}.")
    first, second = (_unit(each) for each in _check_pair(first, second, least=1))
    kernels = [_mean_kernel(*pair, sigma) for pair in ((first, first), (second, second), (first, second))]
    return CMMD_SCALE * (kernels[0] + kernels[1] - 2 * kernels[2])


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        row = int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(f"Features must have a length above 0. Those of picture {row} are all 0. Check its file.")
    return features / lengths


def _mean_kernel(first: np.ndarray, second: np.ndarray, sigma: float) -> float:
    """The mean over all pairs, some rows at a time. Of unit vectors, |x - y|^2 = 2 - 2 x y."""
    parts = (first[start : start + _ROWS] @ second.T for start in range(0, len(first), _ROWS))
    total = sum(np.exp((part - 1) / sigma**2).sum() for part in parts)
    return float(total / (len(first) * len(second)))


def _check_pair(first: np.ndarray, second: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    first, second = check_features(first, least), check_features(second, least)
    _check_same_dim(first.shape[1], second.shape[1])
    return first, second


def _check_same_dim(first: int, second: int) -> None:
    if first != second:
        raise ValueError(
            f"Features of both sets must have one dimension. Got {first} and {second}. Use the same extractor."
        )
