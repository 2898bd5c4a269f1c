"""`blip3o-hf serve`: a model behind OpenAI's images and chat API."""

import argparse
import os
import sys
from pathlib import Path

from .models import add_model_argument, load_pipeline
from .ports import add_address_arguments, check_free

EXAMPLES = """examples:
  blip3o-hf serve
  BLIP3O_API_KEY=... blip3o-hf serve --model runs/mine/generation/pipeline --host 0.0.0.0 --port 8000
  curl http://127.0.0.1:8000/v1/images/generations -d '{"prompt": "two red circles", "seed": 0}'
"""
KEY = "BLIP3O_API_KEY"
PORT = 8000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser, PORT)
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"a key that requests must have; may be repeated. Others can see it in the list of processes, so rather "
        f"set the variable {KEY}",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="without a key: a name under which the server may be asked, beside those of this machine; .example.org "
        "allows every name below it; may be repeated",
    )
    parser.add_argument("--served-name", metavar="NAME", help="name of the model in requests (default: --model's)")
    parser.add_argument(
        "--allow-image-urls",
        action="store_true",
        help="fetch pictures of messages from public https addresses (default: data URLs alone)",
    )
    parser.add_argument(
        "--max-batch", type=int, default=8, help="pictures to draw together at most (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-wait",
        type=float,
        default=10.0,
        metavar="MS",
        help="milliseconds to wait for requests to draw together (default: %(default)s)",
    )
    parser.add_argument(
        "--max-waiting", type=int, default=64, help="requests that wait; others get 429 (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds for an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--max-body", type=int, default=32, metavar="MIB", help="largest request in MiB (default: %(default)s)"
    )
    parser.add_argument(
        "--conversations", type=int, default=4, help="chats to keep in memory, to go on faster (default: %(default)s)"
    )
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The server needs starlette, uvicorn, python-multipart and prometheus-client. There is no {error.name}. "
            f"In a clone, run: pip install -e '.[serve]'"
        ) from error
    for name in ("max_batch", "max_waiting", "max_body", "conversations", "timeout"):
        if not getattr(arguments, name) > 0:  # NaN is not
            raise ValueError(
                f"--{name.replace('_', '-')} must be above 0. Got {getattr(arguments, name)}. Use a larger one."
            )
    if not arguments.batch_wait >= 0:
        raise ValueError(f"--batch-wait must be at least 0. Got {arguments.batch_wait}. Use 0 not to wait.")
    check_free("The server", arguments.host, arguments.port, usual=PORT)

    from ..collection.access import check_key
    from ..pipelines.reconstruction import Blip3oReconstructionPipeline
    from ..serving.guard import hosts_of_machine
    from ..serving.server import Server, ServerSettings, serve

    keys = [*arguments.api_key, *filter(None, [os.environ.get(KEY, "").strip()])]
    for key in keys:
        check_key(key)
    pipe = load_pipeline(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    try:
        reconstruction = Blip3oReconstructionPipeline.from_pipe(pipe)
    except (ValueError, OSError) as error:
        reconstruction = None
        print(f"note: /v1/images/variations is not there: {error}", file=sys.stderr)
    settings = ServerSettings(
        name=arguments.served_name or served_name(arguments.model),
        api_keys=tuple(keys),
        allowed_hosts=hosts_of_machine(arguments.host, *arguments.allow_host),
        allow_image_urls=arguments.allow_image_urls,
        max_body=arguments.max_body * 2**20,
        request_seconds=arguments.timeout,
        max_waiting=arguments.max_waiting,
        max_batch=arguments.max_batch,
        batch_wait=arguments.batch_wait / 1000,
        conversations=arguments.conversations,
    )
    if not keys and arguments.host not in ("127.0.0.1", "localhost", "::1"):
        print(f"note: everybody who reaches {arguments.host} may use this server; set {KEY}", file=sys.stderr)
    serve(Server(pipe, settings, reconstruction), arguments.host, arguments.port)
    return 0


def served_name(model: str) -> str:
    """The name of a model that tells no folder: a packaged name or Hub id as it is, of a path its last part."""
    path = Path(model)
    return path.resolve().name if path.exists() else model
