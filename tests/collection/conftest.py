"""The endpoint of these tests, and the command as a user types it."""

import functools

import httpx2
import pytest
from tests.collection.standin import KEY, StandIn

from blip3o_hf import cli
from blip3o_hf.cli import main
from blip3o_hf.collection import folder

# What takes long and is the same for every command; no test needs certificates.
PARSER, VERSIONS = functools.cache(cli.build_parser), functools.cache(folder.versions)
CLIENT = functools.partial(httpx2.Client, verify=httpx2.create_ssl_context())


@pytest.fixture(autouse=True)
def made_once(monkeypatch):
    """The same parser, versions and certificates for all commands."""
    monkeypatch.setattr("blip3o_hf.cli.build_parser", PARSER)
    monkeypatch.setattr("blip3o_hf.collection.folder.versions", VERSIONS)
    monkeypatch.setattr("blip3o_hf.collection.endpoint.httpx2.Client", CLIENT)


@pytest.fixture
def endpoint():
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture
def waited(monkeypatch):
    """Pauses between attempts, which are not made."""
    pauses = []
    monkeypatch.setattr("blip3o_hf.collection.endpoint.pause", lambda seconds, stop: pauses.append(seconds))
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
