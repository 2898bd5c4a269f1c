"""Where a command can listen."""

import socket


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
