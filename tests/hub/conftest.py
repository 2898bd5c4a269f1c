"""A stand-in for the Hub, and what scripts that use it found out."""

import json
import sys
from pathlib import Path

import pytest
from tests.hub.standin import WRITE, StandIn
from tests.processes import ROOT, run


@pytest.fixture(scope="session")
def hub():
    """A stand-in, for all tests of this folder."""
    with StandIn() as stand_in:
        yield stand_in


@pytest.fixture(scope="session")
def reader(hub) -> dict[str, str]:
    """The environment of a process that asks the stand-in, without a token."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="session")
def writer(reader) -> dict[str, str]:
    """The environment of a process that has the package and a write token."""
    return reader | {"HF_TOKEN": WRITE, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "HF_HUB_VERBOSITY": "debug"}


@pytest.fixture(scope="session")
def run_client(writer, tmp_path_factory):
    """`run_client(name)`: run a script of this folder against the stand-in; its results, and all that it printed."""

    def run_script(name: str) -> tuple[dict, str]:
        out = tmp_path_factory.mktemp(Path(name).stem)
        command = [sys.executable, Path(__file__).with_name(name), out]
        printed = run(command, timeout=300, HF_HOME=str(out / "home"), **writer)
        return json.loads((out / "results.json").read_text()), printed

    return run_script


@pytest.fixture(scope="module")
def runs(request, run_client):
    """What the `SCRIPT` of a module of tests found out, and all that it printed."""
    return run_client(request.module.SCRIPT)


@pytest.fixture(scope="module")
def results(runs):
    """What the script found out."""
    return runs[0]
