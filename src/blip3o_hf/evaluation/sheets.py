"""Sheets of pictures and curves of a training run."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from ..files import written_whole


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int = 4, size: int = 192
) -> Image.Image:
    """
    Images in a grid, each with its caption underneath.

    Args:
        images: PIL images of any size, shown `size` x `size`.
        captions: one per image.
    """
    font = ImageFont.load_default(size=13)
    lines = [textwrap.wrap(caption, width=max(8, size // 7)) for caption in captions]
    margin, rows = 12, [lines[first : first + columns] for first in range(0, len(lines), columns)]
    heights = [size + 10 + 16 * max(len(wrapped) for wrapped in row) + margin for row in rows]
    sheet = Image.new("RGB", (columns * (size + margin) + margin, sum(heights) + margin), (236, 236, 236))
    pen = ImageDraw.Draw(sheet)
    for index, (image, wrapped) in enumerate(zip(images, lines, strict=True)):
        left = margin + (index % columns) * (size + margin)
        top = margin + sum(heights[: index // columns])
        sheet.paste(image.convert("RGB").resize((size, size), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(wrapped):
            pen.text((left, top + size + 4 + 16 * line), text, fill=(20, 20, 20), font=font)
    return sheet


def curve(points: Sequence[tuple[float, float]], name: str, path: Path) -> None:
    """
    One value along the steps of a run, as a PNG.

    Args:
        points: step and value.
        name: of the value.
        path: where to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    panel = figure.subplots()
    panel.plot(*zip(*points, strict=True), marker="o", markersize=3)
    panel.set(xlabel="step", ylabel=name)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def bands(lines: Mapping[str, Sequence[Mapping[int, float]]], name: str, title: str, path: Path) -> None:
    """
    Means of several runs along their steps, with bands from the least to the most, as a PNG.

    Args:
        lines: by their labels, for each run its values by step; steps that not all have are left out.
        name: of the value.
        title: of the figure.
        path: where to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    panel = figure.subplots()
    for label, runs in lines.items():
        steps = sorted(set.intersection(*map(set, runs)))
        columns = [[run[step] for run in runs] for step in steps]
        panel.plot(steps, [fmean(column) for column in columns], marker="o", markersize=3, label=label)
        panel.fill_between(steps, list(map(min, columns)), list(map(max, columns)), alpha=0.2)
    panel.set(xlabel="step", ylabel=name, title=title)
    panel.legend(fontsize=8)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)


def curves(history: Sequence[dict], path: Path) -> None:
    """
    Loss and evaluation curves of a training run, as a PNG; without evaluation, that of the loss alone.

    Args:
        history: the Trainer's log history, dictionaries with `step` and named numbers.
        path: where to write.
    """
    from matplotlib.figure import Figure

    losses = [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]
    names = sorted({name for entry in history for name in entry if name.startswith("eval_")})
    scores = [name for name in names if not name.startswith("eval_loss")]
    figure = Figure(figsize=(12 if scores else 6, 5))
    left, *others = figure.subplots(1, 2 if scores else 1, squeeze=False)[0]
    left.plot(*zip(*losses, strict=True) if losses else ([], []), color="0.7", label="training")
    for name in names:
        points = [(entry["step"], entry[name]) for entry in history if name in entry]
        panel = others[0] if name in scores else left
        panel.plot(*zip(*points, strict=True), marker="o", label=name.removeprefix("eval_"))
    left.set(
        xlabel="step",
        ylabel="loss",
        yscale="log",
        title="training loss, and held-out losses" if len(names) > len(scores) else "training loss",
    )
    for right in others:
        right.set(xlabel="step", ylim=(0, 1), title="held-out evaluation")
    for panel in (left, *others):
        if panel.get_lines():
            panel.legend(fontsize=7)
    figure.tight_layout()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
