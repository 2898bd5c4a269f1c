"""The endpoint of these tests, and the command as a user types it."""

import pytest
from tests.collection.standin import KEY, StandIn

from blip3o_hf.cli import main


@pytest.fixture
def endpoint():
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
def waited(monkeypatch):
    """Pauses between attempts, which are not made."""
    pauses = []
    monkeypatch.setattr("blip3o_hf.collection.endpoint.sleep", pauses.append)
    return pauses


@pytest.fixture
def collect(tmp_path, endpoint, monkeypatch):
    """`collect(folder, *words, number=20)` through the endpoint; the exit code."""
    monkeypatch.setenv("MY_KEY", KEY)

    def run(folder, *words, number=20):
        command = ["collect", str(folder), "--categories", "shapes", "--teacher", "openai:painter"]
        command += ["--number", str(number), "--shard-size", "8", "--terms", "for tests", "--set", "seed={seed}"]
        command += ["--base-url", endpoint.base_url, "--key-env", "MY_KEY", *words]
        return main(command)

    return run
