"""OpenAI-compatible endpoints of the commands: their options, and what is opened by them."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..collection.endpoint import Endpoint
    from ..serving.client import Client

PREFIX = "openai:"
"""Before the name of a model that is behind an endpoint."""


def add_endpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-url", metavar="URL", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    parser.add_argument("--key-env", metavar="NAME", help="environment variable that holds its key")
    parser.add_argument("--at-once", type=int, default=8, help="requests or pictures at a time (default: %(default)s)")


def check_at_least_one(arguments: argparse.Namespace, *names: str) -> None:
    """
    Raises:
        ValueError: when one of these arguments is given and below 1.
    """
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1. Got {value}. Use a larger one.")


def endpoint_model(name: str, option: str) -> str:
    """
    The model of `openai:MODEL`.

    Raises:
        ValueError: when it is written otherwise.
    """
    prefix, _, model = name.partition(":")
    if f"{prefix}:" != PREFIX or not model:
        raise ValueError(f"{option} must be written {PREFIX}MODEL. Got {name!r}. Example: {PREFIX}my-model.")
    return model


def open_endpoint(arguments: argparse.Namespace, option: str) -> "Endpoint":
    """
    The endpoint of `--base-url`.

    Raises:
        ValueError: when there is none, and so nothing for `option` to ask.
    """
    from ..collection.access import read_key
    from ..collection.endpoint import Endpoint

    if arguments.base_url is None:
        raise ValueError(f"{option} needs an endpoint. There is no --base-url. Add it.")
    return Endpoint(arguments.base_url, read_key(arguments.key_env))


def add_server_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Options of a command that can ask a server to do `what` it does."""
    parser.add_argument("--server", metavar="URL", help=f"let a server of `blip3o-hf serve` {what}, with its model")
    parser.add_argument("--key-env", metavar="NAME", help="environment variable that holds the server's key")


def open_server(arguments: argparse.Namespace) -> "Client":
    """The server of `--server`."""
    from ..collection.access import read_key
    from ..serving.client import Client

    return Client(arguments.server, read_key(arguments.key_env))
