"""`blip3o-hf demo`: a grid of pictures from a fixed set of prompts, one of them described."""

import argparse

from .files import check_picture_path, save_picture
from .models import add_model_argument, load_pipeline

EXAMPLES = """examples:
  blip3o-hf demo
  blip3o-hf demo -o grid.png --seed 3
"""

PROMPTS = (
    "a circle",
    "a red square",
    "a green triangle on a black background",
    "two red circles",
    "three blue squares",
    "four yellow crosses on a black background",
    "a circle and a triangle",
    "a red circle and a blue square",
    "a yellow cross and a purple circle on a white background",
    "a green square left of a red triangle",
    "a blue circle below a yellow cross",
    "a large orange square at the top left and a small blue circle at the bottom right on a white background",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="demo.png", help="picture file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn with seed + i (default: %(default)s)")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    output = check_picture_path(arguments.output)
    pipe = load_pipeline(arguments.model)

    import torch

    from ..evaluation.shapes import answer
    from ..evaluation.sheets import contact_sheet

    generators = [torch.Generator().manual_seed(arguments.seed + index) for index in range(len(PROMPTS))]
    images = pipe(list(PROMPTS), generator=generators).images
    description = answer(pipe.model, pipe.processor, [images[-1]], ["describe the image"])[0]
    captions = [*PROMPTS[:-1], f"{PROMPTS[-1]}  ->  described as: {description}"]
    save_picture(contact_sheet(images, captions, columns=4), output)
    print(f"the last picture, described by the same model: {description}")
    print(output.absolute())
    return 0
