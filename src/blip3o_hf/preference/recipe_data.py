"""Prompts and preferences of a recipe in files: rows of JSON Lines, CSV or Parquet, or a dataset of the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import datasets

from ..checks import check_keys
from ..files import expanded
from ..training.caching import decode
from ..training.training_data import SourcesData, TrainingData, place_in_words

FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
KEYS = ("path", "split", "held_out_path", "held_out_split")


class TableData(TrainingData):
    """
    Rows with a `prompt` and columns that rewards read, or with `prompt`, `chosen` and `rejected`; in a recipe,
    `data.dataset: table`.

    Its settings: `path` of a file or the name of a dataset on the Hub, and its `split` (`train` by default);
    `held_out_path` or `held_out_split`, or both, to evaluate with. Pictures of `evaluation.sources` are real ones,
    whose loss is watched.
    """

    types: ClassVar[Mapping[str, Any]] = dict.fromkeys(KEYS, str)

    @classmethod
    def check(cls, settings, use, where):
        check_keys(settings, KEYS, f"section 'data' of {where}")
        if use not in ("prompts", "preferences"):
            raise ValueError(
                f"A table has prompts or preferences, which the stages nft, grpo and dpo read. {where} is of another "
                f"stage. Use `sources` for records with images."
            )
        if "path" not in settings:
            raise ValueError(f"A table must be somewhere. {where} has no 'data.path'. Name a file or a dataset.")

    def prompts(self):
        return self._rows(self.settings["path"], self.settings.get("split", "train"))

    def held_out_prompts(self):
        path, split = self.settings.get("held_out_path"), self.settings.get("held_out_split")
        if path is None and split is None:
            return None
        return self._rows(path or self.settings["path"], split or "train")

    def held_out_pictures(self, complete=decode, processor=None):
        return SourcesData({}, self.held_out).held_out_pictures(complete, processor)

    def _rows(self, path: str, split: str) -> datasets.Dataset:
        kind = FILES.get(Path(path).suffix)
        if kind is None:
            return datasets.load_dataset(path, split=split)
        if not expanded(path).is_file():
            raise FileNotFoundError(f"`data.path` must be a file that is there. There is no {path}. Correct the path.")
        return datasets.load_dataset(kind, data_files=str(expanded(path)), split="train")

    def places(self):
        return tuple(self.settings[key] for key in ("path", "held_out_path") if key in self.settings)

    def describe(self):
        lines = [f"- {place_in_words(source)}" for source in self.places()]
        return "\n".join(("Prompts, or preferences, whose licences were not looked up:", "", *lines))


__all__ = ["TableData"]
