"""`blip3o-hf distance`: how far the pictures of a folder are from those of a reference."""

import argparse
import shlex
import sys

from .files import check_writable
from .models import DEFAULT_MODEL, encoder_beside

EXAMPLES = """examples:
  blip3o-hf distance drawn/ reference/ --size 64
  blip3o-hf distance drawn/ MJHQ-30K/ --extractor inception --size 1024 --by-folder --output mjhq.json
  blip3o-hf distance drawn/ reference/ --extractor clip --output cmmd.json
  blip3o-hf distance drawn/ reference/ --extractor my_features:extract --size 256 --resize lanczos

extractors:
  target_encoder   what a model learns to generate: mean and deviation over the picture
  inception        Inception-v3 of FID; needs pip install 'blip3o-hf[fidelity]'
  dinov2           DINOv2 ViT-L/14, for FD-DINOv2
  clip             CLIP ViT-L/14 at 336 pixels, for CMMD
  module:function  your own: a list of PIL pictures in, an array [pictures, dim] out
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="folder of pictures; subfolders count")
    parser.add_argument("reference", help="folder of pictures to compare with, such as MJHQ-30K")
    parser.add_argument("--extractor", default="target_encoder", help="see below (default: %(default)s)")
    parser.add_argument(
        "--model", default=None, help=f"whose target encoder is taken, for target_encoder (default: {DEFAULT_MODEL})"
    )
    parser.add_argument("--encoder", default=None, help="folder or Hub id of other weights for the extractor")
    parser.add_argument(
        "--size",
        type=int,
        default=None,
        help="resize each whole picture to this height and width first (default: as they are, all of one size)",
    )
    parser.add_argument(
        "--resize", default="bicubic", help="filter of Pillow, such as lanczos or box (default: %(default)s)"
    )
    parser.add_argument(
        "--by-folder", action="store_true", help="also for each subfolder, as MJHQ-30K has them: <category>/<id>.jpg"
    )
    parser.add_argument("--subsets", type=int, default=100, help="of the kernel distance (default: %(default)s)")
    parser.add_argument(
        "--subset-size", type=int, default=None, help="(default: 1000, or half of the smaller set where that is less)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the subsets (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="pictures at once (default: %(default)s)")
    parser.add_argument(
        "--output",
        default=None,
        help="also write all to this JSON file, and features beside it, in FILE.features/: the same command goes on "
        "from them",
    )


def run(arguments: argparse.Namespace) -> int:
    target = check_writable(arguments.output) if arguments.output else None

    from transformers.utils import logging as transformers_logging

    from ..evaluation.extractors import load_extractor
    from ..evaluation.folders import PictureFolder, Preparation
    from ..evaluation.set_distances import SetComparison
    from ..hub.provenance import now

    started = now()
    transformers_logging.disable_progress_bar()
    prepare = Preparation(arguments.size, arguments.resize)
    extractor = load_extractor(arguments.extractor, _encoder(arguments))
    folders = [PictureFolder(path, progress=True) for path in (arguments.folder, arguments.reference)]
    comparison = SetComparison(
        *folders,
        extractor,
        prepare,
        arguments.by_folder,
        arguments.subsets,
        arguments.subset_size,
        arguments.seed,
    )
    cache = None if target is None else target.with_name(f"{target.name}.features")
    distances, dim = comparison.measure(cache, arguments.batch_size, progress=True)
    for note in comparison.notes(dim):
        print(f"note: {note}", file=sys.stderr)
    print(f"{comparison.extractor.about}; {dim} dimensions; pictures {prepare}")
    _print_table(comparison.metric_names(), distances)
    if target:
        _manifest(comparison, distances, dim, _words(arguments), started).write(target)
        print(target)
    return 0


def _encoder(arguments: argparse.Namespace) -> str | None:
    """Where the weights of the extractor are; `None` for its own."""
    if arguments.extractor != "target_encoder":
        if arguments.model is not None:
            raise ValueError(
                f"--model is for the extractor target_encoder. Got it with {arguments.extractor}. Leave it out."
            )
        return arguments.encoder
    if arguments.encoder is not None:
        return arguments.encoder
    model = arguments.model or DEFAULT_MODEL
    encoder = encoder_beside(model)
    if encoder is None:
        raise ValueError(
            f"The target encoder must be in the model's folder. {model} has none. Name it with --encoder."
        )
    return encoder


def _print_table(names: tuple[str, str, str], distances: list) -> None:
    width = max(len(distance.name) for distance in distances)
    print(f"{'':<{width}}{'pictures':>10}{'reference':>11}" + "".join(f"{name:>26}" for name in names))
    for distance in distances:
        kernel = f"{1000 * distance.kernel.mean:.4g} +- {1000 * distance.kernel.deviation:.2g}"
        print(
            f"{distance.name:<{width}}{distance.count:>10,}{distance.reference_count:>11,}{distance.frechet:>26.5g}"
            f"{kernel:>26}{distance.cmmd:>26.5g}"
        )
    sizes = ", ".join(map(str, sorted({distance.kernel.subset_size for distance in distances})))
    print(f"+-: standard deviation over {distances[0].kernel.subsets} subsets of {sizes} pictures")


def _manifest(comparison, distances: list, dim: int, words: list[str], started: str):
    """The distances, with all that it takes to measure them again."""
    import torch

    from ..evaluation.manifests import Manifest, environment_of

    report = comparison.report(distances, dim, shlex.join(["blip3o-hf", *words]))
    inputs = {"pictures": comparison.pictures.sha256, "reference": comparison.reference.sha256}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Manifest(report, tuple(words), inputs, environment_of(device, torch.float32), started)


def _words(arguments: argparse.Namespace) -> list[str]:
    """A command that does the same, without where it writes."""
    from ..hub.provenance import public_name

    words = ["distance", *(public_name(path) for path in (arguments.folder, arguments.reference))]
    for name in ("extractor", "model", "encoder", "size", "resize", "subsets", "subset_size", "seed"):
        value = getattr(arguments, name)
        if value is not None:
            is_path = name in ("model", "encoder")
            words += [f"--{name.replace('_', '-')}", public_name(value) if is_path else str(value)]
    return [*words, *["--by-folder"] * arguments.by_folder]
