"""`blip3o-hf demo`: a grid of pictures from a fixed set of prompts, one of them described."""

import argparse

from .files import check_picture_path, save_picture
from .models import add_model_argument, load_pipeline

EXAMPLES = """examples:
  blip3o-hf demo
  blip3o-hf demo -o grid.png --seed 3
"""

PROMPTS = (
    ("a circle", [("circle",)]),
    ("a red square", [("square", "red")]),
    ("a green triangle on a black background", [("triangle", "green")], "black"),
    ("two red circles", [("circle", "red", 2)]),
    ("three blue squares", [("square", "blue", 3)]),
    ("four yellow crosses on a black background", [("cross", "yellow", 4)], "black"),
    ("a circle and a triangle", [("circle",), ("triangle",)]),
    ("a red circle and a blue square", [("circle", "red"), ("square", "blue")]),
    ("a yellow cross and a purple circle on a white background", [("cross", "yellow"), ("circle", "purple")], "white"),
    ("a green square left of a red triangle", [("square", "green"), ("triangle", "red")], None, "left of"),
    ("a blue circle below a yellow cross", [("circle", "blue"), ("cross", "yellow")], None, "below"),
    (
        "a large orange square at the top left and a small blue circle at the bottom right on a white background",
        [("square", "orange", 1, "large", "top left"), ("circle", "blue", 1, "small", "bottom right")],
        "white",
    ),
)
"""Text, what is to be shown as arguments of `ObjectGroup`, and where the text tells them, background and relation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", default="demo.png", help="picture file (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn with seed + i (default: %(default)s)")
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    output = check_picture_path(arguments.output)
    pipe = load_pipeline(arguments.model)

    import torch

    from ..evaluation.answers import answer
    from ..evaluation.sheets import contact_sheet
    from ..shapes import IMAGE_SIZE, ObjectGroup, Prompt, verify

    texts = [text for text, *_ in PROMPTS]
    generators = [torch.Generator().manual_seed(arguments.seed + index) for index in range(len(texts))]
    images = pipe(texts, generator=generators).images
    is_checked = images[0].size == (IMAGE_SIZE, IMAGE_SIZE)  # the verifier reads pictures of the tiny world alone
    passed, captions = 0, []
    for image, (text, groups, *rest) in zip(images, PROMPTS, strict=True):
        background, relation = (*rest, None, None)[:2]
        prompt = Prompt(text, "demo", tuple(ObjectGroup(*group) for group in groups), relation, background)
        verdict = verify(image, prompt) if is_checked else None
        is_right = verdict is not None and verdict.passed
        passed += is_right
        captions.append(text if is_right or verdict is None else f"{text} ({verdict.reason})")
        print(f"{'drawn' if verdict is None else 'right' if is_right else 'wrong'}: {captions[-1]}")
    description = answer(pipe.model, pipe.processor, [images[-1]], ["describe the image"])[0]
    captions[-1] += f"  ->  described as: {description}"
    save_picture(contact_sheet(images, captions, columns=4), output)
    if is_checked:
        print(f"{passed} of {len(texts)} pictures show exactly what was asked for")
    print(f"the last picture, described by the same model: {description}")
    print(output.absolute())
    return 0
