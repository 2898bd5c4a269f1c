"""A repository that carries its code opens with the older libraries of other engines (docs/serving.md).

`BLIP3O_OLDER_PYTHON` is an interpreter that has these, and not this package.
"""

import os

import numpy as np
import pytest
import torch
from tests.processes import run

from blip3o_hf import Blip3oPipeline, packaged_model_path
from blip3o_hf.cli import main

PYTHON = os.environ.get("BLIP3O_OLDER_PYTHON")
PROMPT = "two red circles"
SCRIPT = f"""
import importlib.util, sys
import numpy as np
import torch
from diffusers import DiffusionPipeline
from transformers import AutoModelForImageTextToText, AutoProcessor

assert importlib.util.find_spec("blip3o_hf") is None
torch.set_num_threads(1)
pipe = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
image = pipe("{PROMPT}", generator=torch.Generator().manual_seed(0)).images[0]
np.save(sys.argv[2], np.asarray(image))

model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
content = [{{"type": "image", "image": image}}, {{"type": "text", "text": "how many circles are there?"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=8)
answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
assert answer == "two", answer
"""


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="BLIP3O_OLDER_PYTHON names no interpreter with older libraries")
def test_it_draws_the_same_picture_and_answers(tmp_path):
    target, drawn = tmp_path / "standalone", tmp_path / "drawn.npy"
    assert main(["export", packaged_model_path("blip3o-tiny"), str(target), "--remote-code"]) == 0
    places = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "code"), "PYTHONPATH": ""}
    run([PYTHON, "-c", SCRIPT, target, drawn], timeout=300, cwd=tmp_path, **places)
    pipe = Blip3oPipeline.from_pretrained(packaged_model_path("blip3o-tiny"))
    expected = pipe(PROMPT, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.array_equal(np.load(drawn), np.asarray(expected))
