"""`blip3o-hf app`: a page in the browser to chat, draw, edit and reconstruct."""

import argparse
import os

from ..assets import packaged_models
from .endpoints import add_server_arguments, open_server
from .models import add_model_argument, load_pipeline
from .ports import add_address_arguments, check_free

EXAMPLES = """examples:
  blip3o-hf app
  blip3o-hf app --model runs/mine/generation/pipeline --port 8000
  blip3o-hf app --host 0.0.0.0
  blip3o-hf app --server http://localhost:8000
"""
PORT = 7860
"""Gradio's own."""
TINY_WORLD = "It knows one world only: 64 x 64 pictures of one to four coloured shapes on a plain background."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_arguments(parser, PORT)
    parser.add_argument(
        "--share", action="store_true", help="also give the page a public address, by a tunnel of gradio's makers"
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name under which browsers may ask for the page, beside those of this machine, as behind a proxy; "
        ".example.org allows every name below it; may be repeated",
    )
    add_server_arguments(parser, "answer and draw")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "The app is a page of gradio. It is not installed. In a clone, run: pip install -e '.[demo]'"
        ) from error
    check_free("The app", arguments.host, arguments.port, usual=PORT)
    if arguments.server is not None:
        return show_server(arguments)
    pipe = load_pipeline(arguments.model)
    pipe.set_progress_bar_config(disable=True)

    from ..app.page import build_page, serve
    from ..pipelines.reconstruction import Blip3oReconstructionPipeline

    notes = [TINY_WORLD] if arguments.model in packaged_models() else []
    try:
        reconstruction = Blip3oReconstructionPipeline.from_pipe(pipe)
    except (ValueError, OSError) as error:
        reconstruction = None
        notes.append(f"There is no tab to reconstruct pictures: {error}")
    page = build_page(pipe, reconstruction, arguments.model, " ".join(notes))
    serve(page, arguments.host, arguments.port, arguments.share, arguments.allow_host)
    return 0


def show_server(arguments: argparse.Namespace) -> int:
    """The page of a model that a server has."""
    from ..app.page import build_page, serve
    from ..app.served import ServedPipeline

    pipe = ServedPipeline(open_server(arguments))
    page = build_page(pipe, None, pipe.name, f"Served by {pipe.client.url}.")
    serve(page, arguments.host, arguments.port, arguments.share, arguments.allow_host)
    return 0
