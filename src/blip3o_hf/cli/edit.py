"""`blip3o-hf edit`: an instruction and images to one image."""

import argparse

from .files import check_picture_path, open_picture, save_picture
from .models import (
    add_model_argument,
    add_sampling_arguments,
    load_pipeline,
    note_rejected,
    note_unknown_words,
    sampling_of,
)

EXAMPLES = """examples:
  blip3o-hf edit "make the circle blue" in.png -o out.png
  blip3o-hf edit "remove the square" in.png --sheet before-and-after.png --seed 3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("instruction", help="what to change")
    parser.add_argument("images", nargs="+", help="picture files that the instruction speaks of")
    parser.add_argument("-o", "--output", default="out.png", help="picture file (default: %(default)s)")
    parser.add_argument("--sheet", default=None, help="also write the images before and after, side by side, here")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    add_sampling_arguments(parser)
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    output = check_picture_path(arguments.output)
    sheet = check_picture_path(arguments.sheet) if arguments.sheet else None
    images = [open_picture(path) for path in arguments.images]
    pipe = load_pipeline(arguments.model)

    import torch

    note_unknown_words(pipe, arguments.instruction)
    drawn = pipe(
        arguments.instruction,
        image=images,
        generator=torch.Generator().manual_seed(arguments.seed),
        **sampling_of(arguments),
    )
    edited = drawn.images[0]
    save_picture(edited, output)
    print(output)
    note_rejected(drawn, [output])
    if sheet:
        from ..evaluation.sheets import contact_sheet

        captions = [*arguments.images, arguments.instruction]
        save_picture(contact_sheet([*images, edited], captions, columns=len(captions)), sheet)
        print(sheet)
    return 0
