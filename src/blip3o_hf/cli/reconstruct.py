"""`blip3o-hf reconstruct`: images drawn again, beside the originals, with how close they are."""

import argparse

from .files import check_picture_path, open_picture, save_picture
from .models import add_model_argument, add_sampling_arguments, load_pipeline, sampling_of

EXAMPLES = """examples:
  blip3o-hf reconstruct in.png -o reconstructed.png
  blip3o-hf reconstruct a.png b.png --mode autoencoder
  blip3o-hf reconstruct in.png --model runs/mine/pipeline --encoder runs/mine/encoder
"""
BOTH = "both"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", help="picture files")
    parser.add_argument(
        "-o", "--output", default="reconstructed.png", help="picture file, a row for each image (default: %(default)s)"
    )
    parser.add_argument(
        "--mode",
        choices=("autoencoder", "unified", BOTH),
        default=BOTH,
        help="target encoder and decoder alone, the whole model, or both (default: %(default)s)",
    )
    parser.add_argument(
        "--encoder", default=None, help="folder or Hub id of the target encoder (default: that of the model)"
    )
    parser.add_argument("--seed", type=int, default=0, help="image i is drawn with seed + i (default: %(default)s)")
    add_sampling_arguments(parser)
    add_model_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    output = check_picture_path(arguments.output)
    images = [open_picture(path) for path in arguments.images]
    pipe = load_pipeline(arguments.model)

    import torch

    from ..evaluation.sheets import contact_sheet
    from ..pipelines.reconstruction import MODES, Blip3oReconstructionPipeline

    reconstruct = Blip3oReconstructionPipeline.from_pipe(pipe, arguments.encoder)
    results = {
        mode: reconstruct(
            images,
            mode,
            generator=[torch.Generator().manual_seed(arguments.seed + index) for index in range(len(images))],
            **sampling_of(arguments),
        )
        for mode in MODES
        if arguments.mode in (mode, BOTH)
    }
    cells, captions = [], []
    for index, path in enumerate(arguments.images):
        first = next(iter(results.values()))
        cells.append(first.originals[index])
        captions.append(str(path))
        for mode, result in results.items():
            cells.append(result.images[index])
            captions.append(f"{mode}: cosine {result.feature_cosine[index]:.3f}, {result.psnr[index]:.1f} dB")
            print(f"{path}: {captions[-1]}")
    save_picture(contact_sheet(cells, captions, columns=1 + len(results)), output)
    print(output)
    return 0
