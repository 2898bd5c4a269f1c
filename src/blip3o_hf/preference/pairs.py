"""Preferences: rows with a `prompt`, the `chosen` picture and the `rejected` one."""

import os
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageChops

from ..data.images import decode_image
from ..data.records import BadItem
from .prompts import PromptDataset

PICTURES = ("chosen", "rejected")


class PreferenceDataset(PromptDataset):
    """
    Rows with a text under `prompt` and pictures under `chosen` and `rejected`: PIL images, as `datasets.Image` gives
    them, or bytes or paths of files.

    Args:
        rows: read by their numbers, when they are needed.
        name: of the argument, for errors.

    Raises:
        TypeError: when there are no rows to read, or something else than a picture is in one.
        ValueError: when a row lacks something, a picture cannot be read, or both are the same.
    """

    checks_all = False

    def __getitem__(self, index):
        row = super().__getitem__(index)
        pictures = {side: self._picture(row, side, index) for side in PICTURES}
        chosen, rejected = pictures.values()
        if chosen.size == rejected.size and ImageChops.difference(chosen, rejected).getbbox() is None:
            raise ValueError(
                f"A preference is between two pictures. `chosen` and `rejected` of {self.name}[{index}] are the same. "
                f"Leave this row out."
            )
        return {**row, **pictures}

    def _picture(self, row: Mapping[str, Any], side: str, index: int) -> Image.Image:
        value = row.get(side)
        if value is None:
            raise ValueError(
                f"Each preference must have a picture under `{side}`. {self.name}[{index}] has none. Its columns are "
                f"{', '.join(row)}. Name one of them so."
            )
        if isinstance(value, Mapping):  # of a dataset whose images are not decoded
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, (Image.Image, bytes, str, os.PathLike)):
            raise TypeError(
                f"A picture must be a PIL image, or bytes or the path of a file. {side} of {self.name}[{index}] is "
                f"{type(value).__name__}. Cast the column to datasets.Image()."
            )
        try:
            return decode_image(value, f"{side} of {self.name}[{index}]")
        except BadItem as error:
            raise ValueError(
                f"Both pictures of a preference must be readable. Got {error}. Replace it, or leave this row out."
            ) from error


__all__ = ["PICTURES", "PreferenceDataset"]
