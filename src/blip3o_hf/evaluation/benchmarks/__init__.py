"""Benchmarks: one shape for all, and the layouts and rules of those that the field reports."""

from typing import Any

from ...checks import find_class

BENCHMARKS: dict[str, str] = {}
"""Classes by the names that commands take, as `module:Class`."""


def find_benchmark(name: str) -> Any:
    """
    The class of a benchmark by its name, or by `module:Class`.

    Raises:
        ValueError: when there is none.
    """
    return find_class(name, BENCHMARKS, "the benchmark's name")


__all__ = ["BENCHMARKS", "find_benchmark"]
