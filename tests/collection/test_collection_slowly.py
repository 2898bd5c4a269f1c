"""A whole collection: 200 pairs through an endpoint, killed on the way, and a short training on them."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tests.collection.test_collect import manifests, tars

from blip3o_hf.training.finetune import finetune


@pytest.mark.slow
def test_two_hundred_pairs_are_collected_and_learned_from(collect, endpoint, tmp_path):
    assert collect(tmp_path / "out", "--price", "0.01", "--budget", "2", number=200) == 0
    assert sum(one["pairs"] for one in manifests(tmp_path / "out")) > 190
    settings = {"learning_rate": 1e-3, "evaluation_steps": 1}
    folder = finetune(
        tmp_path / "out", tmp_path / "run", steps=3, decoder_steps=2, batch_size=8, training_settings=settings
    )
    assert (folder / "model_index.json").is_file()


@pytest.mark.slow
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(collect, endpoint, tmp_path):
    assert collect(tmp_path / "whole", number=60) == 0
    command = [sys.executable, "-m", "blip3o_hf.cli", "collect", str(tmp_path / "cut"), "--categories", "shapes"]
    command += ["--teacher", "openai:painter", "--number", "60", "--shard-size", "8", "--terms", "for tests"]
    command += ["--set", "seed={seed}", "--base-url", endpoint.base_url, "--key-env", "MY_KEY"]
    environment = {**os.environ, "MY_KEY": "k"}
    for num_requests in (5, 22, 12):
        endpoint.bodies.clear()
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(endpoint.bodies) < num_requests:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert subprocess.run(command, env=environment).returncode == 0
    assert tars(tmp_path / "cut") == tars(tmp_path / "whole")
