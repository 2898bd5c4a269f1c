"""What is wrong with the tensors of a checkpoint, by name and file, found before any of them is read."""

import os
import re
from collections.abc import Collection, Mapping, Sequence

from .headers import NUM_BYTES, StoredTensor


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, for messages."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def located(tensors: Mapping[str, StoredTensor], name: str) -> str:
    """A tensor's name and file, for messages; the name alone when it is not among `tensors`."""
    return f"{name} (in {tensors[name].file})" if name in tensors else name


def check_floating_point(stored: Mapping[str, StoredTensor], source: str | os.PathLike) -> None:
    """Raise a `ValueError` that names a tensor, and its file, of another type than floating-point numbers."""
    integers = {name: tensor for name, tensor in stored.items() if tensor.dtype not in NUM_BYTES}
    if integers:
        name = min(integers)
        raise ValueError(
            f"Weights must be floating-point numbers ({', '.join(NUM_BYTES)}). {located(stored, name)} of "
            f"{source} is {integers[name].dtype}. Download it again, or take the checkpoint that was published in "
            f"full or half precision."
        )


def check_tensors(
    stored: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    source: str | os.PathLike,
    optional: Collection[str] = (),
    left_out: str = r"(?!)",
    compare_shapes: bool = True,
) -> None:
    """
    Compare a checkpoint's tensors with those of a model, before any is read.

    Args:
        stored: the checkpoint's tensors by their names.
        expected: shapes of the model's tensors by the same names.
        source: folder or Hub id, for errors.
        optional: names of tensors that may be missing.
        left_out: pattern of the names of tensors that may be there besides.
        compare_shapes: whether shapes must agree, too.

    Raises:
        ValueError: naming tensors that are missing, unexpected, ill-shaped or no floating-point numbers, and their
            files.
    """
    check_floating_point(stored, source)
    missing = sorted(expected.keys() - stored.keys() - set(optional))
    unexpected = sorted(name for name in stored.keys() - expected.keys() if not re.match(left_out, name))
    findings = []
    if missing:
        findings.append(f"lacks {len(missing)}: {listed(missing)}")
    if unexpected:
        findings.append(f"has {len(unexpected)} too many: {listed([located(stored, name) for name in unexpected])}")
    if findings:
        raise ValueError(
            f"A checkpoint must hold every tensor of the model and no other. {source} {', and '.join(findings)}. "
            f"Download it again, with the config.json that was saved with it."
        )
    differing = [
        f"{located(stored, name)} is {list(stored[name].shape)}, not {list(expected[name])}"
        for name in sorted(expected.keys() & stored.keys())
        if stored[name].shape != expected[name]
    ]
    if differing and compare_shapes:
        raise ValueError(
            f"config.json must describe the tensors beside it. In {source} {len(differing)} have another shape than "
            f"it asks for: {listed(differing, most=2)}. Use the config that was saved with these weights."
        )


__all__ = ["check_floating_point", "check_tensors", "listed", "located"]
