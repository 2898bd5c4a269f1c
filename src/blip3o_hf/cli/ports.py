"""Where a command can listen."""

import argparse
import socket


def add_address_arguments(parser: argparse.ArgumentParser, port: int) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets others in (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=port, help="port to listen on (default: %(default)s)")


def check_free(who: str, host: str, port: int, usual: int) -> None:
    """
    Raises:
        OSError: when nothing can be served there.
        ValueError: when the port is not valid.
    """
    if not 0 < port < 65536:
        raise ValueError(f"--port must be a number from 1 to 65535. Got {port}. {usual} is the usual one.")
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise OSError(
            f"{who} must be able to listen on {host}, port {port}. It cannot ({error.strerror}). Choose another "
            f"with --port or --host."
        ) from error
