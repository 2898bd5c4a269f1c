"""Imported once by the process that all cases are forked from, so that a case costs a fork; and the names they use."""

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

import blip3o_hf.app.actions
import blip3o_hf.cli
import blip3o_hf.data.imagefolder
import blip3o_hf.data.json_files
import blip3o_hf.data.survey
import blip3o_hf.data.tables
import blip3o_hf.data.tar_files
import blip3o_hf.evaluation.answers
import blip3o_hf.evaluation.sheets
import blip3o_hf.hub.push
import blip3o_hf.models.record_check
import blip3o_hf.training.finetune
import blip3o_hf.training.plan
import blip3o_hf.training.recipes
from blip3o_hf import (
    Blip3oChat,
    Blip3oPipeline,
    Blip3oReconstructionPipeline,
    interpolate,
    packaged_model_path,
)

torch.set_num_threads(1)
datasets.disable_progress_bars()
transformers_logging.disable_progress_bar()
diffusers_logging.disable_progress_bar()
pipe = Blip3oPipeline.from_pretrained(packaged_model_path())
pipe.set_progress_bar_config(disable=True)
reconstruct = Blip3oReconstructionPipeline.from_pipe(pipe)
Image.init()  # imports a module for each format
_open = Blip3oPipeline.from_pretrained.__func__


def _open_once(cls, path: str | os.PathLike, **kwargs: Any) -> Blip3oPipeline:
    """As `from_pretrained`; the packaged pipeline has been opened before."""
    is_open = not kwargs and os.path.abspath(path) == packaged_model_path()
    return pipe if is_open else _open(cls, path, **kwargs)


Blip3oPipeline.from_pretrained = classmethod(_open_once)
FAST = {"num_inference_steps": 1, "plan": False, "num_attempts": 1}
picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
features = torch.linspace(-1, 1, 64 * 8 * 8).reshape(1, 64, 8, 8)
condition = torch.linspace(-1, 1, 32 * 128).reshape(1, 32, 128)


def draw(*arguments: Any, **settings: Any):
    """A call of the pipeline that takes little time, but for what is asked for."""
    return pipe(*arguments, **{**FAST, **settings})


def opened(folder: str | Path) -> torch.Tensor:
    """The features that a pipeline draws, and a pass of its own decoder and of its reader of images."""
    other = _open(Blip3oPipeline, folder)
    other.set_progress_bar_config(disable=True)
    drawn = other("a red circle", generator=torch.Generator().manual_seed(0), **FAST, image=picture)
    return drawn.image_features


def talk(folder: str | Path) -> str:
    """A saved conversation, opened, and how many messages and pictures it has."""
    chat = Blip3oChat.load(folder, pipe)
    return f"{len(chat.messages)} {len(chat.images)}"


def not_finite(result: Any) -> bool:
    """Whether a result holds numbers that are none."""
    if isinstance(result, torch.Tensor):
        return not bool(torch.isfinite(result).all())
    if isinstance(result, (list, tuple)):
        return any(map(not_finite, result))
    return not_finite(getattr(result, "image_features", None)) if hasattr(result, "image_features") else False


__all__ = [
    "FAST",
    "Blip3oChat",
    "Blip3oReconstructionPipeline",
    "blip3o_hf",
    "condition",
    "draw",
    "features",
    "interpolate",
    "np",
    "opened",
    "picture",
    "pipe",
    "pyarrow",
    "reconstruct",
    "talk",
    "torch",
]
