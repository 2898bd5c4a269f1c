"""The table of pictures and what rewards said of them, as TRL's trainers write it for texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from ..files import written_whole
from ..rewards.manager import Scores


@dataclass(frozen=True)
class Completions:
    """
    Pictures of one step of one process.

    Attributes:
        prompts: of each picture.
        pictures: as many.
        scores: of the rewards.
    """

    prompts: Sequence[str]
    pictures: Sequence[Image.Image]
    scores: Scores

    def write(self, folder: Path, step: int) -> Path:
        """
        Write `completions_STEP.parquet` with the columns `step`, `prompt`, `completion` (the picture's path in the
        folder), one for each reward, and `weighted_sum` of these; and the pictures in `STEP/`.

        Returns:
            `Path` of the table.
        """
        pictures = folder / f"{step:05d}"
        pictures.mkdir(parents=True, exist_ok=True)
        names = [f"{step:05d}/{index:03d}.png" for index in range(len(self.pictures))]
        for name, picture in zip(names, self.pictures, strict=True):
            with written_whole(folder / name) as temporary:
                picture.save(temporary, format="png")
        values = self.scores.values.tolist()
        rewards = {name: [_or_none(row[index]) for row in values] for index, name in enumerate(self.scores.names)}
        table = pyarrow.table(
            {
                "step": [step] * len(names),
                "prompt": list(self.prompts),
                "completion": names,
                **rewards,
                "weighted_sum": [_or_none(value) for value in self.scores.total.tolist()],
            }
        )
        path = folder / f"completions_{step:05d}.parquet"
        with written_whole(path) as temporary:
            pyarrow.parquet.write_table(table, temporary)
        return path


def _or_none(value: float) -> float | None:
    return None if value != value else value


__all__ = ["Completions"]
