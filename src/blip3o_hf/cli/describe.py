"""`blip3o-hf describe`: an image and a question to an answer."""

import argparse

from .files import open_picture
from .models import add_model_argument, load_pipeline, note_unknown_words

EXAMPLES = """examples:
  blip3o-hf describe out.png
  blip3o-hf describe out.png "how many circles are there?"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="picture file")
    parser.add_argument("question", nargs="?", default="describe the image", help="default: %(default)s")
    parser.add_argument(
        "--max-new-tokens", type=int, default=40, help="longest answer in tokens (default: %(default)s)"
    )
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    image = open_picture(arguments.image)
    if not arguments.question.strip():
        raise ValueError(
            f"The question must say something. Got {arguments.question!r}. Leave it out for a description."
        )
    pipe = load_pipeline(arguments.model)

    from ..evaluation.answers import answer

    note_unknown_words(pipe, arguments.question)
    print(answer(pipe.model, pipe.processor, [image], [arguments.question], arguments.max_new_tokens)[0])
    return 0
