"""Replicas under Ray Serve (recipes/serving/ray_serve.py) answer as the pipeline does."""

import base64
import importlib.util
import io
import tempfile

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from tests.processes import ROOT
from tests.serving.started import free_port, started

from blip3o_hf import Blip3oPipeline, packaged_model_path

KEY = "ray-key"
SCRIPT = """
import sys
import ray
from ray import serve
sys.path.insert(0, sys.argv[1])
from ray_serve import Options, build
ray.init(num_cpus=2, include_dashboard=False, _temp_dir=sys.argv[3])
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build(Options(model="blip3o-tiny", cpus=0.5)), blocking=True)
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray Serve is not installed: ray[serve]"),
]


@pytest.fixture(scope="module")
def address():
    port = free_port()
    # Its sockets have paths of at most 107 letters.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        command = ("-c", SCRIPT, ROOT / "recipes" / "serving", port, folder)
        address = f"http://127.0.0.1:{port}"
        with started(
            *command, health=f"{address}/health", seconds=400, BLIP3O_API_KEY=KEY, RAY_USAGE_STATS_ENABLED="0"
        ):
            yield f"{address}/v1"


def test_a_replica_draws_what_the_pipeline_draws(address):
    client = openai.OpenAI(base_url=address, api_key=KEY)
    answer = client.images.generate(model="blip3o-tiny", prompt="two red circles", extra_body={"seed": 3})
    pipe = Blip3oPipeline.from_pretrained(packaged_model_path("blip3o-tiny"))
    expected = pipe("two red circles", generator=torch.Generator().manual_seed(3)).images[0]
    drawn = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))


def test_a_replica_streams_pictures_and_words(address):
    client = openai.OpenAI(base_url=address, api_key=KEY)
    events = client.images.generate(model="blip3o-tiny", prompt="a blue square", stream=True, partial_images=1)
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    chunks = client.chat.completions.create(
        model="blip3o-tiny",
        messages=[{"role": "user", "content": "two red circles"}],
        modalities=["image"],
        stream=True,
    )
    assert sum(len(chunk.choices[0].delta.model_extra.get("images", [])) for chunk in chunks) == 1


def test_a_replica_wants_the_key_of_its_environment(address):
    with pytest.raises(openai.AuthenticationError, match="with a key of this server"):
        openai.OpenAI(base_url=address, api_key="another").models.list()
