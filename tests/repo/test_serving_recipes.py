"""What recipes/serving names is there: options of the server, pins, files, settings."""

import argparse
import ast
import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest
import yaml

from blip3o_hf.cli import serve
from blip3o_hf.serving.gate import OPEN
from blip3o_hf.serving.server import ServerSettings

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "recipes" / "serving"
DOCKERFILE = (SERVING / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((SERVING / "compose.yaml").read_text())
LITELLM = yaml.safe_load((SERVING / "litellm.yaml").read_text())
RAY = ast.parse((SERVING / "ray_serve.py").read_text())


def instruction(name: str) -> str:
    """The last one of this name in the Dockerfile, without it."""
    return re.findall(rf"^{name} (.*?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)[-1]


def options(arguments: list[str]) -> argparse.Namespace:
    """Those of `blip3o-hf serve`; unknown ones end the test."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def with_defaults(text: str) -> str:
    """A text of the compose file where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_image_runs_the_server():
    program, command, *arguments = json.loads(instruction("ENTRYPOINT"))
    assert (program, command) == ("blip3o-hf", "serve")
    given = options([*arguments, *json.loads(instruction("CMD"))])
    assert (given.host, given.port, given.model) == ("0.0.0.0", int(instruction("EXPOSE")), "blip3o-tiny")


def test_the_image_is_built_of_what_is_there():
    assert len(re.findall(r"^torch==[\d.]+$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)) == 1
    assert "$(grep '^torch==' constraints.txt)" in DOCKERFILE
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    kept = re.findall(r"^!(.*)$", (SERVING / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(kept)
    assert all((ROOT / name).exists() for name in names)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", DOCKERFILE)
    assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_image_is_asked_for_its_health_without_a_key_and_runs_as_a_user():
    (path,) = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", instruction("HEALTHCHECK"))
    assert path in OPEN
    assert int(instruction("USER")) > 0


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_a_service_of_compose(name):
    service = COMPOSE["services"][name]
    assert service["profiles"] == [name]
    options([with_defaults(argument) for argument in service["command"]])
    build = service["build"]
    assert ((SERVING / build["context"]).resolve(), build["dockerfile"]) == (ROOT, "recipes/serving/Dockerfile")
    assert all(re.search(rf"^ARG {argument}=", DOCKERFILE, re.MULTILINE) for argument in build.get("args", {}))
    assert any(value.startswith(f"{serve.KEY}=${{{serve.KEY}:?") for value in service["environment"])
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert [with_defaults(port) for port in service["ports"]] == ["127.0.0.1:8000:8000"]
    (volume,) = service["volumes"]
    kept, folder = volume.split(":")
    assert kept in COMPOSE["volumes"] and f"HF_HOME={folder} " in DOCKERFILE


def test_the_servers_behind_litellm():
    names = {entry["model_name"] for entry in LITELLM["model_list"]}
    servers = [entry["litellm_params"] for entry in LITELLM["model_list"]]
    assert len(names) == 1 and len({server["api_base"] for server in servers}) == len(servers) > 1
    for server in servers:
        assert server["model"] == f"openai/{serve.served_name('blip3o-tiny')}"
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", server["api_base"])
        assert server["api_key"] == f"os.environ/{serve.KEY}"


def test_the_deployment_of_ray_uses_what_the_package_has():
    nodes = list(ast.walk(RAY))
    imported = [
        node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blip3o_")
    ]
    assert imported
    for node in imported:
        module = importlib.import_module(node.module)
        assert all(hasattr(module, alias.name) for alias in node.names), node.module
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "ServerSettings"]
    fields = {field.name for field in dataclasses.fields(ServerSettings)}
    assert len(calls) == 1 and {keyword.arg for keyword in calls[0].keywords} <= fields
    assert f'KEY = "{serve.KEY}"' in (SERVING / "ray_serve.py").read_text()
