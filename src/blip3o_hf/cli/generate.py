"""`blip3o-hf generate`: a prompt to one image file or several."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from .endpoints import add_server_arguments, open_server
from .files import check_picture_path, save_picture
from .models import (
    add_model_argument,
    add_sampling_arguments,
    load_pipeline,
    note_rejected,
    note_unknown_words,
    note_words,
    sampling_of,
)

MAX_IMAGES = 10_000
EXAMPLES = """examples:
  blip3o-hf generate "two red circles" -o out.png
  blip3o-hf generate "a blue square above a green triangle" -o out.png -n 4 --seed 7 --guidance 3
  blip3o-hf generate "two circles" --negative-prompt "two red circles" --guidance 4
  blip3o-hf generate "a cat" --lora my_lora:0.8 --lora me/style
  blip3o-hf generate "two red circles" --server http://localhost:8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("-o", "--output", default="out.png", help="picture file (default: %(default)s)")
    parser.add_argument(
        "-n", "--num-images", type=int, default=1, help="images to draw; files are numbered from the second on"
    )
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn with seed + i (default: %(default)s)")
    add_sampling_arguments(parser)
    parser.add_argument(
        "--negative-prompt", default=None, metavar="TEXT", help="what guidance leads away from (default: nothing)"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        type=lora_of,
        metavar="PATH[:SCALE]",
        help="a LoRA's file, folder or Hub id, and how much it counts (default: 1); several add up",
    )
    add_server_arguments(parser, "draw")
    add_model_argument(parser)


def lora_of(text: str) -> tuple[str, float]:
    """
    Where a LoRA is, and its scale.

    >>> lora_of("my_lora:0.5"), lora_of("me/style")
    (('my_lora', 0.5), ('me/style', 1.0))
    """
    path, colon, scale = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return path, float(scale)
    except ValueError:  # the colon is part of the path
        return text, 1.0


def load_loras(pipe, loras: Sequence[tuple[str, float]]) -> None:
    """Load LoRAs into a pipeline, all of them active at their scales."""
    names = [f"lora_{number}" for number in range(1, len(loras) + 1)]
    for name, (path, _) in zip(names, loras, strict=True):
        pipe.load_lora_weights(path, adapter_name=name)
    if loras:
        pipe.set_adapters(names, [scale for _, scale in loras])


def numbered(path: Path, index: int) -> Path:
    """`out.png`, `out-2.png`, `out-3.png`, ..."""
    return path if index == 0 else path.with_stem(f"{path.stem}-{index + 1}")


def run(arguments: argparse.Namespace) -> int:
    output = check_picture_path(arguments.output)
    if arguments.num_images < 1:
        raise ValueError(f"-n must be at least 1. Got {arguments.num_images}. Use -n 1 for one image.")
    if arguments.num_images > MAX_IMAGES:
        raise ValueError(
            f"-n must be at most {MAX_IMAGES:,}. Got {arguments.num_images}. Draw the others with a seed."
        )
    drawn = drawn_here(arguments) if arguments.server is None else drawn_there(arguments)
    paths = [numbered(output, index) for index in range(arguments.num_images)]
    for image, path in zip(drawn.images, paths, strict=True):
        save_picture(image, path)
        print(path)
    note_rejected(drawn, paths)
    return 0


def drawn_here(arguments: argparse.Namespace):
    """What the model draws, loaded by this command."""
    from ..checkpoints.lookup import checkpoint_files

    for path, _ in arguments.lora:
        checkpoint_files(path)  # a path with nothing there is refused before the model is loaded
    pipe = load_pipeline(arguments.model)
    load_loras(pipe, arguments.lora)

    import torch

    seeds = [arguments.seed + index for index in range(arguments.num_images)]
    note_unknown_words(pipe, arguments.prompt)
    return pipe(
        arguments.prompt,
        num_images_per_prompt=arguments.num_images,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        negative_prompt=arguments.negative_prompt,
        **sampling_of(arguments),
    )


def drawn_there(arguments: argparse.Namespace):
    """
    What a server draws.

    Raises:
        ValueError: when there are adapters, which only the server could load.
    """
    if arguments.lora:
        raise ValueError(
            "--lora is for a model of this command. With --server the server has the model. Start the server with a "
            "pipeline that has the adapters in it."
        )
    drawn = open_server(arguments).generate(
        arguments.prompt,
        arguments.num_images,
        arguments.seed,
        negative_prompt=arguments.negative_prompt,
        **sampling_of(arguments),
    )
    note_words(drawn.unknown_words)
    return drawn
