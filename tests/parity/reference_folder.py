"""The folder recorded from the reference that `BLIP3O_REFERENCE_TINY` names, and what it was recorded with.

Sizes, numbers of steps and scales of guidance differ from folder to folder. They are read from its files and from the
shapes of its tensors, and written nowhere in the tests.
"""

import ast
import json
import os
import re
from itertools import product
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

VARIABLE = "BLIP3O_REFERENCE_TINY"
FOLDER = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
NO_FOLDER = f"the environment variable {VARIABLE} names no recorded checkpoint"
# What may be recorded. The loops of sampling, `d_sample*`, are as many as there are.
GROUPS = ("a_backbone", "b_image", "b_understand", "c_dit", "e_train", "f_eva", "g_decoder")
# Of the reference, and the most steps of a loop that was kept short.
DEFAULT_STEPS, DEFAULT_GUIDANCE, FEW_STEPS = 30, 3.0, 10


class RecordedTensors(dict):
    """By name. A test that asks for a group of which nothing was recorded is skipped; any other name is an error."""

    def __missing__(self, name):
        group = name.partition(".")[0]
        if group in GROUPS and not any(key.startswith(f"{group}.") for key in self):
            pytest.skip(f"nothing of {group} was recorded in {FOLDER}")
        raise KeyError(name)


def load_recorded() -> RecordedTensors:
    return RecordedTensors(load_file(FOLDER / "expected.safetensors"))


def read_json(name: str) -> dict:
    return json.loads((FOLDER / name).read_text())


def recorded_parts(pattern: str) -> list[str]:
    """The first group of `pattern` in every recorded name that it matches as a whole; none without a folder."""
    if FOLDER is None:
        return []
    with safe_open(FOLDER / "expected.safetensors", "pt") as file:
        matches = (re.fullmatch(pattern, name) for name in file.keys())  # noqa: SIM118
        return sorted({match[1] for match in matches if match})


def sampling_settings(name: str, recorded: RecordedTensors, notes: dict) -> list[tuple[int, float]]:
    """
    Steps and scale of guidance that a loop `d_sample*` may have been recorded with.

    The notes say both, and the noise levels the steps. For the loop with several images of a prompt the recorded
    folders say neither: what is likely comes back then (few steps, the settings of the other loops and the defaults),
    fewest steps first, and one of it must reproduce what was recorded.
    """
    written = notes.get(name, {})
    others = [note for key, note in notes.items() if key.startswith("d_sample")]
    steps = {*range(1, FEW_STEPS + 1), DEFAULT_STEPS, *(note["steps"] for note in others)}
    scales = {DEFAULT_GUIDANCE, *(note["guidance"] for note in others)}
    if f"{name}.sigmas" in recorded:
        steps = {len(recorded[f"{name}.sigmas"]) - 1}
        assert written.get("steps") in (None, *steps)
    elif "steps" in written:
        steps = {written["steps"]}
    if "guidance" in written:
        scales = {written["guidance"]}
    return list(product(sorted(steps), sorted(scales)))


def optimizer_settings(notes: dict) -> tuple[dict, float]:
    """Arguments of `AdamW`, and the norm that gradients are clipped to."""
    written = notes["train_steps"]["optimizer"]
    values = {name: ast.literal_eval(value) for name, value in re.findall(r"(\w+)=(\([^)]*\)|\S+)", written)}
    assert written.startswith("AdamW ") and values.keys() == {"lr", "betas", "eps", "wd"}
    return {"weight_decay": values.pop("wd"), **values}, notes["train_steps"]["clip"]


def encoder_heads(sizes: dict) -> int:
    """Attention heads of the target encoder, by `fixture_config.json`: shapes do not tell them."""
    return sizes["eva"]["width"] // sizes["eva"]["head_width"]
